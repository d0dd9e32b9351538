"""Exported encoders give the same features when loaded; encoders that do not fit a format are refused."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from click.testing import CliRunner

from sacl_train import train
from sacl_train.cli.evaluate import eval_main
from sacl_train.cli.export import export_main
from sacl_train.config import load_config
from sacl_train.data.weak import normalise
from sacl_train.evaluate.probe import PROTOCOLS
from sacl_train.export import FORMATS, card_of, export, load_exported
from sacl_train.nets.encoder_file import EncoderFile
from sacl_train.nets.foreign import open_encoder
from sacl_train.report.figures import flatten
from sacl_train.training.checkpoint import load_checkpoint
from sacl_train.training.resume import load_encoder
from texturegen.errors import MissingError, UserError

SMALL = {"projector_hidden": 16, "projector_out": 16, "predictor_hidden": 8, "epochs": 0, "device": "cpu"}
PIXELS = torch.randint(0, 256, (2, 3, 32, 32), generator=torch.Generator().manual_seed(1)).float() / 255
IMAGES = torch.randn(3, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def make(shards: Path, out: Path, **settings: object) -> tuple[Path, torch.Tensor]:
    train(load_config(None, {**SMALL, "batch_size": 16, **settings}), shards, out)
    encoder, _, _ = load_encoder(out)
    with torch.no_grad():
        return out, encoder(IMAGES)


@pytest.fixture(scope="module")
def tiny(shapes_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, torch.Tensor]:
    out = tmp_path_factory.mktemp("export") / "run"
    return make(shapes_shards, out, encoder="se_resnet8", width=4, stem="cifar-stride2", attention="cbam")


def test_safetensors_suffice_to_rebuild_encoder(tiny: tuple[Path, torch.Tensor]) -> None:
    run, features = tiny
    path = export(run, "safetensors")
    with torch.no_grad():
        torch.testing.assert_close(load_exported(path)(IMAGES), features, rtol=0, atol=1e-6)
    card = path.with_suffix(".md").read_text()
    assert "se_resnet8, attention cbam, trained by sacl for 0 of 0 epochs" in card
    assert "`sacl-eval` has not been run" in card
    assert 'encoder = "se_resnet8"' in card
    figures = {"command": "sacl-eval knn ...", "test": [{"split": "test", "variant": "k=20", "top1": 0.25}]}
    (run / "eval-knn.json").write_text(json.dumps(figures))
    card = export(run, "safetensors").with_suffix(".md").read_text()
    assert "- knn, k=20, test: top-1: 25.00%\n  by `sacl-eval knn ...`" in card


def test_export_into_directory_is_atomic(
    tiny: tuple[Path, torch.Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, _ = tiny
    done = CliRunner().invoke(export_main, [str(run), "--out", str(tmp_path)])
    assert done.exit_code == 0, done.output
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "encoder-safetensors.md",
        "encoder-safetensors.safetensors",
    ]
    before = (tmp_path / "encoder-safetensors.safetensors").read_bytes()

    def full(number: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    assert CliRunner().invoke(export_main, [str(run), "--out", str(tmp_path)]).exit_code == 1
    assert (tmp_path / "encoder-safetensors.safetensors").read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 2
    with pytest.raises(UserError, match="this name is reserved for the model card"):
        export(run, "safetensors", tmp_path / "x.md")


def test_card_describes_data_if_shards_are_available(
    shapes_shards: Path, shapes_test_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shards = tmp_path / "shards"
    shutil.copytree(shapes_shards, shards)
    monkeypatch.chdir(tmp_path)
    run, _ = make(Path("shards"), tmp_path / "run", encoder="se_resnet8", width=4, stem="cifar-stride2")
    monkeypatch.chdir(tmp_path.parent)
    shards.rename(shards.with_name("away"))
    digest = load_checkpoint(run)["shards"]
    (run / "eval-knn.json").write_text(json.dumps({"train": str(tmp_path / "gone"), "test": []}))
    (run / "eval-linear.json").write_text(json.dumps({"train": str(shapes_test_shards), "test": []}))
    card = export(run, "safetensors").with_suffix(".md").read_text()
    assert f"not available; their digest is {digest}" in card
    shards.with_name("away").rename(shards)
    assert export(run, "safetensors").with_suffix(".md").read_text().count("- images: 64\n") == 1
    shutil.rmtree(shards)
    (run / "eval-shortcut.json").write_text(json.dumps({"shards": str(shapes_shards)}))
    card = export(run, "safetensors").with_suffix(".md").read_text()
    lines = ["data set: shapes, split train, 10 classes", "images: 64", "textures: 1 per image, by coherent"]
    for line in (*lines, f"digest of the shards: {digest}"):
        assert f"- {line}\n" in card


def test_checkpoint_has_its_own_figures_and_exports(shapes_shards: Path, tmp_path: Path) -> None:
    run, _ = make(shapes_shards, tmp_path / "run", encoder="se_resnet8", width=4, stem="cifar-stride2")
    best = run / "best.pt"
    shutil.copy(next(run.glob("checkpoint-*.pt")), best)
    before, others = best.read_bytes(), {path.name for path in run.iterdir()}
    shards = str(shapes_shards)
    for line in (["ridge", "--train", shards, "--test", shards], ["shortcut", "--shards", shards]):
        done = CliRunner().invoke(eval_main, [*line, "--run", str(best), "--device", "cpu"])
        assert done.exit_code == 0, done.output
    for subject in (best, run):
        done = CliRunner().invoke(export_main, [str(subject)])
        assert done.exit_code == 0, done.output
    made = {path.name for path in run.iterdir()} - others - {"features"}
    cards = {"encoder-best-safetensors.md", "encoder-safetensors.md"}
    weights = {name.replace(".md", ".safetensors") for name in cards}
    assert made == {"eval-ridge-best.json", "eval-shortcut-best.json"} | cards | weights
    assert best.read_bytes() == before
    card = (run / "encoder-best-safetensors.md").read_text()
    assert "ridge-best" in card
    assert f"  {PROTOCOLS['ridge']}; online network, BatchNorm statistics of whole images, fp32\n" in card
    assert "`sacl-eval` has not been run on it" in (run / "encoder-safetensors.md").read_text()


def test_test_sets_of_same_split_have_different_labels() -> None:
    tests = [{"set": place, "split": "test", "top1": top1} for place, top1 in (("a", 0.2), ("b", 0.4))]
    assert flatten("knn", {"test": tests}) == {"knn, test (a): top-1": 0.2, "knn, test (b): top-1": 0.4}
    assert flatten("knn", {"test": tests[:1]}) == {"knn, test: top-1": 0.2}


def run_card(path: Path, images: torch.Tensor, monkeypatch: pytest.MonkeyPatch) -> torch.Tensor:
    """Execute the lines of a model card beside what it describes, as they stand and with the user's images."""
    code = card_of(path).read_text().partition("```python\n")[2].partition("```")[0]
    assert len(code.splitlines()) <= 7
    monkeypatch.chdir(path.parent)
    names: dict[str, Any] = {}
    with torch.no_grad():
        exec(code, names)
    assert tuple(names["images"].shape) == tuple(images.shape)
    (own,) = [line for line in code.splitlines() if line.startswith("images = ")]
    assert own.endswith("# yours: float (N, 3, H, W), RGB, 0..1")
    mine = {"images": images.numpy() if path.suffix == ".onnx" else images}
    with torch.no_grad():
        exec(code.replace(own, ""), mine)
    return torch.as_tensor(mine["features"])


