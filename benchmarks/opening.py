"""Time and memory of opening a shard directory of 1.28 million images, the first time and later, a process each.

    python benchmarks/opening.py [--samples 1280000]

The manifest is made up, with a texture for each image; the tars are empty files of the right size, because opening does
not read them. The cache of the user is not touched.
"""

import hashlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import click
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from texturegen.shards.build_json import seal
from texturegen.shards.layout import FORMAT, MANIFEST, MANIFEST_SCHEMA, shard_name
from texturegen.storage.tar import BLOCK, end_of_tar

PER_SHARD = 1000
OPEN = """
import resource, sys, time
import numpy, pyarrow.compute, pyarrow.parquet, texturegen.shards.reader  # what a program has loaded already

def memory():
    return sum(int(line.split()[1]) for line in open("/proc/self/smaps_rollup") if line.startswith("Pss:")) / 1024

before, wall, cpu = memory(), time.perf_counter(), time.process_time()
shards = texturegen.shards.reader.open_shards(sys.argv[1])
print(f"{time.perf_counter() - wall:.2f} s, CPU {time.process_time() - cpu:.2f} s, {memory() - before:.0f} MB")
"""


@click.command()
@click.option("--samples", default=1_280_000, show_default=True, help="A multiple of 1000.")
def main(samples: int) -> None:
    """Print wall time, CPU time and memory of four openings."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name, "shards")
        folder.mkdir()
        make(folder, samples)
        environment = {**os.environ, "XDG_CACHE_HOME": name}
        for number in range(1, 5):
            print(f"opening {number}: ", end="", flush=True)
            subprocess.run([sys.executable, "-c", OPEN, str(folder)], env=environment, check=True)


def make(folder: Path, samples: int) -> None:
    """Write build.json, the manifest and tars without content."""
    shards = []
    with pq.ParquetWriter(folder / MANIFEST, MANIFEST_SCHEMA) as manifest:
        for number in range(samples // PER_SHARD):
            table, end = make_rows(number)
            manifest.write_table(table)
            with open(folder / shard_name(number), "wb") as tar:
                tar.truncate(end_of_tar(end))
            size = end_of_tar(end)
            counts = {"samples": PER_SHARD, "textures": PER_SHARD, "failed": 0}
            shards.append({"name": shard_name(number), "sha256": "0" * 64, "bytes": size, **counts})
    recipe = {"per_image": 1, "shard_size": PER_SHARD, "dataset": "made", "split": None, "method": None}
    content = {
        "format": FORMAT,
        "recipe": {**recipe, "settings": {}, "seed": 0},
        "source": {"name": "made", "split": None, "classes": []},
        "counts": {"samples": samples, "textures": samples, "failed": 0, "ignored": 0},
        "shards": shards,
        "manifest_sha256": hashlib.sha256((folder / MANIFEST).read_bytes()).hexdigest(),
        "versions": {},
    }
    (folder / "build.json").write_text(json.dumps(seal(content)))


def make_rows(number: int) -> tuple[pa.Table, int]:
    """Return the rows of shard `number`, and the end of its last member."""
    generator = np.random.default_rng(number)
    sizes = generator.integers(80_000, 140_000, (PER_SHARD, 3))  # of the image, the texture and "cls"
    sizes[:, 2] = 1
    padded = -(-sizes // BLOCK) * BLOCK + BLOCK
    offsets = (np.cumsum(padded) - padded.reshape(-1)).reshape(sizes.shape) + BLOCK
    labels = np.arange(PER_SHARD) % 10

    def sha256() -> pa.Array:
        data = pa.py_buffer(generator.bytes(32 * PER_SHARD))
        return pa.FixedSizeBinaryArray.from_buffers(pa.binary(32), PER_SHARD, [None, data])

    place = [pa.array(["cls"] * PER_SHARD), *(pa.array(values[:, 2]) for values in (offsets, sizes)), sha256()]
    members = pa.StructArray.from_arrays(place, ["ext", "offset", "size", "sha256"])
    columns = {
        "key": pa.array([f"train/n{label:08d}/{number:06d}_{i:04d}" for i, label in enumerate(labels.tolist())]),
        "shard": pa.array([shard_name(number)] * PER_SHARD),
        "index": pa.array(np.zeros(PER_SHARD, np.int32)),
        "label": pa.array(labels),
        **{side: pa.array(np.full(PER_SHARD, 224, np.int32)) for side in ("width", "height")},
        "members": pa.ListArray.from_arrays(pa.array(np.arange(PER_SHARD + 1, dtype=np.int32)), members),
        "status": pa.array(["ok"] * PER_SHARD),
        "meta": pa.array(["{}"] * PER_SHARD),
    }
    for i, kind in enumerate(("image", "texture")):
        columns |= {f"{kind}_ext": pa.array(["png"] * PER_SHARD), f"{kind}_sha256": sha256()}
        columns |= {f"{kind}_offset": pa.array(offsets[:, i]), f"{kind}_size": pa.array(sizes[:, i])}
    rows = [columns.get(field.name, pa.nulls(PER_SHARD, field.type)) for field in MANIFEST_SCHEMA]
    return pa.table(rows, schema=MANIFEST_SCHEMA), int(offsets[-1, 2] + BLOCK)


if __name__ == "__main__":
    main()
