"""Shard directories out of shard directories: joined, or divided by a filter or a share. Nothing is encoded anew.

The manifest says where each member lies; its bytes are copied and their checksum compared on the way. An image goes
with all its textures or not at all, and the order stays. The new directory is made under the name OUT.partial and
renamed when it is complete; an error or Ctrl-C removes it again.
"""

import hashlib
import os
import platform
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from importlib.metadata import version
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from texturegen import __version__
from texturegen.errors import UserError
from texturegen.shards.filter import rows_that_pass
from texturegen.shards.layout import BUILD, FORMAT, MANIFEST, PARTS
from texturegen.shards.reader import Shards
from texturegen.shards.writer import ShardWriter, join_manifests
from texturegen.storage.atomic import sha256_of, write_atomically, write_json

RECORDED = ("numpy", "pyarrow")
FINGERPRINT = "copied"  # of parts: nothing takes up a half-made directory
PLACES = [f"{member}_{column}" for member in ("image", "texture") for column in ("ext", "size", "sha256")]

Progress = Callable[[int], object]


def merge(
    inputs: Sequence[str | Path],
    out: str | Path,
    shard_size: int | None = None,
    progress: Progress = lambda samples: None,
) -> dict[str, int]:
    """Write the samples of all `inputs`, one after the other, to the new directory `out`; return its counts.

    The failed images' rows come along. `shard_size` : samples per shard; None is the first input's.

    Raises UserError: an input that is no finished build or is damaged; classes or textures per image differ; a key in
    two inputs; `out` exists.
    """
    if len(inputs) < 2:
        raise UserError("merge needs two directories or more")
    opened = [Shards(directory) for directory in inputs]
    for other in opened[1:]:
        for what, (mine, theirs) in {
            "classes": (opened[0].classes, other.classes),
            "textures per image": (opened[0].textures_per_image, other.textures_per_image),
        }.items():
            if mine != theirs:
                raise UserError(
                    f"{opened[0].directory} and {other.directory} cannot be merged: their {what} differ "
                    f"({_short(mine)} and {_short(theirs)})"
                )
    _refuse_repeated_keys(opened)
    derived = {"operation": "merge"}
    with _PendingDirectory(Path(out), opened, shard_size, derived) as new:
        for shards in opened:
            new.copy(shards, np.ones(shards.manifest.num_rows, bool), progress)
        new.complete()
        new.publish()
    return new.counts


def split(
    directory: str | Path,
    out: str | Path,
    rest: str | Path | None = None,
    *,
    where: str | None = None,
    share: float | None = None,
    seed: int = 0,
    shard_size: int | None = None,
    progress: Progress = lambda samples: None,
) -> list[dict[str, int]]:
    """Write some samples of `directory` to the new directory `out`, the others to `rest`; return the counts of each.

    Parameters
    ----------
    where : a condition on manifest rows, see filter.py; a sample passes when all its rows do. Failed images' rows are
        judged like any other.
    share, seed : or so large a part of the samples, 0 < share < 1, exactly and whatever their order: those whose key
        has the smallest hash with the seed. Failed images' rows go to `out`.
    shard_size : samples per shard; None is the input's.

    Raises UserError: no finished build or a damaged one; a filter that cannot be read; no sample on one side; `out`
    or `rest` exists.
    """
    if (where is None) == (share is None):
        raise UserError("split needs a filter or a share, one of the two")
    shards = Shards(directory)
    if where is not None:
        kept = _whole_samples(shards, rows_that_pass(where, shards.manifest).to_numpy())
        derived: dict[str, Any] = {"operation": "split", "filter": where}
    else:
        assert share is not None
        if not 0 < share < 1:
            raise UserError(f"the share is {share}; it must lie between 0 and 1")
        kept = _share(shards, share, seed)
        derived = {"operation": "split", "share": share, "seed": seed}
    if rest is not None and os.path.realpath(rest) == os.path.realpath(out):
        raise UserError(f"{out}: is to hold what is chosen and the rest too; give --rest another directory")
    ok = pc.equal(shards.manifest["status"], "ok").to_numpy()
    for target, mask, chosen in ((out, kept, "none"), (rest, ~kept, "every one")):
        if target is not None and not (mask & ok).any():
            raise UserError(f"{target}: would hold no image, as {chosen} of the {len(shards)} in {directory} is chosen")
    made = []
    with ExitStack() as stack:
        for target, mask, part in ((out, kept, "out"), (rest, ~kept, "rest")):
            if target is not None:
                new = stack.enter_context(
                    _PendingDirectory(Path(target), [shards], shard_size, {**derived, "part": part})
                )
                new.copy(shards, mask, progress)
                made.append(new)
        for new in made:
            new.complete()
        for new in made:
            new.publish()
    return [new.counts for new in made]


