"""Arrays on their way to the device: one buffer that gives them back."""

import numpy as np
import torch

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


def test_a_constant_is_made_once_and_serves_training_after_evaluation() -> None:
    cpu = torch.device("cpu")
    with torch.inference_mode():
        first = constant((0.25, 0.5), cpu)
    assert constant((0.25, 0.5), cpu) is first
    assert first.dtype == torch.float32
    assert not first.is_inference()
    assert constant(((0, 1), (0, 2)), cpu).dtype == torch.int64
