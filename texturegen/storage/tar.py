"""Tar headers: the one parser of them, and whether a tar is exactly the one that its manifest describes.

Format: POSIX ustar. `parse_header` reads one block and nothing else, because Python's `tarfile` reads extended headers
into memory whatever size they claim, and follows them from one to the next. Checking a tar header by header takes some
30 us per member, so `hash_and_compare` compares thousands of headers at once with the expected ones, while it hashes
the file; `find_faults` walks the tar only if they differ, to name each difference. No name in a tar is used as a path,
no link is followed, and nothing is read but blocks of a fixed size.
"""

import hashlib
import tarfile
from collections.abc import Iterator, Mapping
from typing import IO, NamedTuple

import numpy as np

from texturegen.storage.names import printable

BLOCK = tarfile.BLOCKSIZE
CHUNK = 1 << 18  # bytes read at a time: a multiple of BLOCK that fits the processor's cache
HEADERS_AT_ONCE = 2048
MAX_UNEXPECTED = 20  # members named that the manifest lacks; a hostile tar may hold millions

# The fields of a ustar header that decide what a reader makes of a member.
_FIELDS = np.dtype(
    {
        "names": ["name", "size", "type", "magic", "prefix"],
        "formats": ["S100", "S12", "S1", "S5", "S155"],
        "offsets": [0, 124, 156, 257, 345],
        "itemsize": BLOCK,
    }
)
_CHECKSUM = slice(148, 156)

WITHOUT_DATA = (tarfile.LNKTYPE, tarfile.SYMTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE)
_KINDS = {
    tarfile.LNKTYPE: "a hard link",
    tarfile.SYMTYPE: "a symbolic link",
    tarfile.CHRTYPE: "a device",
    tarfile.BLKTYPE: "a device",
    tarfile.DIRTYPE: "a directory",
    tarfile.FIFOTYPE: "a pipe",
    tarfile.XHDTYPE: "an extended header",
    tarfile.XGLTYPE: "an extended header",
    tarfile.GNUTYPE_LONGNAME: "an extended header",
    tarfile.GNUTYPE_LONGLINK: "an extended header",
}


class Header(NamedTuple):
    """What a header block says: the name, with undecodable bytes as surrogates; bytes of data; and the type flag."""

    name: str
    size: int
    kind: bytes


def parse_header(block: bytes) -> Header | None:
    """Parse one header block of 512 bytes; None if its checksum or a number in it is wrong."""
    try:
        info = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except tarfile.TarError:
        return None
    return Header(info.name, info.size, info.type)


def make_header(name: str, size: int) -> bytes:
    """Return the header block that shards have: ustar, a plain file of mode 0644, owner and time 0."""
    info = tarfile.TarInfo(name)
    info.size = size
    return info.tobuf(tarfile.USTAR_FORMAT)


