"""SACL: contrastive learning against texture images (SACL §2, algorithm 1; Fast-MoCo for grid and combinations)."""

from dataclasses import dataclass
from math import comb

import torch
from torch import Generator, Tensor

from sacl_train.data.grid import check_grid, combine, split_grid
from sacl_train.data.weak import WeakAugment
from sacl_train.methods.losses import SCOPES, embedding_std, info_nce
from sacl_train.methods.method import Method
from sacl_train.nets.ema import make_target, update_target
from sacl_train.nets.encoder import Encoder
from sacl_train.nets.heads import predictor, projector
from texturegen.errors import UserError, nearest

TEXTURE_ROLES = ("negative", "positive", "none")


@dataclass(frozen=True)
class SACLSettings:
    """Settings of the method; UserError for values out of range. The defaults are the paper's.

    grid, cells: side of the grid (n), cells averaged per combination (i). tau: temperature. momentum: m of the
    target's moving average. alpha, scope: see `losses.info_nce`. texture_role: "negative" (textures are further
    negatives, the abstract's reading), "positive" (an image's texture is its key, §2.1 read literally) or "none"
    (no textures: Fast-MoCo). Widths of the heads should shrink with a small encoder.
    """

    grid: int = 2
    cells: int = 2
    tau: float = 0.2
    momentum: float = 0.99
    alpha: float = 1.0
    scope: str = "batch"
    texture_role: str = "negative"
    projector_hidden: int = 2048
    projector_out: int = 2048
    predictor_hidden: int = 512

    def __post_init__(self) -> None:
        _check_choice("texture_role", self.texture_role, TEXTURE_ROLES)
        _check_choice("scope", self.scope, SCOPES)
        if self.grid < 1 or not 1 <= self.cells <= self.grid**2:
            raise UserError(f"cells must be from 1 to grid*grid; got cells {self.cells} of grid {self.grid}")
        for width in ("projector_hidden", "projector_out", "predictor_hidden"):
            if getattr(self, width) < 1:
                raise UserError(f"{width} must be at least 1, not {getattr(self, width)}")
        if not self.tau > 0:
            raise UserError(f"tau must be positive, not {self.tau}")
        if not 0 <= self.momentum <= 1:
            raise UserError(f"momentum must be from 0 to 1, not {self.momentum}")


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

    def forward(self, batch: dict[str, Tensor], generator: Generator) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss of a batch (0-d, with gradient) and its metrics (detached 0-d tensors).

        batch: "image" uint8 (N, 3, H, W), N >= 2, and, unless the texture role is "none", "texture" uint8
        (N, P, 3, H, W). generator: a CPU generator, from which the views are drawn. Metrics: "loss",
        "embedding_std" (collapse monitor, of the keys) and the statistics of `losses.info_nce`.
        Raises UserError for a batch of one image and for missing textures.
        """
        images = batch["image"]
        if len(images) < 2:
            raise UserError("a batch of one image has nothing to contrast it with: use a larger batch size")
        x1, x2 = self.weak(images, generator), self.weak(images, generator)  # (N, 3, H, W)
        p1, p2 = self._queries(x1), self._queries(x2)  # (A, N, D)
        role = self.settings.texture_role
        t = None if role == "none" else self._texture_keys(batch, generator)  # (N, P, D)
        pairs: list[tuple[Tensor, Tensor, Tensor | None]]  # queries, their keys, further negatives
        if role == "positive" and t is not None:
            # Each of an image's P textures is the key in turn; the other images' keys are the negatives.
            pairs = [(p, key, None) for key in t.unbind(dim=1) for p in (p1, p2)]
        else:
            pairs = [(p1, self._keys(x2), t), (p2, self._keys(x1), t)]
        tau, alpha, scope = self.settings.tau, self.settings.alpha, self.settings.scope
        results = [info_nce(p, z, negatives, tau, alpha, scope) for p, z, negatives in pairs]
        loss = torch.stack([part for part, _ in results]).mean()
        metrics = {name: torch.stack([stats[name] for _, stats in results]).mean() for name in results[0][1]}
        return loss, {"loss": loss.detach(), **metrics, "embedding_std": embedding_std(pairs[0][1])}

    def after_step(self) -> None:
        """Move the target towards the online networks (eq. 6, 7). Call it after each step of the optimizer."""
        update_target(self.target_encoder, self.encoder, self.settings.momentum)
        update_target(self.target_projector, self.projector, self.settings.momentum)

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

    def _texture_keys(self, batch: dict[str, Tensor], generator: Generator) -> Tensor:
        """The batch's texture images uint8 (N, P, 3, H, W) -> keys of their weak views (N, P, D)."""
        textures = batch.get("texture")
        if textures is None or textures.shape[1] == 0:
            raise UserError(
                f"texture role '{self.settings.texture_role}' needs texture images and these shards have none: "
                "build them with --per-image 1 or more, or train with --texture-role none"
            )
        # A pass of their own: mixed with photographs, each would change the statistics the other is normalised by.
        keys = self._keys(self.weak(textures.flatten(0, 1), generator))  # (N*P, D)
        return keys.unflatten(0, (len(textures), -1))


def _check_choice(setting: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise UserError(f"unknown {setting} '{value}'{nearest(value, choices)}; known: {', '.join(choices)}")
