"""Is a tar the one that its manifest describes? Told from its headers, without a tar library that would believe them.

Python's `tarfile` allocates what an extended header asks for, and takes some 30 us per member. A right shard is told
here by comparing its headers with those expected, many at once, while its bytes are being hashed; only where they
differ is the tar walked header by header, and then every fault is named. No name in it is used as a path, no link
followed, and nothing is read but blocks of a fixed size.
"""

import hashlib
from collections.abc import Iterator
from typing import IO

import numpy as np

BLOCK = 512
CHUNK = 1 << 18  # bytes read at a time: a multiple of BLOCK that stays in the processor's cache
TOGETHER = 2048  # headers compared at a time
STRANGERS = 20  # members that no manifest has, named one by one; a hostile tar may hold millions

# POSIX ustar, the fields that decide what a reader makes of a member.
HEADER = np.dtype(
    {
        "names": ["name", "size", "checksum", "type", "magic", "prefix"],
        "formats": ["S100", "S12", "V8", "S1", "S5", "S155"],
        "offsets": [0, 124, 148, 156, 257, 345],
        "itemsize": BLOCK,
    }
)
CHECKSUM = slice(148, 156)
KINDS = {
    b"1": "a hard link",
    b"2": "a symbolic link",
    b"3": "a device",
    b"4": "a device",
    b"5": "a directory",
    b"6": "a pipe",
    b"x": "an extended header",
    b"g": "an extended header",
    b"L": "an extended header",
    b"K": "an extended header",
}
WITHOUT_DATA = (b"1", b"2", b"3", b"4", b"5", b"6")


