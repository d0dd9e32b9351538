"""The samples of a WebDataset tar by their headers alone: keys, and where the members of each lie.

Format: POSIX.1-2001 (ustar, pax) and GNU long names. A tar may come from anybody, so the walk is our own: Python's
`tarfile` reads extended headers into memory whatever size they claim, and recurses from one to the next. It parses
single header blocks here. Nothing is unpacked, and no link followed.
"""

import hashlib
import re
import sys
import tarfile
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from texturegen.errors import UserError
from texturegen.sources.patterns import Read

BLOCK = tarfile.BLOCKSIZE
MAX_EXTENDED = 2**20  # bytes of an extended header; true ones have some hundreds
NOT_FOLLOWED = -1

REGULAR = (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE)
WITHOUT_DATA = (tarfile.LNKTYPE, tarfile.SYMTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE)
PAX = (tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE)
TEXTURE = re.compile(r"texture\d+(\..*)?", re.DOTALL)
WEBDATASETS_OWN = re.compile(r"__[^/]*__($|/)")  # its readers pass over these


class Member(NamedTuple):
    """One entry of a tar; `offset` and `size` are of its data."""

    name: str
    offset: int
    size: int
    kind: bytes


@dataclass
class TarIndex:
    """The samples of one tar. Sample i has the members first[i] .. first[i + 1] - 1.

    Attributes
    ----------
    keys : as in the tar, whatever they hold.
    first : int64 (samples + 1,).
    exts : of each member, lower case as WebDataset's readers have it; a table of interned strings.
    offsets, sizes : int64, of each member's data; offset NOT_FOLLOWED for a link, device or the like.
    ignored : names of the members that belong to no sample.
    digest : SHA-256 of keys, extensions and sizes in their order.
    """

    keys: list[str] = field(default_factory=list)
    first: array = field(default_factory=lambda: array("q", [0]))
    exts: list[str] = field(default_factory=list)
    offsets: array = field(default_factory=lambda: array("q"))
    sizes: array = field(default_factory=lambda: array("q"))
    ignored: list[str] = field(default_factory=list)
    digest: str = ""


def index_tar(name: str, read: Read, size: int) -> TarIndex:
    """Index the tar `name` of `size` bytes; UserError when it is damaged or cannot be WebDataset's.

    Keys are not judged here, so that one bad sample does not stop the others, except for one that comes twice.
    """
    index = TarIndex()
    digest = hashlib.sha256()
    seen: set[str] = set()
    exts: set[str] = set()
    for member in walk_tar(name, read, size):
        if member.kind == tarfile.DIRTYPE:
            continue
        key, ext = split_name(member.name)
        if not key or WEBDATASETS_OWN.match(member.name):
            index.ignored.append(show(member.name))
            continue
        if not index.keys or key != index.keys[-1]:
            if key in seen:
                raise UserError(
                    f"{name}: {show(member.name)}: the key {show(key)} has come before; the members of a key must be "
                    "unique and stand together, so write the tar anew, sorted by name"
                )
            seen.add(key)
            exts.clear()
            index.keys.append(key)
            index.first.append(index.first[-1])
        if ext in exts:
            raise UserError(f"{name}: {show(member.name)} is there twice; write the tar anew with one of them")
        if TEXTURE.fullmatch(ext):
            raise UserError(
                f"{name}: {show(member.name)} has a name that is kept for the textures to be added; "
                "rename it, or start from the tars without textures"
            )
        exts.add(ext)
        index.first[-1] += 1
        index.exts.append(sys.intern(ext))
        index.offsets.append(member.offset if member.kind in REGULAR else NOT_FOLLOWED)
        index.sizes.append(member.size)
        digest.update(repr((key, ext, member.size)).encode())
    index.digest = digest.hexdigest()
    return index


