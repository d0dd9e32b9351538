"""Arguments that no command can mean: URLs for directories, numbers of thousands of digits, empty names."""

import errno
import json
import os
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from texturegen.cli import main

DIGITS = "9" * 5000  # Python refuses to read a number of more than 4300
BUILD = ("build", "--dataset", "shapes", "--limit", "1", "--per-image", "0", "--workers", "1")
URL = "s3://bucket/set"


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, [*arguments])


@pytest.fixture(autouse=True)
def in_a_directory_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    "arguments",
    [
        (*BUILD, "--out", URL),
        ("finish", URL),
        ("verify", URL),
        ("repair", URL),
        ("index", URL, "--for", "wids"),
        ("merge", URL, URL, "-o", "joined"),
        ("split", URL, "-o", "part", "--share", "0.5"),
        ("split", "SHARDS", "-o", URL, "--share", "0.5"),
        ("split", "SHARDS", "-o", "part", "--rest", URL, "--share", "0.5"),
    ],
    ids=lambda arguments: " ".join(arguments[-4:]),
)
def test_a_url_is_refused_where_shards_are_not_only_read(
    arguments: tuple[str, ...], shapes_shards: Path, tmp_path: Path
) -> None:
    result = run(*(str(shapes_shards) if text == "SHARDS" else text for text in arguments))
    assert (result.exit_code, [*tmp_path.iterdir()]) == (1, [])
    assert result.stderr.startswith("error: s3:/bucket/set: is a URL")


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *arguments: object) -> None:
        """Write nothing to stderr, which the test reads."""


@pytest.fixture
def url(shapes_shards: Path) -> Iterator[str]:
    """URL of the shards on a web server."""
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(shapes_shards.parent))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/{shapes_shards.name}"
        server.shutdown()


def test_info_and_preview_read_shards_at_a_url(url: str) -> None:
    pytest.importorskip("aiohttp")
    assert "images         64 of 32x32 px" in run("info", url).stdout
    assert run("preview", url, "-o", "sheet.png", "--count", "2").stdout == "sheet.png: 2 of 64 images\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((*BUILD, "--out", "new", "--shard-range", f"1/{DIGITS}"), "is not I/N"),
        ((*BUILD, "--out", "new", "--method-option", f"window={DIGITS}"), "must be an odd integer"),
        ((*BUILD, "--out", "new", "--method-option", f"window={'[' * 9999}"), "must be an odd integer"),
        (("texture", "a.png", "-o", "b.png", "--size", DIGITS), "is neither N nor HEIGHTxWIDTH"),
        (("preview", "SHARDS", "-o", ""), "error: .: Is a directory"),
        (("split", "SHARDS", "-o", "/", "--share", "0.5"), "error: /: exists and is not empty"),
    ],
    ids=lambda value: value if isinstance(value, str) else value[0],
)
def test_a_value_that_cannot_be_meant_is_refused_on_one_line(
    arguments: tuple[str, ...], message: str, shapes_shards: Path
) -> None:
    result = run(*(str(shapes_shards) if text == "SHARDS" else text for text in arguments))
    assert isinstance(result.exception, SystemExit), result.exception
    assert message in result.stderr


def test_the_command_that_finishes_an_array_can_be_pasted_into_a_shell() -> None:
    done = run(*BUILD[:3], "--limit", "2", *BUILD[5:], "--shard-size", "1", "--out", "my set", "--shard-range", "1/2")
    assert done.exit_code == 0, done.output
    assert "texturegen finish 'my set'\n" in done.stderr


def test_a_directory_that_may_not_be_written_is_not_a_reason_to_repeat_the_command(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def denied(*arguments: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", "set/parts")

    monkeypatch.setattr("texturegen.builds.build", denied)
    done = run(*BUILD, "--out", "set")
    assert done.exit_code == 1
    assert done.stderr == (
        "error: set/parts: Permission denied; make the directory writable for this user or choose another --out\n"
    )


@pytest.mark.skipif(os.name != "posix", reason="files have no owner")
def test_a_file_of_another_user_that_denies_access_is_said_to_be_theirs(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    lock, owner = tmp_path / ".texturegen.lock", Path.owner(tmp_path)
    lock.touch(0o644)

    def denied(*arguments: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(lock))

    monkeypatch.setattr("texturegen.builds.build", denied)
    monkeypatch.setattr("texturegen.builds.finish", denied)
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    theirs = f"error: {lock}: Permission denied; {lock} belongs to {owner} (mode 644), ask that user for access"
    assert run(*BUILD, "--out", str(tmp_path)).stderr == f"{theirs} or choose another --out\n"
    assert run("finish", str(tmp_path)).stderr == f"{theirs}\n"
    lock.unlink()  # of a file that cannot be created, the directory counts
    assert f"; {tmp_path} belongs to {owner} (mode 700)" in run("finish", str(tmp_path)).stderr


@pytest.mark.parametrize(
    ("error", "event", "message"),
    [
        (MemoryError("Unable to allocate 9 GiB"), "error", "not enough memory (Unable to allocate 9 GiB); finished"),
        (OSError(errno.ENOSPC, "No space left on device", "set/x"), "error", "set/x: No space left on device"),
        (KeyboardInterrupt(), "stopped", None),
    ],
)
def test_whatever_ends_a_build_or_finish_is_an_event_of_log_json(
    monkeypatch: pytest.MonkeyPatch, error: BaseException, event: str, message: str | None
) -> None:
    def end(*arguments: object) -> None:
        raise error

    for name, arguments in (("build", (*BUILD, "--out", "set")), ("finish", ("finish", "set"))):
        monkeypatch.setattr(f"texturegen.builds.{name}", end)
        done = run(*arguments, "--log-json")
        (line,) = map(json.loads, done.stdout.splitlines())
        assert (line["event"], line["out"]) == (event, "set")
        assert message is None or (line["message"].startswith(message) and message in done.stderr)
        assert done.exit_code == (1 if message else 130)
