"""Texture synthesis: from patches of a photo to an image with their local texture and no object.

    patches, boxes = cut_patches(image, seed=0)
    texture = synthesize(patches, size=(96, 96), method="coherent", seed=0)
    textures = synthesize_batch([patches, others], size=(96, 96), seeds=[0, 1])

Every method is a pure function: the same arguments give the same texture, in any thread, process or order.

`METHODS` is the registry. To add a method: write its function in a module of `methods/` and enter it here. Methods, and
the functions above, are imported on first use, so that a command line can print the registry without NumPy.
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
    """Where a method's function lives: function(patches, size, seed, *, settings) -> source map int32 (H, W, 3).

    The function is given what `synthesize` has checked: patches as contiguous RGB arrays uint8 (h, w, 3), plain ints,
    and all settings within their ranges.

    Attributes
    ----------
    location : "module:function" inside `texturegen.texture.methods`.
    help : the method in a few words.
    """

    location: str
    help: str

    def load(self) -> Callable[..., Any]:
        """Import the method's module and return its function."""
        module, function = self.location.split(":")
        method: Callable[..., Any] = getattr(import_module(f"{__name__}.methods.{module}"), function)
        return method


METHODS: dict[str, Method] = {
    "coherent": Method("coherent:coherent", "coarse-to-fine k-coherence search, the fast default"),
    "efros-leung": Method("efros_leung:efros_leung", "Efros & Leung 1999, non-parametric sampling"),
    "patch-shuffle": Method("patch_shuffle:patch_shuffle", "cells in random order, Ge et al. 2021"),
    "quilting": Method("quilting:quilting", "image quilting, Efros & Freeman 2001"),
    "wang-tiles": Method("wang_tiles:wang_tiles", "Wang tiles, Han et al. 2009"),
    "wei-levoy": Method("wei_levoy:wei_levoy", "multi-resolution with TSVQ, Wei & Levoy 2000"),
}

_LOCATION = {
    "cut_patches": "patches",
    "Texture": "synthesis",
    "resolve_settings": "synthesis",
    "synthesize": "synthesis",
    "synthesize_batch": "synthesis",
}


def find_method(name: str) -> Method:
    """Return the entry of method `name`; UserError for an unknown name."""
    if name not in METHODS:
        raise UserError(f"no method '{name}'{nearest(str(name), METHODS)}; there are {', '.join(METHODS)}")
    return METHODS[name]


def __getattr__(name: str) -> Any:
    if name not in _LOCATION:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_LOCATION[name]}"), name)
