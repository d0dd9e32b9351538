"""What a run writes down: a row per epoch (metrics.csv, metrics.jsonl), and lines of single steps (steps.jsonl)."""

import csv
import importlib.util
import io
import json
import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from texturegen.errors import UserError
from texturegen.storage.atomic import write_atomically


@dataclass
class Lap:
    """The time since the step that was logged last, or since the epoch began: steps done, seconds waited for data."""

    begin: float = field(default_factory=time.monotonic)
    steps: int = 0
    waited: float = 0.0

    def speed(self, batch_size: int) -> dict[str, float]:
        """What an epoch's row has under these names."""
        seconds = time.monotonic() - self.begin
        return {"samples_per_second": self.steps * batch_size / seconds, "data_wait": self.waited / seconds}


class StepLog:
    """RUN/steps.jsonl: a JSON object for each logged step. A checkpoint holds its length, `offset`, in bytes.

    offset: what a checkpoint says; lines behind it are of steps that will be done again, and are removed.
    """

    def __init__(self, path: Path, offset: int = 0) -> None:
        self._file = path.open("ab")
        self._file.truncate(min(offset, path.stat().st_size))
        self._file.seek(0, os.SEEK_END)

    def write(self, line: dict[str, Any]) -> None:
        self._file.write(json.dumps(line).encode() + b"\n")

    def offset(self) -> int:
        """Bytes so far, all of them on the disk."""
        self._file.flush()
        os.fsync(self._file.fileno())
        return self._file.tell()

    def close(self) -> None:
        self._file.close()


def require_board(wanted: bool) -> None:
    """UserError when TensorBoard is wanted and not installed."""
    if wanted and importlib.util.find_spec("tensorboard") is None:
        raise UserError(
            "tensorboard is not installed: pip install 'sacl-texture[tensorboard]', or train with "
            "--set tensorboard=false"
        )


class Board:
    """TensorBoard's events in RUN/tensorboard, those of steps that will be done again dropped; or nothing."""

    def __init__(self, run: Path, step: int, wanted: bool) -> None:
        self._writer: Any = None
        if not wanted:
            return
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(run / "tensorboard"), purge_step=step)  # type: ignore[no-untyped-call]

    def write(self, group: str, values: dict[str, Any], step: int) -> None:
        if self._writer is not None:
            for name, value in values.items():
                if isinstance(value, int | float):
                    self._writer.add_scalar(f"{group}/{name}", value, step)

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()


def write_rows(run: Path, rows: list[dict[str, Any]]) -> None:
    """metrics.csv and metrics.jsonl, as whole files: after a crash they follow the checkpoint again."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    table = io.StringIO()
    writer = csv.DictWriter(table, names)
    writer.writeheader()
    writer.writerows(rows)
    write_atomically(run / "metrics.csv", table.getvalue())
    write_atomically(run / "metrics.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
