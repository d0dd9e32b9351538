"""SACL: the loss against a slow recomputation, the update of the target, learning on a fixed batch, errors."""

import copy
from itertools import combinations

import pytest
import torch
import torch.nn.functional as F
from torch import Generator, Tensor
from torch.nn import Linear

from sacl_train.data.draws import Draws
from sacl_train.data.grid import split_grid
from sacl_train.data.weak import Policy, WeakAugment
from sacl_train.methods import METHODS
from sacl_train.methods.losses import embedding_std, info_nce
from sacl_train.methods.sacl import CROP_SCALE, CROPS, SACL, SACLSettings
from sacl_train.nets import build_encoder
from sacl_train.nets.norms import stop_counting
from texturegen.errors import UserError

MEAN, STD = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)
SMALL = {"projector_hidden": 24, "projector_out": 16, "predictor_hidden": 8}


def make(weak: str = "geometric", **settings: object) -> SACL:
    torch.manual_seed(0)
    encoder = build_encoder("se_resnet8", "cifar-stride2", width=8)
    method = SACL(encoder, WeakAugment(weak, MEAN, STD), (16, 16), SACLSettings(**{**SMALL, **settings}))
    stop_counting(method)  # as `build_method` does
    return method


def make_batch(images: int = 8, per_image: int = 1) -> dict[str, Tensor]:
    g = Generator().manual_seed(1)
    return {
        "image": torch.randint(0, 256, (images, 3, 16, 16), dtype=torch.uint8, generator=g),
        "texture": torch.randint(0, 256, (images, per_image, 3, 16, 16), dtype=torch.uint8, generator=g),
    }


def draws(batch: dict[str, Tensor], seed: int = 0) -> Draws:
    return Draws(seed, 0, torch.arange(len(batch["image"])))


def slow_step(method: SACL, batch: dict[str, Tensor], seed: int) -> Tensor:
    """Algorithm 1, one image and one combination at a time where BatchNorm allows it."""
    s = method.settings
    drawn = draws(batch, seed)
    x1, x2 = method.weak(batch["image"], drawn.of(0)), method.weak(batch["image"], drawn.of(1))
    count, per_image = batch["texture"].shape[:2]
    if s.texture_role != "none":
        of_query = {"own": (None, None), "query": (drawn.of(0), drawn.of(1))}[s.texture_view]
        weak_textures = [
            torch.stack([method.weak(batch["texture"][:, k], drawn.of(2 + k), g) for k in range(per_image)], 1)
            for g in of_query
        ]
        both = [method.target_projector(method.target_encoder(x.flatten(0, 1))) for x in weak_textures]
        both = [F.normalize(t, dim=1).reshape(count, per_image, -1) for t in both]
    side = 16 // s.grid

    def queries(x: Tensor) -> list[Tensor]:
        places = [(r * side, c * side) for r in range(s.grid) for c in range(s.grid)]
        cells = torch.cat([x[:, :, r : r + side, c : c + side] for r, c in places])
        features = method.encoder(cells).split(count)
        subsets = [sum(chosen) / s.cells for chosen in combinations(features, s.cells)]
        out = method.predictor(method.projector(torch.cat(subsets)))
        return list(F.normalize(out, dim=1).split(count))

    def whole(x: Tensor) -> Tensor:
        return F.normalize(method.target_projector(method.target_encoder(x)), dim=1)

    losses = []
    for number, (view, other) in enumerate(((x1, x2), (x2, x1))):
        p = queries(view)
        t = None if s.texture_role == "none" else both[number]
        for key_number in range(per_image if s.texture_role == "positive" else 1):
            keys = t[:, key_number] if s.texture_role == "positive" else whole(other)
            for combination in p:
                for i in range(count):
                    total = (combination[i] @ keys.T / s.tau).exp().sum()
                    if s.texture_role == "negative":
                        against = t[i] if s.scope == "own" else t.reshape(count * per_image, -1)
                        total = total + (s.alpha * (against @ combination[i]) / s.tau).exp().sum()
                    losses.append(total.log() - combination[i] @ keys[i] / s.tau)
    return torch.stack(losses).mean()


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"scope": "own", "alpha": 2.0, "tau": 0.5},
        {"grid": 4, "cells": 15},
        {"texture_role": "positive"},
        {"texture_role": "positive", "texture_view": "query"},
        {"texture_view": "query"},
        {"texture_role": "none", "cells": 3},
    ],
    ids=str,
)
@pytest.mark.parametrize("per_image", [1, 2])
def test_loss_equals_slow_recomputation(settings: dict[str, object], per_image: int) -> None:
    method, batch = make(**settings).double(), make_batch(4, per_image)
    method.weak = _Double(method.weak)
    with torch.no_grad():  # a target equal to the online network would hide a mix-up
        for parameter in [*method.target_encoder.parameters(), *method.target_projector.parameters()]:
            parameter.mul_(1 + 0.3 * torch.rand_like(parameter))
    expected = slow_step(copy.deepcopy(method), batch, seed=5)
    loss, metrics = method(batch, draws(batch, 5))
    torch.testing.assert_close(loss, expected, rtol=1e-9, atol=0)
    torch.testing.assert_close(metrics["loss"], expected.detach(), rtol=1e-9, atol=0)


