"""A step of the optimizer: what the host must not wait for, and what is said when the memory is full."""

import gc
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import sacl_train.loop
import sacl_train.step
from sacl_train.config import load_config
from sacl_train.evaluate.online import OnlineProbe
from sacl_train.loop import train
from sacl_train.methods import METHODS, SACL
from sacl_train.optim import build_optimizer
from sacl_train.run import build_method, choose_device
from sacl_train.step import Stepper, as_numbers, explain_memory
from texturegen.errors import UserError

CPU = torch.device("cpu")
TINY = {"encoder": "se_resnet8", "width": 4, "stem": "cifar-stride2", "batch_size": 16, "device": "cpu"}
SMALL = {"projector_hidden": 16, "projector_out": 16, "predictor_hidden": 8, "queue": 40, "negatives": 20, "images": 64}
# What reads a tensor's numbers: on CUDA it waits for the device. So does taking numbers from the host's common memory.
WAITING = ("_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "equal")
COPYING = ((torch, "tensor"), (torch, "as_tensor"), (torch.Tensor, "new_tensor"))


def make(name: str, **changes: Any) -> tuple[Stepper, dict[str, torch.Tensor]]:
    known = load_config(None, {"method": name}).flat()
    small = {key: value for key, value in SMALL.items() if key in known}
    config = load_config(None, {**TINY, **small, "method": name, "mean": [0.5] * 3, "std": [0.2] * 3, **changes})
    method = build_method(config, (32, 32))
    pixels = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (16, 2, 3, 32, 32), np.uint8))
    batch = {"image": pixels[:, 0], "texture": pixels[:, 1:], "index": torch.arange(16)}
    return Stepper(method, build_optimizer(method), config, CPU), batch


class Waits(TorchDispatchMode):
    """Lists the calls that would wait."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        by_mask = name == "index" and any(i is not None and i.dtype == torch.bool for i in args[1])
        if name in WAITING or by_mask:
            self.seen.append(name)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    "settings",
    [
        {"method": "sacl", "weak": "colour-geometric", "texture_source": "both", "texture_part": "inside"},
        {"method": "mocov2", "texture_role": "negative"},
        {"method": "simclr", "texture_role": "negative"},
        {"method": "pirl", "texture_role": "negative"},
        {"method": "byol"},
        {"method": "simsiam"},
        {"method": "barlow"},
    ],
    ids=lambda settings: settings["method"],
)
def test_a_step_waits_for_nothing(settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    name = settings["method"]
    assert name in METHODS
    stepper, batch = make(name, **{key: value for key, value in settings.items() if key != "method"})
    online = OnlineProbe(stepper.method.encoder.out_features, torch.arange(16) % 3)

    def step(number: int) -> None:
        done = stepper(batch, 0, number, 10, 0.1) | online.step(stepper.method.encoder, batch, stepper.config)
        as_numbers({**done, "stop": 0.0}, CPU)

    def no_copy(*_: object, **__: object) -> None:
        raise AssertionError("a copy from memory that is not page-locked")

    step(0)
    for owner, function in COPYING:
        monkeypatch.setattr(owner, function, no_copy)
    with Waits() as waits:
        step(1)
    assert waits.seen == []


def test_a_drawn_negative_is_the_same_when_a_pirl_run_goes_on() -> None:
    stepper, batch = make("pirl")
    for number in range(3):
        stepper(batch, 0, number, 10, 0.1)
    again, _ = make("pirl")
    again.method.load_state_dict(stepper.method.state_dict())
    assert np.array_equal(again.method._draw_negatives(0), stepper.method._draw_negatives(0))  # type: ignore[operator]


def test_nothing_of_a_step_that_did_not_fit_is_held_while_what_fits_is_measured(
    shapes_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held: list[weakref.ref] = []

    def full(self: SACL, views: torch.Tensor) -> None:
        large = views + 1
        held.append(weakref.ref(large))
        raise torch.OutOfMemoryError("CUDA out of memory")

    def explain(*arguments: object) -> UserError:
        gc.collect()
        assert held
        assert held[0]() is None
        return UserError("measured")

    monkeypatch.setattr(SACL, "_queries", full)
    monkeypatch.setattr(sacl_train.loop, "explain_memory", explain)
    small = {key: SMALL[key] for key in ("projector_hidden", "projector_out", "predictor_hidden")}
    with pytest.raises(UserError, match="measured"):
        train(load_config(None, {**TINY, **small, "epochs": 1}), shapes_shards, tmp_path / "run")


def test_what_fits_is_measured_as_the_run_computes(monkeypatch: pytest.MonkeyPatch) -> None:
    stepper, batch = make("sacl", precision="bf16", accumulate=2)
    seen: list[tuple[int, torch.dtype]] = []
    stepper.method.encoder.register_forward_hook(lambda _, given, made: seen.append((len(given[0]), made.dtype)))
    for name, value in (
        ("empty_cache", None),
        ("memory_allocated", 10**9),
        ("reset_peak_memory_stats", None),
        ("mem_get_info", (9 * 10**9, 0)),
        ("max_memory_allocated", 3 * 10**9),
    ):
        monkeypatch.setattr(torch.cuda, name, lambda *_, value=value: value)
    few = {name: values[:2] for name, values in batch.items()}
    assert sacl_train.step._estimate(stepper, few, 0) == "by estimate 8 fit"  # 1 GB an image, 0.9 of 9 GB
    assert {dtype for _, dtype in seen} == {torch.bfloat16}
    assert seen[-1][0] == 4 * 2  # cells of two images
    assert "with 8 images at once; try half of it" in str(explain_memory(stepper, batch, 3, 0))
    monkeypatch.setattr(sacl_train.step, "count_processes", lambda: 2)
    stepper.device = torch.device("cuda")
    said = str(explain_memory(stepper, batch, 3, 0))
    assert "an estimate of what fits is made by a single process only" in said
    assert "--set accumulate=4" in said


def test_each_of_torchruns_processes_asks_its_own_device(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch, "empty", lambda *_, device: asked.append(device))
    assert choose_device("cuda") == torch.device("cuda")
    monkeypatch.setenv("LOCAL_RANK", "3")
    for name in ("cuda", "auto", "cuda:0"):
        assert choose_device(name) == torch.device("cuda", 3)
    assert set(asked[1:]) == {torch.device("cuda", 3)}
    assert choose_device("cpu") == CPU
