"""SIGTERM and Ctrl-C as a request that a loop heeds when it can."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def listen() -> Iterator[threading.Event]:
    """An event that the first SIGTERM or Ctrl-C sets; the second has its usual effect."""
    stop = threading.Event()
    usual: dict[int, Any] = {}

    def heed(number: int, frame: Any) -> None:
        stop.set()
        signal.signal(number, usual[number])

    if threading.current_thread() is threading.main_thread():  # Python tells no other of signals
        usual = {number: signal.signal(number, heed) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield stop
    finally:
        for number, handler in usual.items():
            signal.signal(number, handler)
