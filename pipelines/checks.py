"""Checks of a recipe before its first image is built: what else would fail after hours of building and training."""

from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pipelines.options import PROBE_TAKEN, evaluation, read_build, refuse_taken
from pipelines.recipe import Journey
from sacl_train.cli.evaluate import eval_main
from texturegen.console import warn
from texturegen.errors import MissingError, UserError
from texturegen.sources import SOURCES

if TYPE_CHECKING:
    from texturegen.builds.recipe import Plan

PLACES = ("shards", "train", "test", "test_shards", "images", "ood", "stimuli")  # options of probes that name images


def check_journey(journey: Journey, root: str | None, devices: list[str]) -> dict[str, "Plan | None"]:
    """Check all sections of a recipe, and the images of all its sets.

    Parameters
    ----------
    journey : Journey
        The recipe.
    root : str or None
        Directory of the images of sets that name none.
    devices : list of str
        Devices to train on.

    Returns
    -------
    dict of str to Plan or None
        The plan of each set's build, which took a reading of its official checksums, or of the labels in its tars; None
        for a set whose images are still to be downloaded.

    Raises
    ------
    UserError
        A section has an invalid value, or a data set is missing or has other classes than the one it is tested with.
    """
    _check_runs(journey, devices)
    _say_ignored_root(journey, root)
    plans = {name: _check_set(journey, name, root) for name in journey.sets}
    sources = {name: None if plan is None else plan.source for name, plan in plans.items()}
    _check_alike(journey, sources)
    for probe, options in journey.probes.items():
        _check_probe(journey, probe, options, sources)
    return plans


def _check_runs(journey: Journey, devices: list[str]) -> None:
    from sacl_train.config import load_config
    from sacl_train.training.setup import choose_device

    has_textures = journey.sets["train"].get("per_image", 1) != 0
    for name, settings in journey.runs.items():
        where = f"{journey.name}: [runs.{name}]"
        try:
            config = load_config(None, settings)
        except UserError as error:
            raise UserError(f"{where}: {error}") from None
        if config.reads_textures and not has_textures:
            role = config.method_settings.texture_role
            raise UserError(f"{where}: texture_role {role} needs textures, but [sets.train] has per_image = 0")
    for device in devices:
        choose_device(device)
    if "corruption" in journey.probes:
        from sacl_train.evaluate.corruption import load_corruptions

        load_corruptions()  # its package may be missing


def _say_ignored_root(journey: Journey, root: str | None) -> None:
    """Say which sets --root does not apply to: a set's own root comes first."""
    own = [name for name, options in journey.sets.items() if "root" in options]
    if root is not None and own:
        warn(f"--root {root} does not apply to {', '.join(own)}: {journey.name} names their root, which comes first")


def _check_set(journey: Journey, name: str, root: str | None) -> "Plan | None":
    """Return the plan of a set's build; None if its images are still to be downloaded."""
    from texturegen.builds.recipe import make_plan

    try:
        recipe, own = read_build(journey.sets[name])
        entry = SOURCES.get(recipe.dataset)
        place = own or (root if entry and entry.needs_root else None)
        try:
            return make_plan(recipe, place)[0]
        except MissingError:
            if entry is None or not entry.official or place is not None:
                raise
            return None
    except UserError as error:
        raise UserError(f"{journey.name}: [sets.{name}]: {error}") from None


def _check_alike(journey: Journey, sources: dict[str, dict[str, Any] | None]) -> None:
    """Warn of test sets that are the training images."""
    train = sources["train"]
    for name, source in sources.items():
        if name != "train" and train is not None and source is not None and source["digest"] == train["digest"]:
            warn(f"{journey.name}: the sets train and {name} have the same images; scores on {name} mean little")


def _check_probe(
    journey: Journey, probe: str, options: dict[str, Any], sources: dict[str, dict[str, Any] | None]
) -> None:
    """Check the command line of a probe, that its images exist, and that its sets have the classes of the training."""
    where = f"{journey.name}: [evaluate.{probe}]"
    shards = {name: Path(name) for name in journey.sets}
    line = evaluation(probe, Path("."), shards, journey.tests, "cpu", options)
    try:
        refuse_taken(options, PROBE_TAKEN)
        eval_main.commands[probe].make_context(probe, line[2:])
    except click.UsageError as error:
        raise UserError(f"{where}: {error.format_message().rstrip('.')}") from None
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
    for key in PLACES:
        named = options.get(key, [])
        for place in [named] if isinstance(named, str) else named:
            known = place in shards or "://" in place or place.partition(":")[0] in SOURCES
            if not known and not Path(place).exists():
                raise UserError(f"{where}: {key} is {place!r}, which is neither a set of the recipe nor a folder")
    train = sources["train"]
    tests = [value for flag, value in pairwise(line) if flag == "--test-shards"]
    for name in tests:
        source = sources.get(name)
        if source is not None and train is not None and source["classes"] != train["classes"]:
            raise UserError(
                f"{where}: the classes of set {name} ({_list(source['classes'])}) are not those of set train "
                f"({_list(train['classes'])}); choose its test sets with `test`"
            )


def _list(classes: list[str]) -> str:
    return ", ".join(classes[:3]) + (", ..." if len(classes) > 3 else "") or "none"
