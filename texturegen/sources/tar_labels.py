"""Labels of the samples of foreign tars: a number or a class name, in a member of its own or in a field of a JSON."""

import json
import re
from codecs import BOM_UTF8
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from texturegen.errors import UserError
from texturegen.storage.names import printable, to_text

MAX_NAME = 200  # characters of a class name
_NUMBER = re.compile(r"-1|[0-9]{1,9}")
_SPEC = re.compile(r"([A-Za-z0-9_-]+(?:\.[A-Za-z0-9_-]+)*)(?::([^:]+))?")


@dataclass(frozen=True)
class LabelRule:
    """Where the label of a sample is.

    Attributes
    ----------
    ext : extension of its member, in lower case.
    field : path of a field in a JSON member, its keys separated by dots; None if the member is the label.
    """

    ext: str = "cls"
    field: str | None = None

    def __str__(self) -> str:
        return self.ext if self.field is None else f"{self.ext}:{self.field}"

    def read(self, members: Mapping[str, bytes]) -> int | str | None:
        """Return the label of a sample: a number, -1 for none, or the name of a class; None without the member.

        Raises
        ------
        UserError : the member holds no label; the message names the sample's member only.
        """
        data = members.get(self.ext)
        if data is None:
            return None
        value: Any
        if self.field is None:
            value = _decode(self.ext, data).strip()
        else:
            try:
                value = json.loads(data)
            except (ValueError, RecursionError):
                raise UserError(f"{self.ext} is not JSON") from None
            for key in self.field.split("."):
                if not isinstance(value, dict) or key not in value:
                    there = ", ".join(map(printable, value)) if isinstance(value, dict) else type(value).__name__
                    raise UserError(f"{self.ext} has no field {printable(self.field)} (there are {there[:120]})")
                value = value[key]
        if value is None:  # JSON's null
            return -1
        if isinstance(value, int) and not isinstance(value, bool) and -1 <= value < 10**9:
            return value
        if isinstance(value, str) and _NUMBER.fullmatch(value):
            return int(value)
        if isinstance(value, str) and 0 < len(value) <= MAX_NAME and value.isprintable() and not _is_numeric(value):
            return value
        raise UserError(f"{self} holds '{printable(str(value), 40)}', which is neither a class number nor a class name")


def parse_rule(text: str) -> LabelRule:
    """Return the rule that the option `label` states: "cls", "txt", "json:label", "json:meta.class".

    Raises
    ------
    UserError : `text` is not such a rule.
    """
    match = _SPEC.fullmatch(text) if isinstance(text, str) else None
    if match is None:
        raise UserError(
            f"label {text!r} does not say where labels are; use for example label=cls, label=txt, label=json:FIELD"
        )
    return LabelRule(match[1].lower(), match[2])


def _decode(ext: str, data: bytes) -> str:
    if len(data) > 4 * MAX_NAME:
        raise UserError(f"{ext} has {len(data)} bytes, too many for a class number or a class name")
    return to_text(data.removeprefix(BOM_UTF8).decode("utf-8", "surrogateescape"))  # Windows programs write the mark


def _is_numeric(text: str) -> bool:
    """Return True for "1.0", "-2" or "1e5": a number that is not a class is a mistake, not a class name."""
    try:
        float(text)
    except ValueError:
        return False
    return True
