"""What the trainer says without its packages; tests/test_packaging.py tries it in an environment that lacks them."""

import importlib
from importlib.util import find_spec

import pytest

import sacl_train.extra
from texturegen.errors import MissingExtra


@pytest.mark.parametrize("absent", [{"timm"}, {"torch", "torchvision"}])
def test_missing_packages_are_named_with_what_to_install(absent: set[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def find(name: str) -> object:
        return None if name in absent else find_spec(name)

    monkeypatch.setattr(importlib.util, "find_spec", find)
    needed = ", ".join(sorted(absent))
    with pytest.raises(MissingExtra, match=rf"^sacl_train needs {needed}: pip install 'sacl-texture\[train\]'$"):
        importlib.reload(sacl_train.extra)
    monkeypatch.undo()
    importlib.reload(sacl_train.extra)  # with all packages
