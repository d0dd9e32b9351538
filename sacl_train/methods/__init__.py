"""Training methods by name; `method.Method` says what the loop asks of one, and how it is constructed."""

from sacl_train.methods.barlow import BarlowTwins
from sacl_train.methods.byol import BYOL
from sacl_train.methods.method import Method
from sacl_train.methods.mocov2 import MoCoV2
from sacl_train.methods.pirl import PIRL
from sacl_train.methods.sacl import SACL, FastMoCo
from sacl_train.methods.simclr import SimCLR
from sacl_train.methods.simsiam import SimSiam

__all__ = ["METHODS", "Method"]

METHODS: dict[str, type[Method]] = {
    "sacl": SACL,
    "fast-moco": FastMoCo,
    "mocov2": MoCoV2,
    "simclr": SimCLR,
    "byol": BYOL,
    "simsiam": SimSiam,
    "pirl": PIRL,
    "barlow": BarlowTwins,
}
