"""Probes on fake CUDA tensors, which have devices and shapes but no values: an operation across devices fails.

`tests/sacl_train/training/test_cuda_by_fakes.py` does the same for a training step.
"""

from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

import sacl_train.data.device
from sacl_train.config import load_config
from sacl_train.evaluate import finetune, linear
from sacl_train.evaluate.augmented import fit_augmented
from sacl_train.evaluate.features import Features, encode_images
from sacl_train.evaluate.knn import fit_knn
from sacl_train.evaluate.linear import fit_linear, sweep_rates
from sacl_train.evaluate.norm import estimate_statistics
from sacl_train.evaluate.ood import csi_score, knn_distance
from sacl_train.evaluate.ridge import fit_ridge
from sacl_train.evaluate.shortcut import tell_apart

CUDA = torch.device("cuda:0")
CONFIG = load_config(None, {"mean": [0.5] * 3, "std": [0.2] * 3, "precision": "bf16"})
PIXELS, INDICES = torch.zeros(8, 3, 16, 16, dtype=torch.uint8), torch.arange(8)


class StubEncoder(nn.Module):
    """A convolution and a BatchNorm."""

    out_features = 6

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.AdaptiveAvgPool2d(1), nn.Flatten())

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.layers(x)
        return result


class StubImages:
    """Eight images of three classes in one batch."""

    place, size, labels = "stub", (16, 16), np.arange(8) % 3

    def __len__(self) -> int:
        return 8

    def batches(self, indices: Any = None, threads: int | None = None) -> Iterator[dict[str, Tensor]]:
        yield {"image": PIXELS, "index": INDICES}


@pytest.fixture
def mode(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeTensorMode]:
    """Fake tensors: every number that the host reads is 3, and the backward pass gives zeros as gradients."""
    optimizers: list[torch.optim.Optimizer] = []

    def recorded(make: Callable[..., torch.optim.Optimizer]) -> Callable[..., torch.optim.Optimizer]:
        return lambda *given, **options: optimizers.append(make(*given, **options)) or optimizers[-1]

    def backward(loss: Tensor) -> None:
        assert loss.requires_grad
        for parameter in (p for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]):
            parameter.grad = torch.zeros_like(parameter)

    for name, value in {"__int__": 3, "__float__": 3.0, "__bool__": True}.items():
        monkeypatch.setattr(Tensor, name, lambda self, value=value: value)
    monkeypatch.setattr(Tensor, "item", lambda self: 3.0)
    monkeypatch.setattr(Tensor, "backward", backward)
    monkeypatch.setattr(linear, "Lars", recorded(linear.Lars))
    monkeypatch.setattr(torch.optim, "SGD", recorded(torch.optim.SGD))
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *_: True)
    monkeypatch.setattr(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False)
    sacl_train.data.device._constant.cache_clear()
    with FakeTensorMode(allow_non_fake_inputs=True) as entered:
        yield entered
    sacl_train.data.device._constant.cache_clear()


def fake_features(mode: FakeTensorMode) -> tuple[Tensor, Tensor, Tensor]:
    """Return features of a training and of a test set, and labels, on fake CUDA."""
    return (
        torch.empty(20, 6, device=CUDA),
        torch.empty(5, 6, device=CUDA),
        torch.zeros(20, dtype=torch.int64, device=CUDA),
    )


def test_probes_of_features_stay_on_their_device(mode: FakeTensorMode) -> None:
    bank, queries, labels = fake_features(mode)
    for fit, settings in (
        (fit_knn, {"k": (2, 50)}),
        (fit_linear, {"epochs": 2, "batch_size": 8}),
        (fit_ridge, {}),
    ):
        for classify in fit(bank, labels, **settings).values():
            assert classify(queries).device == CUDA
    assert set(sweep_rates(bank, labels, epochs=1, batch_size=8).values()) == {3.0}
    assert knn_distance(bank, queries, 3).device == csi_score(bank, queries).device == CUDA
    assert tell_apart(bank, bank) == 3.0


def test_encoding_and_training_of_probes_stay_on_their_device(
    mode: FakeTensorMode, monkeypatch: pytest.MonkeyPatch
) -> None:
    with CUDA:  # module.to() cannot move fake tensors
        encoder = StubEncoder()
    images = StubImages()
    estimate_statistics(encoder, images, CONFIG, CUDA)
    assert {tensor.device for tensor in encoder.state_dict().values()} == {CUDA}
    values = encode_images(encoder, PIXELS, CONFIG, CUDA)
    assert (values.device, values.dtype) == (CUDA, torch.float32)
    features = Features(values, torch.zeros(8, dtype=torch.int64, device=CUDA), INDICES)
    subject: Any = SimpleNamespace(train=images, config=CONFIG, device=CUDA, features=features, encoder=encoder)
    assert fit_augmented(subject, epochs=2, batch_size=3)[""](values).device == CUDA
    monkeypatch.setattr(finetune, "_read", lambda *_: (PIXELS, INDICES))
    monkeypatch.setattr(finetune.copy, "deepcopy", lambda module: module)  # copies storages, of which fakes have none
    model = finetune.finetune(subject, np.arange(8), epochs=1, batch_size=4)
    assert model(torch.empty(2, 3, 16, 16, device=CUDA)).device == CUDA
