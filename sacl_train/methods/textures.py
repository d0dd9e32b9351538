"""Texture images as keys: what every method that takes them does with a batch's."""

from collections.abc import Callable

import numpy as np
from torch import Tensor

from sacl_train.data.draws import Draws
from sacl_train.data.weak import WeakAugment
from texturegen.errors import UserError, nearest

NEGATIVE_ROLES = ("negative", "none")


def texture_keys(
    encode: Callable[[Tensor], Tensor],
    weak: WeakAugment,
    batch: dict[str, Tensor],
    draws: Draws,
    geometric: np.ndarray | None = None,
) -> Tensor:
    """The batch's texture images, uint8 (N, P, 3, H, W) -> keys of a weak view of each (N, P, D).

    encode: views (M, 3, H, W) -> keys (M, D). geometric: states (N,) whose geometry the views get instead of their own.
    UserError when the batch has no textures.
    """
    textures = batch.get("texture")
    if textures is None or textures.shape[1] == 0:
        raise UserError(
            "the texture role needs texture images and these shards have none: build them with --per-image 1 or more, "
            "or train with --texture-role none"
        )
    count = textures.shape[1]
    states = np.stack([draws.of(2 + number) for number in range(count)], axis=1).reshape(-1)  # (N*P,)
    # A pass of their own: mixed with photographs, each would change the statistics the other is normalised by.
    shown = weak(textures.flatten(0, 1), states, None if geometric is None else np.repeat(geometric, count))
    return encode(shown).unflatten(0, (len(textures), count))  # (N, P, D)


def check_choice(setting: str, value: str, choices: tuple[str, ...]) -> None:
    """UserError, with the nearest, unless `value` is one of `choices`."""
    if value not in choices:
        raise UserError(f"unknown {setting} '{value}'{nearest(value, choices)}; known: {', '.join(choices)}")


def refuse_textures(method: str, role: str) -> None:
    """UserError where a method that has no negatives is asked to take textures as such."""
    check_choice("texture_role", role, ("none", "negative", "positive"))
    if role != "none":
        raise UserError(
            f"{method} contrasts nothing with anything, so a texture cannot be its negative (texture_role '{role}'); "
            "take --texture-role none, or a method with negatives: sacl, mocov2, simclr"
        )
