"""The damaged samples of a stream: counted, named in warnings, and a reason to stop if there are too many."""

import threading
from collections.abc import Iterator

from texturegen.console import warn
from texturegen.errors import DamagedError
from texturegen.shards import Shards

MAX_WARNINGS = 10  # damaged samples named on stderr; RUN/damaged.txt lists all


class DamagedSamples:
    """The samples that could not be read so far. Threads may add to them while others read them.

    Parameters
    ----------
    shards : Shards
        The data.
    bad_share : float
        Fraction of the samples that may be damaged, 0 to 1.
    """

    def __init__(self, shards: Shards, bad_share: float) -> None:
        self._shards, self._max = shards, bad_share * len(shards)
        self._messages: dict[int, str] = {}  # index of the sample -> error message
        self._lock = threading.Lock()

    def __contains__(self, index: int) -> bool:
        return index in self._messages

    def __iter__(self) -> Iterator[int]:
        """Iterate over the indices of the samples."""
        return iter(self.found())

    def isdisjoint(self, indices: list[int]) -> bool:
        """Return True if none of `indices` is damaged."""
        return self._messages.keys().isdisjoint(indices)

    def found(self) -> dict[int, str]:
        """Return the index of each sample and its error message."""
        with self._lock:
            return dict(self._messages)

    def note(self, index: int, message: str) -> None:
        """Add a sample and warn of it; raise DamagedError if the total exceeds `bad_share`."""
        with self._lock:
            self._messages[index] = message
            self._check()
            count = len(self._messages)
        if count <= MAX_WARNINGS:
            note = "; further damaged samples are only counted" if count == MAX_WARNINGS else ""
            warn(f"skipped: {message}{note}")

    def add(self, damaged: dict[int, str]) -> None:
        """Add what other processes found; raise DamagedError if the total exceeds `bad_share`."""
        with self._lock:
            self._messages.update(damaged)
            self._check()

    def none_left(self) -> DamagedError:
        """Return the error for an epoch all of whose samples are damaged, although `bad_share` allows as many."""
        return self._error("all that are trained on")

    def _check(self) -> None:
        if len(self._messages) > self._max:
            raise self._error("more than bad_share allows")

    def _error(self, reason: str) -> DamagedError:
        return DamagedError(
            f"{self._shards.directory}: {len(self._messages)} of {len(self._shards)} samples are damaged, {reason}; "
            f"the last one: {list(self._messages.values())[-1]}; run `texturegen repair` to rebuild their shards"
        )
