"""Weak augmentation: normalisation, reproducibility, and the distribution of the parameters."""

import math

import numpy as np
import pytest
import torch
from torch import Generator, Tensor
from torchvision.transforms import RandomResizedCrop
from torchvision.transforms.v2 import functional as F

from sacl_train.data import colour
from sacl_train.data.draws import Draws
from sacl_train.data.operations import (
    Blur,
    ColourJitter,
    ColourOp,
    Crop,
    Flip,
    GeometricOp,
    Grey,
    Rotation,
    Solarise,
    Translation,
)
from sacl_train.data.weak import Policy, ViewOf, WeakAugment, _draw, _matrices, make_policy, normalise
from texturegen.errors import UserError

MEAN, STD = (0.49, 0.48, 0.45), (0.25, 0.24, 0.26)
OPERATIONS = (Crop, Flip, Rotation, Translation, ColourJitter, Grey, Blur, Solarise)
POLICIES = ("geometric", "mocov2", "byol", "colour-geometric", "none")


def seeded(seed: int = 0) -> Generator:
    return Generator().manual_seed(seed)


def states(count: int, view: int = 0) -> Tensor:
    return Draws(0, 0, torch.arange(count)).of(view)


def numbers(op: GeometricOp | ColourOp, count: int) -> Tensor:
    return _draw(((op, 1.0),), states(count))[0][1]


def applied(op: ColourOp, x: Tensor) -> Tensor:
    return op.apply(x, numbers(op, len(x)))


def matrices_of(op: GeometricOp, count: int, height: int, width: int) -> Tensor:
    return op.matrices(numbers(op, count), height, width)


def images(count: int = 6, height: int = 32, width: int = 32) -> Tensor:
    return torch.randint(0, 256, (count, 3, height, width), dtype=torch.uint8, generator=seeded(9))


def test_policy_none_is_exactly_normalised_image() -> None:
    x = images()
    views = WeakAugment("none", MEAN, STD)(x, states(6))
    expected = torch.empty(x.shape)
    for channel in range(3):
        expected[:, channel] = (x[:, channel].float() / 255 - MEAN[channel]) / STD[channel]
    assert torch.equal(views, expected)
    assert torch.equal(normalise(x, MEAN, STD), expected)


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize(("height", "width"), [(32, 32), (80, 96), (7, 5)])
def test_views_are_finite_in_range_and_repeat_with_seed(policy: str, height: int, width: int) -> None:
    x = images(6, height, width)
    before = x.clone()
    weak = WeakAugment(policy, MEAN, STD)
    views = weak(x, states(6, 1))
    assert views.shape == x.shape
    assert views.dtype == torch.float32
    assert torch.equal(x, before), "the batch itself must not change: it gives the second view too"
    pixels = views * torch.tensor(STD)[:, None, None] + torch.tensor(MEAN)[:, None, None]
    assert pixels.min() > -1e-4
    assert pixels.max() < 1 + 1e-4
    assert torch.equal(weak(x, states(6, 1)), views)
    if policy != "none":
        assert not torch.allclose(weak(x, states(6, 2)), views)


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize(("height", "width"), [(32, 32), (96, 96), (80, 112)])
def test_view_is_bitwise_independent_of_batch_size(policy: str, height: int, width: int) -> None:
    x, of = images(128, height, width), states(128)
    weak = WeakAugment(policy, MEAN, STD)
    whole = weak(x, of)
    for size in (1, 7):
        for start in (0, 5, 121):
            assert torch.equal(weak(x[start : start + size], of[start : start + size]), whole[start : start + size])
    backwards = torch.arange(127, -1, -1)
    assert torch.equal(weak(x[backwards], of[backwards]), whole[backwards])


def test_geometry_and_colour_may_use_different_states() -> None:
    x = images()
    weak = WeakAugment("colour-geometric", MEAN, STD)
    geometric = WeakAugment("geometric", MEAN, STD)
    shared = weak(x, states(6, 2), states(6, 1))
    assert not torch.equal(shared, weak(x, states(6, 2)))
    # Where neither colour operation is drawn, the geometry of the other states is all there is.
    plain = geometric(x, states(6, 1))
    untouched = (shared - plain).flatten(1).abs().max(1).values < 1e-6
    assert torch.equal(shared[untouched], plain[untouched])
    many = images(200, 8, 8)
    both = weak(many, states(200, 2), states(200, 1))
    alike = (both == geometric(many, states(200, 1))).flatten(1).all(1).float().mean()
    assert 0.08 < alike < 0.26  # .2 without jitter times .8 without grey


