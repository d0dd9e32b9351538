"""Error under common corruptions (Hendrycks & Dietterich 2019, "Benchmarking neural network robustness").

The corruptions are those of the package imagecorruptions, with the paper's constants for ImageNet: on images smaller
than 224 px they are harder than CIFAR-10-C's, and figures compare only with figures of the same size.
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

from sacl_train.evaluate.features import extract_features
from sacl_train.evaluate.linear import fit_linear
from sacl_train.evaluate.probe import load_subject, open_test
from texturegen.console import Progress
from texturegen.errors import UserError

SEVERITIES = (1, 2, 3, 4, 5)
SMALLEST = 32  # px that the package takes


def evaluate_corruption(
    run: str | Path,
    train: str | Path,
    test: str | Path,
    device: str = "auto",
    root: str | Path | None = None,
    size: int | None = None,
    images: int | None = None,
    severities: tuple[int, ...] = SEVERITIES,
    **settings: Any,
) -> dict[str, Any]:
    """Top-1 error (0..1) of a linear probe on `test` under each corruption, at each severity, and their mean.

    images : of the test set, evenly over it; None: all. settings : of `fit_linear`. Each image's corruption is a
    function of its number, the corruption and the severity.
    """
    corrupt = load_corruptions()
    subject = load_subject(run, train, device, root, size)
    chosen = open_test(test, subject, root, size)
    if min(chosen.size) < SMALLEST:
        raise UserError(f"{test}: images of {chosen.size} px; the corruptions need {SMALLEST} px at least")
    classify = fit_linear(subject.features.values, subject.features.labels, **settings)[""]
    numbers = np.flatnonzero(chosen.labels >= 0)
    if images is not None:
        numbers = numbers[np.unique(np.linspace(0, len(numbers) - 1, min(images, len(numbers))).astype(int))]
    labels = torch.from_numpy(chosen.labels)

    def error(change: Callable[[Tensor, np.ndarray], Tensor] | None) -> float:
        values, read = extract_features(subject.encoder, chosen, subject.config, subject.device, numbers, change)
        return (classify(values).argmax(1) != labels[read]).float().mean().item()

    progress = Progress(len(corrupt) * len(severities), "corruptions")
    clean = error(None)
    errors: dict[str, list[float]] = {}
    try:
        for name, of_severity in corrupt.items():
            errors[name] = []
            for severity in severities:
                errors[name].append(error(partial(_corrupted, of_severity, severity)))
                progress(1)
    finally:
        progress.close()
    return {
        "probe": "corruption",
        "settings": settings,
        **subject.about(),
        "set": str(test),
        "split": chosen.split,
        "images": len(numbers),
        "severities": list(severities),
        "clean_error": clean,
        "mean_error": float(np.mean(list(errors.values()))),
        "errors": errors,
    }


def load_corruptions() -> dict[str, Callable[[np.ndarray, int], np.ndarray]]:
    """The fifteen: name -> (uint8 (H, W, 3), severity 1..5) -> uint8 (H, W, 3), drawing from NumPy's global state."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from imagecorruptions import corrupt, get_corruption_names
    except ImportError:
        raise UserError(
            "the corruptions need a package that is not installed: pip install --no-deps imagecorruptions-imaug  "
            "(without its dependencies: one is opencv-python, which would take the place of the headless build)"
        ) from None

    def bind(name: str) -> Callable[[np.ndarray, int], np.ndarray]:
        return lambda image, severity: corrupt(image, corruption_name=name, severity=severity)

    return {name: bind(name) for name in get_corruption_names("common")}


def _corrupted(
    of: Callable[[np.ndarray, int], np.ndarray], severity: int, images: Tensor, numbers: np.ndarray
) -> Tensor:
    results = []
    with _seeded() as seed, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for image, number in zip(images.permute(0, 2, 3, 1).numpy(), numbers.tolist(), strict=True):
            seed((number * 8 + severity) % 2**32)
            results.append(of(np.ascontiguousarray(image), severity).astype(np.uint8))
    return torch.from_numpy(np.stack(results)).permute(0, 3, 1, 2)


@contextmanager
def _seeded() -> Iterator[Callable[[int], None]]:
    """A function that seeds all that the package draws from: NumPy's global state and fresh generators.

    NumPy's goes on afterwards as if nothing had been drawn.
    """
    state, usual, now = np.random.get_state(), np.random.default_rng, [0]  # noqa: NPY002

    def seed(number: int) -> None:
        np.random.seed(number)  # noqa: NPY002
        now[0] = number

    def make(given: Any = None) -> np.random.Generator:
        return usual(now[0] if given is None else given)

    np.random.default_rng = make  # type: ignore[assignment]
    try:
        yield seed
    finally:
        np.random.default_rng = usual
        np.random.set_state(state)  # noqa: NPY002
