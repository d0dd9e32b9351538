"""The `texturegen` command. Commands import what they need when they run, so `--help` loads no NumPy."""

from texturegen.cli.group import main

__all__ = ["main"]
