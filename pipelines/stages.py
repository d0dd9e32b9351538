"""Track finished stages of a pipeline, and set aside directories with other results.

A stage is done when its outputs exist and everything that determines them is unchanged: the resolved settings and the
contents of the shards, but not paths, devices, threads or versions. A directory with results of other settings is
never removed, but renamed to NAME.old-1, NAME.old-2 and so on.
"""

import hashlib
import json
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.options import read_build
from texturegen.console import warn
from texturegen.errors import DamagedError, UserError
from texturegen.sources.files import walk
from texturegen.storage.atomic import read_json, write_json
from texturegen.storage.lock import LOCK, DirectoryLock
from texturegen.storage.sealed import is_intact

if TYPE_CHECKING:
    from texturegen.builds.recipe import Plan


def describe_run(settings: dict[str, Any], digest: str) -> dict[str, Any]:
    """Describe everything that determines the result of a run of `sacl-train`.

    Parameters
    ----------
    settings : dict
        Settings of the run; missing ones have their defaults.
    digest : str
        Digest of its training shards, see `digest_shards`.

    Returns
    -------
    dict
        JSON content, which is equal for two runs with the same result.

    Raises
    ------
    UserError
        A setting is unknown or has an invalid value.
    """
    from sacl_train.config import load_config
    from sacl_train.training.resume import comparable

    return {"settings": comparable(load_config(None, settings)), "shards": digest}


def digest_shards(directory: str | Path) -> str:
    """Return a digest that changes with any byte of the shards in a directory."""
    from texturegen.shards import open_shards

    return open_shards(directory).digest


def digest_folder(directory: str | Path) -> str:
    """Return a digest that changes with the name or the content of any file in a folder, hidden files aside.

    Links are followed, as where the images are read.
    """
    digest = hashlib.sha256()
    for path in sorted(Path(path) for path, kind in walk(directory) if kind == "file"):
        content = hashlib.sha256((directory / path).read_bytes()).hexdigest()
        digest.update(os.fsencode(path) + f"\n{content}\n".encode())  # a name may not be UTF-8
    return digest.hexdigest()


def is_done(record: Path, run: dict[str, Any], inputs: Any, outputs: list[Path]) -> bool:
    """Return True if a stage is done: all outputs exist undamaged, and `mark_done` recorded the same run and inputs.

    Parameters
    ----------
    record : Path
        File that `mark_done` writes.
    run : dict
        The run that the stage evaluates, from `describe_run`; empty for a stage without a run.
    inputs : JSON content
        Everything else that determines the outputs.
    outputs : list of Path
        Files that the stage writes; JSON that carries a checksum is compared with it.
    """
    try:
        content = json.loads(record.read_text())
        same = _is_same_run(content["run"], run) and content["what"] == _as_json(inputs)
        return same and all(path.is_file() and _is_undamaged(path) for path in outputs)
    except (OSError, ValueError, KeyError, TypeError, DamagedError):
        return False


def _is_undamaged(path: Path) -> bool:
    return path.suffix != ".json" or is_intact(read_json(path))


def mark_done(record: Path, run: dict[str, Any], inputs: Any) -> None:
    """Record that a stage is done; see `is_done`."""
    write_json(record, {"run": run, "what": _as_json(inputs)})


def assign_devices(device: str, jobs: int) -> list[str]:
    """Assign a device to each parallel job.

    Parameters
    ----------
    device : str
        A device, or several separated by commas: "cuda:0,cuda:1".
    jobs : int
        Number of parallel jobs; there is at least one per device.

    Returns
    -------
    list of str
        One device per job, assigned round-robin.
    """
    devices = [name.strip() for name in device.split(",")]
    return [devices[number % len(devices)] for number in range(max(jobs, len(devices)))]


