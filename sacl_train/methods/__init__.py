"""Training methods by name; `method.Method` says what the loop asks of one, and how it is constructed."""

from sacl_train.methods.method import Method
from sacl_train.methods.sacl import SACL

__all__ = ["METHODS", "Method"]

METHODS: dict[str, type[Method]] = {"sacl": SACL}
