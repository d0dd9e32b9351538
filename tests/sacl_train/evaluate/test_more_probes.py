"""Fine-tuning, the online probe, and the files of `embed`."""

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from click.testing import CliRunner
from torch.nn import functional as F

from sacl_train import train
from sacl_train.cli.evaluate import eval_main
from sacl_train.config import load_config
from sacl_train.evaluate.embed import embed, find_neighbours, map_pca
from sacl_train.evaluate.finetune import choose_share, evaluate_finetune, finetune
from sacl_train.evaluate.subject import open_subject
from sacl_train.training.online import OnlineProbe
from sacl_train.training.resume import load_encoder
from texturegen import open_shards
from texturegen.errors import UserError
from texturegen.storage.image import decode_image

RUN = {"encoder": "se_resnet8", "width": 8, "stem": "cifar-stride2", "epochs": 0, "device": "cpu", "batch_size": 16}


@pytest.fixture(scope="module")
def run(shapes_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("more") / "run"
    train(load_config(None, RUN), shapes_shards, out)
    return out


def test_fraction_covers_every_class_and_is_subset_of_larger_ones() -> None:
    labels = np.array([0] * 200 + [1] * 50 + [2] * 3 + [-1] * 40)
    shares = [choose_share(labels, share) for share in (0.01, 0.1, 1.0)]
    assert [np.bincount(labels[picked]).tolist() for picked in shares] == [[2, 1, 1], [20, 5, 1], [200, 50, 3]]
    assert set(shares[0]) < set(shares[1]) < set(shares[2])
    assert not np.array_equal(choose_share(labels, 0.1, seed=1), shares[1])


def test_fine_tuning_fits_its_training_images_and_does_not_change_run(run: Path, shapes_shards: Path) -> None:
    before = load_encoder(run)[0].state_dict()
    figures = evaluate_finetune(
        run, shapes_shards, [shapes_shards], "cpu", shares=(0.1, 1.0), epochs=40, lr=0.05, batch_size=16
    )
    some, everything = figures["test"]
    assert (some["train_images"], everything["train_images"]) == (10, 64)
    assert some["top1"] < everything["top1"]
    assert everything["top1"] > 0.6  # on its own training images, of ten classes
    after = load_encoder(run)[0].state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    with pytest.raises(UserError, match=r"must be above 0 and at most 1, not 2"):
        evaluate_finetune(run, shapes_shards, [shapes_shards], "cpu", shares=(2,))


def test_images_that_do_not_fit_into_memory_are_read_in_each_epoch(
    run: Path, shapes_shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tuned = []
    for budget in (64 * 3 * 32 * 32, 64 * 3 * 32 * 32 - 1):
        monkeypatch.setattr("sacl_train.evaluate.finetune.cache_budget", lambda budget=budget: budget)
        monkeypatch.setattr("sacl_train.evaluate.images.BATCH", 20)
        with open_subject(run, shapes_shards, "cpu") as subject:
            tuned.append(finetune(subject, np.arange(64), epochs=2, batch_size=15).state_dict())
        monkeypatch.setattr("sacl_train.evaluate.finetune._read", None)  # the second time, the images do not fit
    assert all(torch.equal(mine, its) for mine, its in zip(*(state.values() for state in tuned), strict=True))


def test_fine_tuning_that_diverges_is_reported(run: Path, shapes_shards: Path) -> None:
    with open_subject(run, shapes_shards, "cpu") as subject, pytest.raises(UserError, match="on 16 images diverged"):
        finetune(subject, np.arange(16), epochs=3, batch_size=8, lr=1e30, head_lr=1e30)


def test_fine_tuning_trains_target_network_too(run: Path, shapes_shards: Path) -> None:
    with open_subject(run, shapes_shards, "cpu", network="target") as subject:
        tuned = finetune(subject, np.arange(16), epochs=1, batch_size=8)[0]
        changed = [
            not torch.equal(mine, its)
            for mine, its in zip(tuned.parameters(), subject.encoder.parameters(), strict=True)
        ]
    assert any(changed)


def test_online_probe_scores_each_batch_before_it_learns_from_it(run: Path, shapes_shards: Path) -> None:
    encoder, config, _ = load_encoder(run)
    shards = open_shards(shapes_shards)
    labels = torch.from_numpy(shards.labels).clone()
    labels[40:] = -1
    images = torch.from_numpy(np.stack([sample.image for sample in shards])).permute(0, 3, 1, 2)
    probe = OnlineProbe(encoder.out_features, labels)
    batch = {"image": images, "index": torch.arange(64)}
    scores = [probe.step(encoder, batch, config)["online_top1"].item() for _ in range(60)]
    assert scores[0] == pytest.approx((labels[:40] == 0).float().mean().item())  # all logits are 0: the first class
    assert scores[-1] > 0.7
    assert all(p.grad is None for p in encoder.parameters())


def test_embed_writes_keys_map_and_neighbours(run: Path, shapes_shards: Path, tmp_path: Path) -> None:
    for method in ("pca", "tsne"):
        embed(run, shapes_shards, tmp_path / method, "cpu", method=method)
        table = pq.read_table(tmp_path / f"{method}.parquet")
        assert table["key"].to_pylist() == open_shards(shapes_shards).keys
        features = np.stack(table["features"].to_numpy(zero_copy_only=False))
        flat = np.stack([table["x"].to_numpy(), table["y"].to_numpy()], 1)
        assert features.shape == (64, load_encoder(run)[0].out_features)
        assert np.isfinite(flat).all()
        assert (flat.std(0) > 0).all()
        assert decode_image((tmp_path / f"{method}.png").read_bytes()).shape == (10 * 68, 9 * 68 + 12, 3)
    with pytest.raises(UserError, match="did you mean 'tsne'"):
        embed(run, shapes_shards, tmp_path / "x", "cpu", method="tnse")


def test_embed_prints_and_writes_neighbours_of_queries(run: Path, shapes_shards: Path) -> None:
    keys = open_shards(shapes_shards).keys
    options = ["embed", "--run", str(run), "--images", str(shapes_shards), "--device", "cpu"]
    done = CliRunner().invoke(eval_main, [*options, "--query", keys[5], "--query", keys[2]])
    assert done.exit_code == 0, done.output
    figures = json.loads((run / "eval-embed.json").read_text())
    assert [query["key"] for query in figures["queries"]] == [keys[5], keys[2]]
    assert {"command", "versions"} <= figures.keys()
    table = pq.read_table(run / "embedding.parquet")
    features = F.normalize(torch.from_numpy(np.stack(table["features"].to_numpy(zero_copy_only=False))), dim=1)
    cosines = features @ features[5]
    first, second, *_ = figures["queries"][0]["neighbours"]
    assert first["key"] == keys[cosines.argsort(descending=True)[1]]
    assert 1 >= first["cosine"] >= second["cosine"]
    assert first["key"] in done.output
    assert decode_image((run / "embedding.png").read_bytes()).shape == (2 * 68, 9 * 68 + 12, 3)
    options[options.index("--images")] = "--shards"
    done = CliRunner().invoke(eval_main, [*options, "--query", keys[5] + "x"])
    assert done.exit_code == 1
    assert f"did you mean '{keys[5]}'" in done.output


def test_map_pca_finds_principal_plane_and_neighbours_are_nearest() -> None:
    random = torch.Generator().manual_seed(0)
    plane = torch.randn(50, 2, generator=random) * torch.tensor([9.0, 4.0])
    turn = torch.linalg.qr(torch.randn(6, 6, generator=random)).Q
    flat = map_pca(plane @ turn[:2] + 3)
    expected = plane - plane.mean(0)
    products = [points @ points.T for points in (torch.from_numpy(flat), expected)]
    torch.testing.assert_close(*products, rtol=1e-4, atol=1e-3)
    angles = torch.tensor([0.0, 0.1, 0.3, 2.0, 2.05])
    circle = torch.stack([angles.cos(), angles.sin()], 1)
    assert find_neighbours(circle, torch.tensor([0, 4]), 2)[0].tolist() == [[1, 2], [3, 2]]
