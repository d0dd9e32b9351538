"""Texture images as keys, for all methods that use them."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from sacl_train.data.draws import Draws
from sacl_train.data.weak import WeakAugment
from sacl_train.distributed import gather as gather_keys
from sacl_train.methods.shift import Shifts
from texturegen.errors import UserError

TEXTURE_VIEWS = ("own", "query")
# Setting `texture_source` -> what the textures of a batch are.
TEXTURE_SOURCES = {
    "shards": Shifts(),
    "patch-shuffle": Shifts(of_shards=False, shuffled=True),
    "both": Shifts(shuffled=True),  # shards and patch-shuffle
    "rotations": Shifts(of_shards=False, turned=True),
    "shards-and-rotations": Shifts(turned=True),
}
FIRST, SECOND = 2, 0x40000  # purposes in `Draws.of` for the first and second view of texture 0; texture k adds k


def texture_views(
    weak: WeakAugment, batch: dict[str, Tensor], draws: Draws, geometric: Tensor | None = None, second: bool = False
) -> Tensor:
    """Return a weak view of each texture image of a batch.

    Parameters
    ----------
    weak : WeakAugment
        The augmentation.
    batch : dict of str to Tensor
        "texture" uint8 (N, P, 3, H, W).
    draws : Draws
        The random numbers of the batch's N samples.
    geometric : Tensor int64 (N,) or None
        States that the geometry of the views is drawn from; None: the views' own states.
    second : bool
        Return another view of the same textures.

    Returns
    -------
    Tensor float (N*P, 3, H, W)

    Raises
    ------
    UserError
        If the batch has no textures.
    """
    textures = batch.get("texture")
    if textures is None or textures.shape[1] == 0:
        raise UserError(
            "the texture role needs texture images and these shards have none; build shards with --per-image 1 or "
            "more, or train with --texture-role none"
        )
    count = textures.shape[1]
    purposes = range(SECOND, SECOND + count) if second else range(FIRST, FIRST + count)
    states = torch.stack([draws.of(purpose) for purpose in purposes], dim=1).flatten()  # (N*P,)
    return weak(textures.flatten(0, 1), states, None if geometric is None else geometric.repeat_interleave(count))


def texture_keys(
    encode: Callable[[Tensor], Tensor],
    weak: WeakAugment,
    batch: dict[str, Tensor],
    draws: Draws,
    geometric: Tensor | None = None,
) -> Tensor:
    """Return the keys of a batch's textures.

    Parameters
    ----------
    encode : callable
        Maps views float (M, 3, H, W) to keys (M, D).
    weak, batch, draws, geometric
        As in `texture_views`.

    Returns
    -------
    Tensor (N, P, D)
    """
    views = texture_views(weak, batch, draws, geometric)
    # Photographs and textures in one pass would share BatchNorm statistics, so textures are encoded separately.
    return encode(views).unflatten(0, (len(batch["image"]), -1))


def keys_for_queries(
    encode: Callable[[Tensor], Tensor],
    weak: WeakAugment,
    batch: dict[str, Tensor],
    draws: Draws,
    texture_view: str,
    queries: Sequence[int],
    gather: Callable[[Tensor], Tensor] = gather_keys,
) -> list[Tensor]:
    """Return the texture keys for each query view.

    Parameters
    ----------
    encode, weak, batch, draws
        As in `texture_keys`.
    texture_view : str
        "own": draw the views of the textures independently of the queries, which all share the same keys. "query": give
        them the geometry of the query, so that content and colours distinguish the two (Ge et al. 2021 share the
        colours too); the textures are then encoded once per query.
    queries : sequence of int
        Numbers of the query views, 0 or 1.
    gather : callable
        Collects the keys of all processes: (N, P, D) -> (M, P, D).

    Returns
    -------
    list of Tensor (M, P, D)
        One for each of `queries`.
    """
    if texture_view == "own":
        return [gather(texture_keys(encode, weak, batch, draws))] * len(queries)
    return [gather(texture_keys(encode, weak, batch, draws, draws.of(view))) for view in queries]
