"""Official files of a benchmark: find them, verify their MD5, or download and unpack their archive."""

import hashlib
import os
import shutil
import sys
import tarfile
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from texturegen.errors import UserError


@dataclass(frozen=True)
class Archive:
    """A tar.gz that holds one folder of files, and where it is published."""

    url: str
    md5: str
    folder: str


def require_files(
    name: str, root: Path, archive: Archive, files: Mapping[str, str], download: bool, check: bool
) -> Path:
    """Return the folder under `root` that holds every one of `files` (name -> MD5); UserError when one is amiss.

    check=False looks only whether they exist. With download, the archive is fetched when any is missing or wrong.
    """
    folder = root / archive.folder
    problem = _find_problem(name, folder, archive, files, check)
    if problem and download:
        _download(name, root, archive)
        problem = _find_problem(name, folder, archive, files, check=True)
    if problem:
        raise UserError(problem)
    return folder


def _find_problem(name: str, folder: Path, archive: Archive, files: Mapping[str, str], check: bool) -> str | None:
    help_ = f"add --download, or unpack {archive.url} under {folder.parent}"
    for file in files:
        if not (folder / file).is_file():
            return f"{name}: the file {file} is not in {folder}; {help_}"
    for file, md5 in files.items() if check else ():
        with open(folder / file, "rb") as stream:
            found = hashlib.file_digest(stream, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
        if found != md5:
            return f"{name}: {folder / file} is damaged (MD5 {found}, official {md5}); {help_} again"
    return None


def _download(name: str, root: Path, archive: Archive) -> None:
    import pooch

    try:
        root.mkdir(parents=True, exist_ok=True)
        # Beside the final place, so that each file moves there in one step, and only once it is whole.
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
    """Copy the plain files that lie directly in `folder` of the archive: no link and no other path can come out."""
    with tarfile.open(packed) as tar:
        for member in tar:
            path = PurePosixPath(member.name)
            stream = tar.extractfile(member) if member.isfile() and path.parent == PurePosixPath(folder) else None
            if stream is not None:
                with stream, open(target / path.name, "xb") as file:
                    shutil.copyfileobj(stream, file)
