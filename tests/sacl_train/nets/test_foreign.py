"""Encoders of other programs: every layout gives the features of the model it came from; misfits are named."""

import argparse
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file
from torch import Tensor, nn

from sacl_train.nets import build_encoder
from sacl_train.nets.encoder_file import EncoderFile
from sacl_train.nets.foreign import IMAGENET_MEAN, load_initial, open_encoder
from sacl_train.nets.timm_models import TimmEncoder, check_sizes
from texturegen.errors import UserError

IMAGES = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
IMAGES_160 = torch.rand(4, 3, 160, 160, generator=torch.Generator().manual_seed(0))
State = dict[str, Tensor]


def put(prefix: str, state: State) -> State:
    return {prefix + name: tensor for name, tensor in state.items()}


def numbered(state: State, pool: bool = True) -> State:
    """Names in nn.Sequential(*children): conv1, bn1, relu, max pooling (some programs drop it), layer1 .. layer4."""
    first = 4 if pool else 3
    numbers = {"conv1": 0, "bn1": 1, **{f"layer{i + 1}": first + i for i in range(4)}}
    return {
        f"{numbers[part]}.{rest}": tensor
        for name, tensor in state.items()
        for part, _, rest in [name.partition(".")]
        if part in numbers
    }


@pytest.fixture(scope="module")
def resnet() -> nn.Module:
    """A small ResNet of timm with random statistics, its classifier included."""
    torch.manual_seed(0)
    model = timm.create_model("test_resnet").eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):  # so that an ignored buffer changes the features
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    return model


@pytest.fixture(scope="module")
def features(resnet: nn.Module) -> Tensor:
    with torch.no_grad():
        return resnet.forward_head(resnet.forward_features(IMAGES), pre_logits=True)


def encode(file: EncoderFile) -> Tensor:
    with torch.no_grad():
        return open_encoder(file).encoder(IMAGES)


