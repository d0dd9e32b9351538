"""Two equal runs have the same bits, at sizes that torch divides among threads.

SACL_ALL_BITS=1 (`make bits`) runs every method, role, attention, policy of views and optimizer at the width of the
encoder and a batch of 64, with 1, 2 and 4 threads, and kills a run of each method at batches of 64 and 128.
"""

import os
import signal
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

import sacl_train.training.writer
from sacl_train import train
from sacl_train.config import Config, load_config
from sacl_train.methods import METHODS
from sacl_train.nets import ATTENTION, PLACEMENTS
from sacl_train.training.checkpoint import load_checkpoint
from sacl_train.training.optim import OPTIMIZERS
from tests.sacl_train.training.test_loop import assert_equal_states
from tests.texturegen import kill
from texturegen.builds import Recipe, build
from texturegen.errors import UserError

ALL = bool(os.environ.get("SACL_ALL_BITS"))
THREADS = (1, 2, 4) if ALL else (2,)
SIZE: dict[str, Any] = {"encoder": "se_resnet20", "stem": "cifar-stride2", "batch_size": 64, "epochs": 2}
SIZE |= {"knn_every": 0, "device": "cpu", "projector_out": 32, "projector_hidden": 64, "predictor_hidden": 32}
SIZE |= {} if ALL else {"width": 16, "encoder": "se_resnet8"}

WEAK = ("geometric", "colour-geometric", "mocov2", "simclr", "byol", "none")

# A method with its textures, each kind of attention that reduces over another axis, views on and off the grid.
FEW: list[dict[str, Any]] = [
    {"method": "fast-moco", "attention": "cbam"},
    {"method": "pirl", "attention": "nonlocal"},
    {"method": "mocov2", "texture_role": "negative", "attention": "gc", "weak": "mocov2"},
    {"method": "byol", "attention": "abn", "optimizer": "lars"},
    {"method": "barlow", "attention": "triplet", "weak": "simclr"},
    {"texture_role": "instance", "accumulate": 2, "online": True},
    {"texture_source": "both", "scope": "own"},
]


def every_setting() -> list[dict[str, Any]]:
    """Return the settings of the full matrix: each value of an axis with the default of the others."""
    every: list[dict[str, Any]] = []
    for method in METHODS:
        every += [{"method": method, "texture_role": role} for role in ("none", "negative", "positive", "instance")]
    every += [
        {"attention": name, "placement": place}
        for name, module in ATTENTION.items()
        for place in (PLACEMENTS if module else ("standard",))  # the others have no module to place
    ]
    every += [{"weak": name} for name in WEAK] + [{"optimizer": name} for name in OPTIMIZERS]
    every += [{"texture_source": name} for name in ("patch-shuffle", "both", "rotations")] + [
        {"texture_part": "inside"}
    ]
    every += [{"shift_head": 0.5}, {"texture_query": "whole"}]
    every += [{"texture_view": "query"}, {"scope": "own"}, {"grid": 1, "cells": 1}, {"grid": 4}, {"batch_size": 128}]
    every += [
        {"precision": "bf16"},
        {"precision": "fp16"},
        {"checkpointing": True},
        {"accumulate": 2},
        {"online": True},
    ]
    return every


def resolve(settings: dict[str, Any]) -> Config | None:
    """Return the configuration, or None if a method refuses the combination."""
    own = {key: value for key, value in SIZE.items() if not key.startswith(("projector", "predictor"))}
    for sizes in (SIZE, {key: value for key, value in SIZE.items() if key != "predictor_hidden"}, own):
        try:
            return load_config(None, {**sizes, **settings})
        except UserError:
            continue
    return None


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("bits") / "s"
    build(Recipe("shapes", limit=128 if ALL else 256), out)
    return out


@pytest.fixture
def restored_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.slow
@pytest.mark.parametrize("threads", THREADS)
@pytest.mark.parametrize(
    "settings", every_setting() if ALL else FEW, ids=lambda settings: "-".join(map(str, settings.values()))
)
def test_equal_runs_have_equal_bits(
    settings: dict[str, Any], threads: int, shards: Path, tmp_path: Path, restored_threads: None
) -> None:
    config = resolve(settings)
    if config is None:
        assert ALL
        pytest.skip("the method refuses this combination")
    torch.set_num_threads(threads)
    states = []
    for name in ("one", "other"):
        train(config, shards, tmp_path / name)
        states.append(load_checkpoint(tmp_path / name))
    one, other = states
    assert one is not None
    assert other is not None
    for part in ("method", "optimizer"):
        ours, theirs = (torch.utils._pytree.tree_leaves(state[part]) for state in (one, other))
        for mine, its in zip(ours, theirs, strict=True):
            assert torch.equal(mine, its) if isinstance(mine, torch.Tensor) else mine == its


KILLED: list[dict[str, Any]] = [{"method": "sacl", "batch_size": 64}]
if ALL:
    KILLED = [{"method": method, "batch_size": size} for method in METHODS for size in (64, 128)]


def train_with_threads(threads: int, config: Config, shards: Path, run: Path, kill_at: int | None) -> None:
    """Train with a number of torch threads; kill the process after the checkpoint of step `kill_at`."""
    torch.set_num_threads(threads)
    save = sacl_train.training.writer.save_checkpoint

    def save_and_die(directory: Path, checkpoint: Any, *more: Any) -> None:
        save(directory, checkpoint, *more)
        if checkpoint["step"] == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    sacl_train.training.writer.save_checkpoint = save_and_die
    train(config, shards, run)


@pytest.mark.slow
@pytest.mark.parametrize("settings", KILLED, ids=lambda settings: "-".join(map(str, settings.values())))
def test_a_killed_run_ends_with_the_bits_of_a_whole_one(settings: dict[str, Any], shards: Path, tmp_path: Path) -> None:
    # With as many threads as cores, the default; OMP_NUM_THREADS may say otherwise here. No evaluation.
    config = resolve({**settings, "encoder": "se_resnet20", "save_every": 1, "keep": 9})
    assert config is not None
    steps = 2 * (128 if ALL else 256) // config.batch_size

    def run(name: str, kill_at: int | None = None) -> int | None:
        threads = os.cpu_count() or 1
        process = kill.start(partial(train_with_threads, threads, config, shards, tmp_path / name, kill_at))
        process.join(600)
        return process.exitcode

    assert run("whole") == kill.DONE
    assert run("killed", kill_at=steps // 2 + 1) == kill.KILLED  # in the second epoch
    assert run("killed") == kill.DONE
    whole, killed = (load_checkpoint(tmp_path / name) for name in ("whole", "killed"))
    assert whole is not None
    assert killed is not None
    assert whole["step"] == killed["step"] == steps
    assert_equal_states(whole, killed)
