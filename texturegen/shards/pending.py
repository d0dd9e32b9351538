"""Atomic creation of a shard directory from the samples of others.

Samples are copied to OUT.partial, which is locked, and renamed to OUT when it is complete. A killed process leaves
OUT.partial, and the next run of the same command replaces it.
"""

import errno
import os
import re
import shutil
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import numpy as np
import pyarrow as pa

from texturegen import __version__
from texturegen.errors import DamagedError, UserError
from texturegen.shards.card import CARD
from texturegen.shards.layout import BUILD, FORMAT, MANIFEST, PARTS, PREFIX, SHARD_FILE
from texturegen.shards.manifest import group_samples, has_failed
from texturegen.shards.publish import publish
from texturegen.shards.reader import Shards
from texturegen.shards.writer import ShardWriter
from texturegen.storage.lock import LOCK, DirectoryLock, refuse_dangling_link

RECORDED = ("numpy", "pyarrow")  # packages whose versions build.json records
FINGERPRINT = "copied"  # in the stats of shards that no recipe describes
MARK = "copied"  # file in OUT.partial/parts/ that distinguishes a copy from an unfinished build
_MEMBER_COLUMNS = [f"{member}_{column}" for member in ("image", "texture") for column in ("ext", "size", "sha256")]
_OWN_NAMES = "|".join(map(re.escape, (MANIFEST, BUILD, CARD)))
_OWN_FILE = re.compile(rf"{SHARD_FILE.pattern}|({_OWN_NAMES})(\..*\.tmp)?")

Progress = Callable[[int], object]


class PendingDirectory:
    """A new shard directory, as a context manager, which removes it on exit unless `keep` was called.

    Parameters
    ----------
    out : Path
        The new directory: missing, or empty.
    inputs : list of Shards
        The directories to copy from.
    shard_size : int or None
        Samples per shard; None for the shard size of the first input.
    derived : dict
        The operation and its options, for build.json.

    Raises
    ------
    BusyError
        Another process is writing the same directory.
    UserError
        `out` or OUT.partial is not empty, `out` is inside one of the inputs, or a link that leads nowhere.
    """

    def __init__(self, out: Path, inputs: list[Shards], shard_size: int | None, derived: dict[str, Any]) -> None:
        refuse_dangling_link(out)
        recipes = [shards.build["recipe"] for shards in inputs]
        self.inputs = inputs
        self.out = Path(os.path.realpath(out))  # of a symbolic link, the target is replaced
        if not self.out.name:
            raise UserError(f"{out}: exists and is not empty; choose another --out")
        self.partial = self.out.with_name(f"{self.out.name}.partial")
        for shards in inputs:
            if Path(os.path.realpath(shards.directory)) in (self.out, *self.out.parents):
                raise UserError(f"{out}: is inside the input {shards.directory}; choose a directory outside it")
        if shard_size is None and "shard_size" not in recipes[0]:
            raise DamagedError(f"{inputs[0].directory}: the recipe in {BUILD} has no shard_size; copy the file again")
        self.shard_size = recipes[0]["shard_size"] if shard_size is None else shard_size
        if self.shard_size < 1:
            raise UserError(f"--shard-size is {self.shard_size}; it must be at least 1")
        self.recipe = {**common_values(recipes), "shard_size": self.shard_size}
        self.derived = {**derived, "inputs": [_describe(shards) for shards in inputs]}
        self.stats: list[dict[str, Any]] = []
        self.counts: dict[str, int] = {}
        self._writer: ShardWriter | None = None
        self._renaming = self._kept = False
        self._lock = DirectoryLock(self.partial, "writing")
        self._held = ExitStack()

    def __enter__(self) -> "PendingDirectory":
        try:
            self._held.enter_context(self._lock)
        except FileExistsError:
            raise UserError(f"{self.partial}: is not a directory; remove it") from None
        try:
            self._require_empty()
        except BaseException:
            self._held.close()
            raise
        try:
            self._remove(self.partial)
            (self.partial / PARTS).mkdir()
            (self.partial / PARTS / MARK).touch()
        except BaseException:
            self._discard(self.partial)
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if self._writer is not None:
            self._writer.__exit__(kind, error, tb)
        if self._kept:
            shutil.rmtree(self.out / PARTS, ignore_errors=True)
            self._held.close()
        else:
            # An interrupt right after the rename leaves the directory at its final path.
            self._discard(self.out if self._renaming and not self.partial.exists() else self.partial)

    def copy(self, shards: Shards, rows: np.ndarray, progress: Progress) -> None:
        """Append samples and failed images of an input.

        Parameters
        ----------
        shards : Shards
            The input.
        rows : bool (N,)
            The rows of its manifest to copy; all rows of a sample or none.
        progress : callable
            Called with 1 after each sample.
        """
        listed = {shard["name"] for shard in shards.build["shards"]}
        opened: dict[str, IO[bytes]] = {}
        try:
            for sample in group_samples(shards.manifest.filter(pa.array(rows)), shards.textures_per_image):
                if has_failed(sample[0]):
                    self._current().add_row(**sample[0])
                    continue
                name = sample[0]["shard"]
                if name not in opened:
                    if name not in listed:
                        raise DamagedError(
                            f"{shards.directory}: {MANIFEST} names the shard {name!r}, which {BUILD} does not list"
                        )
                    for file in opened.values():
                        file.close()
                    opened = {name: open(shards.directory / name, "rb")}  # noqa: SIM115 - closed above or below
                if self._writer is not None and self._writer.samples == self.shard_size:
                    self._commit()
                _copy_sample(self._current(), opened[name], sample)
                progress(1)
        finally:
            for file in opened.values():
                file.close()

    def complete(self) -> None:
        """Write the manifest and build.json."""
        self._commit()
        is_merge = len(self.inputs) > 1
        ignored = sum(shards.build["counts"].get("ignored", 0) for shards in self.inputs) if is_merge else 0
        source = common_values([shards.build["source"] for shards in self.inputs])
        description = {
            "format": FORMAT,
            "recipe": self.recipe,
            "source": {
                "name": source.get("name"),
                "split": source.get("split"),
                "items": sum(stats["samples"] + stats["failed"] for stats in self.stats),
                "classes": self.inputs[0].classes,
                "digest": None,
            },
            "algorithms": common_values([shards.build.get("algorithms", {}) for shards in self.inputs]),
            "texturegen": __version__,
        }
        self.counts = publish(self.partial, description, self.stats, ignored, RECORDED, derived=self.derived)

    def rename(self) -> None:
        """Rename the directory to `out`; it is still removed on exit unless `keep` follows."""
        self._renaming = True
        try:
            os.replace(self.partial, self.out)
        except OSError as error:
            if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
                raise UserError(
                    f"{self.out}: another process wrote files there during the copy; choose another --out"
                ) from None
            raise
        self._lock.directory = self.out

    def keep(self) -> None:
        """Keep the renamed directory."""
        self._kept = True

    def _discard(self, directory: Path) -> None:
        """Remove the directory at its temporary or final path, and release the lock."""
        self._lock.directory = directory
        try:
            self._remove(directory)
        finally:
            self._held.close()
        with suppress(OSError):  # usually removed with the lock
            directory.rmdir()

    def _require_empty(self) -> None:
        """Raise UserError if `out` is not empty, or OUT.partial holds other files than those of a killed copy."""
        if self.out.exists() and (not self.out.is_dir() or any(self.out.iterdir())):
            raise UserError(f"{self.out}: exists and is not empty; choose another --out, or remove it")
        names = {entry.name for entry in self.partial.iterdir()} - {LOCK}
        parts = self.partial / PARTS
        is_copy = names == {PARTS} and parts.is_dir() and not any(parts.iterdir())
        is_copy |= (parts / MARK).is_file() and all(_OWN_FILE.fullmatch(name) for name in names - {PARTS})
        if names and not is_copy:
            raise UserError(
                f"{self.partial}: exists and is not empty, but {self.out} is written there first; remove it"
            )

    def _remove(self, directory: Path) -> None:
        """Remove all files but the lock: build.json first, so that it never looks finished, and MARK last."""
        parts = directory / PARTS
        (directory / BUILD).unlink(missing_ok=True)
        for path in directory.iterdir():
            if path.name not in (LOCK, PARTS):
                path.unlink()
        if parts.is_dir():
            for path in parts.iterdir():
                if path.name != MARK:
                    path.unlink()
            shutil.rmtree(parts)

    def _current(self) -> ShardWriter:
        if self._writer is None:
            self._writer = ShardWriter(self.partial, len(self.stats), FINGERPRINT, self.recipe.get("prefix") or PREFIX)
        return self._writer

    def _commit(self) -> None:
        if self._writer is not None:
            self.stats.append(self._writer.commit())
            self._writer = None


