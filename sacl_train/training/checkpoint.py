"""Checkpoints: written atomically, checked against their checksums, read without unpickling code.

RUN/checkpoint-00001200.pt is of step 1200. The newest few are kept, and best.pt: a copy of the one with the best kNN
score.
"""

import errno
import re
import shutil
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, NotRequired, TypedDict

import torch

from texturegen.console import warn
from texturegen.errors import DamagedError, MissingError, UserError
from texturegen.shards.layout import BUILD
from texturegen.storage.atomic import write_atomically
from texturegen.storage.lock import DirectoryLock

BEST = "best.pt"
LOCK = "lock"
NAME = re.compile(r"checkpoint-(\d+)\.pt")

# Files that the trainer writes under a temporary name, and only while it holds the lock.
WRITTEN = ("checkpoint-*.pt", BEST, "config.toml", "metrics.csv", "metrics.jsonl", "damaged.txt", "sheet.png")

StateDict = dict[str, Any]


class Checkpoint(TypedDict):
    """Content of a checkpoint file; `state.snapshot` makes it and `state.restore` takes it up.

    Attributes
    ----------
    step : steps done.
    epoch : epochs done.
    running : fields of `state.EpochProgress`: progress within the current epoch.
    method, optimizer, scaler, online : state dicts; `online` is None without an online probe.
    metrics : a row per finished epoch.
    steps_bytes : length of steps.jsonl in bytes.
    damaged : number of each damaged sample -> what is wrong with it.
    config : settings that must not change when the run is resumed, see `resume.comparable`.
    shards, shards_place : digest of the shards, and their absolute path or address.
    image_size : height and width in pixels.
    torch_threads : `torch.get_num_threads()`, which decides how the sums of a step on the CPU are rounded.
    """

    step: int
    epoch: int
    running: dict[str, Any]
    method: StateDict
    optimizer: StateDict
    scaler: StateDict
    online: NotRequired[StateDict | None]
    metrics: list[dict[str, Any]]
    steps_bytes: int
    damaged: dict[int, str]
    config: dict[str, Any]
    shards: str
    shards_place: NotRequired[str]
    image_size: tuple[int, int]
    torch_threads: NotRequired[int]


@contextmanager
def exclusive(run: Path) -> Iterator[None]:
    """Lock the directory of a run against other trainers, which would remove each other's checkpoints.

    The directory is created if needed; directories created here that stay empty are removed again. Temporary files that
    a killed trainer left are removed. The operating system drops the lock of a process that dies.

    Raises
    ------
    BusyError
        If another process trains in `run`; the message names it.
    UserError
        If `run` is a file, or holds shards.
    """
    refuse_other_files(run)
    with DirectoryLock(run, activity="training", name=LOCK):
        _remove_temporary_files(run)
        yield


def refuse_other_files(run: Path) -> None:
    """Raise UserError if `run` is a file, or a directory of shards: a run would put its own files among them."""
    if run.exists() and not run.is_dir():
        raise UserError(f"{run}: is not a directory; choose another --out")
    if (run / BUILD).is_file():
        raise UserError(f"{run}: holds shards; choose another --out")


def save_checkpoint(run: Path, checkpoint: Checkpoint, keep: int = 2, best: bool = False) -> None:
    """Write RUN/checkpoint-STEP.pt, then remove all but the newest `keep` up to that step.

    Parameters
    ----------
    run : Path
        Directory of the run.
    checkpoint : Checkpoint
        What to write.
    keep : int
        Checkpoints to keep, at least 1.
    best : bool
        Write a copy to best.pt too.

    Raises
    ------
    OSError
        If the file cannot be written (a full disk); earlier checkpoints stay in place.
    """
    newest = run / f"checkpoint-{checkpoint['step']:08d}.pt"
    # best.pt first: a run that stops between the two resumes before this step, and writes both again.
    write_tensors(run / BEST if best else newest, checkpoint)
    if best:
        with (run / BEST).open("rb") as written:
            write_atomically(newest, lambda f: shutil.copyfileobj(written, f))
    # A checkpoint of a later step is a damaged one that the run could not resume from: it must not count as kept.
    paths = list_checkpoints(run)
    for path in paths[paths.index(newest) + keep :]:
        path.unlink()


