"""Validation of the methods' settings. A setting means the same in every method that has it."""

from typing import Any

from sacl_train.methods.losses import SCOPES
from sacl_train.methods.textures import TEXTURE_VIEWS
from sacl_train.nets.ema import SCHEDULES
from texturegen.errors import UserError, nearest

NEGATIVE_ROLES = ("negative", "none")
ALL_ROLES = ("none", "negative", "instance", "positive")
PREDICTOR_RATES = ("schedule", "constant")
CHOICES = {
    "scope": SCOPES,
    "texture_view": TEXTURE_VIEWS,
    "momentum_schedule": SCHEDULES,
    "predictor_lr": PREDICTOR_RATES,
}
COUNTS = (
    "projector_hidden",
    "projector_out",
    "projector_layers",
    "predictor_hidden",
    "queue",
    "negatives",
    "images",
)  # at least 1
FRACTIONS = ("momentum", "weight")  # 0..1
POSITIVE = ("tau", "loss_scale")
NOT_NEGATIVE = ("shift_head",)


def check_settings(settings: Any, roles: tuple[str, ...]) -> None:
    """Raise UserError unless all settings of a method are within bounds.

    Parameters
    ----------
    settings : dataclass
        The method's settings. A count may be None, which stands for a default that depends on other settings.
    roles : tuple of str
        The values that the method accepts as texture_role.
    """
    values = vars(settings)
    check_choice("texture_role", values["texture_role"], roles)
    for name, choices in CHOICES.items():
        if name in values:
            check_choice(name, values[name], choices)
    for name in COUNTS:
        if values.get(name) is not None and values[name] < 1:
            raise UserError(f"{name} is {values[name]}; it must be at least 1")
    for name in FRACTIONS:
        if name in values and not 0 <= values[name] <= 1:
            raise UserError(f"{name} is {values[name]}; it must be between 0 and 1")
    for name in POSITIVE:
        if name in values and not values[name] > 0:
            raise UserError(f"{name} is {values[name]}; it must be above 0")
    for name in NOT_NEGATIVE:
        if name in values and not values[name] >= 0:
            raise UserError(f"{name} is {values[name]}; it must be at least 0")
    if values.get("shift_head") and values["texture_role"] == "none":
        raise UserError("shift_head tells images from textures, and texture_role is none; set another texture_role")


def check_choice(setting: str, value: str, choices: tuple[str, ...]) -> None:
    """Raise UserError, with the nearest known value, unless `value` is one of `choices`."""
    if value not in choices:
        raise UserError(f"unknown {setting} '{value}'{nearest(value, choices)}; known: {', '.join(choices)}")


def check_settings_without_negatives(settings: Any, method: str) -> None:
    """Raise UserError unless the settings are valid for a method without negatives, which cannot use textures.

    Parameters
    ----------
    settings : dataclass
        As in `check_settings`.
    method : str
        Name of the method, for the error.
    """
    check_settings(settings, ALL_ROLES)
    if settings.texture_role != "none":
        raise UserError(
            f"texture_role '{settings.texture_role}' does not apply to {method}, which has no negatives; use "
            "--texture-role none, or a method with negatives: sacl, fast-moco, mocov2, simclr, pirl"
        )
