"""Baselines: losses against lightly and against loops, state, textures, and learning on a fixed batch."""

import copy
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from sacl_train import train
from sacl_train.config import load_config
from sacl_train.data.draws import Draws
from sacl_train.data.weak import WeakAugment
from sacl_train.methods import METHODS
from sacl_train.methods.losses import bank_nce, cross_correlation, negative_cosine, nt_xent, pirl_nce
from sacl_train.methods.method import Method
from sacl_train.methods.pirl import cut_jigsaw
from sacl_train.nets import build_encoder
from sacl_train.nets.norms import stop_counting
from sacl_train.training.checkpoint import load_checkpoint
from sacl_train.training.optim import build_optimizer
from texturegen.errors import UserError

HEADS = {"projector_hidden": 16, "projector_out": 16}
SMALL: dict[str, dict[str, object]] = {
    "fast-moco": {**HEADS, "predictor_hidden": 8},
    "mocov2": {**HEADS, "queue": 40},
    "simclr": HEADS,
    "byol": {**HEADS, "predictor_hidden": 16, "momentum": 0.9},
    "simsiam": {**HEADS, "predictor_hidden": 8},
    "barlow": HEADS,
    "pirl": {"projector_out": 16, "negatives": 5, "images": 64},
}


def make(name: str, **changes: object) -> Method:
    torch.manual_seed(0)
    encoder = build_encoder("se_resnet8", "cifar-stride2", width=4, attention="none")
    weak = WeakAugment("geometric", (0.5,) * 3, (0.25,) * 3)
    kind = METHODS[name].load()
    method = kind(encoder, weak, (16, 16), kind.Settings(**{**SMALL[name], **changes}))
    stop_counting(method)  # as `build_method` does
    return method


def batch(count: int = 8, textures: int = 2) -> tuple[dict[str, torch.Tensor], Draws]:
    random = np.random.default_rng(0)
    images = torch.from_numpy(random.integers(0, 256, (count, 3, 16, 16), np.uint8))
    negatives = torch.from_numpy(random.integers(0, 256, (count, textures, 3, 16, 16), np.uint8))
    return {"image": images, "texture": negatives}, Draws(0, 0, torch.arange(count))


def embeddings(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=torch.float64)


def test_simclr_loss_equals_lightly() -> None:
    lightly = pytest.importorskip("lightly.loss")
    z = embeddings(2, 9, 6)
    theirs = lightly.NTXentLoss(temperature=0.3)(z[0], z[1])
    assert nt_xent(z, z, tau=0.3)[0].item() == pytest.approx(theirs.item(), abs=1e-6)


def test_moco_loss_equals_lightly_with_queue() -> None:
    lightly = pytest.importorskip("lightly.loss")
    q, k, bank = embeddings(9, 6), embeddings(9, 6), torch.nn.functional.normalize(embeddings(20, 6))
    theirs = lightly.NTXentLoss(temperature=0.2, memory_bank_size=(20, 6))
    theirs.memory_bank.bank = bank.clone()
    assert bank_nce(q, k, bank, tau=0.2)[0].item() == pytest.approx(theirs(q, k).item(), abs=1e-6)


def test_simsiam_and_byol_loss_equals_lightly() -> None:
    lightly = pytest.importorskip("lightly.loss")
    p, z = embeddings(9, 6), embeddings(9, 6)
    theirs = lightly.NegativeCosineSimilarity()(p, z)
    assert negative_cosine(p, z)[0].item() == pytest.approx(theirs.item(), abs=1e-6)


def test_barlow_loss_equals_lightly() -> None:
    lightly = pytest.importorskip("lightly.loss")
    a, b = embeddings(9, 6), embeddings(9, 6) + 0.3
    theirs = lightly.BarlowTwinsLoss(lambda_param=5e-3)(a, b)
    assert cross_correlation(a, b)[0].item() == pytest.approx(theirs.item(), rel=1e-6, abs=1e-6)


def shown(method: Method, content: dict[str, torch.Tensor], draws: Draws) -> list[torch.Tensor]:
    """Return the method's two views of the images, with draws 0 and 1."""
    return [method.weak(content["image"], draws.of(number)).double() for number in (0, 1)]


