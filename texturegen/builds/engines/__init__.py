"""Engines, which run the jobs of a build. `ENGINES` is the registry; an entry loads its module on first use.

To add an engine, write a function like `base.Engine` in its own module and add it to ENGINES.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from importlib import import_module

from texturegen.builds.engines.base import ATTEMPTS, Engine, Job, Lost, Outcome, Progress, Stopped, Tick
from texturegen.errors import UserError, nearest

__all__ = [
    "ATTEMPTS",
    "ENGINES",
    "Engine",
    "Entry",
    "Job",
    "Lost",
    "Outcome",
    "Progress",
    "Stopped",
    "Tick",
    "find_engine",
]


@dataclass(frozen=True)
class Entry:
    """An engine in the registry.

    Attributes
    ----------
    location : str
        "module:function" in this package.
    help : str
        What it runs on, in a few words.
    options : tuple of str
        Names of keyword arguments it takes besides those of `Engine`.
    """

    location: str
    help: str
    options: tuple[str, ...] = ()

    def load(self) -> Engine:
        """Import the engine's module and return its function."""
        module, function = self.location.split(":")
        engine: Engine = getattr(import_module(f"{__name__}.{module}"), function)
        return engine


ENGINES: dict[str, Entry] = {
    "processes": Entry("processes:run_in_processes", "processes of this machine"),
    "ray": Entry("ray:run_on_ray", "tasks on a Ray cluster", options=("address",)),
}


def find_engine(name: str, options: Iterable[str] = ()) -> Entry:
    """Return the entry of engine `name`; raise UserError for an unknown name or option."""
    if name not in ENGINES:
        raise UserError(f"unknown engine '{name}'{nearest(name, ENGINES)}; engines: {', '.join(ENGINES)}")
    entry = ENGINES[name]
    for option in options:
        if option not in entry.options:
            takers = [other for other, known in ENGINES.items() if option in known.options]
            where = f"; it belongs to {', '.join(takers)}" if takers else ""
            raise UserError(f"engine '{name}' has no option '{option}'{where}")
    return entry