def expect(run: Path, images: torch.Tensor) -> torch.Tensor:
    encoder, config, _ = load_encoder(run)
    with torch.no_grad():
        return encoder(normalise((images * 255).round().to(torch.uint8), config.mean, config.std))


def test_onnx_runs_at_any_size_and_says_how_to_feed_it(
    tiny: tuple[Path, torch.Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    run, features = tiny
    path = export(run, "onnx", tmp_path / "deep" / "e.onnx")
    session = onnxruntime.InferenceSession(str(path))
    (found,) = session.run(["features"], {"images": IMAGES.numpy()})
    np.testing.assert_allclose(found, features.numpy(), rtol=1e-4, atol=1e-5)
    assert session.run(None, {"images": np.zeros((1, 3, 32, 32), np.float32)})[0].shape == (1, features.shape[1])
    metadata = session.get_modelmeta().custom_metadata_map
    _, config, _ = load_encoder(run)
    assert tuple(map(float, metadata["mean"].split(","))) == config.mean
    assert tuple(map(float, metadata["std"].split(","))) == config.std
    assert (metadata["size"], metadata["channels"]) == ("32", "RGB")
    torch.testing.assert_close(run_card(path, PIXELS, monkeypatch), expect(run, PIXELS), rtol=1e-3, atol=1e-4)
    opened = open_encoder(EncoderFile(str(path)))
    assert (opened.mean, opened.size) == (config.mean, 32)


@pytest.mark.parametrize(
    ("form", "encoder", "stem", "attention"),
    [
        ("torchvision", "se_resnet18", "imagenet", "none"),
        ("torchvision", "se_resnet18", "cifar", "none"),
        ("torchvision", "se_resnet18", "cifar-stride2", "none"),
        ("timm", "se_resnet18", "imagenet", "se"),
        ("timm", "timm:test_vit", "auto", "none"),
        ("hub", "se_resnet8", "cifar-stride2", "se"),
        ("hub", "timm:test_resnet", "auto", "none"),
        ("safetensors", "timm:test_vit", "auto", "none"),
    ],
)
def test_lines_of_card_load_encoder(
    form: str,
    encoder: str,
    stem: str,
    attention: str,
    shapes_shards: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run, _ = make(shapes_shards, tmp_path / "run", encoder=encoder, stem=stem, attention=attention)
    path = export(run, form, f"{tmp_path}/new/")
    assert path.is_dir() == (not FORMATS[form].extension)
    torch.testing.assert_close(run_card(path, PIXELS, monkeypatch), expect(run, PIXELS), rtol=1e-3, atol=1e-4)
    card = card_of(path).read_text()
    assert "Trained on images of 32 x 32 px." in card
    assert "channels R, G, B, in 0..1" in card
    assert (f"Stem {stem}: " in card) == (stem != "auto")
    if path.is_dir():
        assert sorted(file.name for file in path.iterdir()) == ["README.md", "config.json", "model.safetensors"]
        assert card.startswith(f"---\nlibrary_name: {'timm' if form == 'timm' else 'sacl-texture'}\ntags:\n")
    opened = open_encoder(EncoderFile(str(path), "resnet18" if form == "torchvision" else None))
    if stem != "cifar-stride2" or form != "torchvision":  # a 3x3 convolution does not show its stride
        config = load_encoder(run)[1]
        normalised = normalise(
            (PIXELS * 255).round().to(torch.uint8), opened.mean if form != "torchvision" else config.mean, config.std
        )
        with torch.no_grad():
            torch.testing.assert_close(opened.encoder(normalised), expect(run, PIXELS), rtol=1e-3, atol=1e-4)


def test_directory_for_timm_has_its_data_config(shapes_shards: Path, tmp_path: Path) -> None:
    run, _ = make(shapes_shards, tmp_path / "run", encoder="timm:test_resnet")
    model = timm.create_model(f"local-dir:{export(run, 'timm')}", pretrained=True)
    config = load_encoder(run)[1]
    data = timm.data.resolve_model_data_config(model)
    assert (tuple(data["mean"]), tuple(data["std"])) == (config.mean, config.std)
    assert tuple(data["input_size"]) == (3, 32, 32)


def test_timm_has_no_small_stem(shapes_shards: Path, tmp_path: Path) -> None:
    run, _ = make(shapes_shards, tmp_path / "run", encoder="se_resnet18", attention="none")
    with pytest.raises(UserError, match=r"have no 3x3 stem, .* images of 32 px; use .* or onnx, or torchvision"):
        export(run, "timm")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "README.md").write_text("mine")
    with pytest.raises(UserError, match=r"other: holds a README\.md of something else; choose another --out"):
        export(run, "hub", tmp_path / "other")
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError, match="file: a file, but format hub is a directory"):
        export(run, "hub", tmp_path / "file")


def test_out_without_suffix_or_with_slash_is_a_directory(tiny: tuple[Path, torch.Tensor], tmp_path: Path) -> None:
    run, _ = tiny
    for out in ("new/", "v1.2/", "plain"):
        done = CliRunner().invoke(export_main, [str(run), "--out", str(tmp_path / out) + "/" * out.endswith("/")])
        assert done.exit_code == 0, done.output
        assert (tmp_path / out / "encoder-safetensors.safetensors").is_file()
    assert export(run, "safetensors", tmp_path / "mine.bin").name == "mine.bin"


def test_encoder_that_does_not_fit_format_is_refused(tiny: tuple[Path, torch.Tensor], tmp_path: Path) -> None:
    run, _ = tiny
    with pytest.raises(UserError, match=r"torchvision has no model like this encoder \(name se_resnet8.*safetensors"):
        export(run, "torchvision")
    with pytest.raises(UserError, match="did you mean 'onnx'"):
        export(run, "onx")
    (tmp_path / "x").write_bytes(b"nothing")
    with pytest.raises(UserError, match="x: neither safetensors, nor a torch file of weights"):
        load_exported(tmp_path / "x")
    with pytest.raises(MissingError, match="`sacl-export RUN --out 'no file'`"):
        load_exported("no file")
    for wrong in (run / "config.toml", tmp_path / "x"):
        done = CliRunner().invoke(export_main, [str(wrong)])
        assert done.exit_code == 1
        assert done.output == f"error: {wrong}: not a checkpoint; give the directory of a run, or a .pt file in it\n"
    done = CliRunner().invoke(export_main, ["no run"])
    assert done.exit_code == 1
    assert "no checkpoint here; train one with `sacl-train --out 'no run'`" in done.output
    assert CliRunner().invoke(export_main, [str(run)]).exit_code == 0
