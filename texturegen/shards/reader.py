"""Read a finished shard directory: straight to the bytes, by the manifest's offsets.

Nothing is unpickled or executed, and no path is taken from a tar: only the shard files that `build.json` names,
in the directory itself, are opened.
"""

import json
import mmap
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from texturegen.errors import UserError
from texturegen.images import decode_image
from texturegen.shards.schema import BUILD, FORMAT, MANIFEST, MANIFEST_SCHEMA, PARTS


@dataclass(frozen=True)
class Sample:
    """One image with its textures. Pixels are decoded on first use.

    Attributes
    ----------
    key : unique name of the image in its data set.
    label : class number, -1 where the data set has none.
    meta : what the source knows beside the label (`shapes`: shape, texture, texture_label, split).
    image_bytes, texture_bytes : the encoded members, as in the tar.
    """

    key: str
    label: int
    meta: dict[str, Any]
    shard: str
    image_bytes: bytes = field(repr=False)
    texture_bytes: tuple[bytes, ...] = field(repr=False)

    @cached_property
    def image(self) -> np.ndarray:
        """uint8 (H, W, 3), RGB. UserError when the bytes are damaged."""
        return self._decode(self.image_bytes, "image")

    @cached_property
    def textures(self) -> np.ndarray:
        """uint8 (K, H, W, 3), RGB; K = 0 for shards built with `--per-image 0`."""
        if not self.texture_bytes:
            return np.empty((0, *self.image.shape), np.uint8)
        return np.stack([self._decode(data, f"texture{i}") for i, data in enumerate(self.texture_bytes)])

    def _decode(self, data: bytes, member: str) -> np.ndarray:
        try:
            return decode_image(data)
        except UserError as error:
            raise UserError(
                f"{self.shard}: {self.key}: {member}: {error}; `texturegen verify` lists all damage"
            ) from None


class Shards:
    """A finished shard directory as a sequence of samples, in the data set's order.

    Attributes
    ----------
    manifest : pyarrow.Table, one row per texture, failed images included (schema.py describes the columns).
    build : what `build.json` holds (recipe, source, counts, versions, shards).
    keys, labels : of the samples, in order; labels is int64 (N,).
    textures_per_image : K, the same for every sample.
    """

    def __init__(self, directory: str | Path) -> None:
        self.directory = Path(directory)
        self.build = read_build(self.directory)
        self.manifest = read_manifest(self.directory / MANIFEST)
        for shard in self.build["shards"]:
            check_size(self.directory / shard["name"], shard["bytes"])

        ok = self.manifest.filter(pc.equal(self.manifest["status"], "ok"))
        self.textures_per_image: int = self.build["recipe"]["per_image"]
        per_sample = max(self.textures_per_image, 1)
        rows = ok.num_rows // per_sample
        # The rows of a sample are adjacent: the image's columns stand in the first, a texture in each.
        first = ok.take(np.arange(0, ok.num_rows, per_sample))
        self.keys: list[str] = first["key"].to_pylist()
        self.labels = first["label"].to_numpy().copy()  # Arrow's own memory is read-only
        self.widths, self.heights = first["width"].to_numpy(), first["height"].to_numpy()
        self._shard: list[str] = first["shard"].to_pylist()
        self._image = np.stack([first["image_offset"].to_numpy(), first["image_size"].to_numpy()], 1)
        self._texture = np.empty((rows, 0, 2), np.int64)
        if self.textures_per_image:
            offsets, sizes = ok["texture_offset"].to_numpy(), ok["texture_size"].to_numpy()
            self._texture = np.stack([offsets, sizes], 1).reshape(rows, per_sample, 2)
        self._meta: list[str] = first["meta"].to_pylist()
        self._maps: dict[str, mmap.mmap] = {}

    @property
    def classes(self) -> list[str]:
        """Class names by label; empty where the source names none."""
        return list(self.build["source"]["classes"])

    def image_size(self) -> tuple[int, int]:
        """(H, W) of all images; UserError when they differ or there are none."""
        sizes = sorted(set(zip(self.heights.tolist(), self.widths.tolist(), strict=True)))
        if len(sizes) != 1:
            found = "there are no images" if not sizes else f"images of {len(sizes)} sizes, {sizes[0]} to {sizes[-1]}"
            raise UserError(
                f"{self.directory}: {found}, and a batch needs one size; build with --size to resize them all"
            )
        return sizes[0]

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, i: int) -> Sample:
        if not -len(self) <= i < len(self):
            raise IndexError(f"sample {i} of {len(self)} in {self.directory}")
        shard = self._map(self._shard[i])

        def read(offset: int, size: int) -> bytes:
            return shard[offset : offset + size]

        return Sample(
            key=self.keys[i],
            label=int(self.labels[i]),
            meta=json.loads(self._meta[i]),
            shard=str(self.directory / self._shard[i]),
            image_bytes=read(*self._image[i].tolist()),
            texture_bytes=tuple(read(*place) for place in self._texture[i].tolist()),
        )

    def __iter__(self) -> Iterator[Sample]:
        return (self[i] for i in range(len(self)))

    def metas(self) -> list[dict[str, Any]]:
        """The `.meta` of every sample, without touching the tars."""
        return [json.loads(meta) for meta in self._meta]

    def _map(self, name: str) -> mmap.mmap:
        if name not in self._maps:
            with open(self.directory / name, "rb") as f:
                self._maps[name] = mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ)
        return self._maps[name]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_maps": {}}  # a map does not travel to another process; it opens its own


def open_shards(directory: str | Path) -> Shards:
    """Open a finished shard directory; it has a length, indexing and iteration over `Sample`, and `.manifest`.

    Raises UserError when the directory is missing, unfinished, of a newer format, or a shard's size is wrong.
    """
    return Shards(directory)


def read_build(directory: Path) -> dict[str, Any]:
    path = directory / BUILD
    if not path.is_file():
        if (directory / PARTS).is_dir():
            raise UserError(f"{directory}: this build is not finished; run the same `texturegen build` again")
        raise UserError(f"{directory}: no shards here ({BUILD} is missing); make some with `texturegen build`")
    try:
        build = json.loads(path.read_text())
        if build["format"] > FORMAT:
            raise UserError(f"{path}: format {build['format']} is newer than this version reads ({FORMAT}); upgrade")
        for shard in build["shards"]:
            if Path(shard["name"]).name != shard["name"]:
                raise UserError(f"{path}: shard name {shard['name']!r} leads out of the directory; not opened")
    except (json.JSONDecodeError, KeyError, TypeError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: damaged ({error!r}); build again into a new directory") from None
    return build


def read_manifest(path: Path) -> pa.Table:
    try:
        table = pq.read_table(path)
        if not table.schema.equals(MANIFEST_SCHEMA):
            raise UserError(f"{path}: its columns are not those of a manifest; copy it again or build again")
        return table
    except FileNotFoundError:
        raise UserError(f"{path}: missing; build again into a new directory") from None
    except (pa.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{path}: damaged ({reason}); copy it again or build again into a new directory") from None


def check_size(path: Path, size: int) -> None:
    if not path.is_file():
        raise UserError(f"{path}: missing; copy it again, or build again into a new directory")
    if path.stat().st_size != size:
        raise UserError(
            f"{path}: {path.stat().st_size} bytes where {size} were written; "
            "copy it again, or build again into a new directory (`texturegen verify` lists all damage)"
        )
