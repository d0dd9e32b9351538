"""Encoders: parameter counts against the papers', torchvision's weights, stems and the registry's messages."""

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import resnet18, resnet50

from sacl_train.nets import ENCODERS, build_encoder
from sacl_train.nets.cifar import PadShortcut
from sacl_train.nets.resnet import SEBottleneck
from texturegen.errors import UserError


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def eq5(blocks: list[int], channels: list[int]) -> int:
    """2/r * sum_s N_s C_s^2 (SACL eq. 5), r = 16."""
    return sum(2 * n * c * c // 16 for n, c in zip(blocks, channels, strict=True))


def test_resnet50_has_the_parameters_of_table_1() -> None:
    classifier = 2048 * 1000 + 1000  # table 1 counts the ImageNet classifier
    plain = count(build_encoder("se_resnet50", "imagenet", attention="none")) + classifier
    se = count(build_encoder("se_resnet50", "imagenet")) + classifier
    assert plain == 25_557_032  # 25.56 M
    assert se - plain == eq5([3, 4, 6, 3], [256, 512, 1024, 2048]) == 2_514_944
    assert round(se / 1e6, 2) == 28.07


@pytest.mark.parametrize(
    ("name", "blocks", "channels"),
    [
        ("se_resnet18", [2, 2, 2, 2], [64, 128, 256, 512]),
        ("se_resnet34", [3, 4, 6, 3], [64, 128, 256, 512]),
        ("se_resnet101", [3, 4, 23, 3], [256, 512, 1024, 2048]),
        ("se_resnet20", [3, 3, 3], [16, 32, 64]),
        ("se_resnet8", [1, 1, 1], [32, 64, 128]),
    ],
)
def test_se_adds_the_parameters_of_eq_5(name: str, blocks: list[int], channels: list[int]) -> None:
    plain = build_encoder(name, "cifar", attention="none")
    assert count(build_encoder(name, "cifar")) - count(plain) == eq5(blocks, channels)
    assert plain.out_features == channels[-1]


def test_resnet20_has_the_parameters_of_the_paper() -> None:
    """He et al. 2016 table 6: 0.27 M, with the classifier of 10 classes; shortcuts have none (option A)."""
    convolutions = 27 * 16 + 6 * 9 * 16**2 + 9 * (16 * 32 + 5 * 32**2) + 9 * (32 * 64 + 5 * 64**2)
    batch_norms = 2 * (7 * 16 + 6 * 32 + 6 * 64)
    plain = count(build_encoder("se_resnet20", "cifar", attention="none"))
    assert plain == convolutions + batch_norms == 269_072
    assert count(build_encoder("se_resnet20", "cifar")) == 271_088


@pytest.mark.parametrize(("name", "theirs"), [("se_resnet18", resnet18), ("se_resnet50", resnet50)])
def test_torchvision_weights_load_and_give_its_features(name: str, theirs: type[nn.Module]) -> None:
    reference = theirs().eval()
    for module in reference.modules():
        if isinstance(module, nn.BatchNorm2d):  # statistics that an ignored buffer would show
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
def test_se_blocks_without_their_scaling_are_the_plain_network(name: str) -> None:
    se, plain = build_encoder(name, "cifar").eval(), build_encoder(name, "cifar", attention="none").eval()
    plain.load_state_dict(se.state_dict(), strict=False)
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        expected = plain(x)
        assert not torch.allclose(se(x), expected)
        for module in se.modules():
            if hasattr(module, "se"):
                module.se = _One()
        torch.testing.assert_close(se(x), expected)


def test_se_scales_the_residual_branch_before_the_sum() -> None:
    block = SEBottleneck(256, 64).eval()
    nn.init.constant_(block.se.fc2.weight, 0)  # sigmoid(0) = 1/2 for all channels
    block.bn3.running_mean.normal_()  # or scaling before this BN would be the same
    x = torch.rand(2, 256, 8, 8)
    with torch.no_grad():
        branch = block.bn2(block.conv2(torch.relu(block.bn1(block.conv1(x)))))
        branch = block.bn3(block.conv3(torch.relu(branch)))
        torch.testing.assert_close(block(x), torch.relu(0.5 * branch + x))


def test_cifar_shortcut_is_option_a() -> None:
    """He et al. 2016 §3.3: every second pixel, and zeros for the new channels."""
    x = torch.rand(2, 3, 5, 6)
    shortcut = PadShortcut(4)(x)
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


def test_auto_stem_follows_the_image_size() -> None:
    assert build_encoder("se_resnet18", image_size=64).conv1.kernel_size == (3, 3)
    assert build_encoder("se_resnet18", image_size=65).conv1.kernel_size == (7, 7)
    with pytest.raises(UserError, match="needs the image size"):
        build_encoder("se_resnet18")


def test_width_of_the_cifar_family() -> None:
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
    ],
)
def test_misspelt_names(arguments: dict[str, str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        build_encoder(**arguments)
