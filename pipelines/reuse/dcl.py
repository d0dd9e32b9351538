"""Decoupled contrastive learning with texture negatives, from lightly's data set, transform and projector.

Yeh et al., "Decoupled Contrastive Learning", ECCV 2022 (eq. 6): SimCLR's loss without the positive in the denominator.
Ge et al., "Robust Contrastive Learning Using Negative Samples with Diminished Semantics", NeurIPS 2021: the texture of
the query's own image is one more negative, with its similarity multiplied by alpha (2 in their texture runs).

Shows how shards become lightly's `LightlyDataset` of (views, label, name): the texture is one more view.

    texturegen build --dataset shapes --limit 4000 --out shards/
    python -m pipelines.reuse.dcl --shards shards/ --epochs 1        # needs lightly
"""

from itertools import islice
from pathlib import Path

import click
import torch
import torch.nn.functional as F
from lightly.data import LightlyDataset
from lightly.models.modules import SimCLRProjectionHead
from lightly.transforms import SimCLRTransform
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision.models import resnet18

from pipelines.reuse.options import check_device, check_out
from texturegen import open_shards
from texturegen.console import FriendlyCommand
from texturegen.errors import UserError


class Pictures(Dataset):
    """Views of an image and one of its texture, each float (3, H, W), and the label; for `from_torch_dataset`."""

    def __init__(self, directory: Path) -> None:
        self.shards = open_shards(directory)
        if not self.shards.textures_per_image:
            raise UserError(f"{directory}: no textures in these shards; build with --per-image 1")
        side = min(self.shards.image_size())
        self.transform = SimCLRTransform(side, cj_strength=0.5, gaussian_blur=0.5 if side > 64 else 0, min_scale=0.2)

    def __len__(self) -> int:
        return len(self.shards)

    def __getitem__(self, i: int) -> tuple[list[Tensor], int]:
        sample = self.shards[i]
        image, texture = Image.fromarray(sample.image), Image.fromarray(sample.textures[0])
        return [*self.transform(image), self.transform(texture)[0]], sample.label


def dcl(z1: Tensor, z2: Tensor, t: Tensor | None, tau: float, alpha: float) -> Tensor:
    """Return the decoupled loss over 2N views; negatives are the views of other images and, if given, the own texture.

    Without t (N, D), this is the loss of `lightly.loss.DCLLoss`.
    """
    z = F.normalize(torch.cat([z1, z2]), dim=1)  # (2N, D)
    logits = z @ z.T / tau  # (2N, 2N)
    same = torch.eye(len(z1), dtype=torch.bool, device=z.device).repeat(2, 2)  # an image's two views
    positives = logits.diag(len(z1)).repeat(2)  # (2N,)
    logits = logits.masked_fill(same, float("-inf"))
    if t is not None:
        own = alpha * (z * F.normalize(torch.cat([t, t]), dim=1)).sum(1, keepdim=True) / tau  # (2N, 1)
        logits = torch.cat([logits, own], 1)
    return (logits.logsumexp(1) - positives).mean()


@click.command(cls=FriendlyCommand)
@click.option("--shards", required=True, type=click.Path(path_type=Path))
@click.option("--epochs", default=1, show_default=True, type=click.IntRange(1))
@click.option("--steps", type=click.IntRange(1), help="Stop after this many steps.")
@click.option("--batch-size", default=64, show_default=True, type=click.IntRange(2))
@click.option("--lr", default=1e-3, show_default=True)
@click.option("--tau", default=0.2, show_default=True)
@click.option("--alpha", default=2.0, show_default=True, help="Factor of the similarity to the texture.")
@click.option("--no-textures", is_flag=True, help="Train plain DCL, for comparison.")
@click.option("--device", default="cuda" if torch.cuda.is_available() else "cpu", show_default=True)
@click.option("--seed", default=0, show_default=True)
@click.option("--out", type=click.Path(path_type=Path), help="Save the encoder here, a torchvision resnet18.")
def main(shards: Path, epochs: int, steps: int | None, batch_size: int, lr: float, tau: float, alpha: float,
         no_textures: bool, device: str, seed: int, out: Path | None) -> None:  # fmt: skip
    """Train a ResNet-18 by DCL with texture negatives."""
    check_device(device)
    check_out(out)
    torch.manual_seed(seed)
    pictures = Pictures(shards)
    if len(pictures) < batch_size:
        raise UserError(f"{shards}: {len(pictures)} images are fewer than a batch of {batch_size}; lower --batch-size")
    data = LightlyDataset.from_torch_dataset(pictures, index_to_filename=lambda data, i: data.shards.keys[i])
    encoder = resnet18()
    width, encoder.fc = encoder.fc.in_features, nn.Identity()
    if max(pictures.shards.image_size()) <= 64:
        encoder.maxpool = nn.Identity()
    net = nn.Sequential(encoder, SimCLRProjectionHead(width, width, 128)).to(device)
    optimizer = torch.optim.Adam(net.parameters(), lr=lr, weight_decay=1e-6)
    loader = DataLoader(data, batch_size, shuffle=True, drop_last=True)
    for step, (views, _, _) in enumerate(islice((b for _ in range(epochs) for b in loader), steps), start=1):
        x1, x2, xt = (x.to(device) for x in views)  # (N, 3, H, W) each
        z1, z2 = net(x1), net(x2)  # (N, 128) each
        t = None if no_textures else net(xt)
        loss = dcl(z1, z2, t, tau, alpha)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step == 1 or step % 10 == 0:
            texture = "" if t is None else f" texture {F.cosine_similarity(z1, t).mean():.3f}"
            print(f"step {step} loss {loss:.3f} key {F.cosine_similarity(z1, z2).mean():.3f}{texture}", flush=True)
    # 1 for embeddings spread evenly over the sphere, 0 for collapsed ones.
    print(f"final loss {loss:.3f} spread {F.normalize(z1, dim=1).std(0).mean() * z1.shape[1] ** 0.5:.3f}")
    if out:
        torch.save(encoder.state_dict(), out)


if __name__ == "__main__":
    main()
