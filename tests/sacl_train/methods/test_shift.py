"""CSI's head and instances: against slow formulas, for every method with negatives."""

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from sacl_train.config import load_config
from sacl_train.data.draws import Draws
from sacl_train.methods.method import Method
from sacl_train.methods.shift import Shifts
from sacl_train.methods.textures import TEXTURE_SOURCES
from sacl_train.training.setup import build_method
from texturegen.errors import UserError

SMALL: dict[str, dict[str, Any]] = {
    "sacl": {"projector_hidden": 16, "projector_out": 8, "predictor_hidden": 8},
    "mocov2": {"queue": 16},
    "simclr": {},
    "pirl": {"negatives": 5, "images": 10},
}
NETWORK = {"encoder": "se_resnet8", "width": 4, "stem": "cifar-stride2", "mean": [0.5] * 3, "std": [0.25] * 3}


def make(name: str, **settings: Any) -> Method:
    given = {**NETWORK, "method": name, "weak": "geometric", "texture_role": "negative", **SMALL[name], **settings}
    return build_method(load_config(None, given), (16, 16))


def make_batch(per_image: int) -> tuple[dict[str, Tensor], Draws]:
    random = torch.Generator().manual_seed(1)
    pixels = torch.randint(0, 256, (4, 1 + per_image, 3, 16, 16), dtype=torch.uint8, generator=random)
    return {"image": pixels[:, 0], "texture": pixels[:, 1:]}, Draws(0, 0, torch.tensor([2, 0, 7, 5]))


@pytest.mark.parametrize(
    ("source", "per_image", "labels"),
    [
        ("shards", 2, [0, 1, 1]),
        ("patch-shuffle", 1, [0, 1]),
        ("both", 3, [0, 1, 1, 2]),
        ("rotations", 3, [0, 1, 2, 3]),
        ("shards-and-rotations", 5, [0, 1, 1, 2, 3, 4]),
    ],
)
def test_classes_are_the_kinds_of_shift(source: str, per_image: int, labels: list[int]) -> None:
    shifts = TEXTURE_SOURCES[source]
    assert shifts.labels(per_image, torch.device("cpu")).tolist() == labels
    assert shifts.classes == max(labels) + 1


@pytest.mark.parametrize("name", SMALL)
def test_head_is_a_cross_entropy_beside_the_unchanged_loss(name: str) -> None:
    method = make(name, shift_head=0.5, texture_source="both")
    batch, draws = make_batch(3)
    without = copy.deepcopy(method)
    without.shift_head = None
    reference = copy.deepcopy(method)
    loss, metrics = method(batch, draws)
    alone, _ = without(batch, draws)
    assert reference.shift_head is not None
    views = [method.weak(batch["image"], draws.of(0))]
    views += [method.weak(batch["texture"][:, k], draws.of(2 + k)) for k in range(3)]
    logits = reference.shift_head(reference.encoder(torch.cat(views)))
    expected, right = 0.0, 0
    for row, kind in zip(logits.tolist(), [0] * 4 + [1] * 8 + [2] * 4, strict=True):
        expected -= (row[kind] - math.log(sum(map(math.exp, row)))) / 16
        right += row.index(max(row)) == kind
    assert loss.item() - alone.item() == pytest.approx(0.5 * expected, rel=1e-4)  # the views are float32
    assert metrics["shift_accuracy"].item() == pytest.approx(right / 16)
    loss.backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in method.shift_head.parameters())
    assert any(key.startswith("shift_head.") for key in method.state_dict())


def test_head_needs_textures() -> None:
    with pytest.raises(UserError, match="shift_head tells images from textures, and texture_role is none"):
        make("simclr", texture_role="none", shift_head=1.0)
    with pytest.raises(UserError, match=r"shift_head is -1\.0; it must be at least 0"):
        make("simclr", shift_head=-1.0)
    assert make("simclr").shift_head is None


def test_instances_of_simclr_are_images_of_their_own() -> None:
    method = make("simclr", texture_role="instance", tau=0.3)
    batch, draws = make_batch(2)
    reference = copy.deepcopy(method)
    loss, _ = method(batch, draws)
    images = [method.weak(batch["image"], draws.of(n)) for n in (0, 1)]
    textures = [
        torch.stack([method.weak(batch["texture"][:, k], draws.of(purpose + k)) for k in (0, 1)], 1).flatten(0, 1)
        for purpose in (2, 0x40000)
    ]
    z = reference.projector(reference.encoder(torch.cat([images[0], textures[0], images[1], textures[1]])))
    cosines = (F.normalize(z, dim=1) @ F.normalize(z, dim=1).T / 0.3).tolist()
    expected = 0.0
    for i, row in enumerate(cosines):
        others = [value for j, value in enumerate(row) if j != i]
        expected += (math.log(sum(map(math.exp, others))) - row[(i + 12) % 24]) / 24
    assert loss.item() == pytest.approx(expected, rel=1e-4)


def test_rotations_need_square_images() -> None:
    from sacl_train.data.rotations import quarter_turns

    with pytest.raises(UserError, match="rotations need square images, and these have 8x4 px"):
        quarter_turns(torch.zeros(1, 3, 4, 8))


def test_labels_without_textures_of_shards() -> None:
    assert Shifts(of_shards=False, turned=True).classes == 4
