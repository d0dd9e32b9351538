"""BYOL (Grill et al. 2020, "Bootstrap your own latent", section 3)."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from sacl_train.data.draws import Draws
from sacl_train.data.weak import WeakAugment
from sacl_train.distributed import gather
from sacl_train.methods.checks import check_settings_without_negatives
from sacl_train.methods.losses import negative_cosine
from sacl_train.methods.method import LossTerm, Method, Part
from sacl_train.methods.recipes import Linear
from sacl_train.methods.textures import draw_views
from sacl_train.nets.ema import make_target, momentum_at, update_target
from sacl_train.nets.encoder import Encoder
from sacl_train.nets.heads import mlp
from sacl_train.nets.norms import encode_apart


@dataclass(frozen=True)
class BYOLSettings:
    """Settings of BYOL. The defaults are the paper's (section 3.2).

    Attributes
    ----------
    momentum, momentum_schedule
        m of the target's moving average; rises from 0.996 to 1 along a cosine by default. See `ema.momentum_at`.
    loss_scale : float
        Factor of the loss, for recipes that average cosines instead of adding up squared distances.
    projector_hidden, projector_out, predictor_hidden : int
        Widths of the heads.
    predictor_lr : str
        "schedule", or "constant": the predictor's learning rate does not fall.
    texture_role : str
        "none"; the method has no negatives.
    """

    momentum: float = 0.996
    momentum_schedule: str = "cosine"
    loss_scale: float = 1.0
    projector_hidden: int = 4096
    projector_out: int = 256
    predictor_hidden: int = 4096
    predictor_lr: str = "schedule"
    texture_role: str = "none"

    def __post_init__(self) -> None:
        check_settings_without_negatives(self, "byol")


class BYOL(Method):
    """The online network predicts the target's projection of the other view."""

    Settings = BYOLSettings
    defaults: ClassVar[dict[str, Any]] = {"weak": "mocov2", "attention": "none"}
    recipes: ClassVar[dict[str, dict[str, Any]]] = {
        # The paper has none for CIFAR; this is lightly's cifar10_benchmark.py (kNN 86.9 % after 200 epochs, batch 128).
        "cifar": {
            "optimizer": "sgd",
            "lr": Linear(0.06, batch=128),
            "weight_decay": 5e-4,
            "momentum": 0.99,
            "momentum_schedule": "constant",
            "loss_scale": 0.25,  # the mean of two negative cosines
            "projector_hidden": 1024,
            "projector_out": 256,
            "predictor_hidden": 1024,
            "weak": "byol",  # no blur
            "crop_scale": (0.08, 1.0),
            "jitter": (0.4, 0.4, 0.2, 0.1),
        },
        # Section 3.2 and appendix B of the paper (1000 epochs, batch 4096).
        "imagenet": {
            "optimizer": "lars",
            "lr": Linear(0.2),  # the authors' byol/configs/byol.py: 0.3 for 300 epochs, 0.45 for 100
            "decay_norms": False,
            "weight_decay": 1.5e-6,
            "warmup_epochs": 10.0,
            "zero_init_residual": True,  # of bottlenecks: haiku, in the authors' networks.py
            "momentum": 0.996,
            "momentum_schedule": "cosine",
            "projector_hidden": 4096,
            "projector_out": 256,
            "predictor_hidden": 4096,
            "weak": "byol",  # table 6
            "crop_scale": (0.08, 1.0),
            "jitter": (0.4, 0.4, 0.2, 0.1),
        },
    }

    def __init__(
        self, encoder: Encoder, weak: WeakAugment, image_size: tuple[int, int], settings: BYOLSettings
    ) -> None:
        super().__init__()
        self.settings, self.weak, self.encoder = settings, weak, encoder
        self.loss = Part(negative_cosine)
        out = settings.projector_out
        self.projector = mlp(encoder.out_features, settings.projector_hidden, out, norm=True)
        self.predictor = mlp(out, settings.predictor_hidden, out, norm=True)
        self.target_encoder = make_target(self.encoder)
        self.target_projector = make_target(self.projector)

    def loss_terms(self, batch: dict[str, Tensor], draws: Draws) -> Iterator[LossTerm]:
        """Yield one term for each view as the query: the squared distance of predictions and keys (eq. 2).

        The loss is the sum of both terms (section 3.1), from 0 to 8.
        """
        views, _ = draw_views(self.weak, batch, draws)
        keys = self._keys(views)
        std = self.embedding_std(gather(keys[0]))
        for view, key in zip(views, reversed(keys), strict=True):
            p = self.predictor(self.projector(self.encoder(view)))
            loss, metrics = self.loss(p, key)
            yield self.settings.loss_scale * (2 + 2 * loss), {**metrics, "embedding_std": std}

    def after_step(self, step: int | Tensor, steps: int) -> dict[str, float | Tensor]:
        """Move the target towards the online networks (eq. 1); return the momentum as "m"."""
        m = momentum_at(step, steps, self.settings.momentum, self.settings.momentum_schedule)
        update_target(self.target_encoder, self.encoder, m)
        update_target(self.target_projector, self.projector, m)
        return {"m": m}

    @torch.no_grad()
    def _keys(self, views: Sequence[Tensor]) -> list[Tensor]:
        """Map views (N, 3, H, W) to projections (N, D) of the target, without gradient."""
        return encode_apart((self.target_encoder, self.target_projector), views)
