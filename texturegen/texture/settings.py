"""The settings of a method are the keyword-only parameters of its function; their ranges are their annotations.

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
    """A whole number from low to high, odd if asked; None as well where the method then chooses for itself."""

    low: int
    high: int
    odd: bool = False
    automatic: bool = False

    def __str__(self) -> str:
        kind = "an odd whole number" if self.odd else "a whole number"
        return f"{kind} from {self.low} to {self.high}" + (", or None (automatic)" if self.automatic else "")

    def read(self, value: Any) -> int | None:
        if value is None and self.automatic:
            return None
        if not isinstance(value, (int, np.integer)) or isinstance(value, bool) or not self.low <= value <= self.high:
            raise ValueError
        if self.odd and value % 2 == 0:
            raise ValueError
        return int(value)


@dataclass(frozen=True)
class Real:
    """A real number from low to high."""

    low: float
    high: float

    def __str__(self) -> str:
        return f"a number from {self.low} to {self.high}"

    def read(self, value: Any) -> float:
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
    """One of some names."""

    names: tuple[str, ...]

    def __str__(self) -> str:
        return f"one of {', '.join(self.names)}"

    def read(self, value: Any) -> str:
        if not isinstance(value, str) or value not in self.names:
            raise ValueError
        return value


def resolve(name: str, function: Callable[..., Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Return all settings of the method `name`: those given, checked, and the function's defaults for the rest."""
    hints = get_type_hints(function, include_extras=True)
    parameters = inspect.signature(function).parameters.values()
    settings = {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}
    for key, value in given.items():
        if key not in settings:
            raise UserError(
                f"method '{name}' has no setting '{key}'{nearest(key, settings)}; it has {', '.join(settings)}"
            )
        (domain,) = hints[key].__metadata__
        try:
            settings[key] = domain.read(value)
        except ValueError:
            raise UserError(f"setting '{key}' of method '{name}' must be {domain}, not {value!r}") from None
    return settings
