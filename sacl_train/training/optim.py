"""Optimizers and their schedule (SACL §3.2)."""

import math

from timm.optim import Lars
from torch import nn, optim

from texturegen.errors import UserError, nearest

OPTIMIZERS = ("sgd", "lars")


def cosine_lr(step: int, steps: int, base: float, warmup: int = 0) -> float:
    """Learning rate of step 0 <= step < steps.

    Up a straight line over the first `warmup` steps (Goyal et al. 2017, section 2.2), the last of which has `base`;
    then from `base` down to 0 along half a cosine.
    """
    if step < warmup:
        return base * (step + 1) / warmup
    return base * 0.5 * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup)))


def build_optimizer(
    module: nn.Module, name: str = "sgd", lr: float = 0.1, momentum: float = 0.9, weight_decay: float = 1e-4
) -> optim.Optimizer:
    """The optimizer over the parameters that take a gradient; the EMA target's do not. UserError for another name.

    "sgd" decays all of them. "lars" (You et al. 2017, algorithm 1), for batches of thousands, neither decays nor scales
    biases and BatchNorm's parameters (Chen et al. 2020 B.6; Grill et al. 2020 section 3.2).
    """
    trained = [p for p in module.parameters() if p.requires_grad]
    if name == "sgd":
        return optim.SGD(trained, lr=lr, momentum=momentum, weight_decay=weight_decay)
    if name != "lars":
        raise UserError(f"unknown optimizer '{name}'{nearest(name, OPTIMIZERS)}; known: {', '.join(OPTIMIZERS)}")
    weights = {"params": [p for p in trained if p.ndim > 1]}
    others = {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0, "always_adapt": False}
    # timm's LARS is plain SGD where the weight decay is 0, unless told to adapt always.
    return Lars([weights, others], lr=lr, momentum=momentum, weight_decay=weight_decay, always_adapt=True)
