"""How much memory this process may fill with decoded images."""

import math
import os
from pathlib import Path

from texturegen.system.control_groups import control_groups, read_number

SHARE = 0.5  # of what is available: the rest is for the step, and for what else runs here
UNKNOWN = 8e9  # bytes, where the system does not say


def cache_budget() -> float:
    """Bytes: half of the memory that is available now, by equal parts to the processes that torchrun started here."""
    return SHARE * available_memory() / int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def available_memory(proc: Path = Path("/proc/meminfo"), groups: list[Path] | None = None) -> float:
    """Bytes that can be had without swapping, in the machine and in all control groups (a container, a Slurm job).

    What the system says of the machine otherwise; 8 GB where it says nothing.
    """
    groups = control_groups("memory") if groups is None else groups
    return max(min([_of_machine(proc), *(_of_group(group) for group in groups)]), 0)


def _of_group(group: Path) -> float:
    """What a control group (version 2 or 1) leaves; infinite without a limit."""
    limit, used = (read_number(group / name) for name in ("memory.max", "memory.current"))
    if limit is None or used is None:
        limit, used = (read_number(group / f"memory.{name}_in_bytes") for name in ("limit", "usage"))
    if limit is None or used is None:
        return math.inf
    try:
        statistics = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        # Files read lately are counted as used, but are dropped for whoever needs the memory.
        used -= int(statistics.get("file") or statistics["total_cache"])
    except (OSError, ValueError, KeyError):
        pass
    return limit - used


def _of_machine(proc: Path) -> float:
    try:
        lines = (line.split() for line in proc.read_text().splitlines())
        return 1024 * next(int(line[1]) for line in lines if line[0] == "MemAvailable:")
    except (OSError, ValueError, StopIteration):
        pass
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, AttributeError):
        return UNKNOWN
