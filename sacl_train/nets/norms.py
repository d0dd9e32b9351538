"""BatchNorm that does not count its batches, and that normalises several batches of one pass each by itself.

torch's BatchNorm adds 1 to `num_batches_tracked` in each forward pass, although only a momentum of None reads it. In
the passes of a SACL step with SE-ResNet-50 these are 282 operations on single numbers, each a kernel on a GPU.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

LARGEST = 3  # rows of a pass, in rows of its first batch: two views and a texture


class Uncounted(_BatchNorm):
    """Base class of these BatchNorms."""

    # Images of each batch in the input; empty: all rows are one batch. Not in the state dict. See `encode_apart`.
    sizes: tuple[int, ...] = ()

    def forward(self, x: Tensor) -> Tensor:
        if not self.sizes:
            return self._normalise(x)
        rows = len(x) // sum(self.sizes)  # of an image: LeViT normalises tokens, EfficientViT windows
        return torch.cat([self._normalise(batch) for batch in x.split([size * rows for size in self.sizes])])

    def _normalise(self, x: Tensor) -> Tensor:
        if not self.training or self.momentum is None or not self.track_running_stats:
            return super().forward(x)
        self._check_input_dim(x)
        return F.batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias, True, self.momentum, self.eps
        )


class BatchNorm1d(Uncounted, nn.BatchNorm1d):
    """torch's, without the count."""


class BatchNorm2d(Uncounted, nn.BatchNorm2d):
    """torch's, without the count."""


def stop_counting(network: nn.Module) -> None:
    """Turn the BatchNorms of a network that are exactly torch's into these; their state dict stays the same."""
    for module in network.modules():
        if type(module) is nn.BatchNorm1d:
            module.__class__ = BatchNorm1d
        elif type(module) is nn.BatchNorm2d:
            module.__class__ = BatchNorm2d


def encode_apart(networks: Sequence[nn.Module], batches: Sequence[Tensor]) -> list[Tensor]:
    """Encode several batches in one pass; BatchNorm normalises each by its own statistics, as in passes of their own.

    One pass has fewer and larger operations. It takes at most three times the rows of the first batch; more textures
    need further passes, not more memory. Networks with other BatchNorms than ours, such as SyncBatchNorm and timm's
    with an activation, make a pass for each batch, and so do those with checkpointing where no gradient is taken: the
    activations of all batches at once would be the most that a step holds.

    Parameters
    ----------
    networks : sequence of nn.Module
        Applied one after the other. They map rows to rows, and only BatchNorm looks at several of them; where an image
        has several rows in it, such as tokens, they follow each other.
    batches : sequence of Tensor (M_i, ...)
        Their rows are of one shape.

    Returns
    -------
    list of Tensor (M_i, ...)
    """
    modules = [module for network in networks for module in network.modules()]
    norms = [module for module in modules if isinstance(module, Uncounted)]
    is_foreign = len(norms) < sum(isinstance(module, _BatchNorm) for module in modules)
    saves_memory = not torch.is_grad_enabled() and any(getattr(module, "checkpointing", False) for module in modules)
    encoded: list[Tensor] = []
    for together in _share_passes(batches, 0 if is_foreign or saves_memory else LARGEST * len(batches[0])):
        if len(together) == 1:
            encoded.append(_apply(networks, together[0]))
            continue
        sizes = tuple(map(len, together))
        with normalise_apart(norms, sizes):
            encoded += _apply(networks, torch.cat(together)).split(sizes)
    return encoded


def _share_passes(batches: Sequence[Tensor], rows: int) -> list[list[Tensor]]:
    """Distribute batches, in order, over passes of at most `rows` rows; a larger batch has a pass of its own."""
    passes: list[list[Tensor]] = [[]]
    for batch in batches:
        if passes[-1] and sum(map(len, passes[-1])) + len(batch) > rows:
            passes.append([])
        passes[-1].append(batch)
    return passes


@contextmanager
def normalise_apart(norms: Sequence[Uncounted], sizes: tuple[int, ...]) -> Iterator[None]:
    """Let BatchNorms normalise batches of `sizes` images each by itself; (): all rows together."""
    try:
        for norm in norms:
            norm.sizes = sizes
        yield
    finally:
        for norm in norms:
            norm.sizes = ()


def _apply(networks: Sequence[nn.Module], x: Tensor) -> Tensor:
    for network in networks:
        x = network(x)
    return x
