"""Published training recipes: what `Method.recipes` holds, and how a run takes one.

A recipe is a dict of settings, keys of `Config` and of the method's `Settings`; its source stands beside it. It says
nothing of batch_size and epochs, which depend on the machine: the learning rate is a `Linear`, and warm-up is shortened
in a short run.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from texturegen.errors import UserError, nearest

MAX_WARMUP = 0.1  # share of the epochs


@dataclass(frozen=True)
class Linear:
    """A learning rate in proportion to the batch (Goyal et al. 2017, section 2.1).

    Attributes
    ----------
    lr : float
        The learning rate of a batch of `batch` images.
    """

    lr: float
    batch: int = 256

    def __call__(self, batch_size: int) -> float:
        """Return the learning rate of a batch of `batch_size` images."""
        return self.lr * batch_size / self.batch

    def __str__(self) -> str:
        return f"{self.lr:g} x batch / {self.batch}"


def resolve_recipe(
    name: str, recipes: Mapping[str, Mapping[str, Any]], method: str, batch_size: int, epochs: int
) -> dict[str, Any]:
    """Return the settings of a recipe for a run.

    Parameters
    ----------
    name : str
        Name of the recipe.
    recipes : mapping
        The method's recipes.
    method : str
        Name of the method, for the error.
    batch_size, epochs : int
        Of the run. Warm-up takes at most a tenth of the epochs.

    Raises
    ------
    UserError
        If the method has no recipe of this name.
    """
    if name not in recipes:
        raise UserError(f"method {method} has no recipe '{name}'{nearest(name, recipes)}; it has: {', '.join(recipes)}")
    settings = {key: value(batch_size) if isinstance(value, Linear) else value for key, value in recipes[name].items()}
    if "warmup_epochs" in settings:
        settings["warmup_epochs"] = min(settings["warmup_epochs"], MAX_WARMUP * epochs)
    return settings
