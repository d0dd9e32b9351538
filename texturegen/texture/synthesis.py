"""The calls of the library: check the arguments, let the method make the source map, look the colours up."""

import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from texturegen.errors import UserError
from texturegen.system.threads import count_cpus, run_in_threads
from texturegen.texture import METHODS, find_method
from texturegen.texture.patches import is_grey, read_patches, read_size
from texturegen.texture.settings import resolve


@dataclass(frozen=True)
class Texture:
    """A synthesised image and where each of its pixels was copied from.

    image: uint8, (H, W, 3) of RGB patches and (H, W) of grey ones. source: int32 (H, W, 3) of (patch number, row,
    column), so that image[i, j] == patches[p][y, x] for p, y, x = source[i, j].
    """

    image: np.ndarray
    source: np.ndarray


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
    patches : a list of one array or more, uint8, all RGB (h, w, 3) or all grey (h, w) or (h, w, 1); their sizes may
        differ, their memory layout does not matter. They are not changed.
    size : (H, W) of the texture, 1 or more each.
    method : a name in METHODS.
    seed : 0 <= seed < 2**63; another seed gives another texture.
    **settings : the method's own, see `resolve_settings`.

    Raises
    ------
    UserError : an unknown method or setting, a setting out of its range, patches that are not uint8 RGB or grey, are
        of both kinds, or are too small for the method's window, a size or seed out of range.
    """
    return _synthesize(patches, read_size(size), method, seed, resolve_settings(method, settings))


def synthesize_batch(
    patch_lists: Sequence[Sequence[np.ndarray]],
    size: tuple[int, int],
    seeds: Sequence[int],
    method: str = "coherent",
    threads: int | None = None,
    **settings: Any,
) -> list[Texture]:
    """Synthesise many textures in threads of this process: [synthesize(patch_lists[0], size, method, seeds[0]), ...].

    The textures are the same whatever `threads` is. All of them are held in memory, at 15 bytes per RGB pixel; for
    whole data sets there is `texturegen build`. Ctrl-C ends the call at once.

    Parameters
    ----------
    patch_lists : for each texture its patches, as for `synthesize`.
    size : (H, W) of all textures.
    seeds : one for each texture.
    method, **settings : as for `synthesize`, the same for all.
    threads : how many, 1 or more; by default as many as this process may use CPUs.

    Raises
    ------
    UserError : as `synthesize`; what is wrong with one texture's patches or seed begins with its number, counted from
        0, and is that of the first such one. Also for other than one seed for each texture, and for less than a thread.
    """
    if isinstance(seeds, (int, np.integer)) or len(seeds) != len(patch_lists):
        found = reprlib.repr(seeds)
        raise UserError(f"seeds must be a list of {len(patch_lists)}, one for each list of patches, not {found}")
    if threads is None:
        threads = count_cpus()
    elif not isinstance(threads, (int, np.integer)) or isinstance(threads, bool) or threads < 1:
        raise UserError(f"threads must be a whole number of 1 or more, or None for one per CPU, not {threads!r}")
    shape, resolved = read_size(size), resolve_settings(method, settings)

    def make(number: int) -> Texture:
        try:
            return _synthesize(patch_lists[number], shape, method, seeds[number], resolved)
        except UserError as error:
            raise UserError(f"texture {number}: {error}") from None

    return run_in_threads(make, len(patch_lists), threads)


def resolve_settings(method: str, settings: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return all settings of a method, defaults filled in and values checked; raises UserError as `synthesize`."""
    return resolve(method, find_method(method).load(), settings or {})


def _synthesize(
    patches: Sequence[np.ndarray], size: tuple[int, int], method: str, seed: int, settings: Mapping[str, Any]
) -> Texture:
    copies = read_patches(patches)
    if not isinstance(seed, (int, np.integer)) or isinstance(seed, bool) or not 0 <= seed < 2**63:
        raise UserError(f"seed must be a whole number from 0 to 2**63 - 1, not {seed!r}")
    source = METHODS[method].load()(copies, size, int(seed), **settings)
    image = _look_up(copies, source)
    return Texture(image[..., 0].copy() if is_grey(patches[0]) else image, source)


def _look_up(patches: Sequence[np.ndarray], source: np.ndarray) -> np.ndarray:
    """Copy every pixel from where the source map says."""
    if sum(patch.size for patch in patches) > 8 * source.size:  # rather than all of them side by side
        image = np.empty(source.shape, dtype=np.uint8)
        for number in np.unique(source[..., 0]):
            here = source[..., 0] == number
            image[here] = patches[number][source[here, 1], source[here, 2]]
        return image
    areas = np.array([patch.shape[0] * patch.shape[1] for patch in patches])
    widths = np.array([patch.shape[1] for patch in patches])
    starts = np.cumsum(areas) - areas
    colours = np.concatenate([patch.reshape(-1, 3) for patch in patches])
    number, row, column = source[..., 0], source[..., 1], source[..., 2]
    # take: half the time of an index in brackets.
    return colours.take(starts.take(number) + row * widths.take(number) + column, axis=0)