@pytest.mark.parametrize("per_image", [1, 2])
def test_instances_are_anchors_with_negatives_of_all_kinds(per_image: int) -> None:
    """The terms of `slow_step`, the same weight for each view of the images and of each of their textures."""
    method, batch = make(texture_role="instance", alpha=2.0).double(), make_batch(4, per_image)
    method.weak = _Double(method.weak)
    drawn, s = draws(batch, 5), method.settings
    views = [[method.weak(batch["image"], drawn.of(n)) for n in (0, 1)]]
    for k in range(per_image):
        views.append([method.weak(batch["texture"][:, k], drawn.of(purpose + k)) for purpose in (2, 0x40000)])
    reference = copy.deepcopy(method)
    keys = [
        [F.normalize(reference.target_projector(reference.target_encoder(x)), dim=1) for x in pair] for pair in views
    ]
    losses = []
    for kind in range(1 + per_image):
        for n in (0, 1):
            for combination in F.normalize(reference._queries(split_grid(views[kind][n], s.grid)), dim=2):
                same = keys[kind][1 - n]
                against = torch.cat([pair[1 - n] for pair in keys if pair is not keys[kind]])
                for i in range(4):
                    total = (combination[i] @ same.T / s.tau).exp().sum()
                    total = total + (2 * combination[i] @ against.T / s.tau).exp().sum()
                    losses.append(total.log() - combination[i] @ same[i] / s.tau)
    loss, _ = method(batch, drawn)
    torch.testing.assert_close(loss, torch.stack(losses).mean(), rtol=1e-9, atol=0)


class _Double(WeakAugment):
    """Return views in float64, so that rounding cannot hide a wrong loss."""

    def __init__(self, weak: WeakAugment) -> None:
        super().__init__(weak.policy, weak.mean, weak.std, size=weak.size)

    def forward(self, *args: Tensor | None, **kwargs: int) -> Tensor:
        return super().forward(*args, **kwargs).double()


@pytest.mark.parametrize("role", ["negative", "instance", "positive", "none"])
def test_fixed_batch_is_learnt(role: str) -> None:
    method, batch = make("none", texture_role=role), make_batch()
    optimizer = torch.optim.SGD([p for p in method.parameters() if p.requires_grad], lr=0.1, momentum=0.9)
    losses = []
    for _ in range(15):
        loss, metrics = method(batch, draws(batch, 0))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        method.after_step(0, 10)
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.5
    assert 0.2 < metrics["embedding_std"] <= 1
    assert not any(value.requires_grad or value.ndim for value in metrics.values())
    assert ("texture_similarity" in metrics) == (role in ("negative", "instance"))


