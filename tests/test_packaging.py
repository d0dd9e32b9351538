"""The wheel in an empty environment: builds need no PyTorch, and the trainer says what to install; the sdist."""

import os
import re
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from importlib.metadata import distribution
from pathlib import Path
from typing import NamedTuple

import pytest
from packaging.requirements import Requirement

from tests.test_house import MODULES, ROOT

TOP = ("texturegen", "sacl_train", "pipelines", "pyproject.toml", "README.md", "LICENSE")
NEEDS_TRAIN = "sacl_train needs torch, torchvision, timm: pip install 'sacl-texture[train]'"
# Of a module of the trainer without the extra; the package itself and its entry points are light.
LIGHT = {"sacl_train", "sacl_train.__main__", "sacl_train.extra"}


class Packages(NamedTuple):
    wheel: Path
    sdist: Path


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Packages:
    """Both packages, made from a copy of the checkout, because setuptools writes into it."""
    copy, out = tmp_path_factory.mktemp("checkout"), tmp_path_factory.mktemp("dist")
    for name in TOP:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, copy)
    make = f"from setuptools import build_meta as b; b.build_sdist({str(out)!r}); b.build_wheel({str(out)!r})"
    subprocess.run([sys.executable, "-c", make], cwd=copy, check=True, capture_output=True)
    return Packages(*out.glob("*.whl"), *out.glob("*.tar.gz"))


@pytest.fixture(scope="module")
def builder(packages: Packages, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """bin/ of an environment with the wheel and, as links to this one's, the packages that it needs without extras."""
    home = tmp_path_factory.mktemp("environment")
    venv.create(home, symlinks=True)
    (site,) = home.glob("lib/python*/site-packages")
    pip = [sys.executable, "-m", "pip", "--python", str(home / "bin" / "python"), "install", "--quiet"]
    subprocess.run([*pip, "--no-deps", "--no-index", str(packages.wheel)], check=True)
    wanted = re.findall(r"(?m)^Requires-Dist: (.*)$", read_metadata(packages.wheel))
    seen: set[str] = set()
    while wanted:
        requirement = Requirement(wanted.pop())
        is_needed = requirement.marker is None or requirement.marker.evaluate({"extra": ""})
        if not is_needed or requirement.name in seen:
            continue
        seen.add(requirement.name)
        found = distribution(requirement.name)
        wanted += found.requires or []
        for top in {file.parts[0] for file in found.files or []} - {"..", "__pycache__"}:
            if not (site / top).exists():
                (site / top).symlink_to(Path(str(found.locate_file(top))))
    assert "numpy" in seen
    assert "torch" not in seen
    return home / "bin"


def read_metadata(wheel: Path) -> str:
    with zipfile.ZipFile(wheel) as files:
        (name,) = (name for name in files.namelist() if name.endswith(".dist-info/METADATA"))
        return files.read(name).decode()


def run(builder: Path, *command: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    return subprocess.run(
        [str(builder / command[0]), *command[1:]], cwd=cwd, env=environment, capture_output=True, text=True
    )


def test_the_sdist_holds_what_the_wheel_holds(packages: Packages) -> None:
    with zipfile.ZipFile(packages.wheel) as wheel, tarfile.open(packages.sdist) as sdist:
        installed = {name for name in wheel.namelist() if ".dist-info/" not in name}
        carried = {name.partition("/")[2] for name in sdist.getnames()}
    in_checkout = {
        str(path.relative_to(ROOT))
        for top in TOP[:3]
        for path in (ROOT / top).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert installed == in_checkout
    assert installed <= carried


def test_builds_need_only_the_base_packages(builder: Path, tmp_path: Path) -> None:
    command = "texturegen build --dataset shapes --limit 4 --per-image 0 --workers 1 --out s"
    made = run(builder, *command.split(), cwd=tmp_path)
    assert (made.returncode, made.stdout) == (0, "s: 4 images, 0 textures, 0 failed\n"), made.stderr
    assert run(builder, "texturegen", "verify", "s", "--deep", cwd=tmp_path).returncode == 0
    others = [name for name in MODULES if name.startswith("texturegen") and not name.endswith((".__main__", ".ray"))]
    program = f"""
import importlib, sys
for name in {others}:
    importlib.import_module(name)
import texturegen
shards = texturegen.open_shards("s")
print(len(shards), shards[0].image.shape, "torch" in sys.modules, texturegen.__file__)
"""
    read = run(builder, "python", "-c", program, cwd=tmp_path)
    assert read.stdout.startswith(f"4 (32, 32, 3) False {builder.parent}"), read.stderr


@pytest.mark.parametrize(
    "command", ["sacl-train", "sacl-eval", "sacl-export", "python -m pipelines", "python -m sacl_train"]
)
def test_commands_of_the_trainer_say_what_to_install(builder: Path, command: str, tmp_path: Path) -> None:
    ended = run(builder, *command.split(), "--help", cwd=tmp_path)
    assert (ended.returncode, ended.stdout, ended.stderr) == (1, "", f"error: {NEEDS_TRAIN}\n")


def test_modules_of_the_trainer_say_what_to_install(builder: Path, tmp_path: Path) -> None:
    names = [name for name in MODULES if name.split(".")[0] == "sacl_train" and name not in LIGHT]
    program = f"""
import importlib
for name in {names}:
    try:
        importlib.import_module(name)
    except ImportError as error:
        print(error)
"""
    done = run(builder, "python", "-c", program, cwd=tmp_path)
    assert done.stdout.splitlines() == [NEEDS_TRAIN] * len(names), done.stderr


def test_all_is_every_extra_that_commands_use(packages: Packages) -> None:
    lines = read_metadata(packages.wheel)
    extras = {*re.findall(r"(?m)^Provides-Extra: (.*)$", lines)}
    requires = map(Requirement, re.findall(r"(?m)^Requires-Dist: (.*)$", lines))
    (everything,) = (r for r in requires if r.name == "sacl-texture" and "all" in str(r.marker))
    assert everything.extras == extras - {"all", "dev", "readers"}
