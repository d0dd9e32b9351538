"""Texture images as keys: what every method that takes them does with a batch's."""

from collections.abc import Callable, Sequence

import numpy as np
from torch import Tensor

from sacl_train.data.draws import Draws
from sacl_train.data.weak import WeakAugment
from sacl_train.distributed import gather as gather_keys
from texturegen.errors import UserError

TEXTURE_VIEWS = ("own", "query")
FIRST, SECOND = 2, 0x40000  # purposes of `draws`: first and second views of the textures, by number


def texture_views(
    weak: WeakAugment, batch: dict[str, Tensor], draws: Draws, geometric: np.ndarray | None = None, second: bool = False
) -> Tensor:
    """A weak view of each of the batch's texture images, uint8 (N, P, 3, H, W) -> float (N*P, 3, H, W).

    geometric: states (N,) whose geometry the views get instead of their own. second: another view of the same.
    UserError when the batch has no textures.
    """
    textures = batch.get("texture")
    if textures is None or textures.shape[1] == 0:
        raise UserError(
            "the texture role needs texture images and these shards have none: build them with --per-image 1 or more, "
            "or train with --texture-role none"
        )
    count = textures.shape[1]
    purposes = range(SECOND, SECOND + count) if second else range(FIRST, FIRST + count)
    states = np.stack([draws.of(purpose) for purpose in purposes], axis=1).reshape(-1)  # (N*P,)
    return weak(textures.flatten(0, 1), states, None if geometric is None else np.repeat(geometric, count))


def texture_keys(
    encode: Callable[[Tensor], Tensor],
    weak: WeakAugment,
    batch: dict[str, Tensor],
    draws: Draws,
    geometric: np.ndarray | None = None,
) -> Tensor:
    """Keys (N, P, D) of `texture_views`, encoded by `encode`: views (M, 3, H, W) -> keys (M, D)."""
    shown = texture_views(weak, batch, draws, geometric)
    # A pass of their own: mixed with photographs, each would change the statistics the other is normalised by.
    return encode(shown).unflatten(0, (len(batch["image"]), -1))


def keys_for_queries(
    encode: Callable[[Tensor], Tensor],
    weak: WeakAugment,
    batch: dict[str, Tensor],
    draws: Draws,
    texture_view: str,
    queries: Sequence[np.ndarray],
    gather: Callable[[Tensor], Tensor] = gather_keys,
) -> list[Tensor]:
    """For each of the views that are queries, of states (N,), the texture keys (M, P, D) it is compared with.

    texture_view: "own" draws the view of a texture by itself: the same keys for all queries. "query" shows it with the
    geometry of the query (Ge et al. 2021), so that only content tells them apart: a pass of the textures for each.
    """
    if texture_view == "own":
        return [gather(texture_keys(encode, weak, batch, draws))] * len(queries)
    return [gather(texture_keys(encode, weak, batch, draws, states)) for states in queries]