def hash_and_compare(f: IO[bytes], names: np.ndarray, offsets: np.ndarray, sizes: np.ndarray) -> tuple[str, bool]:
    """Read `f` once; return its sha256 and whether it is exactly a tar of these members, in this order.

    names : S100; offsets, sizes : int64, of the members' bytes. False may also mean a tar that is merely written
    otherwise, which `walk` then tells.
    """
    ends = offsets + -(-sizes // BLOCK) * BLOCK
    # Header, data, header, data: with no gap there is no room for a member that the manifest does not have.
    right = bool(np.array_equal(offsets, np.concatenate([[0], ends[:-1]]) + BLOCK) if len(ends) else True)
    end = int(ends[-1]) if len(ends) and right else 0
    places = (offsets - BLOCK) // BLOCK if right else offsets[:0]
    digest, buffer, done = hashlib.sha256(), bytearray(CHUNK), 0
    view, blocks = memoryview(buffer), np.frombuffer(buffer, np.uint8).reshape(-1, BLOCK)
    headers: list[np.ndarray] = []
    compared = gathered = 0
    while count := f.readinto(buffer):  # type: ignore[attr-defined]
        while count % BLOCK and (more := f.readinto(view[count:])):  # type: ignore[attr-defined]
            count += more  # an unbuffered file may give less than was asked for
        digest.update(view[:count])
        if right:
            last = int(np.searchsorted(places, (done + count) // BLOCK))
            headers.append(blocks[places[gathered:last] - done // BLOCK])
            gathered = last
            if gathered - compared >= TOGETHER or done + count >= end:
                some = slice(compared, gathered)
                right = _equal_headers(np.concatenate(headers), names[some], sizes[some])
                headers, compared = [], gathered
            # Behind the last member are zeros, and not many.
            if done + count > end:
                right = right and not any(view[max(end - done, 0) : count])
        done += count
    whole = compared == len(names) and end + 2 * BLOCK <= done <= end + 22 * BLOCK
    return digest.hexdigest(), right and whole


def walk(f: IO[bytes], length: int, expected: dict[bytes, tuple[int, int]]) -> Iterator[tuple[bytes | None, str]]:
    """Yield (member, fault) for all that a reader of the tar would find other than expected; None: the tar itself.

    expected : name -> (offset, size) of the bytes. After a damaged header it goes on where the manifest has the next.
    """
    headers = np.sort(np.array([offset - BLOCK for offset, _ in expected.values()], np.int64))
    by_header = {offset - BLOCK: name for name, (offset, _) in expected.items()}
    named: set[bytes] = set()  # of the expected ones only: bounded, however many the tar holds
    strangers = position = 0
    ended = False
    while position + BLOCK <= length:
        f.seek(position)
        block = f.read(BLOCK)
        following = headers[np.searchsorted(headers, position, side="right") :]
        resume = int(following[0]) if len(following) else length
        if not any(block):
            if (extra := _first_byte(f, length)) is not None:
                if not ended:
                    yield None, f"its end mark, at byte {position}, is followed by other bytes"
                ended = True
                position = min(extra // BLOCK * BLOCK, resume)
                continue
            break
        header = _parse(block)
        if header is None:
            name = by_header.get(position)
            if name is not None:
                named.add(name)
            yield name, f"its tar header, at byte {position}, is damaged"
            position = resume
            continue
        name, size, kind = header
        data = 0 if kind in WITHOUT_DATA else size
        fault = None
        if kind not in (b"0", b"\0"):
            fault = f"{KINDS.get(kind, 'a member of an unknown kind')}, where only plain files belong"
        elif name in named:
            fault = "a second member of this name"
        elif name in expected and (position + BLOCK, size) != expected[name]:
            fault = "not where the manifest says"
        elif name not in expected:
            leads_out = name.startswith(b"/") or b".." in name.replace(b"\\", b"/").split(b"/")
            fault = "not in the manifest" + (", and its name leads out of the directory" if leads_out else "")
        if name in expected:
            named.add(name)
            if fault:
                yield name, fault
        elif fault:
            strangers += 1
            if strangers <= STRANGERS:
                yield name, fault
        if position + BLOCK + data > length:
            if not fault:
                yield name, f"its tar header says {size} bytes, more than the file has"
            elif strangers <= STRANGERS:
                yield name, f"its tar header says {size:.3g} bytes, more than the file has"
            position = resume
            continue
        position += BLOCK + -(-data // BLOCK) * BLOCK
    if strangers > STRANGERS:
        yield None, f"{strangers - STRANGERS} more members that do not belong there"
    for name in expected:
        if name not in named:
            yield name, "missing from the tar"


def printable(name: bytes) -> str:
    """A member's name as it may be shown: a tar can hold control characters, which a terminal would obey."""
    return name.decode("latin-1").encode("unicode_escape").decode("ascii")


def _equal_headers(blocks: np.ndarray, names: np.ndarray, sizes: np.ndarray) -> bool:
    headers = blocks.view(HEADER)[:, 0]
    sums = blocks.sum(1, dtype=np.uint32) - blocks[:, CHECKSUM].sum(1, dtype=np.uint32) + 8 * ord(" ")
    checksums = np.concatenate([_octal(sums, 6), np.tile(np.frombuffer(b"\0 ", np.uint8), (len(blocks), 1))], 1)
    return bool(
        np.all(headers["name"] == names)
        and np.all(headers["size"] == _octal(sizes, 11).view("S11")[:, 0])
        and np.all(blocks[:, CHECKSUM] == checksums)
        and np.all(headers["type"] == b"0")
        and np.all(headers["magic"] == b"ustar")
        and np.all(headers["prefix"] == b"")
    )


def _octal(numbers: np.ndarray, digits: int) -> np.ndarray:
    shifts = 3 * np.arange(digits - 1, -1, -1)
    return ((numbers[:, None].astype(np.int64) >> shifts) & 7).astype(np.uint8) + ord("0")


def _parse(block: bytes) -> tuple[bytes, int, bytes] | None:
    """(name, size, type) of a header, None where its checksum or a number is wrong."""
    header = np.frombuffer(block, HEADER)[0]
    checksum = _number(block[CHECKSUM])
    if checksum is None or checksum != sum(block) - sum(block[CHECKSUM]) + 8 * ord(" "):
        return None
    size = _number(block[124:136])
    if size is None or size < 0:
        return None
    name = block[:100].split(b"\0")[0]
    if header["magic"] == b"ustar" and block[257:263] == b"ustar\0" and header["prefix"]:
        name = block[345:500].split(b"\0")[0] + b"/" + name
    return name, size, block[156:157]


def _number(field: bytes) -> int | None:
    if field[0] & 0x80:  # GNU: base 256, for what octal digits cannot hold
        return int.from_bytes(field[1:], "big") if field[0] == 0x80 else None
    try:
        return int(field.strip(b" \0") or b"0", 8)
    except ValueError:
        return None


def _first_byte(f: IO[bytes], length: int) -> int | None:
    """Where, from here on, the first byte other than zero is."""
    while chunk := f.read(CHUNK):
        stripped = chunk.lstrip(b"\0")
        if stripped:
            return f.tell() - len(stripped)
    return None
