"""The segmenter of pasted textures: its data, its score, and a short run."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pipelines.reuse import defects
from texturegen import open_shards
from texturegen.builds import Recipe, build

RECIPE = Recipe("shapes", limit=20, per_image=2, paste=True)


@pytest.fixture(scope="module")
def pasted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("defects")
    build(RECIPE, out / "train")
    build(replace(RECIPE, split="test", limit=4), out / "other")
    return out


class Exact(defects.Segmenter):
    """Knows the untouched images."""

    def __init__(self, images: torch.Tensor) -> None:
        super().__init__()
        self.images = images

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x - self.images.float() / 255).abs().sum(1)


def test_batches_hold_pasted_and_untouched_images(pasted: Path) -> None:
    data = defects.load(open_shards(pasted / "train"), range(4, 8))
    images, changed, masks = data
    assert [tuple(part.shape) for part in data] == [(8, 3, 32, 32), (8, 3, 32, 32), (8, 32, 32)]
    assert (images != changed).any(1)[masks].float().mean() > 0.8  # a texture may have the pixel's colour
    batches = list(defects.batches(data, 6, torch.Generator().manual_seed(0)))
    assert [len(x) for x, _ in batches] == [6, 6, 4]
    for x, y in batches:
        half = len(x) // 2
        assert not y[half:].any()
        assert y[:half].flatten(1).any(1).all()
    found = torch.cat([y for _, y in batches])
    assert found.sum() == masks.sum()
    torch.testing.assert_close(defects.balance(masks) * found.sum(), (1 - found).sum())


def test_auroc_is_that_of_the_pixels(pasted: Path) -> None:
    data = defects.load(open_shards(pasted / "train"), range(4))
    assert defects.pixel_auroc(Exact(data[0]), data) > 0.9
    swapped = (data[0], data[1], ~data[2])
    assert defects.pixel_auroc(Exact(data[0]), swapped) < 0.1


def test_a_short_run_prints_both_scores(pasted: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = ["--shards", str(pasted / "train"), "--other", str(pasted / "other"), "--epochs", "2", "--batch-size", "8"]
    defects.main(line)
    printed = capsys.readouterr().out
    losses = [float(text) for text in re.findall(r"loss (\S+)", printed)]
    assert len(losses) == 2
    scores = re.findall(r"pixel AUROC, (held out|other images): (0\.\d+|1\.000) \((\d+) images\)", printed)
    assert [(name, count) for name, _, count in scores] == [("held out", "4"), ("other images", "8")]
