"""Several processes under torchrun, on CPUs with Gloo: the same step as one process, and exact resumption."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from sacl_train.training.checkpoint import load_checkpoint

GRADIENTS = Path(__file__).with_name("gradients.py")
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
SETTINGS = {
    "encoder": "se_resnet8",
    "width": 4,
    "stem": "cifar-stride2",
    "batch_size": 16,
    "epochs": 3,
    "knn_every": 0,
    "projector_hidden": 16,
    "projector_out": 16,
    "predictor_hidden": 8,
    "device": "cpu",
    "save_every": 1,
    "keep": 100,
}


def environment() -> dict[str, str]:
    paths = [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, paths))}


def run_two(*arguments: str) -> subprocess.Popen:
    return subprocess.Popen(
        [*TORCHRUN, *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment()
    )


def training(shards: Path, out: Path, **changes: object) -> list[str]:
    sets = [text for key, value in {**SETTINGS, **changes}.items() for text in ("--set", f"{key}={value}")]
    return ["-m", "sacl_train", "--shards", str(shards), "--out", str(out), *sets]


def finish(process: subprocess.Popen) -> str:
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    return output


CASES = (
    "sacl",
    "sacl texture_view=query scope=own",
    "sacl texture_role=positive",
    "sacl texture_role=instance",
    "fast-moco",
    "mocov2 texture_role=negative symmetric=True",
    "simclr texture_role=negative",
    "simclr texture_role=negative texture_view=query scope=own decoupled=True",
    "byol",
    "simsiam",
    "barlow",
    "pirl texture_role=negative",
)


@pytest.mark.slow
def test_two_processes_with_half_batches_equal_one(tmp_path: Path) -> None:
    # All cases in one start, which takes longer than their steps.
    subprocess.run([sys.executable, str(GRADIENTS), str(tmp_path / "one"), *CASES], check=True, env=environment())
    finish(run_two(str(GRADIENTS), str(tmp_path / "two"), *CASES))
    ones, twos = (torch.load(tmp_path / name, weights_only=True) for name in ("one", "two"))
    assert set(ones) == set(twos) == set(CASES)
    for case in CASES:
        one, two = ones[case], twos[case]
        assert one.keys() == two.keys()
        assert sum("gradient" in name for name in one) > 20
        for name in one:
            torch.testing.assert_close(
                two[name], one[name], rtol=1e-6, atol=1e-9, msg=lambda text, n=f"{case}: {name}": f"{n}: {text}"
            )


def same_bits(one: dict, other: dict) -> None:
    timings = ("samples_per_second", "data_wait")
    for mine, its in zip(one["metrics"], other["metrics"], strict=True):
        assert {k: v for k, v in mine.items() if k not in timings} == {k: v for k, v in its.items() if k not in timings}
    for part in ("method", "optimizer"):
        ours, theirs = (torch.utils._pytree.tree_leaves(state[part]) for state in (one, other))
        assert len(ours) == len(theirs)
        for a, b in zip(ours, theirs, strict=True):
            assert torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


@pytest.mark.slow
def test_two_processes_killed_at_any_step_end_with_same_bits(shapes_shards: Path, tmp_path: Path) -> None:
    finish(run_two(*training(shapes_shards, tmp_path / "whole", epochs=8, online="true")))
    killed, waits = tmp_path / "killed", random.Random(1)
    for sent in (signal.SIGKILL, signal.SIGTERM):
        process = run_two(*training(shapes_shards, killed, epochs=8, online="true"))
        newest = max(killed.glob("*.pt"), default=None)
        while process.poll() is None and max(killed.glob("*.pt"), default=None) == newest:
            time.sleep(0.01)
        time.sleep(waits.uniform(0, 0.1))
        workers = [int(pid) for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]
        # One of two is killed, and torchrun ends the other; all three are asked to stop, as Slurm does it, and torchrun
        # asks its own once more.
        for pid in workers[:1] if sent == signal.SIGKILL else [*workers, process.pid]:
            os.kill(pid, sent)
        output, _ = process.communicate(timeout=300)
        assert process.returncode != 0
        state = load_checkpoint(killed)
        assert state is not None
        assert 0 <= state["step"] < 32, "stopped too late to show anything"
        if sent == signal.SIGTERM:
            assert output.count("to resume: the same torchrun command") == 1
    finish(run_two(*training(shapes_shards, killed, epochs=8, online="true")))
    one, other = (load_checkpoint(tmp_path / name) for name in ("whole", "killed"))
    assert one is not None
    assert other is not None
    same_bits(one, other)


@pytest.mark.slow
def test_run_resumes_within_epoch_on_another_number_of_processes(shapes_shards: Path, tmp_path: Path) -> None:
    one = training(shapes_shards, tmp_path / "one", epochs=2)
    subprocess.run([sys.executable, *one], check=True, env=environment(), capture_output=True)
    out = tmp_path / "both"
    finish(run_two(*training(shapes_shards, out, epochs=2)))
    for checkpoint in sorted(out.glob("checkpoint-*.pt"))[3:]:  # as if stopped after step 2 of 4 of the first epoch
        checkpoint.unlink()
    state = load_checkpoint(out)
    assert state is not None
    assert state["running"]["batches"] == 2
    subprocess.run(
        [sys.executable, *training(shapes_shards, out, epochs=2)], check=True, env=environment(), capture_output=True
    )
    whole, mixed = (load_checkpoint(tmp_path / name) for name in ("one", "both"))
    assert whole is not None
    assert mixed is not None
    # Every batch has the same samples, on any number of processes: the losses agree up to rounding.
    for mine, its in zip(whole["metrics"], mixed["metrics"], strict=True):
        assert its["loss"] == pytest.approx(mine["loss"], rel=1e-3)
