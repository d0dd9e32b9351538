"""The number of CPUs in containers and jobs."""

import math
import os
from pathlib import Path

import pytest

import texturegen.system.threads
from texturegen.system.control_groups import control_groups
from texturegen.system.threads import count_cpus


def test_groups_are_listed_from_the_innermost_outwards(tmp_path: Path) -> None:
    proc, mount = tmp_path / "cgroup", tmp_path / "fs"
    job = mount / "system.slice" / "slurm" / "job_7"
    job.mkdir(parents=True)
    proc.write_text("0::/system.slice/slurm/job_7\n")
    assert control_groups("cpu", proc, mount) == [job, job.parent, job.parent.parent, mount]
    proc.write_text("0::/../../elsewhere\n")  # as seen in a container
    assert control_groups("memory", proc, mount) == [mount]
    assert control_groups("cpu", tmp_path / "none", mount) == []


def test_version_1_has_a_hierarchy_per_controller(tmp_path: Path) -> None:
    proc, mount = tmp_path / "cgroup", tmp_path / "fs"
    for place in ("memory/docker/a", "cpu,cpuacct/docker/b"):
        (mount / place).mkdir(parents=True)
    proc.write_text("5:memory:/docker/a\n4:cpu,cpuacct:/docker/b\n3:pids:/docker/c\n")
    assert control_groups("memory", proc, mount) == [mount / "memory" / rest for rest in ("docker/a", "docker", "")]
    assert control_groups("cpu", proc, mount)[0] == mount / "cpu,cpuacct/docker/b"


@pytest.mark.parametrize(
    ("files", "cpus"),
    [
        ({"cpu.max": "150000 100000"}, 2),
        ({"cpu.max": "max 100000"}, math.inf),
        ({"cpu.max": "1000 100000"}, 1),
        ({"cpu.cfs_quota_us": "300000", "cpu.cfs_period_us": "100000"}, 3),
        ({"cpu.cfs_quota_us": "-1", "cpu.cfs_period_us": "100000"}, math.inf),
        ({}, math.inf),
    ],
)
def test_a_quota_limits_the_number_of_cpus(
    files: dict[str, str], cpus: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(texturegen.system.threads, "control_groups", lambda controller: [tmp_path])
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(8)), raising=False)
    assert count_cpus() == min(cpus, 8)
