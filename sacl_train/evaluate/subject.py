"""What is evaluated: a network of a run, how it encodes images, and the labelled images that probes are fitted on."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sacl_train.config import Config
from sacl_train.evaluate.features import Features, FeatureStore
from sacl_train.evaluate.images import Images, open_images, require_labels
from sacl_train.evaluate.norm import DEFAULT_STATISTICS, resolve_statistics
from sacl_train.methods.method import Method
from sacl_train.nets import Encoder
from sacl_train.nets.encoder_file import EncoderFile
from sacl_train.training.precision import arithmetic
from sacl_train.training.resume import load_networks
from sacl_train.training.setup import choose_device
from texturegen.console import warn
from texturegen.errors import UserError, nearest

NETWORKS = ("online", "target")
MAX_NAMED = 5  # classes that a message names


@dataclass(frozen=True)
class Model:
    """A trained network.

    Attributes
    ----------
    run : Path
        The run's directory, or a checkpoint in it; for an encoder of another program, where its results go.
    method : Method
        All networks of the run, in eval mode, on `device`.
    encoder : Encoder
        The encoder to evaluate.
    config : Config
        The run's settings.
    epochs : int
        Epochs that the encoder has been trained for.
    image_size : tuple of int or None
        (H, W) in pixels of the images that it was trained on; None if unknown.
    device : torch.device
        Device that computes the features.
    network : str
        "online" or "target", its moving average.
    norm_statistics : str
        "images", "training" or "none"; see `norm.resolve_statistics`.
    """

    run: Path
    method: Method
    encoder: Encoder
    config: Config
    epochs: int
    image_size: tuple[int, int] | None
    device: torch.device
    network: str
    norm_statistics: str

    @property
    def projector(self) -> nn.Module | None:
        """The projector behind the encoder, of the same network; None if the method has none."""
        found: nn.Module | None = getattr(
            self.method, f"{'target_' if self.network == 'target' else ''}projector", None
        )
        return found

    def about(self) -> dict[str, Any]:
        """Return the fields common to the figures of all probes, JSON-serialisable."""
        return {
            "run": str(self.run),
            "method": self.config.method,
            "encoder": self.config.encoder,
            "texture_role": self.config.method_settings.texture_role,
            "trained_epochs": self.epochs,
            "planned_epochs": self.config.epochs,
            "network": self.network,
            "norm_statistics": self.norm_statistics,
            "precision": self.config.precision,
        }

    def warn_of_size(self, images: Images) -> None:
        """Warn if the images have another size than those of the training."""
        if self.image_size is not None and tuple(images.size) != self.image_size:
            height, width = self.image_size
            warn(
                f"{images.place}: images of {images.size[0]} x {images.size[1]} px, but {self.run} was trained on "
                f"{height} x {width} px; an encoder scores lower at another size"
            )


@dataclass(frozen=True)
class Subject(Model):
    """A trained network and the labelled images that classifiers are fitted on.

    Attributes
    ----------
    store : FeatureStore
        Cache of the encoder's features.
    train : Images
        The labelled training images.
    features : Features
        Their features.
    """

    store: FeatureStore
    train: Images
    features: Features

    def about(self) -> dict[str, Any]:
        """Return the fields common to the figures of all probes, JSON-serialisable."""
        return {
            **super().about(),
            "train": self.train.place,
            "train_split": self.train.split,
            "train_images": len(self.features.labels),
        }


@contextmanager
def open_model(
    run: str | Path | EncoderFile,
    device: str = "auto",
    network: str = "online",
    norm_statistics: str = DEFAULT_STATISTICS,
) -> Iterator[Model]:
    """Load a network of a run; inside the context, torch computes with the run's TF32 and deterministic settings.

    The BatchNorm statistics are still those of the training; `norm.estimate_statistics` replaces them.

    Parameters
    ----------
    run : str, Path or EncoderFile
        Directory of `sacl-train`, or a checkpoint in it; or an encoder of another program.
    device : str
        "auto", "cpu", "cuda", "cuda:1", ...
    network : str
        "online", or "target" for the moving average of methods that have one.
    norm_statistics : str
        "images", "training" or "auto"; see `norm.resolve_statistics`.

    Raises
    ------
    UserError
        If there is no checkpoint in `run`, the file is not an encoder, or the method has no target.
    """
    if network not in NETWORKS:
        raise UserError(f"unknown network '{network}'{nearest(network, NETWORKS)}; known: {', '.join(NETWORKS)}")
    image_size: tuple[int, int] | None
    if isinstance(run, EncoderFile):
        from sacl_train.evaluate.foreign import load_foreign  # loads timm

        method, config, image_size = load_foreign(run)
        epochs, where = 0, run.results
    else:
        method, config, checkpoint = load_networks(Path(run))
        height, width = checkpoint["image_size"]
        epochs, where, image_size = checkpoint["epoch"], Path(run), (height, width)
    encoder = method.encoder if network == "online" else getattr(method, "target_encoder", None)
    if encoder is None:
        raise UserError(f"{run}: method {config.method} has no target network; use --network online")
    statistics = resolve_statistics(norm_statistics, encoder, isinstance(run, EncoderFile))
    torch_device = choose_device(device)
    method.to(torch_device).eval()
    with arithmetic(config):
        yield Model(
            where,
            method,
            encoder,
            config,
            epochs,
            image_size,
            torch_device,
            network,
            statistics,
        )


@contextmanager
def open_subject(
    run: str | Path | EncoderFile,
    train: str | Path,
    device: str = "auto",
    root: str | Path | None = None,
    size: int | None = None,
    network: str = "online",
    norm_statistics: str = DEFAULT_STATISTICS,
) -> Iterator[Subject]:
    """Load a network of a run as `open_model` does, and extract the features of the training images.

    With norm_statistics "images", the BatchNorm statistics are estimated on these training images.

    Parameters
    ----------
    run, device, network, norm_statistics
        As in `open_model`.
    train : str or Path
        Labelled training images; see `images.open_images`.
    root, size
        As in `images.open_images`.

    Raises
    ------
    UserError
        If no image in `train` has a label, and in the cases of `open_model`.
    """
    with open_model(run, device, network, norm_statistics) as model:
        images = require_labels(open_images(train, root, size))
        model.warn_of_size(images)
        reference = images if model.norm_statistics == "images" else None
        store = FeatureStore(model.run, model.encoder, model.config, model.device, reference)
        yield Subject(**vars(model), store=store, train=images, features=store.get(images))


def open_test(place: str | Path, subject: Subject, root: str | Path | None = None, size: int | None = None) -> Images:
    """Open a labelled test set.

    Parameters
    ----------
    place : str or Path
        The test images; see `images.open_images`.
    subject : Subject
        The test set must have the classes and the image size of its training images.
    root, size
        As in `images.open_images`. If size is None, the training images' size is used, provided that they are square.

    Raises
    ------
    UserError
        If no image has a label, or the classes or the image size differ.
    """
    train = subject.train
    test = require_labels(open_like(place, subject, root, size))
    if test.classes != train.classes:
        difference = _compare(test.classes, train.classes)
        raise UserError(
            f"{place}: its classes differ from those of {train.place} ({difference}); give a test set with the same "
            "classes"
        )
    if test.digest == train.digest:
        warn(f"{place}: the training images of the probe; its scores say nothing about other images")
    return test


def open_like(place: str | Path, subject: Subject, root: str | Path | None = None, size: int | None = None) -> Images:
    """Open images of any classes, or none, with the size of the subject's training images.

    Parameters
    ----------
    place, subject, root, size
        As in `open_test`.

    Raises
    ------
    UserError
        If the image size differs.
    """
    train = subject.train
    side = train.size[0] if train.size[0] == train.size[1] else None
    images = open_images(place, root, size or side)
    if images.size != train.size:
        raise UserError(
            f"{place}: images of {images.size} px, but {train.size} px in {train.place}; build both with the same "
            "--size"
        )
    return images


def _compare(classes: list[str], expected: list[str]) -> str:
    """Say how two lists of classes differ, naming a few of what may be a thousand."""
    parts = {
        "without": [name for name in expected if name not in classes],
        "with": [name for name in classes if name not in expected],
    }
    named = (
        f"{word} {', '.join(names[:MAX_NAMED])}{', ...' * (len(names) > MAX_NAMED)}"
        for word, names in parts.items()
        if names
    )
    return ", ".join(named) or "in another order"
