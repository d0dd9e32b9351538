"""The commands as a user types them, in this process or as installed programs."""

import subprocess
import sys
from importlib import import_module
from pathlib import Path
from unittest.mock import patch

from click.testing import CliRunner

BIN = Path(sys.executable).parent
MAINS = {
    "texturegen": ("texturegen.cli", "main"),
    "sacl-train": ("sacl_train.cli.train", "train_main"),
    "sacl-eval": ("sacl_train.cli.evaluate", "eval_main"),
    "sacl-export": ("sacl_train.cli.export", "export_main"),
}


def call(command: str, *arguments: object) -> tuple[int, str, str]:
    """Run a command in this process, sparing the seconds of its imports; return exit status, stdout and stderr."""
    module, name = MAINS[command]
    line = list(map(str, arguments))
    with patch.object(sys, "argv", [str(BIN / command), *line]):  # figures state the command that measured them
        done = CliRunner().invoke(getattr(import_module(module), name), line, prog_name=command, catch_exceptions=False)
    return done.exit_code, done.stdout, done.stderr


def start(command: str, *arguments: str | Path) -> tuple[int, str, str]:
    """Run an installed command as a process; return exit status, stdout and stderr."""
    done = subprocess.run([BIN / command, *map(str, arguments)], capture_output=True, text=True, timeout=120)
    assert "Traceback" not in done.stderr
    return done.returncode, done.stdout, done.stderr


def refused(command: str, *arguments: object) -> str:
    """Return the one line on stderr of a command that must exit with status 1."""
    status, _, stderr = call(command, *arguments)
    assert (status, stderr[:7], stderr.count("\n")) == (1, "error: ", 1), stderr
    return stderr
