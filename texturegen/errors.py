"""The exceptions of the project.

    UserError (ValueError)      an error the user can correct
    ├── BusyError               another process is using the directory
    ├── MissingError            a file, shard, checkpoint or package is missing
    │   └── MissingExtra        packages of an optional part of the installation (also an ImportError)
    ├── DamagedError            bytes differ from what was written
    ├── OtherBuildError         the directory holds a different build or run
    ├── ImageError              one image cannot be decoded; the others can
    └── SourceLost              the files of a data set cannot be reached

Catch `UserError` for all of them, and the subclasses to tell them apart.
"""

import difflib
from collections.abc import Iterable
from typing import Any


class UserError(ValueError):
    """An error the user can correct; the message says what is wrong, where, and what to do.

    Commands print it as one line on stderr, without a traceback, and exit with status 1. Control characters, which come
    from names of files and values in them, are escaped in the message.
    """

    def __str__(self) -> str:
        return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in super().__str__())


class BusyError(UserError):
    """Another process is using the directory."""


class MissingError(UserError):
    """A file, shard, checkpoint or package is missing."""


class MissingExtra(MissingError, ImportError):
    """Packages of an optional part of the installation are missing; the message says how to install them."""


class DamagedError(UserError):
    """Bytes differ from what was written."""


class OtherBuildError(UserError):
    """The directory holds a different build or run than the one requested."""


class ImageError(UserError):
    """One image of a data set cannot be decoded; the others can.

    Attributes
    ----------
    key : key of the image.
    reason : what is wrong with it.
    """

    def __init__(self, key: str, reason: str) -> None:
        super().__init__(f"{key}: {reason}")
        self.key = key
        self.reason = reason

    def __reduce__(self) -> tuple[Any, ...]:
        # By default an exception is unpickled from its message alone, which does not fit this constructor.
        return type(self), (self.key, self.reason)


class SourceLost(UserError):
    """The files of a data set cannot be reached; a build stops and blames no image."""


def nearest(name: str, names: Iterable[str]) -> str:
    """Return " (did you mean 'x'?)" for the closest of `names`, or "" if none is close."""
    close = difflib.get_close_matches(name.lower(), list(names), n=1, cutoff=0.5)
    return f" (did you mean '{close[0]}'?)" if close else ""
