"""MoCo v2 with texture negatives, built from lightly's modules.

He et al., "Momentum Contrast for Unsupervised Visual Representation Learning", CVPR 2020; Chen et al., "Improved
Baselines with Momentum Contrastive Learning", 2020: a projector with two layers and a queue of keys.
Ge et al., "Robust Contrastive Learning Using Negative Samples with Diminished Semantics", NeurIPS 2021: the texture of
the query's own image is one more negative, with its similarity multiplied by alpha (2 in their texture runs).

Shows how to wrap shards in a torch Dataset in five lines, and that a texture negative is one more column of logits.

    texturegen build --dataset shapes --limit 4000 --out shards/
    python -m pipelines.reuse.moco --shards shards/ --epochs 1        # needs lightly
"""

import copy
from itertools import islice
from pathlib import Path

import click
import torch
import torch.nn.functional as F
from lightly.models.modules import MoCoProjectionHead
from lightly.models.utils import deactivate_requires_grad, update_momentum
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision.models import resnet18
from torchvision.transforms import v2

from pipelines.reuse.options import check_device, check_out
from texturegen import open_shards
from texturegen.console import FriendlyCommand
from texturegen.errors import UserError


class Views(Dataset):
    """Two views of an image (query, key) and one of its texture, each float (3, H, W)."""

    def __init__(self, directory: Path) -> None:
        self.shards = open_shards(directory)
        if not self.shards.textures_per_image:
            raise UserError(f"{directory}: no textures in these shards; build with --per-image 1")
        self.view = v2.Compose(
            [
                v2.ToImage(),
                v2.RandomResizedCrop(self.shards.image_size(), scale=(0.2, 1), antialias=True),
                v2.RandomApply([v2.ColorJitter(0.4, 0.4, 0.4, 0.1)], 0.8),
                v2.RandomGrayscale(0.2),
                v2.RandomHorizontalFlip(),
                v2.ToDtype(torch.float32, scale=True),
                v2.Normalize([0.5] * 3, [0.25] * 3),
            ]
        )

    def __len__(self) -> int:
        return len(self.shards)

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor, Tensor]:
        sample = self.shards[i]
        return self.view(sample.image), self.view(sample.image), self.view(sample.textures[0])


class MoCo(nn.Module):
    """An encoder, its momentum copy, and a queue that, unlike lightly's memory bank, is part of the state_dict."""

    queue: Tensor  # (Q, D), newest keys first

    def __init__(self, dim: int, queue: int, small: bool) -> None:
        super().__init__()
        backbone = resnet18()
        width, backbone.fc = backbone.fc.in_features, nn.Identity()
        if small:
            backbone.maxpool = nn.Identity()
        self.online = nn.Sequential(backbone, MoCoProjectionHead(width, width, dim))
        self.target = copy.deepcopy(self.online)
        deactivate_requires_grad(self.target)
        self.register_buffer("queue", F.normalize(torch.randn(queue, dim), dim=1))

    def forward(self, query: Tensor, key: Tensor, texture: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries, keys and texture keys, each (N, D) of unit length, for views (N, 3, H, W)."""
        q = F.normalize(self.online(query), dim=1)
        with torch.no_grad():
            k, t = (F.normalize(self.target(x), dim=1) for x in (key, texture))
        return q, k, t

    def enqueue(self, keys: Tensor) -> None:
        self.queue = torch.cat([keys, self.queue])[: len(self.queue)]


def moco_loss(q: Tensor, k: Tensor, t: Tensor | None, queue: Tensor, tau: float, alpha: float) -> Tensor:
    """Return InfoNCE over N queries; negatives are the queue and, if given, the texture t of the query's own image."""
    logits = [(q * k).sum(1, keepdim=True), q @ queue.T]  # (N, 1), (N, Q)
    if t is not None:
        logits.append(alpha * (q * t).sum(1, keepdim=True))  # (N, 1)
    return F.cross_entropy(torch.cat(logits, 1) / tau, torch.zeros(len(q), dtype=torch.long, device=q.device))


@click.command(cls=FriendlyCommand)
@click.option("--shards", required=True, type=click.Path(path_type=Path))
@click.option("--epochs", default=1, show_default=True, type=click.IntRange(1))
@click.option("--steps", type=click.IntRange(1), help="Stop after this many steps.")
@click.option("--batch-size", default=64, show_default=True, type=click.IntRange(2))
@click.option("--lr", default=0.03, show_default=True)
@click.option("--queue", default=1024, show_default=True, type=click.IntRange(1))
@click.option("--tau", default=0.2, show_default=True)
@click.option("--alpha", default=2.0, show_default=True, help="Factor of the similarity to the texture.")
@click.option("--no-textures", is_flag=True, help="Train plain MoCo v2, for comparison.")
@click.option("--device", default="cuda" if torch.cuda.is_available() else "cpu", show_default=True)
@click.option("--seed", default=0, show_default=True)
@click.option("--out", type=click.Path(path_type=Path), help="Save the encoder here, a torchvision resnet18.")
def main(shards: Path, epochs: int, steps: int | None, batch_size: int, lr: float, queue: int, tau: float, alpha: float,
         no_textures: bool, device: str, seed: int, out: Path | None) -> None:  # fmt: skip
    """Train a ResNet-18 by MoCo v2 with texture negatives."""
    check_device(device)
    check_out(out)
    torch.manual_seed(seed)
    views = Views(shards)
    if len(views) < batch_size:
        raise UserError(f"{shards}: {len(views)} images are fewer than one batch of {batch_size}; lower --batch-size")
    net = MoCo(128, queue, small=max(views.shards.image_size()) <= 64).to(device)
    optimizer = torch.optim.SGD(net.online.parameters(), lr=lr, momentum=0.9, weight_decay=1e-4)
    loader = DataLoader(views, batch_size, shuffle=True, drop_last=True)
    for step, batch in enumerate(islice((b for _ in range(epochs) for b in loader), steps), start=1):
        update_momentum(net.online, net.target, m=0.99)
        q, k, t = net(*(x.to(device) for x in batch))
        loss = moco_loss(q, k, None if no_textures else t, net.queue, tau, alpha)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        net.enqueue(k)
        if step == 1 or step % 10 == 0:
            print(f"step {step} loss {loss:.3f} key {(q * k).sum(1).mean():.3f} texture {(q * t).sum(1).mean():.3f}")
    # 1 for embeddings spread evenly over the sphere, 0 for collapsed ones.
    print(f"final loss {loss:.3f} spread {q.detach().std(0).mean() * q.shape[1] ** 0.5:.3f}")
    if out:
        torch.save(net.online[0].state_dict(), out)


if __name__ == "__main__":
    main()