def test_geometric_is_drawn_per_sample() -> None:
    same = images(1).expand(8, 3, 32, 32)
    views = WeakAugment("geometric", MEAN, STD)(same, states(8))
    assert len(torch.unique(views.flatten(1), dim=0)) == 8


def test_probability_of_operation() -> None:
    x = torch.zeros(400, 3, 4, 4, dtype=torch.uint8)
    x[..., :2] = 255
    for probability in (0.0, 0.2, 0.5, 1.0):
        weak = WeakAugment(Policy(((Flip(), probability),)), (0, 0, 0), (1, 1, 1))
        flipped = (weak(x, states(400, 3))[:, 0, 0, 0] < 0.5).float().mean().item()
        assert abs(flipped - probability) <= 4 * math.sqrt(probability * (1 - probability) / 400)


def test_colour_operations_apply_to_selected_samples_only() -> None:
    x = images(400, 4, 4)
    greyed = WeakAugment(Policy(colour=((Grey(), 0.2),)), MEAN, STD)(x, states(400))
    untouched = (greyed == normalise(x, MEAN, STD)).flatten(1).all(dim=1).float().mean().item()
    assert 0.72 < untouched < 0.88


@pytest.mark.parametrize(("height", "width"), [(1000, 1000), (1200, 900)])
def test_crops_are_distributed_as_torchvisions(height: int, width: int) -> None:
    scale, ratios = (0.2, 1.0), (3 / 4, 4 / 3)
    torch.manual_seed(0)
    image = torch.empty(1, height, width)
    theirs = torch.tensor([RandomResizedCrop.get_params(image, scale, ratios) for _ in range(20_000)]).double()
    theirs = (theirs / torch.tensor([height, width] * 2)).T  # top, left, height, width as fractions
    matrices = matrices_of(Crop(scale, ratios), 20_000, height, width).double()
    sides, centres = matrices.diagonal(dim1=1, dim2=2)[:, :2].T.flip(0), matrices[:, :2, 2].T.flip(0)
    ours = torch.cat([(centres + 1 - sides) / 2, sides])
    assert ours.min() >= -1e-6
    assert (ours[:2] + ours[2:]).max() <= 1 + 1e-6
    described = []
    for top, left, high, wide in (ours, theirs):
        described.append(
            torch.stack([high * wide, (wide * width / (high * height)).log(), top + high / 2, left + wide / 2])
        )
    for a, b in zip(*described, strict=True):
        assert abs(a.mean() - b.mean()) < 3 * (a.var() / 10_000).sqrt()
        quantiles = torch.linspace(0.02, 0.98, 13, dtype=torch.float64)
        assert (a.quantile(quantiles) - b.quantile(quantiles)).abs().max() < 0.04 * (a.max() - a.min())
    assert (torch.corrcoef(described[0]) - torch.corrcoef(described[1])).abs().max() < 0.04


def test_crop_that_never_fits_is_largest_central_box() -> None:
    wide = matrices_of(Crop((1, 1), (3 / 4, 4 / 3)), 5, 100, 400)  # 4/3 of the height, a third of the width
    torch.testing.assert_close(wide, torch.diag(torch.tensor([1 / 3, 1, 1])).expand(5, 3, 3))
    tall = matrices_of(Crop((1, 1), (3 / 4, 4 / 3)), 5, 400, 100)
    torch.testing.assert_close(tall, torch.diag(torch.tensor([1, 1 / 3, 1])).expand(5, 3, 3))


def test_whole_image_crop_is_whole_square_image() -> None:
    matrices = matrices_of(Crop(scale=(1, 1), ratio=(1, 1)), 5, 32, 32)
    torch.testing.assert_close(matrices, torch.eye(3).expand(5, 3, 3), atol=1e-6, rtol=0)


def test_rotation_and_translation_ranges() -> None:
    turns = matrices_of(Rotation(15), 2000, 32, 32)
    degrees = torch.atan2(turns[:, 1, 0], turns[:, 0, 0]).rad2deg()
    assert -15 <= degrees.min() < -14
    assert 14 < degrees.max() <= 15
    oblong = matrices_of(Rotation(15), 2000, 48, 32)  # (x, y) of a unit square are not pixels alike
    torch.testing.assert_close(oblong[:, 0, 1] * 32 / 48, turns[:, 0, 1])
    torch.testing.assert_close(oblong[:, 1, 0] * 48 / 32, turns[:, 1, 0])
    shifts = matrices_of(Translation(0.1), 2000, 32, 32)[:, :2, 2] / 2
    assert -0.1 <= shifts.min() < -0.095
    assert 0.095 < shifts.max() <= 0.1
    assert not torch.equal(shifts[:, 0], shifts[:, 1])


