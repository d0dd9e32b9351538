"""The official files of a benchmark: found, verified by MD5, or downloaded."""

import contextlib
import os
import shutil
import tarfile
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from texturegen.console import note
from texturegen.errors import BusyError, DamagedError, MissingError, UserError
from texturegen.sources.download import download as download_file
from texturegen.sources.download import md5_of
from texturegen.storage.lock import acquire

DATA = "TEXTUREGEN_DATA"  # environment variable: the folder of data sets
POLL = 1.0  # seconds between looks at another process's download


@dataclass(frozen=True)
class Archive:
    """A published tar.gz.

    Attributes
    ----------
    url : where it is published.
    md5 : of the tar.gz.
    folder : the one folder in it that holds the files.
    """

    url: str
    md5: str
    folder: str


def data_folders() -> list[Path]:
    """Return the folders in which a data set is looked for without a root, in order.

    These are $TEXTUREGEN_DATA if it is set, data/ in the current directory, and the user's cache.
    """
    from platformdirs import user_cache_path

    chosen = os.environ.get(DATA)
    own = [Path(chosen).expanduser()] if chosen else []
    return [Path(os.path.abspath(path)) for path in (*own, Path("data"), user_cache_path("texturegen"))]


def download_folder() -> Path:
    """Return the folder into which a data set is downloaded without a root: $TEXTUREGEN_DATA, or the user's cache."""
    folders = data_folders()
    return folders[0] if os.environ.get(DATA) else folders[-1]


def require_files(
    name: str, root: Path | None, archive: Archive, files: Mapping[str, str], download: bool | None, check: bool
) -> Path:
    """Return the folder of a benchmark's official files, downloading them if need be.

    Parameters
    ----------
    name : of the data set, for messages.
    root : where the archive's folder is, or will be. None: the first of `data_folders` that holds all files; if none
        does, `download_folder`.
    archive : what to download.
    files : name -> MD5 of the files that must be there.
    download : fetch the archive if a file is missing or damaged. None: only without a root.
    check : verify the checksums; otherwise only that the files exist.

    Raises
    ------
    MissingError : a file is missing.
    DamagedError : the checksum of a file is wrong.
    UserError : the archive cannot be downloaded.
    """
    if download is None:
        download = root is None
    places = data_folders() if root is None else [root]
    complete = [place for place in places if all((place / archive.folder / file).is_file() for file in files)]
    chosen = complete[0] if complete else download_folder() if root is None else root
    problem = _find_problem(name, chosen / archive.folder, archive, files, check)
    if problem and root is None and not complete:
        searched = ", ".join(str(place / archive.folder) for place in places)
        remedy = f"add --download, or unpack {archive.url} in {chosen}"
        problem = MissingError(f"{name}: its files are in none of {searched}; {remedy}")
    if problem and download:
        _fetch(name, chosen, archive, files)
        problem = _find_problem(name, chosen / archive.folder, archive, files, check=True)
    if problem:
        raise problem
    return chosen / archive.folder


def _find_problem(name: str, folder: Path, archive: Archive, files: Mapping[str, str], check: bool) -> UserError | None:
    """Return the error for the first file that is missing or damaged."""
    remedy = f"add --download, or unpack {archive.url} under {folder.parent}"
    for file in files:
        if not (folder / file).is_file():
            return MissingError(f"{name}: the file {file} is not in {folder}; {remedy}")
    for file, md5 in files.items() if check else ():
        found = md5_of(folder / file)
        if found != md5:
            return DamagedError(f"{name}: {folder / file} is damaged (MD5 {found}, official {md5}); {remedy} again")
    return None


def _fetch(name: str, root: Path, archive: Archive, files: Mapping[str, str]) -> None:
    """Download and unpack the archive in `root`, or wait until another process has done so."""
    created = [path for path in (root, *root.parents) if not path.exists()]
    lock = root / f".{archive.folder}.lock"
    waited = False
    try:
        root.mkdir(parents=True, exist_ok=True)
        while True:
            try:
                held = acquire(lock, activity="downloading")
                break
            except BusyError as error:
                if not waited:
                    note(f"{name}: {str(error).partition(';')[0]}; waiting for its download")
                waited = True
                time.sleep(POLL)
        try:
            if not waited or _find_problem(name, root / archive.folder, archive, files, check=True):
                _download(name, root, archive)
        finally:
            lock.unlink(missing_ok=True)  # while it is held, see `acquire`
            held.close()
    except (OSError, UserError, tarfile.TarError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{name}: {archive.url} could not be downloaded to {root}: {reason}") from error
    finally:
        for path in created:
            with contextlib.suppress(OSError):  # not empty after a download
                path.rmdir()


def _download(name: str, root: Path, archive: Archive) -> None:
    packed = root / f"{archive.folder}.tar.gz"
    note(f"{name}: downloading {archive.url} to {root}")
    download_file(archive.url, packed, archive.md5)
    try:
        # On the same disk, so that each file is moved into place in one step once it is complete.
        with tempfile.TemporaryDirectory(dir=root, prefix=".unpacked-") as unpacked:
            _unpack(packed, archive.folder, Path(unpacked))
            (root / archive.folder).mkdir(exist_ok=True)
            for file in sorted(Path(unpacked).iterdir()):
                os.replace(file, root / archive.folder / file.name)
    finally:
        packed.unlink()


def _unpack(packed: Path, folder: str, target: Path) -> None:
    """Extract the regular files directly in `folder` of the archive; links and other paths are skipped for safety."""
    with tarfile.open(packed) as tar:
        for member in tar:
            path = PurePosixPath(member.name)
            stream = tar.extractfile(member) if member.isfile() and path.parent == PurePosixPath(folder) else None
            if stream is not None:
                with stream, open(target / path.name, "xb") as file:
                    shutil.copyfileobj(stream, file)
