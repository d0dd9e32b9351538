"""The three scales at which a grid can run.

`tiny` trains on the built-in data set and only shows that everything runs. `small` trains a small encoder on a part of
CIFAR-10 or CIFAR-100 and takes a night on a CPU. `paper` uses the paper's settings and needs a GPU; only its figures
are comparable with the paper's.
"""

from pipelines.grids.grid import Scale, Settings

PAPER_SETS = ("cifar10", "cifar100", "stl10", "imagenet100")


def _sets(dataset: str, train: Settings, test: Settings) -> dict[str, Settings]:
    """Return the options of a train set and of a test set, which has no textures."""
    return {"train": {"dataset": dataset, **train}, "test": {"dataset": dataset, "per_image": 0, **test}}


def _ood(dataset: str, test: Settings, limit: int) -> dict[str, Settings]:
    """Return the options of the sets for out-of-distribution detection; `test` are those of the test set."""
    other = {"dataset": "shapes", "split": "test", "per_image": 0, "limit": limit}
    return {"textures": {"dataset": dataset, **test}, "ood": other}


def _heads(width: int, queue: int) -> dict[str, Settings]:
    """Return smaller heads for the small encoders, because the defaults fit a ResNet-50."""
    sacl = {"projector_hidden": width, "projector_out": width // 2, "predictor_hidden": width // 2}
    byol = {"projector_hidden": width, "projector_out": width // 2, "predictor_hidden": width}
    simsiam = {"projector_hidden": width, "projector_out": width, "predictor_hidden": width // 4}
    return {
        "sacl": sacl,
        "fast-moco": sacl,
        "byol": byol,
        "simsiam": simsiam,
        "barlow": {"projector_hidden": width, "projector_out": width},
        "mocov2": {"queue": queue},
        "pirl": {"negatives": queue},
    }


SCALES = {
    "tiny": Scale(
        "tiny",
        seeds=2,
        data={
            "shapes": {
                **_sets("shapes", {"split": "train", "limit": 96}, {"split": "test", "limit": 60}),
                "conflict": {"dataset": "shapes", "split": "conflict", "per_image": 0, "limit": 60},
                "textures": {"dataset": "shapes", "split": "test", "limit": 30},
                "ood": {"dataset": "shapes", "split": "conflict", "per_image": 0, "limit": 30},
            }
        },
        train={"encoder": "se_resnet8", "width": 4, "stem": "cifar-stride2", "batch_size": 16, "epochs": 1}
        | {"knn_every": 0, "keep": 1},
        heads=_heads(16, 64),
        probe={"epochs": 5},
        corruption={"images": 4, "severities": (3,)},
        batches=(8, 16, 32),
        epochs=(1, 2, 3),
        columns={"": ("shapes",)},
    ),
    "small": Scale(
        "small",
        seeds=3,
        data={
            name: _sets(name, {"split": "train", "limit": 5000}, {"split": "test", "limit": 2000})
            | _ood(name, {"split": "test", "limit": 2000}, 1000)
            for name in ("cifar10", "cifar100")
        }
        | {"shapes": _sets("shapes", {"split": "train", "limit": 5000}, {"split": "test", "limit": 2000})},
        train={"encoder": "se_resnet20", "stem": "cifar-stride2", "batch_size": 64, "epochs": 10, "lr": 0.1}
        | {"knn_every": 0, "keep": 1},
        heads=_heads(256, 1024),
        probe={"epochs": 50},
        corruption={"images": 200, "severities": (1, 3, 5)},
        batches=(32, 64, 128),
        epochs=(5, 10, 20),
        columns={"": ("cifar10",), "table3": ("cifar10", "cifar100"), "table5": ("cifar10", "cifar100")}
        | {"figure7": ("cifar10", "cifar100"), "table7": ("cifar100",), "novelty": ("cifar10", "shapes")},
    ),
    "paper": Scale(
        "paper",
        seeds=3,
        data={
            "cifar10": _sets("cifar10", {"split": "train"}, {"split": "test"})
            | _ood("cifar10", {"split": "test"}, 10_000),
            "cifar100": _sets("cifar100", {"split": "train"}, {"split": "test"}),
            "stl10": _sets("stl10", {"split": "train"}, {"split": "test"}),
            "imagenet100": _sets("imagenet100", {"split": "train", "size": 224}, {"split": "val", "size": 224}),
        },
        train={"encoder": "se_resnet50", "batch_size": 128, "epochs": 200, "lr": 0.1, "keep": 1}
        | {"precision": "bf16"},  # needs a GPU
        heads={"mocov2": {"queue": 4096}, "pirl": {"negatives": 4096}},
        probe={"epochs": 200},
        train_of={"imagenet100": {"epochs": 100}},
        probe_of={"imagenet100": {"epochs": 100}},
        corruption={
            "images": 1000,
            "severities": (1, 2, 3, 4, 5),
        },  # single-threaded: all images would take hours per cell
        batches=(32, 64, 128),
        epochs=(200, 400, 800),
        columns={"": ("cifar10",), "table3": PAPER_SETS, "table4": ("imagenet100",)}
        | {"table5": ("cifar10", "cifar100", "stl10"), "table6": ("imagenet100",), "table7": ("cifar100",)}
        | {"figure7": ("cifar10", "cifar100")},
    ),
}
