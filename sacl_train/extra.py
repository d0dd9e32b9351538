"""Importing this module fails, in one line, where the packages of the extra `train` are missing.

Every room of the trainer imports it first. `pip install sacl-texture` alone is for building shards, without PyTorch.
"""

from importlib.util import find_spec

from texturegen.errors import MissingExtra

missing = [name for name in ("torch", "torchvision", "timm") if find_spec(name) is None]
if missing:
    raise MissingExtra(f"sacl_train needs {', '.join(missing)}: pip install 'sacl-texture[train]'")