def write_tensors(path: Path, content: Any) -> None:
    """Write `content` by `torch.save`, atomically. OSError, naming `path`, if it cannot be written."""

    def write(f: IO[bytes]) -> None:
        try:
            torch.save(content, f)
        except RuntimeError as error:
            # torch's zip writer fails a second time while it closes the file: the cause is the first error.
            if isinstance(error.__context__, OSError):
                raise error.__context__ from None
            raise

    write_atomically(path, write)


def list_checkpoints(run: Path) -> list[Path]:
    """Return the paths of a run's checkpoints, newest first, without best.pt."""
    found = [(int(match[1]), path) for path in run.glob("checkpoint-*.pt") if (match := NAME.fullmatch(path.name))]
    return [path for _, path in sorted(found, reverse=True)]


def load_checkpoint(run: Path) -> Checkpoint | None:
    """Return a run's newest readable checkpoint, its tensors on the CPU; None if it has no checkpoint.

    A damaged one is skipped with a warning, for the one before it.

    Raises
    ------
    DamagedError
        If all of them are damaged.
    """
    paths = list_checkpoints(run)
    for path in paths:
        try:
            return read_checkpoint(path)
        except DamagedError as error:
            if path == paths[-1]:
                raise DamagedError(f"{error}; no older checkpoint is left: remove this one to start again") from None
            warn(f"{error}; using the checkpoint before it")
    return None


def read_checkpoint(path: Path) -> Checkpoint:
    """Return the content of one checkpoint, its tensors on the CPU.

    Raises
    ------
    MissingError
        If there is no such file.
    DamagedError
        If the file cannot be read, differs from its checksums, or is not a checkpoint of `sacl-train`.
    OSError, MemoryError
        If the system refuses to read it, although it may be whole: no permission, a stale handle, too little memory.
    """
    if not path.is_file():
        raise MissingError(f"{path}: there is no such checkpoint")
    try:
        # torch.load does not compare the CRC-32 of the entries: a flipped bit would become a weight. Reading the file
        # twice costs 0.15 s for 400 MB.
        with zipfile.ZipFile(path) as archive:
            corrupt = archive.testzip()
        content = torch.load(path, map_location="cpu", weights_only=True) if corrupt is None else {}
    except Exception as error:  # torch.load raises many kinds of errors for bytes that are not its own
        # Of the system's errors, a damaged disk or directory of the zip gives only these two.
        if isinstance(error, OSError) and error.errno not in (errno.EIO, errno.EINVAL):
            raise
        if isinstance(error, MemoryError) or "can't allocate memory" in str(error):  # torch's is a RuntimeError
            raise MemoryError(path) from None
        raise DamagedError(f"{path}: cannot be read ({type(error).__name__})") from None
    if corrupt is not None:
        raise DamagedError(f"{path}: cannot be read (the checksum of {corrupt} does not match)")
    required = Checkpoint.__required_keys__
    if not isinstance(content, dict) or not required <= content.keys():
        absent = sorted(required - content.keys()) if isinstance(content, dict) else sorted(required)
        is_foreign = not NAME.fullmatch(path.name) and path.name != BEST
        hint = "; sacl-eval scores a file of another program by --encoder" if is_foreign else ""
        raise DamagedError(f"{path}: not a checkpoint of sacl-train (it has no {', '.join(absent)}){hint}")
    checkpoint: Checkpoint = content  # type: ignore[assignment]
    return checkpoint


def directory_of(run: Path) -> Path:
    """Return the directory of a run that is given by its directory or by one of its checkpoints."""
    return run.parent if is_checkpoint(run) else run


def is_checkpoint(run: Path) -> bool:
    """Return True if `run` names a checkpoint file rather than the directory of a run."""
    return run.suffix == ".pt" and not run.is_dir()


def _remove_temporary_files(run: Path) -> None:
    """Remove the temporary files of a trainer that was killed during a write. Call it under the lock only."""
    for name in WRITTEN:
        for path in run.glob(f"{name}.*.tmp"):
            path.unlink(missing_ok=True)
