"""Run and time the commands `texturegen`, `sacl-train` and `sacl-eval` as subprocesses."""

import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.options import make_flags
from pipelines.stages import build_shards, is_done, mark_done
from texturegen.errors import DamagedError, UserError
from texturegen.storage.atomic import read_json, write_json

if TYPE_CHECKING:
    from texturegen.builds.recipe import Plan

# Exit status of a finished `texturegen build` that skipped and reported unusable images.
SUCCESS = {"texturegen": (0, 3)}


class Commands:
    """Run commands, record their durations in OUT/times.json, and keep their lines for the report.

    Parameters
    ----------
    out : Path
        Directory of the journey or the grid.
    threads : int
        Value of OMP_NUM_THREADS for each command.

    Attributes
    ----------
    lines : list of str
        The commands, in the order in which they were run or skipped.
    times : dict of str to float
        Command -> seconds, including earlier runs.
    """

    def __init__(self, out: Path, threads: int) -> None:
        self.path = out / "times.json"
        self.times: dict[str, float] = {}
        with suppress(FileNotFoundError, DamagedError):  # nothing but the report shows them
            self.times |= read_json(self.path)
        self.lines: list[str] = []
        self.environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "PYTHONUNBUFFERED": "1"}

    def call(self, name: str, command: str, *arguments: str) -> None:
        """Run a command; its output lines start with ``[name]`` unless `name` is empty.

        Raises
        ------
        UserError
            The command failed; it has printed the reason.
        """
        line = shlex.join([command, *arguments])
        prefix = f"[{name}] " if name else ""
        print(f"{prefix}$ {line}", flush=True)
        begin = time.monotonic()
        process = subprocess.Popen(
            [str(Path(sys.executable).with_name(command)), *arguments],
            env=self.environment,
            text=True,
            stdout=subprocess.PIPE if name else None,
            stderr=subprocess.STDOUT if name else None,
        )
        for text in process.stdout or ():
            print(f"{prefix}{text}", end="", flush=True)
        status = process.wait()
        if status == 130:
            raise KeyboardInterrupt
        if status < 0:
            why = " (out of memory?)" if status == -signal.SIGKILL else ""
            raise UserError(
                f"`{line}` was killed by signal {-status}{why}; run the same command again to resume, with "
                "fewer --jobs if memory ran out"
            )
        if status not in SUCCESS.get(command, (0,)):
            raise UserError(
                f"`{line}` failed with exit status {status}; correct what it reports above and run the same command "
                "again"
            )
        # A command whose work is already done returns immediately, so the longest duration is kept.
        self.times[line] = max(self.times.get(line, 0.0), time.monotonic() - begin)
        self.lines.append(line)
        write_json(self.path, dict(self.times))

    def build(self, out: Path, options: dict[str, Any], root: str | None, plan: "Plan | None" = None) -> None:
        """Run `texturegen build` with these options, unless `out` holds that build (see `stages.build_shards`).

        A root among the options comes before `root`; `plan` is that of the options if it has been made already.
        """
        if root:
            options = {"root": root, **options}
        line = ("texturegen", "build", "--out", str(out), *make_flags(options))
        build_shards(out, options, lambda: self.call("", *line), lambda: self.skip("", *line), plan)

    def stage(
        self, name: str, line: Sequence[str], record: Path, run: dict[str, Any], inputs: Any, output: Path
    ) -> None:
        """Run the command that writes `output`, unless the stage is done (see `stages.is_done`)."""
        if is_done(record, run, inputs, [output]):
            self.skip(name, *line)
        else:
            self.call(name, *line)
            mark_done(record, run, inputs)

    def skip(self, name: str, *command: str) -> None:
        """Print that a command is already done."""
        line = shlex.join(command)
        print(f"{f'[{name}] ' if name else ''}{line}: already done", flush=True)
        self.lines.append(line)