LAYOUTS: dict[str, tuple[Callable[[State], Any], str]] = {
    "timm": (lambda s: s, ""),
    "training script": (lambda s: {"state_dict": put("module.", s), "epoch": 3}, "state_dict.module."),
    "MoCo": (
        lambda s: {
            "arch": "resnet50",
            "state_dict": {
                **put("module.encoder_k.", {name: t + 1 for name, t in s.items()}),
                **put("module.encoder_q.", s),
                "module.queue": torch.zeros(4, 9),
            },
        },
        "state_dict.module.encoder_q.",
    ),
    "lightly": (
        lambda s: {
            "state_dict": {**put("backbone_momentum.", {n: t + 1 for n, t in s.items()}), **put("backbone.", s)},
            "hyper_parameters": {"lr": 0.1},
        },
        "state_dict.backbone.",
    ),
    "DINO": (
        lambda s: {
            "student": put("module.backbone.", {n: t + 1 for n, t in s.items()}),
            "teacher": put("backbone.", s),
            "args": argparse.Namespace(arch="x"),
            "best": np.float64(0.5),
        },
        "teacher.backbone.",
    ),
    "half precision, no counters": (
        lambda s: {n: t.double() for n, t in s.items() if "num_batches" not in n},
        "",
    ),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_tensors_are_found_below_any_prefix(layout: str, resnet: nn.Module, features: Tensor, tmp_path: Path) -> None:
    change, prefix = LAYOUTS[layout]
    path = tmp_path / "x.pth"
    torch.save(change(resnet.state_dict()), path)
    opened = open_encoder(EncoderFile(str(path), "timm:test_resnet"))
    with torch.no_grad():
        torch.testing.assert_close(opened.encoder(IMAGES), features)
    assert opened.encoder.out_features == features.shape[1]
    assert opened.label == "timm:test_resnet"
    assert (f"below '{prefix}'" in opened.notes[0]) is bool(prefix)
    assert "fc.weight" in opened.notes[0]
    assert (opened.mean, opened.std) == (resnet.pretrained_cfg["mean"], resnet.pretrained_cfg["std"])


def test_prefix_can_be_chosen(resnet: nn.Module, features: Tensor, tmp_path: Path) -> None:
    path = str(tmp_path / "x.pth")
    torch.save(
        {**put("q.", resnet.state_dict()), **put("k.", {n: 2 * t for n, t in resnet.state_dict().items()})}, path
    )
    torch.testing.assert_close(encode(EncoderFile(path, "test_resnet", prefix="q")), features)
    assert not torch.allclose(encode(EncoderFile(path, "test_resnet", prefix="k.")), features)
    with pytest.raises(UserError, match=r"x\.pth: no tensor has the prefix 'x\.'; there are q\.conv1\.0\.weight"):
        open_encoder(EncoderFile(path, "test_resnet", prefix="x"))
    nested = {"state_dict": {"module": {"q": resnet.state_dict(), "k": {}}}, "ema": {"module": {"q": {"w": IMAGES}}}}
    torch.save(nested, path)
    torch.testing.assert_close(encode(EncoderFile(path, "test_resnet", prefix="state_dict.module.q")), features)
    with pytest.raises(UserError, match=r"several prefixes end with 'module\.q\.': state_dict\.module\.q\., ema"):
        open_encoder(EncoderFile(path, "test_resnet", prefix="module.q"))
    del nested["ema"]
    torch.save(nested, path)
    torch.testing.assert_close(encode(EncoderFile(path, "test_resnet", prefix="module.q.")), features)


@pytest.mark.parametrize("stem", ["imagenet", "cifar"])
def test_numbered_children_of_a_resnet_are_named(stem: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    ours = build_encoder("se_resnet18", stem, attention="none").eval()
    path = str(tmp_path / "x.pt")
    torch.save({"state_dict": put("f.", numbered(ours.state_dict(), pool=stem == "imagenet"))}, path)
    opened = open_encoder(EncoderFile(path, "resnet18"))
    assert ("3x3 stem" in opened.label) == (stem == "cifar")
    assert "below 'state_dict.f.'" in opened.notes[0]
    with torch.no_grad():
        torch.testing.assert_close(opened.encoder(IMAGES), ours(IMAGES), rtol=0, atol=0)


def test_torchvision_model_of_other_layout_than_timm(tmp_path: Path) -> None:
    model = torchvision.models.shufflenet_v2_x0_5().eval()
    path = str(tmp_path / "x.pth")
    torch.save(model.state_dict(), path)
    opened = open_encoder(EncoderFile(path, "shufflenet_v2_x0_5"))
    model.fc = nn.Identity()
    with torch.no_grad():
        torch.testing.assert_close(opened.encoder(IMAGES), model(IMAGES))
    assert (opened.label, opened.size) == ("torchvision:shufflenet_v2_x0_5", 224)


def test_vision_transformer_keeps_its_positions_and_takes_other_sizes(tmp_path: Path) -> None:
    model = timm.create_model("test_vit", num_classes=0, img_size=64, dynamic_img_size=True).eval()
    path = str(tmp_path / "x.safetensors")
    save_file(model.state_dict(), path)
    opened = open_encoder(EncoderFile(path, "test_vit"))
    assert opened.size == 64
    with torch.no_grad():
        torch.testing.assert_close(opened.encoder(IMAGES), model(IMAGES), rtol=0, atol=0)
        assert opened.encoder(torch.rand(1, 3, 96, 96)).shape == (1, 64)
        resized = nn.functional.interpolate(IMAGES, (96, 96), mode="bicubic", antialias=True)
        torch.testing.assert_close(encode(EncoderFile(path, "test_vit", size=96)), model(resized))


def test_directory_with_config_json_says_its_architecture(resnet: nn.Module, features: Tensor, tmp_path: Path) -> None:
    save_file(resnet.state_dict(), tmp_path / "model.safetensors")
    config = {"architecture": "test_resnet", "pretrained_cfg": {"mean": [0.1, 0.2, 0.3], "std": [1, 1, 1]}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    opened = open_encoder(EncoderFile(str(tmp_path)))
    assert (opened.mean, opened.std) == ((0.1, 0.2, 0.3), (1, 1, 1))
    with torch.no_grad():
        torch.testing.assert_close(opened.encoder(IMAGES), features)
    assert open_encoder(EncoderFile(str(tmp_path), mean=(0.5, 0.5, 0.5))).mean == (0.5, 0.5, 0.5)
    assert opened.size == 160, "timm's own"
    contents: list[tuple[Any, str | None]] = [
        ({"architecture": "test_resnet", "mean": [0.4] * 3, "input_size": [3, 96, 96]}, None),  # of older versions
        ({"architecture": "test_resnet", "pretrained_cfg": None}, None),
        (
            {"architecture": "test_resnet", "pretrained_cfg": {"mean": [0.5, 0.5]}},
            r"mean is \[0\.5, 0\.5\]; it must be",
        ),
        ({"architecture": "test_resnet", "std": "x"}, "config.json: std is x; it must be three numbers"),
        ({"architecture": 7}, "does not say its architecture"),
        ([1], "does not say its architecture"),
        ({"arguments": {"name": "se_resnet8", "depth": 3}}, "describes an encoder that this version does not know"),
    ]
    for content, message in contents:
        (tmp_path / "config.json").write_text(json.dumps(content))
        if message is not None:
            with pytest.raises(UserError, match=message):
                open_encoder(EncoderFile(str(tmp_path)))
        else:
            opened = open_encoder(EncoderFile(str(tmp_path)))
            assert (opened.size, opened.mean[0]) == ((96, 0.4) if "mean" in content else (160, 0.5))


def test_checkpoint_of_a_run_says_its_architecture(tmp_path: Path) -> None:
    ours = build_encoder("se_resnet8", "cifar-stride2", width=4).eval()
    state = {**put("encoder.", ours.state_dict()), **put("target_encoder.", ours.state_dict())}
    config = {"encoder": "se_resnet8", "stem": "cifar-stride2", "width": 4, "attention": "se", "mean": [0.5] * 3}
    torch.save({"method": state, "config": config, "image_size": (32, 32)}, tmp_path / "c.pt")
    opened = open_encoder(EncoderFile(str(tmp_path / "c.pt")))
    with torch.no_grad():
        torch.testing.assert_close(opened.encoder(IMAGES), ours(IMAGES), rtol=0, atol=0)
    assert (opened.size, opened.mean) == (32, (0.5, 0.5, 0.5))


@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning")
def test_torchscript_runs_only_if_asked_to(resnet: nn.Module, tmp_path: Path) -> None:
    path = str(tmp_path / "x.pt")
    torch.jit.save(torch.jit.trace(nn.Sequential(nn.Conv2d(3, 5, 3), nn.ReLU()), IMAGES), path)
    with pytest.raises(UserError, match=r"a TorchScript program, .* add --arch torchscript"):
        open_encoder(EncoderFile(path))
    assert encode(EncoderFile(path, "torchscript")).shape == (2, 5)
    with pytest.raises(UserError, match="no state dict to start from"):
        load_initial(build_encoder("se_resnet8", "cifar"), path)


def write_onnx(path: Path, batch: int | str, side: int | str, mean: str = "0.1,0.2,0.3") -> None:
    onnx = pytest.importorskip("onnx")
    helper = onnx.helper
    make = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("GlobalAveragePool", ["pixels"], ["y"]), helper.make_node("Flatten", ["y"], ["out"])],
        "g",
        [make("pixels", onnx.TensorProto.FLOAT, [batch, 3, side, side])],
        [make("out", onnx.TensorProto.FLOAT, [batch, 3])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    helper.set_model_props(model, {"mean": mean, "std": "0.5,0.5,0.5", "size": "48"})
    onnx.save(model, path)


@pytest.mark.parametrize(("batch", "side"), [("N", "S"), (3, 64), (1, 32)])
def test_onnx_of_free_and_of_fixed_size(batch: int | str, side: int | str, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    path = tmp_path / "x.onnx"
    write_onnx(path, batch, side)
    opened = open_encoder(EncoderFile(str(path)))
    images = IMAGES if side != 32 else nn.functional.interpolate(IMAGES, (32, 32), mode="bicubic", antialias=True)
    torch.testing.assert_close(opened.encoder(IMAGES), images.mean(dim=(2, 3)), rtol=0, atol=1e-6)
    assert (opened.mean, opened.std, opened.size) == ((0.1, 0.2, 0.3), (0.5, 0.5, 0.5), 48)
    if side == 32:
        with pytest.raises(UserError, match="takes images of 32 px only; leave out --size"):
            open_encoder(EncoderFile(str(path), size=64))
        for mean in ("[0.1, 0.2, 0.3]", "0.5"):  # as other programs write it
            write_onnx(path, batch, side, mean)
            opened = open_encoder(EncoderFile(str(path)))
            assert opened.mean == IMAGENET_MEAN
            assert f"its metadata have mean '{mean}', not three numbers; ignored" in opened.notes


def test_weights_of_timm_come_from_its_cache_only(
    resnet: nn.Module, features: Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *a, **k: None)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(UserError, match=r"timm:test_resnet: its weights are not in timm's cache, .* fetch them once"):
        open_encoder(EncoderFile("timm:test_resnet"))
    with pytest.raises(UserError, match=r"has no model 'test_resent' \(did you mean"):
        open_encoder(EncoderFile("timm:test_resent"))
    save_file(resnet.state_dict(), tmp_path / "model.safetensors")
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *a, **k: str(tmp_path / "model.safetensors"))
    torch.testing.assert_close(encode(EncoderFile("timm:test_resnet")), features)


class Attack:
    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("executed"),))


@pytest.mark.filterwarnings("ignore:Detected pickle protocol:UserWarning")
def test_files_that_are_no_encoders_are_one_line(
    resnet: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    state = resnet.state_dict()
    torch.save({"state_dict": state, "callback": Attack()}, "attack.pth")
    Path("pickle.pkl").write_bytes(pickle.dumps(Attack()))
    Path("text.pth").write_text("hello")
    Path("text").write_text("hello, this is no file of weights")
    torch.save({"epoch": 3}, "empty.pth")
    torch.save(state, "resnet.pth")
    Path("cut.pth").write_bytes(Path("resnet.pth").read_bytes()[:5000])
    torch.save({**state, "layer3.9.conv1.weight": torch.zeros(1)}, "larger.pth")
    torch.save({name: tensor[:1] for name, tensor in state.items() if tensor.ndim}, "shapes.pth")
    Path("directory").mkdir()
    cases = [
        ("attack.pth", "test_resnet", r"attack\.pth: holds .*, which is not loaded because it could run code"),
        ("pickle.pkl", "test_resnet", r"pickle\.pkl: (holds|cannot be read)"),
        ("text.pth", "test_resnet", "cannot be read as a torch file"),
        ("text", "test_resnet", "neither safetensors, nor a torch file of weights, nor ONNX"),
        ("empty.pth", "test_resnet", "holds no tensors"),
        ("cut.pth", "test_resnet", "cannot be read as a torch file"),
        ("nowhere.pth", "test_resnet", "no such file"),
        ("directory", None, r"a directory without config\.json"),
        ("resnet.pth", None, "does not say its architecture; name it with --arch"),
        ("resnet.pth", "test_vit", r"does not fit timm:test_vit: 0 tensors fit; \d+ missing \(cls_token, pos_embed"),
        ("resnet.pth", "resnet18", r"does not fit resnet18 with a 3x3 stem .*: \d+ tensors fit; \d+ missing \("),
        ("larger.pth", "test_resnet", r"1 that it does not have \(layer3\.9\.conv1\.weight\)"),
        ("shapes.pth", "test_resnet", r"of another shape \(conv1\.0\.weight \(1, 3, 3, 3\) there, \("),
        ("resnet.pth", "resnt18", r"unknown architecture 'resnt18' \(did you mean"),
    ]
    for source, arch, message in cases:
        with pytest.raises(UserError, match=message) as caught:
            open_encoder(EncoderFile(source, arch))
        assert "\n" not in str(caught.value)
    assert not Path("executed").exists()


def test_training_starts_from_a_file(tmp_path: Path) -> None:
    theirs = torchvision.models.resnet18()
    path = str(tmp_path / "x.pth")
    torch.save({"model": put("module.", theirs.state_dict())}, path)
    ours = build_encoder("se_resnet18", "imagenet", attention="none")
    said = load_initial(ours, path)
    assert "initial weights from" in said
    assert "below 'model.module.'" in said
    assert torch.equal(ours.layer4[1].conv2.weight, theirs.layer4[1].conv2.weight)
    with pytest.raises(UserError, match=r"missing \(layer1\.0\.se\.fc1\.weight.*attention=none"):
        load_initial(build_encoder("se_resnet18", "imagenet"), path)
    with pytest.raises(UserError, match=r"conv1\.weight \(64, 3, 7, 7\) there, \(64, 3, 3, 3\) here.*stem=imagenet"):
        load_initial(build_encoder("se_resnet18", "cifar", attention="none"), path)
    model = timm.create_model("test_vit")
    save_file(model.state_dict(), tmp_path / "v.safetensors")
    encoder = build_encoder("timm:test_vit", attention="none")
    load_initial(encoder, str(tmp_path / "v.safetensors"))
    assert torch.equal(encoder.model.pos_embed, model.pos_embed)


def test_timm_encoders_take_grid_cells_or_say_why_not() -> None:
    vit = build_encoder("timm:test_vit", attention="none", image_size=64)
    assert isinstance(vit, TimmEncoder)
    assert vit.model.pos_embed.shape[1] == 1 + 16
    check_sizes(vit, [(64, 64), (32, 32)])
    assert not vit.notes
    check_sizes(vit, [(64, 64), (16, 16)])
    assert "reduces 16 pixels to one position, so 16 px leave a map of 1 per side" in vit.notes[0]
    with pytest.raises(UserError, match=r"does not take cells of 24x24 px \(.*\); set grid to 1, or choose"):
        check_sizes(vit, [(48, 48), (24, 24)])
    for setting in ({"stem": "cifar"}, {"attention": "se"}, {"width": 8}, {"placement": "pre"}):
        with pytest.raises(UserError, match=r"does not apply to timm:test_vit"):
            build_encoder("timm:test_vit", **{"attention": "none", **setting})
    with pytest.raises(UserError, match="would update the running statistics"):
        build_encoder("timm:test_resnet", attention="none", checkpointing=True)


def test_timm_encoders_draw_no_random_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    dropping = timm.create_model("test_vit", num_classes=0, drop_rate=0.5, proj_drop_rate=0.5, drop_path_rate=0.5)
    assert not torch.equal(dropping(IMAGES_160), dropping(IMAGES_160))
    monkeypatch.setattr("timm.create_model", lambda *arguments, **options: dropping)
    encoder = TimmEncoder("test_vit").train()
    assert torch.equal(encoder(IMAGES_160), encoder(IMAGES_160))
