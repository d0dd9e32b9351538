"""Checks of the programs' options, made before the first step."""

from pathlib import Path

import torch

from texturegen.errors import UserError


def check_device(device: str) -> None:
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # AssertionError: a torch without CUDA
        raise UserError(f"--device {device}: {str(error).splitlines()[0]}") from None


def check_out(out: Path | None) -> None:
    """Raise UserError if `out` cannot be a new file: torch.save would fail after the training."""
    if out and (out.is_dir() or not out.parent.is_dir()):
        raise UserError(f"--out {out}: " + ("a directory" if out.is_dir() else f"there is no directory {out.parent}"))
