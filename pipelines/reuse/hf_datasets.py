"""Read shards as a Hugging Face data set of (image, texture, label), without importing this project.

    texturegen build --dataset shapes --limit 4000 --out shards/
    python -m pipelines.reuse.hf_datasets --shards shards/ --cache /tmp/hf        # needs datasets and torch

`load_dataset(DIR)` (https://huggingface.co/docs/datasets/loading) reads the columns from the card, DIR/README.md: one
for each member, such as `png`, `texture0.png` and `cls`. Where images are of several types, each type has its column,
which is None for the other images; `load` joins them. `texturegen index DIR --for hf` writes the card of older shards.
"""

import argparse
import shlex
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset, Image, load_dataset
from torch import Tensor
from torch.utils.data import DataLoader

TYPES = ("png", "jpg", "webp")


def load(shards: Path, cache: Path | None = None) -> Dataset:
    """Return a data set with the columns image and texture (PIL, decoded on access), label (int) and key."""
    if not any(shards.glob("*.tar")):
        raise SystemExit(f"{shards}: no shards (*.tar) here")
    if not (shards / "README.md").is_file():
        raise SystemExit(
            f"{shards}: no README.md here; write it with `texturegen index {shlex.quote(str(shards))} --for hf`"
        )
    data = load_dataset(str(shards), split="train", cache_dir=cache and str(cache))
    images = [name for name in TYPES if name in data.column_names]
    textures = [f"texture0.{name}" for name in TYPES if f"texture0.{name}" in data.column_names]
    if not images or not textures:
        raise SystemExit(f"{shards}: no textures in these shards; build with --per-image 1")
    data = data.select_columns(["__key__", *images, *textures, "cls"])
    data = join(join(data, images, "image"), textures, "texture")
    return data.rename_columns({"__key__": "key", "cls": "label"})


def join(data: Dataset, columns: list[str], name: str) -> Dataset:
    """Replace columns of images, of which each row has one, by one column."""
    if len(columns) == 1:
        return data.rename_column(columns[0], name)

    def first(batch: dict) -> dict:
        rows = zip(*(batch[column] for column in columns), strict=True)
        return {name: [next(value for value in row if value is not None) for row in rows]}

    for column in columns:
        data = data.cast_column(column, Image(decode=False))  # copies the files, so nothing is encoded again
    return data.map(first, batched=True, remove_columns=columns).cast_column(name, Image())


def collate(samples: list[dict]) -> dict[str, Tensor]:
    """Return image and texture as uint8 (N, 3, H, W) and label as int64 (N,)."""

    def stack(name: str) -> Tensor:
        pixels = np.stack([np.asarray(sample[name].convert("RGB")) for sample in samples])  # (N, H, W, 3)
        return torch.from_numpy(pixels).permute(0, 3, 1, 2)

    labels = torch.tensor([int(sample["label"]) for sample in samples])
    return {"image": stack("image"), "texture": stack("texture"), "label": labels}


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="hf_datasets", description="Read shards with Hugging Face datasets.")
    parser.add_argument("--shards", type=Path, required=True, help="directory with *.tar")
    parser.add_argument("--cache", type=Path, help="directory for the Arrow copy  [default: that of datasets]")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--steps", type=int, default=10, help="batches to read")
    args = parser.parse_args(argv)
    data = load(args.shards, args.cache)
    print(data)
    loader = DataLoader(data, args.batch_size, shuffle=True, collate_fn=collate)
    for _, batch in zip(range(args.steps), loader, strict=False):
        image, texture = (batch[name].float() for name in ("image", "texture"))  # (N, 3, H, W) each
        gap = (image.mean((2, 3)) - texture.mean((2, 3))).abs().mean()
        print(f"images {tuple(image.shape)}, labels {batch['label'][:4].tolist()}..., mean colours differ by {gap:.1f}")


if __name__ == "__main__":
    main()
