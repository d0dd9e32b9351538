"""SACL: contrastive learning against texture images (SACL section 2, algorithm 1), with Fast-MoCo's grid of cells."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from math import comb
from typing import Any, ClassVar

import torch
from torch import Tensor

from sacl_train.data.draws import Draws
from sacl_train.data.grid import check_grid, combine, split_grid
from sacl_train.data.weak import ViewOf, WeakAugment
from sacl_train.distributed import gather, process_rank
from sacl_train.methods.checks import check_choice, check_settings
from sacl_train.methods.losses import info_nce
from sacl_train.methods.method import LossTerm, Method, Part
from sacl_train.methods.recipes import Linear
from sacl_train.methods.textures import draw_views, gather_textures
from sacl_train.nets.ema import make_target, momentum_at, update_target
from sacl_train.nets.encoder import Encoder
from sacl_train.nets.heads import predictor, projector
from sacl_train.nets.norms import encode_apart
from texturegen.errors import UserError

TEXTURE_ROLES = ("negative", "instance", "positive", "none")
QUERIES = ("grid", "crops")
TEXTURE_QUERIES = ("all", "whole")

# Areas of the crops, as fractions of the image: those of the cells of a 2x2 grid on views of 0.2 to 1.
CROP_SCALE = (0.05, 0.25)
# Purpose in `Draws.of` of the first crop of the first view; the second view's are CROPS + n*n onwards.
CROPS = 1 << 19


@dataclass(frozen=True)
class SACLSettings:
    """Settings of SACL. The defaults are the paper's.

    Attributes
    ----------
    grid : int
        n, cells per side of the grid.
    cells : int
        i, cells averaged per combination.
    queries : str
        "grid": the cells of a query are those of one view (eq. 1). "crops": they are n*n small views of the image,
        drawn independently (multi-crop; Caron et al. 2020, section 3.3; not in the paper).
    tau : float
        Temperature.
    momentum : float
        m of the target's moving average (eq. 6, 7).
    momentum_schedule : str
        "constant", or "cosine": from `momentum` up to 1.
    alpha : float
        Factor of the similarities to textures, before the softmax (Ge et al. 2021 use 2).
    scope : str
        "batch": compare a query with the textures of the whole batch. "own": with those of its own image only.
    texture_role : str
        "negative": textures are additional negatives, as the abstract says. "positive": an image's texture is its key,
        as section 2.1 literally says. "instance": textures are negatives and anchors too; two views of a texture are a
        positive pair and all images its negatives (not in the paper). "none": no textures (Fast-MoCo).
    texture_view : str
        "own": draw a texture's weak view independently. "query": give it the geometry of the query that it is compared
        with (Ge et al. 2021 share the colours too); the textures are then encoded twice.
    texture_query : str
        Queries that meet the textures. "all". "whole": each whole view becomes a query too, and only it meets them.
    decoupled : bool
        Leave the positive pair out of the denominator; see `losses.info_nce`.
    projector_hidden, projector_out, predictor_hidden : int
        Widths of the heads; choose smaller ones for a small encoder.
    predictor_lr : str
        "schedule", or "constant": the predictor's learning rate does not fall.
    shift_head : float
        Weight of a linear head that tells images from their textures, see `shift.ShiftHead`; 0: no head.

    Raises
    ------
    UserError
        If a value is out of range.
    """

    grid: int = 2
    cells: int = 2
    queries: str = "grid"
    tau: float = 0.2
    momentum: float = 0.99
    momentum_schedule: str = "constant"
    alpha: float = 1.0
    scope: str = "batch"
    texture_role: str = "negative"
    texture_view: str = "own"
    texture_query: str = "all"
    decoupled: bool = False
    projector_hidden: int = 2048
    projector_out: int = 2048
    predictor_hidden: int = 512
    predictor_lr: str = "schedule"
    shift_head: float = 0.0

    def __post_init__(self) -> None:
        check_settings(self, TEXTURE_ROLES)
        if self.grid < 1 or not 1 <= self.cells <= self.grid**2:
            raise UserError(f"cells must be between 1 and grid*grid, not {self.cells} with grid {self.grid}")
        check_choice("queries", self.queries, QUERIES)
        check_choice("texture_query", self.texture_query, TEXTURE_QUERIES)
        if self.texture_query == "whole" and self.texture_role not in ("negative", "none"):
            raise UserError(f"texture_query whole needs texture_role negative or none, not {self.texture_role}")
        if self.queries == "crops" and (self.texture_role == "instance" or self.texture_view == "query"):
            raise UserError(
                "queries crops works neither with texture_role instance nor with texture_view query, which need one "
                "view"
            )


# What the paper gives (§3.2, and table 6 for m). CIFAR and STL-10: 200 epochs, ImageNet-100: 100; batch 128.
PAPER: dict[str, Any] = {
    "optimizer": "sgd",
    "lr": Linear(0.1, batch=128),
    "weight_decay": 1e-4,
    "tau": 0.2,
    "momentum": 0.99,  # table 6; §2.4 has 0.999
    "momentum_schedule": "constant",
    "grid": 2,
    "cells": 2,  # Fast-MoCo
    "projector_hidden": 2048,
    "projector_out": 2048,
    "predictor_hidden": 512,
}
# What Fast-MoCo's ssl_exp/fast_moco/fastmoco_e100/config.yaml adds; the SACL paper is silent.
FAST_MOCO: dict[str, Any] = {
    "warmup_epochs": 1.0,
    "clip": 1.0,
    "zero_init_residual": True,
    "predictor_lr": "constant",  # lr_scheduler WCosConEpoch
}


class SACL(Method):
    """The networks of SACL and its step (algorithm 1). `encoder` is the online encoder, the one to evaluate.

    Parameters
    ----------
    encoder : Encoder
        f; the target networks start as copies of the online ones.
    weak : WeakAugment
        The augmentation of images and textures.
    image_size : tuple of int
        (H, W) of the images in pixels; UserError if the grid does not divide it.
    settings : SACLSettings or None
        None: the defaults.
    """

    Settings = SACLSettings
    recipes: ClassVar[dict[str, dict[str, Any]]] = {
        # Fast-MoCo has zero-init too; in short runs of SACL it costs six points of kNN (docs/training.md).
        "cifar": {**PAPER, **FAST_MOCO, "zero_init_residual": False, "weak": "colour-geometric", "sgd_momentum": 0.9},
        "imagenet": {**PAPER, **FAST_MOCO, "weak": "colour-geometric", "sgd_momentum": 0.9},
        # Literally: geometric views (abstract) and SGD's momentum of §3.2.
        "paper": {**PAPER, "weak": "geometric", "sgd_momentum": 0.99},
    }

    def __init__(
        self, encoder: Encoder, weak: WeakAugment, image_size: tuple[int, int], settings: SACLSettings | None = None
    ) -> None:
        super().__init__()
        self.settings = settings or SACLSettings()
        check_grid(self.settings.grid, *image_size)
        self.weak = weak
        self.loss = Part(info_nce)
        if self.settings.queries == "crops":
            height, width = image_size
            self.crops = weak.cropping(CROP_SCALE, (height // self.settings.grid, width // self.settings.grid))
        self.encoder = encoder  # f
        self.projector = projector(
            encoder.out_features, self.settings.projector_hidden, self.settings.projector_out
        )  # g
        self.predictor = predictor(self.settings.projector_out, self.settings.predictor_hidden)  # q
        self.target_encoder = make_target(self.encoder)  # f'
        self.target_projector = make_target(self.projector)  # g'

    def loss_terms(self, batch: dict[str, Tensor], draws: Draws) -> Iterator[LossTerm]:
        """Yield L(p1, z2) / 2 and L(p2, z1) / 2 (algorithm 1).

        The metrics are the statistics of `losses.info_nce` and the "embedding_std" of the keys. Each process has its
        own N images; keys and textures are gathered from all processes.

        Parameters
        ----------
        batch : dict of str to Tensor
            "image" uint8 (N, 3, H, W), N >= 2, and, unless the texture role is "none", "texture" uint8 (N, P, 3, H, W).
        draws : Draws
            The random numbers of the batch's samples.

        Raises
        ------
        UserError
            If the batch has one image, or textures are missing.
        """
        images, role = batch["image"], self.settings.texture_role
        if len(images) < 2:
            raise UserError("a batch of one image has no negatives; use a larger batch size")
        if role == "instance":
            yield from self._with_instances(batch, draws)
            return
        wanted = "none" if role == "none" else self.settings.texture_view
        views, texture_views = draw_views(self.weak, batch, draws, wanted)  # x1, x2: (N, 3, H, W)
        # All keys are computed before the first term, so the loop can free that term before it asks for the second.
        keys = self._keys(texture_views if role == "positive" else [*views, *texture_views])
        textures: list[Tensor | None] = [None, None]  # for each query view: (M, P, D), M = N times the processes
        if role != "none":
            textures = [*gather_textures(keys[-len(texture_views) :], len(images), 2)]
        sides: list[tuple[int, Tensor, Tensor | None]]  # index of the query view, its keys, its texture negatives
        if role == "positive":
            # Each of an image's P textures serves once as its key; the negatives are the other images' textures.
            sides = [(n, key, None) for n, t in enumerate(textures) if t is not None for key in t.unbind(dim=1)]
        else:
            sides = [(0, gather(keys[1]), textures[0]), (1, gather(keys[0]), textures[1])]
        first = process_rank() * len(images)
        std = self.embedding_std(sides[0][1])
        settings = self.settings
        whole = settings.texture_query == "whole"
        for n, z, t in sides:
            for is_whole in (False, True) if whole else (False,):
                # (A, N, D)
                p = self._whole_query(views[n]) if is_whole else self._queries(self._cells(images, views[n], draws, n))
                against = t if is_whole or not whole else None
                loss, metrics = self.loss(
                    p, z, against, settings.tau, settings.alpha, settings.scope, first, settings.decoupled
                )
                yield loss / (2 * len(sides) if whole else len(sides)), {**metrics, "embedding_std": std}

    def _with_instances(self, batch: dict[str, Tensor], draws: Draws) -> Iterator[LossTerm]:
        """Yield the terms of texture role "instance", all with the same weight.

        An image and each of its P textures are P + 1 kinds. In the two terms of a kind, one for each view, queries and
        keys are of that kind, and the keys of the other kinds are negatives.
        """
        settings = self.settings
        count = len(batch["image"])
        views, textures = draw_views(self.weak, batch, draws, "two")
        kinds = [views, *zip(*(view.unflatten(0, (count, -1)).unbind(1) for view in textures), strict=True)]
        flat = iter(self._keys([view for pair in kinds for view in pair]))
        keys = [[gather(next(flat)) for _ in pair] for pair in kinds]
        first, std = process_rank() * count, self.embedding_std(keys[0][0])
        for kind, n in product(range(len(kinds)), (0, 1)):
            p = self._queries(split_grid(kinds[kind][n], settings.grid))
            z, *t = [keys[kind][1 - n], *(pair[1 - n] for k, pair in enumerate(keys) if k != kind)]
            loss, metrics = self.loss(
                p, z, torch.stack(t, 1), settings.tau, settings.alpha, settings.scope, first, settings.decoupled
            )
            yield loss / (2 * len(kinds)), {**metrics, "embedding_std": std}

    def after_step(self, step: int | Tensor, steps: int) -> dict[str, float | Tensor]:
        """Move the target towards the online networks (eq. 6, 7); return the momentum as "m"."""
        m = momentum_at(step, steps, self.settings.momentum, self.settings.momentum_schedule)
        update_target(self.target_encoder, self.encoder, m)
        update_target(self.target_projector, self.projector, m)
        return {"m": m}

    def _cells(self, images: Tensor, view: Tensor, draws: Draws, number: int) -> Tensor:
        """Return the cells of view `number`, (n*n*N, 3, H/n, W/n): of its grid, or small views of the images."""
        count = self.settings.grid**2
        if self.settings.queries == "grid":
            return split_grid(view, self.settings.grid)
        purposes = range(CROPS + number * count, CROPS + (number + 1) * count)
        return torch.cat(self.crops.together([ViewOf(images, (p,), number=number) for p in purposes], draws))

    def _queries(self, cells: Tensor) -> Tensor:
        """Map cells (n*n*N, 3, H/n, W/n) to queries (A, N, D), one for each subset of an image's cells."""
        # Not a `Part`: compiled, the gradient of `combine` is summed in an order that varies.
        features = combine(self.encoder(cells), self.settings.grid, self.settings.cells)  # (A, N, C)
        rows = self.predictor(self.projector(features.flatten(0, 1)))  # (A*N, D): BN over all combinations
        return rows.unflatten(0, (comb(self.settings.grid**2, self.settings.cells), -1))

    def _whole_query(self, view: Tensor) -> Tensor:
        """Map whole views (N, 3, H, W) to queries (1, N, D)."""
        return self.predictor(self.projector(self.encoder(view)))[None]

    @torch.no_grad()
    def _keys(self, views: Sequence[Tensor]) -> list[Tensor]:
        """Map whole views (M_i, 3, H, W) to keys (M_i, D) of the target, without gradient."""
        return encode_apart((self.target_encoder, self.target_projector), views)


@dataclass(frozen=True)
class FastMoCoSettings(SACLSettings):
    """Settings of SACL with texture role "none" by default."""

    texture_role: str = "none"


class FastMoCo(SACL):
    """Fast-MoCo (Ci et al. 2022): SACL without attention and textures."""

    Settings = FastMoCoSettings
    # Only attention and textures differ from SACL; the recipes have the views and the predictor's rate of the paper.
    defaults: ClassVar[dict[str, Any]] = {"attention": "none"}
    recipes: ClassVar[dict[str, dict[str, Any]]] = {
        # Nobody has published one for CIFAR: the temperature and learning rate of SACL §3.2, the rest of Fast-MoCo.
        "cifar": {**PAPER, **FAST_MOCO, "weak": "mocov2", "sgd_momentum": 0.9},
        # fastmoco_e100/config.yaml (100 epochs, batch 512).
        "imagenet": {
            **PAPER,
            **FAST_MOCO,
            "lr": Linear(0.1, batch=512),
            "sgd_momentum": 0.9,
            "tau": 1.0,
            "weak": "mocov2",
            "crop_scale": (0.2, 1.0),
            "jitter": (0.4, 0.4, 0.4, 0.1),
        },
    }
