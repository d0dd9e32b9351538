"""Installed commands, run as a user runs them."""

import subprocess
import sys
from pathlib import Path

BIN = Path(sys.executable).parent


def call(command: str, *arguments: str | Path) -> tuple[int, str, str]:
    """Return the exit status, stdout and stderr of a command."""
    done = subprocess.run([BIN / command, *map(str, arguments)], capture_output=True, text=True, timeout=120)
    assert "Traceback" not in done.stderr
    return done.returncode, done.stdout, done.stderr


def refused(command: str, *arguments: str | Path) -> str:
    """Return the one line on stderr of a command that must exit with status 1."""
    status, _, stderr = call(command, *arguments)
    assert status == 1
    assert stderr.startswith("error: ")
    assert stderr.count("\n") == 1
    return stderr
