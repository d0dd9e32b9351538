"""One-class novelty detection (Tack et al. 2020, section 3.1): train on one class; all others are novel."""

from typing import Any

from pipelines.grids.grid import Cell, Grid, Scale, Settings
from pipelines.grids.negatives import HALF_SIDE

CLASSES = 10  # of CIFAR-10 and of shapes
METHODS = ("simclr", "sacl")
# A class has a tenth of the images, so a run has about as many steps as one of the other grids.
EPOCHS = {"tiny": 1, "small": 100, "paper": 500}
FIGURES = ("novelty_knn", "novelty_mahalanobis", "novelty_csi", "novelty_shift", "novelty_csi-shifts")
HEAD: Settings = {"shift_head": 1.0}
INSTANCE: Settings = {"texture_role": "instance"}
NEGATIVE: Settings = {"texture_role": "negative"}
ROWS: dict[str, tuple[Settings, Settings]] = {  # name -> settings of the run, options of `texturegen build`
    "none": ({"texture_role": "none"}, {}),
    "textures": (NEGATIVE, {}),
    "textures, head": (NEGATIVE | HEAD, {}),
    "rotations as instances, head": (INSTANCE | HEAD | {"texture_source": "rotations"}, {}),  # CSI
    "textures as instances, head": (INSTANCE | HEAD, {}),
    "patch-shuffle as instances, head": (INSTANCE | HEAD | {"texture_source": "patch-shuffle"}, {}),
    "rotations and textures as instances, head": (INSTANCE | HEAD | {"texture_source": "shards-and-rotations"}, {}),
    "wang-tiles as instances, head": (INSTANCE | HEAD, {"method": "wang-tiles"}),
    "corner textures as instances, head": (INSTANCE | HEAD, {"patches_from": "corners"}),
    "rotations and corner textures as instances, head": (
        INSTANCE | HEAD | {"texture_source": "shards-and-rotations"},
        {"patches_from": "corners"},
    ),
    "half-side textures as instances, head": (INSTANCE | HEAD, {"patch_size": HALF_SIDE}),
    "rotations as instances": (INSTANCE | {"texture_source": "rotations"}, {}),
    "textures as instances": (INSTANCE, {}),
    "rotations, head": (NEGATIVE | HEAD | {"texture_source": "rotations"}, {}),
    "patch-shuffle, head": (NEGATIVE | HEAD | {"texture_source": "patch-shuffle"}, {}),
}


def novelty(scale: Scale, columns: tuple[str, ...]) -> Grid:
    """One-class novelty detection, textures against rotations.

    Each run trains on the images of one class. Rotations are CSI's own shifts (Tack et al. 2020).
    """
    common: dict[str, Any] = {"weak": "mocov2", "epochs": EPOCHS[scale.name]}
    if scale.name == "tiny":
        common["batch_size"] = 8  # a class has nine images
    cells = tuple(
        Cell(
            f"{method}, {name}",
            f"{dataset} {number}",
            dataset,
            {"method": method, **common, **settings},
            build=build,
            filter=f"label == {number}",
        )
        for dataset in columns
        for number in range(CLASSES)
        for method in METHODS
        for name, (settings, build) in ROWS.items()
    )
    against = {f"{method}, {name}": f"{method}, none" for method in METHODS for name in ROWS if name != "none"}
    return Grid("novelty", "One-class novelty detection", "negatives", cells, FIGURES, against=against, means=True)
