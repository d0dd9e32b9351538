"""PIRL (Misra & van der Maaten 2020, "Self-supervised learning of pretext-invariant representations", jigsaw).

An image and its jigsaw (nine cells, each encoded by itself, in a random order) should both be like the moving average
of what the image's features were in earlier epochs. The colours of a view are changed once, not per cell.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sacl_train.data.device import to_device
from sacl_train.data.draws import Draws, mix, uniform
from sacl_train.data.weak import WeakAugment
from sacl_train.distributed import gather, process_rank
from sacl_train.methods.checks import NEGATIVE_ROLES, check_settings
from sacl_train.methods.losses import embedding_std, pirl_nce
from sacl_train.methods.method import LossTerm, Method
from sacl_train.methods.textures import keys_for_queries
from sacl_train.nets.encoder import Encoder
from texturegen.errors import UserError

SIDE = 3  # cells a side
CROP = 64 / 85  # of a cell's side that is shown (section 3.4)
ROWS, COLUMNS, ORDER = 0xA00, 0xB00, 0xC00  # words of `draws`: places of the crops, order of the cells


@dataclass(frozen=True)
class PIRLSettings:
    """Defaults are the paper's (section 3.3, 3.4).

    negatives: drawn anew at each step from the memory bank; all of it where it has no more. tau: temperature. weight:
    of the jigsaw's loss, the image's own has the rest (lambda of eq. 5). bank_momentum: of a feature in the bank.
    images: places in the bank; that of the shards when not given. texture_role: "none", or "negative": the batch's
    textures join the negatives; alpha, scope: see `losses.info_nce`; texture_view: see `textures.keys_for_queries`
    (with "query" the jigsaw is compared with whole textures that have the geometry of the view it was cut from).
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

    def __post_init__(self) -> None:
        check_settings(self, NEGATIVE_ROLES)
        if not 0 <= self.bank_momentum < 1:
            raise UserError(f"bank_momentum is {self.bank_momentum}; it must be at least 0 and below 1")


class PIRL(Method):
    """The encoder with a head for images and one for jigsaws, and the bank (images, D) of L2-normalised features."""

    Settings = PIRLSettings
    defaults: ClassVar[dict[str, Any]] = {"weak": "mocov2", "attention": "none"}
    bank: Tensor
    steps: Tensor

    def __init__(
        self, encoder: Encoder, weak: WeakAugment, image_size: tuple[int, int], settings: PIRLSettings
    ) -> None:
        super().__init__()
        if settings.images is None:
            raise ValueError("images must be resolved before the bank is made")
        if min(image_size) < 4 * SIDE:
            raise UserError(f"pirl cuts {SIDE}x{SIDE} cells; images of {min(image_size)} px are too small for them")
        self.settings, self.weak, self.encoder = settings, weak, encoder
        out = settings.projector_out
        self.projector = nn.Linear(encoder.out_features, out)  # f
        self.cell_projector = nn.Linear(encoder.out_features, out)  # g: each cell, then the nine together
        self.jigsaw_projector = nn.Linear(SIDE * SIDE * out, out)
        self.register_buffer("bank", F.normalize(torch.randn(settings.images, out), dim=1))
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        self._done = 0  # `steps` on the host, which would have to wait for the device's
        self.register_load_state_dict_post_hook(lambda method, _: setattr(method, "_done", int(method.steps)))

    def loss_terms(self, batch: dict[str, Tensor], draws: Draws) -> Iterator[LossTerm]:
        settings = self.settings
        numbers, drawn = to_device([draws.samples, self._draw_negatives(draws.seed)], self.bank.device)
        textures: list[Tensor] | list[None] = [None, None]  # of the image and of the jigsaw
        if settings.texture_role == "negative":
            queries = [draws.of(view) for view in (0, 1)]
            textures = keys_for_queries(self._keys, self.weak, batch, draws, settings.texture_view, queries)
        own, bank = self.bank[numbers], self.bank[drawn]
        same = drawn[None, :] == numbers[:, None]  # (N, K): an image is not its own negative

        how = (settings.tau, settings.alpha, settings.scope, process_rank() * len(numbers))
        image = self.projector(self.encoder(self.weak(batch["image"], draws.of(0))))
        std = embedding_std(gather(image.detach()))
        for weight, view, t in (
            (1 - settings.weight, lambda: image, textures[0]),
            (settings.weight, lambda: self._jigsaw(batch, draws), textures[1]),
        ):
            loss, metrics = pirl_nce(view(), own, bank, same, t, *how)
            yield weight * loss, {**metrics, "embedding_std": std}
        self._remember(gather(numbers), gather(image.detach()))

    def after_step(self, step: int, steps: int) -> dict[str, float]:
        """The next step draws other negatives."""
        self.steps += 1
        self._done += 1
        return {}

    def _jigsaw(self, batch: dict[str, Tensor], draws: Draws) -> Tensor:
        """Views (N, 3, H, W) -> (N, D)."""
        states = draws.of(1)
        cells = cut_jigsaw(self.weak(batch["image"], states), states)  # (N, 9, 3, h, w)
        features = self.cell_projector(self.encoder(cells.flatten(0, 1)))
        return self.jigsaw_projector(features.unflatten(0, (len(cells), -1)).flatten(1))

    def _draw_negatives(self, seed: int) -> np.ndarray:
        """int64 (K,): places in the bank, the same in every process."""
        count = len(self.bank)
        if self.settings.negatives >= count:
            return np.arange(count)
        state = mix(mix(np.zeros(1, np.uint64), seed), self._done)
        drawn = mix(state, np.arange(self.settings.negatives)) % np.uint64(count)
        return drawn.astype(np.int64)

    @torch.no_grad()
    def _keys(self, x: Tensor) -> Tensor:
        return self.projector(self.encoder(x))

    @torch.no_grad()
    def _remember(self, numbers: Tensor, features: Tensor) -> None:
        """m <- momentum m + (1 - momentum) f (section 3.3, after Wu et al. 2018), of unit length."""
        m = self.settings.bank_momentum
        fresh = F.normalize(features.to(self.bank.dtype), dim=1)
        self.bank[numbers] = F.normalize(m * self.bank[numbers] + (1 - m) * fresh, dim=1)


def cut_jigsaw(x: Tensor, states: np.ndarray) -> Tensor:
    """Cut 3x3 cells, show a random crop of each, in a random order: (N, C, H, W) -> (N, 9, C, h, w).

    states: uint64 (N,), from which places and order are drawn. A remainder at the right and bottom is not shown.
    """
    cells = SIDE * SIDE
    sides = [length // SIDE for length in x.shape[-2:]]
    crops = [max(round(CROP * side), 1) for side in sides]
    order = np.stack([mix(states, ORDER + i) for i in range(cells)], 1).argsort(1)  # (N, 9): the cells shown
    drawn = []
    for word, side, crop, cell in (
        (ROWS, sides[0], crops[0], order // SIDE),
        (COLUMNS, sides[1], crops[1], order % SIDE),
    ):
        away = np.stack([uniform(states, word + i) for i in range(cells)], 1) * (side - crop + 1)
        drawn.append(cell * side + away.astype(np.int64))
    starts = to_device(drawn, x.device)
    rows = starts[0][:, :, None] + torch.arange(crops[0], device=x.device)  # (N, 9, h)
    columns = starts[1][:, :, None] + torch.arange(crops[1], device=x.device)  # (N, 9, w)
    image = torch.arange(len(x), device=x.device)[:, None, None, None]
    return x.permute(0, 2, 3, 1)[image, rows[:, :, :, None], columns[:, :, None, :]].permute(0, 1, 4, 2, 3)
