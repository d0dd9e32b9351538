"""Griffe extension: prepare docstrings for the page.

Docstrings are written to be read in the source. What reads well there and renders badly is rewritten here:

- "name : a sentence" in a section: the sentence is a description, and the type comes from the annotation;
- ">>>" outside Examples becomes a code block;
- ".. [1] Author" in References becomes a list.
"""

import re
from typing import Any

import griffe

MAX_TYPE = 60  # characters; what is longer in the place of a type is a sentence
SECTION = re.compile(r"^(\w[\w ]*)\n-{3,}\n(.*?)(?=\n\n\w[\w ]*\n-{3,}\n|\Z)", re.MULTILINE | re.DOTALL)
ENTRY = re.compile(r"^(\S[^\n:]*?) : ([^\n]+)((?:\n[ ]+[^\n]*|\n(?=\n[ ]))*)", re.MULTILINE)


class PageDocstrings(griffe.Extension):
    """Rewrites the text of each docstring before it is parsed."""

    def on_package(self, *, pkg: griffe.Module, **_: Any) -> None:
        self.on_object(obj=pkg)  # Griffe calls it for what is inside the package only

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = rewrite(obj.docstring.value, str(getattr(obj, "returns", None) or "object"))


def rewrite(text: str, returns: str) -> str:
    """Return the docstring for the page; `returns` is the annotation of what the function returns."""
    if not re.search(r"^Examples\n-", text, re.MULTILINE):
        text = re.sub(r"(?:^>>> .*(?:\n(?!\n).+)*)", lambda found: _indent(found[0]), text, flags=re.MULTILINE)

    def section(found: re.Match[str]) -> str:
        name, body = found[1], found[2]
        if name in ("Parameters", "Attributes", "Raises"):
            body = ENTRY.sub(_describe, body)
        elif name in ("Returns", "Yields") and not re.search(r"\n ", body) and len(body.splitlines()) == 1:
            body = f"{returns}\n{_indent(body)}"
        elif name == "References":
            body = re.sub(r"^\.\. \[(\d+)\]", r"\1.", body, flags=re.MULTILINE)
        return f"{name}\n{'-' * len(name)}\n{body}"

    return SECTION.sub(section, text)


def _describe(found: re.Match[str]) -> str:
    name, first, rest = found.groups()
    if rest.strip() and len(first) <= MAX_TYPE:  # a type, and its description below it
        return found[0]
    return f"{name}\n    {first}{rest}"


def _indent(text: str) -> str:
    return re.sub(r"^(?=.)", "    ", text, flags=re.MULTILINE)
