"""Error under common corruptions (Hendrycks & Dietterich 2019, "Benchmarking neural network robustness").

The corruptions come from the package imagecorruptions, which uses the paper's constants for ImageNet. On images smaller
than 224 px they are harder than those of CIFAR-10-C, so figures are comparable only at the same size.
"""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sacl_train.evaluate.bootstrap import mean_interval
from sacl_train.evaluate.features import Change, extract_features
from sacl_train.evaluate.linear import fit_linear
from sacl_train.evaluate.norm import DEFAULT_STATISTICS
from sacl_train.evaluate.probe import PROTOCOLS
from sacl_train.evaluate.subject import open_subject, open_test
from texturegen.console import Progress
from texturegen.errors import MissingError, UserError

SEVERITIES = (1, 2, 3, 4, 5)
MIN_SIDE = 32  # pixels; the package refuses smaller images

Corruption = Callable[[np.ndarray, int], np.ndarray]  # uint8 (H, W, 3) and a severity 1..5 -> uint8 (H, W, 3)


def evaluate_corruption(
    run: str | Path,
    train: str | Path,
    test: str | Path,
    device: str = "auto",
    root: str | Path | None = None,
    size: int | None = None,
    network: str = "online",
    norm_statistics: str = DEFAULT_STATISTICS,
    images: int | None = None,
    severities: tuple[int, ...] = SEVERITIES,
    **settings: Any,
) -> dict[str, Any]:
    """Return the top-1 error of a linear probe under each of the fifteen corruptions.

    The corruption of an image depends only on its index, the corruption and the severity, so every encoder is scored on
    the same images.

    Parameters
    ----------
    run, train, device, root, size, network, norm_statistics
        As in `subject.open_subject`.
    test : str or Path
        Labelled test images; see `images.open_images`.
    images : int or None
        Number of test images, evenly spaced over the set; None: all.
    severities : tuple of int
        Severities, each 1..5.
    **settings
        Settings of `fit_linear`.

    Returns
    -------
    dict
        The figures and how they were measured, JSON-serialisable; errors are in 0..1. "images": number of images that
        could be read. "clean_error": error on the uncorrupted images. "errors": corruption -> an error per severity.
        "mean_error": mean of all these errors. "clean_interval", "mean_interval": 95 % intervals of the two over
        resampled test images.

    Raises
    ------
    MissingError
        If the package imagecorruptions is not installed.
    UserError
        If the images are smaller than 32 px, and in the cases of `probe.evaluate`.
    """
    corruptions = load_corruptions()
    with open_subject(run, train, device, root, size, network, norm_statistics) as subject:
        test_set = open_test(test, subject, root, size)
        if min(test_set.size) < MIN_SIDE:
            raise UserError(
                f"{test}: images of {test_set.size} px; the corruptions need at least {MIN_SIDE} px (--size)"
            )
        classify = fit_linear(subject.features.values, subject.features.labels, **settings)[""]
        indices = np.flatnonzero(test_set.labels >= 0)
        if images is not None:
            indices = indices[np.unique(np.linspace(0, len(indices) - 1, min(images, len(indices))).astype(int))]
        labels = torch.from_numpy(test_set.labels)

        def find_errors(change: Change | None) -> np.ndarray:
            """Return which of the readable images are classified wrongly, float64 (N,) of 0 and 1."""
            values, read = extract_features(subject.encoder, test_set, subject.config, subject.device, indices, change)
            return (classify(values).argmax(1).cpu() != labels[read]).double().numpy()

        progress = Progress(len(corruptions) * len(severities), "corruptions")
        clean = find_errors(None)
        total = np.zeros(len(clean))  # errors of each image
        errors: dict[str, list[float]] = {}
        try:
            for name, corrupt in corruptions.items():
                errors[name] = []
                for severity in severities:
                    wrong = find_errors(partial(_corrupt_batch, corrupt, severity))
                    total += wrong
                    errors[name].append(float(wrong.mean()))
                    progress(1)
        finally:
            progress.close()
        return {
            "probe": "corruption",
            "protocol": PROTOCOLS["linear"],
            "settings": settings,
            **subject.about(),
            "set": str(test),
            "split": test_set.split,
            "images": len(clean),
            "severities": list(severities),
            "clean_error": float(clean.mean()),
            "clean_interval": mean_interval(clean),
            "mean_error": float(np.mean(list(errors.values()))),
            "mean_interval": mean_interval(total / (len(corruptions) * len(severities))),
            "errors": errors,
        }


def load_corruptions() -> dict[str, Corruption]:
    """Return the fifteen corruptions by name.

    Returns
    -------
    dict of str to callable
        Name -> function of an image uint8 (H, W, 3) and a severity 1..5 that returns uint8 (H, W, 3). The functions
        draw from NumPy's global random state.

    Raises
    ------
    MissingError
        If the package imagecorruptions is not installed.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from imagecorruptions import corrupt, get_corruption_names
    except ImportError:
        raise MissingError(
            "the corruptions need the package imagecorruptions; pip install --no-deps imagecorruptions-imaug "
            "(its dependency opencv-python would replace the headless build)"
        ) from None

    def bind(name: str) -> Corruption:
        return lambda image, severity: corrupt(image, corruption_name=name, severity=severity)

    return {name: bind(name) for name in get_corruption_names("common")}


def _corrupt_batch(corrupt: Corruption, severity: int, images: Tensor, indices: np.ndarray) -> Tensor:
    """Corrupt images uint8 (N, 3, H, W) with indices int64 (N,); return the same shape."""
    results = []
    with _seeded() as seed, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for image, index in zip(images.permute(0, 2, 3, 1).numpy(), indices.tolist(), strict=True):
            seed((index * 8 + severity) % 2**32)
            results.append(corrupt(np.ascontiguousarray(image), severity).astype(np.uint8))
    return torch.from_numpy(np.stack(results)).permute(0, 3, 1, 2)


@contextmanager
def _seeded() -> Iterator[Callable[[int], None]]:
    """Yield a function that seeds all random numbers of the package: NumPy's global state and new generators.

    NumPy's global state is restored afterwards.
    """
    state, default_rng, current_seed = np.random.get_state(), np.random.default_rng, 0  # noqa: NPY002

    def seed(value: int) -> None:
        nonlocal current_seed
        np.random.seed(value)  # noqa: NPY002
        current_seed = value

    def seeded_rng(seed: Any = None) -> np.random.Generator:
        return default_rng(current_seed if seed is None else seed)

    np.random.default_rng = seeded_rng  # type: ignore[assignment]
    try:
        yield seed
    finally:
        np.random.default_rng = default_rng
        np.random.set_state(state)  # noqa: NPY002