def test_geometric_operations_are_composed_in_their_order() -> None:
    crop, turn = Crop(), Rotation()
    matrices = _matrices(Policy(((crop, 1.0), (turn, 1.0))), states(20), 32, 48)
    expected = matrices_of(crop, 20, 32, 48) @ matrices_of(turn, 20, 32, 48)
    torch.testing.assert_close(matrices, expected)


def test_jitter_draws_each_strength_and_order_of_four(monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[tuple[Tensor, Tensor]] = []
    count = 2000

    def scale(x: Tensor, quality: Tensor, factor: Tensor) -> Tensor:
        done.append((quality, factor))
        return x

    def adjust_hue(x: Tensor, shift: Tensor) -> Tensor:
        done.append((torch.full((count,), 3), shift))
        return x

    monkeypatch.setattr(colour, "scale", scale)
    monkeypatch.setattr(colour, "adjust_hue", adjust_hue)
    strengths = [0.1, 0.2, 0.3, 0.05]
    applied(ColourJitter(*strengths), torch.zeros(count, 3, 1, 1))
    drawn = np.full((4, count), np.nan)
    changes: list[list[int]] = [[] for _ in range(count)]
    for qualities, amounts in done:
        for i, (quality, amount) in enumerate(zip(qualities.tolist(), amounts.tolist(), strict=True)):
            if quality == 3 or amount != 1:
                changes[i].append(quality)
                drawn[quality, i] = amount
    for amounts, centre, strength in zip(drawn, (1, 1, 1, 0), strengths, strict=True):
        assert centre - strength <= amounts.min() < centre - 0.98 * strength
        assert centre + 0.98 * strength < amounts.max() <= centre + strength
    assert np.abs(np.corrcoef(drawn) - np.eye(4)).max() < 0.1
    order, counts = np.unique(changes, axis=0, return_counts=True)
    assert len(order) == 24, "each is done once, in any order"
    assert np.abs(counts - count / 24).max() < 5 * math.sqrt(count / 24)


def test_operations_share_no_words() -> None:
    words = [word for op in OPERATIONS for word in (op.STREAM, *op.WORDS)]
    assert len(set(words)) == len(words)
    assert {type(op) for name in POLICIES for op, _ in all_operations(make_policy(name))} == set(OPERATIONS)


def all_operations(policy: Policy) -> list[tuple[GeometricOp | ColourOp, float]]:
    second = all_operations(policy.second) if policy.second is not None else []
    return [*policy.geometry, *policy.colour, *second]


def test_jitter_strength_zero_and_grey() -> None:
    x = torch.rand(5, 3, 8, 8, generator=seeded())
    torch.testing.assert_close(applied(ColourJitter(0, 0, 0, 0), x), x, atol=1e-6, rtol=0)
    jittered = applied(ColourJitter(), x.clone())
    assert ((jittered - x).abs().flatten(1).max(dim=1).values > 0.01).all()
    grey = applied(Grey(), x)
    assert torch.equal(grey[:, 0], grey[:, 1])
    assert torch.equal(grey[:, 0], grey[:, 2])


def test_blur_applies_to_large_images_only() -> None:
    small, large = torch.rand(2, 3, 64, 64, generator=seeded()), torch.rand(2, 3, 224, 224, generator=seeded())
    assert torch.equal(applied(Blur(), small), small)
    blurred = applied(Blur((1.0, 2.0)), large)
    assert (blurred.std(dim=(1, 2, 3)) < 0.5 * large.std(dim=(1, 2, 3))).all()


def test_blur_scales_with_image() -> None:
    x = torch.rand(2, 3, 112, 112, generator=seeded())
    expected = F.gaussian_blur(x, [7, 7], [1.0, 1.0])  # half of 224 pixels: half the sigma
    torch.testing.assert_close(applied(Blur((2.0, 2.0)), x), expected, atol=1e-6, rtol=0)


def test_policies_are_published_ones_with_given_strengths() -> None:
    given = {"crop_scale": (0.3, 0.9), "degrees": 5.0, "shift": 0.2, "jitter": (0.1, 0.2, 0.3, 0.05), "grey": 0.4}
    crop_flip = ((Crop((0.3, 0.9)), 1.0), (Flip(), 0.5))
    turned = (*crop_flip, (Rotation(5.0), 1.0), (Translation(0.2), 1.0))
    jitter_grey = ((ColourJitter(0.1, 0.2, 0.3, 0.05), 0.8), (Grey(), 0.4))
    assert make_policy("geometric", **given) == Policy(turned)
    assert make_policy("mocov2", **given) == Policy(crop_flip, (*jitter_grey, (Blur(), 0.5)))
    assert make_policy("colour-geometric", **given) == Policy(turned, jitter_grey)
    chen = ((ColourJitter(0.4, 0.4, 0.4, 0.1), 0.8), (Grey(), 0.2), (Blur((0.1, 2.0)), 0.5))
    assert make_policy("mocov2") == Policy(((Crop((0.2, 1.0)), 1.0), (Flip(), 0.5)), chen)
    assert make_policy("simclr", **given) == make_policy("mocov2", **given)
    crop_flip = ((Crop((0.08, 1.0)), 1.0), (Flip(), 0.5))
    assert make_policy("simclr").geometry == crop_flip
    assert make_policy("simclr").colour[0] == (ColourJitter(0.8, 0.8, 0.8, 0.2), 0.8)
    grill = ((ColourJitter(0.4, 0.4, 0.2, 0.1), 0.8), (Grey(), 0.2))
    second = Policy(crop_flip, (*grill, (Blur(), 0.1), (Solarise(0.5), 0.2)))
    assert make_policy("byol") == Policy(crop_flip, (*grill, (Blur(), 1.0)), second)


def test_second_view_may_have_policy_of_its_own() -> None:
    x, draws = images(40), Draws(0, 0, torch.arange(40))
    policy = Policy(colour=((Solarise(), 1.0),), second=Policy(colour=((Grey(), 1.0),)))
    weak = WeakAugment(policy, (0, 0, 0), (1, 1, 1))
    original = normalise(x, (0, 0, 0), (1, 1, 1))
    assert torch.equal(weak.view(x, draws, 0), torch.where(original >= 0.5, 1 - original, original))
    second = weak.view(x, draws, 1)
    assert torch.equal(second[:, 0], second[:, 2])
    symmetric = WeakAugment("geometric", MEAN, STD)
    for number in (0, 1):
        assert torch.equal(symmetric.view(x, draws, number), symmetric(x, draws.of(number)))


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("shared", [False, True])
def test_views_made_together_are_those_made_alone(policy: str, shared: bool) -> None:
    weak, draws = WeakAugment(policy, MEAN, STD, channels_last=True), Draws(4, 2, torch.tensor([5, 0, 9]))
    x, textures = images(3), images(6).flip(0)  # two textures of each image
    asked = [
        ViewOf(x, (0,)),
        ViewOf(textures, (7, 8)),
        ViewOf(x, (1,), number=1),
        *([ViewOf(textures, (7, 8), geometry=1)] if shared else []),
    ]
    states = torch.stack([draws.of(7), draws.of(8)], dim=1).flatten()
    expected = [
        weak.view(x, draws, 0),
        weak(textures, states),
        weak.view(x, draws, 1),
        *([weak(textures, states, draws.of(1).repeat_interleave(2))] if shared else []),
    ]
    calls: list[int] = []
    weak.register_forward_hook(lambda *_: calls.append(1))
    for made, alone in zip(weak.together(asked, draws), expected, strict=True):
        assert torch.equal(made, alone)
        assert made.is_contiguous(memory_format=torch.channels_last)
    assert len(calls) == (2 if policy == "byol" else 1)  # BYOL's second view has a policy of its own


@pytest.mark.parametrize("policy", POLICIES)
def test_memory_layout_of_views_is_as_asked(policy: str) -> None:
    x = images(140)  # two chunks on a CPU
    views = [WeakAugment(policy, MEAN, STD, channels_last)(x, states(140)) for channels_last in (False, True)]
    assert views[0].is_contiguous()
    assert views[1].is_contiguous(memory_format=torch.channels_last)
    assert not views[1].is_contiguous()
    assert torch.equal(*views)


def test_unknown_policy_names_nearest() -> None:
    with pytest.raises(UserError, match="did you mean 'geometric'"):
        WeakAugment("geometrc", MEAN, STD)


def test_float_images_are_refused() -> None:
    with pytest.raises(ValueError, match="uint8"):
        normalise(torch.rand(2, 3, 4, 4), MEAN, STD)
