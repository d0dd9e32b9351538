"""Optimizers by name, their parameter groups, and the learning rate schedule (SACL §3.2)."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn, optim

from texturegen.errors import UserError, nearest


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


class Lars(optim.SGD):
    """SGD whose steps are scaled layer by layer (You et al. 2017, algorithm 1).

    The gradient g of a weight w is replaced by r (g + b w), with b the weight decay and r = trust |w| / (|g| + b |w|);
    r is 1 where a norm is 0. timm's LARS applies a learning rate that is a tensor one parameter at a time and waits for
    the device to read it, so it cannot be captured in a CUDA graph; this one leaves the update to torch's fused SGD.

    Parameters
    ----------
    groups : iterable of dict
        Parameter groups. "adapt" False turns a group into plain SGD; "decay" is its weight decay.
    trust : float
        Trust coefficient.
    clip : bool
        Divide r by the learning rate and limit it to 1, so that no layer moves further than in SGD (LARC).
    **settings
        lr, momentum and fused, as in torch's SGD.
    """

    def __init__(self, groups: Iterable[dict[str, Any]], trust: float = 1e-3, clip: bool = False, **settings: Any):
        self.trust, self.clip = trust, clip
        super().__init__(groups, **settings)
        # Fused SGD lets GradScaler leave the division by its scale to the kernel; the norms are compared before.
        self._step_supports_amp_scaling = False

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Scale the gradients in place, then do SGD's step."""
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            if not params:
                continue
            grads: list[Tensor] = [p.grad for p in params]
            if not group["adapt"]:
                if group["decay"]:
                    torch._foreach_add_(grads, params, alpha=group["decay"])
                continue
            weight_norms, grad_norms = (torch.stack(torch._foreach_norm(x)) for x in (params, grads))
            ratios = self.trust * weight_norms / (grad_norms + group["decay"] * weight_norms)
            ratios = torch.where((weight_norms > 0) & (grad_norms > 0), ratios, 1.0)
            if self.clip:
                ratios = (ratios / group["lr"]).clamp(max=1.0)
            torch._foreach_add_(grads, params, alpha=group["decay"])
            torch._foreach_mul_(grads, list(ratios.unbind()))
        return super().step(closure)


@dataclass(frozen=True)
class Settings:
    """What an optimizer needs besides its parameters; see `build_optimizer`."""

    lr: float | Tensor
    momentum: float
    betas: tuple[float, float]
    trust: float
    trust_clip: bool
    cuda: bool  # the parameters are on CUDA and the step is captured


def _sgd(groups: list[dict[str, Any]], settings: Settings) -> optim.Optimizer:
    return optim.SGD(groups, lr=settings.lr, momentum=settings.momentum, fused=settings.cuda or None)


def _lars(groups: list[dict[str, Any]], settings: Settings) -> optim.Optimizer:
    for group in groups:
        group["decay"] = group.pop("weight_decay")  # torch's SGD would apply it after the scaling
    fused = settings.cuda or None
    return Lars(groups, settings.trust, settings.trust_clip, lr=settings.lr, momentum=settings.momentum, fused=fused)


def _adamw(groups: list[dict[str, Any]], settings: Settings) -> optim.Optimizer:
    return optim.AdamW(
        groups, lr=settings.lr, betas=settings.betas, fused=settings.cuda or None, capturable=settings.cuda
    )


# The registry: name -> function of parameter groups and settings. Only "sgd" decays norms and biases by default.
OPTIMIZERS: dict[str, Callable[[list[dict[str, Any]], Settings], optim.Optimizer]] = {
    "sgd": _sgd,
    "lars": _lars,
    "adamw": _adamw,
}


def build_optimizer(
    module: nn.Module,
    name: str = "sgd",
    lr: float = 0.1,
    momentum: float = 0.9,
    weight_decay: float = 1e-4,
    *,
    decay_norms: bool | None = None,
    norm_lr: float = 1.0,
    betas: tuple[float, float] = (0.9, 0.999),
    trust: float = 1e-3,
    trust_clip: bool = False,
    constant_lr: Iterable[nn.Module] = (),
    capturable: bool = False,
) -> optim.Optimizer:
    """Return an optimizer over the parameters that take a gradient; the EMA target's do not.

    Each parameter group has the keys "lr_scale", the multiple of the schedule's rate that it gets, and "constant_lr",
    True if it keeps its first rate for the whole run; `set_lr` reads both.

    Parameters
    ----------
    module : Module
        Owner of the parameters.
    name : str
        One of `OPTIMIZERS`: "sgd"; "lars" (You et al. 2017), for batches of thousands; "adamw" (Loshchilov & Hutter
        2019).
    lr : float
        Learning rate.
    momentum : float
        Of SGD and LARS.
    weight_decay : float
        Coefficient; AdamW's is decoupled.
    decay_norms : bool or None
        Treat biases and the parameters of norms, which have one dimension, like weights. If False, they are not
        decayed, nor scaled by LARS (Chen et al. 2020 B.6; Grill et al. 2020 section 3.2). None: True for "sgd" only.
    norm_lr : float
        Learning rate of biases and norms, as a multiple of `lr`.
    betas : tuple of float
        Coefficients of AdamW's moving averages.
    trust, trust_clip : float, bool
        See `Lars`.
    constant_lr : iterable of Module
        Parts of `module` whose learning rate stays `lr` while that of the rest follows the schedule.
    capturable : bool
        The step is to be captured in a CUDA graph: "lr" is a tensor (0-d, float32) on the parameters' device, which
        `set_lr` changes in place, and on CUDA the kernels are fused. The update is the same.

    Raises
    ------
    UserError
        If the name is unknown.
    """
    if name not in OPTIMIZERS:
        raise UserError(f"unknown optimizer '{name}'{nearest(name, OPTIMIZERS)}; known: {', '.join(OPTIMIZERS)}")
    decays_norms = name == "sgd" if decay_norms is None else decay_norms
    constant = {id(p) for part in constant_lr for p in part.parameters()}
    groups: dict[tuple[bool, bool], dict[str, Any]] = {}
    trained = [p for p in module.parameters() if p.requires_grad]
    for p in trained:
        is_norm = p.ndim < 2
        key = (is_norm and not (decays_norms and norm_lr == 1), id(p) in constant)
        if key not in groups:
            scale = norm_lr if is_norm and norm_lr != 1 else 1.0
            groups[key] = {
                "params": [],
                "lr": torch.tensor(lr * scale, device=p.device) if capturable else lr * scale,
                "lr_scale": scale,
                "constant_lr": key[1],
                "weight_decay": 0.0 if is_norm and not decays_norms else weight_decay,
            }
            if name == "lars":
                groups[key]["adapt"] = decays_norms or not is_norm
        groups[key]["params"].append(p)
    cuda = capturable and any(p.is_cuda for p in trained)
    first_lr = torch.tensor(lr, device=trained[0].device) if capturable and trained else lr
    settings = Settings(first_lr, momentum, betas, trust, trust_clip, cuda)
    return OPTIMIZERS[name]([groups[key] for key in sorted(groups)], settings)


def set_lr(optimizer: optim.Optimizer, lr: float) -> None:
    """Give the parameter groups the schedule's learning rate for the next step; tensors are changed in place.

    Parameters
    ----------
    optimizer : Optimizer
        From `build_optimizer`.
    lr : float
        The schedule's rate. A group gets "lr_scale" times that, one with "constant_lr" keeps its own.
    """
    for group in optimizer.param_groups:
        if group["constant_lr"]:
            continue
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(lr * group["lr_scale"])
        else:
            group["lr"] = lr * group["lr_scale"]
