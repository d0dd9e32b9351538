"""Measure how often the object survives in its texture, by a classifier that sees only shape.

    python benchmarks/shape_survival.py --size 32 --images 500 --out survival.json coherent coherent:levels=1 quilting

The classifier (the judge) is a small CNN trained on `shapes` with random fills, which are independent of the class, on
plain and photographic backgrounds. This command trains it and keeps its weights in --judge; they are not part of the
project. `survival` is its accuracy on textures: chance, 1/10, if no object survives. Two controls validate the judge:
its accuracy on the images themselves, and on the images with their pixels shuffled. Larger images are
reduced to 48 px before the judge sees them, so one judge serves all of them.

A row is METHOD[:KEY=VALUE,...][/COUNTxSIDE][@PLACE]: settings of the method, number and side of the patches (a side
below 1 is a fraction of the image's, none is that of builds), and where they are cut. `object` is the share of the
patches' pixels that show the object. To make rows comparable, coherence and completeness are always measured against
two patches of half the image's side.
"""

import json
import time
from pathlib import Path
from typing import Any

import click
import cv2
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from texturegen.builds.recipe import texture_seed
from texturegen.sources.shapes import BACKDROPS, TEXTURES, Draws, cut_crop, load_photo, load_texture, make_plain
from texturegen.sources.silhouettes import SILHOUETTES, draw_mask
from texturegen.texture import cut_patches, synthesize
from texturegen.texture.quality import measure

CLASSES = list(SILHOUETTES)
TRAIN, JUDGED = 1000, 1001  # entropy words, so that training and judged images differ
MAX_JUDGED = 48  # side in pixels: a judge of larger images takes longer to train and sees no more shape


