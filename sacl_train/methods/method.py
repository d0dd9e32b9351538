"""What the training loop asks of a method, and all it knows of one."""

from typing import Any, ClassVar

from torch import Generator, Tensor, nn

from sacl_train.data.weak import WeakAugment
from sacl_train.nets.encoder import Encoder


class Method(nn.Module):
    """A method owns its networks and says what a batch's loss is and what follows the optimizer's step.

    Constructed as Method(encoder, weak, (H, W) of the images, settings). The optimizer takes the parameters that
    require a gradient; a checkpoint is the state_dict.
    """

    # A frozen dataclass, all fields with defaults, `texture_role` among them.
    Settings: ClassVar[type[Any]]
    encoder: Encoder  # the one to evaluate
    weak: WeakAugment  # what makes its views

    def forward(self, batch: dict[str, Tensor], generator: Generator) -> tuple[Tensor, dict[str, Tensor]]:
        """uint8 batch -> the loss (0-d) and its metrics (detached, 0-d): "loss" and "embedding_std", at least."""
        raise NotImplementedError

    def after_step(self) -> None:
        """Called once after every step of the optimizer. Nothing by default."""
