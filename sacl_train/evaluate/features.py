"""Features of images from a frozen encoder, extracted once and cached in the run's directory for all probes."""

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
from texturegen.errors import DamagedError, UserError
from texturegen.storage.atomic import write_atomically

FOLDER = "features"

# A change to a batch before it is encoded: images uint8 (N, 3, H, W) and their indices int64 (N,) -> images.
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
    """Return the features of whole, unaugmented images.

    Damaged images are skipped with a warning. The encoder's mode (train or eval) is restored afterwards.

    Parameters
    ----------
    encoder : nn.Module
        Maps normalised images float (N, 3, H, W) to features (N, C).
    images : Images
        The images.
    config : Config
        Settings of the run, with the mean and standard deviation for the normalisation.
    device : torch.device
        The encoder's device.
    indices : ndarray int64 (N,) or None
        Images to encode, in this order; None: all.
    change : Change or None
        Applied to each batch before it is encoded.

    Returns
    -------
    features : Tensor float32 (N, C)
        On the CPU.
    numbers : Tensor int64 (N,)
        Indices of the images that could be read.

    Raises
    ------
    UserError
        If no image can be read, or a feature is not finite.
    """
    features, read = [], []
    for batch in images.batches(indices, config.threads):
        read.append(batch["index"])
        pixels = batch["image"] if change is None else change(batch["image"], batch["index"].numpy())
        features.append(encode_images(encoder, pixels, config, device))
    if not features:
        raise DamagedError(f"{images.place}: none of the images could be read; check the files or rebuild the shards")
    return torch.cat(features), torch.cat(read)


@torch.inference_mode()
def encode_images(encoder: nn.Module, images: Tensor, config: Config, device: torch.device) -> Tensor:
    """Return the features of images in memory.

    Parameters
    ----------
    encoder, config, device
        As in `extract_features`.
    images : Tensor uint8 (N, 3, H, W)
        The images; encoded in batches of 256.

    Returns
    -------
    Tensor float32 (N, C)
        On the CPU.

    Raises
    ------
    UserError
        If a feature is not finite.
    """
    assert config.mean is not None
    assert config.std is not None
    was_training = encoder.training
    encoder.eval()
    pieces = [encoder(normalise(x.to(device), config.mean, config.std)).float().cpu() for x in images.split(BATCH)]
    encoder.train(was_training)
    result = torch.cat(pieces)
    if not bool(result.isfinite().all()):
        raise UserError("the encoder's features are not finite: training diverged; train again with a lower lr")
    return result


@dataclass(frozen=True)
class Features:
    """Features of the labelled, readable images of a set.

    Attributes
    ----------
    values : Tensor float32 (N, C)
        The features.
    labels : Tensor int64 (N,)
        Classes, 0 or above.
    numbers : Tensor int64 (N,)
        Indices of the images in the set.
    """

    values: Tensor
    labels: Tensor
    numbers: Tensor


class FeatureStore:
    """Cache of features in RUN/features, by weights, images and change.

    The cache keeps the features of the current and of the previously used weights, so that scoring the newest and the
    best checkpoint in turn encodes each set only once.

    Parameters
    ----------
    run : Path
        The run's directory, or a checkpoint in it.
    encoder : nn.Module
        The encoder, on `device`; its weights must not change afterwards.
    config : Config
        As in `extract_features`.
    device : torch.device
        The encoder's device.
    """

    def __init__(self, run: Path, encoder: nn.Module, config: Config, device: torch.device) -> None:
        self.folder, self.encoder, self.config, self.device = directory_of(run) / FOLDER, encoder, config, device
        digest = hashlib.sha256(repr((config.mean, config.std, config.encoder, device.type)).encode())
        for name, tensor in encoder.state_dict().items():
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
        self.weights = digest.hexdigest()[:16]

    def get(self, images: Images, change: Change | None = None, change_name: str = "whole") -> Features:
        """Return the features of all labelled images of a set, from the cache if possible.

        Parameters
        ----------
        images : Images
            The set.
        change : Change or None
            Applied to each batch before it is encoded.
        change_name : str
            Identifies the change in the cache.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load_file, save

        digest = hashlib.sha256(f"{images.digest} {change_name}".encode()).hexdigest()[:16]
        path = self.folder / f"{self.weights}-{digest}.safetensors"
        found: dict[str, Tensor] = {}
        if path.is_file():
            try:
                found = load_file(path)
            except (SafetensorError, OSError):
                found = {}  # damaged: extract again
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
        """Delete all features except those of the current and of the previously used weights."""
        old = [path for path in self.folder.glob("*.safetensors") if not path.name.startswith(self.weights)]
        if not old:
            return
        previous = max(old, key=lambda path: path.stat().st_mtime_ns).name.split("-")[0]
        for path in old:
            if not path.name.startswith(previous):
                path.unlink(missing_ok=True)
