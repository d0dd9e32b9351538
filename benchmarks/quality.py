"""Quality of textures: six figures for every synthesis method, averaged over photographs, and contact sheets.

    python benchmarks/quality.py PHOTOS [--sizes 32,96] [--seeds 2] [--sheets docs/images]

The jobs are those of benchmarks/synthesis.py. Lower is better. Two controls calibrate the figures: randomly drawn
pixels, and patches tiled side by side.
"""

from pathlib import Path

import click
import cv2
import numpy as np
from synthesis import VARIANTS, make_patches

from texturegen.storage.image import decode_image
from texturegen.texture import METHODS, synthesize
from texturegen.texture.quality import measure

FIGURES = {"histogram": 1, "autocorrelation": 3, "coherence": 1, "completeness": 1, "verbatim": 2, "largest_copy": 2}


@click.command()
@click.argument("photos", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--sizes", default="32,96,224", show_default=True)
@click.option("--methods", default=",".join([*METHODS, *VARIANTS]).replace(", ", " "), show_default=True)
@click.option(
    "--option", "options", multiple=True, metavar="NAME=NUMBER", help="Setting for every method in --methods."
)
@click.option("--seeds", default=1, show_default=True, help="Textures per photograph, each from different patches.")
@click.option("--first-seed", default=0, show_default=True, help="First seed; the defaults were tuned with seed 0.")
@click.option("--samples", default=150, show_default=True, help="Windows sampled per texture.")
@click.option(
    "--sheets",
    type=click.Path(file_okay=False, path_type=Path),
    help="Write a contact sheet per method to this directory.",
)
def main(
    photos: Path,
    sizes: str,
    methods: str,
    options: tuple[str],
    seeds: int,
    first_seed: int,
    samples: int,
    sheets: Path | None,
) -> None:
    """Measure the textures of the photographs in PHOTOS."""
    images = [decode_image(path.read_bytes()) for path in sorted(photos.iterdir()) if path.is_file()]
    variants = {name.replace(", ", " "): value for name, value in VARIANTS.items()}
    given = {name: int(value) for name, value in (option.split("=") for option in options)}
    print(f"| px | method | {' | '.join(FIGURES)} |")
    print("| --- | --- |" + " --- |" * len(FIGURES))
    strips: dict[str, list[np.ndarray]] = {}
    for size in map(int, sizes.split(",")):
        for name in [*methods.split(","), "pixels shuffled", "patches tiled"]:
            rows = []
            for number, image in enumerate(images):
                for seed in range(first_seed, first_seed + seeds):
                    patches = make_patches(image, size, 1000 * seed + number)
                    if name in ("pixels shuffled", "patches tiled"):
                        source = control(patches, size, name, seed)
                        texture = np.stack(patches)[tuple(np.moveaxis(source, -1, 0))]
                    else:
                        method, settings = variants.get(name, (name, given))
                        made = synthesize(patches, (size, size), method, seed, **settings)
                        texture, source = made.image, made.source
                    quality = measure(patches, texture, seed, samples, source=source)
                    rows.append([getattr(quality, figure) for figure in FIGURES])
                    if seed == first_seed:
                        strips.setdefault(name, []).append(draw_pair(patches, texture))
            means = [f"{mean:.{digits}f}" for mean, digits in zip(np.mean(rows, axis=0), FIGURES.values(), strict=True)]
            print(f"| {size} | {name} | {' | '.join(means)} |", flush=True)
    if sheets:
        for name in methods.split(","):
            write_sheet(strips[name], len(images), sheets / f"synthesis-{name.replace(' ', '-')}.jpg")


def control(patches: list[np.ndarray], size: int, name: str, seed: int) -> np.ndarray:
    """Return the source map int32 (size, size, 3) of a control: random pixels of square patches, or tiled patches."""
    side = len(patches[0])
    rows, columns = np.mgrid[:size, :size]
    if name == "patches tiled":
        number = (rows // side + columns // side) % len(patches)
        return np.stack([number, rows % side, columns % side], axis=-1).astype(np.int32)
    random = np.random.default_rng(seed)
    places = [random.integers(0, limit, (size, size)) for limit in (len(patches), side, side)]
    return np.stack(places, axis=-1).astype(np.int32)


def draw_pair(patches: list[np.ndarray], texture: np.ndarray) -> np.ndarray:
    """Return the patches, stacked vertically, beside their texture, enlarged to a height of about 192 pixels."""
    height = max(texture.shape[0], sum(patch.shape[0] for patch in patches))
    strip = np.full((height + 4, patches[0].shape[1] + texture.shape[1] + 8, 3), 255, dtype=np.uint8)
    strip[: texture.shape[0], patches[0].shape[1] + 2 : -6] = texture
    top = 0
    for patch in patches:
        strip[top : top + patch.shape[0], : patch.shape[1]] = patch
        top += patch.shape[0]
    return cv2.resize(strip, None, fx=max(1, 192 // height), fy=max(1, 192 // height), interpolation=cv2.INTER_NEAREST)


def write_sheet(strips: list[np.ndarray], count: int, path: Path) -> None:
    """Write a contact sheet with a row of four photographs per size; each run of `count` strips has one size."""
    rows = []
    for first in range(0, len(strips), count):
        rows.append(np.concatenate([strips[first + k] for k in (1, 4, 7, 10) if k < count], axis=1))
    width = max(row.shape[1] for row in rows)
    rows = [np.pad(row, ((0, 8), (0, width - row.shape[1]), (0, 0)), constant_values=255) for row in rows]
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), np.concatenate(rows)[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 92])
    print(f"wrote {path}")


if __name__ == "__main__":
    main()
