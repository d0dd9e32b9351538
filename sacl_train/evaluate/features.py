"""Features of images under a frozen encoder, extracted once for all probes."""

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
    encoder: nn.Module, shards: Shards, config: Config, device: torch.device, indices: np.ndarray | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Features of whole, unaugmented images, in the order of `indices` (all samples by default).

    `config` gives mean and std of the normalisation the encoder was trained with.

    Damaged images are left out, with a warning. Returns float32 (N, C) and int64 (N,), the samples they are of, on
    the CPU. The encoder's mode is left as it was. UserError when they are not finite.
    """
    assert config.mean is not None
    assert config.std is not None
    stream = Stream(shards, Plan(BATCH), config.threads, cache="none")
    training = encoder.training
    encoder.eval()
    features, read = [], []
    for batch in stream.in_order(indices):
        read.append(batch["index"])
        features.append(encoder(normalise(batch["image"].to(device), config.mean, config.std)).float().cpu())
    encoder.train(training)
    result = torch.cat(features)
    if not bool(result.isfinite().all()):
        raise UserError("the encoder's features are not finite: training has destroyed it; train again with a lower lr")
    return result, torch.cat(read)
