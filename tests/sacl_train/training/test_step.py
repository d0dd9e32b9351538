"""A step of the optimizer: gradients, precision, no waiting for the device, and out of memory."""

import copy
import gc
import weakref
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import sacl_train.training.loop
import sacl_train.training.out_of_memory
import sacl_train.training.step
from sacl_train import train
from sacl_train.config import Config, load_config
from sacl_train.data.draws import Draws
from sacl_train.data.stream import Batch
from sacl_train.methods import METHODS
from sacl_train.methods.method import LossTerm, Method
from sacl_train.methods.sacl import SACL
from sacl_train.nets.ema import momentum_at
from sacl_train.training.online import LR, OnlineProbe
from sacl_train.training.optim import build_optimizer
from sacl_train.training.out_of_memory import explain_out_of_memory
from sacl_train.training.precision import arithmetic, make_scaler
from sacl_train.training.setup import build_method, choose_device
from sacl_train.training.step import (
    Step,
    StepMetrics,
    _backpropagate,
    add_gradients,
    cell_sizes,
    join,
    make_step,
    stack_metrics,
)
from texturegen.errors import UserError

CPU = torch.device("cpu")
TINY = {"encoder": "se_resnet8", "width": 4, "stem": "cifar-stride2", "batch_size": 16, "device": "cpu"}
SMALL = {"projector_hidden": 16, "projector_out": 16, "predictor_hidden": 8, "queue": 40, "negatives": 20, "images": 64}
# Reading a tensor's numbers waits for a CUDA device. So does copying numbers from pageable host memory.
WAITING = ("_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "equal")
COPYING = ((torch, "tensor"), (torch, "as_tensor"), (torch.Tensor, "new_tensor"))


@dataclass
class Parts:
    """A method, its optimizer and scaler, and its step."""

    method: Method
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    config: Config
    step: Step

    def add_gradients(self, piece: Batch, epoch: int) -> list[LossTerm]:
        return add_gradients(self.method, piece, epoch, self.config, CPU, self.scaler)


def make(name: str, **changes: Any) -> tuple[Parts, Batch]:
    known = load_config(None, {"method": name}).flat()
    small = {key: value for key, value in SMALL.items() if key in known}
    config = load_config(None, {**TINY, **small, "method": name, "mean": [0.5] * 3, "std": [0.2] * 3, **changes})
    method = build_method(config, (32, 32))
    pixels = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (16, 2, 3, 32, 32), np.uint8))
    batch = {"image": pixels[:, 0], "texture": pixels[:, 1:], "index": torch.arange(16)}
    optimizer, scaler = build_optimizer(method), make_scaler(config, CPU)
    return Parts(method, optimizer, scaler, config, make_step(method, optimizer, config, CPU, scaler)), batch


def named(metrics: StepMetrics) -> dict[str, float]:
    return dict(zip(metrics.names, metrics.values.tolist(), strict=True))


