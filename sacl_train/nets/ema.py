"""The target network: an exponential moving average of the online one (SACL eq. 6, 7; He et al. 2020 eq. 2)."""

import copy
import math
from typing import TypeVar

import torch
from torch import nn

from texturegen.errors import UserError, nearest

SCHEDULES = ("constant", "cosine")

M = TypeVar("M", bound=nn.Module)


def make_target(online: M) -> M:
    """Return a copy of `online` whose parameters take no gradient. It follows by `update_target`, never by itself."""
    target = copy.deepcopy(online)
    target.requires_grad_(False)
    return target


@torch.no_grad()
def update_target(target: nn.Module, online: nn.Module, m: float) -> None:
    """In place: each parameter t <- m t + (1 - m) o, each buffer t <- o. ValueError unless 0 <= m <= 1."""
    # In training the target normalises with the batch's own statistics, like MoCo's and Fast-MoCo's: it is in train
    # mode. Its running statistics are then never read while training; they are copied (with num_batches_tracked)
    # rather than left to drift, so that a target taken from a checkpoint can be put in eval mode as it is.
    if not 0 <= m <= 1:
        raise ValueError(f"m must be from 0 to 1, not {m}")
    torch._foreach_lerp_(list(target.parameters()), list(online.parameters()), 1 - m)  # one kernel for all tensors
    of_type: dict[torch.dtype, tuple[list[torch.Tensor], list[torch.Tensor]]] = {}
    for mine, theirs in zip(target.buffers(), online.buffers(), strict=True):
        for tensors, tensor in zip(of_type.setdefault(mine.dtype, ([], [])), (mine, theirs), strict=True):
            tensors.append(tensor)
    for copies, originals in of_type.values():
        torch._foreach_copy_(copies, originals)


def momentum_at(step: int, steps: int, base: float, schedule: str = "constant") -> float:
    """m of the update after step 0 <= step < steps.

    "constant": base. "cosine": 1 - (1 - base) (cos(pi step / steps) + 1) / 2, from base up to 1 (Grill et al. 2020,
    section 3.2). UserError for another schedule.
    """
    if schedule not in SCHEDULES:
        raise UserError(f"unknown schedule '{schedule}'{nearest(schedule, SCHEDULES)}; known: {', '.join(SCHEDULES)}")
    return base if schedule == "constant" else 1 - (1 - base) * (math.cos(math.pi * step / steps) + 1) / 2
