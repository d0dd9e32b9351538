"""Texture images as hard negatives for contrastive learning, written as WebDataset shards.

    patches, _ = texturegen.cut_patches(image, seed=0)
    texture = texturegen.synthesize(patches, size=(96, 96), seed=0)
    texturegen.build(texturegen.Recipe("shapes", limit=100), "shards/")
    for sample in texturegen.open_shards("shards/"):
        sample.image, sample.textures, sample.label

Names are loaded on first use, so `import texturegen` takes milliseconds.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from texturegen.errors import (
    BusyError,
    DamagedError,
    ImageError,
    MissingError,
    OtherBuildError,
    SourceLost,
    UserError,
)

if TYPE_CHECKING:
    from texturegen.builds import Recipe, build, finish
    from texturegen.shards.merge import merge, split
    from texturegen.shards.reader import Sample, Shards, open_shards
    from texturegen.shards.verify import verify
    from texturegen.texture import Texture, cut_patches, synthesize, synthesize_batch

__version__ = "0.1.0"
__all__ = [
    "BusyError",
    "DamagedError",
    "ImageError",
    "MissingError",
    "OtherBuildError",
    "Recipe",
    "Sample",
    "Shards",
    "SourceLost",
    "Texture",
    "UserError",
    "build",
    "cut_patches",
    "finish",
    "merge",
    "open_shards",
    "split",
    "synthesize",
    "synthesize_batch",
    "verify",
]

_LOCATION = {
    **dict.fromkeys(("Texture", "cut_patches", "synthesize", "synthesize_batch"), "texturegen.texture"),
    **dict.fromkeys(("Sample", "Shards", "merge", "open_shards", "split", "verify"), "texturegen.shards"),
    **dict.fromkeys(("Recipe", "build", "finish"), "texturegen.builds"),
}


def __getattr__(name: str) -> Any:
    if name not in _LOCATION:
        raise AttributeError(f"module 'texturegen' has no attribute {name!r}")
    return getattr(import_module(_LOCATION[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
