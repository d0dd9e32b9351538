"""Pack CIFAR-10 losslessly into two folders of less than 60 MiB each, for machines that limit uploads.

    python benchmarks/cifar_pack.py pack DATA OUT    # OUT/part0 and OUT/part1: half the training set each
    python benchmarks/cifar_pack.py unpack OUT/part0 OUT/part1 --to TARS

The test set is in part1. The official archive has 163 MB, and xz compresses its training images to 111 MiB. Mosaics of
50 x 50 images as lossless WebP take 81 MiB, because the codec predicts pixels from their neighbours, and mosaics avoid
50,000 file headers. `unpack` writes WebDataset tars (KEY.png, KEY.cls): train-0.tar, train-1.tar, test-1.tar.
"""

import io
import tarfile
from pathlib import Path

import click
import cv2
import numpy as np

from texturegen.sources import open_source

SIDE = 32
PER_SIDE = 50  # images along each side of a mosaic
SETS = ("train", "test")


@click.group()
def main() -> None:
    """Pack CIFAR-10 into two small folders, and unpack them into WebDataset tars."""


@main.command()
@click.argument("data", type=click.Path(exists=True, file_okay=False))
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--limit", type=click.IntRange(1), help="Only the first N images of each set.")
def pack(data: str, out: Path, limit: int | None) -> None:
    """Write OUT/part0 and OUT/part1 from the official files in DATA."""
    images, labels = _read(data, "train", limit)
    half = -(-len(images) // 2)
    write_part(out / "part0", {"train": (images[:half], labels[:half])})
    write_part(out / "part1", {"train": (images[half:], labels[half:]), "test": _read(data, "test", limit)})
    for part in ("part0", "part1"):
        size = sum(path.stat().st_size for path in (out / part).rglob("*") if path.is_file())
        print(f"{out / part}: {size / 2**20:.1f} MiB")


@main.command()
@click.argument("parts", nargs=-1, required=True, type=click.Path(exists=True, path_type=Path))
@click.option("--to", required=True, type=click.Path(path_type=Path), help="Folder for the tars.")
def unpack(parts: tuple[Path, ...], to: Path) -> None:
    """Write a WebDataset tar per set of each of PARTS."""
    to.mkdir(parents=True, exist_ok=True)
    for number, part in enumerate(parts):
        for name in SETS:
            if (part / name).is_dir():
                images, labels = read_part(part, name)
                _write_tar(to / f"{name}-{number}.tar", f"{name}{number}", images, labels)
                print(f"{to / f'{name}-{number}.tar'}: {len(images)} images")


def write_part(folder: Path, sets: dict[str, tuple[np.ndarray, np.ndarray]]) -> None:
    """Write sets of (images uint8 (N, 32, 32, 3) RGB, labels uint8 (N,)) as lossless mosaics."""
    for name, (images, labels) in sets.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        np.save(folder / name / "labels.npy", labels)
        for number, start in enumerate(range(0, len(images), PER_SIDE**2)):
            mosaic = np.zeros((PER_SIDE**2, SIDE, SIDE, 3), np.uint8)
            some = images[start : start + PER_SIDE**2]
            mosaic[: len(some)] = some
            grid = mosaic.reshape(PER_SIDE, PER_SIDE, SIDE, SIDE, 3).swapaxes(1, 2).reshape(PER_SIDE * SIDE, -1, 3)
            done, data = cv2.imencode(
                ".webp", grid[..., ::-1], [cv2.IMWRITE_WEBP_QUALITY, 101]
            )  # above 100 means lossless
            assert done
            (folder / name / f"{number:03d}.webp").write_bytes(data.tobytes())


def read_part(folder: Path, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Return images and labels of set `name`, as passed to `write_part`."""
    labels = np.load(folder / name / "labels.npy")
    tiles = []
    for path in sorted((folder / name).glob("*.webp")):
        grid = cv2.imread(str(path), cv2.IMREAD_COLOR)[..., ::-1]
        tiles.append(grid.reshape(PER_SIDE, SIDE, PER_SIDE, SIDE, 3).swapaxes(1, 2).reshape(-1, SIDE, SIDE, 3))
    return np.concatenate(tiles)[: len(labels)], labels


def _read(data: str, split: str, limit: int | None) -> tuple[np.ndarray, np.ndarray]:
    source = open_source("cifar10", root=data, split=split)
    items = [source[i] for i in range(len(source) if limit is None else min(limit, len(source)))]
    return np.stack([item.image for item in items]), np.array([item.label for item in items], np.uint8)


def _write_tar(path: Path, prefix: str, images: np.ndarray, labels: np.ndarray) -> None:
    with tarfile.open(path, "w") as tar:
        for number, (image, label) in enumerate(zip(images, labels, strict=True)):
            done, data = cv2.imencode(".png", image[..., ::-1])
            assert done
            for ext, content in (("png", data.tobytes()), ("cls", str(label).encode())):
                info = tarfile.TarInfo(f"{prefix}-{number:05d}.{ext}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))


if __name__ == "__main__":
    main()
