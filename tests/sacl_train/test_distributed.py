"""Several processes under torchrun, on CPUs with Gloo: the same step as one process, and exact resumption."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch import nn

from sacl_train.distributed import synchronise_batch_norm
from sacl_train.training.checkpoint import load_checkpoint
from tests.commands import call

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


def run_two(*arguments: str, covered: bool = True) -> subprocess.Popen:
    env = {name: value for name, value in environment().items() if covered or not name.startswith("COVERAGE_")}
    return subprocess.Popen(
        [*TORCHRUN, *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=env
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


@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float16])
def test_synchronised_batch_norm_computes_in_float32(precision: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    for kind, shape in ((nn.BatchNorm2d, (8, 4, 5, 5)), (nn.BatchNorm1d, (16, 4))):
        one, many = kind(4), nn.Sequential(kind(4))
        monkeypatch.setattr("sacl_train.distributed.count_processes", lambda: 2)
        synchronise_batch_norm(many, torch.device("cpu"))
        monkeypatch.undo()
        images = (3 * torch.randn(shape, generator=generator) + 1).to(precision)
        with torch.autocast("cpu", precision):
            torch.testing.assert_close(many(images), one(images), rtol=0.01, atol=1e-3)
        for name in ("running_mean", "running_var"):
            torch.testing.assert_close(many[0].get_buffer(name), one.get_buffer(name))


def same_bits(one: dict, other: dict) -> None:
    timings = ("samples_per_second", "data_wait")
    for mine, its in zip(one["metrics"], other["metrics"], strict=True):
        assert {k: v for k, v in mine.items() if k not in timings} == {k: v for k, v in its.items() if k not in timings}
    for part in ("method", "optimizer"):
        ours, theirs = (torch.utils._pytree.tree_leaves(state[part]) for state in (one, other))
        assert len(ours) == len(theirs)
        for a, b in zip(ours, theirs, strict=True):
            assert torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


@pytest.fixture(scope="module")
def whole(shapes_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two processes that nothing stopped, with the checkpoint of every step. Read only."""
    out = tmp_path_factory.mktemp("two") / "whole"
    finish(run_two(*training(shapes_shards, out, epochs=8, online="true")))
    return out


@pytest.mark.slow
def test_two_processes_killed_at_any_step_end_with_same_bits(whole: Path, shapes_shards: Path, tmp_path: Path) -> None:
    killed, waits = tmp_path / "killed", random.Random(1)
    for sent in (signal.SIGKILL, signal.SIGTERM):
        process = run_two(*training(shapes_shards, killed, epochs=8, online="true"), covered=False)
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
    finish(run_two(*training(shapes_shards, killed, epochs=8, online="true"), covered=False))
    one, other = (load_checkpoint(run) for run in (whole, killed))
    assert one is not None
    assert other is not None
    same_bits(one, other)


@pytest.mark.slow
def test_run_resumes_within_epoch_on_another_number_of_processes(
    whole: Path, shapes_shards: Path, tmp_path: Path
) -> None:
    out = Path(shutil.copytree(whole, tmp_path / "both"))
    for checkpoint in sorted(out.glob("checkpoint-*.pt"))[3:]:  # as if stopped after step 2 of 4 of the first epoch
        checkpoint.unlink()
    state = load_checkpoint(out)
    assert state is not None
    assert state["running"]["batches"] == 2
    status, _, stderr = call("sacl-train", *training(shapes_shards, out, epochs=8, online="true")[2:])
    assert status == 0, stderr
    two, mixed = (load_checkpoint(run) for run in (whole, out))
    assert two is not None
    assert mixed is not None
    # Every batch has the same samples, on any number of processes: the losses agree up to rounding.
    for mine, its in zip(two["metrics"], mixed["metrics"], strict=True):
        assert its["loss"] == pytest.approx(mine["loss"], rel=1e-3)
        assert its["online_top1"] == mine["online_top1"]
