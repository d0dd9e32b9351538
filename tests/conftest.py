"""Shared fixtures: photographs shipped with scikit-image, small image folders, small shard directories."""

import fcntl
import os
import signal
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
import skimage

from texturegen.builds import Recipe, build

# Read when torch is loaded: threads that spin while they wait for each other take minutes on a busy machine.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

# A shell script starts background programs with Ctrl-C ignored, and their children would inherit it.
signal.signal(signal.SIGINT, signal.default_int_handler)

PHOTOS = Path(skimage.__file__).parent / "data"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of real images beside the checkout; without it, the tests that need it are skipped."""
    path = Path(__file__).parents[2] / "shared" / "data"
    if not path.is_dir():
        pytest.skip(f"no real images at {path}")
    return path


@pytest.fixture(scope="session")
def photo() -> np.ndarray:
    """uint8 (300, 451, 3) RGB, the cat of scikit-image."""
    return cv2.imread(str(PHOTOS / "chelsea.png"), cv2.IMREAD_COLOR_RGB)


@pytest.fixture
def image_folder(tmp_path: Path, photo: np.ndarray) -> Path:
    """Two classes of three 32 px PNG and JPEG images."""
    folder = tmp_path / "images"
    for label, name in enumerate(("cats", "eyes")):
        (folder / name).mkdir(parents=True)
        for i in range(3):
            crop = photo[80 * label + 40 * i :, 60 * i + 50 :][:32, :32]
            cv2.imwrite(str(folder / name / f"{i}.{'png' if i else 'jpg'}"), crop[..., ::-1])
    return folder


@pytest.fixture(scope="session")
def shapes_shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """64 images of `shapes` with one texture each, in shards of 20. Read only: copy it before changing it."""
    out = tmp_path_factory.mktemp("shapes") / "train"
    build(Recipe("shapes", limit=64, shard_size=20), out)
    return out


@pytest.fixture(scope="session")
def shapes_test_shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 images of `shapes`, split `conflict`, without textures."""
    out = tmp_path_factory.mktemp("shapes") / "conflict"
    build(Recipe("shapes", split="conflict", limit=40, per_image=0), out)
    return out


@pytest.fixture(scope="session")
def cifar10_root(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The official CIFAR-10 files, unpacked once for all workers of pytest-xdist. Read only."""
    base = tmp_path_factory.getbasetemp()
    root = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "cifar10"
    with root.with_suffix(".lock").open("a+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        lock.seek(0)
        if not lock.read():
            with tarfile.open(shared_data / "cifar-10-batches-py.tar.xz") as tar:
                tar.extractall(root, filter="data")
            lock.write("unpacked")
    return root


@pytest.fixture(scope="session")
def uncovered() -> dict[str, str]:
    """Environment for a process without coverage, which would fail too when it cannot write its own file."""
    return {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_")}


@pytest.fixture
def untraced() -> Iterator[None]:
    """No coverage during the test, which would take half as long again where torch compiles in Python."""
    tracer = sys.gettrace()
    sys.settrace(None)
    yield
    sys.settrace(tracer)
