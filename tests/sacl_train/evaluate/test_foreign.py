"""Probes of encoders that other programs trained."""

import json
from pathlib import Path

import pytest
import timm
import torch
from click.testing import CliRunner

from sacl_train.cli.evaluate import eval_main
from sacl_train.evaluate.features import encode_images
from sacl_train.evaluate.foreign import load_foreign
from sacl_train.nets.encoder_file import EncoderFile


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of MoCo's layout with a small ResNet of timm."""
    torch.manual_seed(0)
    state = timm.create_model("test_resnet").state_dict()
    path = tmp_path_factory.mktemp("foreign") / "moco v2.pth"
    torch.save({"arch": "x", "state_dict": {f"module.encoder_q.{name}": t for name, t in state.items()}}, path)
    return path


@pytest.mark.parametrize(
    "line",
    [
        ["knn", "--k", "5", "--train", "SHARDS", "--test", "SHARDS"],
        ["linear", "--epochs", "2", "--train", "SHARDS", "--test", "SHARDS"],
        ["finetune", "--epochs", "1", "--share", "1", "--train", "SHARDS", "--test", "SHARDS"],
        ["shape-bias", "--epochs", "2", "--train", "SHARDS", "--stimuli", "shapes:conflict"],
        ["embed", "--images", "SHARDS"],
    ],
    ids=lambda line: line[0],
)
def test_every_probe_scores_a_file(
    line: list[str], weights: Path, shapes_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = [str(shapes_shards) if word == "SHARDS" else word for word in line]
    arguments += ["--encoder", str(weights), "--arch", "test_resnet", "--device", "cpu"]
    done = CliRunner().invoke(eval_main, arguments)
    assert done.exit_code == 0, done.output
    figures = json.loads((tmp_path / "eval-moco-v2" / f"eval-{line[0]}.json").read_text())
    assert figures["encoder"] == f"timm:test_resnet ({weights})"
    assert (figures["method"], figures["norm_statistics"], figures["trained_epochs"]) == ("external", "training", 0)
    assert "below 'state_dict.module.encoder_q.'; not used: " in done.output
    assert "is not finished" not in done.output
    assert {path.name for path in tmp_path.iterdir()} == {"eval-moco-v2"}


def test_size_mean_and_std_reach_the_encoder(weights: Path) -> None:
    images = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    cpu = torch.device("cpu")
    method, config, trained = load_foreign(EncoderFile(str(weights), "test_resnet"))
    assert trained == (160, 160)
    assert config.mean == tuple(timm.get_pretrained_cfg("test_resnet").mean)
    plain = encode_images(method.encoder, images, config, cpu)
    file = EncoderFile(str(weights), "test_resnet", mean=(0.1, 0.1, 0.1), std=(1.0, 1.0, 1.0), size=64)
    method, config, trained = load_foreign(file)
    assert trained is None
    assert "at 64 px" in config.encoder
    pixels = torch.nn.functional.interpolate(images / 255 - 0.1, (64, 64), mode="bicubic", antialias=True)
    with torch.no_grad():
        expected = method.encoder.model(pixels)
    torch.testing.assert_close(encode_images(method.encoder, images, config, cpu), expected, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(plain, expected)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--run", "r", "--encoder", "x.pth"], "give either --run or --encoder"),
        (["--run", "r", "--arch", "resnet50"], "--arch describes an encoder of another program; it needs --encoder"),
        (["--encoder", "none.pth", "--arch", "resnet50"], "none.pth: no such file"),
        (["--encoder", "FILE"], "does not say its architecture; name it with --arch"),
        (["--encoder", "FILE", "--arch", "test_resnet", "--network", "target"], "has no target network"),
    ],
)
def test_mistakes_are_one_line(options: list[str], message: str, weights: Path, shapes_shards: Path) -> None:
    words = [str(weights) if word == "FILE" else word for word in options]
    done = CliRunner().invoke(eval_main, ["knn", "--train", str(shapes_shards), "--test", str(shapes_shards), *words])
    assert done.exit_code in (1, 2)
    assert message in done.output
    assert "Traceback" not in done.output
