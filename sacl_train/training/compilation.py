"""Compile the networks of a method and its views by torch.compile."""

import shutil

import torch

from sacl_train.distributed import count_processes
from sacl_train.methods.method import Method

# Networks of one class share a cache of compiled variants: online and target, images and cells, one variant each.
VARIANTS = 64


def compile_method(method: Method, mode: str) -> None:
    """Compile the views and each network of a method by itself, for the shapes that it meets.

    Parameters
    ----------
    method : Method
        Owner of the networks.
    mode : str
        "default", or "max-autotune-no-cudagraphs": tries several kernels for each product and convolution, for minutes.
        The step is captured as a CUDA graph as a whole, so torch's modes with graphs of their own are left out.
    """
    torch._dynamo.config.recompile_limit = max(VARIANTS, torch._dynamo.config.recompile_limit)
    # A graph break costs speed without a word, so it is an error, but for what talks to other processes.
    options = {"mode": mode, "fullgraph": count_processes() == 1, "dynamic": False}
    for part in method.children():  # the augmentations are modules too, without weights
        part.compile(**options)


def can_compile() -> bool:
    """Return True if there is a C compiler, and Triton for CUDA: what torch.compile needs."""
    return any(shutil.which(name) for name in ("cc", "gcc", "clang")) and torch.utils._triton.has_triton()
