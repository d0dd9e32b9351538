"""File names, members and schema of a shard directory, as builds write them and readers expect them.

docs/shards.md describes the whole contract.

DIR/shard-000000.tar ...   plain WebDataset tars: KEY.<ext>, KEY.texture0.<ext> ..., KEY.cls, passed-through members
DIR/manifest.parquet       one row per texture (one per image if there are no textures, or if the image failed)
DIR/README.md              data set card; free to be edited
DIR/build.json             recipe, counts, versions, and the sha256 of each shard; written last
DIR/parts/                 only during a build: recipe, and rows and counts of each finished shard
"""

import re

import pyarrow as pa

from texturegen.storage.names import key_pattern

FORMAT = 3
READABLE = (2, FORMAT)  # a directory of format 2 differs only in `patches`: its boxes are lists of four numbers
MANIFEST = "manifest.parquet"
BUILD = "build.json"
PARTS = "parts"
PREFIX = "shard"
PREFIXES = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,63}")

MAX_KEY = 80  # characters, so that KEY.texture0.webp and the like fit the name field of a ustar header
MAX_NAME = 100  # bytes of the name field
KEY = key_pattern(MAX_KEY)

# Extensions of images and textures, all of which the reader decodes.
IMAGE_EXTENSIONS = ("png", "jpg", "webp")
# Extensions of members passed through from a source's own tars.
MEMBER = re.compile(r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*")
# This contract and WebDataset (__key__, __url__) use these extensions, so no passed-through member may have them.
RESERVED = re.compile(rf"cls|({'|'.join(IMAGE_EXTENSIONS)})|texture\d+\..*|__.*__")
# Members of `--paste`, KEY.pasted0.png and KEY.mask0.png: listed and carried like passed-through ones.
PASTED, MASK = "pasted", "mask"
QUALITY = ("histogram", "autocorrelation", "coherence", "completeness", "verbatim", "largest_copy")

BOX = ("y", "x", "height", "width")  # in pixels; (y, x) is the top left pixel
PLACE = [("ext", pa.string()), ("offset", pa.int64()), ("size", pa.int64()), ("sha256", pa.binary(32))]
MANIFEST_SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("shard", pa.string()),  # null for a failed image, which is in no shard
        ("index", pa.int32()),  # of the texture within its sample; null in a row without a texture
        ("position", pa.int64()),  # index of the image in its data set
        ("label", pa.int64()),  # -1 for an unlabelled image
        ("width", pa.int32()),  # pixels
        ("height", pa.int32()),
        ("method", pa.string()),
        ("seed", pa.int64()),
        ("patches", pa.list_(pa.struct([(name, pa.int32()) for name in BOX]))),  # their boxes in the image
        *((figure, pa.float32()) for figure in QUALITY),
        ("image_ext", pa.string()),
        ("image_offset", pa.int64()),  # of the member's data in the tar
        ("image_size", pa.int64()),
        ("image_sha256", pa.binary(32)),
        ("texture_ext", pa.string()),
        ("texture_offset", pa.int64()),
        ("texture_size", pa.int64()),
        ("texture_sha256", pa.binary(32)),
        # "cls" and the passed-through members; null in all rows of a sample but the first
        ("members", pa.list_(pa.struct(PLACE))),
        ("status", pa.string()),  # "ok" or "failed"
        ("error", pa.string()),
        ("meta", pa.string()),  # JSON object with the source's metadata besides the label
    ],
    metadata={"texturegen.format": str(FORMAT)},
)
SCHEMA_OF_FORMAT_2 = MANIFEST_SCHEMA.set(
    MANIFEST_SCHEMA.get_field_index("patches"), pa.field("patches", pa.list_(pa.list_(pa.int32(), 4)))
)


# A shard under its own name, or under the temporary one that it has while it is written.
SHARD_FILE = re.compile(r"[\w-]+-\d+\.tar(\.[0-9a-f]+\.tmp)?")


def shard_name(number: int, prefix: str = PREFIX) -> str:
    """Return the file name of a shard, by its index from 0."""
    return f"{prefix}-{number:06d}.tar"


def texture_member(key: str, index: int, ext: str) -> str:
    """Return the member name of texture `index` of the sample `key`."""
    return f"{key}.texture{index}.{ext}"
