"""The control groups of this process: what a container or a Slurm job may use of its machine."""

from pathlib import Path

PROC, MOUNT = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")


def control_groups(controller: str, proc: Path = PROC, mount: Path = MOUNT) -> list[Path]:
    """Directories of the groups that limit this process, its own first; a limit of any of them holds.

    controller: "memory" or "cpu", which version 1 has hierarchies of their own for. Empty where there are no groups.
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
        # A container may see the path of its group as it is outside, where it cannot look.
        parts = [part for part in path.split("/") if part not in ("", "..")]
        found += [top.joinpath(*parts[:count]) for count in range(len(parts), -1, -1)]
    return [group for group in found if group.is_dir()]


def read_number(path: Path) -> int | None:
    """The number that stands in a file of a group; None where there is none, or "max"."""
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None
