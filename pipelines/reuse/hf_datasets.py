"""Read shards as a Hugging Face data set of (image, texture, label), without importing this project.

    texturegen build --dataset shapes --limit 4000 --out shards/
    python -m pipelines.reuse.hf_datasets --shards shards/ --cache /tmp/hf        # needs datasets and torch

`load_dataset("webdataset")` (https://huggingface.co/docs/datasets/loading) makes a column for each member: `png`,
`texture0.png`, `cls`. It infers the columns from the first samples, so all images must have the same format.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset, load_dataset
from torch import Tensor
from torch.utils.data import DataLoader

IMAGES = ("png", "jpg", "webp")


def load(shards: Path, cache: Path | None = None) -> Dataset:
    """Return a data set with the columns image and texture (PIL, decoded on access), label (int) and key."""
    tars = sorted(str(path) for path in shards.glob("*.tar"))
    if not tars:
        raise SystemExit(f"{shards}: no shards (*.tar) here")
    data = load_dataset("webdataset", data_files={"train": tars}, split="train", cache_dir=cache and str(cache))
    image = next((name for name in IMAGES if name in data.column_names), None)
    texture = next((f"texture0.{name}" for name in IMAGES if f"texture0.{name}" in data.column_names), None)
    if image is None or texture is None:
        raise SystemExit(f"{tars[0]}: no textures in these shards; build with --per-image 1")
    data = data.select_columns(["__key__", image, texture, "cls"])
    return data.rename_columns({"__key__": "key", image: "image", texture: "texture", "cls": "label"})


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
