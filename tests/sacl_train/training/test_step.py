"""A step of the optimizer: what the host must not wait for, and what is said when the memory is full."""

import copy
import gc
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import sacl_train.training.loop
import sacl_train.training.step
from sacl_train import train
from sacl_train.config import load_config
from sacl_train.data.draws import Draws
from sacl_train.methods import METHODS
from sacl_train.methods.sacl import SACL
from sacl_train.nets.ema import momentum_at
from sacl_train.training.online import LR, OnlineProbe
from sacl_train.training.optim import build_optimizer
from sacl_train.training.setup import build_method, choose_device
from sacl_train.training.step import Stepper, arithmetic, as_numbers, cell_sizes, explain_memory
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


def test_the_rate_of_a_step_and_its_number_are_those_asked_for() -> None:
    stepper, batch = make("byol")
    done = stepper(batch, 0, 3, 10, 0.05)
    assert {group["lr"] for group in stepper.optimizer.param_groups} == {0.05}
    assert done["m"] == momentum_at(3, 10, 0.996, "cosine")


def gradients_of(stepper: Stepper, batch: dict[str, torch.Tensor], epoch: int = 0) -> torch.Tensor:
    stepper.optimizer.zero_grad()
    stepper.add_gradients(batch, epoch)
    return torch.cat([p.grad.flatten() for p in stepper.method.parameters() if p.grad is not None])


def test_views_are_drawn_anew_in_every_epoch_and_by_the_seed() -> None:
    stepper, batch = make("sacl")
    other, _ = make("sacl", seed=1)
    other.method.load_state_dict(stepper.method.state_dict())
    first, again, later = (gradients_of(stepper, batch, epoch) for epoch in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.allclose(first, later)
    assert not torch.allclose(first, gradients_of(other, batch))


def test_the_gradient_of_a_batch_in_pieces_is_the_mean_of_theirs() -> None:
    (whole, batch), moved = make("sacl"), []
    pieces = [{name: values[part] for name, values in batch.items()} for part in (slice(0, 8), slice(8, 16))]
    expected = sum(gradients_of(whole, piece) for piece in pieces) / 2
    stepper, _ = make("sacl", accumulate=2)
    names = [p for p in stepper.method.parameters() if p.requires_grad]
    stepper.optimizer.register_step_pre_hook(lambda *_: moved.append(torch.cat([p.grad.flatten() for p in names])))
    losses = [float(sum(loss for loss, _ in whole.add_gradients(piece, 0))) for piece in pieces]
    done = stepper(batch, 0, 0, 10, 0.1)
    torch.testing.assert_close(moved[0], expected)
    assert float(done["loss"]) == pytest.approx(sum(losses) / 2)
    assert all(p.grad is None for p in names), "the next step begins without gradients"


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_gradients_are_clipped_at_their_true_length(precision: str) -> None:
    stepper, batch = make("sacl", clip=1e-3, precision=precision)
    for group in stepper.optimizer.param_groups:
        group["weight_decay"] = 0
    trained = [p for p in stepper.method.parameters() if p.requires_grad]
    before = torch.cat([p.detach().flatten().clone() for p in trained])
    stepper(batch, 0, 0, 10, 10.0)
    after = torch.cat([p.detach().flatten() for p in trained])
    assert float((after - before).norm()) == pytest.approx(10 * 1e-3, rel=0.02)


def test_a_step_of_fp16_that_overflows_is_left_out_and_the_next_is_scaled_less() -> None:
    stepper, batch = make("sacl", precision="fp16")
    weight, scale = stepper.method.encoder.conv1.weight, stepper.scaler.get_scale()
    before = weight.detach().clone()
    handle = weight.register_hook(lambda gradient: gradient * torch.inf)
    stepper(batch, 0, 0, 10, 0.1)
    assert torch.equal(weight, before)
    assert stepper.scaler.get_scale() == scale / 2
    handle.remove()
    stepper(batch, 0, 1, 10, 0.1)
    assert not torch.equal(weight, before)


def test_negatives_come_from_the_shards_the_device_or_both() -> None:
    def prepared(**changes: Any) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        stepper, batch = make("sacl", **changes)
        moved = stepper._prepare(batch, Draws(0, 0, np.arange(16)))
        assert torch.equal(moved["image"], batch["image"])
        return batch["image"], batch["texture"], moved["texture"]

    images, given, both = prepared(texture_source="both", shuffle_cells=[0.25, 0.25])
    assert both.shape == (16, 2, 3, 32, 32)
    assert torch.equal(both[:, :1], given)
    assert not torch.equal(both[:, 1], images)
    assert torch.equal(both[:, 1].flatten(2).sort(2).values, images.flatten(2).sort(2).values)
    images, given, inside = prepared(texture_part="inside")
    assert torch.equal(inside[:, 0, :, 0], images[:, :, 0])
    assert torch.equal(inside[..., 16, 16], given[..., 16, 16])


def test_cells_of_patch_shuffle_are_shares_of_the_smaller_side() -> None:
    config = load_config(None, {})  # .07 to .32
    assert [cell_sizes(config, size) for size in ((32, 96), (96, 32), (4, 4))] == [(2, 10), (2, 10), (1, 1)]


def test_the_arithmetic_is_the_runs_and_as_it_was_afterwards() -> None:
    cudnn = torch.backends.cudnn

    def now() -> tuple[str, bool, bool, bool]:
        deterministic = torch.are_deterministic_algorithms_enabled()
        return torch.get_float32_matmul_precision(), cudnn.allow_tf32, cudnn.benchmark, deterministic

    before = now()
    with arithmetic(load_config(None, {"tf32": False, "deterministic": True})):
        assert now() == ("highest", False, False, True)
        with arithmetic(load_config(None, {})):
            assert now()[:3] == ("high", True, True)
        assert now() == ("highest", False, False, True)
    assert now() == before


def test_the_online_probe_learns_from_the_labelled_by_their_numbers_and_leaves_the_encoder() -> None:
    stepper, batch = make("sacl")
    encoder, labels = stepper.method.encoder, torch.full((40,), -1)
    labels[30:36] = torch.tensor([0, 0, 0, 1, 2, 2])
    online, batch["index"] = OnlineProbe(encoder.out_features, labels), torch.arange(20, 36)
    before = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    done = online.step(encoder, batch, stepper.config)
    assert done["online_top1"].item() == 0.5  # all logits are 0: the first class, of half of the six
    shares = torch.tensor([3, 1, 2]) / 6  # the gradient of the mean over these: 1/3 less the share of each
    torch.testing.assert_close(online.layer.bias.detach(), LR * (shares - 1 / 3))
    assert encoder.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in encoder.state_dict().items())


