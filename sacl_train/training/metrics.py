"""What a run writes down: a row per epoch (metrics.csv, metrics.jsonl) and lines of single steps (steps.jsonl)."""

import csv
import importlib.util
import io
import json
import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sacl_train.config import Config
from sacl_train.training.wandb_run import WandbRun
from texturegen.errors import MissingError
from texturegen.storage.atomic import write_atomically

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

Row = dict[str, Any]  # metrics of an epoch or a step: name -> float or int; "knn" is None without labels


@dataclass
class Lap:
    """Steps done and seconds waited for data since the last logged step, or since the epoch began.

    `memory` is the device's peak memory in GB, read once a lap; None before.
    """

    begin: float = field(default_factory=time.monotonic)
    steps: int = 0
    waited: float = 0.0
    memory: float | None = None

    @property
    def seconds(self) -> float:
        """Seconds since it began."""
        return time.monotonic() - self.begin

    def speed(self, batch_size: int) -> dict[str, float]:
        """Return samples per second and the share of the time spent waiting for data, named as in an epoch's row."""
        seconds = self.seconds
        return {"samples_per_second": self.steps * batch_size / seconds, "data_wait": self.waited / seconds}


class StepLog:
    """RUN/steps.jsonl: a JSON object for each logged step.

    Parameters
    ----------
    path : Path
        The file; it is created if needed.
    offset : int
        Length in bytes at the checkpoint that the run resumes from. Lines after it are removed: their steps are done
        again.
    """

    def __init__(self, path: Path, offset: int = 0) -> None:
        self._file = path.open("ab")
        self._file.truncate(min(offset, path.stat().st_size))
        self._file.seek(0, os.SEEK_END)

    def write(self, line: Row) -> None:
        """Append a line."""
        self._file.write(json.dumps(line).encode() + b"\n")

    def sync(self) -> int:
        """Write all lines to the disk and return the length of the file in bytes."""
        self._file.flush()
        os.fsync(self._file.fileno())
        return self._file.tell()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def require_boards(config: Config) -> None:
    """Raise MissingError if TensorBoard or Weights & Biases is wanted and not installed."""
    for name in ("tensorboard", "wandb"):
        if getattr(config, name) and importlib.util.find_spec(name) is None:
            raise MissingError(
                f"{name} is not installed: pip install 'sacl-texture[{name}]', or train with --set {name}=false"
            )


class Board:
    """TensorBoard's events in RUN/tensorboard and a run of Weights & Biases, as the config asks, or nothing.

    Parameters
    ----------
    run : Path
        Directory of the run.
    step : int
        First step of this session; events of later steps are dropped, because the steps are done again.
    config : Config or None
        Settings of the run; None makes every method do nothing.
    """

    def __init__(self, run: Path, step: int, config: Config | None) -> None:
        self._writer: SummaryWriter | None = None
        self._wandb: WandbRun | None = None
        if config is not None and config.tensorboard:
            from torch.utils import tensorboard

            self._writer = tensorboard.SummaryWriter(str(run / "tensorboard"), purge_step=step)  # type: ignore[no-untyped-call]
        if config is not None and config.wandb:
            self._wandb = WandbRun(run, config.flat())

    def write(self, group: str, values: Row, step: int) -> None:
        """Write the numbers among `values` as scalars GROUP/NAME."""
        numbers = {name: value for name, value in values.items() if isinstance(value, int | float)}
        if self._writer is not None:
            for name, value in numbers.items():
                self._writer.add_scalar(f"{group}/{name}", value, step)  # type: ignore[no-untyped-call]
        if self._wandb is not None:
            self._wandb.write(group, numbers, step)

    def close(self) -> None:
        """Flush and close the events and the run."""
        if self._wandb is not None:
            self._wandb.close()
        if self._writer is not None:
            self._writer.close()  # type: ignore[no-untyped-call]


def write_rows(run: Path, rows: list[Row]) -> None:
    """Write metrics.csv and metrics.jsonl whole: after a crash they match the checkpoint again."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    table = io.StringIO()
    writer = csv.DictWriter(table, names)
    writer.writeheader()
    writer.writerows(rows)
    write_atomically(run / "metrics.csv", table.getvalue())
    write_atomically(run / "metrics.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
