"""The head of CSI (Tack et al. 2020): a linear layer on the encoder's features that tells how an image was shifted.

Negatives made from an image itself (textures, shuffled patches, rotations) are shifts in the paper's terms. The head
is trained beside a contrastive loss, which it does not change.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sacl_train.data.rotations import TURNS


@dataclass(frozen=True)
class Shifts:
    """What the textures of a batch are, in the order in which a batch has them.

    Attributes
    ----------
    of_shards : bool
        The first textures of an image come from the shards. All of them are one kind of shift.
    shuffled : bool
        Then comes the image with its patches shuffled, made on the device (`data.shuffle`), a kind of its own.
    turned : bool
        Then come its three quarter turns, made on the device (`data.rotations`), each a kind of its own.
    """

    of_shards: bool = True
    shuffled: bool = False
    turned: bool = False

    @property
    def made(self) -> int:
        """Number of textures per image made on the device, at the end; each is a kind of its own."""
        return self.shuffled + TURNS * self.turned

    @property
    def classes(self) -> int:
        """Number of classes of the head: the image itself and each kind of shift."""
        return 1 + self.of_shards + self.made

    def labels(self, per_image: int, device: torch.device) -> Tensor:
        """Return the class of an image and of its `per_image` textures, int64 (1 + per_image,)."""
        kinds = torch.arange(1 + per_image, device=device)
        return (kinds - (per_image - self.made)).clamp_min(0) + self.of_shards * (kinds > 0)


class ShiftHead(nn.Linear):
    """A linear layer from features to the kinds of shift.

    Parameters
    ----------
    features : int
        Dimensions of the encoder's features.
    shifts : Shifts
        What the textures are.
    """

    def __init__(self, features: int, shifts: Shifts) -> None:
        super().__init__(features, shifts.classes)
        self.shifts = shifts

    def term(self, features: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the cross-entropy of the kinds of shift (section 2.2, L_cls-SI) and its metrics.

        Parameters
        ----------
        features : Tensor (1 + P, N, C)
            Features of N images, then those of each of their P textures.

        Returns
        -------
        loss : Tensor (0-d)
        metrics : dict of str to Tensor (0-d, detached)
            "shift_accuracy", 0 to 1.
        """
        labels = self.shifts.labels(len(features) - 1, features.device).repeat_interleave(features.shape[1])
        logits = self(features.flatten(0, 1)).float()
        return F.cross_entropy(logits, labels), {"shift_accuracy": (logits.argmax(1) == labels).float().mean().detach()}
