"""SimCLR of solo-learn with texture negatives: its backbone, projector and training step, and one more logit.

da Costa et al., "solo-learn: A Library of Self-supervised Methods for Visual Representation Learning", JMLR 2022.
Ge et al., "Robust Contrastive Learning Using Negative Samples with Diminished Semantics", NeurIPS 2021: the texture of
the query's own image is one more negative, with its similarity multiplied by alpha (2 in their texture runs).

solo-learn's batches are [indices, [views], labels], and its methods are LightningModules: a subclass takes the texture
out of the views and hands the rest to the training step of the library.

    pip install "solo-learn @ git+https://github.com/vturrisi/solo-learn"     # 1.0.6; PyPI has 1.0.2, for torch 1.9
    texturegen build --dataset shapes --limit 4000 --out shards/
    python -m pipelines.reuse.solo_learn --shards shards/ --epochs 1
"""

from pathlib import Path

import click
import torch
import torch.nn.functional as F
from lightning.pytorch import Trainer, seed_everything
from omegaconf import OmegaConf
from PIL import Image
from solo.data.pretrain_dataloader import build_transform_pipeline, prepare_dataloader
from solo.methods.base import BaseMethod
from solo.methods.simclr import SimCLR
from torch import Tensor
from torch.utils.data import Dataset

from pipelines.reuse.options import check_out
from texturegen import open_shards
from texturegen.console import FriendlyCommand
from texturegen.errors import UserError

VIEWS = {
    "rrc": {"enabled": True, "crop_min_scale": 0.2, "crop_max_scale": 1.0},
    "color_jitter": {"prob": 0.8, "brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "hue": 0.1},
    "grayscale": {"prob": 0.2},
    "gaussian_blur": {"prob": 0.0},
    "solarization": {"prob": 0.0},
    "equalization": {"prob": 0.0},
    "horizontal_flip": {"prob": 0.5},
}


class Pictures(Dataset):
    """(index, [view, view, view of the texture], label) in the form of solo-learn; views are float (3, H, W)."""

    def __init__(self, directory: Path) -> None:
        self.shards = open_shards(directory)
        if not self.shards.textures_per_image:
            raise UserError(f"{directory}: no textures in these shards; build with --per-image 1")
        config = OmegaConf.create({**VIEWS, "crop_size": min(self.shards.image_size())})
        self.view = build_transform_pipeline("custom", config)  # normalised by ImageNet's mean and std

    def __len__(self) -> int:
        return len(self.shards)

    def __getitem__(self, i: int) -> tuple[int, list[Tensor], int]:
        sample = self.shards[i]
        image, texture = Image.fromarray(sample.image), Image.fromarray(sample.textures[0])
        return i, [self.view(image), self.view(image), self.view(texture)], sample.label


class TextureSimCLR(SimCLR):
    """SimCLR; with `alpha`, the texture of a view's own image is one more negative."""

    alpha: float | None = None

    def training_step(self, batch: list, batch_idx: int) -> Tensor:
        indices, (x1, x2, texture), labels = batch
        out = BaseMethod.training_step(self, [indices, [x1, x2], labels], batch_idx)
        t = None if self.alpha is None else self(texture)["z"]
        z1, z2 = out["z"]
        loss = nt_xent(z1, z2, t, self.temperature, self.alpha or 0.0)
        self.log("train_nce_loss", loss, prog_bar=True)
        return loss + out["loss"]  # the latter trains solo-learn's online classifier, on detached features


def nt_xent(z1: Tensor, z2: Tensor, t: Tensor | None, tau: float, alpha: float) -> Tensor:
    """Return NT-Xent over 2N views; negatives are the 2N - 2 views of other images and, if given, the own texture.

    Without t (N, D), this is `solo.losses.simclr.simclr_loss_func`.
    """
    z = F.normalize(torch.cat([z1, z2]), dim=1)  # (2N, D)
    itself = torch.eye(len(z), dtype=torch.bool, device=z.device)
    logits = (z @ z.T / tau).masked_fill(itself, float("-inf"))  # (2N, 2N)
    if t is not None:
        own = alpha * (z * F.normalize(torch.cat([t, t]), dim=1)).sum(1, keepdim=True) / tau  # (2N, 1)
        logits = torch.cat([logits, own], 1)
    return F.cross_entropy(logits, torch.arange(len(z), device=z.device).roll(len(z1)))


@click.command(cls=FriendlyCommand)
@click.option("--shards", required=True, type=click.Path(path_type=Path))
@click.option("--epochs", default=1, show_default=True, type=click.IntRange(1))
@click.option("--steps", type=click.IntRange(1), help="Stop after this many steps.")
@click.option("--batch-size", default=64, show_default=True, type=click.IntRange(2))
@click.option("--lr", default=1e-3, show_default=True)
@click.option("--tau", default=0.5, show_default=True)
@click.option("--alpha", default=2.0, show_default=True, help="Factor of the similarity to the texture.")
@click.option("--no-textures", is_flag=True, help="Train plain SimCLR, for comparison.")
@click.option("--device", default="auto", show_default=True, help="Accelerator of Lightning: auto, cpu, gpu.")
@click.option("--seed", default=0, show_default=True)
@click.option("--out", type=click.Path(path_type=Path), help="Save the encoder here, a torchvision resnet18.")
def main(shards: Path, epochs: int, steps: int | None, batch_size: int, lr: float, tau: float, alpha: float,
         no_textures: bool, device: str, seed: int, out: Path | None) -> None:  # fmt: skip
    """Train a ResNet-18 by solo-learn's SimCLR with texture negatives."""
    check_out(out)
    seed_everything(seed)
    pictures = Pictures(shards)
    if len(pictures) < batch_size:
        raise UserError(f"{shards}: {len(pictures)} images are fewer than a batch of {batch_size}; lower --batch-size")
    classes = max(1, len(pictures.shards.classes))
    config = {
        "method": "simclr",
        "backbone": {"name": "resnet18"},
        "method_kwargs": {"proj_hidden_dim": 512, "proj_output_dim": 128, "temperature": tau},
        "data": {"dataset": "custom", "num_classes": classes, "num_large_crops": 2, "num_small_crops": 0},
        "max_epochs": epochs,
        "optimizer": {"name": "adam", "batch_size": batch_size, "lr": lr, "classifier_lr": lr, "weight_decay": 1e-6},
        "scheduler": {"name": "none"},
    }
    model = TextureSimCLR(OmegaConf.create(config))
    model.alpha = None if no_textures else alpha
    if max(pictures.shards.image_size()) <= 64:
        model.backbone.maxpool = torch.nn.Identity()
    trainer = Trainer(max_epochs=epochs, max_steps=steps or -1, accelerator=device, devices=1, logger=False,
                      enable_checkpointing=False, log_every_n_steps=10)  # fmt: skip
    trainer.fit(model, prepare_dataloader(pictures, batch_size, num_workers=0))
    print(f"final loss {trainer.callback_metrics['train_nce_loss']:.3f}")
    if out:
        torch.save(model.backbone.state_dict(), out)


if __name__ == "__main__":
    main()
