"""Quality and CPU time of GIMP's resynthesizer on the jobs of benchmarks/quality.py, measured by the same code.

    pip install resynthesizer==1.2      # the C library of the plug-in
    python benchmarks/resynthesizer_peer.py PHOTOS

The resynthesizer fills a masked part of a picture. The two patches are placed side by side above an empty area, which
has their joint width and as many pixels as the texture. `patch` is its number of neighbours, `probes` its number of
tries.
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
@click.option("--samples", default=150, show_default=True, help="Windows sampled per texture.")
def main(photos: Path, samples: int) -> None:
    """Measure the resynthesizer on the photographs in PHOTOS."""
    images = [decode_image(path.read_bytes()) for path in sorted(photos.iterdir()) if path.is_file()]
    names = list(FIGURES)[:-1]  # largest_copy needs a source map
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
    """Return the filled area, uint8 (H, W, 3) with about size * size pixels."""
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
