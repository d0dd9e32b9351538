"""Errors meant for people, and the nearest name for a misspelt one.

    UserError (ValueError)      a mistake the user can mend
    ├── BusyError               another process is at work in the directory
    ├── MissingError            a file, a shard, a checkpoint or a package is not there
    ├── DamagedError            bytes differ from what was written
    ├── OtherBuildError         the directory holds another build, or another run
    ├── ImageError              one image cannot be decoded; the others still can
    └── SourceLost              the files of a data set cannot be reached at all

Catch `UserError` for all of them; the classes below it are for callers that act on the difference.
"""

import difflib
from collections.abc import Iterable
from typing import Any


class UserError(ValueError):
    """A mistake the user can mend: the message says what is wrong, where, and what to do.

    The command lines print it as one line on stderr, without a traceback, and exit with status 1.
    """


class BusyError(UserError):
    """Another process is at work in the directory."""


class MissingError(UserError):
    """A file, a shard, a checkpoint or a package is not there."""


class DamagedError(UserError):
    """Bytes differ from what was written."""


class OtherBuildError(UserError):
    """The directory holds another build, or another run, than the one asked for."""


class ImageError(UserError):
    """One image of a data set cannot be decoded; the others still can.

    Attributes
    ----------
    key : of the image.
    reason : what is wrong with it.
    """

    def __init__(self, key: str, reason: str) -> None:
        super().__init__(f"{key}: {reason}")
        self.key = key
        self.reason = reason

    def __reduce__(self) -> tuple[Any, ...]:
        # An exception is pickled by its message alone unless told otherwise; this one crosses processes.
        return type(self), (self.key, self.reason)


class SourceLost(UserError):
    """The files of a data set cannot be reached. No image is at fault, so a build ends and records none."""


def nearest(name: str, names: Iterable[str]) -> str:
    """Return " (did you mean 'x'?)" for the name closest to `name`, or "" when none is close."""
    close = difflib.get_close_matches(name.lower(), list(names), n=1, cutoff=0.5)
    return f" (did you mean '{close[0]}'?)" if close else ""
