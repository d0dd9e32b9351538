"""The official files of a benchmark: found, verified by MD5, or downloaded."""

import hashlib
import os
import shutil
import sys
import tarfile
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from texturegen.errors import DamagedError, MissingError, UserError


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


def require_files(
    name: str, root: Path, archive: Archive, files: Mapping[str, str], download: bool, check: bool
) -> Path:
    """Return the folder of a benchmark's official files, downloading them if asked to.

    Parameters
    ----------
    name : of the data set, for messages.
    root : where the archive's folder is, or will be.
    archive : what to download.
    files : name -> MD5 of the files that must be there.
    download : fetch the archive if a file is missing or damaged.
    check : verify the checksums; otherwise only that the files exist.

    Raises
    ------
    MissingError : a file is missing.
    DamagedError : the checksum of a file is wrong.
    UserError : the archive cannot be downloaded.
    """
    folder = root / archive.folder
    problem = _find_problem(name, folder, archive, files, check)
    if problem and download:
        _download(name, root, archive)
        problem = _find_problem(name, folder, archive, files, check=True)
    if problem:
        raise problem
    return folder


def _find_problem(name: str, folder: Path, archive: Archive, files: Mapping[str, str], check: bool) -> UserError | None:
    """Return the error for the first file that is missing or damaged."""
    remedy = f"add --download, or unpack {archive.url} under {folder.parent}"
    for file in files:
        if not (folder / file).is_file():
            return MissingError(f"{name}: the file {file} is not in {folder}; {remedy}")
    for file, md5 in files.items() if check else ():
        with open(folder / file, "rb") as stream:
            found = hashlib.file_digest(stream, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
        if found != md5:
            return DamagedError(f"{name}: {folder / file} is damaged (MD5 {found}, official {md5}); {remedy} again")
    return None


def _download(name: str, root: Path, archive: Archive) -> None:
    import pooch

    try:
        root.mkdir(parents=True, exist_ok=True)
        # On the same disk, so that each file is moved into place in one step once it is complete.
        with tempfile.TemporaryDirectory(dir=root, prefix=".download-") as temporary:
            packed = pooch.retrieve(
                archive.url, f"md5:{archive.md5}", "archive", temporary, progressbar=sys.stderr.isatty()
            )
            unpacked = Path(temporary, "unpacked")
            unpacked.mkdir()
            _unpack(Path(packed), archive.folder, unpacked)
            (root / archive.folder).mkdir(exist_ok=True)
            for file in sorted(unpacked.iterdir()):
                os.replace(file, root / archive.folder / file.name)
    except (OSError, ValueError, tarfile.TarError) as error:  # pooch: ValueError for a wrong checksum
        reason = " ".join(str(error).split())
        raise UserError(f"{name}: {archive.url} could not be downloaded to {root}: {reason}") from error


def _unpack(packed: Path, folder: str, target: Path) -> None:
    """Extract the regular files directly in `folder` of the archive; links and other paths are skipped for safety."""
    with tarfile.open(packed) as tar:
        for member in tar:
            path = PurePosixPath(member.name)
            stream = tar.extractfile(member) if member.isfile() and path.parent == PurePosixPath(folder) else None
            if stream is not None:
                with stream, open(target / path.name, "xb") as file:
                    shutil.copyfileobj(stream, file)
