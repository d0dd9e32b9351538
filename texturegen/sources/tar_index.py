"""The samples of a WebDataset tar by their headers alone: keys, and where the members of each lie.

Format: POSIX.1-2001 (ustar, pax) and GNU long names. A tar may come from anywhere, so extended headers are read here
with a limit on their size, and one after the other: Python's `tarfile` reads them into memory whatever size they claim,
and recurses from one to the next. Nothing is unpacked, and no link is followed.
"""

import hashlib
import re
import sys
import tarfile
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from texturegen.errors import DamagedError, UserError
from texturegen.sources.tar_streams import find_compression
from texturegen.storage.names import printable
from texturegen.storage.ranges import Read
from texturegen.storage.tar import BLOCK, WITHOUT_DATA, padded, parse_header

MAX_EXTENDED = 2**20  # bytes of an extended header; real ones have some hundreds
NOT_FOLLOWED = -1

_REGULAR = (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE)
_PAX = (tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE)
_EXTENDED = (*_PAX, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK)
_TEXTURE = re.compile(r"texture\d+(\..*)?", re.DOTALL)
_INTERNAL = re.compile(r"__[^/]*__($|/)")  # WebDataset's own members, which its readers skip


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
    keys : as in the tar, not checked.
    first : int64 (samples + 1,).
    exts : of each member, in lower case as in WebDataset's readers; interned strings.
    offsets, sizes : int64, of each member's data; the offset is NOT_FOLLOWED for a link, device or pipe.
    ignored : names of the members that belong to no sample, printable.
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
    """Index a tar by its headers.

    Keys are not checked here, except that none may come twice: one bad key must not stop the other samples.

    Parameters
    ----------
    name : of the tar, for messages.
    read : returns a range of its bytes.
    size : of the tar, in bytes.

    Raises
    ------
    UserError : the tar is damaged, or cannot be a WebDataset's.
    """
    index = TarIndex()
    digest = hashlib.sha256()
    seen: set[str] = set()
    exts: set[str] = set()
    for member in walk_tar(name, read, size):
        if member.kind == tarfile.DIRTYPE:
            continue
        key, ext = split_name(member.name)
        if not key or _INTERNAL.match(member.name):
            index.ignored.append(printable(member.name))
            continue
        if not index.keys or key != index.keys[-1]:
            if key in seen:
                raise UserError(
                    f"{name}: {printable(member.name)}: the key {printable(key)} appears twice; a key must be unique "
                    "and its members adjacent, so write the tar again, sorted by name"
                )
            seen.add(key)
            exts.clear()
            index.keys.append(key)
            index.first.append(index.first[-1])
        if ext in exts:
            raise UserError(
                f"{name}: {printable(member.name)} appears twice in its sample; write the tar again with one of them"
            )
        if _TEXTURE.fullmatch(ext):
            raise UserError(
                f"{name}: {printable(member.name)} has a name that is reserved for the textures to be added; "
                "rename it, or start from the tars without textures"
            )
        exts.add(ext)
        index.first[-1] += 1
        index.exts.append(sys.intern(ext))
        index.offsets.append(member.offset if member.kind in _REGULAR else NOT_FOLLOWED)
        index.sizes.append(member.size)
        digest.update(repr((key, ext, member.size)).encode())
    index.digest = digest.hexdigest()
    return index


def walk_tar(name: str, read: Read, size: int) -> Iterator[Member]:
    """Yield the entries of a tar up to its end mark; memory is bounded whatever the headers claim.

    Parameters and errors are those of `index_tar`.
    """
    position = 0
    last = "the start"
    extended: dict[str, str] = {}  # of the next entry: "path" and "size"
    while True:
        block = read(position, position + BLOCK)
        if len(block) < BLOCK:
            raise DamagedError(f"{name}: ends after {last} without an end mark, so it is truncated; copy it again")
        if not block.strip(b"\0"):
            return
        header = parse_header(block)
        if header is None:
            if position:
                raise DamagedError(f"{name}: has a damaged header after {last}; copy it again")
            if find_compression(block):
                raise UserError(f"{name}: is compressed; unpack it to a plain .tar")
            raise UserError(f"{name}: is not a tar")
        position += BLOCK
        if header.kind in _EXTENDED:
            extended |= _read_extended(name, read, position, header.size, header.kind, last)
            position += padded(header.size)
            continue
        member = Member(extended.get("path", header.name), position, header.size, header.kind)
        if "size" in extended:
            member = member._replace(size=_parse_size(name, extended["size"], last))
        if header.kind == tarfile.GNUTYPE_SPARSE or "sparse" in extended:
            raise UserError(f"{name}: {printable(member.name)} is a sparse file; write the tar again without --sparse")
        if header.kind not in WITHOUT_DATA:
            if not 0 <= member.size <= size - position:
                raise DamagedError(
                    f"{name}: {printable(member.name)} claims {member.size} bytes, more than the tar has left; "
                    "it is truncated or damaged, copy it again"
                )
            position += padded(member.size)
        extended = {}
        last = printable(member.name)
        yield member


def split_name(name: str) -> tuple[str, str]:
    """Split a member's name into key and extension at the first dot of its last segment, as WebDataset does.

    Both are "" for a name without a key. A leading "./", which `tar cf x.tar .` writes, does not count.

    Examples
    --------
    >>> split_name("n01440764/cat.left.PNG")
    ('n01440764/cat', 'left.png')
    """
    while name.startswith("./"):
        name = name[2:]
    folder, slash, base = name.rpartition("/")
    stem, dot, ext = base.partition(".")
    if not dot or not stem:  # the last segment ".." too
        return "", ""
    return f"{folder}{slash}{stem}", ext.lower()


def _read_extended(name: str, read: Read, position: int, size: int, kind: bytes, last: str) -> dict[str, str]:
    """Return what an extended header says about the next entry: "path", "size", "sparse"."""
    if not 0 <= size <= MAX_EXTENDED:
        raise DamagedError(f"{name}: the extended header after {last} claims {size} bytes; copy the tar again")
    content = read(position, position + size)
    if len(content) < size:
        raise DamagedError(f"{name}: ends within the extended header after {last}; it is truncated, copy it again")
    if kind == tarfile.GNUTYPE_LONGNAME:
        return {"path": content.split(b"\0")[0].decode("utf-8", "surrogateescape")}
    return _parse_pax(name, content, last) if kind in _PAX else {}


def _parse_pax(name: str, content: bytes, last: str) -> dict[str, str]:
    """Return the records of a pax header that matter here; a record is "LENGTH KEYWORD=VALUE\\n"."""
    found = {}
    position = 0
    while content[position:].strip(b"\0"):
        digits, space, _ = content[position : position + 8].partition(b" ")
        end = position + int(digits) if space and digits.isdigit() else 0
        keyword, equals, value = content[position + len(digits) + 1 : end].partition(b"=")
        if not equals or not value.endswith(b"\n") or end > len(content):
            raise DamagedError(f"{name}: the extended header after {last} is damaged; copy it again")
        text = value[:-1].decode("utf-8", "surrogateescape")
        if keyword in (b"path", b"size"):
            found[keyword.decode()] = text
        elif keyword.startswith(b"GNU.sparse."):
            found["sparse"] = text
        position = end
    return found


def _parse_size(name: str, text: str, last: str) -> int:
    if not re.fullmatch(r"[0-9]{1,18}", text):
        raise DamagedError(f"{name}: the extended header after {last} is damaged; copy it again")
    return int(text)
