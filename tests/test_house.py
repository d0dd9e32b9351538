"""The architecture: who may import whom, module by module, and what an import must not load.

docs/architecture.md draws the house. An import runs from a room to a room below it in ROOMS, never back up; two rooms,
or two modules, that import each other in a circle have no order and fail too.
"""

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FLOORS = ("texturegen", "sacl_train", "pipelines")

# What each room may import of its own floor. A module that lies beside the rooms is a room of one module.
ROOMS: dict[str, tuple[str, ...]] = {
    "texturegen": ("errors",),
    "texturegen.errors": (),
    "texturegen.system": ("errors",),
    "texturegen.console": ("errors", "storage", "system"),
    "texturegen.storage": ("errors", "system"),
    "texturegen.texture": ("errors", "system"),
    "texturegen.sources": ("errors", "storage", "system", "console"),
    "texturegen.shards": ("errors", "storage", "system", "console", ""),
    "texturegen.builds": ("errors", "storage", "system", "console", "shards", "sources", "texture", ""),
    "texturegen.cli": ("errors", "storage", "system", "console", "shards", "sources", "texture", "builds", ""),
    "texturegen.__main__": ("system",),  # imports the command by name
    "sacl_train.extra": (),
    "sacl_train.distributed": ("extra",),
    "sacl_train.data": ("distributed", "extra"),
    "sacl_train.nets": ("extra",),
    "sacl_train.methods": ("nets", "data", "distributed", "extra"),
    "sacl_train.config": ("methods", "extra"),
    "sacl_train.report": ("data", "extra"),
    "sacl_train.training": ("config", "methods", "nets", "data", "distributed", "report", "", "extra"),
    "sacl_train.evaluate": ("training", "config", "methods", "nets", "data", "distributed", "extra"),
    "sacl_train.export": ("training", "report", "config", "nets", "extra"),
    "sacl_train": ("training", "evaluate"),
    "sacl_train.cli": (
        *("training", "evaluate", "report", "export", "config", "methods", "nets", "distributed", "extra"),
        "",
    ),
    "sacl_train.__main__": (),  # as in texturegen
}
# Rooms of the floor below that the trainer knows: the contract and what every floor shares, not how textures are made.
KNOWN_TO_TRAINER = ("shards", "sources", "storage", "system", "errors", "console", "")
# Packages that a room must not load: name of the room -> top-level names.
FOREIGN = {
    "texturegen": ("torch", "torchvision"),
    "texturegen.shards": ("numba", "torch", "torchvision", "skimage"),
    "texturegen.storage": ("numba", "torch", "torchvision", "skimage", "click"),
}


def modules() -> dict[str, Path]:
    found = {}
    for floor in FLOORS:
        for path in (ROOT / floor).rglob("*.py"):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = modules()


def imported(path: Path) -> Iterator[str]:
    """Names of the modules that a file imports, at its top or on use; not those for type checkers."""
    for node in _statements(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: a relative import"
            for alias in node.names:
                name = f"{node.module}.{alias.name}"
                yield name if name in MODULES else str(node.module)


def _statements(node: ast.AST) -> Iterator[ast.AST]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING":
            continue
        yield child
        yield from _statements(child)


def room_of(module: str) -> str:
    floor, _, rest = module.partition(".")
    return f"{floor}.{rest.split('.')[0]}" if rest else floor


GRAPH = {name: {other for other in imported(path) if other in MODULES} for name, path in MODULES.items()}


@pytest.mark.parametrize("module", MODULES)
def test_a_module_imports_only_from_rooms_below(module: str) -> None:
    floor, room = module.split(".")[0], room_of(module)
    for other in GRAPH[module]:
        assert FLOORS.index(other.split(".")[0]) <= FLOORS.index(floor), f"{module} imports {other}: it runs up"
        below = room_of(other).partition(".")[2]
        if other.split(".")[0] == floor:
            allowed = ROOMS.get(room)
            if allowed is not None and room_of(other) != room:
                assert below in allowed, f"{module} imports {other}, but {room} may know only {allowed}"
        elif floor == "sacl_train":
            assert below in KNOWN_TO_TRAINER, f"{module} imports {other}, which the trainer must not know"


def test_tests_of_builds_are_collected_without_the_trainer() -> None:
    """An installation without PyTorch can run them: only inside a test may they import torch, or the floors above."""
    tests = {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in (ROOT / "tests").rglob("*.py")}
    waiting = [name for name in tests if name.startswith("tests.texturegen")]
    seen = {*waiting}
    while waiting:
        name = waiting.pop()
        for node in ast.parse(tests[name].read_text()).body:
            if isinstance(node, ast.Import | ast.ImportFrom):
                module = node.module or "" if isinstance(node, ast.ImportFrom) else node.names[0].name
                names = {f"{module}.{alias.name}" for alias in node.names} | {module}
                heavy = {"torch", "torchvision", *FLOORS[1:]} & {other.partition(".")[0] for other in names}
                assert not heavy, f"{name} imports {heavy}"
                waiting += (names & {*tests}) - seen
                seen |= names


def test_every_room_is_listed() -> None:
    rooms = {room_of(module) for module in MODULES if not module.startswith("pipelines")}
    assert rooms == {*ROOMS}


def test_no_modules_import_each_other_in_a_circle() -> None:
    try:
        TopologicalSorter(GRAPH).prepare()
    except CycleError as error:
        pytest.fail(f"circle: {' <- '.join(error.args[1])}")


def test_no_rooms_import_each_other_in_a_circle() -> None:
    rooms: dict[str, set[str]] = {}
    for module, others in GRAPH.items():
        rooms.setdefault(room_of(module), set()).update(room_of(other) for other in others)
    for room, others in rooms.items():
        others.discard(room)
    # A package's own __init__ is a room that everything in it may read (its version, its registry).
    for floor in FLOORS:
        for others in rooms.values():
            others.discard(floor)
    try:
        TopologicalSorter(rooms).prepare()
    except CycleError as error:
        pytest.fail(f"circle: {' <- '.join(error.args[1])}")


@pytest.mark.parametrize("room", FOREIGN)
def test_a_room_imports_no_package_it_should_not_need(room: str) -> None:
    inside = [module for module in MODULES if module == room or module.startswith(f"{room}.")]
    assert inside
    for module in inside:
        for name in imported(MODULES[module]):
            assert name.split(".")[0] not in FOREIGN[room], f"{module} imports {name}"


@pytest.mark.parametrize(
    "statement",
    [
        "import texturegen, sacl_train",
        "import texturegen.texture, texturegen.sources, texturegen.builds, sacl_train.methods",
        "from click.testing import CliRunner; from texturegen.cli import main; CliRunner().invoke(main, ['--help'])",
        "from click.testing import CliRunner; from texturegen.cli import main; "
        "CliRunner().invoke(main, ['build', '--help'])",
        "from click.testing import CliRunner; from sacl_train.cli.train import train_main as main; "
        "CliRunner().invoke(main, ['--help'])",
        "from click.testing import CliRunner; from sacl_train.cli.evaluate import eval_main; "
        "CliRunner().invoke(eval_main)",
    ],
)
def test_imports_and_help_load_nothing_heavy(statement: str) -> None:
    heavy = "('numpy', 'torch', 'numba', 'pyarrow', 'skimage', 'cv2', 'PIL', 'ray')"
    check = f"import sys; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", f"{statement}; {check}"], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_build_workers_do_not_load_torch() -> None:
    check = "import sys, texturegen.builds.run, texturegen.builds.job; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
