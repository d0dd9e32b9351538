"""The figures of GIMP's resynthesizer on the jobs of benchmarks/quality.py, measured by the same code.

    pip install resynthesizer==1.2      # the plug-in's C library, from PyPI
    python benchmarks/resynthesizer_peer.py PHOTOS

It fills a masked part of one picture: the two patches stand side by side above an empty area of the texture's size in
pixels, as wide as both. `patch` is its neighbours per pixel, `probes` its tries.
"""

import statistics
import time
from pathlib import Path

import click
import numpy as np
import resynthesizer
from PIL import Image
from quality import FIGURES
from synthesis import JOBS, make_patches

from texturegen.storage.image import decode_image
from texturegen.texture.quality import measure


@click.command()
@click.argument("photos", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--samples", default=150, show_default=True)
def main(photos: Path, samples: int) -> None:
    images = [decode_image(path.read_bytes()) for path in sorted(photos.iterdir()) if path.is_file()]
    names = list(FIGURES)[:-1]  # it has no source map
    print(f"| px | patch, probes | CPU ms | {' | '.join(names)} |\n| --- | --- | --- |" + " --- |" * len(names))
    for size in JOBS:
        for neighbours, probes in ((30, 200), (16, 20)):
            rows, spent = [], []
            for seed, image in enumerate(images):
                patches = make_patches(image, size, seed)
                begin = time.process_time()
                texture = resynthesize(patches, size, neighbours, probes)
                spent.append(1000 * (time.process_time() - begin))
                quality = measure(patches, texture, 0, samples)
                rows.append([getattr(quality, name) for name in names])
            means = [f"{mean:.{FIGURES[name]}f}" for mean, name in zip(np.mean(rows, axis=0), names, strict=True)]
            print(
                f"| {size} | {neighbours}, {probes} | {statistics.median(spent):.3g} | {' | '.join(means)} |",
                flush=True,
            )


def resynthesize(patches: list[np.ndarray], size: int, neighbours: int, probes: int) -> np.ndarray:
    corpus = np.concatenate(patches, axis=1)
    height, width = corpus.shape[:2]
    canvas = np.concatenate([corpus, np.zeros((round(size * size / width), width, 3), np.uint8)])
    mask = np.zeros(canvas.shape[:2], np.uint8)
    mask[height:] = 255
    parameters = resynthesizer.getDefaultParams()
    parameters.matchContextType = 0
    parameters.patchSize, parameters.maxProbeCount = neighbours, probes
    result = resynthesizer.resynthesize(Image.fromarray(canvas), Image.fromarray(mask), parameters)
    return np.ascontiguousarray(np.asarray(result)[height:])


if __name__ == "__main__":
    main()
