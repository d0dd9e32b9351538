"""Ctrl-C while a command is still importing."""

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from types import FrameType
from typing import Any

from texturegen.errors import MissingExtra

INTERRUPTED = 130  # exit status, as in a shell: 128 + SIGINT


def run_command(module: str, name: str, **kwargs: Any) -> None:
    """Import a click command and run it; Ctrl-C before it runs ends the process with status 130.

    If packages that it needs are not installed, one line says so, and the status is 1.

    A KeyboardInterrupt among imports would print a traceback, or be swallowed by a module that is half loaded.
    `FriendlyCommand.main` calls `allow_interrupts` where it is ready to catch the exception.

    Parameters
    ----------
    module, name : str
        Where the command stands: "texturegen.cli.group", "main".
    **kwargs
        Arguments of the command's `main`, such as prog_name.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # not if the parent process ignores Ctrl-C
        signal.signal(signal.SIGINT, _exit)
    try:
        command = getattr(import_module(module), name)
    except MissingExtra as error:
        sys.exit(f"error: {error}")
    command(**kwargs)


def allow_interrupts() -> None:
    """Let Ctrl-C raise KeyboardInterrupt again."""
    if signal.getsignal(signal.SIGINT) is _exit:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@contextmanager
def interrupts_end_process() -> Iterator[None]:
    """Let Ctrl-C end the process with status 130, as while a command is imported, instead of raising an exception.

    For slow imports within a command. A program that handles Ctrl-C in its own way keeps its handler, and so does every
    thread but the main one, which cannot change it.
    """
    before = signal.getsignal(signal.SIGINT)
    if before is not signal.default_int_handler or threading.current_thread() is not threading.main_thread():
        yield
        return
    signal.signal(signal.SIGINT, _exit)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _exit(number: int, frame: FrameType | None) -> None:
    os.write(2, b"stopped\n")
    os._exit(INTERRUPTED)
