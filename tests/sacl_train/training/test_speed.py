"""FLOPs of a step, and the share of a device's peak."""

from pathlib import Path

import pytest
import torch

from sacl_train.config import load_config
from sacl_train.data.stream import Plan, Stream
from sacl_train.training.speed import Speed, count_step_flops, matrix_peak, measure_speed
from texturegen import open_shards

CPU = torch.device("cpu")
TINY = {"encoder": "se_resnet8", "width": 4, "batch_size": 8, "mean": [0.5] * 3, "std": [0.2] * 3, "attention": "none"}


def test_flops_of_simclr_are_those_of_its_convolutions_and_heads() -> None:
    """SE-ResNet-8 at 16 px: conv1, three stages of one block, and the heads; backward costs twice forward, but conv1
    needs no gradient for the images."""
    heads = {"projector_hidden": 16, "projector_out": 8, "stem": "cifar"}
    config = load_config(None, {**TINY, **heads, "method": "simclr"})
    pixels = 16 * 16
    conv1 = pixels * 4 * 3 * 9
    stages = pixels * 2 * 4 * 4 * 9  # 4 channels
    stages += pixels // 4 * (8 * 4 * 9 + 8 * 8 * 9)  # 8 channels, stride 2; the shortcut has no weights
    stages += pixels // 16 * (16 * 8 * 9 + 16 * 16 * 9)
    head = 16 * 16 + 16 * 8
    views = 2 * 8
    products = views * (2 * conv1 + 3 * stages + 3 * head)
    loss = 3 * views * views * 8
    counted = count_step_flops(config, (16, 16), 0, CPU)
    assert counted == pytest.approx(2 * (products + loss), rel=0.01)


def test_textures_cost_a_pass_of_the_target() -> None:
    own = {"projector_hidden": 16, "projector_out": 8, "predictor_hidden": 8}
    flops = [
        count_step_flops(load_config(None, {**TINY, **own, "texture_role": role}), (16, 16), count, CPU)
        for role, count in (("none", 0), ("negative", 1), ("negative", 2))
    ]
    assert flops[0] < flops[1]
    assert flops[2] - flops[1] == pytest.approx(flops[1] - flops[0], rel=0.1)


def test_share_of_peak_is_flops_over_time_over_peak(shapes_shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert matrix_peak(CPU, side=64, products=1, rounds=1) > 0
    assert Speed(2e9, 1e12, CPU).metrics(steps=100, seconds=0.5) == {"mfu": pytest.approx(0.4), "peak_memory_gb": 0}
    monkeypatch.setattr("sacl_train.training.speed.matrix_peak", lambda _: 5.0)
    config = load_config(None, {**TINY, "projector_hidden": 16, "projector_out": 8, "predictor_hidden": 8})
    shards = open_shards(shapes_shards)
    whole, half = (measure_speed(config, Stream(shards, Plan(8, textures="one", ranks=ranks)), CPU) for ranks in (1, 2))
    assert whole.peak == 5.0
    assert whole.flops == count_step_flops(config, (32, 32), 1, CPU) == 2 * half.flops
