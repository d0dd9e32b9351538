"""Builds: from a recipe to a shard directory.

A recipe gives a plan on its data set; the plan gives one job per shard; an engine runs the jobs; `BuildDirectory` holds
the state on disk. Names are loaded on first use, because they import Arrow.

`RECIPES` is the registry of published recipes. To add one, add an entry.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

from texturegen.errors import UserError, nearest

if TYPE_CHECKING:
    from texturegen.builds.recipe import Recipe
    from texturegen.builds.run import Result, build, finish

__all__ = ["RECIPES", "PublishedRecipe", "Recipe", "Result", "build", "find_recipe", "finish"]


@dataclass(frozen=True)
class PublishedRecipe:
    """Entry of a published recipe in the registry.

    Attributes
    ----------
    fields : fields of `Recipe` that it sets.
    help : description in a few words, for `--help`.
    """

    fields: Mapping[str, Any]
    help: str


RECIPES: dict[str, PublishedRecipe] = {
    # S. Ge et al., "Robust contrastive learning using negative samples with diminished semantics", NeurIPS 2021,
    # section 3.1: texture-based and patch-based negatives.
    "ge2021": PublishedRecipe(
        {"size": 224, "short_side": 256, "method": "coherent", "patches": 2, "patch_size": 96},
        "Ge et al. 2021: 96 px patches",
    ),
    # J. Chen et al., SACL, section 3.2, cites the tools of Efros, Wei and Han, and gives neither their settings nor the
    # side of the two patches; it is that of other builds.
    "sacl2024": PublishedRecipe(
        {"method": "wei-levoy", "settings": {"search": "tsvq"}, "patches": 2},
        "SACL 2024: Wei & Levoy, TSVQ",
    ),
    # One patch that is the whole image: the paper cuts the cells from everywhere.
    "patch-shuffle2021": PublishedRecipe(
        {"size": 224, "method": "patch-shuffle", "patches": 1, "patch_size": 224},
        "Ge et al. 2021: shuffled cells",
    ),
}


def find_recipe(name: str) -> PublishedRecipe:
    """Return the entry of `name` in RECIPES; UserError for an unknown name."""
    if name not in RECIPES:
        raise UserError(f"unknown recipe '{name}'{nearest(name, RECIPES)}; recipes: {', '.join(RECIPES)}")
    return RECIPES[name]


_LOCATION = {"Recipe": "recipe", "Result": "run", "build": "run", "finish": "run"}


def __getattr__(name: str) -> Any:
    if name not in _LOCATION:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_LOCATION[name]}"), name)
