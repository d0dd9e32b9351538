"""Features of images under a frozen encoder, extracted once for all probes."""

from collections.abc import Callable

import numpy as np
import torch
from torch import nn

from sacl_train.config import Config
from sacl_train.data.stream import Plan, Stream
from sacl_train.data.weak import normalise
from texturegen.errors import UserError
from texturegen.shards import Shards

BATCH = 256


@torch.inference_mode()
def extract_features(
    encoder: nn.Module,
    shards: Shards,
    config: Config,
    device: torch.device,
    indices: np.ndarray | None = None,
    change: Callable[[torch.Tensor, np.ndarray], torch.Tensor] | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Features of whole, unaugmented images, in the order of `indices` (all samples by default).

    `config` gives mean and std of the normalisation the encoder was trained with. `change` is done to each batch of
    images, uint8 (N, 3, H, W), first; it is given their numbers too.

    Damaged images are left out, with a warning. Returns float32 (N, C) and int64 (N,), the samples they are of, on
    the CPU. The encoder's mode is left as it was. UserError when they are not finite.
    """
    stream = Stream(shards, Plan(BATCH), config.threads, cache="none")
    features, read = [], []
    for batch in stream.in_order(indices):
        read.append(batch["index"])
        images = batch["image"] if change is None else change(batch["image"], batch["index"].numpy())
        features.append(encode_images(encoder, images, config, device))
    return torch.cat(features), torch.cat(read)


@torch.inference_mode()
def encode_images(encoder: nn.Module, images: torch.Tensor, config: Config, device: torch.device) -> torch.Tensor:
    """Features of images uint8 (N, 3, H, W), in pieces: float32 (N, C) on the CPU; as `extract_features`."""
    assert config.mean is not None
    assert config.std is not None
    training = encoder.training
    encoder.eval()
    pieces = [encoder(normalise(x.to(device), config.mean, config.std)).float().cpu() for x in images.split(BATCH)]
    encoder.train(training)
    result = torch.cat(pieces)
    if not bool(result.isfinite().all()):
        raise UserError("the encoder's features are not finite: training has destroyed it; train again with a lower lr")
    return result
