"""The documentation against the code: examples run, commands have the options they show, links and paths exist.

CONTRIBUTING.md, section "Documentation", states the rules that these tests enforce.
"""

import contextlib
import re
import shlex
import shutil
import textwrap
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

import click
import pytest

from pipelines.cli import main as pipelines_main
from sacl_train.cli.evaluate import eval_main
from sacl_train.cli.export import export_main
from sacl_train.cli.train import train_main
from texturegen.cli import main as texturegen_main
from texturegen.errors import UserError

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
MAX_README_WORDS = 900

READERS = ("wids", "nvidia.dali", "megatron.energon", "mlcroissant")  # libraries that examples use and CI may lack

COMMANDS: dict[str, click.Command] = {
    "texturegen": texturegen_main,
    "sacl-train": train_main,
    "sacl-eval": eval_main,
    "sacl-export": export_main,
}
MODULES: dict[str, click.Command] = {  # after `python -m` or `torchrun ... -m`
    "pipelines": pipelines_main,
    "sacl_train": train_main,
    "texturegen": texturegen_main,
}
FOLDERS = ("texturegen/", "sacl_train/", "pipelines/", "tests/", "docs/", "benchmarks/")
PLACEHOLDER = re.compile(r"\.\.\.|[$*<]|\b[A-Z][A-Z/]+\b")  # a token with one is not a value to check


class Block(NamedTuple):
    """A code block: its page, first line, language ("" if indented or not named) and text."""

    page: Path
    line: int
    language: str
    text: str
    runs: bool  # False if the line above says `<!-- not run: REASON -->`

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def read_page(page: Path) -> tuple[list[Block], str]:
    """Return the code blocks of a page, and its text without them."""
    blocks, prose = [], []
    lines = page.read_text().splitlines()
    number = 0
    while number < len(lines):
        fence = re.match(r"\s*(`{3,})\s*(\w*)", lines[number])
        is_indented = lines[number].startswith("    ") and not (number and lines[number - 1].strip())
        if not fence and not (is_indented and lines[number].strip()):
            prose.append(lines[number])
            number += 1
            continue
        begin = number
        above = next((line for line in reversed(lines[:begin]) if line.strip()), "")
        if fence:
            number = next(n for n in range(begin + 1, len(lines)) if lines[n].strip() == fence[1])
            text, language = lines[begin + 1 : number], fence[2]
            number += 1
        else:
            while number < len(lines) and (lines[number].startswith("    ") or not lines[number].strip()):
                number += 1
            text, language = [line[4:] for line in lines[begin:number]], ""
        blocks.append(Block(page, begin + 1, language, "\n".join(text), not above.startswith("<!-- not run")))
    return blocks, "\n".join(prose)


def inline_code(prose: str) -> list[str]:
    return [" ".join(found[1].split()) for found in re.findall(r"(?<!`)(`+)(?!`)(.+?)(?<!`)\1(?!`)", prose, re.DOTALL)]


READ = {page: read_page(page) for page in PAGES}
BLOCKS = [block for blocks, _ in READ.values() for block in blocks]
PYTHON = [block for block in BLOCKS if block.language == "python"]
INLINE = [(page, code) for page, (_, prose) in READ.items() for code in inline_code(prose)]


def is_program(block: Block) -> bool:
    """True if the block begins with an import: a fragment of a program does not."""
    return block.runs and re.match(r"(import|from) \w", block.text) is not None


@pytest.mark.parametrize("block", PYTHON, ids=str)
def test_python_blocks_compile(block: Block) -> None:
    try:
        compile(block.text, str(block), "exec")
    except SyntaxError:  # a fragment may be the body of a function, with a return
        compile(f"def fragment():\n{textwrap.indent(block.text, '    ')}", str(block), "exec")


@pytest.fixture
def example_folder(_doctest_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "here"
    shutil.copytree(_doctest_data, folder)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "huggingface"))
    return folder


@pytest.mark.parametrize("block", [block for block in PYTHON if is_program(block)], ids=str)
def test_python_programs_run(block: Block, example_folder: Path) -> None:
    for library in READERS:
        if re.search(rf"^(import|from) {library.partition('.')[0]}\b", block.text, re.MULTILINE):
            pytest.importorskip(library, reason=f"needs {library} (the extra `readers`)")
    exec(compile(block.text, str(block), "exec"), {"__name__": "__main__"})


