"""A folder for doctests that holds what their examples name (shards/, test-shards/, run/), and coverage of workers."""

import shutil
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

# Its library is not on PyPI for this torch; the collection of doctests imports every module.
collect_ignore = [] if find_spec("solo") else ["pipelines/reuse/solo_learn.py"]


@pytest.fixture(scope="session")
def _doctest_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from sacl_train import load_config, train
    from texturegen.builds import Recipe, build

    folder = tmp_path_factory.mktemp("doctest")
    build(Recipe("shapes", limit=64, shard_size=20), folder / "shards")
    build(Recipe("shapes", split="conflict", limit=40, per_image=0), folder / "test-shards")
    settings = {"encoder": "se_resnet8", "width": 8, "stem": "cifar-stride2", "epochs": 0, "batch_size": 16}
    settings |= {"projector_hidden": 16, "projector_out": 16, "predictor_hidden": 8, "device": "cpu"}
    train(load_config(None, settings), folder / "shards", folder / "run")
    return folder


@pytest.fixture(autouse=True)
def _doctest_folder(request: pytest.FixtureRequest) -> Iterator[None]:
    if not isinstance(request.node, pytest.DoctestItem):
        yield
        return
    data: Path = request.getfixturevalue("_doctest_data")
    folder: Path = request.getfixturevalue("tmp_path") / "here"
    shutil.copytree(data, folder)
    monkeypatch: pytest.MonkeyPatch = request.getfixturevalue("monkeypatch")
    monkeypatch.chdir(folder)
    yield


def pytest_sessionfinish() -> None:
    """Save the coverage of this process: xdist may end a worker before its exit handlers have run."""
    coverage = sys.modules.get("coverage")
    current = coverage.Coverage.current() if coverage is not None else None
    if current is not None:
        current.save()
