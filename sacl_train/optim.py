"""SGD and its schedule (SACL §3.2)."""

import math

from torch import nn, optim


def cosine_lr(step: int, steps: int, base: float, warmup: int = 0) -> float:
    """Learning rate of step 0 <= step < steps.

    Up a straight line over the first `warmup` steps (Goyal et al. 2017, section 2.2), the last of which has `base`;
    then from `base` down to 0 along half a cosine.
    """
    if step < warmup:
        return base * (step + 1) / warmup
    return base * 0.5 * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup)))


def build_sgd(module: nn.Module, lr: float, momentum: float, weight_decay: float) -> optim.SGD:
    """SGD over the parameters that take a gradient; the EMA target's do not."""
    trained = [p for p in module.parameters() if p.requires_grad]
    return optim.SGD(trained, lr=lr, momentum=momentum, weight_decay=weight_decay)