def shell_lines(text: str) -> Iterator[str]:
    """Yield the commands of a shell block, continued lines joined and prompts removed."""
    for line in text.replace("\\\n", " ").splitlines():
        yield line.strip().removeprefix("$ ")


def split_line(line: str) -> list[list[str]]:
    """Return the words of each simple command on a line; empty if the line is not shell."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    parts: list[list[str]] = [[]]
    try:
        for word in lexer:
            if word and not word.strip(lexer.punctuation_chars):
                parts.append([])
            else:
                parts[-1].append(word)
    except ValueError:  # an apostrophe: prose or output
        return []
    return [part for part in parts if part]


def find_command(words: list[str]) -> tuple[click.Command, list[str]] | None:
    """Return our command that the words call, and its arguments; None for a foreign command."""
    while words and (
        words[0] == "srun" or re.match(r"\w+=", words[0]) or (words[0].startswith("--") and len(words) > 1)
    ):
        words = words[1:]
    if not words:
        return None
    name = Path(words[0]).name
    if name in COMMANDS:
        return COMMANDS[name], words[1:]
    if re.match(r"python|torchrun", name) and "-m" in words[:-1]:
        at = words.index("-m") + 1
        if words[at] in MODULES:
            return MODULES[words[at]], words[at + 1 :]
    return None


def faults_of_line(line: str, in_block: bool = True) -> list[str]:
    """Return what is wrong with the commands of ours on a line.

    Inline code and lines with placeholders must have existing subcommands and options. Other lines of blocks must be
    commands that can be typed: required options, choices and settings are checked too.
    """
    found = []
    for words in split_line(line):
        for word in words:  # sbatch --wrap "texturegen finish DIR"
            if " " in word and find_command(word.split()):
                found += faults_of_line(word, in_block)
        called = find_command(words)
        if called is None:
            continue
        command, arguments = called
        try:
            command, arguments = resolve_subcommand(command, arguments)
            if in_block and not any(PLACEHOLDER.search(word) for word in arguments):
                check_typed(command, arguments)
            else:
                check_options(command, arguments)
        except click.exceptions.Exit:  # --help, --version
            pass
        except click.UsageError as error:
            found.append(f"{line}: {error.format_message()}")
        except UserError as error:
            found.append(f"{line}: {error}")
    return found


def resolve_subcommand(command: click.Command, arguments: list[str]) -> tuple[click.Command, list[str]]:
    while isinstance(command, click.Group) and arguments and not arguments[0].startswith("-"):
        context = click.Context(command)
        if PLACEHOLDER.search(arguments[0]):
            return command, []
        subcommand = command.get_command(context, arguments[0])
        if subcommand is None:
            raise click.UsageError(f"there is no subcommand {arguments[0]!r}")
        command, arguments = subcommand, arguments[1:]
    return command, arguments


def check_options(command: click.Command, arguments: list[str]) -> None:
    # Inline code may end with an option whose value the text gives.
    with contextlib.suppress(click.BadOptionUsage):
        command.make_parser(click.Context(command)).parse_args(list(arguments))


def check_typed(command: click.Command, arguments: list[str]) -> None:
    if isinstance(command, click.Group) and not arguments:
        return
    try:
        values = command.make_context(command.name, list(arguments)).params
    except click.BadParameter as error:
        if "does not exist" in error.format_message():  # the reader's file
            return
        raise
    if command is train_main:
        from sacl_train import load_config

        own = {param.name for param in command.params} - {"shards", "out", "config", "settings", "dry_run"}
        flags = {key: values[key] for key in own if values.get(key) is not None}
        load_config(None, {**values["settings"], **flags})
    if "dataset" in values:
        from texturegen.sources import find_entry

        find_entry(values["dataset"], values.get("source_options") or {})
    if "method" in values and "settings" in values and command is not train_main:
        from texturegen.texture import resolve_settings

        resolve_settings(values["method"], values["settings"])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_have_the_options_they_show(page: Path) -> None:
    found = [
        f"line {block.line}: {fault}"
        for block in READ[page][0]
        if block.language in ("", "sh", "shell", "bash", "console", "text")
        for line in shell_lines(block.text)
        for fault in faults_of_line(line)
    ]
    found += [fault for where, code in INLINE if where == page for fault in faults_of_line(code, in_block=False)]
    assert not found, "\n".join(found)


def test_every_setting_is_described(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "docs" / "reference")
    hooks = import_module("_hooks")
    rows = [line.split(" | ") for line in hooks.settings_tables().splitlines() if line.startswith("| `")]
    assert len(rows) > 100
    assert not [row[0] for row in rows if not row[3].strip(" |")]
    assert not [row for row in rows if re.match(r"(int|float|str|bool)\b", row[3])]


def test_commands_are_found_at_all() -> None:
    lines = [line for block in BLOCKS if block.language != "python" for line in shell_lines(block.text)]
    called = [words for line in lines for words in split_line(line) if find_command(words)]
    assert len(called) > 40
    assert {id(find_command(words)[0]) for words in called} >= {id(command) for command in COMMANDS.values()}  # type: ignore[index]


@pytest.mark.parametrize(
    "line",
    [
        "texturegen biuld --dataset shapes --out shards",
        "texturegen build --dataset shapes --out shards --worker 2",
        "texturegen build --dataset shapes  # --out is missing",
        "texturegen build --dataset shape --out shards",
        "texturegen build --dataset shapes --out shards --method-option blocks=3",
        "mkdir data && texturegen verify shards --deeply",
        'sbatch --wrap "texturegen finish --all /shared/textures"',
        "srun texturegen build --dataset shapes --out shards --shard-ranges $I/$N",
        "$ sacl-train --shards shards --out run --epoch 3",
        "sacl-train --shards shards --out run --set epoch=3",
        "sacl-train --shards shards --out run --texture-role negativ",
        "torchrun --nproc-per-node 4 -m sacl_train --shards shards --out run --batchsize 512",
        "sacl-eval liner --run run --train shards --test test-shards",
        "sacl-export run --formats onnx",
        "python -m pipelines table9 --out runs/table9",
        "python -m pipelines table3 --scale huge --out runs/table3",
    ],
)
def test_a_wrong_command_is_found(line: str) -> None:
    (line,) = shell_lines(line)
    assert faults_of_line(line)


@pytest.mark.parametrize(
    "code",
    ["texturegen build ... --retry-faild", "sacl-eval shape-bais", "sacl-train --presision bf16", "texturegen biuld"],
)
def test_wrong_inline_code_is_found(code: str) -> None:
    assert faults_of_line(code, in_block=False)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_and_images_exist(page: Path) -> None:
    for target in re.findall(r"\[[^\]]*\]\(([^)\s]+)\)", READ[page][1]):
        if not re.match(r"https?:|mailto:|#", target):
            assert (page.parent / target.partition("#")[0]).exists(), f"{page.relative_to(ROOT)}: {target}"


FILES = [str(path.relative_to(ROOT)) for folder in FOLDERS for path in (ROOT / folder).rglob("*.*")]


def is_missing(word: str) -> bool:
    """True if the word is a path or a dotted name of ours and there is no such thing."""
    if PLACEHOLDER.search(word):
        return False
    if word.startswith(FOLDERS):
        return not (ROOT / word.partition(":")[0]).exists()
    if re.fullmatch(r"[\w/]+\.py", word):
        return not any(f"/{name}".endswith(f"/{word}") for name in FILES)
    if dotted := re.match(r"(texturegen|sacl_train|pipelines)(\.[A-Za-z_]\w*)+", word):
        return not is_importable(dotted[0])
    return False


def is_importable(name: str) -> bool:
    first, *rest = name.split(".")
    found, path = import_module(first), first
    for part in rest:
        path = f"{path}.{part}"
        try:
            found = getattr(found, part)
        except AttributeError:
            try:
                found = import_module(path)
            except ImportError:
                return False
    return True


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_paths_and_names_in_backticks_exist(page: Path) -> None:
    codes = [code for where, code in INLINE if where == page]
    codes += [block.text for block in READ[page][0] if block.language in ("", "sh") and ".py" in block.text]
    missing = [word for code in codes for word in code.split() if is_missing(word.strip("\"'(),;"))]
    assert not missing, f"{page.relative_to(ROOT)}: {missing}"


@pytest.mark.parametrize(
    "word",
    [
        "texturegen/build/state.py",
        "texturegen/texture/NAMES/x",
        "no_such_file.py",
        "texturegen.build.Recipe",
        "texturegen.open_shard",
        "sacl_train.loop.train",
        "docs/no-such-page.md",
    ],
)
def test_a_missing_path_or_name_is_found(word: str) -> None:
    assert is_missing(word) == ("NAMES" not in word)


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().split()) <= MAX_README_WORDS
