"""SimCLR (Chen et al. 2020, "A simple framework for contrastive learning of visual representations", algorithm 1)."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from sacl_train.data.draws import Draws
from sacl_train.data.weak import WeakAugment
from sacl_train.distributed import gather_with_gradient, process_rank
from sacl_train.methods.checks import NEGATIVE_ROLES, check_settings
from sacl_train.methods.losses import nt_xent
from sacl_train.methods.method import LossTerm, Method, Part
from sacl_train.methods.recipes import Linear
from sacl_train.methods.textures import draw_views, gather_textures
from sacl_train.nets.encoder import Encoder
from sacl_train.nets.heads import mlp
from sacl_train.nets.norms import encode_apart


@dataclass(frozen=True)
class SimCLRSettings:
    """Settings of SimCLR. The defaults are the paper's (section 2.1).

    Attributes
    ----------
    tau : float
        Temperature: 0.5 for CIFAR-10 (appendix B.9); the paper uses 0.1 for ImageNet.
    projector_hidden : int or None
        None: as wide as the encoder's features.
    projector_out : int
        D, dimensions of an embedding.
    projector_norm : bool
        BN after each layer of the projector, as in the authors' code; the paper's text has none.
    decoupled : bool
        Leave the positive pair out of the denominator; see `losses.info_nce`.
    texture_role : str
        "none", or "negative": the batch's textures are additional negatives of both views, and gradients flow
        through their embeddings. "instance": each texture is an image of its own, with two views (L_con-SI of CSI; Tack
        et al. 2020, section 2.2); alpha, scope and texture_view do not apply.
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

    tau: float = 0.5
    projector_hidden: int | None = None
    projector_out: int = 128
    projector_norm: bool = False
    decoupled: bool = False
    texture_role: str = "none"
    alpha: float = 1.0
    scope: str = "batch"
    texture_view: str = "own"
    shift_head: float = 0.0

    def __post_init__(self) -> None:
        check_settings(self, (*NEGATIVE_ROLES, "instance"))


class SimCLR(Method):
    """One network for both views. The negatives of a view are the views of the other images in the batch."""

    Settings = SimCLRSettings
    defaults: ClassVar[dict[str, Any]] = {"weak": "mocov2", "attention": "none"}
    recipes: ClassVar[dict[str, dict[str, Any]]] = {
        # lightly's cifar10_benchmark.py (kNN 84.7 % after 200 epochs, batch 128), with the temperature and the views of
        # the paper's appendix B.9. Its LARS is for batches of 256 to 4096 and 1000 epochs.
        "cifar": {
            "optimizer": "sgd",
            "lr": Linear(0.06, batch=128),
            "weight_decay": 5e-4,
            "tau": 0.5,  # B.9
            "projector_hidden": 512,
            "projector_out": 128,
            "projector_norm": True,
            "weak": "simclr",  # B.9: no blur
            "crop_scale": (0.08, 1.0),  # A
            "jitter": (0.4, 0.4, 0.4, 0.1),  # B.9: strength 0.5
        },
        # Section 2.2 and appendix A of the paper (100 epochs, batch 4096); the authors' code where it is named.
        "imagenet": {
            "optimizer": "lars",
            "lr": Linear(0.3),
            "decay_norms": False,  # lars_optimizer.py
            "weight_decay": 1e-6,
            "warmup_epochs": 10.0,
            "zero_init_residual": True,  # resnet.py
            "tau": 0.1,  # table 5
            "projector_hidden": 2048,
            "projector_out": 128,
            "projector_norm": True,  # model_util.py
            "weak": "simclr",
            "crop_scale": (0.08, 1.0),
            "jitter": (0.8, 0.8, 0.8, 0.2),
        },
    }

    def __init__(
        self, encoder: Encoder, weak: WeakAugment, image_size: tuple[int, int], settings: SimCLRSettings
    ) -> None:
        super().__init__()
        self.settings, self.weak, self.encoder = settings, weak, encoder
        self.loss = Part(nt_xent)
        features = encoder.out_features
        hidden, norm = settings.projector_hidden or features, settings.projector_norm
        self.projector = mlp(features, hidden, settings.projector_out, norm=norm, out_norm=norm)

    def loss_terms(self, batch: dict[str, Tensor], draws: Draws) -> Iterator[LossTerm]:
        """Yield the loss of eq. 1 as one term."""
        settings = self.settings
        wanted = {"none": "none", "negative": settings.texture_view, "instance": "two"}[settings.texture_role]
        views, texture_views = draw_views(self.weak, batch, draws, wanted)
        if settings.texture_role == "instance":  # N becomes N + N*P below
            views = [torch.cat(pair) for pair in zip(views, texture_views, strict=True)]
            texture_views = []
        both, *keys = encode_apart((self.encoder, self.projector), [torch.cat(views), *texture_views])
        z = both.unflatten(0, (2, -1))  # (2, N, D)
        textures: list[Tensor] | None = None
        if keys:
            textures = gather_textures(keys, len(batch["image"]), 2, gather_with_gradient)  # (M, P, D) each
        all_views = gather_with_gradient(z.transpose(0, 1)).transpose(0, 1)  # (2, M, D)
        first = process_rank() * z.shape[1]
        loss_settings = (settings.tau, settings.alpha, settings.scope, first, settings.decoupled)
        loss, metrics = self.loss(z, all_views, textures, *loss_settings)
        yield loss, {**metrics, "embedding_std": self.embedding_std(all_views[1].detach())}
