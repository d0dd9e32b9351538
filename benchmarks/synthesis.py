"""CPU milliseconds per texture, one thread, after warm-up: every method, and measuring its quality.

    python benchmarks/synthesis.py PHOTOS [--sizes 32,96] [--methods coherent,wei-levoy]

The jobs are a pre-training set's: a photograph whose short side is 32, 96 or 256 px, cut to two patches of 16, 48 or
96 px (the centre and a random place), and a texture of 32, 96 or 224 px. Medians over the photographs. Machines are
noisy: compare the ratios, which are to exhaustive Wei-Levoy in the same run.
"""

import statistics
import time
from pathlib import Path

import click
import cv2
import numpy as np

from texturegen.images import decode_image
from texturegen.texture import METHODS, cut_patches, synthesize
from texturegen.texture.quality import measure

JOBS = {32: (32, 16), 96: (96, 48), 224: (256, 96)}  # texture: short side of the photograph, side of a patch
YARDSTICK = "wei-levoy"


@click.command()
@click.argument("photos", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--sizes", default="32,96,224", show_default=True)
@click.option("--methods", default=",".join(METHODS), show_default=True)
def main(photos: Path, sizes: str, methods: str) -> None:
    cv2.setNumThreads(1)
    images = [decode_image(path.read_bytes()) for path in sorted(photos.iterdir()) if path.is_file()]
    names = methods.split(",")
    for name in names:  # compiles, or reads the cache
        texture = synthesize([np.zeros((20, 20, 3), np.uint8)], (20, 20), name)
        measure([texture.image], texture.image)
    print("| CPU ms per texture |", *(f"{size} px |" for size in sizes.split(",")))
    print("| --- |" + " --- |" * len(sizes.split(",")))
    cells: dict[str, list[str]] = {}
    for size in map(int, sizes.split(",")):
        side, patch = JOBS[size]
        medians = {}
        spent: dict[str, list[float]] = {name: [] for name in [*names, "measure"]}
        for seed, image in enumerate(images):
            scale = side / min(image.shape[:2])
            small = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
            patches, _ = cut_patches(small, seed, side=patch)
            for name in names:
                begin = time.process_time()
                texture = synthesize(patches, (size, size), name, seed)
                spent[name].append(time.process_time() - begin)
                if name == "coherent":
                    begin = time.process_time()
                    measure(patches, texture.image, seed)
                    spent["measure"].append(time.process_time() - begin)
        medians = {name: 1000 * statistics.median(times) for name, times in spent.items() if times}
        for name, value in medians.items():
            ratio = f" ({medians[YARDSTICK] / value:.1f}x)" if YARDSTICK in medians and name in names else ""
            cells.setdefault(name, []).append(f"{value:.3g}{ratio}")
    for name, row in cells.items():
        print(f"| {'quality figures of it' if name == 'measure' else f'`{name}`'} | {' | '.join(row)} |")


if __name__ == "__main__":
    main()
