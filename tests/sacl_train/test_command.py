"""Commands that need torch: Ctrl-C during its import, and the sections of their options."""

import signal
from typing import Any

import click
import pytest
from click.testing import CliRunner

import sacl_train.cli.command
from sacl_train.cli.command import TorchCommand
from sacl_train.cli.evaluate import eval_main
from sacl_train.cli.export import export_main
from sacl_train.cli.train import train_main
from texturegen.console import SectionOption
from texturegen.system.interrupts import _exit

PROBES = {name: command for name, command in eval_main.commands.items() if name != "report"}  # it needs no torch


@pytest.mark.parametrize("command", [train_main, export_main, *PROBES.values()], ids=lambda command: command.name)
def test_commands_import_torch_before_anything_else(command: click.Command) -> None:
    assert isinstance(command, TorchCommand)


@pytest.mark.parametrize("own", [signal.default_int_handler, signal.SIG_IGN, lambda *_: None])
def test_ctrl_c_ends_the_process_during_the_import_alone(monkeypatch: pytest.MonkeyPatch, own: Any) -> None:
    seen = []
    monkeypatch.setattr(
        sacl_train.cli.command, "import_module", lambda name: seen.append((name, signal.getsignal(signal.SIGINT)))
    )

    @click.command(cls=TorchCommand)
    def command() -> None:
        seen.append(("body", signal.getsignal(signal.SIGINT)))

    before = signal.signal(signal.SIGINT, own)
    try:
        assert CliRunner().invoke(command, []).exit_code == 0
    finally:
        signal.signal(signal.SIGINT, before)
    # A program that handles Ctrl-C by itself, or ignores it, goes on doing so.
    during = _exit if own is signal.default_int_handler else own
    assert seen == [("torch", during), ("body", own)]


@pytest.mark.parametrize("name", PROBES)
def test_options_of_a_probe_have_sections(name: str) -> None:
    options = [option for option in PROBES[name].params if option.name != "device"]
    assert [option.name for option in options if not isinstance(option, SectionOption)] == []
    assert {option.section for option in options} <= {"Encoder", "Images", "Probe", "Output"}
