"""Population statistics of BatchNorm, estimated on the images that the features are taken from.

Training leaves running averages of what passed through the encoder last: augmented views, cells of a grid, textures.
Whole images have other means and variances, so a probe normalises them wrongly (Wu & Johnson 2021, "Rethinking 'Batch'
in BatchNorm", sections 3 and 5). Averaging the statistics of clean batches instead is what they call PreciseBN.
"""

import numpy as np
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.swa_utils import update_bn

from sacl_train.config import Config
from sacl_train.data.weak import normalise
from sacl_train.evaluate.images import BATCH, Images
from sacl_train.training.precision import autocast
from texturegen.errors import UserError, nearest

STATISTICS = ("images", "training")
DEFAULT_STATISTICS = "auto"  # "images" for a run, "training" for an encoder of another program
MAX_BATCHES = 40  # batches of 256 images


def resolve_statistics(name: str, encoder: nn.Module, is_foreign: bool = False) -> str:
    """Return which statistics an encoder is evaluated with.

    Parameters
    ----------
    name : str
        "images", "training" or "auto".
    encoder : nn.Module
        The encoder.
    is_foreign : bool
        The encoder is of another program, whose published figures use its own statistics.

    Returns
    -------
    str
        "images", "training", or "none" for an encoder without BatchNorm.

    Raises
    ------
    UserError
        If the name is unknown.
    """
    known = ("auto", *STATISTICS)
    if name not in known:
        raise UserError(f"unknown norm_statistics '{name}'{nearest(name, known)}; known: {', '.join(known)}")
    if not has_batch_norm(encoder):
        return "none"
    return default_statistics(is_foreign) if name == "auto" else name


def default_statistics(is_foreign: bool) -> str:
    """Return what "auto" stands for, for an encoder of a run or of another program."""
    return "training" if is_foreign else "images"


def has_batch_norm(encoder: nn.Module) -> bool:
    """Return True if a module of `encoder` is a BatchNorm."""
    return any(isinstance(module, _BatchNorm) for module in encoder.modules())


def estimate_statistics(
    encoder: nn.Module, images: Images, config: Config, device: torch.device, indices: np.ndarray | None = None
) -> None:
    """Replace the running statistics of an encoder's BatchNorms, in place, by those of whole, unaugmented images.

    The encoder is run in training mode without gradient, and the statistics of its batches are averaged
    (`torch.optim.swa_utils.update_bn`). Its mode is restored; an encoder without BatchNorm is not changed. Uses up to
    10,240 images in a fixed random order, because a batch of one class has other statistics.

    Parameters
    ----------
    encoder : nn.Module
        Maps normalised images float (N, 3, H, W) to features, on `device`.
    images : Images
        The images, labelled or not.
    config : Config
        Mean and standard deviation of the pixels, and the precision.
    device : torch.device
        The encoder's device.
    indices : ndarray int64 (N,) or None
        Images to use; None: all.

    Raises
    ------
    UserError
        If there are fewer than two images.
    """
    if not has_batch_norm(encoder):
        return
    assert config.mean is not None
    assert config.std is not None
    mean, std = config.mean, config.std
    picked = np.arange(len(images)) if indices is None else indices
    if len(picked) < 2:
        raise UserError(
            f"{images.place}: BatchNorm statistics need at least 2 images, not {len(picked)}; use --norm-statistics "
            "training"
        )
    order = np.random.default_rng(0).permutation(picked)[: MAX_BATCHES * BATCH]
    # Every batch has the same weight in the average, so a last batch of a few images would count too much.
    order = order[: whole_batches(len(order))]
    with autocast(config, device):
        update_bn(
            (normalise(batch["image"].to(device), mean, std) for batch in images.batches(order, config.threads)),
            encoder,
        )


def whole_batches(count: int) -> int:
    """Return how many of `count` images fill whole batches; all of them if they do not fill one."""
    return max(count // BATCH * BATCH, min(count, BATCH))
