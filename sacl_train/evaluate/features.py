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
from sacl_train.evaluate.norm import estimate_statistics
from sacl_train.nets.files import checksum
from sacl_train.training.checkpoint import directory_of
from sacl_train.training.precision import autocast
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
        On `device`.
    numbers : Tensor int64 (N,)
        Indices of the images that could be read, on the CPU.

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
    """Return the features of images in memory, computed in the run's precision.

    Parameters
    ----------
    encoder, config, device
        As in `extract_features`.
    images : Tensor uint8 (N, 3, H, W)
        The images; encoded in batches of 256.

    Returns
    -------
    Tensor float32 (N, C)
        On `device`.

    Raises
    ------
    UserError
        If a feature is not finite.
    """
    assert config.mean is not None
    assert config.std is not None
    mean, std = config.mean, config.std
    return torch.cat([encode_views(encoder, normalise(x.to(device), mean, std), config) for x in images.split(BATCH)])


@torch.no_grad()
def encode_views(encoder: nn.Module, views: Tensor, config: Config) -> Tensor:
    """Return the features of normalised images, computed in the run's precision by the encoder in eval mode.

    Parameters
    ----------
    encoder, config
        As in `extract_features`.
    views : Tensor float32 (N, 3, H, W)
        On the encoder's device.

    Returns
    -------
    Tensor float32 (N, C)

    Raises
    ------
    UserError
        If a feature is not finite.
    """
    was_training = encoder.training
    encoder.eval()
    with autocast(config, views.device):
        features: Tensor = encoder(views).float()
    encoder.train(was_training)
    if not bool(features.isfinite().all()):
        raise UserError("the encoder's features are not finite: training diverged; train again with a lower lr")
    return features


@dataclass(frozen=True)
class Features:
    """Features of the readable images of a set.

    Attributes
    ----------
    values : Tensor float32 (N, C)
        The features, on the encoder's device.
    labels : Tensor int64 (N,)
        Classes, on the encoder's device; -1 for an image without a label, if the set was read with these.
    numbers : Tensor int64 (N,)
        Indices of the images in the set, on the CPU.
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
    reference : Images or None
        Images that the encoder's BatchNorm statistics are estimated on, in place (see `norm`); None keeps those of the
        training.
    """

    def __init__(
        self,
        run: Path,
        encoder: nn.Module,
        config: Config,
        device: torch.device,
        reference: Images | None = None,
    ) -> None:
        self.folder, self.encoder, self.config, self.device = directory_of(run) / FOLDER, encoder, config, device
        about = (config.mean, config.std, config.encoder, config.precision, config.tf32, device.type)
        digest = hashlib.sha256(repr((about, reference.digest if reference is not None else None)).encode())
        for name, tensor in encoder.state_dict().items():
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
        self.weights = digest.hexdigest()[:16]
        if reference is not None:
            self._estimate_statistics(reference)

    def get(
        self, images: Images, change: Change | None = None, change_name: str = "whole", labelled_only: bool = True
    ) -> Features:
        """Return the features of a set's images, from the cache if possible.

        Parameters
        ----------
        images : Images
            The set.
        change : Change or None
            Applied to each batch before it is encoded.
        change_name : str
            Identifies the change in the cache.
        labelled_only : bool
            Leave out the images without a label.
        """
        digest = hashlib.sha256(f"{images.digest} {change_name}".encode()).hexdigest()[:16]
        found = self._load(digest)
        if not found:
            values, numbers = extract_features(self.encoder, images, self.config, self.device, None, change)
            found = {"values": values.cpu(), "numbers": numbers}
            self._save(digest, found)
        labels = torch.from_numpy(images.labels)[found["numbers"]]
        keep = labels >= 0
        if not labelled_only:
            keep = torch.ones_like(keep)
        values, labels = (tensor[keep].to(self.device) for tensor in (found["values"], labels))
        return Features(values, labels, found["numbers"][keep])

    def _estimate_statistics(self, reference: Images) -> None:
        """Estimate the BatchNorm statistics, or take them from the cache: on CUDA they vary from call to call."""
        statistics = self._load("norm")
        if not statistics:
            estimate_statistics(self.encoder, reference, self.config, self.device)
            statistics = {name: tensor.cpu() for name, tensor in self.encoder.named_buffers()}
            if statistics:
                self._save("norm", statistics)
        self.encoder.load_state_dict(statistics, strict=False)

    def _load(self, name: str) -> dict[str, Tensor]:
        """Return the tensors of a file of the cache; empty if it is missing or damaged, so that they are made again."""
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(self._path(name), "pt") as file:
                expected = (file.metadata() or {}).get("sha256")
                tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError):
            return {}
        return tensors if checksum(tensors, name) == expected else {}

    def _save(self, name: str, tensors: dict[str, Tensor]) -> None:
        from safetensors.torch import save

        self.folder.mkdir(parents=True, exist_ok=True)
        write_atomically(self._path(name), save(tensors, {"sha256": checksum(tensors, name)}))
        self._remove_old()

    def _path(self, name: str) -> Path:
        return self.folder / f"{self.weights}-{name}.safetensors"

    def _remove_old(self) -> None:
        """Delete all features except those of the current and of the previously used weights."""
        old = [path for path in self.folder.glob("*.safetensors") if not path.name.startswith(self.weights)]
        if not old:
            return
        try:
            previous = max(old, key=lambda path: path.stat().st_mtime_ns).name.split("-")[0]
        except FileNotFoundError:  # another process, which scores the same run, removes them
            return
        for path in old:
            if not path.name.startswith(previous):
                path.unlink(missing_ok=True)
