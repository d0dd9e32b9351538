"""Optimizers and their learning rate schedule (SACL §3.2)."""

import math

from timm.optim import Lars
from torch import nn, optim

from texturegen.errors import UserError, nearest

OPTIMIZERS = ("sgd", "lars")


def cosine_lr(step: int, steps: int, base: float, warmup: int = 0) -> float:
    """Return the learning rate of step 0 <= step < steps.

    It rises linearly over the first `warmup` steps, the last of which has `base` (Goyal et al. 2017, section 2.2), then
    falls from `base` to 0 along half a cosine.

    Examples
    --------
    >>> [round(cosine_lr(step, 5, base=0.4, warmup=2), 3) for step in range(5)]
    [0.2, 0.4, 0.4, 0.3, 0.1]
    """
    if step < warmup:
        return base * (step + 1) / warmup
    return base * 0.5 * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup)))


def build_optimizer(
    module: nn.Module, name: str = "sgd", lr: float = 0.1, momentum: float = 0.9, weight_decay: float = 1e-4
) -> optim.Optimizer:
    """Return an optimizer over the parameters that take a gradient; the EMA target's do not.

    Parameters
    ----------
    module : Module
        Owner of the parameters.
    name : str
        "sgd" applies weight decay to all parameters. "lars" (You et al. 2017, algorithm 1), for batches of thousands,
        neither decays nor scales biases and BatchNorm's parameters (Chen et al. 2020 B.6; Grill et al. 2020 section
        3.2).
    lr, momentum, weight_decay : float

    Raises
    ------
    UserError
        If the name is unknown.
    """
    trained = [p for p in module.parameters() if p.requires_grad]
    if name == "sgd":
        return optim.SGD(trained, lr=lr, momentum=momentum, weight_decay=weight_decay)
    if name != "lars":
        raise UserError(f"unknown optimizer '{name}'{nearest(name, OPTIMIZERS)}; known: {', '.join(OPTIMIZERS)}")
    weights = {"params": [p for p in trained if p.ndim > 1]}
    others = {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0, "always_adapt": False}
    # timm's LARS scales no group without weight decay unless always_adapt is set.
    return Lars([weights, others], lr=lr, momentum=momentum, weight_decay=weight_decay, always_adapt=True)
