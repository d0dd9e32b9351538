"""The photograph as files of many kinds, and the real CIFAR-10."""

import io
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image


@pytest.fixture(scope="session")
def encode(photo: np.ndarray) -> Callable[..., bytes]:
    """encode(mode, format, **options): the photograph as the bytes of a file, written by Pillow."""

    def write(mode: str, format_: str, **options: object) -> bytes:
        stream = io.BytesIO()
        Image.fromarray(photo).convert(mode).save(stream, format_, **options)
        return stream.getvalue()

    return write
