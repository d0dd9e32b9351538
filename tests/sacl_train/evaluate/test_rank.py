"""RankMe against the paper's formula, term by term."""

import math

import numpy as np
import pytest
import torch

from sacl_train.evaluate.rank import rank_me


def test_rankme_equals_slow_formula() -> None:
    features = torch.randn(30, 8, generator=torch.Generator().manual_seed(0)) * torch.logspace(0, -3, 8) + 1
    # Singular values as roots of the eigenvalues of Z^T Z, in float64.
    gram = features.double().numpy().T @ features.double().numpy()
    sigmas = [math.sqrt(max(value, 0)) for value in np.linalg.eigvalsh(gram).tolist()]
    shares = [sigma / sum(sigmas) + 1e-7 for sigma in sigmas]
    assert rank_me(features) == pytest.approx(math.exp(-sum(p * math.log(p) for p in shares)), rel=1e-4)


def test_rankme_of_collapsed_features_is_one() -> None:
    assert (
        rank_me(torch.zeros(30, 8)) == pytest.approx(rank_me(torch.ones(30, 8)), rel=1e-4) == pytest.approx(1, rel=1e-3)
    )


def test_rankme_counts_equal_directions() -> None:
    basis = torch.linalg.qr(torch.randn(40, 6, generator=torch.Generator().manual_seed(0))).Q
    for rank in (1, 3, 6):
        values = basis[:, :rank] @ torch.eye(6)[:rank]
        assert rank_me(values) == pytest.approx(rank, rel=1e-3)
