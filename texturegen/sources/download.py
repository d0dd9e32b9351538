"""Download a file over HTTP. A broken download is resumed, and only a file with the right checksum is kept.

pooch, which other packages use for this, restarts a broken download from its first byte: on a slow link the 2.6 GB
of STL-10 then never arrive.
"""

import hashlib
import http.client
import os
import re
import shutil
import time
import urllib.error
import urllib.request
from pathlib import Path

from texturegen.console import Progress, note
from texturegen.errors import DamagedError, UserError

MAX_FAILURES = 5  # attempts in a row that bring no further byte
TIMEOUT = 30.0  # seconds without a byte
PAUSE = 1.0  # seconds before the second attempt, doubled by each that fails
CHUNK = 1 << 18
MB = 1_000_000
_RANGE = re.compile(r"bytes (?:(\d+)-\d+|\*)/(\d+)")


class _Broken(Exception):
    """The transfer ended early; another attempt may continue it."""


def download(url: str, target: Path, md5: str) -> None:
    """Download a file, or resume an interrupted download.

    The bytes so far are kept in TARGET.part: this call requests the rest of them after a lost connection, and the next
    call does so after this process ended.

    Parameters
    ----------
    url : str
        HTTP(S) address.
    target : Path
        The file to write, in an existing directory.
    md5 : str
        Its MD5 in hexadecimal.

    Raises
    ------
    DamagedError
        The server's file has another checksum; nothing is kept.
    UserError
        The server cannot be reached, refuses the request or drops the connection repeatedly, or the disk is too small.
    OSError
        The file cannot be written.
    """
    part = target.with_name(f"{target.name}.part")
    is_resumed = _size(part) > 0
    _fetch(url, part)
    found = md5_of(part)
    if found != md5 and is_resumed:  # the server's file may have changed between the two parts
        part.unlink()
        _fetch(url, part)
        found = md5_of(part)
    if found != md5:
        size = _size(part)
        part.unlink()
        raise DamagedError(f"the file of {size} bytes that the server sent is damaged (MD5 {found}, official {md5})")
    os.replace(part, target)


def _fetch(url: str, part: Path) -> None:
    """Request the file until the server says that it is complete."""
    best, failures = _size(part), 0
    while True:
        try:
            _transfer(url, part)
            return
        except _Broken as error:
            size = _size(part)
            failures = failures + 1 if size <= best else 0
            best = max(best, size)
            if failures == MAX_FAILURES or not best:
                kept = (
                    f" after {best / MB:.0f} MB, which are kept: run the same command again to resume" if best else ""
                )
                raise UserError(f"{error}{kept}") from None
            time.sleep(min(2.0**failures, 30) * PAUSE)


def _transfer(url: str, part: Path) -> None:
    """Append to the file what one request brings; raises `_Broken` if that is not all."""
    start = _size(part)
    request = urllib.request.Request(url, headers={"User-Agent": "texturegen"})
    if start:
        request.add_header("Range", f"bytes={start}-")
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT) as response:
            _append(response, part, start)
    except urllib.error.HTTPError as error:
        sizes = _RANGE.fullmatch(error.headers.get("Content-Range") or "")
        if error.code == 416 and sizes and int(sizes[2]) == start:
            return  # the last byte had arrived before the connection broke
        if error.code == 416:
            part.unlink()
            raise _Broken("the server's file is shorter than what was downloaded before") from None
        if error.code == 429 or error.code >= 500:
            raise _Broken(f"the server answers {error.code} {error.reason}") from None
        raise UserError(f"the server answers {error.code} {error.reason}") from None
    except urllib.error.URLError as error:
        raise _Broken(f"the server cannot be reached ({error.reason})") from None
    except (http.client.HTTPException, ConnectionError, TimeoutError) as error:
        raise _Broken(f"the connection was lost ({' '.join(str(error).split()) or type(error).__name__})") from None


def _append(response: http.client.HTTPResponse, part: Path, start: int) -> None:
    sizes = _RANGE.fullmatch(response.headers.get("Content-Range") or "")
    if response.status != 206 or sizes is None or sizes[1] is None or int(sizes[1]) != start:
        start = 0  # the server sends the whole file
    length = response.headers.get("Content-Length")
    total = int(sizes[2]) if start and sizes else int(length) if length and length.isdecimal() else None
    _require_space(part, start, total)
    if start:
        note(f"resuming after {start / MB:.0f} MB")
    progress = Progress(None if total is None else -(-total // MB), "MB", start // MB)
    done = start
    try:
        with open(part, "ab" if start else "wb") as f:
            while chunk := response.read(CHUNK):
                f.write(chunk)
                progress((done + len(chunk)) // MB - done // MB)
                done += len(chunk)
    finally:
        progress.close()
    if total is not None and done < total:
        raise _Broken(f"the connection was lost; {total - done} of {total} bytes are missing")


def _require_space(part: Path, start: int, total: int | None) -> None:
    free = shutil.disk_usage(part.parent).free
    if total is not None and free < total - start:
        raise UserError(
            f"{part.parent} has {free / MB:.0f} MB free, but {(total - start) / MB:.0f} MB are to be downloaded; "
            "choose a larger disk with --root"
        )


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def md5_of(path: Path) -> str:
    """Return the MD5 of a file in hexadecimal: the checksum that the official sites publish."""
    with open(path, "rb") as f:
        return hashlib.file_digest(f, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
