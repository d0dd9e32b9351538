"""CPU time of synthesis: one thread, after warm-up, medians over photographs.

    python benchmarks/synthesis.py PHOTOS [--sizes 32,96] [--methods coherent,wei-levoy] [--plot cost.png]

The jobs are those of a pre-training set: a photograph with a short side of 32, 96 or 256 px, two patches of 16, 48 or
96 px (at the centre and at a random position), and a texture of 32, 96 or 224 px. Times are noisy: compare the ratios
to a naive exhaustive Wei-Levoy kernel (benchmarks/naive.py) in the same run.
"""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import click
import cv2
import numpy as np
from naive import naive_efros_leung, naive_wei_levoy
from numba import njit

import texturegen.texture.methods.coherent as coherent_module
from texturegen.builds import Recipe
from texturegen.builds.directory import prepare_jobs
from texturegen.builds.job import run_job
from texturegen.builds.recipe import make_plan
from texturegen.storage.image import decode_image
from texturegen.texture import METHODS, cut_patches, synthesize, synthesize_batch
from texturegen.texture.kernels.simd import LANES, run_distance
from texturegen.texture.quality import measure

JOBS = {
    32: (32, 16),
    96: (96, 48),
    224: (256, 96),
}  # side of the texture: short side of the photograph, side of a patch
# Naive kernels take most of the time, so they run on only enough photographs for a stable median.
NAIVE_PHOTOS = {32: 12, 96: 3, 224: 1}
VARIANTS = {"wei-levoy, tsvq": ("wei-levoy", {"search": "tsvq"})}


