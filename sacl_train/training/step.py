"""One step of the optimizer: forward and backward passes, gradient averaging, clipping, update, EMA target.

`make_step` returns the function that the loop calls. On CUDA that is a `capture.CapturedStep` where the settings allow
it: the same operations, recorded once as a CUDA graph and replayed.
"""

from collections.abc import Iterator, Mapping
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

from sacl_train.config import Config
from sacl_train.data.draws import Draws
from sacl_train.data.paste import paste_inside
from sacl_train.data.rotations import quarter_turns
from sacl_train.data.shuffle import shuffle_patches
from sacl_train.data.stream import Batch
from sacl_train.distributed import average_gradients, count_processes
from sacl_train.methods.method import LossTerm, Method, merge
from sacl_train.methods.textures import TEXTURE_SOURCES
from sacl_train.training.capture import CapturedStep
from sacl_train.training.optim import set_lr
from sacl_train.training.precision import autocast, cast_weights, make_scaler
from texturegen.errors import UserError

# Purposes of `Draws`: the random numbers of patch-shuffle, and of the place where a texture is pasted.
SHUFFLE = 1 << 17
PASTE = SHUFFLE + 1


class StepMetrics(NamedTuple):
    """The metrics of a step, stacked so that the host reads them in a single copy.

    Attributes
    ----------
    names : list of str
    values : Tensor, float64 (len(names),), on the device
        A captured step writes the next step's values into the same tensor.
    """

    names: list[str]
    values: Tensor


class Step(Protocol):
    """What `make_step` returns: run one optimizer step (0 <= step < steps) on this process's part of the batch."""

    def __call__(self, batch: Batch, epoch: int, step: int, steps: int, lr: float) -> StepMetrics: ...


def make_step(
    method: Method,
    optimizer: torch.optim.Optimizer,
    config: Config,
    device: torch.device,
    scaler: torch.amp.GradScaler | None = None,
) -> Step:
    """Return the function that does one step of the optimizer.

    Parameters
    ----------
    method : Method
        The networks and their loss, on `device`.
    optimizer : Optimizer
        Over the parameters of `method` that take a gradient.
    config : Config
        The run's settings: accumulate, clip, precision, cuda_graph, and those of the textures.
    device : device
        Where the networks are.
    scaler : GradScaler or None
        Scaler of the loss for fp16, part of a checkpoint; None makes a new one.

    Returns
    -------
    Step
        Changes the weights in place and returns the step's metrics. On CUDA it only queues work: the host never waits
        for the device, except in fp16, where the scaler has to know whether the gradients overflowed.

    Raises
    ------
    UserError
        If `cuda_graph` is true and the step cannot be captured.
    """
    scaler = make_scaler(config, device) if scaler is None else scaler
    trained = [p for group in optimizer.param_groups for p in group["params"]]

    def update(batch: Batch, epoch: int | Tensor, step: int | Tensor, steps: int) -> StepMetrics:
        """Do the step on a batch that is on the device; `epoch` and `step` are 0-d tensors if it is captured."""
        terms: list[LossTerm] = []
        for piece in _pieces(batch, config.accumulate):
            terms += add_gradients(method, piece, epoch, config, device, scaler)  # loss.backward() is in here
        average_gradients(trained)  # over the processes
        if config.clip is not None:
            scaler.unscale_(optimizer)
            torch.nn.utils.clip_grad_norm_(trained, config.clip)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad(set_to_none=True)
        moved = method.after_step(step, steps)  # moves the EMA target
        return stack_metrics({**merge(terms), **moved}, device)

    if is_captured(method, config, device):
        return CapturedStep(update, optimizer, device)

    def run(batch: Batch, epoch: int, step: int, steps: int, lr: float) -> StepMetrics:
        set_lr(optimizer, lr)
        # On CUDA the step is a tensor as in a captured one, so that both round the target's momentum alike.
        number = torch.full((), step, device=device) if device.type == "cuda" else step
        return update(move_batch(batch, device), epoch, number, steps)

    return run


def is_captured(method: Method, config: Config, device: torch.device) -> bool:
    """Return True if the step runs as a CUDA graph.

    A graph holds no host work, so gradient accumulation, fp16's loss scaling, communication between processes, and
    methods that are not made for it run operation by operation.

    Raises
    ------
    UserError
        If `cuda_graph` is true and one of these rules it out.
    """
    reasons = {
        "the device is not a CUDA GPU": device.type != "cuda",
        f"accumulate is {config.accumulate}": config.accumulate > 1,
        "precision is fp16": config.precision == "fp16",
        f"{count_processes()} processes train together": count_processes() > 1,
        f"method {config.method} is not made for it": not method.is_capturable,
    }
    against = [reason for reason, holds in reasons.items() if holds]
    if config.cuda_graph and against:
        raise UserError(f"cuda_graph is true, but {' and '.join(against)}; set cuda_graph to none or false")
    return config.cuda_graph is not False and not against


