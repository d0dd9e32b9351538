"""SACL: contrastive learning against texture images (SACL §2, algorithm 1; Fast-MoCo for grid and combinations)."""

from collections.abc import Iterator
from dataclasses import dataclass
from math import comb
from typing import Any, ClassVar

import torch
from torch import Tensor

from sacl_train.data.draws import Draws
from sacl_train.data.grid import check_grid, combine, split_grid
from sacl_train.data.weak import WeakAugment
from sacl_train.distributed import gather, process_rank
from sacl_train.methods.checks import check_settings
from sacl_train.methods.losses import embedding_std, info_nce
from sacl_train.methods.method import LossTerm, Method
from sacl_train.methods.textures import keys_for_queries, texture_views
from sacl_train.nets.ema import make_target, momentum_at, update_target
from sacl_train.nets.encoder import Encoder
from sacl_train.nets.heads import predictor, projector
from texturegen.errors import UserError

TEXTURE_ROLES = ("negative", "instance", "positive", "none")


@dataclass(frozen=True)
class SACLSettings:
    """Settings of the method; UserError for values out of range. The defaults are the paper's.

    grid, cells: side of the grid (n), cells averaged per combination (i). tau: temperature. momentum: m of the
    target's moving average; momentum_schedule: "constant", or "cosine" from m up to 1. alpha, scope: see
    `losses.info_nce`. texture_role: "negative" (textures are further negatives, the abstract's reading), "positive" (an
    image's texture is its key, §2.1 read literally), "instance" (negatives that are anchors too: two views of a texture
    are a positive pair, all images its negatives; not in the paper) or "none" (no textures: Fast-MoCo). texture_view:
    "own" draws the weak view of a texture by itself, "query" gives it the geometry of the query that it is compared
    with (Ge et al. 2021), for a second pass of the textures. Widths of the heads should shrink with a small encoder.
    """

    grid: int = 2
    cells: int = 2
    tau: float = 0.2
    momentum: float = 0.99
    momentum_schedule: str = "constant"
    alpha: float = 1.0
    scope: str = "batch"
    texture_role: str = "negative"
    texture_view: str = "own"
    projector_hidden: int = 2048
    projector_out: int = 2048
    predictor_hidden: int = 512

    def __post_init__(self) -> None:
        check_settings(self, TEXTURE_ROLES)
        if self.grid < 1 or not 1 <= self.cells <= self.grid**2:
            raise UserError(f"cells must be from 1 to grid*grid; got cells {self.cells} of grid {self.grid}")


