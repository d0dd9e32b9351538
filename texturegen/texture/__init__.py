"""Texture synthesis: from patches of a photo to an image with their local texture and no object.

    patches, boxes = cut_patches(image, seed=0)
    texture = synthesize(patches, size=(96, 96), method="coherent", seed=0)

Every method is a pure function: the same arguments give the same texture, in any thread, process or order.
Methods are imported, and compiled, on first use.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import numpy as np

from texturegen.errors import UserError, nearest
from texturegen.texture.patches import cut_patches, read_patches, read_size
from texturegen.texture.settings import resolve

__all__ = ["METHODS", "Method", "Texture", "cut_patches", "resolve_settings", "synthesize"]


@dataclass(frozen=True)
class Texture:
    """A synthesised image and where each of its pixels was copied from.

    image: uint8 (H, W, 3). source: int32 (H, W, 3) of (patch number, row, column), so that
    image[i, j] == patches[p][y, x] for p, y, x = source[i, j].
    """

    image: np.ndarray
    source: np.ndarray


@dataclass(frozen=True)
class Method:
    """Where a method's function lives: function(patches, size, seed, *, settings) -> source map."""

    module: str
    function: str

    def load(self) -> Callable[..., np.ndarray]:
        return getattr(import_module(self.module), self.function)


METHODS: dict[str, Method] = {
    "coherent": Method("texturegen.texture.coherent", "coherent"),
    "efros-leung": Method("texturegen.texture.efros_leung", "efros_leung"),
    "wei-levoy": Method("texturegen.texture.wei_levoy", "wei_levoy"),
}


def synthesize(
    patches: Sequence[np.ndarray],
    size: tuple[int, int],
    method: str = "coherent",
    seed: int = 0,
    **settings: Any,
) -> Texture:
    """Synthesise a texture image of any size from patches.

    Parameters
    ----------
    patches : RGB arrays, uint8 (h, w, 3), one or more; their sizes may differ, their memory layout does not matter.
    size : (H, W) of the texture, 1 or more each.
    method : a name in METHODS.
    seed : 0 <= seed < 2**63; another seed gives another texture.
    **settings : the method's own, see `resolve_settings`.

    Raises
    ------
    UserError : an unknown method or setting, a setting out of its range, patches that are not uint8 RGB or too small
        for the method's window, a size or seed out of range.
    """
    resolved = resolve_settings(method, settings)
    copies = read_patches(patches)
    height, width = read_size(size)
    if not isinstance(seed, (int, np.integer)) or isinstance(seed, bool) or not 0 <= seed < 2**63:
        raise UserError(f"seed must be a whole number from 0 to 2**63 - 1, not {seed!r}")
    source = METHODS[method].load()(copies, (height, width), int(seed), **resolved)
    return Texture(_look_up(copies, source), source)


def resolve_settings(method: str, settings: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return all settings of a method, defaults filled in and values checked; raises UserError as `synthesize`."""
    if method not in METHODS:
        raise UserError(f"no method '{method}'{nearest(str(method), METHODS)}; there are {', '.join(METHODS)}")
    return resolve(method, METHODS[method].load(), settings or {})


def _look_up(patches: Sequence[np.ndarray], source: np.ndarray) -> np.ndarray:
    """Copy every pixel from where the source map says."""
    areas = np.array([patch.shape[0] * patch.shape[1] for patch in patches])
    widths = np.array([patch.shape[1] for patch in patches])
    starts = np.cumsum(areas) - areas
    colours = np.concatenate([patch.reshape(-1, 3) for patch in patches])
    number, row, column = source[..., 0], source[..., 1], source[..., 2]
    return colours[starts[number] + row * widths[number] + column]
