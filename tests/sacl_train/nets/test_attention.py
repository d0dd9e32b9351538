"""Attention against NumPy implementations of the papers' formulas, and the parameters of SE against eq. 5."""

import numpy as np
import torch
from scipy.signal import correlate2d

from sacl_train.nets.attention import ATTENTION, SqueezeExcitation, TripletAttention


def test_se_equals_formula() -> None:
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


def test_se_has_parameters_of_eq_5_and_at_least_one_hidden_channel() -> None:
    assert sum(p.numel() for p in SqueezeExcitation(256).parameters()) == 2 * 256**2 // 16
    assert SqueezeExcitation(8).fc1.weight.shape == (1, 8)


def test_triplet_attention_equals_formula() -> None:
    """Misra et al. 2021, eq. 1 and 2, one image and one axis at a time."""
    block = TripletAttention(5).double().eval()
    u = torch.randn(2, 5, 6, 9, dtype=torch.float64)
    kernels = [gate[0].weight.detach().numpy()[0] for gate in block.gates]
    expected = np.zeros(u.shape)
    for n in range(2):
        maps = u[n].numpy()  # (C, H, W)
        for axis in range(3):
            pooled = np.stack([maps.max(axis), maps.mean(axis)])
            logits = sum(correlate2d(pooled[k], kernels[axis][k], mode="same") for k in range(2)) / np.sqrt(1 + 1e-5)
            expected[n] += maps * np.expand_dims(1 / (1 + np.exp(-logits)), axis) / 3
    np.testing.assert_allclose(block(u).detach().numpy(), expected, rtol=1e-10)


def test_global_context_equals_formula() -> None:
    """Cao et al. 2019, eq. 6: x + W2 relu(LN(W1 sum_j softmax(Wk x)_j x_j))."""
    make = ATTENTION["gc"]
    assert make is not None
    block = make(32).double()
    torch.nn.init.normal_(block.mlp_add.fc2.weight)
    u = torch.randn(2, 32, 4, 3, dtype=torch.float64)
    arrays = {name: p.detach().numpy().reshape(p.shape[0], -1) for name, p in block.named_parameters()}
    for n in range(2):
        x = u[n].numpy().reshape(32, 12)
        logits = (arrays["conv_attn.weight"] @ x)[0]
        context = x @ (np.exp(logits) / np.exp(logits).sum())
        hidden = arrays["mlp_add.fc1.weight"] @ context + arrays["mlp_add.fc1.bias"][:, 0]
        assert hidden.shape == (8,)
        normed = (hidden - hidden.mean()) / np.sqrt(hidden.var() + 1e-6)
        normed = normed * arrays["mlp_add.norm.weight"][:, 0] + arrays["mlp_add.norm.bias"][:, 0]
        added = arrays["mlp_add.fc2.weight"] @ np.maximum(normed, 0) + arrays["mlp_add.fc2.bias"][:, 0]
        expected = x + added[:, None]
        np.testing.assert_allclose(block(u)[n].detach().numpy().reshape(32, 12), expected, rtol=1e-6)
