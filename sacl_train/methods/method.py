"""What the training loop asks of a method, and all it knows of one."""

from collections.abc import Iterator
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from sacl_train.data.draws import Draws
from sacl_train.data.weak import WeakAugment
from sacl_train.nets.encoder import Encoder

LossTerm = tuple[Tensor, dict[str, Tensor]]


class Method(nn.Module):
    """A method owns its networks and says what a batch's loss is and what follows the optimizer's step.

    Constructed as Method(encoder, weak, (H, W) of the images, settings). The optimizer takes the parameters that
    require a gradient; a checkpoint is the state_dict.
    """

    # A frozen dataclass, all fields with defaults, `texture_role` among them.
    Settings: ClassVar[type[Any]]
    # General settings (`Config`'s) that the method's paper has other values for than SACL.
    defaults: ClassVar[dict[str, Any]] = {}
    encoder: Encoder  # the one to evaluate
    weak: WeakAugment  # what makes its views

    def loss_terms(self, batch: dict[str, Tensor], draws: Draws) -> Iterator[LossTerm]:
        """uint8 batch -> parts of the loss (0-d), whose sum it is, each with metrics (detached, 0-d) of its own.

        The loop takes the gradient of one part before it asks for the next, so only one part's activations are in
        memory at once. Random numbers come from `draws`. "embedding_std" is among the metrics.
        """
        raise NotImplementedError

    def forward(self, batch: dict[str, Tensor], draws: Draws) -> LossTerm:
        """The whole loss of a batch, "loss" among its metrics."""
        parts = list(self.loss_terms(batch, draws))
        return torch.stack([loss for loss, _ in parts]).sum(), merge(parts)

    def after_step(self, step: int, steps: int) -> dict[str, float]:
        """Called once after step 0 <= step < steps of the optimizer; returns what it did, for the metrics."""
        return {}


def merge(parts: list[LossTerm]) -> dict[str, Tensor]:
    """Metrics of a batch from those of its parts: "loss" is their sum, the others are means."""
    names = dict.fromkeys(name for _, metrics in parts for name in metrics)
    means = {name: torch.stack([metrics[name] for _, metrics in parts if name in metrics]).mean() for name in names}
    return {"loss": torch.stack([loss.detach() for loss, _ in parts]).sum(), **means}
