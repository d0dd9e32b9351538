"""Shell completion: the scripts that docs/quickstart.md installs are those of Click, and bash completes with one."""

import os
import re
import shutil
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
from click.shell_completion import get_completion_class

COMMANDS = {
    "texturegen": ("texturegen.cli.group", "main"),
    "sacl-train": ("sacl_train.cli.train", "train_main"),
    "sacl-eval": ("sacl_train.cli.evaluate", "eval_main"),
    "sacl-export": ("sacl_train.cli.export", "export_main"),
}
QUICKSTART = Path(__file__).parents[1] / "docs" / "quickstart.md"


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
@pytest.mark.parametrize("name", COMMANDS)
def test_each_command_prints_the_script_of_click(
    name: str, shell: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    module, attribute = COMMANDS[name]
    command = getattr(import_module(module), attribute)
    variable = f"_{name.upper().replace('-', '_')}_COMPLETE"
    made_by = get_completion_class(shell)
    assert made_by is not None
    monkeypatch.setattr("click.shell_completion.BashComplete._check_version", lambda *_: None)  # starts bash
    monkeypatch.setenv(variable, f"{shell}_source")
    with pytest.raises(SystemExit) as ended:
        command.main(args=[], prog_name=name)
    assert ended.value.code == 0
    assert capsys.readouterr().out.strip() == made_by(command, {}, name, variable).source().strip()


@pytest.mark.skipif(shutil.which("bash") is None, reason="bash is not installed")
def test_bash_completes_after_the_documented_lines(tmp_path: Path) -> None:
    (block,) = (text for text in re.findall(r"```sh\n(.*?)```", QUICKSTART.read_text(), re.S) if "_COMPLETE" in text)
    block = block.replace("texturegen sacl-train sacl-eval sacl-export", "texturegen")  # the others start slowly
    assert "sacl-eval" not in block
    try_it = """
        . ~/.bashrc
        try() {
            COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMPREPLY=()
            _texturegen_completion texturegen; echo "${COMPREPLY[@]}"
        }
        try texturegen ver
        try texturegen build --one
    """
    environment = {"HOME": str(tmp_path), "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(["bash", "-c", block + try_it], capture_output=True, text=True, env=environment, check=True)
    assert done.stdout.split() == ["verify", "--one-kind"]
