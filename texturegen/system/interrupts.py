"""Ctrl-C while a command is still importing."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

INTERRUPTED = 130  # exit status, as in a shell: 128 + SIGINT


@contextmanager
def exit_on_interrupt() -> Iterator[None]:
    """End the process with status 130 on Ctrl-C in the block, which must leave nothing behind.

    For imports: a KeyboardInterrupt among them prints a traceback, or is swallowed by a module that is half loaded.
    Does nothing outside of the main thread, or if the program has its own way with Ctrl-C.
    """
    if (
        threading.current_thread() is not threading.main_thread()
        or signal.getsignal(signal.SIGINT) is not signal.default_int_handler
    ):
        yield
        return
    signal.signal(signal.SIGINT, _exit)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _exit(number: int, frame: FrameType | None) -> None:
    os.write(2, b"stopped\n")
    os._exit(INTERRUPTED)
