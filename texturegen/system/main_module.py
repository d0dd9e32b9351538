"""The script that was started, which each spawned process imports again before it works.

A script that starts processes outside of `if __name__ == "__main__":` starts them again in each of those processes,
which Python refuses; one that was read from stdin cannot be imported at all.
"""

import ast
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def is_call_unguarded() -> bool:
    """Return True if the line of the script that is running would run again when a spawned process imports it."""
    main = sys.modules.get("__main__")
    file = getattr(main, "__file__", None)
    name = getattr(getattr(main, "__spec__", None), "name", "")
    if file is None or name.endswith("__main__"):  # a notebook; `python -m package`, which is not imported again
        return False
    frame = sys._getframe()
    while frame.f_code.co_name != "<module>" or frame.f_globals.get("__name__") != "__main__":
        if frame.f_back is None:
            return False
        frame = frame.f_back
    if frame.f_code.co_filename != file:  # typed by hand, after a script has run
        return False
    try:
        tree = ast.parse(Path(file).read_bytes())
    except (OSError, SyntaxError, ValueError):
        return False
    line = frame.f_lineno
    guards = (node for node in ast.walk(tree) if isinstance(node, ast.If) and _is_guard(node.test))
    return not any(guard.lineno <= line <= (guard.end_lineno or line) for guard in guards)


@contextmanager
def hide_missing_main() -> Iterator[None]:
    """Keep processes started in the block from importing a script that is not a file, such as one read from stdin."""
    main = sys.modules.get("__main__")
    file = getattr(main, "__file__", None)
    if main is None or file is None or Path(file).exists():
        yield
        return
    main.__file__ = None
    try:
        yield
    finally:
        main.__file__ = file


def _is_guard(test: ast.expr) -> bool:
    names = {node.id for node in ast.walk(test) if isinstance(node, ast.Name)}
    calls = {node.attr for node in ast.walk(test) if isinstance(node, ast.Attribute)}
    return bool({"__name__", "parent_process"} & (names | calls))
