"""How a user names an encoder of another program; apart from `foreign`, which loads torch and timm to open it."""

import re
from dataclasses import dataclass
from pathlib import Path

PREFIX = "timm:"


@dataclass(frozen=True)
class EncoderFile:
    """An encoder that another program trained, as the user names it.

    Attributes
    ----------
    source : str
        A file of weights or a program, a directory with config.json, or timm:NAME for weights in timm's cache.
    arch : str or None
        Name of the architecture (`architectures.find_architectures`), or "torchscript"; None if the source says it.
    prefix : str or None
        Prefix of the names of the encoder's tensors; None: detected.
    mean, std : tuple of float or None
        Normalisation per channel, 0..1; None: from the source, else ImageNet's.
    size : int or None
        Side in pixels to which images are resized; None: as they are.
    """

    source: str
    arch: str | None = None
    prefix: str | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    size: int | None = None

    def __str__(self) -> str:
        return self.source

    @property
    def results(self) -> Path:
        """Directory of its figures: ./eval-NAME; the file itself may be where nobody can write."""
        name = self.source if self.source.startswith(PREFIX) else Path(self.source).stem
        return Path("eval-" + re.sub("[^A-Za-z0-9_.-]+", "-", name))
