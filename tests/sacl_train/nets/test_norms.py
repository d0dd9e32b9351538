"""BatchNorm without its count computes what torch's does, also for several batches in one pass."""

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn
from torch.utils._python_dispatch import TorchDispatchMode

from sacl_train.config import load_config
from sacl_train.nets import build_encoder
from sacl_train.nets.heads import projector
from sacl_train.nets.norms import BatchNorm1d, BatchNorm2d, encode_apart, stop_counting
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


@pytest.mark.parametrize(
    ("sizes", "rows"),
    [((4,), [4]), ((4, 4, 4), [12]), ((4, 4, 4, 4), [12, 4]), ((4, 4, 16), [8, 16]), ((3, 4, 2, 5), [9, 5])],
    ids=str,
)
def test_batches_of_one_pass_are_normalised_apart(sizes: tuple[int, ...], rows: list[int]) -> None:
    torch.manual_seed(0)
    encoder = build_encoder("se_resnet8", "cifar", width=4)
    networks = nn.ModuleList([encoder, projector(encoder.out_features, 8, 8)]).double()
    stop_counting(networks)
    apart = copy.deepcopy(networks)
    # Each batch has a mean and a contrast of its own, so that statistics of all would be others.
    batches = [
        torch.randn(size, 3, 8, 8, generator=torch.Generator().manual_seed(n)).double() * (n + 1) + n
        for n, size in enumerate(sizes)
    ]
    passes: list[int] = []
    encoder.register_forward_pre_hook(lambda _, args: passes.append(len(args[0])))
    together = encode_apart([*networks], batches)
    assert passes == rows
    expected = [apart[1](apart[0](batch)) for batch in batches]
    for found, wanted in zip(together, expected, strict=True):
        torch.testing.assert_close(found, wanted)
    for outputs in (together, expected):
        torch.stack([rows.square().sum() for rows in outputs]).sum().backward()
    for a, b in zip(networks.parameters(), apart.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad)
    for key, value in apart.state_dict().items():  # the statistics of all batches, one after the other
        torch.testing.assert_close(networks.state_dict()[key], value)
    joint = torch.cat(batches)
    torch.testing.assert_close(encoder(joint), apart[0](joint))  # a later pass has one batch again


class Tokens(nn.Sequential):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.flatten(0, 1)).unflatten(0, x.shape[:2]).flatten(1)


def test_rows_of_tokens_are_normalised_with_their_batch() -> None:
    network = Tokens(nn.Linear(3, 4), nn.BatchNorm1d(4))
    stop_counting(network)
    batches = [torch.randn(size, 6, 3) * size for size in (2, 5)]
    for found, batch in zip(encode_apart([network], batches), batches, strict=True):
        torch.testing.assert_close(found, network(batch))


def test_single_batch_is_not_copied() -> None:
    seen: list[Tensor] = []
    network = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    stop_counting(network)
    network.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    encode_apart([network], batches := [torch.randn(5, 3)])
    assert seen[0] is batches[0]


@pytest.mark.parametrize(
    ("checkpointing", "with_gradient", "passes"), [(True, False, 2), (True, True, 1), (False, False, 1)]
)
def test_checkpointing_saves_memory_in_passes_without_gradient(
    checkpointing: bool, with_gradient: bool, passes: int
) -> None:
    encoder = build_encoder("se_resnet8", "cifar", width=4, checkpointing=checkpointing)
    stop_counting(encoder)
    seen: list[int] = []
    encoder.register_forward_pre_hook(lambda _, args: seen.append(len(args[0])))
    with torch.set_grad_enabled(with_gradient):
        encode_apart([encoder], [torch.randn(2, 3, 8, 8), torch.randn(2, 3, 8, 8)])
    assert len(seen) == passes


def test_networks_with_other_batch_norms_make_a_pass_for_each_batch() -> None:
    networks = [nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)), nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))]
    stop_counting(networks[0])
    passes: list[int] = []
    networks[0].register_forward_pre_hook(lambda _, args: passes.append(len(args[0])))
    batches = [torch.randn(size, 3) for size in (5, 6)]
    for found, batch in zip(encode_apart(networks, batches), batches, strict=True):
        torch.testing.assert_close(found, networks[1](networks[0](batch)))
    assert passes[:2] == [5, 6]


def test_failed_pass_leaves_batch_norm_as_it_was() -> None:
    network = nn.Sequential(nn.BatchNorm1d(3), nn.Linear(4, 4))
    stop_counting(network)
    with pytest.raises(RuntimeError):
        encode_apart([network], [torch.randn(4, 3), torch.randn(5, 3)])
    assert network[0](torch.randn(6, 3)).shape == (6, 3)