def common_values(trees: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the union of the dicts' keys, with the common value of each, or None where the dicts differ."""
    names = sorted({name for tree in trees for name in tree})
    first = trees[0]
    return {name: first.get(name) if all(t.get(name) == first.get(name) for t in trees) else None for name in names}


def _copy_sample(writer: ShardWriter, f: IO[bytes], rows: list[dict[str, Any]]) -> None:
    """Append one sample from the open shard `f`, and compare its bytes with the manifest's checksums."""
    first = rows[0]
    length = os.fstat(f.fileno()).st_size

    def read(offset: int | None, size: int | None) -> bytes:
        if offset is None or size is None or not 0 <= offset <= offset + size <= length or size < 0:
            raise _damaged(f, first["key"])
        f.seek(offset)
        return f.read(size)

    image = read(first["image_offset"], first["image_size"])
    textured = [row for row in rows if row["index"] is not None]
    textures = [read(row["texture_offset"], row["texture_size"]) for row in textured]
    members = {member["ext"]: read(member["offset"], member["size"]) for member in first["members"] or []}
    members.pop("cls", None)  # the writer makes its own
    texture_ext = textured[0]["texture_ext"] if textured else "png"
    try:
        written = writer.add(first["key"], image, first["image_ext"], textures, first["label"], texture_ext, members)
    except ValueError as error:
        raise DamagedError(f"{f.name}: {error}; `texturegen verify` lists all faults") from None
    sums = [{member["ext"]: member["sha256"] for member in row["members"] or []} for row in (first, written[0])]
    for row, columns in zip(rows, written, strict=True):
        if any(row[column] != columns.get(column) for column in _MEMBER_COLUMNS) or sums[0] != sums[1]:
            raise _damaged(f, first["key"])
        writer.add_row(**{**row, **columns})


def _damaged(f: IO[bytes], key: str) -> DamagedError:
    return DamagedError(
        f"{f.name}: {key}: its bytes differ from the manifest's checksums, so nothing was written; list all faults "
        "with `texturegen verify`, or rebuild the shard with `texturegen repair`"
    )


def _describe(shards: Shards) -> dict[str, Any]:
    """Return the entry of an input in build.json."""
    content = shards.build
    names = ("manifest_sha256", "recipe", "source", "versions", "derived")
    description = {name: content[name] for name in names if name in content}
    return {"name": shards.directory.resolve().name, **description}