def test_an_online_probe_goes_on_with_its_momentum() -> None:
    stepper, batch = make("sacl")
    probes = [OnlineProbe(stepper.method.encoder.out_features, torch.arange(16) % 3) for _ in (0, 1)]
    probes[0].step(stepper.method.encoder, batch, stepper.config)
    probes[1].load(copy.deepcopy(probes[0].state()))
    for probe in probes:
        probe.step(stepper.method.encoder, batch, stepper.config)
    assert torch.equal(probes[0].layer.weight, probes[1].layer.weight)


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
    monkeypatch.setattr(sacl_train.training.loop, "explain_memory", explain)
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
    assert sacl_train.training.step._estimate(stepper, few, 0) == "by estimate 8 fit"  # 1 GB an image, 0.9 of 9 GB
    assert {dtype for _, dtype in seen} == {torch.bfloat16}
    assert seen[-1][0] == 4 * 2  # cells of two images
    assert "with 8 images at once; try half of it" in str(explain_memory(stepper, batch, 3, 0))
    stepper.device = torch.device("cuda")
    monkeypatch.setattr(sacl_train.training.step, "_estimate", lambda stepper, few, epoch: f"{len(few['image'])} tried")
    assert "with 8 images at once; 2 tried. " in str(explain_memory(stepper, batch, 3, 0))
    monkeypatch.setattr(sacl_train.training.step, "count_processes", lambda: 2)
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
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)  # each process is shown its own alone
    assert choose_device("cuda") == torch.device("cuda", 0)
