"""Fine-tuning of the encoder with a linear layer, on a fraction of the labels (Chen et al. 2020, sections 4.2, B.5)."""

import copy
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from sacl_train.config import Config
from sacl_train.data.draws import Draws
from sacl_train.data.memory import cache_budget
from sacl_train.data.weak import WeakAugment, make_policy
from sacl_train.evaluate.features import extract_features
from sacl_train.evaluate.images import Images
from sacl_train.evaluate.norm import DEFAULT_STATISTICS
from sacl_train.evaluate.subject import Subject, open_subject, open_test
from sacl_train.training.optim import cosine_lr
from sacl_train.training.precision import autocast, make_scaler
from texturegen.console import Progress
from texturegen.errors import UserError

SHARES = (0.01, 0.1, 1.0)
PROTOCOL = "encoder and linear layer trained by SGD on random crops and flips"


def evaluate_finetune(
    run: str | Path,
    train: str | Path,
    tests: list[str | Path],
    device: str = "auto",
    root: str | Path | None = None,
    size: int | None = None,
    network: str = "online",
    norm_statistics: str = DEFAULT_STATISTICS,
    shares: tuple[float, ...] = SHARES,
    **settings: Any,
) -> dict[str, Any]:
    """Fine-tune a run's encoder on fractions of the labels and score it on test sets. The run is not changed.

    Parameters
    ----------
    run, train, device, root, size, network, norm_statistics
        As in `subject.open_subject`; the BatchNorm statistics are those that the fine-tuning starts from.
    tests : list of str or Path
        Labelled test sets; see `images.open_images`.
    shares : tuple of float
        Fractions of the labelled training images, each above 0 and at most 1.
    **settings
        Settings of `finetune`.

    Returns
    -------
    dict
        The figures and how they were measured, JSON-serialisable. "test" has a row per share and test set, with "top1"
        in 0..1 and "train_images".

    Raises
    ------
    UserError
        If a share is out of range, and in the cases of `probe.evaluate`.

    Examples
    --------
    >>> figures = evaluate_finetune("run", "shards", ["test-shards"], device="cpu", shares=(0.5,), epochs=1)
    >>> [(row["share"], row["images"]) for row in figures["test"]]
    [(0.5, 40)]
    """
    for share in shares:
        if not 0 < share <= 1:
            raise UserError(f"a share of the labels must be above 0 and at most 1, not {share}")
    with open_subject(run, train, device, root, size, network, norm_statistics) as subject:
        if next(subject.encoder.parameters(), None) is None:  # an ONNX graph
            raise UserError(f"{subject.config.encoder} has no parameters to fine-tune; use linear")
        sets = [open_test(place, subject, root, size) for place in tests]
        rows = []
        for share in shares:
            picked = choose_share(subject.train.labels, share, settings.get("seed", 0))
            model = finetune(subject, picked, **settings)
            for images in sets:
                scores, read = extract_features(
                    model, images, subject.config, subject.device, np.flatnonzero(images.labels >= 0)
                )
                labels = torch.from_numpy(images.labels)[read]
                accuracy = (scores.argmax(1).cpu() == labels).float().mean().item()
                about = {"set": images.place, "split": images.split, "share": share, "train_images": len(picked)}
                rows.append({**about, "images": len(labels), "top1": accuracy})
        return {"probe": "finetune", "protocol": PROTOCOL, "settings": settings, **subject.about(), "test": rows}


def choose_share(labels: np.ndarray, share: float, seed: int = 0) -> np.ndarray:
    """Choose a fraction of the labelled images of each class, at least one per class.

    A smaller share is a subset of a larger one with the same seed.

    Parameters
    ----------
    labels : ndarray int64 (N,)
        Classes; -1 for an image without a label.
    share : float
        Fraction to choose, above 0 and at most 1.
    seed : int
        Seed of the choice.

    Returns
    -------
    ndarray int64
        Indices of the chosen images, in ascending order.
    """
    random, picked = np.random.default_rng(seed), []
    for label in np.unique(labels[labels >= 0]):
        of_class = random.permutation(np.flatnonzero(labels == label))
        picked.append(of_class[: max(round(share * len(of_class)), 1)])
    return np.sort(np.concatenate(picked))


