from typing import Annotated

import pytest

from texturegen.console import read_pairs
from texturegen.errors import UserError
from texturegen.texture.settings import Choice, resolve


def method(*, search: Annotated[str, Choice(("all", "tree"))] = "all"):
    """A method with one setting."""


def test_choice():
    assert resolve("m", method, {}) == {"search": "all"}
    assert resolve("m", method, {"search": "tree"}) == {"search": "tree"}


@pytest.mark.parametrize("value", ["Tree", "", None, 1, True, ["tree"]])
def test_choice_refuses_other_values(value):
    with pytest.raises(UserError, match="setting 'search' of method 'm' must be one of all, tree, not"):
        resolve("m", method, {"search": value})


@pytest.mark.parametrize("text", ["search=tree", 'search="tree"'])
def test_choice_from_command_line(text):
    assert resolve("m", method, read_pairs(None, None, (text,))) == {"search": "tree"}
