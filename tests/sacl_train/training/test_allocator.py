"""The process keeps freed memory for reuse."""

import platform
import subprocess
import sys
from pathlib import Path

import pytest

import sacl_train.training.loop
from sacl_train.config import load_config

PROGRAM = """
import resource, sys, numpy as np
from sacl_train.training.allocator import keep_freed_memory
kept = sys.argv[1] == "keep" and keep_freed_memory()
def step():
    np.ones(200_000_000, np.uint8)
step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    step()
print(int(kept), resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's malloc alone is told")
def test_freed_memory_is_reused() -> None:
    def faults(mode: str) -> tuple[int, int]:
        done = subprocess.run([sys.executable, "-c", PROGRAM, mode], capture_output=True, text=True, check=True)
        kept, count = done.stdout.split()
        return int(kept), int(count)

    kept, with_it = faults("keep")
    assert kept
    assert with_it < faults("usual")[1] / 4


def test_run_on_cpu_keeps_freed_memory(shapes_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(sacl_train.training.loop, "keep_freed_memory", lambda: asked.append(True))
    settings = {"encoder": "se_resnet8", "width": 4, "epochs": 0, "batch_size": 16, "device": "cpu"}
    sacl_train.training.loop.train(load_config(None, settings), shapes_shards, tmp_path)
    assert asked == [True]
