"""MkDocs hooks: links to files outside docs/, and the table of a run's settings."""

import dataclasses
import inspect
import json
import re
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))  # mkdocs-click imports the commands of this checkout

LINK = re.compile(r"\[([^\]]+)\]\((?!https?:|#)([^)#\s]+)(#[^)\s]*)?\)")
SETTINGS = "<!-- settings -->"


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Return the page with links to source files as plain text, and SETTINGS replaced by the tables."""
    folder = (ROOT / "docs" / page.file.src_uri).parent
    if SETTINGS in markdown:
        markdown = markdown.replace(SETTINGS, settings_tables())
    return LINK.sub(lambda found: _keep_or_unlink(found, folder), markdown)


def _keep_or_unlink(found: re.Match[str], folder: Path) -> str:
    # The site holds docs/ alone; in a repository's file view the same links lead to the source.
    target = (folder / found[2]).resolve()
    outside = not target.is_relative_to(ROOT / "docs")
    return found[1] if outside and target.exists() else found[0]


def settings_tables() -> str:
    """Return Markdown tables of the settings: those of every run, then those of each training method."""
    from sacl_train.config import Config
    from sacl_train.methods import METHODS

    parts = [f"## Every method\n\n{_table(Config)}"]
    for name, entry in METHODS.items():
        method = entry.load()
        defaults = ", ".join(f"`{key}={_show(value)}`" for key, value in method.defaults.items())
        note = f"\n\nIt changes the general defaults to {defaults}." if defaults else ""
        parts.append(f"## {name}\n\n{entry.help[0].upper()}{entry.help[1:]}.{note}\n\n{_table(method.Settings)}")
    return "\n\n".join(parts)


def _table(settings: type) -> str:
    described = descriptions(settings)
    rows = ["| key | type | default | |", "| --- | --- | --- | --- |"]
    for field in dataclasses.fields(settings):
        if field.name == "method_settings":
            continue
        kind = field.type.__name__ if type(field.type) is type else str(field.type)
        cells = [f"`{field.name}`", f"`{kind}`", f"`{_show(field.default)}`", described.get(field.name, "")]
        rows.append(f"| {' | '.join(cell.replace('|', 'or') for cell in cells)} |")
    return "\n".join(rows)


def descriptions(settings: type) -> dict[str, str]:
    """Return what the source says about each field of a dataclass.

    The text is the comment at the end of the field's line, or else its entry in the numpydoc docstring: the lines
    indented below "name : type". Inherited fields are described by the class that defines them.
    """
    found: dict[str, str] = {}
    for base in reversed(settings.__mro__[:-1]):
        found |= _own_descriptions(base)
    return found


def _own_descriptions(settings: type) -> dict[str, str]:
    found: dict[str, str] = {}
    names = [field.name for field in dataclasses.fields(settings)]
    entry = re.compile(r"^(\w+(?:, \w+)*)(?: : .*)?\n((?:[ \t]+\S.*(?:\n|$))+)", re.MULTILINE)
    for match in entry.finditer(inspect.cleandoc(settings.__doc__ or "")):
        for name in match[1].split(", "):
            if name in names:
                found[name] = re.sub(r"\bNone\b", "none", " ".join(match[2].split()))
    for line in inspect.getsource(settings).splitlines():
        if comment := re.match(r"    (\w+): .*?  # (.*)", line):
            found[comment[1]] = re.sub(r"\bNone\b", "none", comment[2])
    return found


def _show(value: Any) -> str:
    if value is dataclasses.MISSING:
        return "-"
    return json.dumps(value) if value is not None else "none"
