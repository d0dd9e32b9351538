"""The interface between `probe` and the probes that it fits."""

from typing import Any, Protocol

from torch import Tensor


class Classifier(Protocol):
    """A fitted classifier of features."""

    def __call__(self, queries: Tensor) -> Tensor:
        """Map features float (N, C) to scores float (N, classes); the largest is the prediction."""
        ...


class Probe(Protocol):
    """A function that fits classifiers to the labelled features of frozen encoders."""

    def __call__(self, features: Tensor, labels: Tensor, *args: Any, **settings: Any) -> dict[str, Classifier]:
        """Fit on features float (M, C) and labels int64 (M,), 0 or above.

        Returns a classifier per variant: "k=20", "k=200" for kNN; "" for a probe with one variant.
        """
        ...
