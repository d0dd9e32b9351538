"""PIRL (Misra & van der Maaten 2020, "Self-supervised learning of pretext-invariant representations"), with the jigsaw.

The features of an image and of its jigsaw (nine cells in random order, each encoded separately) should both be close
to a moving average of the image's features in earlier epochs. Colour jitter is applied to the whole view, not per cell.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sacl_train.data.draws import Draws, integers, mix, sort_keys, uniform
from sacl_train.data.weak import WeakAugment
from sacl_train.distributed import gather, process_rank
from sacl_train.methods.checks import NEGATIVE_ROLES, check_settings
from sacl_train.methods.losses import pirl_nce
from sacl_train.methods.method import LossTerm, Method, Part
from sacl_train.methods.recipes import Linear
from sacl_train.methods.textures import draw_views, gather_textures
from sacl_train.nets.encoder import Encoder
from texturegen.errors import UserError

SIDE = 3  # cells per side of the image
CROP = 64 / 85  # side of a crop, as a fraction of the cell's (section 3.4)
ROWS, COLUMNS, ORDER = 0xA00, 0xB00, 0xC00  # words of `draws`: row and column of each crop, order of the cells


@dataclass(frozen=True)
class PIRLSettings:
    """Settings of PIRL. The defaults are the paper's (sections 3.3 and 3.4).

    Attributes
    ----------
    negatives : int
        Negatives drawn from the memory bank at each step; a smaller bank is used as a whole.
    tau : float
        Temperature.
    weight : float
        lambda of eq. 5, the weight of the jigsaw's loss; the image's own loss is weighted by 1 - lambda.
    bank_momentum : float
        Momentum of the features in the bank, 0 <= bank_momentum < 1.
    projector_out : int
        D, dimensions of an embedding.
    images : int or None
        Size of the bank; None: the number of images in the shards.
    texture_role : str
        "none", or "negative": the batch's textures are additional negatives.
    alpha : float
        Factor of the similarities to textures, before the softmax (Ge et al. 2021 use 2).
    scope : str
        "batch": compare a query with the textures of the whole batch. "own": with those of its own image only.
    texture_view : str
        "own": draw a texture's weak view independently. "query": give it the geometry of the view that it is compared
        with, see `textures.draw_views`: a jigsaw is compared with whole textures that share the geometry
        of the view it was cut from.
    shift_head : float
        Weight of a linear head that tells images from their textures, see `shift.ShiftHead`; 0: no head.
    """

    negatives: int = 32000
    tau: float = 0.07
    weight: float = 0.5
    bank_momentum: float = 0.5
    projector_out: int = 128
    images: int | None = None
    texture_role: str = "none"
    alpha: float = 1.0
    scope: str = "batch"
    texture_view: str = "own"
    shift_head: float = 0.0

    def __post_init__(self) -> None:
        check_settings(self, NEGATIVE_ROLES)
        if not 0 <= self.bank_momentum < 1:
            raise UserError(f"bank_momentum is {self.bank_momentum}; it must be at least 0 and below 1")


class PIRL(Method):
    """The encoder with one head for images and one for jigsaws, and the bank (images, D) of L2-normalised features.

    On CUDA its step runs operation by operation, not as a CUDA graph.
    """

    Settings = PIRLSettings
    # Nothing in its step waits for the host, but no GPU has replayed it; `benchmarks/card.py --stages pirl` tries it.
    is_capturable: ClassVar[bool] = False
    defaults: ClassVar[dict[str, Any]] = {"weak": "mocov2", "attention": "none"}
    recipes: ClassVar[dict[str, dict[str, Any]]] = {
        # Section 3.4 of the paper (800 epochs, batch 1024), and VISSL's pirl_jigsaw_4node_resnet50.yaml.
        "imagenet": {
            "optimizer": "sgd",
            "lr": Linear(0.03),
            "decay_norms": False,  # VISSL: regularize_bn, regularize_bias
            "weight_decay": 1e-4,
            "tau": 0.07,
            "negatives": 32000,
            "bank_momentum": 0.5,
            "weight": 0.5,
            "projector_out": 128,
            "weak": "colour-geometric",  # VISSL: crop, flip, jitter, grey; no blur
            "degrees": 0.0,
            "shift": 0.0,
            "crop_scale": (0.08, 1.0),
            "jitter": (0.4, 0.4, 0.4, 0.2),
        },
    }
    bank: Tensor
    steps: Tensor

    def __init__(
        self, encoder: Encoder, weak: WeakAugment, image_size: tuple[int, int], settings: PIRLSettings
    ) -> None:
        super().__init__()
        if settings.images is None:
            raise ValueError("settings.images must be set to the number of images")
        if min(image_size) < 4 * SIDE:
            raise UserError(
                f"images of {min(image_size)} px are too small for pirl's {SIDE}x{SIDE} cells; use images of at least "
                f"{4 * SIDE} px"
            )
        self.settings, self.weak, self.encoder = settings, weak, encoder
        self.loss = Part(pirl_nce)
        out = settings.projector_out
        self.projector = nn.Linear(encoder.out_features, out)  # f
        self.cell_projector = nn.Linear(encoder.out_features, out)  # g, first part: each cell
        self.jigsaw_projector = nn.Linear(SIDE * SIDE * out, out)  # g, second part: the nine cells concatenated
        self.register_buffer("bank", F.normalize(torch.randn(settings.images, out), dim=1))
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    @classmethod
    def resolve_settings(cls, settings: PIRLSettings, images: int) -> PIRLSettings:
        """Give the bank a place for each image."""
        return settings if settings.images is not None else replace(settings, images=images)

    def loss_terms(self, batch: dict[str, Tensor], draws: Draws) -> Iterator[LossTerm]:
        """Yield the losses of the image and of its jigsaw (eq. 5), then update the bank."""
        settings = self.settings
        indices, negatives = draws.samples, self._draw_negatives(draws.seed)
        wanted = "none" if settings.texture_role == "none" else settings.texture_view
        views, texture_views = draw_views(self.weak, batch, draws, wanted)
        textures: list[Tensor] | list[None] = [None, None]  # for the image and for the jigsaw
        if settings.texture_role == "negative":
            textures = gather_textures([self._keys(view) for view in texture_views], len(indices), 2)
        own, bank = self.bank[indices], self.bank[negatives]
        same = negatives[None, :] == indices[:, None]  # (N, K): an image is not its own negative

        loss_settings = (settings.tau, settings.alpha, settings.scope, process_rank() * len(indices))
        image = self.projector(self.encoder(views[0]))
        std = self.embedding_std(gather(image.detach()))
        for weight, view, t in (
            (1 - settings.weight, lambda: image, textures[0]),
            (settings.weight, lambda: self._jigsaw(views[1], draws), textures[1]),
        ):
            loss, metrics = self.loss(view(), own, bank, same, t, *loss_settings)
            yield weight * loss, {**metrics, "embedding_std": std}
        self._update_bank(gather(indices), gather(image.detach()))

    def after_step(self, step: int | Tensor, steps: int) -> dict[str, float | Tensor]:
        """Count the step; the count seeds the draw of the next step's negatives."""
        self.steps += 1
        return {}

    def _jigsaw(self, view: Tensor, draws: Draws) -> Tensor:
        """Return the embeddings (N, D) of the jigsaws of a view (N, 3, H, W)."""
        cells = cut_jigsaw(view, draws.of(1))  # (N, 9, 3, h, w)
        features = self.cell_projector(self.encoder(cells.flatten(0, 1)))
        return self.jigsaw_projector(features.unflatten(0, (len(cells), -1)).flatten(1))

    def _draw_negatives(self, seed: int) -> Tensor:
        """Return int64 (K,): indices in the bank, the same in every process."""
        count, drawn = len(self.bank), self.settings.negatives
        if drawn >= count:
            return torch.arange(count, device=self.bank.device)
        state = mix(mix(torch.zeros_like(self.steps), seed), self.steps)
        return integers(state, range(drawn), count)[:, 0]

    @torch.no_grad()
    def _keys(self, x: Tensor) -> Tensor:
        """Map views (M, 3, H, W) to embeddings (M, D), without gradient."""
        return self.projector(self.encoder(x))

    @torch.no_grad()
    def _update_bank(self, indices: Tensor, features: Tensor) -> None:
        """Update the bank: m <- momentum m + (1 - momentum) f, normalised (section 3.3, after Wu et al. 2018).

        indices: int64 (N,), rows of the bank; features: (N, D).
        """
        m = self.settings.bank_momentum
        fresh = F.normalize(features.to(self.bank.dtype), dim=1)
        self.bank[indices] = F.normalize(m * self.bank[indices] + (1 - m) * fresh, dim=1)