def finetune(
    subject: Subject,
    picked: np.ndarray,
    epochs: int = 30,
    lr: float = 0.01,
    head_lr: float = 0.1,
    batch_size: int = 64,
    seed: int = 0,
) -> nn.Module:
    """Train a copy of the encoder together with a linear layer.

    SGD with Nesterov momentum 0.9 and cosine decay, on random crops and flips. Damaged images are skipped. The images
    are kept in memory if they take at most half of what is available; otherwise each epoch reads them again.

    Parameters
    ----------
    subject : Subject
        Encoder and training images; not changed.
    picked : ndarray int64
        Indices of the training images.
    epochs : int
        Passes over the images.
    lr, head_lr : float
        Initial learning rates of the encoder and of the linear layer.
    batch_size : int
        Images per batch, at least 2.
    seed : int
        Seed of the order of the batches, the crops and the flips.

    Returns
    -------
    nn.Module
        In eval mode: normalised images float (N, 3, H, W) -> logits (N, classes).

    Raises
    ------
    UserError
        If a weight is no longer finite.
    """
    config, device, images = subject.config, subject.device, subject.train
    encoder = copy.deepcopy(subject.encoder).requires_grad_(True)  # a target network takes no gradient
    head = nn.Linear(encoder.out_features, int(images.labels.max()) + 1, device=device)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    model = nn.Sequential(encoder, head)
    groups: list[dict[str, Any]] = [
        {"params": list(encoder.parameters()), "base": lr},
        {"params": list(head.parameters()), "base": head_lr},
    ]
    optimizer = torch.optim.SGD(groups, lr=lr, momentum=0.9, nesterov=True)
    scaler, weak = make_scaler(config, device), crops_and_flips(config, (0.5, 1.0))
    labels, random = torch.from_numpy(images.labels), np.random.default_rng(seed)
    kept = None
    if len(picked) * 3 * math.prod(images.size) <= cache_budget():
        kept = _read(images, picked, config.threads)
    count = len(picked) if kept is None else len(kept[1])
    batches = -(-count // batch_size)
    progress = Progress(epochs * batches, "batches")
    try:
        for epoch in range(epochs):
            model.train()
            order = random.permutation(count)
            if kept is None:
                read = _read_batches(images, picked[order], batches, config.threads)
            else:
                read = ((kept[0][chosen], kept[1][chosen]) for chosen in np.array_split(order, batches))
            for i, (pixels, indices) in enumerate(read):
                for group in optimizer.param_groups:
                    group["lr"] = cosine_lr(epoch * batches + i, epochs * batches, group["base"])
                if len(indices) > 1:  # BatchNorm needs two images
                    states = Draws(seed, epoch, indices.to(device)).of(0)
                    with autocast(config, device):
                        logits = model(weak(pixels.to(device), states))
                    loss = F.cross_entropy(logits.float(), labels[indices].to(device))
                    optimizer.zero_grad()
                    scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
                    scaler.step(optimizer)
                    scaler.update()
                progress(1)
    finally:
        progress.close()
    if not all(bool(tensor.isfinite().all()) for tensor in model.state_dict().values()):
        raise UserError(f"fine-tuning on {count} images diverged; lower its lr ({lr:g}) or head_lr ({head_lr:g})")
    return model.eval()


def crops_and_flips(config: Config, scale: tuple[float, float]) -> WeakAugment:
    """Return an augmentation by random crops, of an area in `scale` (shares of the image), and flips."""
    assert config.mean is not None
    assert config.std is not None
    return WeakAugment(make_policy("geometric", scale, degrees=0.0, shift=0.0), config.mean, config.std)


def _read(images: Images, picked: np.ndarray, threads: int | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Read images into memory: uint8 (N, 3, H, W) and their indices int64 (N,). Damaged images are skipped."""
    pixels, indices = torch.empty((len(picked), 3, *images.size), dtype=torch.uint8), picked.copy()
    count = 0
    for batch in images.batches(picked, threads):
        read = len(batch["index"])
        pixels[count : count + read], indices[count : count + read] = batch["image"], batch["index"].numpy()
        count += read
    return pixels[:count], torch.from_numpy(indices[:count])


def _read_batches(
    images: Images, order: np.ndarray, count: int, threads: int | None
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Read images in `order` and yield them, as `_read` returns them, in `count` batches of about equal size."""
    pixels, indices = torch.empty((0, 3, *images.size), dtype=torch.uint8), torch.empty(0, dtype=torch.int64)
    sizes = [len(part) for part in np.array_split(order, count)]
    for batch in images.batches(order, threads):
        pixels, indices = torch.cat([pixels, batch["image"]]), torch.cat([indices, batch["index"]])
        while sizes and len(indices) >= sizes[0]:
            size = sizes.pop(0)
            yield pixels[:size], indices[:size]
            pixels, indices = pixels[size:], indices[size:]
    if len(indices):  # after damaged images
        yield pixels, indices
