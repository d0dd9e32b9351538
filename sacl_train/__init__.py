"""sacl_train: shards in, a contrastively trained encoder and its figures out (PyTorch).

    config = sacl_train.load_config(None, {"encoder": "se_resnet18", "epochs": 100})
    rows = sacl_train.train(config, "shards/", "runs/mine")
    encoder, config, epochs = sacl_train.load_encoder("runs/mine")

Names are loaded on first use, so that `import sacl_train` does not load torch.
"""

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sacl_train.config import Config, load_config
    from sacl_train.training.resume import load_encoder

__all__ = ["Config", "load_config", "load_encoder", "train"]

_LOCATION = {
    "Config": "sacl_train.config",
    "load_config": "sacl_train.config",
    "load_encoder": "sacl_train.training.resume",
}


def train(config: "Config", shards_dir: str | Path, out: str | Path) -> list[dict[str, Any]]:
    """Train with a kNN score every `config.knn_every` epochs; see `sacl_train.training.loop.train`."""
    from sacl_train.evaluate import quick
    from sacl_train.training import loop

    return loop.train(config, shards_dir, out, quick.quick_knn)


def __getattr__(name: str) -> Any:
    if name not in _LOCATION:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_LOCATION[name]), name)