def add_gradients(
    method: Method,
    piece: Batch,
    epoch: int | Tensor,
    config: Config,
    device: torch.device,
    scaler: torch.amp.GradScaler,
) -> list[LossTerm]:
    """Add the gradients of one piece of a batch, on the device, to the parameters' own.

    Returns the piece's loss terms, divided by `config.accumulate`, and their metrics, all without gradient.
    """
    draws = Draws(config.seed, epoch, piece["index"])
    trained = [p for p in method.parameters() if p.requires_grad]
    done: list[LossTerm] = []
    with cast_weights(method, config, device):
        terms = method.all_terms(make_textures(piece, draws, config), draws)
        # Each backward pass comes before the next forward pass, so that only one term's activations are held.
        while (term := _next(terms, config, device)) is not None:
            loss = term[0] / config.accumulate if config.accumulate > 1 else term[0]
            _backpropagate(scaler.scale(loss), trained)
            done.append((loss.detach(), term[1]))
    return done


def _backpropagate(loss: Tensor, parameters: list[nn.Parameter]) -> None:
    """Add the gradients of a loss to those that the parameters have already.

    `loss.backward()` would add them by an operation for each parameter; here one adds all.
    """
    if all(p.grad is None for p in parameters):
        loss.backward()  # type: ignore[no-untyped-call]
        return
    sums, added = [], []
    for p, gradient in zip(parameters, torch.autograd.grad(loss, parameters, allow_unused=True), strict=True):
        if gradient is not None and p.grad is None:
            p.grad = gradient.clone()  # autograd may return one tensor for two parameters
        elif gradient is not None:
            sums.append(p.grad)
            added.append(gradient)
    torch._foreach_add_(sums, added)


def stack_metrics(metrics: Mapping[str, Tensor | float], device: torch.device) -> StepMetrics:
    """Stack metrics, 0-d tensors without gradient or numbers known to the host, into one tensor on `device`."""
    values = [
        v.to(device) if isinstance(v, Tensor) else torch.full((), v, dtype=torch.float64, device=device)
        for v in metrics.values()
    ]
    return StepMetrics(list(metrics), torch.stack(values).double())


def join(first: StepMetrics, second: StepMetrics) -> StepMetrics:
    """Return the metrics of both; their names differ."""
    return StepMetrics(first.names + second.names, torch.cat([first.values, second.values]))


def move_batch(batch: Batch, device: torch.device) -> Batch:
    """Copy a batch to the device; from page-locked memory the host does not wait for the copy."""
    return {name: values.to(device, non_blocking=True) for name, values in batch.items()}


def cell_sizes(config: Config, image_size: tuple[int, ...]) -> tuple[int, int]:
    """Return the smallest and the largest side of patch-shuffle's cells, in pixels."""
    side = min(image_size)
    low, high = (max(1, round(share * side)) for share in config.shuffle_cells)
    return low, high


def make_textures(batch: Batch, draws: Draws, config: Config) -> Batch:
    """Return images and textures, among them those that the config asks to be made on the device.

    Raises
    ------
    UserError
        If they cannot be made of images of this size.
    """
    made: Batch = {name: batch[name] for name in ("image", "texture") if name in batch}
    if config.method_settings.texture_role == "none":
        return made
    kinds = TEXTURE_SOURCES[config.texture_source]
    if kinds.shuffled:
        sizes = cell_sizes(config, made["image"].shape[-2:])
        _append(made, shuffle_patches(made["image"], draws.of(SHUFFLE), sizes)[:, None])
    if kinds.turned:
        _append(made, quarter_turns(made["image"]))
    if config.texture_part == "inside" and "texture" in made:
        made["texture"] = paste_inside(made["image"], made["texture"], draws.of(PASTE))
    return made


def _next(terms: Iterator[LossTerm], config: Config, device: torch.device) -> LossTerm | None:
    # The context covers the forward pass only: autograd chooses the types of the backward pass itself.
    with autocast(config, device):
        return next(terms, None)


def _append(batch: Batch, textures: Tensor) -> None:
    batch["texture"] = torch.cat([batch["texture"], textures], 1) if "texture" in batch else textures


def _pieces(batch: Batch, count: int) -> Iterator[Batch]:
    """Cut a batch into `count` equal pieces along its first dimension."""
    size = len(batch["index"]) // count
    for i in range(count):
        yield {name: values[i * size : (i + 1) * size] for name, values in batch.items()}
