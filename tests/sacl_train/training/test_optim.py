"""Optimizers against timm's and torch's own, their groups, and the learning rate schedule."""

from typing import Any

import pytest
import torch
from timm.optim import Lars as TimmLars
from torch import nn

from sacl_train.config import CHOICES
from sacl_train.training.optim import OPTIMIZERS, Lars, build_optimizer, cosine_lr, set_lr
from texturegen.errors import UserError


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))


def train(module: nn.Module, optimizer: torch.optim.Optimizer, rates: list[float]) -> list[torch.Tensor]:
    """Do a step of the schedule for each of `rates` and return the parameters."""
    x = torch.randn(8, 3, generator=torch.Generator().manual_seed(1))
    for lr in rates:
        set_lr(optimizer, lr)
        optimizer.zero_grad()
        module(x).square().sum().backward()
        optimizer.step()
    return list(module.parameters())


def decays(module: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, float]:
    """Return the weight decay of each parameter by name."""
    key = "decay" if "decay" in optimizer.param_groups[0] else "weight_decay"
    of = {id(p): group[key] for group in optimizer.param_groups for p in group["params"]}
    return {name: of[id(p)] for name, p in module.named_parameters()}


def test_learning_rate_falls_along_half_cosine() -> None:
    rates = [cosine_lr(step, 100, 0.4) for step in range(100)]
    assert rates[0] == 0.4
    assert rates[50] == pytest.approx(0.2)
    assert rates[99] == pytest.approx(0.4 * 0.000246719, rel=1e-4)
    assert rates == sorted(rates, reverse=True)


def test_learning_rate_warms_up_linearly() -> None:
    rates = [cosine_lr(step, 100, 0.4, 20) for step in range(100)]
    assert rates[:20] == pytest.approx([0.02 * (step + 1) for step in range(20)])
    assert rates[20] == 0.4
    assert rates[60] == pytest.approx(0.2)
    assert rates[20:] == sorted(rates[20:], reverse=True)


def test_optimizer_skips_parameters_without_gradient() -> None:
    module = nn.Linear(2, 2)
    module.bias.requires_grad_(False)
    assert build_optimizer(module).param_groups[0]["params"] == [module.weight]


def test_config_knows_every_optimizer() -> None:
    assert CHOICES["optimizer"] == tuple(OPTIMIZERS)


def test_unknown_optimizer_names_the_nearest() -> None:
    with pytest.raises(UserError, match=r"unknown optimizer 'adam'.*did you mean 'adamw'"):
        build_optimizer(network(), "adam")


@pytest.mark.parametrize(
    ("name", "decay_norms", "others"),
    [("sgd", None, 0.1), ("sgd", False, 0.0), ("lars", None, 0.0), ("lars", True, 0.1), ("adamw", None, 0.0)],
)
def test_weight_decay_of_norms_and_biases(name: str, decay_norms: bool | None, others: float) -> None:
    module = network()
    optimizer = build_optimizer(module, name, weight_decay=0.1, decay_norms=decay_norms)
    expected = {n: 0.1 if p.ndim == 2 else others for n, p in module.named_parameters()}
    assert decays(module, optimizer) == expected


@pytest.mark.parametrize("clip", [False, True])
def test_lars_equals_timm_without_decay_and_scaling_of_norms(clip: bool) -> None:
    ours, theirs = network(), network()
    settings = {"trust": 0.02, "trust_clip": clip}
    optimizer = build_optimizer(ours, "lars", momentum=0.7, weight_decay=0.1, **settings)
    weights = [p for p in theirs.parameters() if p.ndim > 1]
    others = [p for p in theirs.parameters() if p.ndim < 2]
    reference = TimmLars(
        [
            {"params": weights, "always_adapt": True},
            {"params": others, "weight_decay": 0.0, "always_adapt": False},
        ],
        lr=1.0,
        momentum=0.7,
        weight_decay=0.1,
        trust_coeff=0.02,
        trust_clip=clip,
        eps=0.0,
    )
    for group in reference.param_groups:
        group |= {"lr_scale": 1.0, "constant_lr": False}
    torch.testing.assert_close(train(ours, optimizer, [0.5, 0.3, 0.01]), train(theirs, reference, [0.5, 0.3, 0.01]))
    assert not torch.equal(ours[0].weight, network()[0].weight)


