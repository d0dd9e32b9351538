"""Constants on a device, and copies to the host that do not synchronise."""

from typing import Any

import pytest
import torch

from sacl_train.data.device import constant, fetch_async


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
