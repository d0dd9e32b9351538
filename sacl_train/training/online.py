"""The online probe: a linear classifier that learns while the encoder does, on the same images.

It is not the linear evaluation: it sees training images only, the encoder changes under it, and its accuracy is
measured on each batch just before it learns from it, averaged over the epoch. Use it to watch a run, never as a figure
in a table.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sacl_train.config import Config
from sacl_train.data.stream import Batch
from sacl_train.data.weak import normalise
from sacl_train.distributed import average, average_gradients, count_processes, synchronise_batch_norm
from sacl_train.nets import Encoder
from sacl_train.training.precision import autocast
from texturegen.errors import UserError
from texturegen.shards import Shards

LR, MOMENTUM = 0.1, 0.9
BATCH = 256  # images encoded at once


def make_online(config: Config, encoder: Encoder, shards: Shards, device: torch.device) -> "OnlineProbe | None":
    """Return the probe if the config asks for one; UserError if the shards have no labels."""
    if not config.online:
        return None
    if len(shards) == 0 or shards.labels.max() < 0:
        raise UserError(f"{shards.directory}: no labelled images, and the online probe needs them: --set online=false")
    probe = OnlineProbe(encoder.out_features, torch.from_numpy(shards.labels))
    synchronise_batch_norm(probe, device)
    return probe.to(device)


class OnlineProbe(nn.Module):
    """A linear layer on the encoder's features, each feature normalised over the batch.

    Parameters
    ----------
    features : int
        Width of the encoder's output.
    labels : Tensor, int64 (N,)
        Labels of all images of the shards; -1 for none.
    """

    labels: Tensor

    def __init__(self, features: int, labels: Tensor) -> None:
        super().__init__()
        classes = int(labels.max()) + 1
        self.register_buffer("labels", labels, persistent=False)
        self.norm = nn.BatchNorm1d(features, affine=False, track_running_stats=False)
        self.layer = nn.Linear(features, classes)
        nn.init.zeros_(self.layer.weight)
        nn.init.zeros_(self.layer.bias)
        self.optimizer = torch.optim.SGD(self.layer.parameters(), lr=LR, momentum=MOMENTUM)

    def step(self, encoder: nn.Module, batch: Batch, config: Config) -> dict[str, Tensor]:
        """Learn from a batch and return {"online_top1": accuracy before that}, 0-d, on the device.

        The images are whole and unaugmented; the encoder is in eval mode, takes no gradient and computes in the run's
        precision. The host does not wait for the device.

        Parameters
        ----------
        encoder : Module
            On the same device as the probe; its mode is restored.
        batch : Batch
            "image", uint8 (N, 3, H, W), and "index", int64 (N,): the numbers that the labels are looked up by.
        config : Config
            Mean, std and precision.
        """
        features = self._encode(encoder, batch["image"], config)
        labels = self.labels[batch["index"].to(features.device, non_blocking=True)]
        logits = self.layer(self.norm(features))
        total = average((labels >= 0).sum().float()).clamp_min(1 / count_processes())  # mean, as of the gradients
        loss = F.cross_entropy(logits, labels, ignore_index=-1, reduction="sum") / total
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        average_gradients(self.layer.parameters())
        self.optimizer.step()
        return {"online_top1": (logits.argmax(1) == labels).sum() / total}

    def state(self) -> dict[str, Any]:
        """Return the probe's part of a checkpoint."""
        return {"module": self.state_dict(), "optimizer": self.optimizer.state_dict()}

    def load(self, state: dict[str, Any]) -> None:
        """Load what `state` returned."""
        self.load_state_dict(state["module"])
        self.optimizer.load_state_dict(state["optimizer"])

    @torch.no_grad()
    def _encode(self, encoder: nn.Module, images: Tensor, config: Config) -> Tensor:
        """Return features float32 (N, C) on the device."""
        assert config.mean is not None
        assert config.std is not None
        device = self.layer.weight.device
        training = encoder.training
        encoder.eval()
        with autocast(config, device):
            pieces = [
                encoder(normalise(piece, config.mean, config.std)).float()
                for piece in images.to(device, non_blocking=True).split(BATCH)
            ]
        encoder.train(training)
        return torch.cat(pieces)
