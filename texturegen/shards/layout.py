"""Names, members and schema of a shard directory, which builds write and readers rely on.

docs/shards.md describes the whole contract for people.

DIR/shard-000000.tar ...   plain WebDataset tars: KEY.<ext>, KEY.texture0.<ext> ..., KEY.cls, members passed through
DIR/manifest.parquet       one row per texture (one per image if there are no textures, or if the image failed)
DIR/build.json             the whole recipe, counts, versions, the sha256 of each shard; written last
DIR/parts/                 only during a build: the recipe, and the rows and counts of each finished shard
"""

import re

import pyarrow as pa

from texturegen.storage.names import key_pattern

FORMAT = 2
MANIFEST = "manifest.parquet"
BUILD = "build.json"
PARTS = "parts"

MAX_KEY = 80  # characters, so that a key with any of our extensions fits the name field of a ustar header
MAX_NAME = 100  # bytes of that field
KEY = key_pattern(MAX_KEY)

# Image members that the reader decodes.
IMAGE_EXTENSIONS = ("png", "jpg", "webp")
# Extensions of members that are passed through from a source's own tars.
MEMBER = re.compile(r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*")
# Extensions that belong to this contract or to WebDataset (__key__, __url__): a passed-through member cannot have them.
RESERVED = re.compile(rf"cls|({'|'.join(IMAGE_EXTENSIONS)})|texture\d+\..*|__.*__")
QUALITY = ("histogram", "autocorrelation", "coherence", "completeness", "verbatim", "largest_copy")

PLACE = [("ext", pa.string()), ("offset", pa.int64()), ("size", pa.int64()), ("sha256", pa.binary(32))]
MANIFEST_SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("shard", pa.string()),  # null: the image failed and is in no shard
        ("index", pa.int32()),  # number of the texture within its sample; null: a row about the image alone
        ("position", pa.int64()),  # number of the image in its data set
        ("label", pa.int64()),  # -1: unlabelled
        ("width", pa.int32()),  # pixels
        ("height", pa.int32()),
        ("method", pa.string()),
        ("seed", pa.int64()),
        ("patches", pa.list_(pa.list_(pa.int32(), 4))),  # (row, column, height, width) in the image
        *((figure, pa.float32()) for figure in QUALITY),
        ("image_ext", pa.string()),
        ("image_offset", pa.int64()),  # of the member's bytes in the tar
        ("image_size", pa.int64()),
        ("image_sha256", pa.binary(32)),
        ("texture_ext", pa.string()),
        ("texture_offset", pa.int64()),
        ("texture_size", pa.int64()),
        ("texture_sha256", pa.binary(32)),
        # "cls" and what is passed through; null in all but the first row of a sample
        ("members", pa.list_(pa.struct(PLACE))),
        ("status", pa.string()),  # "ok" or "failed"
        ("error", pa.string()),
        ("meta", pa.string()),  # JSON object: what the source knows besides the label
    ]
)


def shard_name(number: int) -> str:
    """Return the file name of shard `number`."""
    return f"shard-{number:06d}.tar"


def texture_member(key: str, index: int, ext: str) -> str:
    """Return the tar member's name of texture `index` of the sample `key`."""
    return f"{key}.texture{index}.{ext}"
