"""Recipes: one TOML file a data set, from images to figures.

[build]          options of `texturegen build` for every set (dataset, method, size, seed ...)
[sets.NAME]      a shard directory: further options; `train` is the one to learn from, the others are tests
[train]          settings of `sacl-train` for every run (sacl_train/config.py)
[runs.NAME]      a run: further settings, `texture_role` above all
[evaluate.NAME]  options of `sacl-eval NAME`, any of its commands; a set's name stands for its shards
"""

import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sacl_train.cli.evaluate import eval_main
from texturegen.errors import UserError, nearest

HERE = Path(__file__).parent
SECTIONS = ("build", "sets", "train", "runs", "evaluate")


@dataclass(frozen=True)
class Journey:
    """A recipe, read: per set the options of its build, per run its settings, per `sacl-eval` command its options."""

    name: str
    sets: dict[str, dict[str, Any]]
    runs: dict[str, dict[str, Any]]
    probes: dict[str, dict[str, Any]]

    @property
    def tests(self) -> list[str]:
        return [name for name in self.sets if name != "train"]


def load_recipe(name: str, changes: dict[str, Any]) -> Journey:
    """Read a shipped recipe by name, or any by its path; `changes` are SECTION.KEY -> value.

    Raises UserError when there is no such recipe or it is not of the form above.
    """
    shipped = {path.stem: path for path in HERE.glob("*.toml")}
    path = shipped.get(name, Path(name))
    if not path.is_file():
        raise UserError(
            f"there is no recipe {name!r}{nearest(name, shipped)}; shipped are {', '.join(sorted(shipped))}, "
            "or give the path of a TOML file"
        )
    try:
        content = tomllib.loads(path.read_text())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not a TOML file ({error})") from None
    for place, value in changes.items():
        *sections, key = place.split(".")
        if not sections:
            raise UserError(f"--set {place}: write SECTION.KEY=VALUE, with a section of {', '.join(SECTIONS)}")
        table = content
        for section in sections:
            table = table.setdefault(section, {})
            if not isinstance(table, dict):
                raise UserError(f"--set {place}: {section} is a value, not a section")
        table[key] = value
    if unknown := [section for section in content if section not in SECTIONS]:
        raise UserError(f"{path}: there is no section [{unknown[0]}]{nearest(unknown[0], SECTIONS)}")
    named = [content.get(section, {}) for section in ("sets", "runs", "evaluate")]
    tables = [content.get(section, {}) for section in SECTIONS]
    tables += [entry for table in named if isinstance(table, dict) for entry in table.values()]
    if not all(isinstance(table, dict) for table in tables):
        raise UserError(f"{path}: every section must be a table, and so must every set, run and probe in it")
    if "train" not in content.get("sets", {}) or len(content["sets"]) < 2 or not content.get("runs"):
        raise UserError(f"{path}: needs [sets.train], at least one other set to test on, and at least one run")
    probes = content.get("evaluate", {"linear": {}})
    for probe, options in probes.items():
        if probe not in eval_main.commands:
            raise UserError(f"{path}: `sacl-eval` has no {probe!r}{nearest(probe, eval_main.commands)}")
        known = {flag for parameter in eval_main.commands[probe].params for flag in parameter.opts}
        for key in options:
            if (flag := f"--{key.replace('_', '-')}") not in known:
                raise UserError(f"{path}: `sacl-eval {probe}` has no {flag}{nearest(flag, known)}")
    return Journey(
        path.stem,
        {name: {**content.get("build", {}), **options} for name, options in content["sets"].items()},
        {name: {**content.get("train", {}), **settings} for name, settings in content["runs"].items()},
        probes,
    )
