"""Probes against slow formulas and hand-made features."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from sacl_train import train
from sacl_train.config import load_config
from sacl_train.data.weak import normalise
from sacl_train.evaluate import ridge, standardise
from sacl_train.evaluate.features import Features, FeatureStore, extract_features
from sacl_train.evaluate.images import ShardImages, open_images
from sacl_train.evaluate.knn import fit_knn, knn_accuracy, knn_predict
from sacl_train.evaluate.linear import RATES, fit_linear, sweep_rates
from sacl_train.evaluate.probe import evaluate, score, shuffle_cells
from sacl_train.training.resume import load_encoder
from texturegen import open_shards
from texturegen.builds import Recipe, build
from texturegen.errors import UserError

TINY = {"encoder": "se_resnet8", "width": 4, "stem": "cifar-stride2", "projector_hidden": 16, "epochs": 0}


@pytest.fixture(scope="module")
def run(shapes_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "untrained"
    settings = {**TINY, "projector_out": 16, "predictor_hidden": 8, "device": "cpu", "batch_size": 16}
    train(load_config(None, settings), shapes_shards, out)
    return out


def test_knn_equals_slow_vote() -> None:
    generator = torch.Generator().manual_seed(0)
    bank, queries = torch.randn(30, 5, generator=generator), torch.randn(7, 5, generator=generator)
    labels = torch.randint(0, 4, (30,), generator=generator)
    scores = knn_predict(bank, labels, queries, k=6, tau=0.3)
    for query, votes in zip(queries.tolist(), scores.tolist(), strict=True):
        cosines = []
        for row, label in zip(bank.tolist(), labels.tolist(), strict=True):
            dot = sum(a * b for a, b in zip(query, row, strict=True))
            cosines.append((dot / math.hypot(*query) / math.hypot(*row), label))
        expected = [0.0] * 4
        for cosine, label in sorted(cosines, reverse=True)[:6]:
            expected[label] += math.exp((cosine - max(cosines)[0]) / 0.3)
        assert votes == pytest.approx(expected, rel=1e-4)


def test_knn_on_its_own_bank_is_perfect() -> None:
    bank = torch.randn(600, 8, generator=torch.Generator().manual_seed(0))  # more than one chunk
    labels = torch.arange(600) % 3
    assert knn_accuracy(bank, labels, bank, labels, k=1) == 1.0
    assert knn_predict(bank, labels, bank[:2], k=10_000).shape == (2, 3)
    assert torch.equal(knn_predict(bank, labels, bank, k=5, tau=1e-4).argmax(1), labels)
    for name, votes in fit_knn(bank, labels, k=(1, 5), tau=0.2).items():
        expected = knn_predict(bank, labels, bank[:9], k=int(name.removeprefix("k=")), tau=0.2)
        assert torch.equal(votes(bank[:9]), expected)
    with pytest.raises(UserError, match="k must be at least 1"):
        knn_predict(bank, labels, bank, k=0)


def test_linear_fits_linear_labels_but_not_noise() -> None:
    generator = torch.Generator().manual_seed(0)
    features = 1e-3 * torch.randn(600, 10, generator=generator) + 5  # far from standardised
    labels = features[:, :3].argmax(1)
    noise = torch.randint(0, 3, (600,), generator=generator)
    for target, low, high in ((labels, 0.85, 1.0), (noise, 0.15, 0.5)):
        logits = fit_linear(features[:400], target[:400], epochs=200)[""](features[400:])
        assert low <= (logits.argmax(1) == target[400:]).float().mean() <= high


def test_linear_ignores_constant_dimension_and_fits_single_image() -> None:
    features = torch.randn(600, 8, generator=torch.Generator().manual_seed(0))
    labels = features[:, :3].argmax(1)
    features[:, 5] = 100.1  # whose float32 mean is not 100.1
    without = features.index_fill(1, torch.tensor([5]), 0)
    expected = fit_linear(without, labels, epochs=5)[""](without)
    assert torch.equal(fit_linear(features, labels, epochs=5)[""](features), expected)
    with pytest.raises(UserError, match="the linear probe diverged at lr 1e\\+06"):
        fit_linear(without, labels, epochs=20, lr=1e6)
    logits = fit_linear(features[:1], torch.tensor([2]), epochs=2)[""](features[:4])
    assert logits.argmax(1).tolist() == [2] * 4
    with pytest.raises(UserError, match="there is only one; set lr to a number"):
        sweep_rates(features[:1], labels[:1])


def test_linear_uses_adaptive_lars_and_is_repeatable(monkeypatch: pytest.MonkeyPatch) -> None:
    from sacl_train.evaluate import linear

    made = []
    lars = linear.Lars
    monkeypatch.setattr(linear, "Lars", lambda *a, **k: made.append(lars(*a, **k)) or made[-1])
    features, labels = torch.randn(40, 6, generator=torch.Generator().manual_seed(1)), torch.arange(40) % 4
    first, second = (fit_linear(features, labels, epochs=2, batch_size=16)[""](features) for _ in range(2))
    assert torch.equal(first, second)
    assert made[0].defaults["always_adapt"] is True


def test_features_are_of_whole_normalised_images_in_eval_mode(run: Path, shapes_shards: Path) -> None:
    encoder, config, _ = load_encoder(run)
    encoder.train()
    shards = open_shards(shapes_shards)
    features, read = extract_features(encoder, ShardImages(shards), config, torch.device("cpu"), np.array([3, 60, 5]))
    assert encoder.training
    assert read.tolist() == [3, 60, 5]
    encoder.eval()
    images = torch.from_numpy(np.stack([shards[i].image for i in (3, 60, 5)])).permute(0, 3, 1, 2)
    with torch.no_grad():
        torch.testing.assert_close(features, encoder(normalise(images, config.mean, config.std)))


@pytest.mark.parametrize(("probe", "settings"), [("knn", {"k": (5,)}), ("linear", {"epochs": 5})])
def test_probe_scores_every_test_set(
    run: Path,
    shapes_shards: Path,
    shapes_test_shards: Path,
    probe: str,
    settings: dict,
    capsys: pytest.CaptureFixture[str],
) -> None:
    figures = evaluate(probe, run, shapes_shards, [shapes_test_shards, shapes_shards], "cpu", **settings)
    assert capsys.readouterr().err.count("the training images of the probe") == 1
    conflict, training = figures["test"]
    assert (conflict["split"], conflict["images"], training["images"]) == ("conflict", 40, 64)
    assert figures["settings"] == settings
    for test in figures["test"]:
        assert 0 <= test["top1"] <= test["top5"] <= 1
    # No conflict image has the texture of its own class, so the two decisions exclude each other.
    assert conflict["top1"] + conflict["texture_decisions"] <= 1
    json.dumps(figures)


def test_texture_decisions_count_predictions_of_texture_class(shapes_test_shards: Path) -> None:
    test = open_images(shapes_test_shards)
    assert test.textures is not None
    labels = torch.from_numpy(test.labels)
    of = Features(torch.empty(0), labels, torch.arange(len(test)))
    by_texture = score(test, torch.nn.functional.one_hot(torch.from_numpy(test.textures), 10).float(), of)
    by_shape = score(test, torch.nn.functional.one_hot(labels, 10).float(), of)
    assert (by_texture["top1"], by_texture["texture_decisions"]) == (0, 1)
    assert (by_shape["top1"], by_shape["texture_decisions"]) == (1, 0)


def test_errors_name_set_that_cannot_be_scored(
    run: Path, shapes_shards: Path, image_folder: Path, tmp_path: Path
) -> None:
    build(Recipe("folder", per_image=0), tmp_path / "named", root=str(image_folder))
    build(Recipe("folder", per_image=0), tmp_path / "flat", root=str(image_folder / "cats"))
    with pytest.raises(
        UserError, match=r"its classes differ from those of .* \(without disc, .*, \.\.\., with cats, eyes\)"
    ):
        evaluate("knn", run, shapes_shards, [tmp_path / "named"], "cpu")
    with pytest.raises(UserError, match="no labelled images"):
        evaluate("knn", run, tmp_path / "flat", [shapes_shards], "cpu")
    with pytest.raises(UserError, match="no checkpoint here"):
        evaluate("knn", tmp_path, shapes_shards, [shapes_shards], "cpu")
    with pytest.raises(UserError, match="neither shards of `texturegen build`, nor a folder of class folders"):
        evaluate("knn", run, shapes_shards, [image_folder / "cats"], "cpu")
    with pytest.raises(UserError, match=r"images of \(16, 16\) px, but \(32, 32\) px"):
        evaluate("knn", run, shapes_shards, ["shapes:test"], "cpu", size=16)


@pytest.mark.parametrize("piece", [8192, 16])
def test_ridge_is_least_squares_with_penalty(piece: int, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (ridge, standardise):
        monkeypatch.setattr(module, "PIECE", piece)
    generator = torch.Generator().manual_seed(0)
    x, q = torch.randn(40, 6, generator=generator), torch.randn(5, 6, generator=generator)
    labels = torch.randint(0, 3, (40,), generator=generator)
    scores = ridge.fit_ridge(x, labels, penalty=0.1)[""](q)
    mean, std = x.double().mean(0), x.double().std(0)
    a, b = ((x - mean) / std).numpy(), ((q - mean) / std).numpy()
    one_hot = np.eye(3)[labels.numpy()]
    centre = one_hot.mean(0)
    stacked = np.vstack([a, np.sqrt(0.1 * 40) * np.eye(6)])  # the penalty as additional rows
    weights = np.linalg.lstsq(stacked, np.vstack([one_hot - centre, np.zeros((6, 3))]), rcond=None)[0]
    np.testing.assert_allclose(scores.numpy(), b @ weights + centre, atol=1e-6)
    for wrong in (0.0, math.nan, math.inf):
        with pytest.raises(UserError, match="penalty must be a finite number above 0"):
            ridge.fit_ridge(x, labels, penalty=wrong)


def test_shuffled_images_are_scored_too(run: Path, shapes_shards: Path, shapes_test_shards: Path) -> None:
    plain = evaluate("ridge", run, shapes_shards, [shapes_test_shards], "cpu")["test"][0]
    both = evaluate("ridge", run, shapes_shards, [shapes_test_shards], "cpu", destroy=True)["test"][0]
    again = evaluate("ridge", run, shapes_shards, [shapes_test_shards], "cpu", destroy=True)["test"][0]
    assert again == both  # from cached features
    assert {name: both[name] for name in plain} == plain
    assert 0 <= both["destroyed"] <= 1
    images = torch.arange(32 * 32).view(1, 1, 32, 32).remainder(251).to(torch.uint8).repeat(2, 3, 1, 1)
    shuffled = shuffle_cells(images, np.array([4, 9]))
    assert not torch.equal(shuffled[0], shuffled[1])
    assert torch.equal(shuffle_cells(images[1:], np.array([9])), shuffled[1:])
    assert torch.equal(shuffled.flatten(1).sort(1).values, images.flatten(1).sort(1).values)


def test_sweep_scores_every_rate_on_tenth_of_training_images() -> None:
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(400, 10, generator=generator)
    labels = features[:, :3].argmax(1)
    found = sweep_rates(features, labels, epochs=30, batch_size=64)
    assert list(found) == list(RATES)
    assert max(found.values()) > 0.85
    held = round(0.1 * 400)
    assert all((accuracy * held) == pytest.approx(round(accuracy * held), abs=1e-4) for accuracy in found.values())


def test_sweep_does_not_train_on_held_out_images() -> None:
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(200, 400, generator=generator)  # enough dimensions to memorise any labels
    labels = torch.randint(0, 4, (200,), generator=generator)
    learnt = fit_linear(features, labels, epochs=30, lr=RATES[-1], batch_size=50)[""](features)
    assert (learnt.argmax(1) == labels).float().mean() > 0.95
    assert max(sweep_rates(features, labels, epochs=30, batch_size=50).values()) <= 0.5


def test_linear_has_cosine_decay_and_seeded_order(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from sacl_train.evaluate import linear

    rates: list[float] = []

    class Recorded(linear.Lars):
        def step(self, *given: object) -> None:
            rates.append(self.param_groups[0]["lr"])
            super().step(*given)

    monkeypatch.setattr(linear, "Lars", Recorded)
    generator = torch.Generator().manual_seed(0)
    features, labels = torch.randn(40, 6, generator=generator), torch.arange(40) % 4
    first = fit_linear(features, labels, epochs=3, lr=0.4, batch_size=20, seed=1)[""](features)
    assert rates == pytest.approx([0.2 * (1 + math.cos(math.pi * step / 6)) for step in range(6)])
    assert not torch.equal(fit_linear(features, labels, 3, 0.4, 20, seed=2)[""](features), first)


def test_sweep_reports_chosen_rate(run: Path, shapes_shards: Path, shapes_test_shards: Path) -> None:
    figures = evaluate("linear", run, shapes_shards, [shapes_test_shards], "cpu", epochs=3, lr="sweep")
    assert figures["chosen_lr"] in RATES
    assert figures["sweep"][figures["chosen_lr"]] == max(figures["sweep"].values())
    chosen = evaluate("linear", run, shapes_shards, [shapes_test_shards], "cpu", epochs=3, lr=figures["chosen_lr"])
    assert figures["test"] == chosen["test"]


def test_files_and_their_shards_give_same_figures(
    run: Path, shapes_shards: Path, shapes_test_shards: Path, image_folder: Path, tmp_path: Path
) -> None:
    build(Recipe("shapes", split="conflict", per_image=0), tmp_path / "conflict")
    mine = evaluate("knn", run, shapes_shards, ["shapes:conflict"], "cpu", k=(5,))["test"][0]
    its = evaluate("knn", run, shapes_shards, [tmp_path / "conflict"], "cpu", k=(5,))["test"][0]
    assert {**mine, "set": ""} == {**its, "set": ""}
    (image_folder / "eyes" / "9.png").write_bytes(b"no image")
    folder = open_images(image_folder)
    assert (len(folder), folder.size, folder.classes) == (7, (32, 32), ["cats", "eyes"])
    batches = list(folder.batches())
    assert [len(batch["index"]) for batch in batches] == [6]
    assert (folder.labels[batches[0]["index"].numpy()] >= 0).all()


def test_features_are_cached_until_weights_change(run: Path, shapes_shards: Path, tmp_path: Path) -> None:
    encoder, config, _ = load_encoder(run)
    images = open_images(shapes_shards)
    first = FeatureStore(tmp_path, encoder, config, torch.device("cpu")).get(images)
    (kept,) = (tmp_path / "features").iterdir()
    stamp = kept.stat().st_mtime_ns
    again = FeatureStore(tmp_path, encoder, config, torch.device("cpu")).get(images)
    assert torch.equal(first.values, again.values)
    assert kept.stat().st_mtime_ns == stamp
    with torch.no_grad():
        next(encoder.parameters()).mul_(1.5)
    other = FeatureStore(tmp_path, encoder, config, torch.device("cpu")).get(images)
    assert not torch.equal(first.values, other.values)
    (only,) = set((tmp_path / "features").iterdir()) - {kept}
    data = only.read_bytes()
    for damaged in (b"damaged", data[:-1] + bytes([data[-1] ^ 1])):
        only.write_bytes(damaged)
        found = FeatureStore(tmp_path, encoder, config, torch.device("cpu")).get(images)
        assert torch.equal(found.values, other.values)
        assert torch.equal(found.labels, other.labels)
    assert only.read_bytes() == data


def test_cache_keeps_features_of_last_two_checkpoints(run: Path, shapes_shards: Path, tmp_path: Path) -> None:
    encoder, config, _ = load_encoder(run)
    images, files = open_images(shapes_shards), []
    for scale in (1.0, 1.5, 0.5):
        with torch.no_grad():
            next(encoder.parameters()).mul_(scale)
        before = set((tmp_path / "features").iterdir()) if files else set()
        FeatureStore(tmp_path, encoder, config, torch.device("cpu")).get(images)
        files += set((tmp_path / "features").iterdir()) - before
    assert set((tmp_path / "features").iterdir()) == set(files[1:])


def test_cache_depends_on_images_and_normalisation(run: Path, shapes_shards: Path, tmp_path: Path) -> None:
    encoder, config, _ = load_encoder(run)
    images = open_images(shapes_shards)
    store = FeatureStore(tmp_path, encoder, config, torch.device("cpu"))
    whole, dark = store.get(images), store.get(images, lambda x, numbers: x // 4, "dark")
    assert not torch.equal(whole.values, dark.values)
    brighter = FeatureStore(tmp_path, encoder, replace(config, mean=(0.1, 0.1, 0.1)), torch.device("cpu")).get(images)
    assert not torch.equal(whole.values, brighter.values)
    assert torch.equal(store.get(images).values, whole.values)


def test_features_exclude_unlabelled_images(run: Path, shapes_shards: Path, tmp_path: Path) -> None:
    encoder, config, _ = load_encoder(run)
    images = ShardImages(open_shards(shapes_shards))
    images.labels = images.labels.copy()
    images.labels[[0, 7]] = -1
    found = FeatureStore(tmp_path, encoder, config, torch.device("cpu")).get(images)
    assert found.numbers.tolist() == [number for number in range(64) if number not in (0, 7)]
    assert found.labels.tolist() == images.labels[found.numbers.numpy()].tolist()
    assert len(found.values) == 62


def test_features_that_are_missing_or_not_finite_are_refused(run: Path, shapes_shards: Path) -> None:
    encoder, config, _ = load_encoder(run)
    images = ShardImages(open_shards(shapes_shards))
    with torch.no_grad():
        next(encoder.parameters()).fill_(float("nan"))
    with pytest.raises(UserError, match="features are not finite"):
        extract_features(encoder, images, config, torch.device("cpu"))
    with pytest.raises(UserError, match="none of the images could be read"):
        extract_features(encoder, images, config, torch.device("cpu"), np.array([], int))
