"""--recipe, --patches and --patch-size, which `build` and `plan` share."""

from typing import Any

import pytest
from click.testing import CliRunner

from texturegen.builds import RECIPES, Recipe
from texturegen.builds.recipe import make_plan
from texturegen.builds.trial import Estimate
from texturegen.cli.build import plan


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a function that gives the `Recipe` of a command line."""
    recipes = []

    def estimate(recipe: Recipe, *arguments: object) -> Estimate:
        recipes.append(recipe)
        return Estimate(1, 1, 1, 1, 1.0, 1.0, 1, 1, 0)

    monkeypatch.setattr("texturegen.builds.trial.estimate", estimate)

    def run(*options: str) -> Recipe:
        result = CliRunner().invoke(plan, ["--dataset", "shapes", *options], catch_exceptions=False)
        assert result.exit_code == 0, result.output
        return recipes[-1]

    return run


def test_number_side_and_places_of_the_patches(read: Any) -> None:
    assert read() == Recipe("shapes")
    assert read("--patches-from", "corners") == Recipe("shapes", patches_from="corners")
    assert read("--paste") == Recipe("shapes", paste=True)
    assert read("--patches", "3", "--patch-size", "12") == Recipe("shapes", patches=3, patch_size=12)


@pytest.mark.parametrize("name", RECIPES)
def test_a_published_recipe_sets_its_fields(name: str, read: Any) -> None:
    recipe = read("--recipe", name)
    assert recipe == Recipe("shapes", **RECIPES[name].fields)
    make_plan(recipe)  # its method has its settings


def test_given_options_replace_those_of_a_published_recipe(read: Any) -> None:
    recipe = read("--patches", "4", "--recipe", "ge2021", "--size", "96")
    assert (recipe.patches, recipe.size, recipe.patch_size) == (4, 96, 96)


@pytest.mark.parametrize("first", [True, False])
def test_a_setting_replaces_one_of_a_published_recipe_and_a_method_all(read: Any, first: bool) -> None:
    setting, name = ("--method-option", "levels=2"), ("--recipe", "sacl2024")
    recipe = read(*(setting + name if first else name + setting))
    assert (recipe.method, recipe.settings) == ("wei-levoy", {"search": "tsvq", "levels": 2})
    assert read(*name, "--method-option", "search=exhaustive").settings == {"search": "exhaustive"}
    assert read("--method", "quilting", *name).settings == {}


def test_an_unknown_recipe_is_refused_on_one_line() -> None:
    result = CliRunner().invoke(plan, ["--dataset", "shapes", "--recipe", "ge2012"])
    assert (result.exit_code, result.stdout) == (1, "")
    recipes = ", ".join(RECIPES)
    assert result.stderr == f"error: unknown recipe 'ge2012' (did you mean 'ge2021'?); recipes: {recipes}\n"