class SACL(Method):
    """The method's networks and its step. `encoder` is the online encoder, the one to evaluate.

    image_size: (H, W) of the images in pixels, checked against the grid at once (UserError).
    The optimizer takes the parameters with requires_grad; the target has none.
    """

    Settings = SACLSettings

    def __init__(
        self, encoder: Encoder, weak: WeakAugment, image_size: tuple[int, int], settings: SACLSettings | None = None
    ) -> None:
        super().__init__()
        self.settings = settings or SACLSettings()
        check_grid(self.settings.grid, *image_size)
        self.weak = weak
        self.encoder = encoder  # f
        self.projector = projector(
            encoder.out_features, self.settings.projector_hidden, self.settings.projector_out
        )  # g
        self.predictor = predictor(self.settings.projector_out, self.settings.predictor_hidden)  # q
        self.target_encoder = make_target(self.encoder)  # f'
        self.target_projector = make_target(self.projector)  # g'

    def loss_terms(self, batch: dict[str, Tensor], draws: Draws) -> Iterator[LossTerm]:
        """Yield L(p1, z2) / 2 and L(p2, z1) / 2 with the statistics of `losses.info_nce` and "embedding_std", the
        collapse monitor, of the keys.

        batch: "image" uint8 (N, 3, H, W), N >= 2, and, unless the texture role is "none", "texture" uint8
        (N, P, 3, H, W). With several processes each has its own N images; keys and textures are gathered from all.
        Raises UserError for a batch of one image and for missing textures.
        """
        images, role = batch["image"], self.settings.texture_role
        if len(images) < 2:
            raise UserError("a batch of one image has nothing to contrast it with: use a larger batch size")
        states = [draws.of(view) for view in (0, 1)]
        views = [self.weak(images, state) for state in states]  # x1, x2: (N, 3, H, W)
        if role == "instance":
            yield from self._with_instances(batch, draws, views)
            return
        textures: list[Tensor | None] = [None, None]  # of each query: (M, P, D), M = N times the processes
        if role != "none":
            textures = [*keys_for_queries(self._keys, self.weak, batch, draws, self.settings.texture_view, states)]
        # All keys are made before the first gradient is taken: the first part may then be forgotten.
        sides: list[tuple[int, Tensor, Tensor | None]]  # number of the view, its keys, further negatives
        if role == "positive":
            # Each of an image's P textures is the key in turn; the other images' keys are the negatives.
            sides = [(n, key, None) for n, t in enumerate(textures) if t is not None for key in t.unbind(dim=1)]
        else:
            keys = [gather(self._keys(view)) for view in views]
            sides = [(0, keys[1], textures[0]), (1, keys[0], textures[1])]
        first = process_rank() * len(images)
        std = embedding_std(sides[0][1])
        settings = self.settings
        for n, z, t in sides:
            p = self._queries(views[n])  # (A, N, D)
            loss, metrics = info_nce(p, z, t, settings.tau, settings.alpha, settings.scope, first)
            yield loss / len(sides), {**metrics, "embedding_std": std}

    def _with_instances(self, batch: dict[str, Tensor], draws: Draws, views: list[Tensor]) -> Iterator[LossTerm]:
        """Images against images and textures, textures against textures and images: four parts, each a quarter."""
        settings = self.settings
        if batch.get("texture") is not None and batch["texture"].shape[1] > 1:
            raise UserError("texture_role instance takes one texture per image: set texture_draw=one")
        shown = [texture_views(self.weak, batch, draws, second=second) for second in (False, True)]  # (N, 3, H, W)
        keys = [gather(self._keys(view)) for view in views]
        others = [gather(self._keys(view)) for view in shown]
        sides = [(views[n], keys[1 - n], others[1 - n]) for n in (0, 1)]
        sides += [(shown[n], others[1 - n], keys[1 - n]) for n in (0, 1)]
        first, std = process_rank() * len(views[0]), embedding_std(keys[0])
        for view, z, t in sides:
            p = self._queries(view)
            loss, metrics = info_nce(p, z, t[:, None], settings.tau, settings.alpha, settings.scope, first)
            yield loss / len(sides), {**metrics, "embedding_std": std}

    def after_step(self, step: int, steps: int) -> dict[str, float]:
        """Move the target towards the online networks (eq. 6, 7)."""
        m = momentum_at(step, steps, self.settings.momentum, self.settings.momentum_schedule)
        update_target(self.target_encoder, self.encoder, m)
        update_target(self.target_projector, self.projector, m)
        return {"m": m}

    def _queries(self, x: Tensor) -> Tensor:
        """Views (N, 3, H, W) -> queries (A, N, D), one for each subset of the grid's cells."""
        cells = split_grid(x, self.settings.grid)  # (n*n*N, 3, H/n, W/n)
        features = combine(self.encoder(cells), self.settings.grid, self.settings.cells)  # (A, N, C)
        rows = self.predictor(self.projector(features.flatten(0, 1)))  # (A*N, D): BN over all combinations
        return rows.unflatten(0, (comb(self.settings.grid**2, self.settings.cells), -1))

    @torch.no_grad()
    def _keys(self, x: Tensor) -> Tensor:
        """Whole views (M, 3, H, W) -> keys (M, D), by the target, without gradient."""
        return self.target_projector(self.target_encoder(x))


@dataclass(frozen=True)
class FastMoCoSettings(SACLSettings):
    """SACL's without textures."""

    texture_role: str = "none"


class FastMoCo(SACL):
    """SACL without attention and textures (Ci et al. 2022, "Fast-MoCo")."""

    Settings = FastMoCoSettings
    defaults: ClassVar[dict[str, Any]] = {"attention": "none"}