@click.command()
@click.argument("photos", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--sizes", default="32,96,224", show_default=True)
@click.option("--methods", default=",".join([*METHODS, *VARIANTS]).replace(", ", " "), show_default=True)
@click.option(
    "--naive/--no-naive", default=True, show_default=True, help="Measure the naive kernels; a minute at 224 px."
)
@click.option("--plot", type=click.Path(path_type=Path), help="Write a plot of cost by size, 32 to 512 px.")
def main(photos: Path, sizes: str, methods: str, naive: bool, plot: Path | None) -> None:
    """Measure synthesis from the photographs in PHOTOS."""
    cv2.setNumThreads(1)
    images = [decode_image(path.read_bytes()) for path in sorted(photos.iterdir()) if path.is_file()]
    variants = {name.replace(", ", " "): value for name, value in VARIANTS.items()}
    chosen = {name: variants.get(name, (name, {})) for name in methods.split(",")}
    wanted = [int(size) for size in sizes.split(",")]
    report_methods(images, wanted, chosen, naive)
    report_comparisons(images, wanted)
    report_build(images, wanted)
    report_threads(images, wanted)
    report_compilation()
    if plot:
        plot_cost(images[0], plot)


def make_patches(image: np.ndarray, size: int, seed: int) -> list[np.ndarray]:
    """Return the two patches of a job."""
    side, patch = JOBS[size]
    scale = side / min(image.shape[:2])
    small = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    return [np.ascontiguousarray(patch) for patch in cut_patches(small, seed, side=patch)[0]]


def spend(function: Callable[[], object]) -> float:
    """Return the CPU milliseconds of one call."""
    begin = time.process_time()
    function()
    return 1000 * (time.process_time() - begin)


def make_calls(
    patches: list[np.ndarray], size: int, seed: int, chosen: dict, naive: bool
) -> dict[str, Callable[[], object]]:
    """Return the calls to time: the chosen methods, the quality figures and, if `naive`, the naive kernels."""
    calls = {
        name: partial(synthesize, patches, (size, size), method, seed, **settings)
        for name, (method, settings) in chosen.items()
    }
    texture = synthesize(patches, (size, size), seed=seed)
    calls["six quality figures"] = partial(measure, patches, texture.image, seed, source=texture.source)
    if naive:
        calls["naive wei-levoy"] = partial(naive_wei_levoy, patches, (size, size), seed, 7 if size == 32 else 11)
        calls["naive efros-leung"] = partial(naive_efros_leung, patches, (size, size), seed)
    return calls


def report_methods(images: list[np.ndarray], sizes: list[int], chosen: dict, naive: bool) -> None:
    """Print the CPU time of a texture by method and size."""
    cells: dict[str, list[str]] = {}
    for size in sizes:
        spent: dict[str, list[float]] = {}
        for seed, image in enumerate(images):
            patches = make_patches(image, size, seed)
            calls = make_calls(patches, size, seed, chosen, naive and seed < NAIVE_PHOTOS[size])
            for name, call in calls.items():
                if seed == 0 and size == sizes[0]:
                    call()  # compiles, or loads the cached kernel
                spent.setdefault(name, []).append(spend(call))
        medians = {name: statistics.median(times) for name, times in spent.items()}
        for name, value in medians.items():
            ratio = f" ({medians['naive wei-levoy'] / value:.3g}x)" if naive and name in chosen else ""
            cells.setdefault(name, []).append(f"{value:.3g}{ratio}")
    print(f"| CPU ms per texture | {' | '.join(f'{size} px' for size in sizes)} |")
    print("| --- |" + " --- |" * len(sizes))
    for name, row in cells.items():
        print(f"| {f'`{name}`' if name in chosen else name} | {' | '.join(row)} |")


def report_comparisons(images: list[np.ndarray], sizes: list[int]) -> None:
    """Print windows per output pixel, time per window, and fraction of the peak vector throughput of `coherent`."""
    peak = bytes_per_nanosecond()
    print(f"\ncalibration: {peak:.0f} bytes/ns for absolute differences of contiguous uint8 in the L1 cache\n")
    print("| `coherent` | windows per pixel | ns per window | relative to calibration |\n| --- | --- | --- | --- |")
    kernel = coherent_module._correct
    for size in sizes:
        rows = []
        for seed, image in enumerate(images):
            counted = []

            def count(*arguments: object, counted: list = counted) -> None:
                begin = time.process_time()
                compared = kernel(*arguments)
                counted.append((compared, time.process_time() - begin))

            patches = make_patches(image, size, seed)
            coherent_module._correct = count
            try:
                synthesize(patches, (size, size), seed=seed)
            finally:
                coherent_module._correct = kernel
            compared = sum(windows for windows, _ in counted)
            rows.append((compared / size**2, 1e9 * sum(seconds for _, seconds in counted) / compared))
        windows, nanoseconds = np.median(rows, axis=0)
        read = 5 * LANES  # bytes of a 5x5 window
        print(f"| {size} px | {windows:.1f} | {nanoseconds:.1f} | {100 * read / nanoseconds / peak:.0f} % |")


def bytes_per_nanosecond() -> float:
    """Return the peak throughput of the vector unit for absolute differences."""
    random = np.random.default_rng(0)
    left, right = random.integers(0, 256, (2, 8192), dtype=np.uint8)
    mask = np.full(LANES, 255, dtype=np.uint8)
    _calibrate(left, right, mask, 1)
    return max(8192 * 2000 / 1e6 / spend(lambda: _calibrate(left, right, mask, 2000)) for _ in range(5))


@njit
def _calibrate(left: np.ndarray, right: np.ndarray, mask: np.ndarray, times: int) -> int:
    total = 0
    for _ in range(times):
        for start in range(0, len(left), LANES):
            place = np.uint64(start)
            total += run_distance(left, place, right, place, mask, np.uint64(0))
    return total


def report_build(images: list[np.ndarray], sizes: list[int]) -> None:
    """Print the CPU time of a build by stage, for one job on square crops of the photographs as PNG files."""
    print("\n| build, CPU ms per image | total | synthesis | quality figures | quality / total |")
    print("| --- |" + " --- |" * 4)
    for size in sizes:
        with tempfile.TemporaryDirectory() as directory:
            root, out = Path(directory, "images"), Path(directory, "shards")
            out.mkdir()
            root.mkdir()
            for number in range(6000 // size):
                side = min(images[number % len(images)].shape[:2])
                square = images[number % len(images)][:side, :side]
                small = cv2.resize(square, (size, size), interpolation=cv2.INTER_AREA)
                cv2.imwrite(str(root / f"{number:03d}.png"), small[..., ::-1])
            plan, source = make_plan(Recipe("folder", size=size), str(root))
            prepare_jobs(out, source)
            begin = time.process_time()
            stats = run_job(plan, str(root), out, {}, 0, lambda made, failed: True)
            total = 1000 * (time.process_time() - begin)
        synthesis, quality = (1000 * stats["seconds"][stage] for stage in ("synthesise", "quality"))
        cells = [total / plan.items, synthesis / plan.items, quality / plan.items]
        print(f"| {size} px | {' | '.join(f'{cell:.3g}' for cell in cells)} | {100 * quality / total:.0f} % |")


def report_threads(images: list[np.ndarray], sizes: list[int]) -> None:
    """Print the speedup of two threads."""
    print("\n| speedup of two threads, wall time | median of 7 | best |\n| --- | --- | --- |")
    for size in sizes:
        work = [make_patches(image, size, seed) for seed, image in enumerate(images)] * (1 + 2000 // size)
        seeds = list(range(len(work)))
        ratios = []
        for _ in range(7):
            spent = []
            for threads in (1, 2):
                begin = time.perf_counter()
                synthesize_batch(work, (size, size), seeds, threads=threads)
                spent.append(time.perf_counter() - begin)
            ratios.append(spent[0] / spent[1])
        print(f"| {size} px | {statistics.median(ratios):.2f} | {max(ratios):.2f} |")


def report_compilation() -> None:
    """Print the CPU time of the first call in a process, with an empty and with a filled kernel cache."""
    code = (
        "import time, numpy as np; begin = time.process_time(); from texturegen.texture import synthesize; "
        "synthesize([np.zeros((48, 48, 3), np.uint8)], (96, 96)); print(time.process_time() - begin)"
    )
    with tempfile.TemporaryDirectory() as cache:
        environment = {**os.environ, "NUMBA_CACHE_DIR": cache}
        first, second = (
            float(subprocess.check_output([sys.executable, "-c", code], env=environment, text=True)) for _ in range(2)
        )
    print(
        f"\nfirst `coherent` call of a process: {first:.1f} CPU s with an empty kernel cache, "
        f"{second:.2f} CPU s with a filled one"
    )


def plot_cost(image: np.ndarray, path: Path) -> None:
    """Plot cost by output size for one exemplar, and by exemplar size for one output."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    def cost(patch: int, size: int) -> float:
        patches = [image[:patch, :patch], image[-patch:, -patch:]]
        return min(spend(lambda: synthesize(patches, (size, size))) for _ in range(5))

    sides = [32, 48, 64, 96, 128, 192, 256, 384, 512]
    image = cv2.resize(image, (1000, 1000), interpolation=cv2.INTER_CUBIC)  # for large exemplars
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.5))
    left.loglog([side**2 for side in sides], [cost(48, side) for side in sides], "o-")
    left.loglog([32**2, 512**2], [cost(48, 512) / 256, cost(48, 512)], ":", color="grey")
    left.set(xlabel="output pixels (32 to 512 px), two patches of 48 px", ylabel="CPU ms")
    exemplars = [16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1000]
    right.plot(exemplars, [cost(side, 96) for side in exemplars], "o-")
    right.set(xlabel="side of both patches, output 96 px", ylabel="CPU ms", ylim=(0, None))
    figure.tight_layout()
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
