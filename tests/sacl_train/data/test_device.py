"""Copies between host and device use one buffer and do not synchronise."""

from typing import Any

import numpy as np
import pytest
import torch

from sacl_train.data import device
from sacl_train.data.device import constant, fetch_async, pack, to_device, unpack


def test_unpack_reverses_pack() -> None:
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
    assert all(torch.equal(a, b) for a, b in zip(to_device(arrays[:4], torch.device("cpu")), sent[:4], strict=True))


def test_arrays_go_to_cuda_in_one_copy_from_page_locked_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    arrays, asked = [np.arange(3), np.zeros((2, 2), np.float32)], []

    class OnDevice:
        def to(self, place: torch.device, non_blocking: bool) -> torch.Tensor:
            asked.append((place.type, non_blocking))
            return pack(arrays)

    def packed(given: Any, pin: bool) -> OnDevice:
        asked.append(pin)
        return OnDevice()

    monkeypatch.setattr(device, "pack", packed)
    assert [tensor.tolist() for tensor in to_device(arrays, torch.device("cuda"))] == [[0, 1, 2], [[0, 0], [0, 0]]]
    assert asked == [True, ("cuda", True)]


def test_asynchronous_fetch_waits_only_for_its_own_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    assert fetch_async(torch.tensor([1.5, 2.0]))() == [1.5, 2.0]
    done: list[str] = []

    class There:
        """A tensor on the host, standing in for page-locked memory."""

        def copy_(self, values: Any, non_blocking: bool) -> None:
            done.append(f"copy, non_blocking {non_blocking}")

        def tolist(self) -> list[float]:
            done.append("read")
            return [3.0]

    class Event:
        def record(self) -> None:
            done.append("record")

        def synchronize(self) -> None:
            done.append("wait")

    class Values:
        device, shape, dtype = torch.device("cuda"), (1,), torch.float64

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch, "empty", lambda shape, dtype, pin_memory: There() if pin_memory else None)
    read = fetch_async(Values())  # type: ignore[arg-type]
    assert done == ["copy, non_blocking True", "record"]
    assert read() == [3.0]
    assert done[2:] == ["wait", "read"]


def test_constant_is_made_once_and_usable_in_training_after_evaluation() -> None:
    cpu = torch.device("cpu")
    with torch.inference_mode():
        first = constant((0.25, 0.5), cpu)
    assert constant((0.25, 0.5), cpu) is first
    assert first.dtype == torch.float32
    assert not first.is_inference()
    assert constant(((0, 1), (0, 2)), cpu).dtype == torch.int64
