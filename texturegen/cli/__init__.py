"""The `texturegen` command. Commands import what they need when they run, so `--help` loads no NumPy."""

from texturegen.system.interrupts import exit_on_interrupt

with exit_on_interrupt():
    from texturegen.cli.group import main

__all__ = ["main"]
