"""SimSiam (Chen & He 2021, "Exploring simple Siamese representation learning", algorithm 1)."""

from collections.abc import Iterator
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
from sacl_train.nets.encoder import Encoder
from sacl_train.nets.heads import predictor, projector
from sacl_train.nets.norms import encode_apart


@dataclass(frozen=True)
class SimSiamSettings:
    """Settings of SimSiam. The defaults are the paper's (section 3, baseline settings).

    Attributes
    ----------
    projector_hidden, projector_out, predictor_hidden : int
        Widths of the heads.
    projector_layers : int
        Linear layers of the projector: 3; the paper has 2 for CIFAR (appendix D).
    predictor_lr : str
        "constant": the predictor's learning rate does not fall (table 1c), or "schedule".
    texture_role : str
        "none"; the method has no negatives.
    """

    projector_hidden: int = 2048
    projector_out: int = 2048
    predictor_hidden: int = 512
    projector_layers: int = 3
    predictor_lr: str = "constant"
    texture_role: str = "none"

    def __post_init__(self) -> None:
        check_settings_without_negatives(self, "simsiam")


class SimSiam(Method):
    """Each view predicts the projection of the other view, with a stop-gradient on the projection."""

    Settings = SimSiamSettings
    defaults: ClassVar[dict[str, Any]] = {"weak": "mocov2", "attention": "none"}
    recipes: ClassVar[dict[str, dict[str, Any]]] = {
        # Appendix D of the paper (800 epochs, batch 512).
        "cifar": {
            "optimizer": "sgd",
            "lr": Linear(0.03),
            "weight_decay": 5e-4,
            "zero_init_residual": True,  # the authors' simsiam/builder.py
            "predictor_lr": "constant",  # section 4.2
            "projector_layers": 2,
            "projector_hidden": 2048,
            "projector_out": 2048,
            "predictor_hidden": 512,
            "weak": "mocov2",  # no blur
            "crop_scale": (0.2, 1.0),
            "jitter": (0.4, 0.4, 0.4, 0.1),
        },
        # Section 3 of the paper (100 epochs, batch 512).
        "imagenet": {
            "optimizer": "sgd",
            "lr": Linear(0.05),
            "weight_decay": 1e-4,
            "zero_init_residual": True,  # the authors' simsiam/builder.py
            "predictor_lr": "constant",  # section 4.2, table 1c
            "projector_layers": 3,
            "projector_hidden": 2048,
            "projector_out": 2048,
            "predictor_hidden": 512,
            "weak": "mocov2",
            "crop_scale": (0.2, 1.0),
            "jitter": (0.4, 0.4, 0.4, 0.1),
        },
    }

    def __init__(
        self, encoder: Encoder, weak: WeakAugment, image_size: tuple[int, int], settings: SimSiamSettings
    ) -> None:
        super().__init__()
        self.settings, self.weak, self.encoder = settings, weak, encoder
        self.loss = Part(negative_cosine)
        # The last BN has no scale and shift: the authors' simsiam/builder.py, and section 4.4.
        self.projector = projector(
            encoder.out_features,
            settings.projector_hidden,
            settings.projector_out,
            settings.projector_layers,
            affine=False,
        )
        self.predictor = predictor(settings.projector_out, settings.predictor_hidden)

    def loss_terms(self, batch: dict[str, Tensor], draws: Draws) -> Iterator[LossTerm]:
        """Yield the symmetric loss of eq. 2 as one term."""
        # BatchNorm normalises each view by its own statistics, as in the two passes of algorithm 1.
        views, _ = draw_views(self.weak, batch, draws)
        z = encode_apart((self.encoder, self.projector), views)
        p = encode_apart((self.predictor,), z)
        std = self.embedding_std(gather(z[0]))
        sides = [self.loss(p[n], z[1 - n].detach()) for n in (0, 1)]
        metrics = {name: (sides[0][1][name] + sides[1][1][name]) / 2 for name in sides[0][1]}
        yield torch.stack([loss for loss, _ in sides]).mean(), {**metrics, "embedding_std": std}
