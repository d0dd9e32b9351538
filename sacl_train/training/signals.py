"""SIGTERM and Ctrl-C as a request to stop, for a loop that polls it."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

ECHO_SECONDS = 2.0


@contextmanager
def stop_on_signal() -> Iterator[threading.Event]:
    """Yield an event that the first SIGTERM or Ctrl-C sets; a second one, seconds later, has its usual effect."""
    stop = threading.Event()
    usual: dict[int, Any] = {}
    times: list[float] = []

    def handle(number: int, frame: FrameType | None) -> None:
        stop.set()
        times.append(time.monotonic())
        # A terminal or Slurm signals torchrun and its children, and torchrun signals its children once more: a second
        # signal within ECHO_SECONDS is that echo.
        if times[-1] - times[0] > ECHO_SECONDS:
            signal.signal(number, usual[number])
            signal.raise_signal(number)

    if threading.current_thread() is threading.main_thread():  # Python allows handlers in the main thread only
        usual = {number: signal.signal(number, handle) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield stop
    finally:
        # The echo may arrive after the work is done: with the usual handler it would kill the process before it has
        # printed its last lines.
        while times and "TORCHELASTIC_RUN_ID" in os.environ and len(times) < 2:
            if time.monotonic() - times[0] > ECHO_SECONDS:
                break
            time.sleep(0.02)
        for number, handler in usual.items():
            signal.signal(number, handler)
