"""The weak views of a batch's images and textures, and the textures' keys, for all methods."""

from collections.abc import Callable, Sequence

from torch import Tensor

from sacl_train.data.draws import Draws
from sacl_train.data.weak import ViewOf, WeakAugment
from sacl_train.distributed import gather as gather_keys
from sacl_train.methods.shift import Shifts
from texturegen.errors import UserError

TEXTURE_VIEWS = ("own", "query")
# Setting `texture_source` -> what the textures of a batch are.
TEXTURE_SOURCES = {
    "shards": Shifts(),
    "patch-shuffle": Shifts(of_shards=False, shuffled=True),
    "both": Shifts(shuffled=True),  # shards and patch-shuffle
    "rotations": Shifts(of_shards=False, turned=True),
    "shards-and-rotations": Shifts(turned=True),
}
FIRST, SECOND = 2, 0x40000  # purposes in `Draws.of` for the first and second view of texture 0; texture k adds k


def draw_views(
    weak: WeakAugment,
    batch: dict[str, Tensor],
    draws: Draws,
    textures: str = "none",
    queries: Sequence[int] = (0, 1),
    numbers: Sequence[int] = (0, 1),
) -> tuple[list[Tensor], list[Tensor]]:
    """Return weak views of the images of a batch and of their textures, made together (`WeakAugment.together`).

    Parameters
    ----------
    weak : WeakAugment
        The augmentation.
    batch : dict of str to Tensor
        "image" uint8 (N, 3, H, W), and "texture" uint8 (N, P, 3, H, W) if they are asked for.
    draws : Draws
        The random numbers of the batch's N samples.
    textures : str
        "none": no views of textures. "own": one view of each, drawn independently of the queries. "query": one for each
        of `queries`, with its geometry, so that content and colours distinguish the two (Ge et al. 2021 share the
        colours too). "two": two independent views of each.
    queries : sequence of int
        Numbers of the query views, 0 or 1.
    numbers : sequence of int
        Numbers of the views of the images.

    Returns
    -------
    images : list of Tensor (N, 3, H, W)
        One for each of `numbers`.
    textures : list of Tensor (N*P, 3, H, W)

    Raises
    ------
    UserError
        If textures are asked for and the batch has none.
    """
    asked = [ViewOf(batch["image"], (number,), number=number) for number in numbers]
    if textures != "none":
        pixels = batch.get("texture")
        if pixels is None or pixels.shape[1] == 0:
            raise UserError(
                "the texture role needs texture images and these shards have none; build shards with --per-image 1 or "
                "more, or train with --texture-role none"
            )
        flat, count = pixels.flatten(0, 1), pixels.shape[1]
        first, second = (tuple(range(start, start + count)) for start in (FIRST, SECOND))
        asked += {
            "own": [ViewOf(flat, first)],
            "query": [ViewOf(flat, first, geometry=query) for query in queries],
            "two": [ViewOf(flat, first), ViewOf(flat, second)],
        }[textures]
    views = weak.together(asked, draws)
    return views[: len(numbers)], views[len(numbers) :]


def gather_textures(
    keys: Sequence[Tensor], images: int, queries: int, gather: Callable[[Tensor], Tensor] = gather_keys
) -> list[Tensor]:
    """Return the texture keys of all processes for each query view.

    Parameters
    ----------
    keys : sequence of Tensor (N*P, D)
        Keys of the textures of N images: one for all queries, or one for each.
    images : int
        N.
    queries : int
        Number of the query views.
    gather : callable
        Collects the keys of all processes: (N, P, D) -> (M, P, D).

    Returns
    -------
    list of Tensor (M, P, D)
        One for each query.
    """
    all_keys = [gather(key.unflatten(0, (images, -1))) for key in keys]
    return all_keys if len(all_keys) == queries else all_keys * queries