def cut_jigsaw(x: Tensor, states: Tensor) -> Tensor:
    """Cut images into 3x3 cells and return a random crop of each, in random order (section 3.4).

    Rows at the bottom and columns at the right that the 3x3 cells do not cover are dropped.

    Parameters
    ----------
    x : Tensor (N, C, H, W)
        Images.
    states : Tensor int64 (N,)
        Random states for the positions of the crops and the order of the cells.

    Returns
    -------
    Tensor (N, 9, C, h, w)
    """
    cells = SIDE * SIDE
    sides = [length // SIDE for length in x.shape[-2:]]
    crops = [max(round(CROP * side), 1) for side in sides]
    order = sort_keys(states, range(ORDER, ORDER + cells)).argsort(dim=1)  # (N, 9): cell at each position
    row_starts, column_starts = (
        cell * side + (uniform(states, range(word, word + cells)).T * (side - crop + 1)).long()  # (N, 9)
        for word, side, crop, cell in (
            (ROWS, sides[0], crops[0], order // SIDE),
            (COLUMNS, sides[1], crops[1], order % SIDE),
        )
    )
    rows = row_starts[:, :, None] + torch.arange(crops[0], device=x.device)  # (N, 9, h)
    columns = column_starts[:, :, None] + torch.arange(crops[1], device=x.device)  # (N, 9, w)
    image = torch.arange(len(x), device=x.device)[:, None, None, None]
    return x.permute(0, 2, 3, 1)[image, rows[:, :, :, None], columns[:, :, None, :]].permute(0, 1, 4, 2, 3)