class _PendingDirectory:
    """A context that makes the directory `out` of samples of others; without `publish()` it leaves nothing."""

    def __init__(self, out: Path, inputs: list[Shards], shard_size: int | None, derived: dict[str, Any]) -> None:
        recipes = [shards.build["recipe"] for shards in inputs]
        self.inputs = inputs
        self.out = Path(os.path.realpath(out))  # of a link, what it leads to takes the new name
        self.partial = self.out.with_name(f"{self.out.name}.partial")
        for shards in inputs:
            if Path(os.path.realpath(shards.directory)) in (self.out, *self.out.parents):
                raise UserError(f"{out}: is inside of {shards.directory}; choose a directory elsewhere")
        self.shard_size = recipes[0]["shard_size"] if shard_size is None else shard_size
        if self.shard_size < 1:
            raise UserError(f"--shard-size is {self.shard_size}; it must be at least 1")
        self.recipe = {**_shared(recipes), "shard_size": self.shard_size}
        self.derived = {**derived, "inputs": [_describe(shards) for shards in inputs]}
        self.stats: list[dict[str, Any]] = []
        self.counts: dict[str, int] = {}
        self._writer: ShardWriter | None = None
        self._published = False

    def __enter__(self) -> "_PendingDirectory":
        if self.out.exists() and (not self.out.is_dir() or any(self.out.iterdir())):
            raise UserError(f"{self.out}: exists and holds things; choose another --out, or remove it")
        try:
            self.partial.mkdir(parents=True)
        except FileExistsError:
            raise UserError(
                f"{self.partial}: left by a run that was killed, or still being written; remove it when nobody is at it"
            ) from None
        (self.partial / PARTS).mkdir()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if self._writer is not None:
            self._writer.__exit__(kind, error, tb)
        if not self._published:
            shutil.rmtree(self.partial, ignore_errors=True)

    def copy(self, shards: Shards, rows: np.ndarray, progress: Progress) -> None:
        """Append the samples and failed images whose manifest rows are marked in `rows`."""
        known = {shard["name"] for shard in shards.build["shards"]}
        opened: dict[str, IO[bytes]] = {}
        try:
            for sample in _samples(shards, rows):
                if sample[0]["status"] != "ok":
                    self._current().add_row(**sample[0])
                    continue
                name = sample[0]["shard"]
                if name not in opened:
                    if name not in known:
                        raise UserError(f"{shards.directory}: {MANIFEST} names a shard {name!r} that {BUILD} does not")
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
        """Write manifest and build.json."""
        self._commit()
        parts = [self.partial / PARTS / f"{number:06d}.parquet" for number in range(len(self.stats))]
        write_atomically(self.partial / MANIFEST, partial(join_manifests, parts))
        counts = {name: sum(stats[name] for stats in self.stats) for name in ("samples", "textures", "failed")}
        merged = len(self.inputs) > 1
        counts["ignored"] = sum(shards.build["counts"].get("ignored", 0) for shards in self.inputs) if merged else 0
        sources = [shards.build["source"] for shards in self.inputs]
        content = {
            "format": FORMAT,
            "recipe": self.recipe,
            "source": {
                "name": _shared(sources)["name"],
                "split": _shared(sources)["split"],
                "items": counts["samples"] + counts["failed"],
                "classes": self.inputs[0].classes,
                "digest": None,
            },
            "texturegen": __version__,
            "counts": counts,
            "shards": [{name: value for name, value in stats.items() if name != "seconds"} for stats in self.stats],
            "manifest_sha256": sha256_of(self.partial / MANIFEST),
            "versions": {"python": platform.python_version(), **{name: version(name) for name in RECORDED}},
            "derived": self.derived,
        }
        write_json(self.partial / BUILD, content)
        shutil.rmtree(self.partial / PARTS)
        self.counts = counts

    def publish(self) -> None:
        """Give the directory its name."""
        os.replace(self.partial, self.out)
        self._published = True

    def _current(self) -> ShardWriter:
        if self._writer is None:
            self._writer = ShardWriter(self.partial, len(self.stats), FINGERPRINT)
        return self._writer

    def _commit(self) -> None:
        if self._writer is not None:
            self.stats.append(self._writer.commit())
            self._writer = None


