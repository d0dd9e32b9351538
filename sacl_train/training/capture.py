"""The training step as a CUDA graph: recorded once, then replayed by a single launch.

A step at 32 px is thousands of kernels of a few microseconds each; launching them one by one takes the host longer than
the device needs to run them.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from sacl_train.data.stream import Batch
from sacl_train.training.optim import set_lr

# Steps before the capture: they create the optimizer's state, compile the networks, let cuDNN choose its kernels, and
# fill the caches of constants. They are steps of the run like all others.
WARM_UP = 3


class CapturedStep:
    """A `step.Step` that replays a CUDA graph.

    Whatever changes from step to step is in tensors of fixed addresses, which are written before each replay: the
    batch, the epoch, the step, and the learning rate.

    Parameters
    ----------
    update : callable
        Maps a batch on the device, the epoch and the step (0-d int64 tensors on the device) and the number of steps of
        the run to metrics (a NamedTuple whose "values" is a tensor on the device), and changes the weights. It must
        not depend on anything else that changes.
    optimizer : Optimizer
        The one that `update` uses, its learning rates tensors on the device (`build_optimizer(..., capturable=True)`).
    device : device
        A CUDA device.
    """

    def __init__(self, update: Callable[..., Any], optimizer: torch.optim.Optimizer, device: torch.device) -> None:
        self._update, self._optimizer, self._device = update, optimizer, device
        self._epoch, self._step = (torch.zeros((), dtype=torch.int64, device=device) for _ in range(2))
        self._batch: Batch = {}
        self._stream = torch.cuda.Stream(device)
        self._graph: torch.cuda.CUDAGraph | None = None
        self._done = 0
        self._metrics: Any = None

    def __call__(self, batch: Batch, epoch: int, step: int, steps: int, lr: float) -> Any:
        """Do one step; its metrics are valid until the next call.

        Raises
        ------
        ValueError
            If the batch has other shapes than the first one.
        """
        set_lr(self._optimizer, lr)
        self._epoch.fill_(epoch)
        self._step.fill_(step)
        self._take(batch)
        if self._graph is None and self._done < WARM_UP:
            self._done += 1
            return self._run(steps)
        if self._graph is None:
            self._graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self._graph, stream=self._stream):
                self._metrics = self._update(self._batch, self._epoch, self._step, steps)
        self._graph.replay()
        return self._metrics

    def _take(self, batch: Batch) -> None:
        """Copy a batch to the addresses that the graph reads."""
        if not self._batch:
            self._batch = {name: torch.empty_like(values, device=self._device) for name, values in batch.items()}
        for name, values in batch.items():
            target: Tensor = self._batch[name]
            if values.shape != target.shape:
                raise ValueError(
                    f"a captured step takes batches of one shape: {name} is {tuple(values.shape)}, "
                    f"and was {tuple(target.shape)}"
                )
            target.copy_(values, non_blocking=True)

    def _run(self, steps: int) -> Any:
        """Do a step operation by operation, on the stream of the capture."""
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._stream):
            metrics = self._update(self._batch, self._epoch, self._step, steps)
        torch.cuda.current_stream(self._device).wait_stream(self._stream)
        return metrics
