"""The gate itself: every test on disk is collected, and every room of the packages has tests."""

import ast
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TESTS = ROOT / "tests"
# A module beside the rooms whose tests have another name than test_MODULE.py.
ELSEWHERE = {
    "texturegen/console.py": "tests/test_commands.py",
    "texturegen/errors.py": "tests/texturegen/sources/test_registry.py",
    "sacl_train/cli": "tests/test_commands.py",
    "pipelines/report.py": "tests/pipelines/test_journey.py",
}


@pytest.fixture(scope="module")
def collected(request: pytest.FixtureRequest, uncovered: dict[str, str]) -> Counter[str]:
    """How many tests pytest finds per file, with the project's own settings and nothing named on the command line."""
    config = request.config
    chosen = [
        config.getoption(name, None) for name in ("keyword", "markexpr", "deselect", "ignore", "ignore_glob", "lf")
    ]
    if config.args == config.getini("testpaths") and not any(chosen):  # this session is such a run
        return Counter(item.location[0] for item in request.session.items)
    command = [sys.executable, "-m", "pytest", "--collect-only", "-qq", "-p", "no:cacheprovider"]
    # Nothing is executed, so no coverage, which would take as long again.
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=uncovered)
    assert done.returncode == 0, done.stdout[-2000:]
    lines = (re.fullmatch(r"(\S+\.py): (\d+)", line) for line in done.stdout.splitlines())
    return Counter({found[1]: int(found[2]) for found in lines if found})


def defines_tests(path: Path) -> int:
    tree = ast.parse(path.read_text())
    return sum(isinstance(node, ast.FunctionDef) and node.name.startswith("test_") for node in ast.walk(tree))


def test_every_test_on_disk_is_collected(collected: Counter[str]) -> None:
    files = [path for path in TESTS.rglob("*.py") if defines_tests(path)]
    assert files
    for path in files:
        name = path.relative_to(ROOT).as_posix()
        assert path.name.startswith("test_"), f"{name} defines tests, but pytest collects test_*.py only"
        assert collected[name] >= defines_tests(path), f"{name}: {collected[name]} tests collected, more are defined"


def test_every_room_has_tests(collected: Counter[str]) -> None:
    for floor in ("texturegen", "sacl_train"):
        for path in sorted((ROOT / floor).iterdir()):
            if path.name.startswith("__") or (path.is_file() and path.suffix != ".py"):
                continue
            room = path.relative_to(ROOT).as_posix()
            folder, file = f"tests/{floor}/{path.stem}/", f"tests/{floor}/test_{path.stem}.py"
            count = sum(number for name, number in collected.items() if name.startswith(folder) or name == file)
            assert count or collected[ELSEWHERE.get(room, "")], f"no tests of {room}: write {file} or files in {folder}"
