"""Texture synthesis: from patches of a photograph to an image with their texture but without objects.

    patches, boxes = cut_patches(image, seed=0)
    texture = synthesize(patches, size=(96, 96), method="coherent", seed=0)
    textures = synthesize_batch([patches, others], size=(96, 96), seeds=[0, 1])

Every method is a pure function: the same arguments give the same texture in any thread or process, in any order.

`METHODS` is the registry. To add a method, write its function in a module of `methods/` and add an entry here. Methods
and the functions above are imported on first use, so that `--help` can print the registry without loading NumPy.
"""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

from texturegen.errors import UserError, nearest

if TYPE_CHECKING:
    from texturegen.texture.patches import cut_patches
    from texturegen.texture.synthesis import Texture, resolve_settings, synthesize, synthesize_batch

__all__ = [
    "METHODS",
    "Method",
    "Texture",
    "cut_patches",
    "find_method",
    "resolve_settings",
    "synthesize",
    "synthesize_batch",
]


@dataclass(frozen=True)
class Method:
    """Entry of a method in the registry: function(patches, size, seed, *, settings) -> source map int32 (H, W, 3).

    `synthesize` checks the arguments before the call: patches are contiguous RGB arrays uint8 (h, w, 3), size and seed
    are plain ints, and settings are within their ranges (see `texturegen.texture.settings`).

    Attributes
    ----------
    location : "module:function" inside `texturegen.texture.methods`.
    help : description in under 40 characters, for `--help`.
    version : raised by hand when a change of the method, or of a kernel that it calls, changes any texture. Builds
        record it, and a build with another version is neither resumed nor repaired.
    """

    location: str
    help: str
    version: int = 1

    def load(self) -> Callable[..., Any]:
        """Import the method's module and return its function."""
        module, function = self.location.split(":")
        method: Callable[..., Any] = getattr(import_module(f"{__name__}.methods.{module}"), function)
        return method


METHODS: dict[str, Method] = {
    "coherent": Method("coherent:coherent", "k-coherence search, coarse to fine", version=2),
    "efros-leung": Method("efros_leung:efros_leung", "Efros & Leung 1999, pixel by pixel", version=1),
    "patch-shuffle": Method("patch_shuffle:patch_shuffle", "Ge et al. 2021, cells at random", version=1),
    "quilting": Method("quilting:quilting", "Efros & Freeman 2001, cut blocks", version=1),
    "wang-tiles": Method("wang_tiles:wang_tiles", "Cohen et al. 2003, edge colours", version=1),
    "wei-levoy": Method("wei_levoy:wei_levoy", "Wei & Levoy 2000, pyramids, TSVQ", version=1),
}

# Raised by hand, like `Method.version`, when the positions that `cut_patches` draws or the quality figures change.
PATCHES_VERSION = 2
PLACES = ("corners",)  # of the patches, other than the centre and random ones
QUALITY_VERSION = 1
PASTE_VERSION = 1  # of `paste.paste_texture`

_LOCATION = {
    "cut_patches": "patches",
    "Texture": "synthesis",
    "resolve_settings": "synthesis",
    "synthesize": "synthesis",
    "synthesize_batch": "synthesis",
}


def find_method(name: str) -> Method:
    """Return the entry of `name` in METHODS; UserError for an unknown name."""
    if name not in METHODS:
        raise UserError(f"unknown method {name!r}{nearest(str(name), METHODS)}; methods: {', '.join(METHODS)}")
    return METHODS[name]


def __getattr__(name: str) -> Any:
    if name not in _LOCATION:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_LOCATION[name]}"), name)
