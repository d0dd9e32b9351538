"""Weights are cast to the run's precision once a step, and the step computes what autocast alone does."""

import copy
from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.utils._python_dispatch import TorchDispatchMode

import sacl_train.training.step
from sacl_train.config import load_config
from sacl_train.methods.method import Method
from sacl_train.training.optim import build_optimizer
from sacl_train.training.precision import autocast, cast_weights
from sacl_train.training.setup import build_method
from sacl_train.training.step import make_step

CPU, BF16 = torch.device("cpu"), {"precision": "bf16"}
SMALL = {"projector_hidden": 16, "projector_out": 16, "predictor_hidden": 8, "queue": 40, "negatives": 20, "images": 64}
METHODS = [
    ("sacl", {"texture_role": "negative"}),
    ("sacl", {"texture_role": "positive", "accumulate": 2}),
    ("mocov2", {"texture_role": "negative", "symmetric": True}),
    ("simclr", {"texture_role": "instance", "shift_head": 0.5}),
    ("byol", {}),
    ("simsiam", {}),
    ("pirl", {}),
]


def make(name: str, **changes: Any) -> tuple[Method, Any, dict[str, Tensor]]:
    """Return a method, the function that does a step of it, and a batch."""
    known = load_config(None, {"method": name}).flat()
    small = {key: value for key, value in SMALL.items() if key in known}
    tiny = {"encoder": "se_resnet8", "width": 4, "stem": "cifar-stride2", "batch_size": 16, "device": "cpu"}
    config = load_config(None, {**tiny, **small, "method": name, "mean": [0.5] * 3, "std": [0.2] * 3, **changes})
    method = build_method(config, (32, 32))
    pixels = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (16, 2, 3, 32, 32), np.uint8))
    batch = {"image": pixels[:, 0], "texture": pixels[:, 1:], "index": torch.arange(16)}
    return method, make_step(method, build_optimizer(method), config, CPU), batch


class Casts(TorchDispatchMode):
    """Counts the operations that change the type of one of some weights, and those that change that of many tensors."""

    def __init__(self, weights: set[int]) -> None:
        super().__init__()
        self.weights, self.one, self.many = weights, 0, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        self.one += name == "_to_copy" and args[0].data_ptr() in self.weights
        self.many += name == "_foreach_copy_" and args[0][0].dtype != args[1][0].dtype
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(("name", "settings"), METHODS, ids=str)
def test_weights_are_cast_once(name: str, settings: dict[str, Any]) -> None:
    method, step, batch = make(name, precision="bf16", **settings)
    weights = {module.weight.data_ptr() for module in method.modules() if isinstance(module, nn.Conv2d | nn.Linear)}
    with Casts(weights) as casts:
        step(batch, 0, 0, 10, 0.1)
    assert casts.one == 0
    pieces, has_target = settings.get("accumulate", 1), hasattr(method, "target_encoder")
    terms = casts.many - pieces * (1 + has_target)  # the gradients of each term are cast back
    assert 1 <= terms <= 2 * pieces + (name == "simclr")


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize(("name", "settings"), METHODS, ids=str)
def test_steps_are_those_of_autocast(
    name: str, settings: dict[str, Any], precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = []
    for cast in (cast_weights, lambda *_: nullcontext()):
        monkeypatch.setattr(sacl_train.training.step, "cast_weights", cast)
        method, step, batch = make(name, precision=precision, **settings)
        for number in range(2):
            step(batch, 0, number, 10, 0.1)
        assert all(type(p) is nn.Parameter and p.dtype == torch.float32 for p in method.parameters())
        weights.append(method.state_dict())
    assert all(torch.equal(value, weights[1][key]) for key, value in weights[0].items())


class Scaled(nn.Linear):
    """Does more with its weight than a product."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.weight / self.weight.norm(), self.bias)


class Shared(nn.Module):
    """Has a weight in two places, one without a gradient, one that autocast casts by itself, and one of a hook."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4, bias=False)
        self.second.weight = self.first.weight
        self.first.scale = nn.Parameter(torch.ones(4))
        self.frozen, self.scaled = nn.Linear(4, 4), Scaled(4, 4)
        self.frozen.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        return self.scaled(self.frozen(self.second(self.first(x).relu()).relu()))


def test_shared_frozen_and_other_weights() -> None:
    torch.manual_seed(0)
    network, config = Shared(), load_config(None, BF16)
    plain, x = copy.deepcopy(network), torch.randn(5, 4)
    with cast_weights(network, config, CPU), autocast(config, CPU):
        assert network.first.weight is network.second.weight
        assert network.first.weight.dtype == network.frozen.bias.dtype == torch.bfloat16
        assert network.scaled.weight.dtype == network.first.scale.dtype == torch.float32
        loss = network(x).sum()
    with autocast(config, CPU):
        expected = plain(x).sum()
    assert torch.equal(loss, expected)
    loss.backward()
    expected.backward()
    for found, wanted in zip(network.parameters(), plain.parameters(), strict=True):
        assert (found.grad is None) == (wanted.grad is None)
        assert found.grad is None or torch.equal(found.grad, wanted.grad)


class Undefined(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> None:
        return None


def test_loss_that_gives_no_weight_a_gradient() -> None:
    network, config, x = nn.Linear(4, 4), load_config(None, BF16), torch.randn(5, 4, requires_grad=True)
    with cast_weights(network, config, CPU), autocast(config, CPU):
        loss = Undefined.apply(network.weight).sum() + x.sum()
    loss.backward()
    assert network.weight.grad is None


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_network_has_its_own_weights_again_after_an_error(precision: str) -> None:
    network, config = Shared(), load_config(None, {"precision": precision})
    own = dict(network.named_parameters())
    with pytest.raises(RuntimeError, match="mat1"), cast_weights(network, config, CPU):
        network(torch.randn(5, 7))
    assert dict(network.named_parameters()).keys() == own.keys()
    assert all(p is own[name] for name, p in network.named_parameters())


@pytest.mark.usefixtures("untraced")
def test_compiled_network_takes_the_cast_weights_of_every_step() -> None:
    torch._dynamo.reset()
    torch.manual_seed(0)
    network, config = (
        nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)),
        load_config(None, BF16),
    )
    plain, counter = copy.deepcopy(network), CompileCounterWithBackend("aot_eager")
    network.compile(backend=counter, fullgraph=True, dynamic=False)
    x = torch.randn(5, 4)
    for _ in range(3):
        for model in (network, plain):
            with cast_weights(model, config, CPU), autocast(config, CPU):
                loss = model(x).sum()
            loss.backward()
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.sub_(parameter.grad)
    assert counter.frame_count == 1  # one graph for all steps
    torch.testing.assert_close([*network.parameters()], [*plain.parameters()])
