"""The architecture: who may import whom, and what `import texturegen` must not load."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FLOORS = {"texturegen": 0, "sacl_train": 1, "pipelines": 2}
# Of the floor below, the trainer knows the contract and what every floor shares; not how textures are made.
KNOWN_TO_TRAINER = (
    "texturegen.shards",
    "texturegen.sources",
    "texturegen.errors",
    "texturegen.console",
    "texturegen.images",
    "texturegen.files",
    "texturegen.lock",
    "texturegen.cgroups",
    "texturegen.threads",
)
FORBIDDEN = [
    ("texturegen/texture", ("texturegen.sources", "texturegen.shards", "texturegen.build")),
    ("texturegen/sources", ("texturegen.texture", "texturegen.shards", "texturegen.build")),
    ("texturegen/shards", ("texturegen.texture", "texturegen.sources", "texturegen.build", "numba")),
    ("sacl_train/nets", ("sacl_train.data", "sacl_train.methods", "sacl_train.evaluate", "sacl_train.loop")),
    ("sacl_train/methods", ("sacl_train.evaluate", "sacl_train.loop", "sacl_train.report")),
    ("sacl_train/evaluate", ("sacl_train.loop", "sacl_train.report")),
]


def imports(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
    return names


def within(name: str, package: str) -> bool:
    return name == package or name.startswith(f"{package}.")


@pytest.mark.parametrize("floor", FLOORS)
def test_no_import_runs_up(floor: str) -> None:
    files = list((ROOT / floor).rglob("*.py"))
    assert files
    for path in files:
        for name in imports(path):
            top = name.split(".")[0]
            assert FLOORS.get(top, 0) <= FLOORS[floor], f"{path} imports {name}"
            if floor == "texturegen":
                assert top not in ("torch", "torchvision"), f"{path} imports {name}"
            if floor == "sacl_train" and top == "texturegen" and name != "texturegen.__version__":
                assert any(within(name, known) for known in KNOWN_TO_TRAINER), f"{path} imports {name}"


@pytest.mark.parametrize(("room", "forbidden"), FORBIDDEN)
def test_rooms_keep_apart(room: str, forbidden: tuple[str, ...]) -> None:
    for path in (ROOT / room).rglob("*.py"):
        for name in imports(path):
            assert not any(within(name, package) for package in forbidden), f"{path} imports {name}"


@pytest.mark.parametrize(
    "statement",
    [
        "import texturegen",
        "import texturegen.texture, texturegen.sources",
        "from click.testing import CliRunner; from texturegen.cli import main; CliRunner().invoke(main, ['--help'])",
        "from click.testing import CliRunner; from sacl_train.cli_eval import eval_main; CliRunner().invoke(eval_main)",
    ],
)
def test_imports_and_help_load_nothing_heavy(statement: str) -> None:
    check = "import sys; print([m for m in ('torch', 'numba', 'pyarrow', 'skimage') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", f"{statement}; {check}"], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_build_workers_do_not_load_torch() -> None:
    check = "import sys, texturegen.build; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
