"""Options of commands as a recipe has them: tables of TOML, as command lines and as the recipe of a build."""

import json
from pathlib import Path
from typing import Any

import click

from sacl_train.cli.evaluate import eval_main
from texturegen.builds import Recipe
from texturegen.cli import main as texturegen_main
from texturegen.cli.recipe_options import read_recipe
from texturegen.console import read_pairs
from texturegen.errors import UserError

# Flags that say no: --no-download.
_NEGATIONS = {flag for parameter in texturegen_main.commands["build"].params for flag in parameter.secondary_opts}


def make_flags(options: dict[str, Any]) -> list[str]:
    """Return options as command-line arguments.

    True becomes a bare flag, False the flag that says no, or nothing if there is none; a list repeats the flag, and a
    table repeats it with KEY=VALUE.
    """
    flags = []
    for key, value in options.items():
        name = key.replace("_", "-")
        flag = f"--{name}"
        if isinstance(value, dict):  # method_option, source_option
            flags += [text for k, v in value.items() for text in (flag, _make_pair(flag, k, v))]
        elif isinstance(value, list):
            flags += [text for item in value for text in (flag, str(item))]
        elif value is True:
            flags.append(flag)
        elif value is not False:
            flags += [flag, str(value)]
        elif f"--no-{name}" in _NEGATIONS:
            flags.append(f"--no-{name}")
    return flags


def _make_pair(flag: str, key: str, value: Any) -> str:
    """Return KEY=VALUE, as short as the command still reads the value from it: true for True, "12" for a text."""
    plain = f"{key}={value}"
    is_read = read_pairs(click.Context(click.Command(flag)), click.Option([flag]), (plain,)).get(key) == value
    return plain if is_read else f"{key}={json.dumps(value, ensure_ascii=False)}"


BUILD_TAKEN = ("out", "shard_range")  # options that a recipe chooses itself
PROBE_TAKEN = ("run", "encoder", "json")


def refuse_taken(options: dict[str, Any], taken: tuple[str, ...]) -> None:
    """Raise UserError for an option that a recipe chooses itself."""
    for name in taken:
        if name in options or name.replace("_", "-") in options:
            raise UserError(f"{name} is chosen by the recipe; leave it out")


def read_build(options: dict[str, Any]) -> tuple[Recipe, str | None]:
    """Return the recipe of a build and the folder of its images, as `texturegen build` reads them from its options.

    Parameters
    ----------
    options : dict
        Options of `texturegen build`, with underscores instead of hyphens.

    Raises
    ------
    UserError
        An option is unknown, missing, chosen by the recipe itself, or has a value of the wrong type.
    """
    refuse_taken(options, BUILD_TAKEN)
    build = texturegen_main.commands["build"]
    try:
        values = build.make_context("build", ["--out", ".", *make_flags(options)]).params
    except click.UsageError as error:
        raise UserError(error.format_message().rstrip(".")) from None
    fields = {
        name: value for name, value in values.items() if name in {"classes", "published", *Recipe.__dataclass_fields__}
    }
    return read_recipe(**fields), values["root"]


def evaluation(
    probe: str, run: Path, shards: dict[str, Path], tests: list[str], device: str, options: dict[str, Any]
) -> list[str]:
    """Return the command line of one evaluation.

    Parameters
    ----------
    probe : str
        Command of `sacl-eval`.
    run : Path
        Directory of the run.
    shards : dict of str to Path
        Set -> its directory.
    tests : list of str
        The test sets. A command that takes a single test set gets the first.
    device : str
        Device to evaluate on.
    options : dict
        Options of the recipe, which override all of these. The name of a set is replaced by its directory. The
        default stimuli are the set "conflict".
    """
    parameters = {flag: parameter for parameter in eval_main.commands[probe].params for flag in parameter.opts}
    accepted = parameters.keys()
    takes_many = getattr(parameters.get("--test-shards"), "multiple", False)
    defaults: dict[str, Any] = {"run": str(run), "shards": "train", "device": device}
    if probe == "embed":  # its --shards is another name of --images
        defaults = {"run": str(run), "device": device, "images": tests[0]}
    defaults |= {"test-shards": tests if takes_many else tests[0]}
    defaults |= {"stimuli": "conflict"} if "conflict" in shards else {}
    chosen = {key: value for key, value in defaults.items() if f"--{key}" in accepted}
    aliases = {"test": "test-shards", "train": "shards"}
    chosen |= {aliases.get(key, key.replace("_", "-")): value for key, value in options.items()}

    def resolve(value: Any) -> Any:
        if isinstance(value, list):
            return [resolve(item) for item in value]
        return str(shards[value]) if isinstance(value, str) and value in shards else value

    return ["sacl-eval", probe, *make_flags({key: resolve(value) for key, value in chosen.items()})]
