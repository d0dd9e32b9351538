"""MoCo v2 (Chen et al. 2020, "Improved baselines with momentum contrastive learning"; He et al. 2020, algorithm 1).

Batch statistics are computed over all processes. The paper shuffles samples between processes instead (He et al. 2020,
section 3.3), which has no effect in a single process.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from sacl_train.data.draws import Draws
from sacl_train.data.weak import WeakAugment
from sacl_train.distributed import gather, process_rank
from sacl_train.methods.checks import NEGATIVE_ROLES, check_settings
from sacl_train.methods.losses import bank_nce, embedding_std
from sacl_train.methods.method import LossTerm, Method
from sacl_train.methods.textures import keys_for_queries
from sacl_train.nets.ema import make_target, update_target
from sacl_train.nets.encoder import Encoder
from sacl_train.nets.heads import mlp


@dataclass(frozen=True)
class MoCoV2Settings:
    """Settings of MoCo v2. The defaults are the paper's (section 3; He et al. 2020, section 3.3).

    Attributes
    ----------
    queue : int
        K, keys of earlier batches. Use fewer for a small data set (4096 for CIFAR).
    tau : float
        Temperature.
    momentum : float
        m of the target's moving average.
    projector_hidden : int or None
        None: as wide as the encoder's features.
    projector_out : int
        D, dimensions of a key.
    texture_role : str
        "none", or "negative": the batch's textures are additional negatives.
    alpha, scope
        See `losses.info_nce`.
    texture_view : str
        See `textures.keys_for_queries`.
    """

    queue: int = 65536
    tau: float = 0.2
    momentum: float = 0.999
    projector_hidden: int | None = None
    projector_out: int = 128
    texture_role: str = "none"
    alpha: float = 1.0
    scope: str = "batch"
    texture_view: str = "own"

    def __post_init__(self) -> None:
        check_settings(self, NEGATIVE_ROLES)


class MoCoV2(Method):
    """The online networks, their target, and the queue (K, D) of L2-normalised keys. The state_dict holds all three."""

    Settings = MoCoV2Settings
    defaults: ClassVar[dict[str, Any]] = {"weak": "mocov2", "attention": "none"}
    queue: Tensor
    queue_at: Tensor

    def __init__(
        self, encoder: Encoder, weak: WeakAugment, image_size: tuple[int, int], settings: MoCoV2Settings
    ) -> None:
        super().__init__()
        self.settings, self.weak, self.encoder = settings, weak, encoder
        features = encoder.out_features
        self.projector = mlp(features, settings.projector_hidden or features, settings.projector_out)
        self.target_encoder = make_target(self.encoder)
        self.target_projector = make_target(self.projector)
        self.register_buffer("queue", F.normalize(torch.randn(settings.queue, settings.projector_out), dim=1))
        self.register_buffer("queue_at", torch.zeros((), dtype=torch.int64))

    def loss_terms(self, batch: dict[str, Tensor], draws: Draws) -> Iterator[LossTerm]:
        """Yield the loss (He et al. 2020, eq. 1) as one term, then add the batch's keys to the queue."""
        settings = self.settings
        keys = self._keys(self.weak(batch["image"], draws.of(1)))  # (N, D)
        textures, query = None, draws.of(0)
        if settings.texture_role == "negative":
            textures = keys_for_queries(self._keys, self.weak, batch, draws, settings.texture_view, [query])[0]
        q = self.projector(self.encoder(self.weak(batch["image"], query)))
        loss_settings = (settings.tau, settings.alpha, settings.scope, process_rank() * len(keys))
        loss, metrics = bank_nce(q, keys, self.queue, textures, *loss_settings)
        yield loss, {**metrics, "embedding_std": embedding_std(gather(keys))}
        self._enqueue(gather(keys))

    def after_step(self, step: int, steps: int) -> dict[str, float]:
        """Move the target towards the online networks (He et al. 2020, eq. 2); return the momentum as "m"."""
        update_target(self.target_encoder, self.encoder, self.settings.momentum)
        update_target(self.target_projector, self.projector, self.settings.momentum)
        return {"m": self.settings.momentum}

    @torch.no_grad()
    def _keys(self, x: Tensor) -> Tensor:
        """Map views (M, 3, H, W) to keys (M, D) of the target, without gradient."""
        return self.target_projector(self.target_encoder(x))

    @torch.no_grad()
    def _enqueue(self, keys: Tensor) -> None:
        """Replace the oldest keys in the queue, a ring buffer, by `keys` (N, D)."""
        keys = F.normalize(keys.float(), dim=1)[-len(self.queue) :].to(self.queue.dtype)
        slots = (self.queue_at + torch.arange(len(keys), device=keys.device)) % len(self.queue)
        self.queue.index_copy_(0, slots, keys)
        self.queue_at.copy_((self.queue_at + len(keys)) % len(self.queue))
