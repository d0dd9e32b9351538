"""Fail where a module of the packages is exercised by no test: `coverage json`, then `python tests/check_coverage.py`.

Importing a module runs its top level, so a module counts as exercised when a line inside one of its functions has run;
one without functions (tables, re-exports) when it was imported. The floor of the whole is in pyproject.toml.
"""

import json
import sys
from pathlib import Path
from typing import Any


def unexercised(report: dict[str, Any]) -> list[str]:
    """Return the files of a `coverage json` report in which no function has run."""
    found = []
    for name, content in sorted(report["files"].items()):
        bodies = [part for function, part in content["functions"].items() if function]
        bodies = [part for part in bodies if part["summary"]["num_statements"]]
        ran = [part for part in bodies if part["executed_lines"]]
        if not (ran if bodies else content["executed_lines"] or not content["summary"]["num_statements"]):
            found.append(name)
    return found


if __name__ == "__main__":
    missed = unexercised(json.loads(Path(sys.argv[1] if len(sys.argv) > 1 else "coverage.json").read_text()))
    for file in missed:
        print(f"error: no test exercises {file}", file=sys.stderr)
    sys.exit(bool(missed))
