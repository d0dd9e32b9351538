"""The precision of a run: types of the forward passes, copies of the weights in them, and settings of the kernels."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from sacl_train.config import Config

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def precision_on(device: torch.device, precision: str) -> str:
    """Return the precision that "auto" stands for on a device: bf16 on CUDA, else fp32."""
    if precision != "auto":
        return precision
    return "bf16" if device.type == "cuda" else "fp32"


def autocast(config: Config, device: torch.device) -> torch.autocast:
    """Return the context manager in which forward passes compute in the run's precision."""
    precision = precision_on(device, config.precision)
    return torch.autocast(device.type, DTYPES[precision], enabled=precision != "fp32")


@contextmanager
def cast_weights(network: nn.Module, config: Config, device: torch.device) -> Iterator[None]:
    """Give the convolutions and linear layers of a network weights in the run's precision, cast once.

    Autocast would cast them in each forward pass, and in a compiled one or without gradient it does not keep them for
    the next. Gradients go to the network's own weights, in their own type, as with autocast. Layers that do with their
    weight anything but torch's convolution or product keep it, and autocast casts it as before.

    Parameters
    ----------
    network : nn.Module
        Inside the context, `network.parameters()` has the copies.
    config : Config
        Of its settings, `precision`.
    device : device
        Where the network is.
    """
    precision = precision_on(device, config.precision)
    places = [] if precision == "fp32" else [*_cast_places(network)]
    own = [parameters[name] for parameters, name in places]
    copies: dict[nn.Parameter, Tensor] = {}
    for trained, cast in ((True, _Cast.apply), (False, _cast)):
        weights = [*dict.fromkeys(weight for weight in own if weight.requires_grad == trained)]  # one may be shared
        copies |= zip(weights, cast(DTYPES[precision], *weights), strict=True)
    try:
        for (parameters, name), weight in zip(places, own, strict=True):
            parameters[name] = copies[weight]
        yield
    finally:
        for (parameters, name), weight in zip(places, own, strict=True):
            parameters[name] = weight


def _cast_places(network: nn.Module) -> Iterator[tuple[dict[str, Any], str]]:
    """Yield the places of the weights that autocast would cast: the dict of a module's parameters, and a name in it."""
    for module in network.modules():
        if type(module).forward in (nn.Conv2d.forward, nn.Linear.forward):
            for name in ("weight", "bias"):  # others belong to a hook, as those of torch's old weight_norm do
                weight = module._parameters.get(name)
                if weight is not None and weight.dtype == torch.float32:
                    yield module._parameters, name


def _cast(dtype: torch.dtype, *tensors: Tensor) -> tuple[Tensor, ...]:
    """Return copies of tensors in another type, made by one operation."""
    copies = [torch.empty_like(tensor, dtype=dtype) for tensor in tensors]
    if copies:
        torch._foreach_copy_(copies, tensors)
    return tuple(copies)


class _Cast(torch.autograd.Function):
    """`_cast`, whose gradients are cast back by one operation too.

    Nothing is saved for the backward pass, so several losses may go back through one cast, one after the other.
    """

    @staticmethod
    def forward(ctx: Any, dtype: torch.dtype, *weights: Tensor) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        return _cast(dtype, *weights)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        """Return None for the type and for each weight without a gradient."""
        full = iter(_cast(torch.float32, *(gradient for gradient in gradients if gradient is not None)))
        return None, *(None if gradient is None else next(full) for gradient in gradients)


def make_scaler(config: Config, device: torch.device) -> torch.amp.GradScaler:
    """Return the scaler of the loss: it keeps fp16 gradients from underflowing and does nothing in other precisions."""
    return torch.amp.GradScaler(device.type, enabled=config.precision == "fp16")


@contextmanager
def arithmetic(config: Config) -> Iterator[None]:
    """Set TF32 and deterministic kernels as the config asks; restore torch's settings afterwards."""
    cudnn = torch.backends.cudnn
    before = (
        torch.get_float32_matmul_precision(),
        cudnn.allow_tf32,
        cudnn.benchmark,
        torch.are_deterministic_algorithms_enabled(),
    )
    torch.set_float32_matmul_precision("high" if config.tf32 else "highest")
    cudnn.allow_tf32 = config.tf32
    cudnn.benchmark = not config.deterministic
    if config.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS is deterministic only with this set
        torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before[0])
        cudnn.allow_tf32, cudnn.benchmark = before[1:3]
        torch.use_deterministic_algorithms(before[3])
