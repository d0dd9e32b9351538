"""How much memory this process may fill with decoded images."""

import os
from pathlib import Path

SHARE = 0.5  # of what is available: the rest is for the step, and for what else runs here
UNKNOWN = 8e9  # bytes, where the system does not say


def cache_budget() -> float:
    """Bytes: half of the memory that is available now, by equal parts to the processes that torchrun started here."""
    return SHARE * available_memory() / int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def available_memory(proc: Path = Path("/proc/meminfo"), group: Path = Path("/sys/fs/cgroup")) -> float:
    """Bytes that can be had without swapping, in the machine and in the control group (a container, a Slurm job).

    What the system says of the machine otherwise; 8 GB where it says nothing.
    """
    free = _of_machine(proc)
    try:
        statistics = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        # Files read lately are counted as used, but are dropped for whoever needs the memory.
        used = int((group / "memory.current").read_text()) - int(statistics["file"])
        return max(min(free, int((group / "memory.max").read_text()) - used), 0)
    except (OSError, ValueError, KeyError):  # no such group, or "max"
        return free


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
