"""Commands that import torch when they run, so that `--help` answers at once."""

from importlib import import_module
from typing import Any

import click

from texturegen.console import FriendlyCommand, FriendlyGroup
from texturegen.system.interrupts import interrupts_end_process


class TorchCommand(FriendlyCommand):
    """A command that needs torch, whose import takes seconds, in which a KeyboardInterrupt could be swallowed."""

    def invoke(self, ctx: click.Context) -> Any:
        with interrupts_end_process():
            import_module("torch")
        return super().invoke(ctx)


class TorchGroup(FriendlyGroup):
    """A group of such commands."""

    command_class = TorchCommand