def test_lars_leaves_weight_without_gradient_or_norm_as_sgd_would() -> None:
    module = nn.Linear(3, 2)
    nn.init.zeros_(module.weight)
    optimizer = build_optimizer(module, "lars", lr=0.5, momentum=0.0, weight_decay=0.1)
    module.weight.grad = torch.ones(2, 3)  # the norm of the weight is 0: the step is SGD's
    optimizer.step()
    torch.testing.assert_close(module.weight.detach(), torch.full((2, 3), -0.5))
    module.weight.grad = torch.zeros(2, 3)
    build_optimizer(module, "lars", lr=0.5, momentum=0.0, weight_decay=0.0).step()
    torch.testing.assert_close(module.weight.detach(), torch.full((2, 3), -0.5))


def test_adamw_equals_torchs_and_does_not_decay_norms() -> None:
    ours, theirs = network(), network()
    optimizer = build_optimizer(ours, "adamw", lr=0.1, weight_decay=0.1, betas=(0.8, 0.95))
    groups = [
        {"params": [p for p in theirs.parameters() if p.ndim > 1], "weight_decay": 0.1},
        {"params": [p for p in theirs.parameters() if p.ndim < 2], "weight_decay": 0.0},
    ]
    reference = torch.optim.AdamW([{**g, "lr_scale": 1.0, "constant_lr": False} for g in groups], betas=(0.8, 0.95))
    torch.testing.assert_close(train(ours, optimizer, [0.1, 0.05]), train(theirs, reference, [0.1, 0.05]))


def test_constant_and_scaled_learning_rates() -> None:
    module = network()
    optimizer = build_optimizer(module, lr=0.1, norm_lr=0.5, constant_lr=[module[2]])
    set_lr(optimizer, 0.02)
    of = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    rates = {name: of[id(p)] for name, p in module.named_parameters()}
    assert rates == {
        "0.weight": 0.02,
        "0.bias": 0.01,
        "1.weight": 0.01,
        "1.bias": 0.01,
        "2.weight": 0.1,
        "2.bias": 0.05,
    }


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_tensor_learning_rate_changes_in_place_and_gives_the_same_weights(name: str) -> None:
    plain, captured = network(), network()
    optimizer = build_optimizer(captured, name, capturable=True, constant_lr=[captured[2]])
    rates = [group["lr"] for group in optimizer.param_groups]
    assert all(isinstance(lr, torch.Tensor) and lr.shape == () and lr.dtype == torch.float32 for lr in rates)
    expected = train(plain, build_optimizer(plain, name, constant_lr=[plain[2]]), [0.1, 0.05, 0.025])
    torch.testing.assert_close(train(captured, optimizer, [0.1, 0.05, 0.025]), expected)
    for group, lr in zip(optimizer.param_groups, rates, strict=True):
        assert group["lr"] is lr
        assert lr.item() == pytest.approx(0.1 if group["constant_lr"] else 0.025)


def test_fp16_scaler_unscales_before_lars_compares_norms() -> None:
    # Weight decay is added to the gradient, so a gradient that is still scaled would outweigh it.
    def step(scale: float) -> Any:
        module = network()
        groups = [{"params": list(module.parameters()), "decay": 1.0, "adapt": True}]
        optimizer = Lars(groups, trust=0.1, lr=1.0, fused=True)
        scaler = torch.amp.GradScaler("cpu", init_scale=scale)
        scaler.scale(module(torch.ones(2, 3) * torch.tensor([[1.0], [2.0]])).sum()).backward()
        scaler.step(optimizer)
        return module.state_dict()

    torch.testing.assert_close(step(1.0), step(1024.0))
