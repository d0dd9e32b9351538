"""Errors meant for people, and the nearest name for a misspelt one."""

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """A mistake the user can mend: its message says what was wrong, where, and what to do.

    The command lines print it as one line on stderr, without a traceback, and exit with status 1.
    """


def nearest(name: str, names: Iterable[str]) -> str:
    """Return " (did you mean 'x'?)" for the name closest to `name`, or "" when none is close."""
    close = difflib.get_close_matches(name.lower(), list(names), n=1, cutoff=0.5)
    return f" (did you mean '{close[0]}'?)" if close else ""
