"""What changes while a run trains, and how it goes into a checkpoint and comes back."""

import time
from collections import deque
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch

from sacl_train.config import Config
from sacl_train.distributed import synchronise_batch_norm
from sacl_train.methods.method import Method
from sacl_train.training.checkpoint import Checkpoint
from sacl_train.training.metrics import Lap, Row
from sacl_train.training.online import OnlineProbe, make_online
from sacl_train.training.optim import build_optimizer
from sacl_train.training.precision import make_scaler
from sacl_train.training.resume import comparable, load_weights, location
from sacl_train.training.setup import build_method
from texturegen.errors import DamagedError, UserError
from texturegen.shards import Shards


@dataclass
class EpochProgress:
    """Progress within an epoch.

    Attributes
    ----------
    number : of the epoch, from 0.
    batches : done so far.
    seconds : wall time spent on them.
    waited : seconds of these spent waiting for the batch; `data_wait` in the metrics is its share.
    sums : of each metric, over the batches.
    """

    number: int
    batches: int = 0
    seconds: float = 0.0
    waited: float = 0.0
    sums: dict[str, float] = field(default_factory=dict)


class PendingMetrics(NamedTuple):
    """Metrics of a step that are on their way from the device to the host."""

    step: int
    lr: float
    names: list[str]
    fetch: Callable[[], list[float]]


@dataclass
class TrainState:
    """Everything that changes while a run trains.

    Attributes
    ----------
    method, optimizer, scaler : what a step changes.
    online : the online probe, if the config asks for one.
    steps_per_epoch : batches of an epoch.
    rows : metrics of the finished epochs.
    epoch : progress within the current epoch.
    damaged : samples that any process found damaged: number -> what is wrong.
    saved_step : step of the last checkpoint.
    saved_at : `time.monotonic()` of the last checkpoint of this session, or of its start; not in checkpoints.
    log_bytes : length of steps.jsonl at the last checkpoint.

    pending, lap, is_stop_requested, is_save_due : not in checkpoints: metrics that are still on the device, the time
        since the last line of steps.jsonl, and whether to stop, or to write a checkpoint, after this step.
    """

    method: Method
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    online: OnlineProbe | None
    steps_per_epoch: int
    rows: list[Row] = field(default_factory=list)
    epoch: EpochProgress = field(default_factory=lambda: EpochProgress(0))
    damaged: dict[int, str] = field(default_factory=dict)
    saved_step: int = 0
    saved_at: float = field(default_factory=time.monotonic)
    log_bytes: int = 0
    pending: deque[PendingMetrics] = field(default_factory=deque)
    lap: Lap = field(default_factory=Lap)
    is_stop_requested: bool = False
    is_save_due: bool = False

    @property
    def step(self) -> int:
        """Steps done, which is the number of the next one."""
        return self.epoch.number * self.steps_per_epoch + self.epoch.batches


def make_state(
    config: Config, shards: Shards, device: torch.device, steps_per_epoch: int, is_new: bool = True
) -> TrainState:
    """Return the state before the first step, its networks on the device.

    A run that is not new restores its weights afterwards, so the file of `config.init` is not needed any more.
    """
    method = build_method(config, shards.image_size(), initialise=is_new)
    synchronise_batch_norm(method, device)
    method = method.to(device)
    if config.channels_last:
        method = method.to(memory_format=torch.channels_last)
    # On CUDA always as for a captured step, so that a step has the same bits whether it is captured or not.
    on_cuda = device.type == "cuda"
    optimizer = build_optimizer(
        method,
        config.optimizer,
        config.lr,
        config.sgd_momentum,
        config.weight_decay,
        decay_norms=config.decay_norms,
        norm_lr=config.norm_lr,
        betas=config.betas,
        trust=config.lars_trust,
        trust_clip=config.lars_clip,
        constant_lr=method.constant_lr(),
        capturable=on_cuda,
    )
    online = make_online(config, method.encoder, shards, device)
    return TrainState(method, optimizer, make_scaler(config, device), online, steps_per_epoch)


def snapshot(state: TrainState, config: Config, shards: Shards) -> Checkpoint:
    """Return the checkpoint of `state`. Its tensors are the state's own: copy them before the next step."""
    return {
        "step": state.saved_step,
        "epoch": len(state.rows),
        "running": asdict(state.epoch),
        "method": state.method.state_dict(),
        "optimizer": state.optimizer.state_dict(),
        "scaler": state.scaler.state_dict(),
        "online": state.online.state() if state.online is not None else None,
        "metrics": state.rows,
        "steps_bytes": state.log_bytes,
        "damaged": state.damaged,
        # Which run this is; `resume.refuse_other_run` and `resume.load_networks` read it.
        "config": comparable(config),
        "shards": shards.digest,
        "shards_place": location(shards),
        "image_size": shards.image_size(),
        "torch_threads": torch.get_num_threads(),
    }


def restore(state: TrainState, checkpoint: Checkpoint, out: Path) -> None:
    """Put what `snapshot` saved back into a new state, in the same order.

    Raises
    ------
    DamagedError
        If the content does not fit the networks, the optimizer or the probe; `out` is named as the place.
    """
    online: Any = checkpoint.get("online")  # checkpoints from before the probe existed have no such key
    try:
        state.saved_step = checkpoint["step"]
        # "epoch" is the number of rows of "metrics".
        state.epoch = EpochProgress(**checkpoint["running"])
        load_weights(state.method, checkpoint, out)
        # The groups' options follow from the config and the device; the schedule sets the learning rates.
        options = [{key: group[key] for key in group if key != "params"} for group in state.optimizer.param_groups]
        state.optimizer.load_state_dict(checkpoint["optimizer"])
        for group, own in zip(state.optimizer.param_groups, options, strict=True):
            group.update(own)
        state.scaler.load_state_dict(checkpoint["scaler"])
        if state.online is not None:
            state.online.load(online)
        state.rows = checkpoint["metrics"]
        state.log_bytes = checkpoint["steps_bytes"]
        state.damaged = checkpoint["damaged"]
    except UserError:
        raise
    except (KeyError, TypeError, ValueError, RuntimeError, AttributeError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise DamagedError(f"{out}: the checkpoint does not fit this version of sacl-train ({reason})") from None
