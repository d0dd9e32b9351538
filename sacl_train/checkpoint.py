"""Checkpoints: written whole or not at all, read without unpickling code."""

from pathlib import Path
from typing import Any

import torch

from texturegen.errors import UserError
from texturegen.files import write_atomically

NAME = "checkpoint.pt"


def save_checkpoint(run: Path, state: dict[str, Any]) -> None:
    """Write RUN/checkpoint.pt; OSError (a full disk, say) leaves the one before in place."""
    write_atomically(run / NAME, lambda f: torch.save(state, f))


def load_checkpoint(run: Path) -> dict[str, Any] | None:
    """The run's checkpoint with its tensors on the CPU, None where there is none; UserError when it is damaged."""
    path = run / NAME
    if not path.is_file():
        return None
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises many kinds for one fact: these bytes are no checkpoint
        raise UserError(f"{path}: cannot be read ({type(error).__name__}); remove it to start again") from None