def _samples(shards: Shards, rows: np.ndarray) -> Iterator[list[dict[str, Any]]]:
    """The marked manifest rows, those of a sample together; a failed image is one row."""
    textures = shards.textures_per_image
    indices = [*range(textures)] if textures else [None]
    sample: list[dict[str, Any]] = []
    for batch in shards.manifest.filter(pa.array(rows)).to_batches(max_chunksize=1000):
        for row in batch.to_pylist():
            if row["status"] != "ok" and not sample:
                yield [row]
                continue
            sample.append(row)
            if (row["key"], row["index"], row["status"]) != (sample[0]["key"], indices[len(sample) - 1], "ok"):
                raise _broken(shards, sample[0]["key"])
            if len(sample) == len(indices):
                yield sample
                sample = []
    if sample:
        raise _broken(shards, sample[0]["key"])


def _broken(shards: Shards, key: str) -> UserError:
    return UserError(
        f"{shards.directory / MANIFEST}: the rows of {key!r} are not those of one sample, one after the other; "
        "`texturegen verify` lists all damage"
    )


def _copy_sample(writer: ShardWriter, f: IO[bytes], rows: list[dict[str, Any]]) -> None:
    """Append one sample, its bytes taken from the shard `f`; UserError when they are not those of the manifest."""
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
    members.pop("cls", None)  # the writer's own
    texture_ext = textured[0]["texture_ext"] if textured else "png"
    try:
        places = writer.add(first["key"], image, first["image_ext"], textures, first["label"], texture_ext, members)
    except ValueError as error:
        raise UserError(f"{f.name}: {error}; `texturegen verify` lists all damage") from None
    sums = [{member["ext"]: member["sha256"] for member in row["members"] or []} for row in (first, places[0])]
    for row, place in zip(rows, places, strict=True):
        if any(row[column] != place.get(column) for column in PLACES) or sums[0] != sums[1]:
            raise _damaged(f, first["key"])
        writer.add_row(**{**row, **place})


def _damaged(f: IO[bytes], key: str) -> UserError:
    return UserError(
        f"{f.name}: {key}: its bytes are not those that the manifest describes; nothing was written: "
        "`texturegen verify` lists all damage, `texturegen repair` mends it"
    )


def _whole_samples(shards: Shards, passed: np.ndarray) -> np.ndarray:
    """`passed`, but false for all rows of a sample of which one is false."""
    ok = np.flatnonzero(pc.equal(shards.manifest["status"], "ok").to_numpy())
    per_sample = max(shards.textures_per_image, 1)
    if len(ok) % per_sample:
        raise UserError(f"{shards.directory / MANIFEST}: rows are missing; `texturegen verify` lists all damage")
    whole = passed.copy()
    whole[ok] = np.repeat(passed[ok].reshape(-1, per_sample).all(1), per_sample)
    return whole


def _share(shards: Shards, share: float, seed: int) -> np.ndarray:
    keys = [f"{seed}/{key}".encode() for key in shards.keys]
    order = sorted(range(len(keys)), key=lambda i: hashlib.blake2b(keys[i], digest_size=16).digest())
    chosen = np.zeros(len(keys), bool)
    chosen[order[: int(share * len(keys) + 0.5)]] = True
    ok = pc.equal(shards.manifest["status"], "ok").to_numpy()
    rows = np.ones(len(ok), bool)
    rows[ok] = np.repeat(chosen, max(shards.textures_per_image, 1))
    return rows


def _refuse_repeated_keys(opened: list[Shards]) -> None:
    keys = pa.concat_arrays([pa.array(shards.keys, pa.string()) for shards in opened])
    if pc.count_distinct(keys).as_py() == len(keys):
        return
    counts = keys.value_counts()
    repeated = counts.filter(pc.greater(counts.field("counts"), 1)).field("values")[0].as_py()
    holders = [str(shards.directory) for shards in opened for _ in range(shards.keys.count(repeated))]
    raise UserError(
        f"the key {repeated!r} is in {' and in '.join(holders[:2])}; a merged set needs every key once: "
        "`texturegen split` can leave samples out"
    )


def _describe(shards: Shards) -> dict[str, Any]:
    content = shards.build
    about = {name: content[name] for name in ("manifest_sha256", "recipe", "source", "versions")}
    if "derived" in content:
        about["derived"] = content["derived"]
    return {"name": shards.directory.resolve().name, **about}


def _shared(trees: list[dict[str, Any]]) -> dict[str, Any]:
    """Per name the value that all have, else None."""
    names = sorted({name for tree in trees for name in tree})
    first = trees[0]
    return {name: first.get(name) if all(t.get(name) == first.get(name) for t in trees) else None for name in names}


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
