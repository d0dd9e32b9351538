"""One image of a shard directory with its textures."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from texturegen.errors import DamagedError, UserError
from texturegen.shards.layout import IMAGE_EXTENSIONS, MASK, PASTED
from texturegen.shards.manifest import parse_meta
from texturegen.shards.sample_index import SampleIndex, digest_of
from texturegen.storage.image import decode_member
from texturegen.storage.ranges import Chunk, Ranges

_CHANGED = "its bytes differ from those that were written"


class Sample(Mapping[str, Any]):
    """One image with its textures. Bytes are read, pixels decoded and metadata parsed on access.

    A sample is also a mapping with the keys "key", "label", "image" and "textures", so torch's default collation makes
    a batch of samples a dict: lists of str, int64 (N,), uint8 (N, H, W, 3) and uint8 (N, K, H, W, 3).

    Attributes
    ----------
    key : str
        Unique name of the image in its data set; may contain "/".
    label : int
        Class index, -1 if the image has no label.
    meta : dict
        Source-specific metadata (`shapes`: shape, texture, texture_label, split).
    shard : str
        Path or URL of the tar.
    image, textures : ndarray
        Decoded pixels, uint8 (H, W, 3) and (K, H, W, 3) RGB.
    image_bytes, texture_bytes : bytes, tuple of bytes
        The encoded members, as in the tar; DamagedError if they differ from the manifest's checksums.
    members : dict of str to bytes
        Extra members by extension: those copied from the source's own tars, and those of `--paste`.
    pasted, masks : ndarray
        Of shards built with `--paste`: the image with each texture pasted into it, uint8 (K, H, W, 3) RGB, and where,
        uint8 (K, H, W).

    Examples
    --------
    >>> import texturegen
    >>> sample = texturegen.open_shards("shards")[0]
    >>> sample
    Sample(key='shapes-train-00000000', label=0, shard='shards/shard-000000.tar')
    >>> sample.image.shape, sample.textures.shape
    ((32, 32, 3), (1, 32, 32, 3))
    """

    FIELDS = ("key", "label", "image", "textures")

    __slots__ = ("_bytes", "_i", "_image", "_index", "_textures")

    def __init__(self, index: SampleIndex, i: int, ranges: Ranges) -> None:
        self._index, self._i, self._bytes = index, i, ranges
        self._image: np.ndarray | None = None
        self._textures: np.ndarray | None = None

    @property
    def key(self) -> str:
        return self._index.keys[self._i]

    @property
    def label(self) -> int:
        return self._index.labels_view[self._i]

    @property
    def shard(self) -> str:
        return self._index.files[self._index.shard_ids_view[self._i]]

    @property
    def meta(self) -> dict[str, Any]:
        """Parsed on each access; DamagedError if it is not a JSON object."""
        return read_meta(self._index, self._i)

    @property
    def image_bytes(self) -> bytes:
        return self._read(0)

    @property
    def texture_bytes(self) -> tuple[bytes, ...]:
        return tuple([self._read(member) for member in range(1, self._index.stride // 2)])

    @property
    def members(self) -> dict[str, bytes]:
        return self._read_members("")

    @property
    def pasted(self) -> np.ndarray:
        """uint8 (K, H, W, 3) RGB, decoded on each access; DamagedError if the bytes are damaged."""
        return self._decode_members(PASTED)

    @property
    def masks(self) -> np.ndarray:
        """uint8 (K, H, W), 255 where a texture is pasted, decoded on each access; DamagedError if damaged."""
        return self._decode_members(MASK)[..., 0]

    def _decode_members(self, name: str) -> np.ndarray:
        """Return the members NAME0.EXT, NAME1.EXT, ... as uint8 (K, H, W, 3) RGB."""
        found = []
        for number in range(self._index.stride // 2 - 1):
            found_members = self._read_members(f"{name}{number}.")
            # A data set's own tars may have members such as mask0.json.
            members = {e: d for e, d in found_members.items() if e.partition(".")[2] in IMAGE_EXTENSIONS}
            if len(members) != 1:
                missing = f"no member {name}{number}.png"
                raise UserError(f"{self.shard}: {self.key}: {missing}; build the shards with --paste")
            ((ext, data),) = members.items()
            try:
                found.append(decode_member(data))
            except UserError as error:
                raise self._fault(ext, str(error)) from None
        if not found:
            raise UserError(f"{self.shard}: {self.key}: no textures; build the shards with --paste")
        return np.stack(found)

    def _read_members(self, prefix: str) -> dict[str, bytes]:
        """Return the extra members whose extension begins with `prefix`."""
        shard, found = self._index.shard_ids_view[self._i], {}
        for member in self._index.members[self._i].as_py():
            if member["ext"] != "cls" and member["ext"].startswith(prefix):
                data = self._bytes.read(shard, member["offset"], member["size"])
                if digest_of(data) != member["digest"]:
                    raise self._fault(member["ext"], _CHANGED)
                found[member["ext"]] = data
        return found

    @property
    def image(self) -> np.ndarray:
        """uint8 (H, W, 3) RGB, decoded once; DamagedError if the bytes are damaged."""
        if self._image is None:
            self._image = self._decode(0)
        return self._image

    @property
    def textures(self) -> np.ndarray:
        """uint8 (K, H, W, 3) RGB, decoded once; K is 0 for shards built with `--per-image 0`."""
        if self._textures is None:
            decoded = [self._decode(i) for i in range(1, self._index.stride // 2)]
            if len(decoded) == 1:
                self._textures = decoded[0][None]
            elif decoded:
                self._textures = np.stack(decoded)
            else:
                self._textures = np.empty((0, *self.image.shape), np.uint8)
        return self._textures

    def texture(self, number: int) -> np.ndarray:
        """Return one of the K textures, uint8 (H, W, 3) RGB, decoded on each call.

        Raises
        ------
        IndexError
            `number` is not in 0 .. K - 1.
        DamagedError
            The bytes are damaged.
        """
        if not 0 <= number < self._index.stride // 2 - 1:
            raise IndexError(f"texture {number} of {self._index.stride // 2 - 1}")
        return self._decode(1 + number)

    def _read(self, member: int) -> bytes:
        """Return the bytes of the image (member 0) or a texture (1 .. K).

        Most flipped bits in a JPEG or WebP file still decode, to other pixels, so the bytes are hashed on each read.
        """
        index, i = self._index, self._i
        at = i * index.stride + 2 * member
        data = self._bytes.read(index.shard_ids_view[i], index.extents_view[at], index.extents_view[at + 1])
        if digest_of(data) != index.digests_view[at // 2]:
            raise self._fault(_member_name(member), _CHANGED)
        return data

    def _decode(self, member: int) -> np.ndarray:
        """Return the image (member 0) or a texture (1 .. K)."""
        index, i, data = self._index, self._i, self._read(member)
        try:
            image = decode_member(data)
        except UserError as error:
            raise self._fault(_member_name(member), str(error)) from None
        shape = index.heights_view[i], index.widths_view[i], 3
        if image.shape != shape:
            height, width, _ = image.shape
            fault = f"is {width}x{height} pixels, but the manifest records {shape[1]}x{shape[0]}"
            raise self._fault(_member_name(member), fault)
        return image

    def _fault(self, name: str, fault: str) -> DamagedError:
        return DamagedError(f"{self.shard}: {self.key}: {name}: {fault}; `texturegen verify` lists all damage")

    def __getitem__(self, name: str) -> Any:
        if name not in self.FIELDS:
            raise KeyError(name)
        return getattr(self, name)

    def __iter__(self) -> Iterator[str]:
        return iter(self.FIELDS)

    def __len__(self) -> int:
        return len(self.FIELDS)

    # Mapping compares contents, which would decode the images of both samples.
    __eq__ = object.__eq__
    __hash__ = object.__hash__

    def __repr__(self) -> str:
        return f"Sample(key={self.key!r}, label={self.label}, shard={self.shard!r})"

    def __reduce__(self) -> tuple[Any, ...]:
        # The sample's own bytes are pickled, so the receiver does not need the directory.
        start, end = self._index.ranges[self._i].tolist()
        data = self._bytes.read(self._index.shard_ids_view[self._i], start, end - start)
        return Sample, (self._index.select(self._i), 0, Chunk(data, start))


def _member_name(member: int) -> str:
    return f"texture{member - 1}" if member else "image"


def read_meta(index: SampleIndex, i: int) -> dict[str, Any]:
    """Return the parsed metadata of sample `i`; DamagedError if it is not a JSON object."""
    meta = parse_meta(index.metas[i].as_py())
    if meta is None:
        raise DamagedError(
            f"{index.files[index.shard_ids_view[i]]}: {index.keys[i]}: the manifest's meta is not a JSON object; "
            "`texturegen verify` lists all damage"
        )
    return meta
