"""BatchNorm without its count computes what torch's does."""

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn
from torch.utils._python_dispatch import TorchDispatchMode

from sacl_train.config import load_config
from sacl_train.nets.norms import BatchNorm1d, BatchNorm2d, stop_counting
from sacl_train.training.setup import build_method


class Names(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func: object, types: object, args: tuple = (), kwargs: dict | None = None) -> object:
        self.seen.append(str(func))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("shape", [(6, 3), (6, 3, 4, 5)])
def test_outputs_gradients_and_statistics_are_torchs(shape: tuple[int, ...]) -> None:
    theirs: nn.Module = (nn.BatchNorm1d if len(shape) == 2 else nn.BatchNorm2d)(3)
    ours = copy.deepcopy(theirs)
    stop_counting(ours)
    assert type(ours) is (BatchNorm1d if len(shape) == 2 else BatchNorm2d)
    batches = [torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in range(3)]
    for norm in (theirs, ours):
        for x in batches:
            norm(x).square().mul(torch.arange(3.0).view(1, 3, *[1] * (len(shape) - 2))).sum().backward()
    for a, b in zip(theirs.parameters(), ours.parameters(), strict=True):
        assert torch.equal(a.grad, b.grad)
    assert torch.equal(theirs.eval()(batches[0]), ours.eval()(batches[0]))
    assert theirs.state_dict().keys() == ours.state_dict().keys()
    assert (int(theirs.num_batches_tracked), int(ours.num_batches_tracked)) == (3, 0)
    for norm in (theirs, ours):  # the average of the batches, for which torch counts them
        update_bn(batches, norm)
    assert torch.equal(theirs.running_var, ours.running_var)
    with pytest.raises(ValueError, match="expected"):
        ours.train()(torch.zeros(2, 3, 4, 5, 6))


def test_networks_of_a_run_count_no_batches() -> None:
    settings = {"method": "byol", "encoder": "se_resnet8", "mean": [0.5] * 3, "std": [0.2] * 3}
    method = build_method(load_config(None, {**settings, "projector_hidden": 8, "projector_out": 8}), (32, 32))
    x: Tensor = torch.randn(4, 3, 32, 32)
    with Names() as names:
        method.projector(method.encoder(x))
    assert any("batch_norm" in name for name in names.seen)
    assert "aten.add_.Tensor" not in names.seen
    assert all(int(value) == 0 for key, value in method.state_dict().items() if key.endswith("num_batches_tracked"))
