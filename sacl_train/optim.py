"""SGD and its schedule (SACL §3.2)."""

import math

from torch import nn, optim


def cosine_lr(step: int, steps: int, base: float) -> float:
    """Learning rate of step 0 <= step < steps: from `base` down to 0 along half a cosine."""
    return base * 0.5 * (1 + math.cos(math.pi * step / steps))


def build_sgd(module: nn.Module, lr: float, momentum: float, weight_decay: float) -> optim.SGD:
    """SGD over the parameters that take a gradient; the EMA target's do not."""
    trained = [p for p in module.parameters() if p.requires_grad]
    return optim.SGD(trained, lr=lr, momentum=momentum, weight_decay=weight_decay)
