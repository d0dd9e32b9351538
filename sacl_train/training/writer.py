"""Write checkpoints in the background: a step waits for the copy of the weights, not for the disk."""

from concurrent.futures import Future, ThreadPoolExecutor
from copy import copy
from pathlib import Path
from types import TracebackType
from typing import Any

import torch

from sacl_train.training.checkpoint import Checkpoint, save_checkpoint


class CheckpointWriter:
    """Writes a run's checkpoints on a thread, one after the other.

    A context manager: on exit, the last checkpoint is on the disk.

    Parameters
    ----------
    run : Path
        Directory of the run.
    keep : int
        Newest checkpoints to keep, at least 1.
    """

    def __init__(self, run: Path, keep: int) -> None:
        self._run, self._keep = run, keep
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._writing: Future[None] | None = None

    def write(self, checkpoint: Checkpoint, is_best: bool = False) -> None:
        """Copy the checkpoint's tensors to memory and start writing it; wait for the one before it first.

        Raises
        ------
        OSError
            If the checkpoint before it could not be written (a full disk).
        """
        self.finish()
        self._writing = self._pool.submit(save_checkpoint, self._run, _copy(checkpoint), self._keep, is_best)

    def finish(self) -> None:
        """Wait until the last checkpoint is on the disk; OSError if it could not be written."""
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    def __enter__(self) -> "CheckpointWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        writing = self._writing
        self._pool.shutdown()
        if writing is not None and (failure := writing.exception()) is not None and error is None:
            raise failure


def _copy(content: Any) -> Any:
    """Return a copy of nested dicts, lists and tuples whose tensors are on the CPU and shared with nothing."""
    if isinstance(content, torch.Tensor):
        return content.detach().to("cpu", copy=True)
    if isinstance(content, dict):
        copied = copy(content)  # a state dict is an OrderedDict with versions of its modules
        copied.update((key, _copy(value)) for key, value in content.items())
        return copied
    if isinstance(content, list | tuple):
        return type(content)(_copy(value) for value in content)
    return content
