"""Checkpoints: written whole or not at all, read without unpickling code.

RUN/checkpoint-00001200.pt is of step 1200. The newest few are kept, and best.pt, a copy of that of the best kNN score.
"""

import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch

from texturegen.console import warn
from texturegen.errors import UserError
from texturegen.storage.atomic import write_atomically
from texturegen.storage.lock import acquire

BEST = "best.pt"
LOCK = "lock"
NAME = re.compile(r"checkpoint-(\d+)\.pt")


@contextmanager
def exclusive(run: Path) -> Iterator[None]:
    """Keep other trainers out of the directory `run`, made if need be: they would remove each other's checkpoints.

    Directories that were made for it and stayed empty are removed again. Raises UserError that says who is in there;
    who died there is no hindrance.
    """
    made = [path for path in (run, *run.parents) if not path.exists()]
    run.mkdir(parents=True, exist_ok=True)
    path = run / LOCK
    try:
        with acquire(path, place=run, doing="training"):
            try:
                yield
            finally:
                path.unlink(missing_ok=True)
    finally:
        with suppress(OSError):  # the usual case: they are not empty
            for directory in made:
                directory.rmdir()


def save_checkpoint(run: Path, state: dict[str, Any], keep: int = 2, best: bool = False) -> None:
    """Write the checkpoint of `state["step"]`, then remove all but the newest `keep`; write best.pt too if asked.

    OSError (a full disk, say) leaves those before in place.
    """
    newest = run / f"checkpoint-{state['step']:08d}.pt"
    write_atomically(newest, lambda f: torch.save(state, f))
    if best:
        with newest.open("rb") as written:
            write_atomically(run / BEST, lambda f: shutil.copyfileobj(written, f))
    for path in list_checkpoints(run)[keep:]:
        path.unlink()


def list_checkpoints(run: Path) -> list[Path]:
    """The run's checkpoints, newest first."""
    found = [(int(match[1]), path) for path in run.glob("checkpoint-*.pt") if (match := NAME.fullmatch(path.name))]
    return [path for _, path in sorted(found, reverse=True)]


def load_checkpoint(run: Path) -> dict[str, Any] | None:
    """The run's newest checkpoint that can be read, its tensors on the CPU; None where there is none.

    Warns of a damaged one. Raises UserError when all are.
    """
    paths = list_checkpoints(run)
    for path in paths:
        try:
            return read_checkpoint(path)
        except UserError as error:
            if path == paths[-1]:
                raise UserError(f"{error}, nor is there another; remove it to start again") from None
            warn(f"{error}; taking the one before")
    return None


def read_checkpoint(path: Path) -> dict[str, Any]:
    """One checkpoint, its tensors on the CPU. UserError when it cannot be read."""
    if not path.is_file():
        raise UserError(f"{path}: there is no such checkpoint")
    try:
        content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        return content
    except Exception as error:  # torch.load raises many kinds for one fact: these bytes are no checkpoint
        raise UserError(f"{path}: cannot be read ({type(error).__name__})") from None


def directory_of(run: Path) -> Path:
    """Where what is made of a run belongs: its directory, also where one of its checkpoints is named."""
    return run.parent if is_checkpoint(run) else run


def is_checkpoint(run: Path) -> bool:
    """Whether the name is that of a checkpoint instead of a run."""
    return run.suffix == ".pt" and not run.is_dir()