def padded(size: int) -> int:
    """Return the bytes that `size` bytes of data take in a tar."""
    return -(-size // BLOCK) * BLOCK


def end_of_tar(length: int) -> int:
    """Return the bytes of a whole tar whose members, with headers and padding, take `length` bytes."""
    return -(-(length + 2 * BLOCK) // tarfile.RECORDSIZE) * tarfile.RECORDSIZE


def hash_and_compare(f: IO[bytes], names: np.ndarray, sizes: np.ndarray) -> tuple[str, bool]:
    """Read a file once; return its SHA-256, and whether it is exactly a tar of the given members in this order.

    Parameters
    ----------
    f : an unbuffered binary file.
    names : S100 (M,).
    sizes : int64 (M,), of the members' data, in bytes.

    Returns
    -------
    The SHA-256 in hexadecimal, and True or False. False may also mean a tar that holds the same members with other
    modes, owners or times; `find_faults` then finds nothing.
    """
    ends = np.cumsum(BLOCK - (-sizes // BLOCK) * BLOCK)
    blocks_of_headers = np.append(0, ends[:-1])[: len(ends)] // BLOCK
    end = int(ends[-1]) if len(ends) else 0
    digest, buffer, done = hashlib.sha256(), bytearray(CHUNK), 0
    view, blocks = memoryview(buffer), np.frombuffer(buffer, np.uint8).reshape(-1, BLOCK)
    headers: list[np.ndarray] = []
    compared = gathered = 0
    is_equal = True
    while count := f.readinto(buffer):  # type: ignore[attr-defined]
        while count % BLOCK and (more := f.readinto(view[count:])):  # type: ignore[attr-defined]
            count += more  # an unbuffered file may give less than was asked for
        digest.update(view[:count])
        if is_equal:
            last = int(np.searchsorted(blocks_of_headers, (done + count) // BLOCK))
            headers.append(blocks[blocks_of_headers[gathered:last] - done // BLOCK])
            gathered = last
            if gathered - compared >= HEADERS_AT_ONCE or done + count >= end:
                part = slice(compared, gathered)
                is_equal = _are_equal(np.concatenate(headers), names[part], sizes[part])
                headers, compared = [], gathered
            if done + count > end:
                is_equal = is_equal and not any(view[max(end - done, 0) : count])
        done += count
    is_whole = compared == len(names) and done == end_of_tar(end)
    return digest.hexdigest(), is_equal and is_whole


def find_faults(f: IO[bytes], length: int, expected: Mapping[str, tuple[int, int]]) -> Iterator[tuple[str | None, str]]:
    """Yield (member, fault) for everything in a tar that differs from what is expected.

    Parameters
    ----------
    f : the tar, of `length` bytes.
    expected : name -> (offset, size) of each member's data.

    Yields
    ------
    The member is None for a fault of the tar itself. After a damaged header the walk goes on at the next expected one.
    """
    headers = np.sort(np.array([offset - BLOCK for offset, _ in expected.values()], np.int64))
    by_header = {offset - BLOCK: name for name, (offset, _) in expected.items()}
    seen: set[str] = set()  # expected names alone: bounded, however many members the tar holds
    unexpected = position = 0
    has_ended = False
    while position + BLOCK <= length:
        f.seek(position)
        block = f.read(BLOCK)
        following = headers[np.searchsorted(headers, position, side="right") :]
        resume = int(following[0]) if len(following) else length
        if not any(block):
            if (extra := _find_nonzero(f)) is None:
                break
            if not has_ended:
                yield None, f"its end mark, at byte {position}, is followed by other bytes"
            has_ended = True
            position = min(extra // BLOCK * BLOCK, resume)
            continue
        header = parse_header(block)
        if header is None or header.size < 0:
            name = by_header.get(position)
            if name is not None:
                seen.add(name)
            yield name, f"its tar header, at byte {position}, is damaged"
            position = resume
            continue
        name, size, kind = header
        fault = None
        if kind not in (tarfile.REGTYPE, tarfile.AREGTYPE):
            fault = f"{_KINDS.get(kind, 'a member of an unknown kind')}, where only plain files belong"
        elif name in seen:
            fault = "a second member of this name"
        elif name in expected and (position + BLOCK, size) != expected[name]:
            fault = "not where the manifest says"
        elif name not in expected:
            fault = "not in the manifest" + (", and its name leads out of the directory" if _leads_out(name) else "")
        if name in expected:
            seen.add(name)
        elif fault:
            unexpected += 1
        is_named = name in expected or unexpected <= MAX_UNEXPECTED
        if fault and is_named:
            yield name, fault
        data = 0 if kind in WITHOUT_DATA else size
        if position + BLOCK + data > length:
            if is_named:
                yield name, f"its tar header says {size} bytes, more than the file has"
            position = resume
            continue
        position += BLOCK + padded(data)
    if unexpected > MAX_UNEXPECTED:
        yield None, f"{unexpected - MAX_UNEXPECTED} more members that are not in the manifest"
    for name in expected:
        if name not in seen:
            yield name, "missing from the tar"


def describe(member: str | None, fault: str) -> str:
    """Return a fault of `find_faults` as a sentence."""
    return fault if member is None else f"{printable(member)}: {fault}"


def _leads_out(name: str) -> bool:
    return name.startswith("/") or ".." in name.replace("\\", "/").split("/")


def _are_equal(blocks: np.ndarray, names: np.ndarray, sizes: np.ndarray) -> bool:
    headers = blocks.view(_FIELDS)[:, 0]
    sums = blocks.sum(1, dtype=np.uint32) - blocks[:, _CHECKSUM].sum(1, dtype=np.uint32) + 8 * ord(" ")
    checksums = np.concatenate([_octal(sums, 6), np.tile(np.frombuffer(b"\0 ", np.uint8), (len(blocks), 1))], 1)
    return bool(
        np.all(headers["name"] == names)
        and np.all(headers["size"] == _octal(sizes, 11).view("S11")[:, 0])
        and np.all(blocks[:, _CHECKSUM] == checksums)
        and np.all(headers["type"] == tarfile.REGTYPE)
        and np.all(headers["magic"] == b"ustar")
        and np.all(headers["prefix"] == b"")
    )


def _octal(numbers: np.ndarray, digits: int) -> np.ndarray:
    """Return the octal digits of each number, ASCII uint8 (M, digits)."""
    shifts = 3 * np.arange(digits - 1, -1, -1)
    return ((numbers[:, None].astype(np.int64) >> shifts) & 7).astype(np.uint8) + ord("0")


def _find_nonzero(f: IO[bytes]) -> int | None:
    """Return the place of the first byte, from the present position on, that is not zero."""
    while chunk := f.read(CHUNK):
        stripped = chunk.lstrip(b"\0")
        if stripped:
            return f.tell() - len(stripped)
    return None
