"""Control groups of this process, which hold the limits of a container or a Slurm job."""

from pathlib import Path

PROC, MOUNT = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")


def control_groups(controller: str, proc: Path = PROC, mount: Path = MOUNT) -> list[Path]:
    """Return the directories of the control groups that limit this process, from its own to the root.

    The strictest of their limits applies.

    Parameters
    ----------
    controller : "memory" or "cpu"; version 1 of control groups has a separate hierarchy for each.
    proc, mount : the file in which the kernel lists the groups, and their mount point.

    Returns
    -------
    list of Path : empty if there are no control groups.
    """
    try:
        lines = [line.split(":", 2) for line in proc.read_text().splitlines()]
    except (OSError, UnicodeDecodeError):
        return []
    found = []
    for number, controllers, path in (line for line in lines if len(line) == 3):
        if number == "0" and not controllers:
            top = mount
        elif controller in controllers.split(","):
            top = mount / (controllers if (mount / controllers).is_dir() else controller)
        else:
            continue
        # In a container, the path may be relative to a root that the container cannot see.
        parts = [part for part in path.split("/") if part not in ("", "..")]
        found += [top.joinpath(*parts[:count]) for count in range(len(parts), -1, -1)]
    return [group for group in found if group.is_dir()]


def read_number(path: Path) -> int | None:
    """Return the number in a file of a control group; None if the file is missing or says "max"."""
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None