def walk_tar(name: str, read: Read, size: int) -> Iterator[Member]:
    """Yield the entries of a tar up to its end mark; memory is bounded whatever the headers claim."""
    position = 0
    last = "the start"
    extended: dict[str, str] = {}  # of the entry to come: "path" and "size"
    while True:
        block = read(position, position + BLOCK)
        if len(block) < BLOCK:
            raise UserError(f"{name}: ends after {last} without a tar's end mark, so it is truncated; copy it again")
        if not block.strip(b"\0"):
            return
        try:
            info = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
        except tarfile.TarError:
            kind = "is compressed; unpack it to a plain .tar" if _is_compressed(position, block) else "is no tar"
            problem = f"has a damaged header after {last}; copy it again" if position else kind
            raise UserError(f"{name}: {problem}") from None
        position += BLOCK
        if info.type in (*PAX, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK):
            if not 0 <= info.size <= MAX_EXTENDED:
                raise UserError(f"{name}: the extended header after {last} claims {info.size} bytes; it is damaged")
            content = read(position, position + info.size)
            if len(content) < info.size:
                raise UserError(f"{name}: ends within the extended header after {last}; it is truncated, copy it again")
            position += _padded(info.size)
            if info.type == tarfile.GNUTYPE_LONGNAME:
                extended["path"] = content.split(b"\0")[0].decode("utf-8", "surrogateescape")
            elif info.type in PAX:
                extended |= _read_pax(name, content, last)
            continue
        member = Member(extended.get("path", info.name), position, info.size, info.type)
        if "size" in extended:
            member = member._replace(size=_read_size(name, extended["size"], last))
        if info.type == tarfile.GNUTYPE_SPARSE or "sparse" in extended:
            raise UserError(f"{name}: {show(member.name)} is a sparse file; write the tar anew without --sparse")
        if info.type not in WITHOUT_DATA:
            if not 0 <= member.size <= size - position:
                raise UserError(
                    f"{name}: {show(member.name)} is to have {member.size} bytes, more than the tar has left; "
                    "it is truncated or damaged, copy it again"
                )
            position += _padded(member.size)
        extended = {}
        last = show(member.name)
        yield member


def split_name(name: str) -> tuple[str, str]:
    """(key, extension) of a member's name: parted at the first dot of its last segment, as WebDataset does.

    The key is "" for what has none. The "./" of `tar cf x.tar .` is no part of it.
    """
    while name.startswith("./"):
        name = name[2:]
    folder, slash, base = name.rpartition("/")
    stem, dot, ext = base.partition(".")
    if not dot or not stem:
        # ".." as a last segment has no stem either; no path is ever made of it.
        return "", ""
    return f"{folder}{slash}{stem}", ext.lower()


def show(name: str) -> str:
    """A name from a tar, fit to be printed: escaped where it is not plain ASCII, and not too long."""
    escaped = ascii(name)[1:-1]
    return escaped if len(escaped) <= 120 else f"{escaped[:120]}..."


def _read_pax(name: str, content: bytes, last: str) -> dict[str, str]:
    """What matters of a pax header's records, each "LENGTH KEYWORD=VALUE\\n"."""
    found = {}
    position = 0
    while content[position:].strip(b"\0"):
        digits, space, _ = content[position : position + 8].partition(b" ")
        end = position + int(digits) if space and digits.isdigit() else 0
        keyword, equals, value = content[position + len(digits) + 1 : end].partition(b"=")
        if not equals or not value.endswith(b"\n") or end > len(content):
            raise UserError(f"{name}: the extended header after {last} is damaged; copy it again")
        text = value[:-1].decode("utf-8", "surrogateescape")
        if keyword in (b"path", b"size"):
            found[keyword.decode()] = text
        elif keyword.startswith(b"GNU.sparse."):
            found["sparse"] = text
        position = end
    return found


def _read_size(name: str, text: str, last: str) -> int:
    if not re.fullmatch(r"[0-9]{1,18}", text):
        raise UserError(f"{name}: the extended header after {last} is damaged; copy it again")
    return int(text)


def _padded(size: int) -> int:
    return -(-size // BLOCK) * BLOCK


def _is_compressed(position: int, block: bytes) -> bool:
    return position == 0 and block.startswith((b"\x1f\x8b", b"BZh", b"\xfd7zXZ\0", b"\x28\xb5\x2f\xfd"))
