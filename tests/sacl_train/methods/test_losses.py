"""InfoNCE with texture negatives against SACL eq. 8 and 10, written as loops in float64."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from sacl_train.methods.losses import (
    bank_nce,
    cross_correlation,
    embedding_std,
    info_nce,
    negative_cosine,
    nt_xent,
    pirl_nce,
)

Array = NDArray[np.float64]


def slow_loss(
    p: Array, z: Array, t: Array | None, tau: float, alpha: float, scope: str, decoupled: bool = False
) -> float:
    def cosine(a: Array, b: Array) -> float:
        return float(np.dot(a, b) / math.sqrt(np.dot(a, a) * np.dot(b, b)))

    total = 0.0
    combinations, images, _ = p.shape
    for a in range(combinations):
        for i in range(images):
            keys = [z[b] for b in range(images) if not (decoupled and b == i)]
            candidates = sum(math.exp(cosine(p[a, i], key) / tau) for key in keys)
            for b in range(images if t is not None else 0):
                if scope == "own" and b != i:
                    continue
                candidates += sum(math.exp(alpha * cosine(p[a, i], key) / tau) for key in t[b])
            total -= math.log(math.exp(cosine(p[a, i], z[i]) / tau) / candidates)
    return total / (combinations * images)


def inputs(combinations: int, images: int, per_image: int, dims: int = 7) -> tuple[Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(combinations + 10 * images + 100 * per_image)
    shapes = [(combinations, images, dims), (images, dims), (images, per_image, dims)]
    p, z, t = (3 * torch.randn(shape, generator=g, dtype=torch.float64) for shape in shapes)
    return p, z, t


@pytest.mark.parametrize("scope", ["batch", "own"])
@pytest.mark.parametrize("alpha", [1.0, 2.0])
@pytest.mark.parametrize("per_image", [0, 1, 2])
@pytest.mark.parametrize(("combinations", "images", "tau"), [(6, 5, 0.2), (1, 2, 0.07), (2, 1, 1.0)])
def test_loss_equals_double_loop(
    scope: str, alpha: float, per_image: int, combinations: int, images: int, tau: float
) -> None:
    p, z, textures = inputs(combinations, images, per_image)
    t = textures if per_image else None
    loss, _ = info_nce(p, z, t, tau, alpha, scope)
    expected = slow_loss(p.numpy(), z.numpy(), None if t is None else t.numpy(), tau, alpha, scope)
    assert loss.item() == pytest.approx(expected, rel=1e-10, abs=1e-12)


@pytest.mark.parametrize("scope", ["batch", "own"])
@pytest.mark.parametrize("per_image", [0, 2])
def test_decoupled_loss_leaves_positive_out_of_denominator(scope: str, per_image: int) -> None:
    """Yeh et al. 2022, eq. 6, for every InfoNCE loss, with and without textures."""
    p, z, textures = inputs(2, 5, 2)
    t = textures if per_image else None
    keys = None if t is None else t.numpy()
    loss, stats = info_nce(p, z, t, 0.2, 2.0, scope, decoupled=True)
    assert loss.item() == pytest.approx(slow_loss(p.numpy(), z.numpy(), keys, 0.2, 2.0, scope, True), rel=1e-10)
    assert stats["positive_similarity"] == info_nce(p, z, t, 0.2, 2.0, scope)[1]["positive_similarity"]

    def exps(query: Tensor, keys: Tensor, factor: float = 1.0) -> float:
        return float((factor * F.cosine_similarity(query[None], keys) / 0.2).exp().sum())

    bank, views = inputs(1, 7, 0)[1], torch.stack([p[0], z])
    both = None if t is None else (t, t)
    moco = simclr = 0.0
    for i in range(5):
        of_textures = textures[i] if scope == "own" else textures.flatten(0, 1)
        rest = [exps(views[v, i], of_textures, 2.0) if t is not None else 0.0 for v in (0, 1)]
        moco -= math.log(exps(p[0, i], z[i][None]) / (exps(p[0, i], bank) + rest[0])) / 5
        for v in (0, 1):
            others = torch.stack([views[w, j] for w in (0, 1) for j in range(5) if j != i])
            simclr -= math.log(exps(views[v, i], views[1 - v, i][None]) / (exps(views[v, i], others) + rest[v])) / 10
    assert bank_nce(p[0], z, bank, t, 0.2, 2.0, scope, decoupled=True)[0].item() == pytest.approx(moco, rel=1e-10)
    assert nt_xent(views, views, both, 0.2, 2.0, scope, decoupled=True)[0].item() == pytest.approx(simclr, rel=1e-10)


def test_decoupled_simclr_loss_equals_lightly() -> None:
    lightly = pytest.importorskip("lightly.loss")
    views = torch.stack([inputs(1, 9, 0)[1], inputs(2, 9, 0)[1]])
    theirs = lightly.DCLLoss(temperature=0.3)(views[0], views[1])
    assert nt_xent(views, views, tau=0.3, decoupled=True)[0].item() == pytest.approx(theirs.item(), rel=1e-9)


@pytest.mark.parametrize("decoupled", [False, True])
@pytest.mark.parametrize("scope", ["batch", "own"])
def test_gradient_equals_finite_differences(scope: str, decoupled: bool) -> None:
    p, z, t = inputs(2, 3, 2, dims=4)
    p.requires_grad_(True)
    assert torch.autograd.gradcheck(lambda q: info_nce(q, z, t, 0.2, 2.0, scope, 0, decoupled)[0], (p,))


def test_statistics_are_mean_cosines() -> None:
    p, z, t = inputs(3, 4, 2)
    _, stats = info_nce(p, z, t)
    cosine = torch.nn.functional.cosine_similarity
    positive = [cosine(p[a, i], z[i], dim=0) for a in range(3) for i in range(4)]
    negative = [cosine(p[a, i], z[b], dim=0) for a in range(3) for i in range(4) for b in range(4) if b != i]
    texture = [cosine(p[a, i], t[i, k], dim=0) for a in range(3) for i in range(4) for k in range(2)]
    for name, values in (("positive", positive), ("negative", negative), ("texture", texture)):
        torch.testing.assert_close(stats[f"{name}_similarity"], torch.stack(values).mean())
    assert not any(value.requires_grad for value in stats.values())


@pytest.mark.parametrize("scope", ["batch", "own"])
def test_ranks_together_have_loss_and_statistics_of_whole_batch(scope: str) -> None:
    """Each process has its own queries, which start at `first`, and the keys and textures of all processes."""
    p, z, t = inputs(3, 6, 2)
    bank, how = torch.randn(9, 7, dtype=torch.float64), (0.3, 2.0, scope)
    same, other = torch.rand(6, 9) < 0.2, torch.stack([z, p[1]])

    def losses(mine: slice) -> list[tuple[Tensor, dict[str, Tensor]]]:
        return [
            info_nce(p[:, mine], z, t, *how, mine.start),
            bank_nce(p[0, mine], z[mine], bank, t, *how, mine.start),
            nt_xent(other[:, mine], other, (t, t + 1), *how, mine.start),
            pirl_nce(p[0, mine], z[mine], bank, same[:1].expand(2, 9), t, *how, mine.start),
        ]

    parts = [losses(slice(start, start + 2)) for start in (0, 2, 4)]
    whole = [
        info_nce(p, z, t, *how),
        bank_nce(p[0], z, bank, t, *how),
        nt_xent(other, other, (t, t + 1), *how),
        pirl_nce(p[0], z, bank, same[:1].expand(6, 9), t, *how),
    ]
    for n, (loss, stats) in enumerate(whole):
        torch.testing.assert_close(torch.stack([part[n][0] for part in parts]).mean(), loss)
        for name, value in stats.items():
            torch.testing.assert_close(torch.stack([part[n][1][name] for part in parts]).mean(), value)


def test_statistics_of_baselines_are_mean_cosines() -> None:
    p, z, t = inputs(1, 4, 2)
    q, bank = p[0], torch.randn(5, 7, dtype=torch.float64)
    same = torch.zeros(4, 5, dtype=torch.bool)
    same[1, 2] = True

    def cosine(a: Tensor, b: Tensor) -> Tensor:
        return torch.nn.functional.cosine_similarity(a[:, None], b[None], dim=2)

    positive, views, against = cosine(q, z).diagonal().mean(), torch.cat([q, z]), cosine(q, bank)
    others = torch.ones(8, 8).fill_diagonal_(0) - torch.eye(4).repeat(2, 2).fill_diagonal_(0)
    textures = torch.stack([cosine(view, t[:, k]).diagonal() for view in (q, z) for k in (0, 1)])
    for (_, stats), negative, texture in (
        (nt_xent(torch.stack([q, z]), torch.stack([q, z]), (t, t)), cosine(views, views)[others > 0], textures),
        (bank_nce(q, z, bank, t), against, textures[:2]),
        (pirl_nce(q, z, bank, same, t), against[~same], textures[:2]),
        (negative_cosine(q, z), None, None),
    ):
        torch.testing.assert_close(stats["positive_similarity"], positive)
        if negative is not None:
            torch.testing.assert_close(stats["negative_similarity"], negative.mean())
            torch.testing.assert_close(stats["texture_similarity"], texture.mean())
        assert not any(value.requires_grad for value in stats.values())
    a, b = ((x - x.mean(0)) / (x.var(0, correction=0) + 1e-5).sqrt() for x in (q, z))
    torch.testing.assert_close(cross_correlation(q, z)[1]["positive_similarity"], cosine(a, b).diagonal().mean())


def test_pirl_loss_is_finite_if_negative_has_all_of_probability() -> None:
    v = torch.eye(3)[:1].requires_grad_(True)
    loss, _ = pirl_nce(v, -torch.eye(3)[:1], torch.eye(3)[:1], torch.zeros(1, 1, dtype=torch.bool), tau=0.01)
    loss.backward()
    assert loss.isfinite()
    assert v.grad.isfinite().all()


def test_one_image_without_textures_has_no_loss() -> None:
    p, z, _ = inputs(6, 1, 1)
    loss, stats = info_nce(p.requires_grad_(True), z)
    loss.backward()
    assert loss.item() == 0
    assert not p.grad.any()
    assert set(stats) == {"positive_similarity"}


def test_half_precision_of_baselines_is_computed_in_float32_even_under_autocast() -> None:
    p, z, t = (x.bfloat16() for x in inputs(1, 6, 1))
    half, whole = (p[0], z, t), (p[0].float(), z.float(), t.float())

    def losses(q: Tensor, z: Tensor, t: Tensor) -> list[Tensor]:
        both, same = torch.stack([q, z]), torch.zeros(6, 6, dtype=torch.bool)
        made = bank_nce(q, z, z, t), pirl_nce(q, z, q, same, t), nt_xent(both, both, (t, t)), negative_cosine(q, z)
        return [loss for loss, _ in (*made, cross_correlation(q, z))]

    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = losses(*half)
    for mine, expected in zip(found, losses(*whole), strict=True):
        assert mine.dtype == torch.float32
        torch.testing.assert_close(mine, expected, rtol=1e-5, atol=1e-6)


def test_half_precision_is_computed_in_float32_even_under_autocast() -> None:
    p, z, t = (x.bfloat16() for x in inputs(6, 4, 1))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss, _ = info_nce(p, z, t)
    assert loss.dtype == torch.float32
    expected = slow_loss(p.double().numpy(), z.double().numpy(), t.double().numpy(), 0.2, 1.0, "batch")
    assert loss.item() == pytest.approx(expected, rel=1e-5)


def test_unknown_scope() -> None:
    with pytest.raises(ValueError, match="scope"):
        info_nce(*inputs(1, 2, 1), scope="all")


def test_embedding_std_is_one_when_spread_and_zero_when_collapsed() -> None:
    spread = torch.randn(4000, 64, generator=torch.Generator().manual_seed(0))
    assert embedding_std(spread).item() == pytest.approx(1, abs=0.02)
    assert embedding_std(torch.ones(10, 64) * torch.arange(1, 11)[:, None]).item() == pytest.approx(0, abs=1e-6)
    assert embedding_std(torch.randn(1, 64).expand(10, 64)).item() == pytest.approx(0, abs=1e-6)
    one_line = torch.randn(4000, 1) * torch.ones(64)  # only two directions, which are opposite
    assert embedding_std(one_line + 10).item() < 0.01
