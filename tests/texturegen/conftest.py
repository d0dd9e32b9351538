"""The photograph as files of many kinds, and the real CIFAR-10."""

import io
import tarfile
from collections.abc import Callable
from pathlib import Path

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


@pytest.fixture(scope="session")
def cifar10_root(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The official CIFAR-10 files, unpacked."""
    root = tmp_path_factory.mktemp("cifar10")
    with tarfile.open(shared_data / "cifar-10-batches-py.tar.xz") as tar:
        tar.extractall(root, filter="data")
    return root
