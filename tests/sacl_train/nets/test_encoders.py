"""Encoders: parameter counts against the papers, torchvision's weights, stems, and errors of the registry."""

import pytest
import timm
import torch
from torch import Tensor, nn
from torchvision.models import resnet18, resnet50

from sacl_train.nets import ATTENTION, ENCODERS, PLACEMENTS, build_encoder
from sacl_train.nets.attention import SqueezeExcitation
from sacl_train.nets.blocks import BasicBlock, Bottleneck
from sacl_train.nets.cifar import PadShortcut
from sacl_train.nets.norms import encode_apart, stop_counting
from sacl_train.nets.weights import timm_weights
from texturegen.errors import UserError


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def eq5(blocks: list[int], channels: list[int]) -> int:
    """2/r * sum_s N_s C_s^2 (SACL eq. 5), r = 16."""
    return sum(2 * n * c * c // 16 for n, c in zip(blocks, channels, strict=True))


@pytest.mark.parametrize(
    ("attention", "millions"), [("none", 25.56), ("se", 28.07), ("cbam", 28.07), ("gc", 28.11), ("triplet", 25.56)]
)
def test_resnet50_has_parameters_of_table_1(attention: str, millions: float) -> None:
    with torch.device("meta"):
        encoder = build_encoder("se_resnet50", "imagenet", attention=attention)
    classifier = 2048 * 1000 + 1000  # table 1 counts the ImageNet classifier
    assert round((count(encoder) + classifier) / 1e6, 2) == millions


@pytest.mark.parametrize(
    ("name", "blocks", "channels"),
    [
        ("se_resnet18", [2, 2, 2, 2], [64, 128, 256, 512]),
        ("se_resnet34", [3, 4, 6, 3], [64, 128, 256, 512]),
        ("se_resnet50", [3, 4, 6, 3], [256, 512, 1024, 2048]),
        ("se_resnet101", [3, 4, 23, 3], [256, 512, 1024, 2048]),
        ("se_resnet20", [3, 3, 3], [16, 32, 64]),
        ("se_resnet8", [1, 1, 1], [32, 64, 128]),
    ],
)
def test_se_adds_parameters_of_eq_5(name: str, blocks: list[int], channels: list[int]) -> None:
    with torch.device("meta"):
        plain, se = build_encoder(name, "cifar", attention="none"), build_encoder(name, "cifar")
    assert count(se) - count(plain) == eq5(blocks, channels)
    assert plain.out_features == channels[-1]


def test_resnet20_has_parameters_of_paper() -> None:
    """He et al. 2016, table 6: 0.27 M, with the classifier of 10 classes; option A shortcuts have no parameters."""
    convolutions = 27 * 16 + 6 * 9 * 16**2 + 9 * (16 * 32 + 5 * 32**2) + 9 * (32 * 64 + 5 * 64**2)
    batch_norms = 2 * (7 * 16 + 6 * 32 + 6 * 64)
    plain = count(build_encoder("se_resnet20", "cifar", attention="none"))
    assert plain == convolutions + batch_norms == 269_072
    assert count(build_encoder("se_resnet20", "cifar")) == 271_088


@pytest.mark.parametrize(("name", "theirs"), [("se_resnet18", resnet18), ("se_resnet50", resnet50)])
def test_torchvision_weights_give_the_same_features(name: str, theirs: type[nn.Module]) -> None:
    reference = theirs().eval()
    for module in reference.modules():
        if isinstance(module, nn.BatchNorm2d):  # so that an ignored buffer changes the result
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    with_se = build_encoder(name, "imagenet").load_state_dict(reference.state_dict(), strict=False)
    assert with_se.missing_keys
    assert all(".se." in key for key in with_se.missing_keys)
    assert with_se.unexpected_keys == ["fc.weight", "fc.bias"]

    plain = build_encoder(name, "imagenet", attention="none").eval()
    loaded = plain.load_state_dict(reference.state_dict(), strict=False)
    assert not loaded.missing_keys
    reference.fc = nn.Identity()
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(plain(x), reference(x))


class _One(nn.Module):
    def forward(self, u: Tensor) -> Tensor:
        return u


@pytest.mark.parametrize("name", ["se_resnet18", "se_resnet50", "se_resnet20"])
def test_se_blocks_without_scaling_equal_plain_network(name: str) -> None:
    se, plain = build_encoder(name, "cifar").eval(), build_encoder(name, "cifar", attention="none").eval()
    plain.load_state_dict(se.state_dict(), strict=False)
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        expected = plain(x)
        assert not torch.allclose(se(x), expected)
        for module in se.modules():
            if isinstance(module, BasicBlock | Bottleneck):
                module.se = _One()
        torch.testing.assert_close(se(x), expected)


def plain_forward(block: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the residual branch and the shortcut."""
    if isinstance(block, Bottleneck):
        x1 = torch.relu(block.bn1(block.conv1(x)))
        branch = block.bn3(block.conv3(torch.relu(block.bn2(block.conv2(x1)))))
    else:
        branch = block.bn2(block.conv2(torch.relu(block.bn1(block.conv1(x)))))
    return branch, x if block.downsample is None else block.downsample(x)


@pytest.mark.parametrize("name", ["se_resnet18", "se_resnet50"])
@pytest.mark.parametrize("placement", PLACEMENTS)
def test_placements_are_those_of_figure_6(name: str, placement: str) -> None:
    """Hu et al. 2018, section 6.4, figure 5."""
    encoder = build_encoder(name, "cifar", placement=placement).eval()
    for block in (*encoder.layer1, *encoder.layer2):
        nn.init.normal_(block.bn1.bias)  # with zero biases a wrong placement would not show
        x = torch.rand(2, block.conv1.in_channels, 8, 8)
        with torch.no_grad():
            branch, shortcut = plain_forward(block, block.se(x) if placement == "pre" else x)
            if placement == "pre":
                shortcut = plain_forward(block, x)[1]
            if placement == "standard":
                expected = torch.relu(block.se(branch) + shortcut)
            elif placement == "identity":
                expected = torch.relu(branch + block.se(shortcut))
            else:
                expected = torch.relu(branch + shortcut)
            torch.testing.assert_close(block(x), block.se(expected) if placement == "post" else expected)


def test_se_is_after_last_norm_of_branch() -> None:
    block = Bottleneck(256, 64).eval()
    block.se = SqueezeExcitation(256)
    nn.init.constant_(block.se.fc2.weight, 0)  # sigmoid(0) = 1/2 for all channels
    block.bn3.running_mean.normal_()  # otherwise scaling before and after this BN gives the same result
    x = torch.rand(2, 256, 8, 8)
    with torch.no_grad():
        branch, _ = plain_forward(block, x)
        torch.testing.assert_close(block(x), torch.relu(0.5 * branch + x))


@pytest.mark.parametrize("kind", [k for k in ATTENTION if k != "none"])
@pytest.mark.parametrize("name", ["se_resnet20", "se_resnet50"])
def test_every_attention_receives_gradients(kind: str, name: str) -> None:
    encoder, plain = build_encoder(name, "cifar", attention=kind), build_encoder(name, "cifar", attention="none")
    added = {n: p for n, p in encoder.named_parameters() if n not in dict(plain.named_parameters())}
    assert added
    for module in encoder.modules():  # gc and nonlocal are initialised to the identity
        if isinstance(module, nn.Conv2d | nn.BatchNorm2d) and not module.weight.any():
            nn.init.normal_(module.weight)
    encoder(torch.rand(4, 3, 16, 16)).square().sum().backward()
    without = [n for n, p in added.items() if p.grad is None or not p.grad.any()]
    # Biases in front of a softmax or a BN cancel out, so they have no gradient.
    assert not [n for n in without if not n.endswith("bias")]


def test_non_local_blocks_are_those_of_paper() -> None:
    """Wang et al. 2018, section 4: two in res3 and three in res4, in every second residual block."""
    with torch.device("meta"):
        encoder = build_encoder("se_resnet50", "imagenet", attention="nonlocal")
    with_it = [n for n, m in encoder.named_modules() if type(m).__name__ == "NonLocalAttn"]
    assert with_it == ["layer2.1.se", "layer2.3.se", "layer3.1.se", "layer3.3.se", "layer3.5.se"]
    assert encoder.layer2[1].se.t.out_channels == 512 // 2  # section 3.3: half the channels inside


def test_attention_branch_has_parameters_of_table_1() -> None:
    """Table 1: 43.59 M, with the classifier of 1000 classes and the branch's own (1000 x 1000), which needs labels."""
    with torch.device("meta"):
        encoder = build_encoder("se_resnet50", "imagenet", attention="abn")
    ours = count(encoder) + 2048 * 1000 + 1000
    assert abs((ours + 1000 * 1000) / 1e6 - 43.59) < 0.01


def test_attention_branch_weights_input_of_last_stage() -> None:
    encoder = build_encoder("se_resnet20", "cifar", attention="abn").eval()
    seen: dict[str, Tensor] = {}
    encoder.abn.register_forward_hook(lambda m, args, out: seen.update(x=args[0], out=out))
    encoder.layer3.register_forward_hook(lambda m, args, out: seen.update(last=args[0]))
    with torch.no_grad():
        encoder(torch.rand(2, 3, 32, 32))
        gate = torch.sigmoid(encoder.abn.head(encoder.abn.stage(seen["x"])))
    assert gate.shape == (2, 1, *seen["x"].shape[2:])
    torch.testing.assert_close(seen["out"], seen["x"] * (1 + gate))
    assert seen["last"] is seen["out"]


@pytest.mark.parametrize(("kind", "depth"), [("se", 18), ("se", 50), ("none", 18)])
def test_weights_loaded_into_timm_give_the_same_features(kind: str, depth: int) -> None:
    """timm's SE of the first stage of seresnet18 has 8 inner channels instead of 4: the others are zero."""
    encoder = build_encoder(f"se_resnet{depth}", "imagenet", attention=kind).eval()
    theirs = timm.create_model(f"{'se' if kind == 'se' else ''}resnet{depth}", num_classes=0).eval()
    theirs.load_state_dict(timm_weights(encoder))
    x = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(encoder(x), theirs(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["se", "cbam", "abn"])
def test_checkpointing_changes_neither_gradients_nor_statistics(kind: str) -> None:
    torch.manual_seed(0)
    kept = build_encoder("se_resnet20", "cifar", attention=kind).double()
    again = build_encoder("se_resnet20", "cifar", attention=kind, checkpointing=True).double()
    again.load_state_dict(kept.state_dict())
    x, passes = torch.rand(6, 3, 16, 16, dtype=torch.float64), []
    again.layer1[0].bn1.register_forward_hook(lambda *_: passes.append(1))
    for encoder in (kept, again, kept, again):
        encoder(x).square().sum().backward()
        stop_counting(encoder)  # as in a run, whose passes may have batches that are normalised apart
        torch.cat(encode_apart([encoder], [x[:4], 2 * x[4:]])).square().sum().backward()
    # timm's BatchNorm in "cbam" takes a pass for each batch.
    assert len(passes) == (12 if kind == "cbam" else 8), "the block was not recomputed"
    for mine, other in zip(kept.parameters(), again.parameters(), strict=True):
        assert torch.equal(mine.grad, other.grad)
    for mine, other in zip(kept.buffers(), again.buffers(), strict=True):
        assert torch.equal(mine, other)


@pytest.mark.parametrize("name", ["se_resnet8", "se_resnet18"])
def test_convolutions_are_initialised_by_fan_out(name: str) -> None:
    """He et al. 2015, eq. 14; the convolutions of the attention branch too."""
    torch.manual_seed(0)
    encoder = build_encoder(name, "cifar", attention="abn")
    sizes = [
        (conv, conv.out_channels * conv.kernel_size[0] ** 2) for conv in encoder.modules() if type(conv) is nn.Conv2d
    ]
    for conv, outputs in sizes:
        if conv.weight.numel() > 800:
            assert conv.weight.std().item() == pytest.approx((2 / outputs) ** 0.5, rel=0.12)


def test_stages_of_cifar_family_halve_maps() -> None:
    """He et al. 2016, section 4.2: 32, 16 and 8 pixels per side."""
    encoder, sides = build_encoder("se_resnet20", "cifar"), []
    for stage in encoder.stages():
        stage.register_forward_hook(lambda stage, given, made: sides.append(tuple(made.shape[1:])))
    encoder(torch.rand(2, 3, 32, 32))
    assert sides == [(16, 32, 32), (32, 16, 16), (64, 8, 8)]


def test_cifar_shortcut_is_option_a() -> None:
    """He et al. 2016, section 3.3: every second pixel, and zeros for the new channels."""
    x = torch.rand(2, 3, 5, 6)
    shortcut = PadShortcut(4, 2)(x)
    assert shortcut.shape == (2, 7, 3, 3)
    for row in range(3):
        for column in range(3):
            assert torch.equal(shortcut[:, :3, row, column], x[:, :, 2 * row, 2 * column])
    assert not shortcut[:, 3:].any()


@pytest.mark.parametrize("name", ENCODERS)
@pytest.mark.parametrize("stem", ["imagenet", "cifar", "cifar-stride2"])
def test_every_encoder_takes_every_stem_and_grid_cells(name: str, stem: str) -> None:
    encoder = build_encoder(name, stem).eval()
    with torch.no_grad():
        assert encoder(torch.randn(2, 3, 16, 16)).shape == (2, encoder.out_features)
        first = encoder.conv1(torch.randn(1, 3, 32, 32))
        assert encoder.maxpool(first).shape[-1] == {"imagenet": 8, "cifar": 32, "cifar-stride2": 16}[stem]


def test_auto_stem_follows_image_size() -> None:
    assert build_encoder("se_resnet18", image_size=64).conv1.kernel_size == (3, 3)
    assert build_encoder("se_resnet18", image_size=65).conv1.kernel_size == (7, 7)
    with pytest.raises(UserError, match="needs the image size"):
        build_encoder("se_resnet18")


def test_width_of_cifar_family() -> None:
    assert build_encoder("se_resnet8", "cifar-stride2").out_features == 128
    assert build_encoder("se_resnet8", "cifar", width=8).out_features == 32
    with pytest.raises(UserError, match="fixed width"):
        build_encoder("se_resnet50", "cifar", width=32)
    with pytest.raises(UserError, match="at least 1"):
        build_encoder("se_resnet20", "cifar", width=0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "se_resnet5O"}, "did you mean 'se_resnet50'"),
        ({"name": "se_resnet20", "stem": "cifr"}, "did you mean 'cifar'"),
        ({"name": "se_resnet20", "stem": "cifar", "attention": "sse"}, "did you mean 'se'"),
        ({"name": "se_resnet20", "stem": "cifar", "placement": "pots"}, "did you mean 'post'"),
        (
            {"name": "se_resnet20", "stem": "cifar", "attention": "abn", "placement": "pre"},
            "does not apply to attention 'abn'",
        ),
    ],
)
def test_misspelt_names_are_refused(arguments: dict[str, str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        build_encoder(**arguments)
