"""CPU time of reading and writing shards: one thread, warm cache, medians of interleaved rounds.

    python benchmarks/shards.py PHOTOS [--sizes 32,96,224] [--rounds 15]

Samples are square crops of the photographs with synthesised textures, in a temporary shard directory. "Bare decoder" is
cv2.imdecode to RGB from bytes in memory. Times are noisy: compare the ratios, which are computed within rounds.
"""

import hashlib
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import click
import cv2
import numpy as np
import pyarrow as pa
import torch
import torchvision.io
import webdataset

from texturegen import __version__
from texturegen.shards import ShardWriter, open_shards, writer
from texturegen.shards.layout import FORMAT, MANIFEST_SCHEMA, PARTS
from texturegen.shards.publish import publish
from texturegen.storage.image import ENCODINGS, decode_image, encode_image
from texturegen.texture import synthesize

RGB = torchvision.io.ImageReadMode.RGB
CROPS = 48  # distinct samples; shards repeat them
SAMPLES = {32: 2400, 96: 960, 224: 192}
PNG = {
    "default": [],
    "level 1, all filters": [cv2.IMWRITE_PNG_COMPRESSION, 1],
    "level 6, all filters": [cv2.IMWRITE_PNG_COMPRESSION, 6],
}

Calls = dict[str, Callable[[], object]]


