"""Arrays on their way to the device: one buffer that gives them back."""

from typing import Any

import numpy as np
import pytest
import torch

from sacl_train.data import device
from sacl_train.data.device import constant, pack, send, unpack


def test_what_is_packed_comes_out_again() -> None:
    random = np.random.default_rng(0)
    arrays = [
        random.random((5, 3, 3), np.float32),
        np.arange(7),
        np.zeros(0, np.float32),
        np.array([True, False, True]),
        random.integers(0, 256, (3, 5), np.uint8)[:, ::2],
        np.arange(6).reshape(2, 3).T,
    ]
    sent = unpack(pack(arrays), arrays)
    assert len(sent) == len(arrays)
    for tensor, array in zip(sent, arrays, strict=True):
        assert torch.equal(tensor, torch.from_numpy(array.copy()))
    assert all(torch.equal(a, b) for a, b in zip(send(arrays[:4], torch.device("cpu")), sent[:4], strict=True))


def test_what_goes_to_cuda_goes_in_one_copy_from_page_locked_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    arrays, asked = [np.arange(3), np.zeros((2, 2), np.float32)], []

    class OnDevice:
        def to(self, place: torch.device, non_blocking: bool) -> torch.Tensor:
            asked.append((place.type, non_blocking))
            return pack(arrays)

    def packed(given: Any, pin: bool) -> OnDevice:
        asked.append(pin)
        return OnDevice()

    monkeypatch.setattr(device, "pack", packed)
    assert [tensor.tolist() for tensor in send(arrays, torch.device("cuda"))] == [[0, 1, 2], [[0, 0], [0, 0]]]
    assert asked == [True, ("cuda", True)]


def test_a_constant_is_made_once_and_serves_training_after_evaluation() -> None:
    cpu = torch.device("cpu")
    with torch.inference_mode():
        first = constant((0.25, 0.5), cpu)
    assert constant((0.25, 0.5), cpu) is first
    assert first.dtype == torch.float32
    assert not first.is_inference()
    assert constant(((0, 1), (0, 2)), cpu).dtype == torch.int64
