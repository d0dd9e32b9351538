"""BYOL with a loss term that pushes predictions away from textures.

Grill et al., "Bootstrap Your Own Latent", NeurIPS 2020: a predictor on the online network matches the target's
projection of another view (eq. 2). BYOL has no negatives, so there are no logits to add a texture to. Instead, the loss
has a term for the texture: the cosine of the prediction and the target's projection of the texture, above `margin`.

    texturegen build --dataset shapes --limit 4000 --out shards/
    python -m pipelines.reuse.byol --shards shards/ --epochs 1

Shows how to wrap `texturegen.open_shards` in a torch Dataset, and how a method without negatives can use textures.
"""

import copy
from itertools import islice
from pathlib import Path

import click
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision.models import resnet18
from torchvision.transforms import v2

from pipelines.reuse.options import check_device, check_out
from texturegen import open_shards
from texturegen.console import FriendlyCommand
from texturegen.errors import UserError


class Samples(Dataset):
    """Two views of an image and one of its texture, each float (3, H, W)."""

    def __init__(self, directory: Path) -> None:
        self.shards = open_shards(directory)
        if not self.shards.textures_per_image:
            raise UserError(f"{directory}: no textures in these shards; build with --per-image 1")
        self.view = v2.Compose(
            [
                v2.RandomResizedCrop(self.shards.image_size(), scale=(0.3, 1), antialias=True),
                v2.RandomHorizontalFlip(),
                v2.RandomApply([v2.ColorJitter(0.4, 0.4, 0.2, 0.1)], 0.8),
                v2.RandomGrayscale(0.2),
                v2.ToDtype(torch.float32, scale=True),
                v2.Normalize([0.5] * 3, [0.25] * 3),
            ]
        )

    def __len__(self) -> int:
        return len(self.shards)

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor, Tensor]:
        sample = self.shards[i]
        image, texture = (torch.from_numpy(pixels).permute(2, 0, 1) for pixels in (sample.image, sample.textures[0]))
        return self.view(image), self.view(image), self.view(texture)


def mlp(inputs: int, outputs: int, hidden: int = 512) -> nn.Module:
    return nn.Sequential(
        nn.Linear(inputs, hidden), nn.BatchNorm1d(hidden), nn.ReLU(inplace=True), nn.Linear(hidden, outputs)
    )


def byol_loss(p: Tensor, z: Tensor, t: Tensor | None, weight: float, margin: float) -> Tensor:
    """Return the loss that pulls predictions p (N, D) to projections z of another view and away from textures t."""
    loss = 2 - 2 * F.cosine_similarity(p, z).mean()
    if t is not None:
        loss = loss + weight * (F.cosine_similarity(p, t) - margin).clamp(min=0).mean()
    return loss


@click.command(cls=FriendlyCommand)
@click.option("--shards", required=True, type=click.Path(path_type=Path))
@click.option("--epochs", default=1, show_default=True, type=click.IntRange(1))
@click.option("--steps", type=click.IntRange(1), help="Stop after this many steps.")
@click.option("--batch-size", default=64, show_default=True, type=click.IntRange(2))
@click.option("--lr", default=0.05, show_default=True)
@click.option("--momentum", default=0.99, show_default=True, help="Momentum of the target.")
@click.option("--weight", default=1.0, show_default=True, help="Weight of the texture term; 0 is plain BYOL.")
@click.option("--margin", default=0.0, show_default=True, help="Cosine below which a texture has no effect.")
@click.option("--device", default="cuda" if torch.cuda.is_available() else "cpu", show_default=True)
@click.option("--seed", default=0, show_default=True)
@click.option("--out", type=click.Path(path_type=Path), help="Save the encoder here, a torchvision resnet18.")
def main(shards: Path, epochs: int, steps: int | None, batch_size: int, lr: float, momentum: float, weight: float,
         margin: float, device: str, seed: int, out: Path | None) -> None:  # fmt: skip
    """Train a ResNet-18 by BYOL, pushed away from textures."""
    check_device(device)
    check_out(out)
    torch.manual_seed(seed)
    samples = Samples(shards)
    if len(samples) < batch_size:
        raise UserError(f"{shards}: {len(samples)} images are fewer than one batch of {batch_size}; lower --batch-size")
    backbone = resnet18()
    width, backbone.fc = backbone.fc.in_features, nn.Identity()
    if max(samples.shards.image_size()) <= 64:
        backbone.maxpool = nn.Identity()
    online = nn.Sequential(backbone, mlp(width, 128)).to(device)
    target = copy.deepcopy(online).requires_grad_(False)
    predictor = mlp(128, 128).to(device)
    optimizer = torch.optim.SGD([*online.parameters(), *predictor.parameters()], lr, 0.9, weight_decay=1e-4)
    loader = DataLoader(samples, batch_size, shuffle=True, drop_last=True)
    for step, batch in enumerate(islice((b for _ in range(epochs) for b in loader), steps), start=1):
        x1, x2, xt = (x.to(device) for x in batch)  # (N, 3, H, W) each
        p1, p2 = predictor(online(x1)), predictor(online(x2))  # (N, D)
        with torch.no_grad():
            z1, z2, t = target(x1), target(x2), target(xt)  # (N, D)
        textures = t if weight else None
        loss = (byol_loss(p1, z2, textures, weight, margin) + byol_loss(p2, z1, textures, weight, margin)) / 2
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            for ours, theirs in zip(target.parameters(), online.parameters(), strict=True):
                ours.lerp_(theirs, 1 - momentum)
        if step == 1 or step % 10 == 0:
            key, texture = (F.cosine_similarity(p1, other).mean() for other in (z2, t))
            print(f"step {step} loss {loss:.3f} key {key:.3f} texture {texture:.3f}", flush=True)
    # 1 for embeddings spread evenly over the sphere, 0 for collapsed ones.
    spread = F.normalize(z1, dim=1).std(0).mean() * z1.shape[1] ** 0.5
    print(f"final loss {loss:.3f} spread {spread:.3f}")
    if out:
        torch.save(backbone.state_dict(), out)


if __name__ == "__main__":
    main()
