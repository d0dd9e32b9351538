"""MoCo v2 (Chen et al. 2020, "Improved baselines with momentum contrastive learning"; He et al. 2020, algorithm 1).

There is no shuffled BN (He et al. 2020, section 3.3), which hides from a query which key shares its batch statistics.
Batch statistics are computed over all processes instead, so that those of a view say nothing about a single image; the
shuffle has no effect in a single process anyway. The authors' CIFAR demo imitates it by eight BNs in one process, which
is not done here.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from sacl_train.data.draws import Draws
from sacl_train.data.weak import WeakAugment
from sacl_train.distributed import gather, process_rank
from sacl_train.methods.checks import NEGATIVE_ROLES, check_settings
from sacl_train.methods.losses import bank_nce
from sacl_train.methods.method import LossTerm, Method, Part
from sacl_train.methods.recipes import Linear
from sacl_train.methods.textures import draw_views, gather_textures
from sacl_train.nets.ema import make_target, update_target
from sacl_train.nets.encoder import Encoder
from sacl_train.nets.heads import mlp
from sacl_train.nets.norms import encode_apart
from texturegen.errors import UserError

MAX_QUEUE = 65536


@dataclass(frozen=True)
class MoCoV2Settings:
    """Settings of MoCo v2. The defaults are the paper's (section 3; He et al. 2020, section 3.3).

    Attributes
    ----------
    queue : int or None
        K, keys of earlier batches, at most one per image. None: 65536, but for a data set of fewer than 524,288 images
        the power of two up to an eighth of it (4096 for CIFAR).
    tau : float
        Temperature.
    momentum : float
        m of the target's moving average.
    projector_hidden : int or None
        None: as wide as the encoder's features.
    projector_out : int
        D, dimensions of a key.
    symmetric : bool
        Use each view once as query and once as key, as the authors' CIFAR demo does; the loss is the mean of both. The
        paper uses one view as query only.
    decoupled : bool
        Leave the positive pair out of the denominator; see `losses.info_nce`.
    texture_role : str
        "none", or "negative": the batch's textures are additional negatives.
    alpha : float
        Factor of the similarities to textures, before the softmax (Ge et al. 2021 use 2).
    scope : str
        "batch": compare a query with the textures of the whole batch. "own": with those of its own image only.
    texture_view : str
        "own": draw a texture's weak view independently. "query": give it the geometry of the view that it is compared
        with, see `textures.draw_views`.
    shift_head : float
        Weight of a linear head that tells images from their textures, see `shift.ShiftHead`; 0: no head.
    """

    queue: int | None = None
    tau: float = 0.2
    momentum: float = 0.999
    projector_hidden: int | None = None
    projector_out: int = 128
    symmetric: bool = False
    decoupled: bool = False
    texture_role: str = "none"
    alpha: float = 1.0
    scope: str = "batch"
    texture_view: str = "own"
    shift_head: float = 0.0

    def __post_init__(self) -> None:
        check_settings(self, NEGATIVE_ROLES)


class MoCoV2(Method):
    """The online networks, their target, and the queue (K, D) of L2-normalised keys. The state_dict holds all three."""

    Settings = MoCoV2Settings
    defaults: ClassVar[dict[str, Any]] = {"weak": "mocov2", "attention": "none"}
    recipes: ClassVar[dict[str, dict[str, Any]]] = {
        # The paper has none for CIFAR; this is lightly's cifar10_benchmark.py (kNN 83.8 % after 200 epochs, batch 128),
        # which follows the authors' moco_cifar10_demo.
        "cifar": {
            "optimizer": "sgd",
            "lr": Linear(0.06, batch=128),
            "weight_decay": 5e-4,
            "queue": 4096,
            "tau": 0.1,
            "momentum": 0.99,
            "symmetric": True,
            "projector_hidden": 512,
            "projector_out": 128,
            "weak": "simclr",  # no blur
            "crop_scale": (0.08, 1.0),
            "jitter": (0.4, 0.4, 0.4, 0.1),
        },
        # Section 3 of the paper, and He et al. 2020, section 3.3 (200 epochs, batch 256).
        "imagenet": {
            "optimizer": "sgd",
            "lr": Linear(0.03),
            "weight_decay": 1e-4,
            "queue": 65536,
            "tau": 0.2,
            "momentum": 0.999,
            "symmetric": False,
            "projector_hidden": 2048,
            "projector_out": 128,
            "weak": "mocov2",
            "crop_scale": (0.2, 1.0),
            "jitter": (0.4, 0.4, 0.4, 0.1),  # the authors' main_moco.py
        },
    }
    queue: Tensor
    queue_at: Tensor

    def __init__(
        self, encoder: Encoder, weak: WeakAugment, image_size: tuple[int, int], settings: MoCoV2Settings
    ) -> None:
        super().__init__()
        self.settings, self.weak, self.encoder = settings, weak, encoder
        self.loss = Part(bank_nce)
        features = encoder.out_features
        self.projector = mlp(features, settings.projector_hidden or features, settings.projector_out)
        self.target_encoder = make_target(self.encoder)
        self.target_projector = make_target(self.projector)
        queue = torch.randn(settings.queue or MAX_QUEUE, settings.projector_out)
        self.register_buffer("queue", F.normalize(queue, dim=1))
        self.register_buffer("queue_at", torch.zeros((), dtype=torch.int64))

    @classmethod
    def resolve_settings(cls, settings: MoCoV2Settings, images: int) -> MoCoV2Settings:
        """Choose the length of the queue.

        Raises
        ------
        UserError
            If the queue is longer than the data set.
        """
        if settings.queue is None:
            return replace(settings, queue=queue_for(images))
        if settings.queue > images:
            raise UserError(
                f"queue is {settings.queue}, but the data set has {images} images: it would hold several keys of "
                f"each, and an image would be its own negative; set queue to {queue_for(images)}, or at most {images}"
            )
        return settings

    def loss_terms(self, batch: dict[str, Tensor], draws: Draws) -> Iterator[LossTerm]:
        """Yield the loss (He et al. 2020, eq. 1), a term for each query view; then update the queue."""
        settings = self.settings
        queries = (0, 1) if settings.symmetric else (0,)
        wanted = "none" if settings.texture_role == "none" else settings.texture_view
        views, texture_views = draw_views(self.weak, batch, draws, wanted, queries)
        key_views = views[::-1] if settings.symmetric else views[1:]
        encoded = self._keys([*key_views, *texture_views])
        keys = encoded[: len(queries)]  # (N, D) each
        textures: list[Tensor] | list[None] = [None] * len(queries)
        if settings.texture_role == "negative":
            textures = gather_textures(encoded[len(queries) :], len(batch["image"]), len(queries))
        all_keys = [gather(key) for key in keys]
        std = self.embedding_std(all_keys[0])
        first = process_rank() * len(keys[0])
        loss_settings = (settings.tau, settings.alpha, settings.scope, first, settings.decoupled)
        for view, key, t in zip(views, keys, textures, strict=False):
            loss, metrics = self.loss(self.projector(self.encoder(view)), key, self.queue, t, *loss_settings)
            yield loss / len(keys), {**metrics, "embedding_std": std}
        self._enqueue(torch.cat(all_keys))

    def after_step(self, step: int | Tensor, steps: int) -> dict[str, float | Tensor]:
        """Move the target towards the online networks (He et al. 2020, eq. 2); return the momentum as "m"."""
        update_target(self.target_encoder, self.encoder, self.settings.momentum)
        update_target(self.target_projector, self.projector, self.settings.momentum)
        return {"m": self.settings.momentum}

    @torch.no_grad()
    def _keys(self, views: Sequence[Tensor]) -> list[Tensor]:
        """Map views (M_i, 3, H, W) to keys (M_i, D) of the target, without gradient."""
        return encode_apart((self.target_encoder, self.target_projector), views)

    @torch.no_grad()
    def _enqueue(self, keys: Tensor) -> None:
        """Replace the oldest keys in the queue, a ring buffer, by `keys` (N, D)."""
        keys = F.normalize(keys.float(), dim=1)[-len(self.queue) :].to(self.queue.dtype)
        slots = (self.queue_at + torch.arange(len(keys), device=keys.device)) % len(self.queue)
        self.queue.index_copy_(0, slots, keys)
        self.queue_at.copy_((self.queue_at + len(keys)) % len(self.queue))


def queue_for(images: int) -> int:
    """Return the size of the queue for a data set: a power of two up to an eighth of it, at most `MAX_QUEUE`.

    Longer queues hold keys of most of the data set, many of the same images as the batch, and old ones.

    Examples
    --------
    >>> queue_for(50_000), queue_for(1_281_167)
    (4096, 65536)
    """
    return int(min(MAX_QUEUE, 2 ** max(0, (images // 8).bit_length() - 1)))
