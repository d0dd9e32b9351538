"""Builds on a real Ray cluster of several nodes on this machine: the same bytes, whatever dies."""

import errno
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import texturegen.builds.engines.ray as ray_engine
from texturegen.builds import Recipe, build
from texturegen.builds.engines import Lost, Stopped, Tick
from texturegen.builds.engines.ray import run_on_ray
from texturegen.errors import UserError

ray = pytest.importorskip("ray")
cluster_utils = pytest.importorskip("ray.cluster_utils")
pytestmark = pytest.mark.slow

NODE = {"num_cpus": 1, "object_store_memory": 80 << 20}


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A head node of one CPU; a test adds others."""
    # A dead node is noticed within two seconds instead of fifteen.
    soon = {"health_check_initial_delay_ms": 500, "health_check_period_ms": 500, "health_check_failure_threshold": 3}
    cluster = cluster_utils.Cluster(
        initialize_head=True, head_node_args={**NODE, "include_dashboard": False, "_system_config": soon}
    )
    yield cluster
    cluster.shutdown()


def contents(directory: Path) -> dict[str, Any]:
    """Return every file, build.json without `run` and its checksum."""
    files: dict[str, Any] = {path.name: path.read_bytes() for path in sorted(directory.iterdir())}
    files["build.json"] = json.loads(files["build.json"])
    del files["build.json"]["run"], files["build.json"]["sha256"]
    return files


def test_a_build_that_loses_a_node_gives_the_bytes_of_a_local_one(
    cluster: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    recipe = Recipe("shapes", limit=600, shard_size=100, size=96)
    build(recipe, tmp_path / "local")
    out = tmp_path / "ray"
    node = cluster.add_node(**NODE)
    told: list[tuple[int, int]] = []
    capfd.readouterr()

    def kill_a_node() -> None:
        # Two shards are being written and each node has one CPU: one of the two is this node's.
        while len(list(out.glob("shard-*.tmp"))) < 2:
            time.sleep(0.01)
        cluster.remove_node(node, allow_graceful=False)

    killer = threading.Thread(target=kill_a_node, daemon=True)
    killer.start()
    build(
        recipe,
        out,
        workers=2,
        engine="ray",
        engine_options={"address": cluster.address},
        progress=lambda total, already: lambda made, failed: told.append((made, failed)),
    )
    killer.join(timeout=10)
    assert node not in cluster.worker_nodes
    assert contents(out) == contents(tmp_path / "local")
    assert (sum(made for made, _ in told), sum(failed for _, failed in told)) == (600, 0)
    assert capfd.readouterr() == ("", "")


def test_only_the_job_whose_worker_always_dies_is_lost_with_its_counts(cluster: Any, tmp_path: Path) -> None:
    def job(number: int, tick: Tick) -> dict[str, Any]:
        for image in range(5):
            if (number, image) == (1, 3):
                os.kill(os.getpid(), signal.SIGKILL)
            tick(2, image % 2)
        return {"number": number, "threads": os.environ["NUMBA_NUM_THREADS"]}

    told: list[tuple[int, int]] = []
    outcomes = list(run_on_ray(job, [0, 1, 2], 0, lambda *counts: told.append(counts), tmp_path, cluster.address))
    assert [o for o in outcomes if isinstance(o, Lost)] == [Lost(1, (6, 6))]
    assert [o for o in outcomes if not isinstance(o, Lost)] == [{"number": n, "threads": "1"} for n in (0, 2)]
    assert (sum(made for made, _ in told), sum(failed for _, failed in told)) == (20, 4)


def test_deaths_before_the_first_tick_are_counted_separately(cluster: Any, tmp_path: Path) -> None:
    def job(number: int, tick: Tick) -> dict[str, Any]:
        path = tmp_path / f"{number}"
        attempts = len(path.read_text()) if path.exists() else 0
        path.write_text("x" * (attempts + 1))
        if number == 0 or attempts < 2:  # job 1 dies twice while it starts
            os.kill(os.getpid(), signal.SIGKILL)
        tick(0, 0)
        tick(2, 0)
        os.kill(os.getpid(), signal.SIGKILL)
        return {}

    outcomes = list(run_on_ray(job, [0, 1], 0, lambda made, failed: None, tmp_path, cluster.address))
    assert sorted(outcomes, key=lambda lost: lost.number) == [Lost(0), Lost(1, (2, 2, 2))]


@pytest.mark.parametrize("error", [UserError("no such method"), OSError(errno.ENOSPC, "No space left", "/full/s.tar")])
def test_an_exception_in_a_job_ends_the_build_with_its_type(cluster: Any, error: Exception, tmp_path: Path) -> None:
    def job(number: int, tick: Tick) -> dict[str, Any]:
        if number == 0:
            raise error
        for _ in range(1200):
            time.sleep(0.05)
            if not tick(1, 0):
                raise Stopped
        return {}

    start = time.monotonic()
    with pytest.raises(type(error)) as caught:
        list(run_on_ray(job, list(range(9)), 2, lambda made, failed: None, tmp_path, cluster.address))
    assert type(caught.value) is type(error)
    assert str(caught.value) == str(error)
    assert getattr(caught.value, "filename", None) == getattr(error, "filename", None)
    assert time.monotonic() - start < 15  # without waiting for the others
    assert not ray.is_initialized()


def test_progress_is_reported_during_a_job_and_workers_limits_the_running_jobs(cluster: Any, tmp_path: Path) -> None:
    def job(number: int, tick: Tick) -> dict[str, Any]:
        (tmp_path / f"{number}").touch()
        for _ in range(15):
            time.sleep(0.1)
            tick(1, 0)
        (tmp_path / f"{number}").unlink()
        return {}

    told: list[int] = []

    def progress(made: int, failed: int) -> None:
        told.append(made)
        assert len(list(tmp_path.glob("[01]"))) <= 1

    node = cluster.add_node(**NODE)
    assert list(run_on_ray(job, [0, 1], 1, progress, tmp_path, cluster.address)) == [{}, {}]
    cluster.remove_node(node)
    assert sum(told) == 30
    assert len(told) >= 4


def test_a_node_with_other_versions_or_another_disk_ends_the_build(
    cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(directory: Path) -> None:
        list(run_on_ray(lambda number, tick: {}, [0], 1, lambda made, failed: None, directory, cluster.address))

    host = socket.gethostname()
    run(tmp_path)
    assert not list(tmp_path.iterdir())
    with monkeypatch.context() as patch:
        # As on a node without that directory: the mark does not exist.
        patch.setattr(Path, "touch", lambda path: None)
        with pytest.raises(UserError, match=rf"Ray node {host}: does not see {tmp_path}; choose an --out on a file"):
            run(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(ray_engine, "version_of", lambda name: "0.9" if name == "numba" else ray_engine_version(name))
        with pytest.raises(UserError, match=r"has numba .*, but the build was started with 0.9; install the latter"):
            run(tmp_path)
    monkeypatch.setattr(ray_engine, "__version__", "9.9")
    with pytest.raises(UserError, match=r"has texturegen .*, but the build was started with 9.9"):
        run(tmp_path)


ray_engine_version = ray_engine.version_of


def connect(address: str | None) -> None:
    nowhere = Path("nowhere")  # the cluster is looked for first
    list(run_on_ray(lambda number, tick: {}, [0], 1, lambda made, failed: None, nowhere, address))


def test_without_ray_the_error_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match=r"pip install 'sacl-texture\[ray\]'"):
        connect("auto")


@pytest.mark.parametrize("scheme", ["", "ray://"])
def test_a_missing_cluster_is_reported_soon(
    scheme: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"{scheme}127.0.0.1:{free.getsockname()[1]}"  # free, so nothing listens there
        start = time.monotonic()
        with pytest.raises(UserError, match=rf"no Ray cluster answers at {address} \(Connection refused\)"):
            connect(address)
        monkeypatch.setenv("RAY_ADDRESS", address)
        with pytest.raises(UserError, match=rf"no Ray cluster answers at {address}"):
            connect(None)
    assert time.monotonic() - start < 10
    assert capfd.readouterr() == ("", "")


def test_no_cluster_is_started_without_request(monkeypatch: pytest.MonkeyPatch) -> None:
    def find(address: str) -> str:
        raise ConnectionError("Could not find any running Ray instance.")

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr("ray._private.services.canonicalize_bootstrap_address_or_die", find)
    with pytest.raises(UserError, match="no Ray cluster found: RAY_ADDRESS is not set"):
        connect(None)
    with pytest.raises(UserError, match="invalid Ray address 'loacl'; use auto"):
        connect("loacl")


def test_ctrl_c_ends_soon_and_leaves_no_temporary_file(cluster: Any, tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "texturegen",
        "build",
        "--dataset",
        "shapes",
        "--size",
        "96",
        "--shard-size",
        "4000",
    ]
    command += ["--engine", "ray", "--ray-address", cluster.address, "--workers", "2", "--out", str(tmp_path / "s")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while not list((tmp_path / "s").glob("shard-*.tmp")):  # takes half a minute
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=15)
    assert (process.returncode, stdout) == (130, "")
    assert stderr.strip().splitlines() == ["stopped; finished work is kept; run the same command again to resume"]
    assert not list((tmp_path / "s").glob("*.tmp"))
