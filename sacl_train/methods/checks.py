"""What the settings of methods may be: a setting of one name means the same in all of them."""

from typing import Any

from sacl_train.methods.losses import SCOPES
from sacl_train.methods.textures import TEXTURE_VIEWS
from sacl_train.nets.ema import SCHEDULES
from texturegen.errors import UserError, nearest

NEGATIVE_ROLES = ("negative", "none")
NO_ROLES = ("none", "negative", "instance", "positive")
CHOICES = {"scope": SCOPES, "texture_view": TEXTURE_VIEWS, "momentum_schedule": SCHEDULES}
COUNTS = ("projector_hidden", "projector_out", "predictor_hidden", "queue", "negatives", "images")
SHARES = ("momentum", "weight")


def check_settings(settings: Any, roles: tuple[str, ...]) -> None:
    """UserError unless the texture_role of a method's settings is one of `roles` and all others are within bounds.

    None passes for those that stand for something else when they are not given.
    """
    given = vars(settings)
    check_choice("texture_role", given["texture_role"], roles)
    for name, choices in CHOICES.items():
        if name in given:
            check_choice(name, given[name], choices)
    for name in COUNTS:
        if given.get(name) is not None and given[name] < 1:
            raise UserError(f"{name} is {given[name]}; it must be at least 1")
    for name in SHARES:
        if name in given and not 0 <= given[name] <= 1:
            raise UserError(f"{name} is {given[name]}; it must be from 0 to 1")
    if "tau" in given and not given["tau"] > 0:
        raise UserError(f"tau is {given['tau']}; it must be above 0")


def check_choice(setting: str, value: str, choices: tuple[str, ...]) -> None:
    """UserError, with the nearest, unless `value` is one of `choices`."""
    if value not in choices:
        raise UserError(f"unknown {setting} '{value}'{nearest(value, choices)}; known: {', '.join(choices)}")


def check_settings_without_negatives(settings: Any, method: str) -> None:
    """As `check_settings`, for a method that cannot take textures: UserError with the reason where it is asked to."""
    check_settings(settings, NO_ROLES)
    if settings.texture_role != "none":
        raise UserError(
            f"{method} contrasts nothing with anything, so a texture cannot be its negative (texture_role "
            f"'{settings.texture_role}'); take --texture-role none, or a method with negatives: sacl, mocov2, simclr, "
            "pirl"
        )
