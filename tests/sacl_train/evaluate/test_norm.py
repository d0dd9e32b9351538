"""BatchNorm statistics of probes, the network that they score, and the run's arithmetic."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from sacl_train import train
from sacl_train.config import load_config
from sacl_train.data.weak import normalise
from sacl_train.evaluate import features as features_module
from sacl_train.evaluate import norm
from sacl_train.evaluate.features import FeatureStore, extract_features
from sacl_train.evaluate.images import ShardImages, open_images
from sacl_train.evaluate.norm import estimate_statistics, resolve_statistics
from sacl_train.evaluate.probe import evaluate
from sacl_train.evaluate.subject import open_model, open_subject
from sacl_train.training.resume import load_networks
from texturegen import open_shards
from texturegen.errors import UserError

CPU = torch.device("cpu")
TINY = {"encoder": "se_resnet8", "width": 4, "stem": "cifar-stride2", "device": "cpu", "batch_size": 16}
HEADS = {"projector_hidden": 16, "projector_out": 16}
CONFIG = load_config(None, {**TINY, "mean": [0.5] * 3, "std": [0.25] * 3})


def make_run(shards: Path, out: Path, **settings: object) -> Path:
    train(load_config(None, {**TINY, "epochs": 1, "knn_every": 0, **settings}), shards, out)
    return out


@pytest.fixture(scope="module")
def run(shapes_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    settings = {**HEADS, "predictor_hidden": 8, "lr": 0.5, "momentum": 0.5}
    return make_run(shapes_shards, tmp_path_factory.mktemp("norm") / "run", **settings)


def test_statistics_are_average_of_those_of_batches(shapes_shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(norm, "BATCH", 24)
    images = ShardImages(open_shards(shapes_shards))
    layer = nn.BatchNorm2d(3, momentum=0.3)
    layer.running_mean += 7
    network = nn.Sequential(layer).eval()
    batches = images.batches

    def in_24s(order: np.ndarray, threads: int | None) -> list:
        return [next(iter(batches(part, threads))) for part in np.split(order, len(order) // 24)]

    monkeypatch.setattr(images, "batches", in_24s)
    estimate_statistics(network, images, CONFIG, CPU)
    order = np.random.default_rng(0).permutation(64)[:48]  # the rest of 16 would count as much as a batch of 24
    pixels = torch.stack([torch.from_numpy(images.shards[i].image.copy()) for i in order]).permute(0, 3, 1, 2)
    of_channel = normalise(pixels, CONFIG.mean, CONFIG.std).double().transpose(0, 1)  # (3, 48, H, W)
    means = torch.stack([of_channel[:, i : i + 24].mean((1, 2, 3)) for i in (0, 24)]).mean(0)
    variances = torch.stack([of_channel[:, i : i + 24].flatten(1).var(1) for i in (0, 24)]).mean(0)
    torch.testing.assert_close(layer.running_mean.double(), means, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(layer.running_var.double(), variances, rtol=1e-4, atol=1e-5)
    assert (layer.momentum, layer.training) == (0.3, False)


def test_statistics_need_two_images_and_a_norm(shapes_shards: Path) -> None:
    images = ShardImages(open_shards(shapes_shards))
    estimate_statistics(nn.Conv2d(3, 2, 1), images, CONFIG, CPU, np.array([3]))  # nothing to estimate
    with pytest.raises(UserError, match="at least 2 images, not 1; use --norm-statistics training"):
        estimate_statistics(nn.BatchNorm2d(3), images, CONFIG, CPU, np.array([3]))


@pytest.mark.parametrize("network", ["online", "target"])
def test_features_are_of_chosen_network_and_statistics(run: Path, shapes_shards: Path, network: str) -> None:
    method, config, _ = load_networks(run)
    encoder = method.encoder if network == "online" else method.target_encoder
    images = open_images(shapes_shards)
    expected = {"training": extract_features(encoder, images, config, CPU)[0]}
    estimate_statistics(encoder, images, config, CPU)
    expected["images"] = extract_features(encoder, images, config, CPU)[0]
    assert not torch.allclose(*expected.values(), rtol=0.05)
    for statistics, values in expected.items():
        with open_subject(run, shapes_shards, "cpu", network=network, norm_statistics=statistics) as subject:
            torch.testing.assert_close(subject.features.values, values)
            about = subject.about()
        assert (about["network"], about["norm_statistics"], about["precision"]) == (network, statistics, "fp32")


def test_statistics_are_estimated_once_per_training_set(
    run: Path, shapes_shards: Path, shapes_test_shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    method, config, _ = load_networks(run)
    sets = [open_images(place) for place in (shapes_shards, shapes_test_shards)]
    first = FeatureStore(run, method.encoder, config, CPU, sets[0]).get(sets[0]).values
    encoder = load_networks(run)[0].encoder
    with monkeypatch.context() as patch:
        patch.setattr(features_module, "estimate_statistics", None)
        again = FeatureStore(run, encoder, config, CPU, sets[0])
        assert torch.equal(again.get(sets[0]).values, first)
    images = extract_features(again.encoder, sets[0], config, CPU)[0]
    torch.testing.assert_close(images, first)  # the cached statistics are in the encoder, not only in the features
    other = FeatureStore(run, load_networks(run)[0].encoder, config, CPU, sets[1]).get(sets[0]).values
    assert not torch.allclose(other, first, rtol=0.01)


def test_mistakes_about_network_and_statistics_are_one_line(run: Path, shapes_shards: Path, tmp_path: Path) -> None:
    simclr = make_run(shapes_shards, tmp_path / "simclr", method="simclr", epochs=0)
    for settings, message in (
        ({"network": "target"}, "method simclr has no target network; use --network online"),
        ({"network": "taget"}, "unknown network 'taget' .did you mean 'target'"),
        ({"norm_statistics": "image"}, "unknown norm_statistics 'image' .did you mean 'images'"),
    ):
        with pytest.raises(UserError, match=message), open_model(simclr, "cpu", **settings):
            pass


def test_statistics_of_other_programs_are_kept_unless_asked() -> None:
    with_norm, without = nn.BatchNorm2d(3), nn.Conv2d(3, 2, 1)
    assert [resolve_statistics("auto", with_norm, is_foreign) for is_foreign in (False, True)] == ["images", "training"]
    assert [resolve_statistics(name, with_norm, True) for name in ("images", "training")] == ["images", "training"]
    assert resolve_statistics("images", without) == "none"


def test_images_of_another_size_are_named(run: Path, shapes_shards: Path, capsys: pytest.CaptureFixture) -> None:
    evaluate("ridge", run, shapes_shards, [shapes_shards], "cpu")
    assert "trained on" not in capsys.readouterr().err
    evaluate("ridge", run, "shapes:test", ["shapes:test"], "cpu", size=16)
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "trained on" in line]
    assert f"shapes:test: images of 16 x 16 px, but {run} was trained on 32 x 32 px" in line


def test_run_decides_arithmetic_and_precision(shapes_shards: Path, tmp_path: Path) -> None:
    out = make_run(shapes_shards, tmp_path / "run", precision="bf16", deterministic=True, epochs=0)
    dtypes: list[torch.dtype] = []
    before = torch.are_deterministic_algorithms_enabled()
    with open_model(out, "cpu") as model:
        assert torch.are_deterministic_algorithms_enabled()
        model.encoder.register_forward_hook(lambda _, given, made: dtypes.append(made.dtype))
        values, _ = extract_features(model.encoder, open_images(shapes_shards), model.config, CPU)
    assert torch.are_deterministic_algorithms_enabled() == before
    assert dtypes == [torch.bfloat16]
    assert values.dtype == torch.float32
