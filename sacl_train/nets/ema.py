"""The target network: an exponential moving average of the online network (SACL eq. 6, 7; He et al. 2020, eq. 2)."""

import copy
import math
from typing import TypeVar

import torch
from torch import Tensor, nn

from texturegen.errors import UserError, nearest

SCHEDULES = ("constant", "cosine")

M = TypeVar("M", bound=nn.Module)


def make_target(online: M) -> M:
    """Return a copy of `online` without gradients. Updated only by `update_target`."""
    target = copy.deepcopy(online)
    target.requires_grad_(False)
    return target


@torch.no_grad()
def update_target(target: nn.Module, online: nn.Module, m: float | Tensor) -> None:
    """Update the target in place: parameters t <- m t + (1 - m) o, buffers t <- o (SACL eq. 6, 7).

    Parameters
    ----------
    target, online : nn.Module
        Two networks of the same architecture.
    m : float, or Tensor (0-d) on the networks' device
        Momentum, 0..1.

    Raises
    ------
    ValueError
        If m is a number out of range.
    """
    # The target stays in train mode and normalises with batch statistics, as in MoCo and Fast-MoCo, so training never
    # reads its running statistics. They are copied (with num_batches_tracked) so that a target loaded from a
    # checkpoint can be switched to eval mode.
    averages: list[Tensor] = list(target.parameters())
    weights: list[Tensor] = list(online.parameters())
    if isinstance(m, Tensor):  # foreach_lerp takes a number or a tensor per parameter, not one for all
        steps = torch._foreach_sub(weights, averages)
        torch._foreach_mul_(steps, (1 - m).to(averages[0].dtype))
        torch._foreach_add_(averages, list(steps))
    else:
        if not 0 <= m <= 1:
            raise ValueError(f"m must be between 0 and 1, not {m}")
        torch._foreach_lerp_(averages, weights, 1 - m)  # one kernel for all tensors
    by_dtype: dict[torch.dtype, tuple[list[torch.Tensor], list[torch.Tensor]]] = {}
    for buffer, original in zip(target.buffers(), online.buffers(), strict=True):
        copies, originals = by_dtype.setdefault(buffer.dtype, ([], []))
        copies.append(buffer)
        originals.append(original)
    for copies, originals in by_dtype.values():
        torch._foreach_copy_(copies, originals)


def momentum_at(step: int | Tensor, steps: int, base: float, schedule: str = "constant") -> float | Tensor:
    """Return the momentum m of the target's update after a step.

    Parameters
    ----------
    step : int, or Tensor int64 (0-d)
        The step, 0 <= step < steps. The cosine of a tensor is a tensor, float64 (0-d) on its device.
    steps : int
        Number of steps of the run.
    base : float
        Momentum at step 0, 0..1.
    schedule : str
        "constant": always `base`. "cosine": 1 - (1 - base) (cos(pi step / steps) + 1) / 2, which rises from `base` to 1
        (Grill et al. 2020, section 3.2).

    Raises
    ------
    UserError
        If the schedule is unknown.

    Examples
    --------
    >>> momentum_at(50, 100, 0.5, "cosine")
    0.75
    """
    if schedule not in SCHEDULES:
        raise UserError(f"unknown schedule '{schedule}'{nearest(schedule, SCHEDULES)}; known: {', '.join(SCHEDULES)}")
    if schedule == "constant":
        return base
    if isinstance(step, Tensor):
        return 1 - (1 - base) * ((step.double() * (math.pi / steps)).cos() + 1) / 2
    return 1 - (1 - base) * (math.cos(math.pi * step / steps) + 1) / 2