def draw_image(entropy: tuple[int, ...], label: int, size: int, background: str) -> tuple[np.ndarray, np.ndarray]:
    """Return a silhouette of class `label` with random fill, uint8 (size, size, 3), and its mask, uint8 (size, size).

    `background` is plain, photo or both, which draws one of the two.
    """
    draws = Draws(*entropy)
    fill = cut_crop(load_texture(list(TEXTURES)[draws.below(len(TEXTURES))]), size, draws)
    mask = draw_mask(SILHOUETTES[CLASSES[label]], size, draws)
    alpha = mask[..., None].astype(np.uint16)
    if draws.below(2) if background == "both" else background == "photo":
        behind = cut_crop(load_photo(BACKDROPS[draws.below(len(BACKDROPS))]), size, draws)
    else:
        behind = make_plain(size, draws)
    return ((alpha * fill + (255 - alpha) * behind + 127) // 255).astype(np.uint8), mask


def draw_images(
    entropy: tuple[int, ...], count: int, size: int, background: str = "both"
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return images uint8 (count, size, size, 3), masks uint8 (count, size, size) and labels int64 (count,)."""
    labels = np.arange(count) % len(CLASSES)
    drawn = [draw_image((*entropy, size, i), int(label), size, background) for i, label in enumerate(labels)]
    return np.stack([image for image, _ in drawn]), np.stack([mask for _, mask in drawn]), labels


class Judge(nn.Sequential):
    """CNN: images uint8 (N, 3, size, size) -> logits (N, 10). Flattening keeps positions for the last layers."""

    def __init__(self, size: int, width: int = 32) -> None:
        layers: list[nn.Module] = []
        channels, side = 3, size
        while side > 4:
            layers += [nn.Conv2d(channels, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
            layers += [nn.MaxPool2d(2)]
            channels, side, width = width, side // 2, min(2 * width, 128)
        layers += [nn.Flatten(), nn.Linear(channels * side**2, 256), nn.ReLU(), nn.Dropout(0.3), nn.Linear(256, 10)]
        super().__init__(*layers)

    def forward(self, x: Tensor) -> Tensor:
        # Brightness and contrast are not shape, so each image is normalised by its own mean and deviation.
        x = x.float()
        x = (x - x.mean((1, 2, 3), keepdim=True)) / (x.std((1, 2, 3), keepdim=True) + 1)
        return super().forward(x)


def train_judge(size: int, images: int, epochs: int, seed: int, batch: int = 128) -> Judge:
    """Train a judge on `images` newly drawn images."""
    torch.manual_seed(seed)
    pixels, _, labels = draw_images(_entropy(TRAIN, seed), images, size)
    x, y = _as_tensor(pixels), torch.from_numpy(labels)
    judge = Judge(size)
    optimizer = torch.optim.AdamW(judge.parameters(), lr=2e-3, weight_decay=1e-2)
    steps = epochs * (images // batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=steps)
    for epoch in range(epochs):
        begin, order, right = time.monotonic(), torch.randperm(images), 0
        for start in range(0, images - batch + 1, batch):
            rows = order[start : start + batch]
            views = x[rows]
            if torch.rand(()) < 0.5:
                views = views.flip(1)  # colours are independent of the class
            logits = judge(views)
            loss = F.cross_entropy(logits, y[rows], label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            right += int((logits.argmax(1) == y[rows]).sum())
        seconds = time.monotonic() - begin
        print(f"judge, epoch {epoch + 1}/{epochs}: {right / images:.1%} of its images, {seconds:.0f} s", flush=True)
    return judge.eval()


@torch.inference_mode()
def accuracy(judge: Judge, images: np.ndarray, labels: np.ndarray) -> float:
    """Return the judge's accuracy on uint8 images (N, size, size, 3)."""
    if images.shape[1] > MAX_JUDGED:
        shape = (MAX_JUDGED, MAX_JUDGED)
        images = np.stack([cv2.resize(image, shape, interpolation=cv2.INTER_AREA) for image in images])
    found = torch.cat([judge(part).argmax(1) for part in _as_tensor(images).split(256)])
    return float((found == torch.from_numpy(labels)).float().mean())


def read_row(text: str, size: int) -> tuple[str, dict[str, Any], int, int | None, str | None]:
    """Parse METHOD[:KEY=VALUE,...][/COUNTxSIDE][@PLACE] into method, settings, count, side in pixels and place."""
    text, _, place = text.partition("@")
    head, _, patches = text.partition("/")
    method, _, pairs = head.partition(":")
    settings: dict[str, Any] = {}
    for pair in filter(None, pairs.split(",")):
        key, _, value = pair.partition("=")
        settings[key] = int(value) if value.lstrip("-").isdecimal() else float(value) if "." in value else value
    count, _, side = patches.partition("x")
    pixels = round(float(side) * (size if "." in side else 1)) if side else None
    return method, settings, int(count or 2), pixels, place or None


def judge_row(
    judge: Judge, images: np.ndarray, masks: np.ndarray, labels: np.ndarray, text: str, samples: int
) -> dict[str, Any]:
    """Return the figures of a row: survival with its standard error, object, quality and CPU milliseconds."""
    method, settings, count, side, place = read_row(text, images.shape[1])
    made, figures, shares, spent = [], [], [], 0.0
    for i, image in enumerate(images):
        seed = texture_seed(0, f"judged-{i}", 0)
        patches, boxes = cut_patches(image, seed, count, side, place)
        shares += [float(masks[i, y : y + h, x : x + w].mean()) / 255 for y, x, h, w in boxes]
        begin = time.process_time()
        texture = synthesize(patches, image.shape[:2], method, seed, **settings)
        spent += time.process_time() - begin if i else 0.0  # the first call compiles
        made.append(texture.image)
        half, _ = cut_patches(image, seed, 2, len(image) // 2)
        figures.append(measure(half, texture.image, seed, samples))
    survival = accuracy(judge, np.stack(made), labels)
    means = {name: float(np.mean([getattr(f, name) for f in figures])) for name in ("coherence", "completeness")}
    return {
        "row": text,
        "images": len(images),
        "survival": survival,
        "error": (survival * (1 - survival) / len(images)) ** 0.5,
        "object": float(np.mean(shares)),
        **means,
        "cpu_ms": 1000 * spent / max(len(images) - 1, 1),
    }


@click.command()
@click.argument("rows", nargs=-1)
@click.option("--size", default=32, show_default=True, help="Side of the images in pixels.")
@click.option("--images", default=500, show_default=True, help="Number of images to judge.")
@click.option("--background", default="both", show_default=True, type=click.Choice(["plain", "photo", "both"]))
@click.option(
    "--judge",
    "judge_file",
    type=click.Path(path_type=Path),
    help="Weights of the judge; trained if the file is missing.",
)
@click.option("--seed", default=0, show_default=True, help="Seed of the judged images, and of a judge that is trained.")
@click.option("--samples", default=60, show_default=True, help="Windows per texture for coherence and completeness.")
@click.option("--train", default=30_000, show_default=True, help="Number of images to train the judge on.")
@click.option("--epochs", default=8, show_default=True)
@click.option("--out", type=click.Path(path_type=Path), help="JSON lines; each row is appended when measured.")
def main(
    rows: tuple[str, ...],
    size: int,
    images: int,
    background: str,
    judge_file: Path | None,
    seed: int,
    samples: int,
    train: int,
    epochs: int,
    out: Path | None,
) -> None:
    """Print the judge's accuracy on the textures of each ROW."""
    if judge_file is not None and judge_file.is_file():
        judge = Judge(min(size, MAX_JUDGED))
        judge.load_state_dict(torch.load(judge_file, weights_only=True))
        judge.eval()
    else:
        judge = train_judge(min(size, MAX_JUDGED), train, epochs, seed)
        if judge_file is not None:
            torch.save(judge.state_dict(), judge_file)
    pixels, masks, labels = draw_images(_entropy(JUDGED, seed), images, size, background)
    shuffled = np.random.default_rng(0).permuted(pixels.reshape(images, -1, 3), axis=1).reshape(pixels.shape)
    common = {"size": size, "seed": seed, "background": background}
    controls = {
        "images themselves": accuracy(judge, pixels, labels),
        "pixels shuffled": accuracy(judge, shuffled, labels),
    }
    print(f"| {size} px | survival | object | coherence | completeness | CPU ms |\n|---|---|---|---|---|---|")
    for name, value in controls.items():
        print(f"| {name} | {value:.1%} | | | | |", flush=True)
        _append(out, {**common, "row": name, "images": images, "survival": value})
    for text in rows:
        found = judge_row(judge, pixels, masks, labels, text, samples)
        _append(out, {**common, **found})
        print(
            f"| {text} | {found['survival']:.1%} ± {found['error']:.1%} | {found['object']:.1%} | "
            f"{found['coherence']:.1f} | {found['completeness']:.1f} | {found['cpu_ms']:.2f} |",
            flush=True,
        )


def _entropy(word: int, seed: int) -> tuple[int, ...]:
    """Return the words that draw images: those of seed 0 have no word for the seed."""
    return (word, seed) if seed else (word,)


def _append(out: Path | None, line: dict[str, Any]) -> None:
    if out is not None:
        with out.open("a") as f:
            f.write(json.dumps(line) + "\n")


def _as_tensor(images: np.ndarray) -> Tensor:
    return torch.from_numpy(images).permute(0, 3, 1, 2)


if __name__ == "__main__":
    main()
