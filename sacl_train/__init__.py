"""sacl_train: shards in, a contrastively trained encoder and its figures out (PyTorch).

>>> import sacl_train
>>> encoder, config, epochs = sacl_train.load_encoder("run")
>>> config.encoder, epochs
('se_resnet8', 0)

Names are loaded on first use, so that `import sacl_train` does not load torch.
"""

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sacl_train.config import Config, load_config
    from sacl_train.training.resume import load_encoder

__all__ = ["Config", "load_config", "load_encoder", "train"]

_LOCATIONS = {
    "Config": "sacl_train.config",
    "load_config": "sacl_train.config",
    "load_encoder": "sacl_train.training.resume",
}


def train(config: "Config", shards_dir: str | Path, out: str | Path) -> list[dict[str, Any]]:
    """Train, or resume, with kNN and RankMe every `config.knn_every` epochs; see `sacl_train.training.loop.train`.

    Parameters
    ----------
    config : Config
        Settings of the run.
    shards_dir : str or Path
        Shards made by `texturegen build`.
    out : str or Path
        Directory of the run.

    Returns
    -------
    list of dict
        Metrics, a row per epoch.

    Examples
    --------
    >>> from sacl_train import load_config
    >>> small = {"encoder": "se_resnet8", "width": 8, "batch_size": 16, "epochs": 1, "knn_every": 1, "device": "cpu"}
    >>> rows = train(load_config(None, {**small, "method": "simsiam"}), "shards", "runs/mine")
    >>> [row["epoch"] for row in rows], "knn" in rows[0]
    ([1], True)
    """
    from sacl_train.evaluate import quick
    from sacl_train.training import loop

    return loop.train(config, shards_dir, out, quick.quick_scores)


def __getattr__(name: str) -> Any:
    if name not in _LOCATIONS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_LOCATIONS[name]), name)
