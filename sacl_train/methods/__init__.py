"""Training methods by name. `method.Method` defines what the training loop calls on a method.

`METHODS` is the registry. To add a method, write its class in a module of its own and add an entry here.
"""

from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

import sacl_train.extra  # noqa: F401 (says what to install)

if TYPE_CHECKING:
    from sacl_train.methods.method import Method

__all__ = ["METHODS", "Entry", "Method"]


@dataclass(frozen=True)
class Entry:
    """Registry entry of a method. Its module, and with it torch, is imported only by `load`.

    Attributes
    ----------
    location : str
        "module:class" inside this package.
    help : str
        Short description of the method.
    """

    location: str
    help: str

    def load(self) -> "type[Method]":
        """Import the method's module and return its class."""
        module, name = self.location.split(":")
        method: type[Method] = getattr(import_module(f"{__name__}.{module}"), name)
        return method


METHODS: dict[str, Entry] = {
    "sacl": Entry("sacl:SACL", "grid views, EMA target, InfoNCE with texture negatives (SACL)"),
    "fast-moco": Entry("sacl:FastMoCo", "SACL without textures and attention (Ci et al. 2022)"),
    "mocov2": Entry("mocov2:MoCoV2", "MoCo v2 (Chen et al. 2020)"),
    "simclr": Entry("simclr:SimCLR", "SimCLR (Chen et al. 2020)"),
    "byol": Entry("byol:BYOL", "BYOL (Grill et al. 2020)"),
    "simsiam": Entry("simsiam:SimSiam", "SimSiam (Chen & He 2021)"),
    "pirl": Entry("pirl:PIRL", "PIRL (Misra & van der Maaten 2020)"),
    "barlow": Entry("barlow:BarlowTwins", "Barlow Twins (Zbontar et al. 2021)"),
}


def __getattr__(name: str) -> Any:
    if name != "Method":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return import_module(f"{__name__}.method").Method