def test_only_online_networks_get_gradients_and_target_follows() -> None:
    method, batch = make(momentum=0.9), make_batch()
    loss, metrics = method(batch, draws(batch, 0))
    loss.backward()
    [keys] = method._keys([method.weak(batch["image"], draws(batch, 0).of(1))])
    torch.testing.assert_close(metrics["embedding_std"], embedding_std(keys))
    online = [method.encoder, method.projector, method.predictor]
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for net in online for p in net.parameters())
    pairs = [(method.target_encoder, method.encoder), (method.target_projector, method.projector)]
    assert all(p.grad is None for target, _ in pairs for p in target.parameters())
    before = [[p.clone() for p in target.parameters()] for target, _ in pairs]
    torch.optim.SGD([p for p in method.parameters() if p.requires_grad], lr=0.1).step()
    for (target, _), old in zip(pairs, before, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(target.parameters(), old, strict=True))
    assert method.after_step(0, 10) == {"m": 0.9}
    assert make(momentum=0.9, momentum_schedule="cosine").after_step(5, 10) == {"m": pytest.approx(0.95)}
    for (target, source), old in zip(pairs, before, strict=True):
        for mine, theirs, previous in zip(target.parameters(), source.parameters(), old, strict=True):
            torch.testing.assert_close(mine.detach(), 0.9 * previous + 0.1 * theirs.detach())
        for mine, theirs in zip(target.buffers(), source.buffers(), strict=True):
            assert torch.equal(mine, theirs)


def test_target_starts_equal_and_state_dict_holds_everything() -> None:
    method = make()
    state = method.state_dict()
    for name, value in method.encoder.state_dict().items():
        assert torch.equal(state[f"target_encoder.{name}"], value)
    other = make()
    other.load_state_dict(state)
    batch = make_batch()
    losses = [m(batch, draws(batch, 3))[0] for m in (method, other)]
    assert torch.equal(losses[0], losses[1])


def test_role_none_neither_needs_nor_reads_textures() -> None:
    batch = make_batch()
    without = {"image": batch["image"]}
    losses = [make(texture_role="none")(b, draws(batch, 0))[0] for b in (batch, without)]
    assert torch.equal(losses[0], losses[1])


@pytest.mark.parametrize("role", ["negative", "positive"])
def test_missing_textures(role: str) -> None:
    batch = make_batch()
    for missing in ({"image": batch["image"]}, {**batch, "texture": batch["texture"][:, :0]}):
        with pytest.raises(UserError, match="these shards have none"):
            make(texture_role=role)(missing, draws(batch))


def test_batch_of_one_image() -> None:
    with pytest.raises(UserError, match="larger batch size"):
        make()(make_batch(1), draws(make_batch(1)))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"texture_role": "negativ"}, "did you mean 'negative'"),
        ({"scope": "bach"}, "did you mean 'batch'"),
        ({"texture_query": "hole"}, "did you mean 'whole'"),
        ({"cells": 5}, "cells must be"),
        ({"grid": 0}, "cells must be"),
        ({"tau": 0.0}, "tau is .*; it must be above 0"),
        ({"tau": float("nan")}, "tau is .*; it must be above 0"),
        ({"momentum": 1.1}, "momentum is 1.1; it must be between 0 and 1"),
        ({"grid": 3}, "multiples of 3"),
        ({"grid": 32}, "smaller than the 32x32 grid"),
    ],
)
def test_invalid_settings_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make(**settings)


def test_registry_builds_with_settings() -> None:
    encoder, weak = build_encoder("se_resnet8", "cifar", width=4), WeakAugment("none", MEAN, STD)
    kind = METHODS["sacl"].load()
    method = kind(encoder, weak, (16, 16), kind.Settings(**SMALL, tau=0.1))
    assert isinstance(method, SACL)
    assert method.settings.tau == 0.1
    assert [layer.out_features for layer in method.projector if isinstance(layer, Linear)] == [24, 24, 16]
    assert [layer.out_features for layer in method.predictor if isinstance(layer, Linear)] == [8, 16]
    assert method.encoder is encoder


