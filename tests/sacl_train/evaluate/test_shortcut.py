"""Figures of the shortcut probe on embeddings with and without the shortcut."""

import json
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from torch.nn import functional as F

from sacl_train import train
from sacl_train.cli.evaluate import eval_main
from sacl_train.config import load_config
from sacl_train.evaluate import shortcut
from sacl_train.evaluate.shortcut import evaluate_shortcut, explain_similarities, tell_apart
from texturegen.builds import Recipe, build
from texturegen.errors import UserError

RUN = {"encoder": "se_resnet8", "width": 4, "stem": "cifar-stride2", "epochs": 0, "device": "cpu", "batch_size": 16}


def test_tell_apart_separates_only_shifted_textures() -> None:
    random = torch.Generator().manual_seed(0)
    images, textures = (torch.randn(400, 8, generator=random) for _ in range(2))
    assert tell_apart(images, textures + 20 * torch.eye(8)[0]) == 1
    assert 0.4 < tell_apart(images, textures) < 0.6


def test_one_direction_explains_common_shift_only() -> None:
    random = torch.Generator().manual_seed(0)
    base = F.normalize(torch.randn(200, 64, generator=random), dim=1)
    aside = torch.zeros(64)
    aside[0] = 1.0
    images = F.normalize(base + aside, dim=1)
    shortcut = explain_similarities(images, F.normalize(base - aside, dim=1))
    assert shortcut["one_direction"] > 0.9
    assert shortcut["own_texture"] > shortcut["other_textures"]
    instances = explain_similarities(base, F.normalize(base + 0.1 * torch.randn(200, 64, generator=random), dim=1))
    assert instances["one_direction"] < 0.1
    assert instances["own_share"] > 5 * instances["one_direction"]
    assert instances["other_images"] == pytest.approx(0, abs=0.01)


def test_evaluate_shortcut_measures_run(
    shapes_shards: Path, shapes_test_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(load_config(None, RUN), shapes_shards, tmp_path / "run")
    figures = evaluate_shortcut(tmp_path / "run", shapes_shards, "cpu")
    assert figures["images"] == 64
    assert 0.4 <= figures["told_apart"] <= 1
    assert -1 <= figures["other_textures"] <= figures["own_texture"] <= 1
    monkeypatch.setattr(shortcut, "MAX_BATCH", 63)  # 64 images: the last batch would have a single image
    assert evaluate_shortcut(tmp_path / "run", shapes_shards, "cpu")["told_apart"] == figures["told_apart"]
    with pytest.raises(UserError, match="these shards have no textures"):
        evaluate_shortcut(tmp_path / "run", shapes_test_shards, "cpu")
    build(Recipe("shapes", limit=1), tmp_path / "one")
    with pytest.raises(UserError, match="1 image; the comparison needs at least 2"):
        evaluate_shortcut(tmp_path / "run", tmp_path / "one", "cpu")


def test_command_prints_table(shapes_shards: Path, tmp_path: Path) -> None:
    train(load_config(None, RUN), shapes_shards, tmp_path / "run")
    options = ["--run", str(tmp_path / "run"), "--shards", str(shapes_shards), "--device", "cpu"]
    done = CliRunner().invoke(eval_main, ["shortcut", *options])
    assert done.exit_code == 0, done.output
    figures = json.loads((tmp_path / "run" / "eval-shortcut.json").read_text())
    assert {"command", "versions"} <= figures.keys()
    rows = dict(line.rsplit(maxsplit=1) for line in done.output.splitlines()[3:-1])
    assert rows["accuracy, textures against images (chance 50 %)"] == f"{figures['told_apart']:.1%}"
    assert rows["cosine of an image to its own texture"] == f"{figures['own_texture']:.3f}"
    assert len(rows) == 6
