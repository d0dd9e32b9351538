"""Say how many images fit when a step runs out of the device's memory."""

import torch

from sacl_train.config import Config
from sacl_train.data.stream import Batch
from sacl_train.distributed import count_processes
from sacl_train.methods.method import Method
from sacl_train.training.precision import make_scaler
from sacl_train.training.step import add_gradients, move_batch
from texturegen.errors import UserError


def explain_out_of_memory(
    method: Method, batch: Batch, step: int, epoch: int, config: Config, device: torch.device, hint: str = ""
) -> UserError:
    """Return the error for a batch that did not fit, with an estimate of what does, made on CUDA with an eighth of it.

    Call it outside the exception handler: a handler keeps the tensors of the failed step alive.

    Parameters
    ----------
    method : Method
        The networks; their gradients are dropped.
    batch : Batch
        The batch that did not fit.
    step, epoch : int
        Where it happened.
    config : Config
        The run's settings.
    device : device
        The device that was full.
    hint : str
        Added to the advice to change settings.
    """
    size = len(batch["index"]) // config.accumulate
    if count_processes() > 1:  # a trial step would wait for keys and gradients that the other processes do not send
        advice = "the number that fits is estimated in single-process runs only; try half of it"
    elif device.type == "cuda":
        few = {name: values[: max(2, size // 8)] for name, values in batch.items()}
        advice = _estimate(method, few, epoch, config, device)
    else:
        advice = "try half of it"
    return UserError(
        f"step {step}: the device is out of memory with {size} images at once; {advice}. To cut a batch into smaller "
        f"pieces: --set accumulate={2 * config.accumulate}; to save memory: --set checkpointing=true or "
        f"precision=bf16{hint}"
    )


def largest_batch(base: int, peak: int, tried: int, available: int) -> int:
    """Return how many images fit into `available` bytes.

    Parameters
    ----------
    base, peak : int
        Bytes in use before a step of `tried` images, and its peak.
    tried : int
        Images of that step.
    available : int
        Bytes. A tenth is kept free, for memory that does not grow in proportion.
    """
    return int(0.9 * (available - base) / max((peak - base) / tried, 1))


def _estimate(method: Method, few: Batch, epoch: int, config: Config, device: torch.device) -> str:
    """Say how many images fit on a CUDA device, from the peak memory of a step with `few`."""
    method.zero_grad(set_to_none=True)
    torch.cuda.empty_cache()
    base = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    try:
        add_gradients(method, move_batch(few, device), epoch, config, device, make_scaler(config, device))
    except torch.OutOfMemoryError:
        return "hardly any images fit with this encoder"
    free = base + torch.cuda.mem_get_info(device)[0]
    fits = largest_batch(base, torch.cuda.max_memory_allocated(device), len(few["index"]), free)
    return f"about {fits} fit" if fits >= 2 else "this encoder does not fit at all"
