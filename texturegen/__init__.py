"""texturegen: images in, texture images (hard negatives) out, as WebDataset shards.

    texture = texturegen.synthesize([patch, other_patch], size=(96, 96), seed=0)
    textures = texturegen.synthesize_batch([[patch], [other_patch]], size=(96, 96), seeds=[0, 1])
    for sample in texturegen.open_shards("shards/"):
        sample.image, sample.textures, sample.label

Names are loaded on first use, so that `import texturegen` answers at once.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from texturegen.shards import Sample, Shards, open_shards
    from texturegen.texture import Texture, synthesize, synthesize_batch

__version__ = "0.1.0"
__all__ = ["Sample", "Shards", "Texture", "open_shards", "synthesize", "synthesize_batch"]

_HOME = {
    "Texture": "texturegen.texture",
    "synthesize": "texturegen.texture",
    "synthesize_batch": "texturegen.texture",
    "Sample": "texturegen.shards",
    "Shards": "texturegen.shards",
    "open_shards": "texturegen.shards",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'texturegen' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
