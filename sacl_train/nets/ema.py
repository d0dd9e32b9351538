"""The target network: an exponential moving average of the online one (SACL eq. 6, 7; He et al. 2020 eq. 2)."""

import copy
from typing import TypeVar

import torch
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

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
    get_ema_multi_avg_fn(m)(list(target.parameters()), list(online.parameters()), None)  # one fused lerp
    for mine, theirs in zip(target.buffers(), online.buffers(), strict=True):
        mine.copy_(theirs)
