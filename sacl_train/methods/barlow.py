"""Barlow Twins (Zbontar et al. 2021, "Self-supervised learning via redundancy reduction", algorithm 1)."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from sacl_train.data.draws import Draws
from sacl_train.data.weak import WeakAugment
from sacl_train.distributed import gather_with_gradient
from sacl_train.methods.checks import check_settings_without_negatives
from sacl_train.methods.losses import cross_correlation
from sacl_train.methods.method import LossTerm, Method, Part
from sacl_train.methods.recipes import Linear
from sacl_train.methods.textures import draw_views
from sacl_train.nets.encoder import Encoder
from sacl_train.nets.heads import deep_mlp
from sacl_train.nets.norms import encode_apart
from texturegen.errors import UserError


@dataclass(frozen=True)
class BarlowSettings:
    """Settings of Barlow Twins. The defaults are the paper's (section 2.2).

    Attributes
    ----------
    redundancy : float
        lambda, the weight of the off-diagonal terms (eq. 1).
    loss_scale : float
        Factor of the loss, which eq. 1 does not have. It matters to SGD, and to LARS for the parameters that it does
        not scale: the authors' first code had 1/32 and 0.024, solo-learn has 0.1.
    projector_hidden, projector_out : int
        Widths of the projector.
    texture_role : str
        "none"; the method has no negatives.
    """

    redundancy: float = 5e-3
    loss_scale: float = 1.0
    projector_hidden: int = 8192
    projector_out: int = 8192
    texture_role: str = "none"

    def __post_init__(self) -> None:
        check_settings_without_negatives(self, "barlow")
        if self.redundancy < 0:
            raise UserError(f"redundancy is {self.redundancy}; it must be at least 0")


class BarlowTwins(Method):
    """One network; each embedding dimension of one view should correlate only with the same dimension of the other."""

    Settings = BarlowSettings
    defaults: ClassVar[dict[str, Any]] = {"weak": "mocov2", "attention": "none"}
    recipes: ClassVar[dict[str, dict[str, Any]]] = {
        # The paper has none for CIFAR. solo-learn's scripts/pretrain/cifar/barlow.yaml (1000 epochs, batch 256).
        "cifar": {
            "optimizer": "lars",
            "lr": Linear(0.3),
            "lars_trust": 0.02,  # eta
            "lars_clip": True,  # clip_lr
            "decay_norms": False,  # exclude_bias_n_norm
            "weight_decay": 1e-4,
            "warmup_epochs": 10.0,  # solo/args/pretrain.py
            "redundancy": 0.0051,  # solo/methods/barlow_twins.py
            "loss_scale": 0.1,
            "projector_hidden": 2048,
            "projector_out": 2048,
            "weak": "byol",  # augmentations/asymmetric.yaml: no blur
            "crop_scale": (0.08, 1.0),
            "jitter": (0.4, 0.4, 0.2, 0.1),
        },
        # The authors' main.py (1000 epochs, batch 2048), which agrees with section 2.2 where no section is named.
        "imagenet": {
            "optimizer": "lars",
            "lr": Linear(0.2),
            "norm_lr": 0.024,  # 0.0048 for biases and norms
            "decay_norms": False,
            "weight_decay": 1e-6,  # the paper has 1.5e-6
            "warmup_epochs": 10.0,
            "zero_init_residual": True,
            "redundancy": 0.0051,
            "projector_hidden": 8192,
            "projector_out": 8192,
            "weak": "byol",
            "crop_scale": (0.08, 1.0),
            "jitter": (0.4, 0.4, 0.2, 0.1),
        },
    }

    def __init__(
        self, encoder: Encoder, weak: WeakAugment, image_size: tuple[int, int], settings: BarlowSettings
    ) -> None:
        super().__init__()
        self.settings, self.weak, self.encoder = settings, weak, encoder
        self.loss = Part(cross_correlation)
        self.projector = deep_mlp(encoder.out_features, settings.projector_hidden, settings.projector_out)

    def loss_terms(self, batch: dict[str, Tensor], draws: Draws) -> Iterator[LossTerm]:
        """Yield the loss of eq. 1 as one term. Textures in the batch are ignored."""
        views, _ = draw_views(self.weak, batch, draws)
        z = encode_apart((self.encoder, self.projector), views)  # (N, D) each
        first, second = (gather_with_gradient(embeddings) for embeddings in z)
        loss, metrics = self.loss(first, second, self.settings.redundancy)
        yield self.settings.loss_scale * loss, {**metrics, "embedding_std": self.embedding_std(first.detach())}
