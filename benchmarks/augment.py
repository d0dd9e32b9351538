"""Throughput of the batched weak augmentation, compared with torchvision's v2 transforms applied per image.

    python benchmarks/augment.py [--rounds 5] [--chunks]

Both start from uint8 images in memory and end with normalised float32 views. One thread's CPU time is measured, which
other programs on the machine hardly change; rounds are interleaved, and ratios are computed within rounds. `--chunks`
varies the size of the chunks that a CPU processes at once.
"""

import statistics
import time
from collections.abc import Callable
from functools import partial

import click
import numpy as np
import torch
from torchvision.transforms import v2

from sacl_train.data import weak
from sacl_train.data.draws import Draws
from sacl_train.data.weak import WeakAugment

MEAN, STD = (0.49, 0.48, 0.45), (0.25, 0.24, 0.26)
BATCHES = {32: 128, 96: 64, 224: 16}


def per_image(policy: str, side: int) -> v2.Compose:
    """Return torchvision's transforms for a policy."""
    bilinear = v2.InterpolationMode.BILINEAR
    crop = [v2.RandomResizedCrop(side, (0.2, 1.0), interpolation=bilinear), v2.RandomHorizontalFlip()]
    end = [v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)]
    affine = v2.RandomAffine(15, (0.1, 0.1), interpolation=bilinear)
    if policy == "geometric":
        return v2.Compose([*crop, affine, *end])
    jitter = v2.RandomApply([v2.ColorJitter(0.4, 0.4, 0.4, 0.1)], p=0.8)
    if policy == "colour-geometric":
        return v2.Compose([*crop, affine, jitter, v2.RandomGrayscale(0.2), *end])
    blur = [v2.RandomApply([v2.GaussianBlur(13)], p=0.5)] if side > 64 else []
    return v2.Compose([*crop, jitter, v2.RandomGrayscale(0.2), *blur, *end])


def seconds(call: Callable[[], object]) -> float:
    """Return the CPU time of a call in seconds."""
    start = time.process_time()
    call()
    return time.process_time() - start


@click.command()
@click.option("--rounds", default=5, show_default=True)
@click.option("--chunks", is_flag=True, help="Vary the chunk size instead.")
def main(rounds: int, chunks: bool) -> None:
    """Measure the batched weak augmentation."""
    torch.set_num_threads(1)
    random = np.random.default_rng(0)
    batches = {
        side: torch.from_numpy(random.integers(0, 256, (count, side, side, 3), np.uint8)).permute(0, 3, 1, 2)
        for side, count in BATCHES.items()
    }
    if chunks:
        compare_chunks(batches, rounds)
        return
    print(
        "| views | side, px | batch | batched, images/s | torchvision v2 image by image, images/s | ratio |\n"
        "|---|---|---|---|---|---|"
    )
    for policy in ("geometric", "mocov2", "colour-geometric"):
        for side, images in batches.items():
            ours, theirs = WeakAugment(policy, MEAN, STD), per_image(policy, side)
            states = [Draws(0, 0, torch.arange(len(images))).of(view) for view in range(3)]

            def augment_batch(ours: WeakAugment = ours, images: torch.Tensor = images, states: list = states) -> None:
                for state in states:  # two views of the image and one of the texture
                    ours(images, state)

            def augment_images(theirs: v2.Compose = theirs, images: torch.Tensor = images) -> None:
                for _ in range(3):
                    torch.stack([theirs(image) for image in images])

            augment_batch()
            augment_images()
            pairs = [(seconds(augment_batch), seconds(augment_images)) for _ in range(rounds)]
            count = 3 * len(images)
            ratio = statistics.median(b / a for a, b in pairs)
            batched, single = (count / statistics.median(times) for times in zip(*pairs, strict=True))
            print(f"| {policy} | {side} | {len(images)} | {batched:,.0f} | {single:,.0f} | {ratio:.1f}x |")


def compare_chunks(batches: dict[int, torch.Tensor], rounds: int) -> None:
    """Print the throughput of the geometric policy by chunk size."""
    sizes = [2**n for n in range(0, 8)]
    print("images/s of policy `geometric` by images per chunk\n\n| side, px |", " | ".join(map(str, sizes)), "|")
    print("|---" * (len(sizes) + 1) + "|")
    for side, images in batches.items():
        whole = images.repeat(128 // len(images), 1, 1, 1)
        call = partial(WeakAugment("geometric", MEAN, STD), whole, Draws(0, 0, torch.arange(128)).of(0))
        times: dict[int, list[float]] = {size: [] for size in sizes}
        call()
        for _ in range(rounds):
            for size in sizes:
                weak.CHUNK = size * side * side
                times[size].append(seconds(call))
        print(f"| {side} |", " | ".join(f"{128 / statistics.median(times[size]):,.0f}" for size in sizes), "|")


if __name__ == "__main__":
    main()
