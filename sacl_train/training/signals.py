"""SIGTERM and Ctrl-C as a request that a loop heeds when it can."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

ECHO_SECONDS = 2.0


@contextmanager
def listen() -> Iterator[threading.Event]:
    """An event that the first SIGTERM or Ctrl-C sets; another, seconds later, has its usual effect."""
    stop = threading.Event()
    usual: dict[int, Any] = {}
    times: list[float] = []

    def heed(number: int, frame: Any) -> None:
        stop.set()
        times.append(time.monotonic())
        # torchrun passes on what the terminal or Slurm has sent to its children already.
        if times[-1] - times[0] > ECHO_SECONDS:
            signal.signal(number, usual[number])
            signal.raise_signal(number)

    if threading.current_thread() is threading.main_thread():  # Python tells no other of signals
        usual = {number: signal.signal(number, heed) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield stop
    finally:
        # Its echo may come after the work is done; it must not kill what is still to be said.
        while times and "TORCHELASTIC_RUN_ID" in os.environ and len(times) < 2:
            if time.monotonic() - times[0] > ECHO_SECONDS:
                break
            time.sleep(0.02)
        for number, handler in usual.items():
            signal.signal(number, handler)
