"""Features of images under a frozen encoder, extracted once for all probes and kept beside the run."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from sacl_train.config import Config
from sacl_train.data.weak import normalise
from sacl_train.evaluate.images import BATCH, Images
from sacl_train.training.checkpoint import directory_of
from texturegen.errors import UserError
from texturegen.storage.atomic import write_atomically

FOLDER = "features"
Change = Callable[[Tensor, np.ndarray], Tensor]


@torch.inference_mode()
def extract_features(
    encoder: nn.Module,
    images: Images,
    config: Config,
    device: torch.device,
    indices: np.ndarray | None = None,
    change: Change | None = None,
) -> tuple[Tensor, Tensor]:
    """Features of whole, unaugmented images, in the order of `indices` (all by default).

    `config` gives mean and std of the normalisation the encoder was trained with. `change` is done to each batch of
    images, uint8 (N, 3, H, W), first; it is given their numbers too.

    Damaged images are left out, with a warning. Returns float32 (N, C) and int64 (N,), the images they are of, on
    the CPU. The encoder's mode is left as it was. UserError when they are not finite.
    """
    features, read = [], []
    for batch in images.batches(indices, config.threads):
        read.append(batch["index"])
        shown = batch["image"] if change is None else change(batch["image"], batch["index"].numpy())
        features.append(encode_images(encoder, shown, config, device))
    if not features:
        raise UserError(f"{images.place}: none of the images could be read")
    return torch.cat(features), torch.cat(read)


@torch.inference_mode()
def encode_images(encoder: nn.Module, images: Tensor, config: Config, device: torch.device) -> Tensor:
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


@dataclass(frozen=True)
class Features:
    """Of the labelled images of a set that could be read: values float32 (N, C), labels and numbers int64 (N,)."""

    values: Tensor
    labels: Tensor
    numbers: Tensor


class FeatureStore:
    """Features by (weights, images, what is done to them): those asked for before come from RUN/features.

    Kept are those of these weights and of the last ones before: of a run's newest checkpoint and its best.
    """

    def __init__(self, run: Path, encoder: nn.Module, config: Config, device: torch.device) -> None:
        self.folder, self.encoder, self.config, self.device = directory_of(run) / FOLDER, encoder, config, device
        digest = hashlib.sha256(repr((config.mean, config.std, config.encoder, device.type)).encode())
        for name, tensor in encoder.state_dict().items():
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
        self.weights = digest.hexdigest()[:16]

    def of(self, images: Images, change: Change | None = None, named: str = "whole") -> Features:
        """Features of all labelled images; `named` tells one `change` from another."""
        from safetensors import SafetensorError
        from safetensors.torch import load_file, save

        what = hashlib.sha256(f"{images.digest} {named}".encode()).hexdigest()[:16]
        path = self.folder / f"{self.weights}-{what}.safetensors"
        found: dict[str, Tensor] = {}
        if path.is_file():
            try:
                found = load_file(path)
            except (SafetensorError, OSError):
                found = {}
        if not found:
            values, numbers = extract_features(self.encoder, images, self.config, self.device, None, change)
            found = {"values": values, "numbers": numbers}
            self.folder.mkdir(parents=True, exist_ok=True)
            write_atomically(path, save(found))
            self._remove_old()
        labels = torch.from_numpy(images.labels)[found["numbers"]]
        keep = labels >= 0
        return Features(found["values"][keep], labels[keep], found["numbers"][keep])

    def _remove_old(self) -> None:
        others = [path for path in self.folder.glob("*.safetensors") if not path.name.startswith(self.weights)]
        if not others:
            return
        last = max(others, key=lambda path: path.stat().st_mtime_ns).name.split("-")[0]
        for path in others:
            if not path.name.startswith(last):
                path.unlink(missing_ok=True)
