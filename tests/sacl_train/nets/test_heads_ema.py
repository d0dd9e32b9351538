"""Layers of the heads, and the update of the target against its formula."""

import pytest
import torch
from torch import nn

from sacl_train.nets.ema import make_target, momentum_at, update_target
from sacl_train.nets.heads import deep_mlp, mlp, predictor, projector


def test_heads_have_layers_of_method() -> None:
    kinds = [type(layer).__name__ for layer in projector(8, 16, 12)]
    assert kinds == ["Linear", "BatchNorm1d", "ReLU", "Linear", "BatchNorm1d", "ReLU", "Linear", "BatchNorm1d"]
    assert [type(layer).__name__ for layer in predictor(12, 4)] == ["Linear", "BatchNorm1d", "ReLU", "Linear"]
    assert [type(layer).__name__ for layer in mlp(8, 16, 12)] == ["Linear", "ReLU", "Linear"]
    assert [type(layer).__name__ for layer in mlp(8, 16, 12, norm=True)] == ["Linear", "BatchNorm1d", "ReLU", "Linear"]
    assert [type(layer).__name__ for layer in deep_mlp(8, 16, 12)] == kinds[:-1]
    assert [layer.bias is None for layer in predictor(12, 4) if isinstance(layer, nn.Linear)] == [True, False]
    x = torch.randn(5, 8)
    assert predictor(12, 4)(projector(8, 16, 12)(x)).shape == (5, 12)
    for head in (projector(8), predictor()):
        linear = [layer for layer in head if isinstance(layer, nn.Linear)]
        assert [layer.out_features for layer in linear] in ([2048, 2048, 2048], [512, 2048])
        assert all(layer.bias is None for layer in linear[:-1])


def networks() -> tuple[nn.Module, nn.Module]:
    """Return an online network and a target that lags behind it in parameters and statistics."""
    online = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Linear(5, 2))
    target = make_target(online)
    with torch.no_grad():
        for parameter in online.parameters():
            parameter.add_(torch.randn_like(parameter))
    online(torch.randn(8, 4) + 3)
    return online, target


@pytest.mark.parametrize("m", [0.0, 0.3, 0.99, 1.0])
def test_update_equals_formula_and_copies_buffers(m: float) -> None:
    online, target = networks()
    before = [p.clone() for p in target.parameters()]
    still = [p.detach().clone() for p in online.parameters()]
    update_target(target, online, m)
    for new, old, source, unmoved in zip(target.parameters(), before, online.parameters(), still, strict=True):
        torch.testing.assert_close(new.detach(), m * old + (1 - m) * source.detach())
        assert torch.equal(source, unmoved), "the update changed the online network"
    buffers = dict(target.named_buffers())
    assert set(buffers) == {"1.running_mean", "1.running_var", "1.num_batches_tracked"}
    for name, theirs in online.named_buffers():
        assert torch.equal(buffers[name], theirs)
        assert buffers[name] is not theirs


@pytest.mark.parametrize("m", [-0.1, 1.1, float("nan")])
def test_momentum_out_of_range_is_refused(m: float) -> None:
    online, target = networks()
    with pytest.raises(ValueError, match="m must be between 0 and 1"):
        update_target(target, online, m)


def test_momentum_is_constant_or_rises_to_one_along_cosine() -> None:
    """Grill et al. 2020, section 3.2."""
    assert [momentum_at(step, 8, 0.9) for step in (0, 4, 7)] == [0.9] * 3
    rising = [momentum_at(step, 8, 0.9, "cosine") for step in range(9)]
    assert rising == sorted(rising)
    assert [rising[step] for step in (0, 4, 8)] == pytest.approx([0.9, 0.95, 1.0])
    assert rising[2] == pytest.approx(1 - 0.1 * (0.5**0.5 + 1) / 2)


def test_buffers_are_not_copied_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    online, target = networks()
    calls: list[int] = []
    copy = torch._foreach_copy_
    monkeypatch.setattr(torch, "_foreach_copy_", lambda mine, theirs: calls.append(len(mine)) or copy(mine, theirs))
    update_target(target, online, 0.5)
    assert sorted(calls) == [1, 2]  # int64: the count of batches; float32: the statistics


def test_target_is_copy_without_gradient_in_train_mode() -> None:
    online, target = networks()
    assert not any(p.requires_grad for p in target.parameters())
    assert all(p.requires_grad for p in online.parameters())
    assert all(a.data_ptr() != b.data_ptr() for a, b in zip(online.parameters(), target.parameters(), strict=True))
    assert target.training
    update_target(target, online, 0.5)
    assert not any(p.requires_grad for p in target.parameters())
    assert all(p.grad_fn is None for p in target.parameters())
