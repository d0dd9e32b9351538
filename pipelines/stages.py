"""What has been done from what: a stage is done when its output is there and nothing that decides it has changed.

What decides is the resolved settings and the contents of the shards; not paths, devices, threads or versions. What is
there of other settings is never removed: it is moved aside, to NAME.old-1, NAME.old-2 and so on.
"""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from texturegen.console import warn
from texturegen.errors import UserError
from texturegen.storage.atomic import write_json


def decides_run(settings: dict[str, Any], digest: str) -> dict[str, Any]:
    """All that decides a run of `sacl-train`: its settings, each with its default, and the digest of its shards.

    UserError for settings that are none.
    """
    from sacl_train.config import load_config
    from sacl_train.training.resume import comparable

    return {"settings": comparable(load_config(None, settings)), "shards": digest}


def digest_shards(directory: str | Path) -> str:
    """One value that changes when any byte of the shards does."""
    from texturegen.shards import open_shards

    return open_shards(directory).digest


def digest_folder(directory: str | Path) -> str:
    """One value that changes when the names or contents of the files in a folder do."""
    found = hashlib.sha256()
    for path in sorted(Path(directory).rglob("*")):
        if path.is_file():
            found.update(f"{path.relative_to(directory)}\n{hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    return found.hexdigest()


def is_done(record: Path, run: dict[str, Any], what: Any, outputs: list[Path]) -> bool:
    """Whether `record` says that `outputs`, all of them there, were made of `run` (see `decides_run`) by `what`."""
    try:
        found = json.loads(record.read_text())
        same = _same_run(found["run"], run) and found["what"] == _as_json(what)
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return same and all(path.is_file() for path in outputs)


def job_devices(device: str, jobs: int) -> list[str]:
    """The device of each of the jobs that run at once: of "cuda:0,cuda:1" by turns, and a job for each at the least."""
    devices = [name.strip() for name in device.split(",")]
    return [devices[number % len(devices)] for number in range(max(jobs, len(devices)))]


def record_done(record: Path, run: dict[str, Any], what: Any) -> None:
    """Write what `is_done` asks for."""
    write_json(record, {"run": run, "what": _as_json(what)})


def claim_run(directory: Path, settings: dict[str, Any], shards: str | Path) -> None:
    """Make `directory` free for the run of these settings on these shards, or find it there, begun or finished.

    Another run is moved aside; one that was moved aside before, and is the one that is asked for, is moved back.
    """
    if directory.exists() and _holds(directory, settings, shards) is False:
        set_aside(directory)
    if not directory.exists():
        for old in directory.parent.glob(f"{directory.name}.old-*"):
            if _holds(old, settings, shards):
                old.rename(directory)
                warn(f"{old} is the run that is asked for: moved back to {directory.name}")
                return


def set_aside(path: Path) -> Path:
    """Move a directory or file of other settings to PATH.old-N, say so, and return where it is now."""
    number = 1
    while (aside := path.with_name(f"{path.name}.old-{number}")).exists():
        number += 1
    path.rename(aside)
    warn(f"{path}: made with other settings or data; kept as {aside.name}, and made anew")
    return aside


def build_shards(
    out: Path,
    options: dict[str, Any],
    root: str | None,
    make: Callable[[], None],
    skip: Callable[[], None],
) -> None:
    """Have `out` hold the build of these options of `texturegen build`: `skip` where it does, else `make`.

    Another build is moved aside first. A finished one of another version of this package is taken as it is.
    """
    from texturegen.builds.recipe import Recipe, make_plan
    from texturegen.shards.layout import BUILD, PARTS

    finished = (out / BUILD).is_file()
    begun = out / BUILD if finished else out / PARTS / "recipe.json"
    if begun.is_file():
        names = {"source_option": "source_options", "method_option": "settings"}
        chosen: dict[str, Any] = {names.get(key, key): value for key, value in options.items()}
        if "classes" in chosen:
            chosen["source_options"] = {**chosen.get("source_options", {}), "classes": str(chosen["classes"])}
        recipe = Recipe(**{key: value for key, value in chosen.items() if key in Recipe.__dataclass_fields__})
        asked = _as_json(make_plan(recipe, root)[0].describe())
        if finished:
            del asked["texturegen"]
        try:
            there = json.loads(begun.read_text())
        except ValueError:
            raise UserError(f"{begun}: damaged; remove {out}") from None
        if any(there.get(key) != value for key, value in asked.items()):
            set_aside(out)
        elif finished:
            skip()
            return
    make()


def _holds(directory: Path, settings: dict[str, Any], shards: str | Path) -> bool | None:
    """Whether a directory's checkpoint is of this run; None where it has none."""
    from sacl_train.config import load_config
    from sacl_train.training.checkpoint import load_checkpoint
    from sacl_train.training.resume import refuse_other_run
    from sacl_train.training.setup import resolve
    from texturegen.shards import open_shards

    state = load_checkpoint(directory)
    if state is None:
        return None
    opened = open_shards(shards)
    config = resolve(load_config(None, settings), opened, state)
    try:
        refuse_other_run(directory, state, config, opened.digest)
    except UserError:
        return False
    return True


def _same_run(there: dict[str, Any], mine: dict[str, Any]) -> bool:
    """Settings that are newer than the record had their default there: an upgrade does not undo what is done."""
    from sacl_train.config import load_config
    from sacl_train.training.resume import comparable

    if there == mine:
        return True
    try:
        return (
            there["shards"] == mine["shards"] and comparable(load_config(None, there["settings"])) == mine["settings"]
        )
    except UserError:
        return False


def _as_json(content: Any) -> Any:
    """As it is when it has been read from a file."""
    return json.loads(json.dumps(content))