def written_out(name: str, method: Any, content: dict[str, torch.Tensor], draws: Draws) -> torch.Tensor:
    """Return the loss of a baseline, written line by line from its paper's algorithm."""
    settings, (first, second) = method.settings, shown(method, content, draws)

    def online(x: torch.Tensor) -> torch.Tensor:
        return method.projector(method.encoder(x))

    def target(x: torch.Tensor) -> torch.Tensor:
        return method.target_projector(method.target_encoder(x)).detach()

    def textures(encode: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
        views = [method.weak(content["texture"][:, k], draws.of(2 + k)).double() for k in (0, 1)]
        return encode(torch.stack(views, 1).flatten(0, 1)).unflatten(0, (-1, 2))

    if name == "mocov2":
        how = (textures(target), settings.tau, settings.alpha, settings.scope, 0, settings.decoupled)
        losses = [bank_nce(online(first), target(second), method.queue, *how)[0]]
        if settings.symmetric:
            losses.append(bank_nce(online(second), target(first), method.queue, *how)[0])
        return sum(losses) / len(losses)
    if name == "simclr":
        z = online(torch.cat([first, second])).unflatten(0, (2, -1))
        t = textures(online)
        return nt_xent(z, z, (t, t), settings.tau, settings.alpha, settings.scope, 0, settings.decoupled)[0]
    if name == "byol":
        p = [method.predictor(online(x)) for x in (first, second)]
        z = [F.normalize(x, dim=1) for x in (target(second), target(first))]
        unit = [F.normalize(x, dim=1) for x in p]
        return sum((a - b).square().sum(1).mean() for a, b in zip(unit, z, strict=True)) * settings.loss_scale
    if name == "simsiam":
        z = [online(x) for x in (first, second)]
        p = [method.predictor(x) for x in z]
        return (negative_cosine(p[0], z[1].detach())[0] + negative_cosine(p[1], z[0].detach())[0]) / 2
    if name == "barlow":
        return settings.loss_scale * cross_correlation(online(first), online(second), settings.redundancy)[0]
    drawn = method._draw_negatives(draws.seed)
    same = drawn[None] == draws.samples[:, None]
    with torch.no_grad():
        how = (textures(online), settings.tau, settings.alpha, settings.scope)
    cells = cut_jigsaw(second, draws.of(1)).unbind(1)
    count, features = len(first), method.encoder(torch.stack(cells, 1).flatten(0, 1))
    jigsaw = method.jigsaw_projector(method.cell_projector(features).view(count, -1))
    both = [pirl_nce(v, method.bank[:count], method.bank[drawn], same, *how)[0] for v in (online(first), jigsaw)]
    return (1 - settings.weight) * both[0] + settings.weight * both[1]


TEXTURES = {"texture_role": "negative", "scope": "own", "alpha": 2.0, "tau": 0.3}
CHANGES: dict[str, dict[str, object]] = {
    "mocov2": TEXTURES,
    "mocov2, symmetric": {**TEXTURES, "symmetric": True, "decoupled": True},
    "simclr": TEXTURES,
    "simclr, decoupled": {**TEXTURES, "decoupled": True, "projector_norm": True},
    "byol": {"loss_scale": 0.25},
    "simsiam": {},
    "barlow": {"redundancy": 0.1, "loss_scale": 0.1},
    "pirl": {**TEXTURES, "weight": 0.3, "negatives": 40},
}


class _Double(WeakAugment):
    """Return views in float64, so that rounding cannot hide a wrong loss."""

    def __init__(self, weak: WeakAugment) -> None:
        super().__init__(weak.policy, weak.mean, weak.std)

    def forward(self, *args: torch.Tensor | None, **kwargs: int) -> torch.Tensor:
        return super().forward(*args, **kwargs).double()


@pytest.mark.parametrize("name", CHANGES)
def test_loss_and_gradients_equal_papers_algorithm(name: str) -> None:
    changes = CHANGES[name]
    name = name.split(",")[0]
    method, (content, draws) = make(name, **changes).double(), batch()
    for part, module in method.named_children():
        if part.startswith("target"):  # a target equal to the online network would hide a mix-up
            for p in module.parameters():
                p.data.mul_(1 + 0.3 * torch.rand_like(p))
    theirs = copy.deepcopy(method)
    method.weak = _Double(method.weak)
    loss, _ = method(content, draws)
    expected = written_out(name, theirs, content, draws)
    torch.testing.assert_close(loss, expected, rtol=1e-9, atol=0)
    loss.backward()
    expected.backward()
    for (part, mine), its in zip(method.named_parameters(), theirs.parameters(), strict=True):
        assert (mine.grad is None) == (its.grad is None) == part.startswith("target"), part
        if mine.grad is not None:
            torch.testing.assert_close(mine.grad, its.grad, rtol=1e-7, atol=1e-12, msg=part)


@pytest.mark.parametrize("name", ["mocov2", "simclr"])
def test_projector_width_is_the_setting_or_that_of_the_features(name: str) -> None:
    for given, hidden in ((None, 16), (5, 5)):
        first, *_, last = make(name, projector_hidden=given, projector_out=7).projector
        assert (first.in_features, first.out_features, last.in_features, last.out_features) == (16, hidden, hidden, 7)


def test_byol_heads_have_batch_norm_inside_and_none_at_end() -> None:
    """Grill et al. 2020, section 3.2."""
    method = make("byol")
    for head in (method.projector, method.predictor):
        assert [type(layer).__name__ for layer in head] == ["Linear", "BatchNorm1d", "ReLU", "Linear"]


@pytest.mark.parametrize(("name", "m"), [("mocov2", 0.9), ("byol", 0.95)])
def test_target_encoder_and_projector_follow_online_ones(name: str, m: float) -> None:
    method = make(name, momentum=0.9)
    pairs = [(method.target_encoder, method.encoder), (method.target_projector, method.projector)]
    before = [[p.clone() for p in target.parameters()] for target, _ in pairs]
    for p in (p for _, online in pairs for p in online.parameters()):
        p.data.add_(torch.randn_like(p))
    assert method.after_step(4, 8) == {"m": pytest.approx(m)}  # BYOL: halfway along its cosine
    for (target, online), old in zip(pairs, before, strict=True):
        for mine, theirs, was in zip(target.parameters(), online.parameters(), old, strict=True):
            torch.testing.assert_close(mine.detach(), m * was + (1 - m) * theirs.detach())


@pytest.mark.parametrize("scope", ["batch", "own"])
def test_textures_join_negatives_of_simclr_and_moco(scope: str) -> None:
    z, t, bank = embeddings(2, 4, 5), embeddings(4, 3, 5), embeddings(7, 5)

    def exps(query: torch.Tensor, keys: torch.Tensor, factor: float) -> float:
        cosines = torch.nn.functional.cosine_similarity(query[None], keys)
        return (factor * cosines / 0.2).exp().sum().item()

    simclr = moco = 0.0
    for i in range(4):
        of_textures = t[i] if scope == "own" else t.flatten(0, 1)
        for v in (0, 1):
            others = torch.stack([z[w, j] for w in (0, 1) for j in range(4) if (w, j) != (v, i)])
            both = exps(z[v, i], others, 1) + exps(z[v, i], of_textures, 2)
            simclr -= math.log(exps(z[v, i], z[1 - v, i][None], 1) / both) / 8
        positive = exps(z[0, i], z[1, i][None], 1)
        moco -= math.log(positive / (positive + exps(z[0, i], bank, 1) + exps(z[0, i], of_textures, 2))) / 4
    assert nt_xent(z, z, (t, t), 0.2, 2.0, scope)[0].item() == pytest.approx(simclr, rel=1e-9)
    assert bank_nce(z[0], z[1], bank, t, 0.2, 2.0, scope)[0].item() == pytest.approx(moco, rel=1e-9)


@pytest.mark.parametrize("scope", ["batch", "own"])
def test_texture_similarity_is_to_images_own_textures(scope: str) -> None:
    t, bank, count, first = embeddings(8, 3, 5), embeddings(7, 5), 4, 2
    v, own = embeddings(2, count, 5)
    mine = torch.stack(
        [torch.nn.functional.cosine_similarity(v[i], t[first + i, k], dim=0) for i in range(4) for k in range(3)]
    )
    how = (t, 0.2, 2.0, scope, first)
    same = torch.zeros(count, len(bank), dtype=torch.bool)
    for _, stats in (bank_nce(v, own, bank, *how), pirl_nce(v, own, bank, same, *how)):
        torch.testing.assert_close(stats["texture_similarity"], mine.mean())


@pytest.mark.parametrize("name", SMALL)
def test_fixed_batch_is_learnt(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # The queue would fill with keys of the same images, which are positives.
    monkeypatch.setattr(METHODS["mocov2"].load(), "_enqueue", lambda *_: None)
    method, (content, draws) = make(name), batch()
    optimizer = build_optimizer(method, lr=0.05 if name != "barlow" else 0.01)
    losses = []
    for step in range(30):
        optimizer.zero_grad()
        loss, metrics = method(content, draws)
        loss.backward()
        optimizer.step()
        method.after_step(step, 30)
        losses.append(loss.item())
        assert "embedding_std" in metrics
    assert np.mean(losses[-3:]) < np.mean(losses[:3]) - 0.05


def test_queue_replaces_oldest_keys() -> None:
    method, (content, draws) = make("mocov2", queue=20), batch()
    before = method.queue.clone()
    list(method.loss_terms(content, draws))
    torch.testing.assert_close(method.queue.norm(dim=1), torch.ones(20))
    assert torch.equal(method.queue[8:], before[8:])
    [keys] = method._keys([method.weak(content["image"], draws.of(1))])
    torch.testing.assert_close(method.queue[:8], torch.nn.functional.normalize(keys, dim=1))
    short = make("mocov2", queue=5)
    list(short.loss_terms(content, draws))
    torch.testing.assert_close(short.queue, method.queue[3:8])  # more keys than places: the newest are kept
    list(method.loss_terms(content, draws))
    list(method.loss_terms(content, draws))  # keys 16 to 23 wrap around
    assert int(method.queue_at) == 4
    assert not (method.queue == before).all(1).any()
    assert {"queue", "queue_at"} <= method.state_dict().keys()


@pytest.mark.parametrize("name", ["mocov2", "simclr", "pirl"])
def test_textures_are_read_only_with_role_negative(name: str) -> None:
    content, draws = batch()
    _, with_them = make(name, texture_role="negative")(content, draws)
    assert "texture_similarity" in with_them
    _, without = make(name)({"image": content["image"]}, draws)
    assert "texture_similarity" not in without
    with pytest.raises(UserError, match="needs texture images"):
        make(name, texture_role="negative")({"image": content["image"]}, draws)


@pytest.mark.parametrize("name", ["mocov2", "simclr", "pirl"])
def test_texture_view_query_gives_texture_geometry_of_its_query(name: str) -> None:
    content, draws = batch()
    content["texture"] = content["image"][:, None]  # a texture then differs from its query only by its view
    similarity = {}
    for view in ("own", "query"):
        method = make(name, texture_role="negative", texture_view=view).eval()
        _, metrics = next(method.loss_terms(content, draws))
        similarity[view] = metrics["texture_similarity"].item()
    assert similarity["query"] == pytest.approx(1, abs=1e-5)
    assert similarity["own"] < 0.999
    with pytest.raises(UserError, match=r"unknown texture_view 'qury'.*did you mean 'query'"):
        make(name, texture_view="qury")


@pytest.mark.parametrize("name", ["byol", "simsiam", "barlow"])
def test_methods_without_negatives_refuse_textures(name: str) -> None:
    with pytest.raises(
        UserError, match=f"does not apply to {name}, which has no negatives.*sacl, fast-moco, mocov2, simclr"
    ):
        load_config(None, {"method": name, "texture_role": "negative"})


@pytest.mark.parametrize("name", METHODS)
def test_settings_out_of_range_are_refused(name: str) -> None:
    there = vars(METHODS[name].load().Settings())
    wrong = dict.fromkeys(("projector_hidden", "projector_out", "predictor_hidden", "queue", "negatives"), 0)
    wrong |= {"momentum": 1.5, "weight": -0.1, "bank_momentum": 1.0, "tau": 0.0, "redundancy": -1.0}
    wrong |= {"momentum_schedule": "cosin", "scope": "bach", "texture_view": "ow", "texture_role": "negativ"}
    tried = wrong.keys() & there.keys()
    assert "texture_role" in tried
    for key in tried:
        with pytest.raises(UserError, match=key):
            load_config(None, {"method": name, key: wrong[key]})


def test_baselines_defaults_apply_and_can_be_overridden() -> None:
    config = load_config(None, {"method": "mocov2"})
    chosen = (config.method, config.weak, config.attention, config.method_settings.queue)
    assert chosen == ("mocov2", "mocov2", "none", None)
    assert load_config(None, {"method": "mocov2", "weak": "geometric"}).weak == "geometric"
    assert load_config(None, {"method": "fast-moco"}).method_settings.texture_role == "none"
    with pytest.raises(UserError, match="no setting 'queue'"):
        load_config(None, {"queue": 3})


@pytest.mark.parametrize("name", SMALL)
def test_baseline_resumes_mid_epoch_bit_for_bit(name: str, shapes_shards: Path, tmp_path: Path) -> None:
    settings = {"method": name, "encoder": "se_resnet8", "width": 4, "stem": "cifar-stride2", "batch_size": 16}
    settings |= {"epochs": 2, "knn_every": 0, "save_every": 1, "keep": 9, "device": "cpu", **SMALL[name]}
    if name in ("mocov2", "simclr", "pirl"):
        settings["texture_role"] = "negative"
    config = load_config(None, settings)
    train(config, shapes_shards, tmp_path)
    whole = load_checkpoint(tmp_path)
    for checkpoint in sorted(tmp_path.glob("checkpoint-*.pt"))[3:]:
        checkpoint.unlink()
    train(config, shapes_shards, tmp_path)
    again = load_checkpoint(tmp_path)
    assert whole is not None
    assert again is not None
    assert all(torch.equal(whole["method"][key], again["method"][key]) for key in whole["method"])


@pytest.mark.parametrize("scope", ["batch", "own"])
def test_pirl_loss_equals_papers_formula(scope: str) -> None:
    v, own, bank, t = embeddings(4, 5), embeddings(1, 4, 5)[0], embeddings(7, 5), embeddings(4, 3, 5)
    same = torch.zeros(4, 7, dtype=torch.bool)
    same[2, 3] = True

    def exps(query: torch.Tensor, keys: torch.Tensor, factor: float) -> list[float]:
        return (factor * torch.nn.functional.cosine_similarity(query[None], keys) / 0.3).exp().tolist()

    expected = 0.0
    for i in range(4):
        textures = t[i] if scope == "own" else t.flatten(0, 1)
        positive = exps(v[i], own[i][None], 1)[0]
        others = exps(v[i], bank[~same[i]], 1) + exps(v[i], textures, 2)
        total = positive + sum(others)
        expected -= (math.log(positive / total) + sum(math.log(1 - other / total) for other in others)) / 4
    assert pirl_nce(v, own, bank, same, t, 0.3, 2.0, scope)[0].item() == pytest.approx(expected, rel=1e-9)


def test_jigsaw_shows_each_cell_once_and_moves_them() -> None:
    rows = torch.arange(27) // 9
    cells = (3 * rows[:, None] + rows[None, :]).float()  # the cell of each pixel
    places = torch.arange(27 * 27).view(27, 27).float()
    x = torch.stack([cells, places]).expand(40, 2, 27, 27)
    shown = cut_jigsaw(x, Draws(0, 0, torch.arange(40)).of(1))
    assert shown.shape == (40, 9, 2, 7, 7)  # 64/85 of 9
    which = shown[:, :, 0].flatten(2)
    assert (which == which[:, :, :1]).all()
    orders = which[:, :, 0]
    assert torch.equal(orders.sort(1).values, torch.arange(9.0).expand(40, 9))
    assert len({tuple(order) for order in orders.tolist()}) > 35
    corners = shown[:, :, 1, 0, 0]
    assert torch.equal(shown[:, :, 1], corners[..., None, None] + places[:7, :7])
    assert len((corners % 9).unique()) == 3


def test_pirl_bank_is_moving_average_and_each_step_draws_other_negatives() -> None:
    method, (content, draws) = make("pirl", bank_momentum=0.3), batch()
    before, unit = method.bank.clone(), torch.nn.functional.normalize
    list(method.loss_terms(content, draws))
    assert torch.equal(method.bank[8:], before[8:])
    seen = unit(method.projector(method.encoder(method.weak(content["image"], draws.of(0)))), dim=1)
    torch.testing.assert_close(method.bank[:8], unit(0.3 * before[:8] + 0.7 * seen, dim=1))
    first = method._draw_negatives(0)
    assert torch.equal(first, method._draw_negatives(0))
    assert not torch.equal(first, method._draw_negatives(1))
    method.after_step(0, 10)
    assert not torch.equal(first, method._draw_negatives(0))
    assert torch.equal(make("pirl", negatives=100)._draw_negatives(0), torch.arange(64))
    with pytest.raises(UserError, match="images of 8 px are too small for pirl"):
        METHODS["pirl"].load()(method.encoder, method.weak, (8, 8), method.settings)


def test_bank_has_row_for_each_image_of_shards(shapes_shards: Path, tmp_path: Path) -> None:
    settings = {"method": "pirl", "encoder": "se_resnet8", "width": 4, "stem": "cifar-stride2", "batch_size": 16}
    train(load_config(None, {**settings, "epochs": 1, "device": "cpu"}), shapes_shards, tmp_path)
    state = load_checkpoint(tmp_path)
    assert state is not None
    assert state["config"]["images"] == 64
    assert state["method"]["bank"].shape == (64, 128)
