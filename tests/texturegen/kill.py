"""Run functions in processes that are killed, at random or before their n-th change of the file system.

A fork server starts the processes: it has imported what they need and has no threads, whose locks a fork would copy.
"""

import importlib
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest

from texturegen.errors import BusyError, UserError

DONE, REFUSED, BUSY, KILLED = 0, 2, 3, -signal.SIGKILL  # exit codes; 1 is any other exception
# Audit events of Python that change files, see https://docs.python.org/3/library/audit_events.html
EVENTS = {"os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.link", "os.truncate"}
MODULES = ["texturegen.builds.run", "texturegen.builds.repair", "texturegen.shards.merge", "sacl_train.cli.train"]
MODULES += ["sacl_train.training.loop", __name__]
TIMEOUT = 60  # seconds
# Kill at every 23rd change of the file system. TEXTUREGEN_KILL_STRIDE=1 kills at every change, which takes minutes.
STRIDES = pytest.mark.parametrize("stride", [int(os.environ.get("TEXTUREGEN_KILL_STRIDE", "23"))])

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(MODULES)


def run(function: Callable[[], object], kill_before: int | None = None) -> int:
    """Run `function`, which must be picklable, in a process and return the exit code.

    With `kill_before`, the process is killed before that change of the file system, counted from 0.
    """
    process = start(function, kill_before)
    process.join(TIMEOUT)
    assert process.exitcode is not None, "the process hangs"
    return process.exitcode


def start(function: Callable[[], object], kill_before: int | None = None) -> BaseProcess:
    """Start `function` in a process."""
    process = _context.Process(target=_run, args=(function, kill_before))
    process.start()
    return process


def run_command(command: str, arguments: list[str], log: Path) -> None:
    """Run a click command, given as module:name, with one torch thread and its output in a file."""
    import torch

    torch.set_num_threads(1)
    module, _, name = command.partition(":")
    with log.open("w") as f:
        os.dup2(f.fileno(), 1)
        os.dup2(f.fileno(), 2)
    getattr(importlib.import_module(module), name)(arguments)


def _run(function: Callable[[], object], kill_before: int | None) -> None:
    if kill_before is not None:
        _kill_before(kill_before)
    try:
        function()
    except BusyError:
        os._exit(BUSY)
    except UserError:
        os._exit(REFUSED)


def _kill_before(number: int) -> None:
    seen = 0

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal seen
        flags = arguments[2] if event == "open" else 0
        if event in EVENTS or (isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR)):
            if seen == number:
                os.kill(os.getpid(), signal.SIGKILL)
            seen += 1

    sys.addaudithook(hook)
