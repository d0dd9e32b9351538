"""Public functions: check the arguments, run a method, and look up the colours of its source map."""

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
    """A synthesised image and the source of each of its pixels.

    Attributes
    ----------
    image : uint8, (H, W, 3) for RGB patches, (H, W) for grey ones.
    source : int32 (H, W, 3), (patch index, row, column) of every pixel: with p, y, x = source[i, j],
        `image[i, j] == patches[p][y, x]`.
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
    """Synthesise a texture of any size from patches.

    Every pixel is copied from a patch. The result depends only on the arguments.

    Parameters
    ----------
    patches : one or more uint8 arrays, all RGB (h, w, 3) or all grey (h, w) or (h, w, 1). Sizes and memory layouts may
        differ. They are not modified.
    size : (H, W) of the texture in pixels, each at least 1.
    method : a key of `METHODS`.
    seed : seed of all random choices, 0 <= seed < 2**63.
    **settings : settings of the method; `resolve_settings` lists them.

    Returns
    -------
    The image and its source map.

    Raises
    ------
    UserError : a method or setting is unknown; a setting, size or seed is out of range; patches are not all uint8 RGB
        or all uint8 grey, or are smaller than the method's window.

    References
    ----------
    .. [1] M. Ashikhmin, "Synthesizing natural textures", I3D 2001 (`coherent`).
    .. [2] X. Tong et al., "Synthesis of bidirectional texture functions on arbitrary surfaces", SIGGRAPH 2002
           (`coherent`).
    .. [3] S. Lefebvre, H. Hoppe, "Parallel controllable texture synthesis", SIGGRAPH 2005 (`coherent`).
    .. [4] A. Efros, T. Leung, "Texture synthesis by non-parametric sampling", ICCV 1999 (`efros-leung`).
    .. [5] S. Ge et al., "Robust contrastive learning using negative samples with diminished semantics", NeurIPS 2021
           (`patch-shuffle`).
    .. [6] A. Efros, W. Freeman, "Image quilting for texture synthesis and transfer", SIGGRAPH 2001 (`quilting`).
    .. [7] M. Cohen et al., "Wang tiles for image and texture generation", SIGGRAPH 2003 (`wang-tiles`).
    .. [8] L.-Y. Wei, M. Levoy, "Fast texture synthesis using tree-structured vector quantization", SIGGRAPH 2000
           (`wei-levoy`).

    Examples
    --------
    >>> from texturegen import cut_patches, open_shards, synthesize
    >>> image = open_shards("shards")[0].image
    >>> patches, boxes = cut_patches(image, seed=0)
    >>> texture = synthesize(patches, size=(48, 64), seed=1)
    >>> texture.image.shape, texture.image.dtype.name
    ((48, 64, 3), 'uint8')

    The source map gives the origin of every pixel:

    >>> patch, row, column = texture.source[10, 20]
    >>> bool((texture.image[10, 20] == patches[patch][row, column]).all())
    True

    Each method has its own settings:

    >>> quilted = synthesize(patches, size=(48, 64), method="quilting", block=8, overlap=2)
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
    """Synthesise many textures in threads of this process.

    Returns [synthesize(patch_lists[0], size, method, seeds[0]), ...] for any number of threads. All textures are held
    in memory, at 15 bytes per RGB pixel; for whole data sets use `texturegen build`. Ctrl-C stops the call immediately.

    Parameters
    ----------
    patch_lists : the patches of each texture, as for `synthesize`.
    size : (H, W) of all textures in pixels.
    seeds : one seed per texture.
    method, **settings : as for `synthesize`, the same for all textures.
    threads : number of threads, at least 1; None for one per CPU that this process may use.

    Returns
    -------
    The textures, in the order of `patch_lists`.

    Raises
    ------
    UserError : `synthesize` rejects a texture (the message gives its index, from 0), the number of seeds differs from
        that of the textures, or `threads` is less than 1.

    Examples
    --------
    >>> from texturegen import cut_patches, open_shards, synthesize_batch
    >>> shards = open_shards("shards")
    >>> patch_lists = [cut_patches(shards[i].image, seed=i)[0] for i in range(4)]
    >>> textures = synthesize_batch(patch_lists, size=(32, 32), seeds=range(4))
    >>> len(textures), textures[0].image.shape
    (4, (32, 32, 3))
    """
    if isinstance(seeds, (int, np.integer)) or len(seeds) != len(patch_lists):
        found = reprlib.repr(seeds)
        raise UserError(f"seeds must be a list of {len(patch_lists)}, one per list of patches, not {found}")
    if threads is None:
        threads = count_cpus()
    elif not isinstance(threads, (int, np.integer)) or isinstance(threads, bool) or threads < 1:
        raise UserError(f"threads must be an integer of at least 1, or None for one per CPU, not {threads!r}")
    shape, resolved = read_size(size), resolve_settings(method, settings)

    def make(number: int) -> Texture:
        try:
            return _synthesize(patch_lists[number], shape, method, seeds[number], resolved)
        except UserError as error:
            raise UserError(f"texture {number}: {error}") from None

    return run_in_threads(make, len(patch_lists), threads)


def resolve_settings(method: str, settings: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Check the given settings of a method, and add the defaults of the others.

    Parameters
    ----------
    method : a key of `METHODS`.
    settings : any of the method's settings.

    Returns
    -------
    Name -> value of every setting. A value of None is derived from the patches and the size during synthesis.

    Raises
    ------
    UserError : the method or a setting is unknown, or a value is out of range.

    Examples
    --------
    >>> from texturegen.texture import resolve_settings
    >>> resolve_settings("quilting", {"block": 24})
    {'block': 24, 'overlap': None, 'tolerance': 0.1}
    >>> resolve_settings("quilting", {"tolerance": 11})
    Traceback (most recent call last):
    texturegen.errors.UserError: setting 'tolerance' of method 'quilting' must be a number from 0 to 10, not 11
    """
    return resolve(method, find_method(method).load(), settings or {})


def _synthesize(
    patches: Sequence[np.ndarray], size: tuple[int, int], method: str, seed: int, settings: Mapping[str, Any]
) -> Texture:
    copies = read_patches(patches)
    if not isinstance(seed, (int, np.integer)) or isinstance(seed, bool) or not 0 <= seed < 2**63:
        raise UserError(f"seed must be an integer from 0 to 2**63 - 1, not {seed!r}")
    source = METHODS[method].load()(copies, size, int(seed), **settings)
    image = _look_up(copies, source)
    return Texture(image[..., 0].copy() if is_grey(patches[0]) else image, source)


def _look_up(patches: Sequence[np.ndarray], source: np.ndarray) -> np.ndarray:
    """Return the image of a source map."""
    if (
        sum(patch.size for patch in patches) > 8 * source.size
    ):  # concatenating large patches would take longer than the lookup
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
    # take() is twice as fast as indexing.
    return colours.take(starts.take(number) + row * widths.take(number) + column, axis=0)