@click.command()
@click.argument("photos", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--sizes", default="32,96,224", show_default=True)
@click.option("--rounds", default=15, show_default=True)
def main(photos: Path, sizes: str, rounds: int) -> None:
    """Measure reading, encoding, decoding and writing with the photographs in PHOTOS."""
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    images = [decode_image(path.read_bytes()) for path in sorted(photos.iterdir()) if path.is_file()]
    sets = {int(size): make_samples(images, int(size)) for size in sizes.split(",")}
    report_reading(sets, rounds)
    report_encodings(sets, rounds)
    report_decoders(sets, rounds)
    report_writing(sets, rounds)


def make_samples(images: list[np.ndarray], size: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return pairs of an image and its texture, uint8 (size, size, 3) each."""
    pairs = []
    for seed in range(CROPS):
        whole = images[seed % len(images)]
        side = min(whole.shape[:2])
        corner = np.random.default_rng(seed).integers(0, np.array(whole.shape[:2]) - side + 1)
        square = whole[corner[0] :, corner[1] :][:side, :side]
        small = cv2.resize(square, (size, size), interpolation=cv2.INTER_AREA)
        patch = np.ascontiguousarray(small[size // 4 : 3 * size // 4, size // 4 : 3 * size // 4])
        pairs.append((small, synthesize([patch], (size, size), seed=seed).image))
    return pairs


def write_shards(directory: Path, encoded: list[tuple[bytes, bytes]], size: int, count: int) -> None:
    """Write a finished directory of one shard with `count` samples, which repeat the encoded ones."""
    (directory / PARTS).mkdir()
    with ShardWriter(directory, 0, "benchmark") as out:
        for i in range(count):
            image, texture = encoded[i % len(encoded)]
            for place in out.add(f"sample/{i:06d}", image, "png", [texture], i % 10):
                out.add_row(
                    key=f"sample/{i:06d}", label=i % 10, status="ok", width=size, height=size, meta="{}", **place
                )
        stats = out.commit()
    description = {
        "format": FORMAT,
        "texturegen": __version__,
        "recipe": {"per_image": 1},
        "source": {"classes": []},
    }
    publish(directory, description, [stats], 0, [])


def compare(calls: Calls, rounds: int) -> dict[str, tuple[float, float]]:
    """Return call -> (median CPU seconds, median ratio to the first call in the same round)."""
    names = list(calls)
    spent: dict[str, list[float]] = {name: [] for name in names}
    for call in calls.values():
        call()
    for number in range(rounds):
        for name in names if number % 2 else reversed(names):
            begin = time.process_time()
            calls[name]()
            spent[name].append(time.process_time() - begin)
    first = spent[names[0]]
    return {
        name: (statistics.median(times), statistics.median(a / b for a, b in zip(times, first, strict=True)))
        for name, times in spent.items()
    }


def bare(data: bytes) -> np.ndarray:
    """Decode with OpenCV alone, without checks."""
    return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)


def report_reading(sets: dict, rounds: int) -> None:
    """Print the time to read image, texture and label of every sample."""
    print("| CPU us per sample, PNG | bare decoder | in order | at random | random / in order | `webdataset` |")
    print("| --- |" + " --- |" * 5)
    for size, pairs in sets.items():
        encoded = [(encode_image(image), encode_image(texture)) for image, texture in pairs]
        count = SAMPLES.get(size, 192)
        with tempfile.TemporaryDirectory() as name:
            write_shards(Path(name), encoded, size, count)
            shards = open_shards(name)
            in_memory = [(s.image_bytes, s.texture_bytes[0], s.label) for s in shards]
            order = random.Random(0).sample(range(count), count)

            def in_order(shards: object = shards) -> None:
                for sample in shards:  # type: ignore[attr-defined]
                    sample.image, sample.textures[0], sample.label

            def at_random(shards: object = shards, order: list = order) -> None:
                for i in order:
                    sample = shards[i]  # type: ignore[index]
                    sample.image, sample.textures[0], sample.label

            def with_webdataset(url: str = str(Path(name, "shard-000000.tar"))) -> None:
                for sample in webdataset.WebDataset(url, shardshuffle=False, empty_check=False):
                    bare(sample["png"]), bare(sample["texture0.png"]), int(sample["cls"])

            calls: Calls = {
                "bare": lambda known=in_memory: [(bare(a), bare(b), label) for a, b, label in known],
                "in order": in_order,
                "at random": at_random,
                "webdataset": with_webdataset,
            }
            found = compare(calls, rounds)
        cells = [f"{1e6 * seconds / count:.1f} ({ratio:.3f}x)" for seconds, ratio in found.values()]
        both = found["at random"][1] / found["in order"][1]
        print(f"| {size} px | {' | '.join(cells[:3])} | {both:.3f}x | {cells[3]} |")


def report_encodings(sets: dict, rounds: int) -> None:
    """Print time and size of every encoding."""
    print("\n| encoding | " + " | ".join(f"{s} px: encode us | decode us | bytes" for s in sets) + " |")
    print("| --- |" + " --- |" * (3 * len(sets)))
    rows: dict[str, list[str]] = {}
    for pairs in sets.values():
        pictures = [picture for pair in pairs[:12] for picture in pair]
        encoders: dict[str, Callable[[np.ndarray], bytes]] = {
            f"png, {name}": lambda p, o=o: cv2.imencode(".png", cv2.cvtColor(p, cv2.COLOR_RGB2BGR), o)[1].tobytes()
            for name, o in PNG.items()
        }
        encoders |= {name: lambda p, name=name: encode_image(p, name) for name in ENCODINGS if name != "png"}
        encoded = {name: [encoder(p) for p in pictures] for name, encoder in encoders.items()}
        writing = compare(
            {n: lambda e=e, p=pictures: list(map(e, p)) for n, e in encoders.items()}, max(rounds // 4, 3)
        )
        reading = compare({n: lambda d=d: [decode_image(b) for b in d] for n, d in encoded.items()}, rounds)
        for name, data in encoded.items():
            times = [1e6 * found[name][0] / len(pictures) for found in (writing, reading)]
            size = statistics.mean(map(len, data))
            rows.setdefault(name, []).extend(f"{value:.0f}" for value in (*times, size))
    for name, row in rows.items():
        print(f"| {name} | {' | '.join(row)} |")


def report_decoders(sets: dict, rounds: int) -> None:
    """Print the time of several decoders."""
    print("\n| decoding to RGB, CPU us | " + " | ".join(f"{size} px" for size in sets) + " |")
    print("| --- |" + " --- |" * len(sets))
    rows: dict[str, list[str]] = {}
    for pairs in sets.values():
        for encoding in ENCODINGS:
            data = [encode_image(picture, encoding) for pair in pairs[:12] for picture in pair]
            tensors = [torch.frombuffer(bytearray(d), dtype=torch.uint8) for d in data]
            calls: Calls = {
                "cv2": lambda d=data: [bare(b) for b in d],
                "decode_image, with its checks": lambda d=data: [decode_image(b) for b in d],
                "torchvision": lambda t=tensors: [torchvision.io.decode_image(b, RGB) for b in t],
            }
            if encoding == "jpeg":
                try:
                    import simplejpeg

                    calls["simplejpeg"] = lambda d=data: [simplejpeg.decode_jpeg(b) for b in d]
                except ImportError:
                    pass
            for name, (seconds, ratio) in compare(calls, rounds).items():
                cell = f"{1e6 * seconds / len(data):.1f} ({ratio:.2f}x)"
                rows.setdefault(f"{encoding}, {name}", []).append(cell)
    for name, row in rows.items():
        print(f"| {name} | {' | '.join(row)} |")


def report_writing(sets: dict, rounds: int) -> None:
    """Print the time of `ShardWriter.add` and the manifest rows, with and without checksums."""
    print(
        "\n| CPU us per sample, without encoding | with sha256 | without sha256 | difference |\n"
        "| --- | --- | --- | --- |"
    )
    none = SimpleNamespace(
        sha256=lambda data: SimpleNamespace(digest=lambda: bytes(32)), file_digest=hashlib.file_digest
    )
    for size, pairs in sets.items():
        encoded = [(encode_image(image), encode_image(texture)) for image, texture in pairs]
        count = max(SAMPLES.get(size, 192) // 4, 192)

        def add(hashes: object, encoded: list = encoded, count: int = count) -> None:
            writer.hashlib = hashes  # type: ignore[assignment]
            with tempfile.TemporaryDirectory() as name, ShardWriter(Path(name), 0, "benchmark") as out:
                for i in range(count):
                    image, texture = encoded[i % len(encoded)]
                    for place in out.add(f"sample/{i:06d}", image, "png", [texture], i % 10):
                        out.add_row(key=f"sample/{i:06d}", label=i % 10, status="ok", meta="{}", **place)
                pa.Table.from_pylist(out._rows, schema=MANIFEST_SCHEMA)

        try:
            found = compare({"without": lambda: add(none), "with": lambda: add(hashlib)}, rounds)
        finally:
            writer.hashlib = hashlib
        without, full = (1e6 * found[name][0] / count for name in ("without", "with"))
        print(f"| {size} px | {full:.1f} | {without:.1f} | {full - without:.1f} |")


if __name__ == "__main__":
    main()
