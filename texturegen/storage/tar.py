"""Parse tar headers (POSIX ustar), and compare a tar with the members that its manifest lists.

Python's `tarfile` reads extended headers of any claimed size into memory and follows chains of them, so `parse_header`
parses a single block. Checking a tar header by header takes about 30 us per member, so `hash_and_compare` compares
thousands of headers at once with the expected ones while it hashes the file. Only if they differ, `find_faults` walks
the tar to report each difference. Names are never used as paths, links are never followed, and all reads have a fixed
size.
"""

import hashlib
import tarfile
from collections.abc import Iterator, Mapping
from typing import IO, NamedTuple

import numpy as np

from texturegen.storage.names import printable

BLOCK = tarfile.BLOCKSIZE
CHUNK = 1 << 18  # bytes per read; a multiple of BLOCK that fits the CPU cache
HEADERS_AT_ONCE = 2048
MAX_UNEXPECTED = 20  # unexpected members to report by name, because a hostile tar may contain millions

# The fields of a ustar header that affect how readers interpret a member.
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
    """Fields of a header block: name (undecodable bytes as surrogates), bytes of data, and type flag."""

    name: str
    size: int
    kind: bytes


def parse_header(block: bytes) -> Header | None:
    """Parse a header block of 512 bytes; return None if its checksum or a number in it is invalid."""
    try:
        info = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except tarfile.TarError:
        return None
    return Header(info.name, info.size, info.type)


def make_header(name: str, size: int) -> bytes:
    """Return the header block of a member of a shard: a regular ustar file, mode 0644, owner and mtime 0."""
    info = tarfile.TarInfo(name)
    info.size = size
    return info.tobuf(tarfile.USTAR_FORMAT)


def padded(size: int) -> int:
    """Return the size in bytes of a member's data with its padding."""
    return -(-size // BLOCK) * BLOCK


def end_of_tar(length: int) -> int:
    """Return the size in bytes of a tar whose members, with headers and padding, have `length` bytes."""
    return -(-(length + 2 * BLOCK) // tarfile.RECORDSIZE) * tarfile.RECORDSIZE


def hash_and_compare(f: IO[bytes], names: np.ndarray, sizes: np.ndarray) -> tuple[str, bool]:
    """Hash a file, and compare it with a tar of the given members in this order, in one pass.

    Parameters
    ----------
    f : an unbuffered binary file.
    names : S100 (M,), names of the members.
    sizes : int64 (M,), sizes of their data in bytes.

    Returns
    -------
    sha256 : in hexadecimal.
    is_equal : False also for a tar of the same members with other modes, owners or times, in which `find_faults` finds
        nothing.
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
            count += more  # an unbuffered file may return fewer bytes than requested
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
    """Yield (member, fault) for each difference between a tar and the expected members.

    Parameters
    ----------
    f : the tar, of `length` bytes.
    expected : name -> (offset, size) of each member's data.

    Yields
    ------
    member : str, or None for a fault of the tar itself.
    fault : str. After a damaged header, the walk continues at the next expected one.
    """
    headers = np.sort(np.array([offset - BLOCK for offset, _ in expected.values()], np.int64))
    by_header = {offset - BLOCK: name for name, (offset, _) in expected.items()}
    seen: set[str] = set()  # only expected names, to bound the memory for a tar with any number of members
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
                yield None, f"its end-of-archive marker at byte {position} is followed by other bytes"
            has_ended = True
            position = min(extra // BLOCK * BLOCK, resume)
            continue
        header = parse_header(block)
        if header is None or header.size < 0:
            name = by_header.get(position)
            if name is not None:
                seen.add(name)
            yield name, f"its tar header at byte {position} is damaged"
            position = resume
            continue
        name, size, kind = header
        fault = None
        if kind not in (tarfile.REGTYPE, tarfile.AREGTYPE):
            fault = f"{_KINDS.get(kind, 'a member of an unknown kind')}, but only regular files are allowed"
        elif name in seen:
            fault = "a second member of this name"
        elif name in expected and (position + BLOCK, size) != expected[name]:
            fault = "its offset or size differs from the manifest"
        elif name not in expected:
            fault = "not in the manifest" + (", and its name points outside the directory" if _is_outside(name) else "")
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
                yield name, f"its tar header claims {size} bytes, more than the file has"
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


def _is_outside(name: str) -> bool:
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
    """Return the offset of the first nonzero byte from the current position on."""
    while chunk := f.read(CHUNK):
        stripped = chunk.lstrip(b"\0")
        if stripped:
            return f.tell() - len(stripped)
    return None
