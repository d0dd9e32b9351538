"""Steps on CUDA without a GPU: torch's fake tensors have a device and a shape but no numbers.

They refuse to mix devices and to pass a number to the host. A step that passes has all its tensors on the right device
and never waits for it, except that fp16 asks once a step whether a gradient overflowed. The backward pass needs a real
device and is left out: gradients are zeros.
"""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

import sacl_train.data.device
import sacl_train.training.step
from sacl_train.config import load_config
from sacl_train.methods import METHODS
from sacl_train.training.optim import build_optimizer
from sacl_train.training.precision import DTYPES, arithmetic
from sacl_train.training.setup import build_method
from sacl_train.training.step import make_step
from texturegen.errors import UserError

CUDA = torch.device("cuda")
TINY = {"encoder": "se_resnet8", "width": 4, "batch_size": 8, "mean": [0.5] * 3, "std": [0.2] * 3}
OWN = {"mocov2": {"queue": 16}, "pirl": {"negatives": 16, "images": 64}}
TEXTURES = {"texture_role": "negative", "texture_view": "query", "scope": "own"}


def has_negatives(name: str) -> bool:
    try:
        METHODS[name].load().Settings(texture_role="negative")
    except UserError:
        return False
    return True


CASES: list[tuple[str, dict[str, Any]]] = [
    *((name, {"precision": "bf16"}) for name in METHODS),
    *((name, {"weak": "geometric", **TEXTURES}) for name in METHODS if has_negatives(name)),
    *(("sacl", {"texture_role": role}) for role in ("positive", "instance", "none")),
    *(("sacl", {"texture_source": source}) for source in ("patch-shuffle", "both", "rotations")),
    *((name, {"texture_role": "negative", "shift_head": 1.0}) for name in METHODS if has_negatives(name)),
    ("simclr", {"texture_role": "instance", "texture_source": "shards-and-rotations"}),
    ("sacl", {"texture_part": "inside", "texture_query": "whole"}),
    ("sacl", {"precision": "bf16", "clip": 1.0}),
    ("sacl", {"precision": "fp16", "clip": 1.0}),
    ("sacl", {"precision": "fp16", "optimizer": "lars"}),
    ("sacl", {"optimizer": "lars", "accumulate": 2, "deterministic": True}),
    ("sacl", {"encoder": "se_resnet18", "width": None, "checkpointing": True}),
    *(("sacl", {"encoder": "se_resnet18", "width": None, "attention": kind}) for kind in ("gc", "nonlocal", "abn")),
]


@pytest.fixture(autouse=True)
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let torch believe that there is a GPU, and make constants again in every test."""

    monkeypatch.setattr(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *_: True)
    sacl_train.data.device._constant.cache_clear()
    yield
    sacl_train.data.device._constant.cache_clear()


def step_on_cuda(
    monkeypatch: pytest.MonkeyPatch, method_name: str, **settings: Any
) -> tuple[set[str], set[torch.dtype]]:
    """Do two steps on fake CUDA; return the types of the weights' devices and the dtypes of the encoder's features."""
    dtypes = set()
    fixed = {"precision": "fp32", "cuda_graph": False}  # fake tensors cannot be captured
    config = load_config(None, {**TINY, **fixed, "method": method_name, **OWN.get(method_name, {}), **settings})
    pixels = torch.randint(0, 256, (8, 2, 32, 32, 3), dtype=torch.uint8)
    batch = {"image": pixels[:, 0].permute(0, 3, 1, 2), "texture": pixels[:, 1:].permute(0, 1, 4, 2, 3)}
    batch["index"] = torch.arange(8)
    method = build_method(config, (32, 32)).to(memory_format=torch.channels_last)
    with arithmetic(config), FakeTensorMode(allow_non_fake_inputs=True) as mode:
        move(method, mode)
        method.encoder.register_forward_hook(lambda _, given, made: dtypes.add(made.dtype))
        optimizer = build_optimizer(method, config.optimizer)
        do_step = make_step(method, optimizer, config, CUDA)

        def backward(loss: Tensor) -> None:
            assert loss.requires_grad
            for parameter in (p for group in optimizer.param_groups for p in group["params"]):
                parameter.grad = torch.zeros_like(parameter)

        def step_without_question(scaler: Any, optimizer: torch.optim.Optimizer, state: Any) -> None:
            assert {device.type for device in state["found_inf_per_device"]} == {"cuda"}
            optimizer.step()

        def gradients(loss: Tensor, parameters: list[nn.Parameter], allow_unused: bool) -> list[Tensor]:
            assert loss.requires_grad
            return [torch.zeros_like(parameter) for parameter in parameters]

        monkeypatch.setattr(Tensor, "backward", backward)
        monkeypatch.setattr(torch.autograd, "grad", gradients)
        monkeypatch.setattr(torch.amp.GradScaler, "_maybe_opt_step", step_without_question)
        for step in range(2):
            do_step(batch, 0, step, 10, 0.1)
    return {tensor.device.type for tensor in (*method.parameters(), *method.buffers())}, dtypes


def move(module: nn.Module, mode: FakeTensorMode) -> None:
    """Replace the tensors of a module by fake CUDA tensors."""

    def fake(tensor: Tensor) -> Tensor:
        there = mode.from_tensor(tensor.detach()).to(CUDA)
        return nn.Parameter(there, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else there

    for part in module.modules():
        for tensors in (part._parameters, part._buffers):
            tensors.update({name: fake(tensor) for name, tensor in tensors.items() if tensor is not None})


@pytest.mark.parametrize(("name", "settings"), CASES, ids=lambda value: str(value) if isinstance(value, str) else None)
def test_step_stays_on_its_device_and_does_not_wait_for_it(
    name: str, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    features = DTYPES[settings.get("precision", "fp32")]
    assert step_on_cuda(monkeypatch, name, **settings) == ({"cuda"}, {features})


@pytest.mark.parametrize("fault", ["device", "host"])
def test_tensors_on_another_device_and_reads_by_host_are_found(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    after_step = METHODS["sacl"].load().after_step

    def wrong(self: Any, step: int, steps: int) -> dict[str, float]:
        weight = self.encoder.conv1.weight
        _ = weight + torch.ones(1, 3, 1, 1) if fault == "device" else weight.sum().item()
        return after_step(self, step, steps)

    monkeypatch.setattr(METHODS["sacl"].load(), "after_step", wrong)
    with pytest.raises(RuntimeError):
        step_on_cuda(monkeypatch, "sacl")