class Waits(TorchDispatchMode):
    """Record calls that would synchronise with the device."""

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
def test_step_does_not_synchronise(settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    name = settings["method"]
    assert name in METHODS
    parts, batch = make(name, **{key: value for key, value in settings.items() if key != "method"})
    online = OnlineProbe(parts.method.encoder.out_features, torch.arange(16) % 3)

    def step(number: int) -> None:
        done = parts.step(batch, 0, number, 10, 0.1)
        join(done, stack_metrics(online.step(parts.method.encoder, batch, parts.config), CPU))

    def no_copy(*_: object, **__: object) -> None:
        raise AssertionError("a copy from memory that is not page-locked")

    step(0)
    for owner, function in COPYING:
        monkeypatch.setattr(owner, function, no_copy)
    with Waits() as waits:
        step(1)
    assert waits.seen == []


def test_step_uses_given_number_and_learning_rate() -> None:
    parts, batch = make("byol")
    done = named(parts.step(batch, 0, 3, 10, 0.05))
    assert {group["lr"] for group in parts.optimizer.param_groups} == {0.05}
    assert done["m"] == momentum_at(3, 10, 0.996, "cosine")


def gradients_of(parts: Parts, batch: dict[str, torch.Tensor], epoch: int = 0) -> torch.Tensor:
    parts.optimizer.zero_grad()
    parts.add_gradients(batch, epoch)
    return torch.cat([p.grad.flatten() for p in parts.method.parameters() if p.grad is not None])


def test_views_depend_on_epoch_and_seed() -> None:
    parts, batch = make("sacl")
    other, _ = make("sacl", seed=1)
    other.method.load_state_dict(parts.method.state_dict())
    first, again, later = (gradients_of(parts, batch, epoch) for epoch in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.allclose(first, later)
    assert not torch.allclose(first, gradients_of(other, batch))


def test_gradient_with_accumulation_is_mean_over_pieces() -> None:
    (whole, batch), moved = make("sacl"), []
    pieces = [{name: values[part] for name, values in batch.items()} for part in (slice(0, 8), slice(8, 16))]
    expected = sum(gradients_of(whole, piece) for piece in pieces) / 2
    parts, _ = make("sacl", accumulate=2)
    names = [p for p in parts.method.parameters() if p.requires_grad]
    parts.optimizer.register_step_pre_hook(lambda *_: moved.append(torch.cat([p.grad.flatten() for p in names])))
    losses = [float(sum(loss for loss, _ in whole.add_gradients(piece, 0))) for piece in pieces]
    done = named(parts.step(batch, 0, 0, 10, 0.1))
    torch.testing.assert_close(moved[0], expected)
    assert done["loss"] == pytest.approx(sum(losses) / 2)
    assert all(p.grad is None for p in names), "the next step starts without gradients"


def test_gradients_of_later_terms_are_added() -> None:
    a, b, c, d = parameters = [nn.Parameter(torch.ones(2)) for _ in range(4)]
    _backpropagate((2 * a + b).sum(), parameters)
    _backpropagate((a + b + c + d).sum(), parameters)  # autograd has one tensor for the gradients of all four
    a.grad *= 10  # as clipping does
    c.grad *= 100
    assert [p.grad.tolist() for p in parameters] == [[30, 30], [2, 2], [100, 100], [1, 1]]
    _backpropagate(a.sum(), parameters)  # the others have no part in it
    assert [p.grad[0].item() for p in parameters] == [31, 2, 100, 1]


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_gradients_are_clipped_by_their_unscaled_norm(precision: str) -> None:
    parts, batch = make("sacl", clip=1e-3, precision=precision)
    for group in parts.optimizer.param_groups:
        group["weight_decay"] = 0
    trained = [p for p in parts.method.parameters() if p.requires_grad]
    before = torch.cat([p.detach().flatten().clone() for p in trained])
    parts.step(batch, 0, 0, 10, 10.0)
    after = torch.cat([p.detach().flatten() for p in trained])
    assert float((after - before).norm()) == pytest.approx(10 * 1e-3, rel=0.02)


def test_overflowing_fp16_step_is_skipped_and_scale_halved() -> None:
    parts, batch = make("sacl", precision="fp16")
    weight, scale = parts.method.encoder.conv1.weight, parts.scaler.get_scale()
    before = weight.detach().clone()
    handle = weight.register_hook(lambda gradient: gradient * torch.inf)
    parts.step(batch, 0, 0, 10, 0.1)
    assert torch.equal(weight, before)
    assert parts.scaler.get_scale() == scale / 2
    handle.remove()
    parts.step(batch, 0, 1, 10, 0.1)
    assert not torch.equal(weight, before)


def test_negatives_come_from_shards_device_or_both() -> None:
    def prepared(**changes: Any) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        parts, batch = make("sacl", **changes)
        moved = sacl_train.training.step.make_textures(batch, Draws(0, 0, torch.arange(16)), parts.config)
        assert torch.equal(moved["image"], batch["image"])
        return batch["image"], batch["texture"], moved["texture"]

    images, given, both = prepared(texture_source="both", shuffle_cells=[0.25, 0.25])
    assert both.shape == (16, 2, 3, 32, 32)
    assert torch.equal(both[:, :1], given)
    assert not torch.equal(both[:, 1], images)
    assert torch.equal(both[:, 1].flatten(2).sort(2).values, images.flatten(2).sort(2).values)
    images, given, turned = prepared(texture_source="shards-and-rotations")
    assert torch.equal(turned[:, :1], given)
    assert torch.equal(turned[:, 2], images.flip(2, 3))  # half a turn
    assert torch.equal(turned[:, 1], images.transpose(2, 3).flip(2))  # a quarter turn, counterclockwise
    assert torch.equal(turned[:, 3].transpose(2, 3).flip(3), images.flip(2, 3))
    images, given, inside = prepared(texture_part="inside")
    assert torch.equal(inside[:, 0, :, 0], images[:, :, 0])
    assert torch.equal(inside[..., 16, 16], given[..., 16, 16])


def test_patch_shuffle_cells_are_fractions_of_smaller_side() -> None:
    config = load_config(None, {})  # .07 to .32
    assert [cell_sizes(config, size) for size in ((32, 96), (96, 32), (4, 4))] == [(2, 10), (2, 10), (1, 1)]


def test_arithmetic_sets_runs_precision_and_restores_torchs() -> None:
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


def test_online_probe_learns_from_labelled_images_and_does_not_change_encoder() -> None:
    parts, batch = make("sacl")
    encoder, labels = parts.method.encoder, torch.full((40,), -1)
    labels[30:36] = torch.tensor([0, 0, 0, 1, 2, 2])
    online, batch["index"] = OnlineProbe(encoder.out_features, labels), torch.arange(20, 36)
    before = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    done = online.step(encoder, batch, parts.config)
    assert done["online_top1"].item() == 0.5  # all logits are 0: the first class, of half of the six
    shares = torch.tensor([3, 1, 2]) / 6  # the gradient of the mean over these: 1/3 less the share of each
    torch.testing.assert_close(online.layer.bias.detach(), LR * (shares - 1 / 3))
    assert encoder.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in encoder.state_dict().items())


def test_online_probe_resumes_with_its_momentum() -> None:
    parts, batch = make("sacl")
    probes = [OnlineProbe(parts.method.encoder.out_features, torch.arange(16) % 3) for _ in (0, 1)]
    probes[0].step(parts.method.encoder, batch, parts.config)
    probes[1].load(copy.deepcopy(probes[0].state()))
    for probe in probes:
        probe.step(parts.method.encoder, batch, parts.config)
    assert torch.equal(probes[0].layer.weight, probes[1].layer.weight)


@pytest.mark.parametrize("method", ["sacl", "mocov2", "simclr", "byol", "pirl"])
def test_gradients_with_several_threads_are_deterministic(method: str) -> None:
    """Uses a size that torch divides among threads, at which the gradient of advanced indexing is not deterministic."""
    threads = torch.get_num_threads()
    textures = {} if method == "byol" else {"texture_role": "negative"}
    parts, batch = make(method, width=16, **textures)
    batch = {name: values.repeat(4, *[1] * (values.ndim - 1)) for name, values in batch.items()}
    batch["index"] = torch.arange(64)
    torch.set_num_threads(2)
    try:
        start = {name: tensor.clone() for name, tensor in parts.method.state_dict().items()}
        gradients = []
        for _ in range(5):
            parts.method.load_state_dict(start)  # a step changes queues, memory banks and BatchNorm's statistics
            gradients.append(gradients_of(parts, batch))
    finally:
        torch.set_num_threads(threads)
    assert len(batch["image"]) == 64
    assert all(torch.equal(gradients[0], other) for other in gradients[1:])


def test_resumed_pirl_run_draws_same_negatives() -> None:
    parts, batch = make("pirl")
    for number in range(3):
        parts.step(batch, 0, number, 10, 0.1)
    again, _ = make("pirl")
    again.method.load_state_dict(parts.method.state_dict())
    assert torch.equal(again.method._draw_negatives(0), parts.method._draw_negatives(0))  # type: ignore[operator]


def test_tensors_of_failed_step_are_freed_before_estimate(
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
    monkeypatch.setattr(sacl_train.training.loop, "explain_out_of_memory", explain)
    small = {key: SMALL[key] for key in ("projector_hidden", "projector_out", "predictor_hidden")}
    with pytest.raises(UserError, match="measured"):
        train(load_config(None, {**TINY, **small, "epochs": 1}), shapes_shards, tmp_path / "run")


def test_memory_estimate_uses_precision_and_accumulation(monkeypatch: pytest.MonkeyPatch) -> None:
    parts, batch = make("sacl", precision="bf16", accumulate=2)
    seen: list[tuple[int, torch.dtype]] = []
    parts.method.encoder.register_forward_hook(lambda _, given, made: seen.append((len(given[0]), made.dtype)))
    for name, value in (
        ("empty_cache", None),
        ("memory_allocated", 10**9),
        ("reset_peak_memory_stats", None),
        ("mem_get_info", (9 * 10**9, 0)),
        ("max_memory_allocated", 3 * 10**9),
    ):
        monkeypatch.setattr(torch.cuda, name, lambda *_, value=value: value)
    out_of_memory = sacl_train.training.out_of_memory
    few = {name: values[:2] for name, values in batch.items()}
    # 1 GB an image, 0.9 of 9 GB
    assert out_of_memory._estimate(parts.method, few, 0, parts.config, CPU) == "about 8 fit"
    assert {dtype for _, dtype in seen} == {torch.bfloat16}
    assert seen[-1][0] == 4 * 2  # cells of two images

    def explained(device: torch.device) -> str:
        return str(explain_out_of_memory(parts.method, batch, 3, 0, parts.config, device))

    assert "with 8 images at once; try half of it" in explained(CPU)
    monkeypatch.setattr(out_of_memory, "_estimate", lambda method, few, *_: f"{len(few['image'])} tried")
    cuda = torch.device("cuda")
    assert "with 8 images at once; 2 tried. " in explained(cuda)
    monkeypatch.setattr(out_of_memory, "count_processes", lambda: 2)
    assert "the number that fits is estimated in single-process runs only" in explained(cuda)
    assert "--set accumulate=4" in explained(cuda)


def test_each_process_of_torchrun_uses_its_own_device(monkeypatch: pytest.MonkeyPatch) -> None:
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
