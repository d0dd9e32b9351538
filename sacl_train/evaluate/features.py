"""Features of images under a frozen encoder, extracted once for all probes."""

import numpy as np
import torch
from torch import nn

from sacl_train.config import Config
from sacl_train.data.stream import Stream
from sacl_train.data.weak import normalise
from texturegen.errors import UserError
from texturegen.shards import Shards

BATCH = 256


@torch.inference_mode()
def extract_features(
    encoder: nn.Module, shards: Shards, config: Config, device: torch.device, indices: np.ndarray | None = None
) -> torch.Tensor:
    """Features of whole, unaugmented images, in the order of `indices` (all samples by default).

    `config` gives mean and std of the normalisation the encoder was trained with.

    Returns float32 (N, C) on the CPU. The encoder's mode is left as it was. UserError when they are not finite.
    """
    assert config.mean is not None
    assert config.std is not None
    stream = Stream(shards, BATCH, seed=0, textures=False, threads=config.threads, cache_gb=0)
    training = encoder.training
    encoder.eval()
    features = [
        encoder(normalise(batch["image"].to(device), config.mean, config.std)).float().cpu()
        for batch in stream.in_order(indices)
    ]
    encoder.train(training)
    result = torch.cat(features)
    if not bool(result.isfinite().all()):
        raise UserError("the encoder's features are not finite: training has destroyed it; train again with a lower lr")
    return result
