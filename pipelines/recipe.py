"""Recipes: one TOML file per data set, from images to figures.

[build]          options of `texturegen build` for every set (dataset, method, size, seed, ...)
[sets.NAME]      a shard directory: further options; `train` is the training set, the others are test sets
[train]          settings of `sacl-train` for every run (sacl_train/config.py)
[runs.NAME]      a run: further settings, such as `texture_role`
[evaluate.NAME]  options of `sacl-eval NAME`, except `report`, which always runs; a set's name stands for its shards
"""

import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sacl_train.cli.evaluate import eval_main
from texturegen.errors import MissingError, UserError, nearest

HERE = Path(__file__).parent
SECTIONS = ("build", "sets", "train", "runs", "evaluate")


@dataclass(frozen=True)
class Journey:
    """A parsed recipe.

    Attributes
    ----------
    name : str
        Stem of the TOML file.
    sets : dict
        Set -> options of `texturegen build`.
    runs : dict
        Run -> settings of `sacl-train`.
    probes : dict
        Command of `sacl-eval` -> its options.
    """

    name: str
    sets: dict[str, dict[str, Any]]
    runs: dict[str, dict[str, Any]]
    probes: dict[str, dict[str, Any]]

    @property
    def tests(self) -> list[str]:
        """Names of the test sets."""
        return [name for name in self.sets if name != "train"]


def load_recipe(name: str, changes: dict[str, Any]) -> Journey:
    """Read a recipe.

    Parameters
    ----------
    name : str
        Name of a recipe that comes with the package, or the path of a TOML file.
    changes : dict
        "SECTION.KEY" -> value, which overrides the file's.

    Returns
    -------
    Journey
        The recipe, with the options of [build] and [train] merged into every set and run.

    Raises
    ------
    MissingError
        There is no such recipe.
    UserError
        A section, a command or an option is unknown, or a required one is missing.
    """
    path = _find(name)
    try:
        content = tomllib.loads(path.read_text("utf-8-sig"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UserError(f"{path} is not a TOML file ({error})") from None
    _apply(content, changes)
    _check_sections(path, content)
    probes = content.get("evaluate", {"linear": {}})
    _check_probes(path, probes)
    return Journey(
        path.stem,
        {name: {**content.get("build", {}), **options} for name, options in content["sets"].items()},
        {name: {**content.get("train", {}), **settings} for name, settings in content["runs"].items()},
        probes,
    )


def _find(name: str) -> Path:
    included = {path.stem: path for path in HERE.glob("*.toml")}
    path = included.get(name, Path(name))
    if not path.is_file():
        raise MissingError(
            f"there is no recipe {name!r}{nearest(name, included)}; give one of {', '.join(sorted(included))}, "
            "or the path of a TOML file"
        )
    return path


def _apply(content: dict[str, Any], changes: dict[str, Any]) -> None:
    for place, value in changes.items():
        *sections, key = place.split(".")
        if not sections:
            raise UserError(f"--set {place}: write SECTION.KEY=VALUE, where SECTION is one of {', '.join(SECTIONS)}")
        table = content
        for section in sections:
            table = table.setdefault(section, {})
            if not isinstance(table, dict):
                raise UserError(f"--set {place}: {section} is a value, not a section")
        table[key] = value


def _check_sections(path: Path, content: dict[str, Any]) -> None:
    if unknown := [section for section in content if section not in SECTIONS]:
        raise UserError(f"{path}: there is no section [{unknown[0]}]{nearest(unknown[0], SECTIONS)}")
    named = [content.get(section, {}) for section in ("sets", "runs", "evaluate")]
    tables = [content.get(section, {}) for section in SECTIONS]
    tables += [entry for table in named if isinstance(table, dict) for entry in table.values()]
    if not all(isinstance(table, dict) for table in tables):
        raise UserError(f"{path}: every section must be a table, and so must every set, run and probe in it")
    if "train" not in content.get("sets", {}) or len(content["sets"]) < 2 or not content.get("runs"):
        raise UserError(f"{path}: needs [sets.train], at least one more set to test on, and at least one run")


def _check_probes(path: Path, probes: dict[str, dict[str, Any]]) -> None:
    for probe, options in probes.items():
        if probe == "report":
            raise UserError(f"{path}: the HTML report is always written; remove [evaluate.report]")
        if probe not in eval_main.commands:
            raise UserError(f"{path}: `sacl-eval` has no command {probe!r}{nearest(probe, eval_main.commands)}")
        known = {flag for parameter in eval_main.commands[probe].params for flag in parameter.opts}
        for key in options:
            if (flag := f"--{key.replace('_', '-')}") not in known:
                raise UserError(f"{path}: `sacl-eval {probe}` has no option {flag}{nearest(flag, known)}")
