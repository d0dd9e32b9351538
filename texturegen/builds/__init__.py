"""Builds: from a recipe to a shard directory.

A recipe gives a plan on its data set; the plan gives one job per shard; an engine runs the jobs; `BuildDirectory` holds
the state on disk. Names are loaded on first use, because they import Arrow.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from texturegen.builds.recipe import Recipe
    from texturegen.builds.run import Result, build, finish

__all__ = ["Recipe", "Result", "build", "finish"]

_LOCATION = {"Recipe": "recipe", "Result": "run", "build": "run", "finish": "run"}


def __getattr__(name: str) -> Any:
    if name not in _LOCATION:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_LOCATION[name]}"), name)