def test_crops_take_the_place_of_the_cells() -> None:
    """Four small views of an image, each with random numbers of its own, are what the queries are made of."""
    method, batch = make(queries="crops").double(), make_batch(4)
    method.weak, method.crops = _Double(method.weak), _Double(method.crops)
    drawn, s = draws(batch, 5), method.settings
    reference = copy.deepcopy(method)
    loss, _ = method(batch, drawn)
    *keys, texture = reference._keys(
        [*(method.weak(batch["image"], drawn.of(n)) for n in (0, 1)), method.weak(batch["texture"][:, 0], drawn.of(2))]
    )
    textures = texture[:, None]
    small = WeakAugment("geometric", MEAN, STD).cropping(CROP_SCALE, (8, 8))
    losses = []
    for n in (0, 1):
        crops = [small(batch["image"], drawn.of(CROPS + 4 * n + k)).double() for k in range(4)]
        assert {crop.shape[2:] for crop in crops} == {(8, 8)}
        losses.append(info_nce(reference._queries(torch.cat(crops)), keys[1 - n], textures, s.tau)[0])
    torch.testing.assert_close(loss, sum(losses) / 2, rtol=1e-9, atol=0)


@pytest.mark.parametrize("role", ["negative", "none"])
def test_only_whole_views_meet_textures(role: str) -> None:
    """Half of the loss is `slow_step` without textures, the other half that of whole views, a grid of one cell."""
    method, batch = make(texture_query="whole", texture_role=role, alpha=2.0).double(), make_batch(4, 2)
    method.weak = _Double(method.weak)
    halves = [copy.deepcopy(method) for _ in range(2)]
    halves[0].settings = SACLSettings(**SMALL, texture_role="none")
    halves[1].settings = SACLSettings(**SMALL, texture_role=role, alpha=2.0, grid=1, cells=1)
    expected = sum(slow_step(half, batch, 5) for half in halves) / 2
    loss, metrics = method(batch, draws(batch, 5))
    torch.testing.assert_close(loss, expected, rtol=1e-9, atol=0)
    assert ("texture_similarity" in metrics) == (role == "negative")
    with pytest.raises(UserError, match="texture_query whole needs texture_role negative or none, not positive"):
        make(texture_query="whole", texture_role="positive")


def test_crops_show_a_small_part_of_the_image() -> None:
    """Crops of a ramp from left to right: the range of a crop's values is its width."""
    ramp = torch.arange(64, dtype=torch.uint8).mul(4).expand(200, 3, 64, 64)
    weak = WeakAugment("mocov2", (0.0,) * 3, (1.0,) * 3)
    colourless = WeakAugment(Policy(weak.policy.geometry), (0.0,) * 3, (1.0,) * 3)
    views = colourless.cropping((0.25, 0.25), (32, 32))(ramp, Draws(0, 0, torch.arange(200)).of(0))
    widths = (views[:, 0, 0].amax(1) - views[:, 0, 0].amin(1)) * 255 / 4 / 64
    assert views.shape == (200, 3, 32, 32)
    assert 0.4 < float(widths.min()) < 0.46  # the square root of 0.25 * 3 / 4 is 0.43
    assert 0.54 < float(widths.max()) < 0.6


@pytest.mark.parametrize(
    ("settings", "weak", "message"),
    [
        ({"queries": "crop"}, "mocov2", r"unknown queries 'crop' \(did you mean 'crops'\?\)"),
        ({"queries": "crops", "texture_view": "query"}, "mocov2", "queries crops works neither with"),
        ({"queries": "crops"}, "none", "crops need a weak policy that crops"),
    ],
)
def test_crops_without_a_meaning_are_refused(settings: dict[str, str], weak: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        make(weak, **settings)
