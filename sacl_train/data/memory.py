"""Memory budget of a process for decoded images."""

import math
import os
from pathlib import Path

from texturegen.system.control_groups import control_groups, read_number

CACHE_FRACTION = 0.5  # of the available memory; the rest is for the step and for other programs
DEFAULT_BYTES = 8e9  # used if the system does not report available memory


def cache_budget() -> float:
    """Return this process's limit in bytes: half the available memory, divided among torchrun's local processes."""
    return CACHE_FRACTION * available_memory() / int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def available_memory(proc: Path = Path("/proc/meminfo"), groups: list[Path] | None = None) -> float:
    """Return the bytes available without swapping, within the limits of the machine and all control groups.

    Parameters
    ----------
    proc : Path
        Linux's meminfo. Other systems use the number of free pages, or 8 GB if that is unknown.
    groups : list of Path, or None
        Directories of the control groups (a container, a Slurm job); None finds them.
    """
    groups = control_groups("memory") if groups is None else groups
    return max(min([_machine_memory(proc), *(_group_memory(group) for group in groups)]), 0)


def _group_memory(group: Path) -> float:
    """Return the bytes left in a control group (version 2 or 1); infinity if it has no limit."""
    limit, used = (read_number(group / name) for name in ("memory.max", "memory.current"))
    if limit is None or used is None:
        limit, used = (read_number(group / f"memory.{name}_in_bytes") for name in ("limit", "usage"))
    if limit is None or used is None:
        return math.inf
    try:
        statistics = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        # The group's usage includes the page cache, which the kernel drops when memory is needed; but files in
        # /dev/shm, which count there too, it cannot drop.
        for cache, kept in (("file", "shmem"), ("total_cache", "total_shmem")):
            if cache in statistics:
                used -= int(statistics[cache]) - int(statistics.get(kept, 0))
                break
    except (OSError, ValueError, KeyError):
        pass
    return limit - used


def _machine_memory(proc: Path) -> float:
    try:
        lines = (line.split() for line in proc.read_text().splitlines())
        return 1024 * next(int(line[1]) for line in lines if line[0] == "MemAvailable:")
    except (OSError, ValueError, StopIteration):
        pass
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, AttributeError):
        return DEFAULT_BYTES
