"""The SE block against SACL eq. 3, 4 written in NumPy, and its cost against eq. 5."""

import numpy as np
import torch

from sacl_train.nets.attention import SqueezeExcitation


def test_se_equals_the_formula() -> None:
    block = SqueezeExcitation(32, reduction=4).double()
    u = torch.randn(3, 32, 5, 7, dtype=torch.float64)
    w1, w2 = block.fc1.weight.detach().numpy(), block.fc2.weight.detach().numpy()
    assert w1.shape == (8, 32)
    expected = np.empty(u.shape)
    for image in range(3):
        pooled = np.array([u[image, c].numpy().sum() / 35 for c in range(32)])
        scale = 1 / (1 + np.exp(-(w2 @ np.maximum(w1 @ pooled, 0))))
        for c in range(32):
            expected[image, c] = scale[c] * u[image, c].numpy()
    np.testing.assert_allclose(block(u).detach().numpy(), expected, rtol=1e-10)


def test_se_has_the_parameters_of_eq_5_and_at_least_one_hidden_channel() -> None:
    assert sum(p.numel() for p in SqueezeExcitation(256).parameters()) == 2 * 256**2 // 16
    assert SqueezeExcitation(8).fc1.weight.shape == (1, 8)
