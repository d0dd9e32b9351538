"""Settings of a method: the keyword-only parameters of its function, annotated with their ranges.

def method(patches, size, seed, *, window: Annotated[int, Integer(3, 31, odd=True)] = 7): ...
"""

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, get_type_hints

import numpy as np

from texturegen.errors import UserError, nearest


@dataclass(frozen=True)
class Integer:
    """Integers in a range.

    Attributes
    ----------
    low, high : limits of the range, both included.
    odd : whether only odd numbers are allowed.
    automatic : whether None is allowed, for which the method chooses a value.
    """

    low: int
    high: int
    odd: bool = False
    automatic: bool = False

    def __str__(self) -> str:
        kind = "an odd integer" if self.odd else "an integer"
        return f"{kind} from {self.low} to {self.high}" + (", or None (automatic)" if self.automatic else "")

    def read(self, value: Any) -> int | None:
        """Return the value as a plain int; ValueError if it is not allowed."""
        if value is None and self.automatic:
            return None
        if not isinstance(value, (int, np.integer)) or isinstance(value, bool) or not self.low <= value <= self.high:
            raise ValueError
        if self.odd and value % 2 == 0:
            raise ValueError
        return int(value)


@dataclass(frozen=True)
class Real:
    """Real numbers from `low` to `high`, both included."""

    low: float
    high: float

    def __str__(self) -> str:
        return f"a number from {self.low} to {self.high}"

    def read(self, value: Any) -> float:
        """Return the value as a plain float; ValueError if it is not allowed."""
        if (
            not isinstance(value, (int, float, np.integer, np.floating))
            or isinstance(value, bool)
            or not math.isfinite(value)
        ):
            raise ValueError
        if not self.low <= value <= self.high:
            raise ValueError
        return float(value)


@dataclass(frozen=True)
class Choice:
    """One of several names."""

    names: tuple[str, ...]

    def __str__(self) -> str:
        return f"one of {', '.join(self.names)}"

    def read(self, value: Any) -> str:
        """Return the value; ValueError if it is not one of the names."""
        if not isinstance(value, str) or value not in self.names:
            raise ValueError
        return value


def resolve(name: str, function: Callable[..., Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Check the given settings of a method, and add the defaults of the others.

    Parameters
    ----------
    name : name of the method, for messages.
    function : the method.
    given : any of its settings.

    Raises
    ------
    UserError : a setting is unknown, or its value is out of range.
    """
    hints = get_type_hints(function, include_extras=True)
    parameters = inspect.signature(function).parameters.values()
    settings = {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}
    for key, value in given.items():
        if key not in settings:
            raise UserError(
                f"method '{name}' has no setting '{key}'{nearest(key, settings)}; settings: {', '.join(settings)}"
            )
        (domain,) = hints[key].__metadata__
        try:
            settings[key] = domain.read(value)
        except ValueError:
            raise UserError(f"setting '{key}' of method '{name}' must be {domain}, not {value!r}") from None
    return settings
