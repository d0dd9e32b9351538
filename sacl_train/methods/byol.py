"""BYOL (Grill et al. 2020, "Bootstrap your own latent", section 3)."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from sacl_train.data.draws import Draws
from sacl_train.data.weak import WeakAugment
from sacl_train.distributed import gather
from sacl_train.methods.checks import check_settings_without_negatives
from sacl_train.methods.losses import embedding_std, negative_cosine
from sacl_train.methods.method import LossTerm, Method
from sacl_train.nets.ema import make_target, momentum_at, update_target
from sacl_train.nets.encoder import Encoder
from sacl_train.nets.heads import mlp


@dataclass(frozen=True)
class BYOLSettings:
    """Settings of BYOL. The defaults are the paper's (section 3.2).

    Attributes
    ----------
    momentum, momentum_schedule
        m of the target's moving average; rises from 0.996 to 1 along a cosine by default. See `ema.momentum_at`.
    projector_hidden, projector_out, predictor_hidden : int
        Widths of the heads.
    texture_role : str
        "none"; the method has no negatives.
    """

    momentum: float = 0.996
    momentum_schedule: str = "cosine"
    projector_hidden: int = 4096
    projector_out: int = 256
    predictor_hidden: int = 4096
    texture_role: str = "none"

    def __post_init__(self) -> None:
        check_settings_without_negatives(self, "byol")


class BYOL(Method):
    """The online network predicts the target's projection of the other view."""

    Settings = BYOLSettings
    defaults: ClassVar[dict[str, Any]] = {"weak": "mocov2", "attention": "none"}

    def __init__(
        self, encoder: Encoder, weak: WeakAugment, image_size: tuple[int, int], settings: BYOLSettings
    ) -> None:
        super().__init__()
        self.settings, self.weak, self.encoder = settings, weak, encoder
        out = settings.projector_out
        self.projector = mlp(encoder.out_features, settings.projector_hidden, out, norm=True)
        self.predictor = mlp(out, settings.predictor_hidden, out, norm=True)
        self.target_encoder = make_target(self.encoder)
        self.target_projector = make_target(self.projector)

    def loss_terms(self, batch: dict[str, Tensor], draws: Draws) -> Iterator[LossTerm]:
        """Yield one term for each view as the query (eq. 2).

        The terms use `losses.negative_cosine`; eq. 2 is 2 + 2 times that value.
        """
        views = [self.weak(batch["image"], draws.of(view)) for view in (0, 1)]
        keys = [self._keys(view) for view in views]
        std = embedding_std(gather(keys[0]))
        for view, key in zip(views, reversed(keys), strict=True):
            p = self.predictor(self.projector(self.encoder(view)))
            loss, metrics = negative_cosine(p, key)
            yield loss / 2, {**metrics, "embedding_std": std}

    def after_step(self, step: int, steps: int) -> dict[str, float]:
        """Move the target towards the online networks (eq. 1); return the momentum as "m"."""
        m = momentum_at(step, steps, self.settings.momentum, self.settings.momentum_schedule)
        update_target(self.target_encoder, self.encoder, m)
        update_target(self.target_projector, self.projector, m)
        return {"m": m}

    @torch.no_grad()
    def _keys(self, x: Tensor) -> Tensor:
        """Map views (N, 3, H, W) to projections (N, D) of the target, without gradient."""
        return self.target_projector(self.target_encoder(x))
