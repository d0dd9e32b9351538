"""The photograph in many file formats, and the real CIFAR-10."""

import io
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image


@pytest.fixture(scope="session")
def encode(photo: np.ndarray) -> Callable[..., bytes]:
    """encode(mode, format, **options) returns the photograph as a file written by Pillow."""

    def write(mode: str, format_: str, **options: object) -> bytes:
        stream = io.BytesIO()
        Image.fromarray(photo).convert(mode).save(stream, format_, **options)
        return stream.getvalue()

    return write
