"""Compile the networks of a method, its views and its loss by torch.compile."""

import os
import shutil

import torch

from sacl_train.distributed import count_processes
from sacl_train.methods.method import Method
from texturegen.errors import MissingError

# Networks of one class share a cache of compiled variants: online and target, images and cells, one variant each.
VARIANTS = 64


def compile_method(method: Method, mode: str) -> None:
    """Compile the views, each network and the loss of a method by itself, for the shapes that it meets.

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
    for part in method.children():  # the augmentations and the loss are modules too, without weights
        part.compile(**options)


def can_compile(device: torch.device) -> bool:
    """Return True if torch.compile has what it needs: a C++ compiler, or on CUDA a C compiler and Triton."""
    if device.type != "cuda":
        return shutil.which(os.environ.get("CXX", "g++")) is not None
    names = (os.environ.get("CC"), "cc", "gcc", "clang")
    return any(shutil.which(name) for name in names if name) and torch.utils._triton.has_triton()


def require_compiler(device: torch.device) -> None:
    """Raise MissingError unless `can_compile`."""
    if not can_compile(device):
        needed = "a C compiler and Triton" if device.type == "cuda" else "a C++ compiler (g++, or CXX)"
        raise MissingError(f"compile needs {needed}, not found here: install it, or train with --compile none")
