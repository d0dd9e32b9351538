"""Train a segmenter of defects on pasted textures: pixels of an image that another material covers.

    texturegen build --dataset folder --root photos/ --size 96 --paste --out shards/
    texturegen build --dataset folder --root other-photos/ --size 96 --paste --out other/
    python -m pipelines.reuse.defects --shards shards/ --other other/     # needs scikit-learn for the scores

Like DRAEM (Zavrtanik et al., ICCV 2021) without its reconstruction: a small U-Net sees images with a pasted texture
and untouched ones, and tells for each pixel whether it was pasted. The score is the area under the ROC curve over all
pixels of images that it was not trained on: the last tenth of the shards, and photographs of other shards.
"""

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn
from torch.nn import functional as F

from texturegen import Shards, open_shards

SOFT = 128  # of 255: mask values from here on are defects


class Segmenter(nn.Module):
    """U-Net with three levels: images float (N, 3, H, W) in 0..1 -> logits (N, H, W)."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.first, self.second, self.third = _block(3, width), _block(width, 2 * width), _block(2 * width, 4 * width)
        self.up, self.out = _block(6 * width, 2 * width), _block(3 * width, width)
        self.head = nn.Conv2d(width, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        fine = self.first(x)
        middle = self.second(F.avg_pool2d(fine, 2))
        coarse = self.third(F.avg_pool2d(middle, 2))
        middle = self.up(torch.cat([F.interpolate(coarse, size=middle.shape[-2:]), middle], 1))
        fine = self.out(torch.cat([F.interpolate(middle, size=fine.shape[-2:]), fine], 1))
        logits: Tensor = self.head(fine)
        return logits[:, 0]


def _block(channels: int, out: int) -> nn.Sequential:
    layers = (nn.Conv2d(channels, out, 3, padding=1, bias=False), nn.BatchNorm2d(out), nn.ReLU())
    return nn.Sequential(*layers, nn.Conv2d(out, out, 3, padding=1, bias=False), nn.BatchNorm2d(out), nn.ReLU())


def load(shards: Shards, samples: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
    """Return images uint8 (N, 3, H, W), pasted ones (N, 3, H, W) and masks bool (N, H, W), a row per texture."""
    images, pasted, masks = [], [], []
    for i in samples:
        sample = shards[i]
        images += [sample.image] * len(sample.textures)
        pasted += [*sample.pasted]
        masks += [*sample.masks]
    first, second = (torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2) for pixels in (images, pasted))
    return first, second, torch.from_numpy(np.stack(masks) >= SOFT)


def batches(
    data: tuple[Tensor, Tensor, Tensor], size: int, generator: torch.Generator
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield images float (N, 3, H, W) and masks float (N, H, W): pasted ones, then the same untouched."""
    images, pasted, masks = data
    for rows in torch.randperm(len(images), generator=generator).split(size // 2):
        x = torch.cat([pasted[rows], images[rows]]).float() / 255
        y = torch.cat([masks[rows], torch.zeros_like(masks[rows])]).float()
        if torch.rand((), generator=generator) < 0.5:
            x, y = x.flip(-1), y.flip(-1)
        yield x, y


def balance(masks: Tensor) -> Tensor:
    """Return the weight of a defect's pixel with which defects and all other pixels of `batches` weigh the same."""
    share = masks.float().mean() / 2  # half of a batch is untouched
    return (1 - share) / share


@torch.inference_mode()
def pixel_auroc(segmenter: Segmenter, data: tuple[Tensor, Tensor, Tensor]) -> float:
    """Return the area under the ROC curve over the pixels of the pasted images."""
    _, pasted, masks = data
    segmenter.eval()
    scores = torch.cat([segmenter(part.float() / 255) for part in pasted.split(64)])
    segmenter.train()
    return float(roc_auc_score(masks.flatten().numpy(), scores.flatten().numpy()))


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="defects", description="Train a segmenter of defects on pasted textures.")
    parser.add_argument("--shards", type=Path, required=True, help="shards built with --paste")
    parser.add_argument("--other", type=Path, help="shards of other images built with --paste, of the same size")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    torch.manual_seed(args.seed)
    generator = torch.Generator().manual_seed(args.seed)
    shards = open_shards(args.shards)
    held_out = max(len(shards) // 10, 1)
    train = load(shards, range(len(shards) - held_out))
    tests = {"held out": load(shards, range(len(shards) - held_out, len(shards)))}
    if args.other is not None:
        other = open_shards(args.other)
        tests["other images"] = load(other, range(len(other)))
    segmenter = Segmenter()
    steps = args.epochs * -(-len(train[0]) // (args.batch_size // 2))
    optimizer = torch.optim.AdamW(segmenter.parameters(), args.lr)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, args.lr, total_steps=steps)
    weight = balance(train[2])
    for epoch in range(args.epochs):
        losses = []
        for x, y in batches(train, args.batch_size, generator):
            loss = F.binary_cross_entropy_with_logits(segmenter(x), y, pos_weight=weight)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            losses.append(loss.item())
        print(f"epoch {epoch + 1}: loss {np.mean(losses):.3f}", flush=True)
    for name, data in tests.items():
        print(f"pixel AUROC, {name}: {pixel_auroc(segmenter, data):.3f} ({len(data[0])} images)")


if __name__ == "__main__":
    main()
