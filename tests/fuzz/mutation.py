"""Seeded mutation of bytes, JSON and TOML values. A generator and its input decide the result."""

import random
from collections.abc import Callable
from copy import deepcopy
from typing import Any

ODD_VALUES: list[Any] = [None, True, -1, 0, 1, 1 << 40, -(1 << 70), 0.5, float("inf"), float("nan"), "", "\x00", "../x"]
ODD_VALUES += ["é" * 300, "file:x", [], [[]], {}, {"a": 1}, [None], "1e999", "none", "auto", 10**400]


def mutate_bytes(data: bytes, draws: random.Random) -> bytes:
    """Return the bytes after one to four changes, half of the time a single flipped bit."""
    for _ in range(1 if draws.random() < 0.5 else draws.randrange(1, 5)):
        data = draws.choice(_CHANGES)(data, draws)
    return data


def flip_bit(data: bytes, draws: random.Random) -> bytes:
    if not data:
        return b"\x01"
    place = draws.randrange(len(data))
    return data[:place] + bytes([data[place] ^ 1 << draws.randrange(8)]) + data[place + 1 :]


def _overwrite(data: bytes, draws: random.Random) -> bytes:
    start, count = _range(data, draws)
    return data[:start] + draws.randbytes(count) + data[start + count :]


def _zero(data: bytes, draws: random.Random) -> bytes:
    start, count = _range(data, draws)
    return data[:start] + bytes(count) + data[start + count :]


def _truncate(data: bytes, draws: random.Random) -> bytes:
    return data[: draws.randrange(len(data) + 1)]


def _delete(data: bytes, draws: random.Random) -> bytes:
    start, count = _range(data, draws)
    return data[:start] + data[start + count :]


def _repeat(data: bytes, draws: random.Random) -> bytes:
    start, count = _range(data, draws)
    return data[:start] + data[start : start + count] + data[start:]


def _append(data: bytes, draws: random.Random) -> bytes:
    return data + draws.randbytes(draws.randrange(1, 2000))


def _swap_blocks(data: bytes, draws: random.Random) -> bytes:
    """Exchange two blocks of 512 bytes, the unit of a tar."""
    blocks = [data[i : i + 512] for i in range(0, len(data), 512)]
    if len(blocks) > 1:
        a, b = draws.randrange(len(blocks)), draws.randrange(len(blocks))
        blocks[a], blocks[b] = blocks[b], blocks[a]
    return b"".join(blocks)


def _set_digits(data: bytes, draws: random.Random) -> bytes:
    """Replace digits: sizes and offsets in headers, numbers in text."""
    places = [i for i, byte in enumerate(data[:100_000]) if 48 <= byte <= 57]
    if not places:
        return flip_bit(data, draws)
    changed = bytearray(data)
    start = draws.choice(places)
    for place in range(start, min(start + draws.randrange(1, 12), len(data))):
        if 48 <= changed[place] <= 57:
            changed[place] = 48 + draws.randrange(10)
    return bytes(changed)


_CHANGES: list[Callable[[bytes, random.Random], bytes]] = [flip_bit] * 6
_CHANGES += [_overwrite, _zero, _truncate, _delete, _repeat, _append, _swap_blocks, _set_digits]


def _range(data: bytes, draws: random.Random) -> tuple[int, int]:
    start = draws.randrange(len(data) + 1)
    return start, min(draws.choice([1, 2, 4, 8, 64, 512, 4096]), len(data) - start)


def mutate_tree(tree: Any, draws: random.Random) -> Any:
    """Return a JSON-like tree in which one value is odd, missing, or exchanged for another value of the tree."""
    places: list[tuple[Any, Any]] = []

    def copy(node: Any) -> Any:
        if isinstance(node, dict):
            made: Any = {key: copy(value) for key, value in node.items()}
            places.extend((made, key) for key in made)
            return made
        if isinstance(node, list):
            made = [copy(value) for value in node]
            places.extend((made, i) for i in range(len(made)))
            return made
        return node

    changed = copy(tree)
    if not places:
        return draws.choice(ODD_VALUES)
    parent, key = draws.choice(places)
    kind = draws.randrange(4)
    if kind == 0 and isinstance(parent, dict):
        del parent[key]
    elif kind == 1:
        other, name = draws.choice(places)
        value = other.get(name) if isinstance(other, dict) else other[name] if name < len(other) else None
        parent[key] = deepcopy(value)  # a copy, because JSON and TOML know no circles
    elif kind == 2 and isinstance(parent[key], int):
        parent[key] += draws.choice([-1, 1, 512, 1 << 33])
    else:
        parent[key] = draws.choice(ODD_VALUES)
    return changed


def to_toml(table: dict[str, Any]) -> str:
    """Return a table as TOML; values that TOML does not know become strings."""
    lines, tables = [], []
    for key, value in table.items():
        name = _quote(str(key))
        if isinstance(value, dict):
            tables.append(f"\n[{name}]\n" + to_toml(value).replace("\n[", f"\n[{name}."))
        else:
            lines.append(f"{name} = {_value(value)}")
    return "\n".join([*lines, *tables]) + "\n"


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, list):
        return f"[{', '.join(map(_value, value))}]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_quote(str(k))} = {_value(v)}" for k, v in value.items()) + "}"
    return _quote(str(value))


def _quote(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return '"' + "".join(c if c.isprintable() else f"\\u{ord(c):04x}" for c in escaped) + '"'
