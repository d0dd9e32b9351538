"""Compile the kernels of every synthesis method and of the figures into Numba's cache."""

import numpy as np

from texturegen.texture import METHODS, synthesize
from texturegen.texture.quality import measure


def main() -> None:
    patches = [np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)] * 2
    for name in METHODS:
        texture = synthesize(patches, (32, 32), name, seed=0)
        measure(patches, texture.image, seed=0, source=texture.source)


if __name__ == "__main__":
    main()