def claim_run(directory: Path, settings: dict[str, Any], shards: str | Path) -> None:
    """Prepare `directory` for a run: afterwards it holds this run, finished or not, or does not exist.

    A different run in it is set aside. If this run was set aside earlier, it is moved back.

    Raises
    ------
    BusyError
        Another process is training the run to be set aside.
    """
    if directory.exists() and _holds_run(directory, settings, shards) is False:
        from sacl_train.training import checkpoint

        set_aside(directory, checkpoint.LOCK)
    if not directory.exists():
        for old in directory.parent.glob(f"{directory.name}.old-*"):
            with suppress(DamagedError):  # its checkpoints: a run that was set aside must not stop another
                if _holds_run(old, settings, shards):
                    old.rename(directory)
                    warn(f"{old} holds the requested run: moved back to {directory.name}")
                    return


def set_aside(directory: Path, lock: str = LOCK) -> Path:
    """Rename a directory that holds other settings to DIRECTORY.old-N, and warn.

    Parameters
    ----------
    directory : Path
        The directory.
    lock : str
        Name of the lock file that processes hold while they work in it.

    Returns
    -------
    Path
        The new path.

    Raises
    ------
    BusyError
        Another process is working in it, and would continue to write to the renamed directory.
    """
    with DirectoryLock(directory, "renaming", create=False, name=lock) as held:
        number = 1
        while (aside := directory.with_name(f"{directory.name}.old-{number}")).exists():
            number += 1
        directory.rename(aside)
        held.directory = aside
    warn(f"{directory} was made with other settings or data: renamed to {aside.name}; rebuilding")
    return aside


def build_shards(
    out: Path,
    options: dict[str, Any],
    make: Callable[[], None],
    skip: Callable[[], None],
    plan: "Plan | None" = None,
) -> None:
    """Build shards in `out`, unless it already holds them.

    A build with other options in `out` is set aside first. A finished build by another version of this package counts
    as done.

    Parameters
    ----------
    out : Path
        Shard directory.
    options : dict
        Options of `texturegen build`, with underscores instead of hyphens, `root` among them.
    make, skip : callable
        Called to run the build, or to report that it is already done.
    plan : Plan, optional
        The plan of the options; otherwise made here if `out` holds a build, which may read the whole data set.

    Raises
    ------
    BusyError
        Another process is running the build to be set aside.
    DamagedError
        The description of the build in `out` cannot be read.
    """
    from texturegen.builds.directory import RECIPE
    from texturegen.builds.recipe import make_plan
    from texturegen.shards.build_json import read_build as read_build_json
    from texturegen.shards.layout import BUILD, PARTS

    finished = (out / BUILD).is_file()
    description = out / BUILD if finished else out / PARTS / RECIPE
    if description.is_file():
        plan = plan or make_plan(*read_build(options))[0]
        try:
            present = read_build_json(out) if finished else read_json(description)
        except DamagedError as error:
            raise DamagedError(f"{error}; remove {out} and run the command again") from None
        if not plan.matches(present):
            set_aside(out)
        elif finished:
            skip()
            return
    make()


def _holds_run(directory: Path, settings: dict[str, Any], shards: str | Path) -> bool | None:
    """Return True if the checkpoint in a directory belongs to this run; None if there is no checkpoint."""
    from sacl_train.config import load_config
    from sacl_train.training.checkpoint import load_checkpoint
    from sacl_train.training.resume import refuse_other_run
    from sacl_train.training.setup import choose_device, resolve
    from texturegen.shards import open_shards

    state = load_checkpoint(directory)
    if state is None:
        return None
    opened = open_shards(shards)
    config = load_config(None, settings)
    config = resolve(config, opened, choose_device(config.device), state)
    try:
        refuse_other_run(directory, state, config, opened.digest)
    except UserError:
        return False
    return True


def _is_same_run(recorded: dict[str, Any], wanted: dict[str, Any]) -> bool:
    """Compare two runs; settings that did not exist when the record was written count as their defaults."""
    from sacl_train.config import load_config
    from sacl_train.training.resume import comparable

    if recorded == wanted:
        return True
    try:
        settings = comparable(load_config(None, recorded["settings"]))
        return recorded["shards"] == wanted["shards"] and settings == wanted["settings"]
    except UserError:
        return False


def _as_json(content: Any) -> Any:
    """Return content as it would be read back from a JSON file: tuples as lists, keys as strings."""
    return json.loads(json.dumps(content))
