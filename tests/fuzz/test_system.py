"""Failing system calls: a full disk (ENOSPC) or a broken one (EIO) at any write, fsync or rename of every command.

A command that fails says so in lines without a traceback, leaves no file under a final name that is not whole, and the
same command without a fault ends as if nothing had happened. FUZZ_SYSTEM_CASES sets the number of cases (default 40).
"""

import errno
import json
import os
import random
import shutil
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.fuzz.system import Server
from tests.texturegen.builds.test_build import digests
from tests.texturegen.builds.test_directory import FAILED, REPAIRED, Photos, builds, damage, photos  # noqa: F401
from texturegen.shards.verify import verify

CASES = int(os.environ.get("FUZZ_SYSTEM_CASES", "40"))
SEED = int(os.environ.get("FUZZ_SEED", "0"))
REPORT = os.environ.get("FUZZ_REPORT")
MODULES = ["tests.fuzz.commands", "texturegen.cli.shards", "texturegen.shards.merge", "texturegen.sources.folder"]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")), reason="no compiler"),
    pytest.mark.skipif(sys.platform != "linux", reason="LD_PRELOAD and /proc"),
]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("faults"), MODULES)
    yield server
    server.close()


def _commands(root: Path, out: Path, whole: Path) -> dict[str, tuple[str, list[str], str | None]]:
    """Return name -> command, arguments, and the build that it starts from."""
    both = ["--share", "0.5", "--out", str(out / "kept"), "--rest", str(out / "rest")]
    return {
        "build": ("tests.fuzz.commands:build", [str(root), str(out)], None),
        "retry": ("tests.fuzz.commands:build", [str(root), str(out), "--retry-failed"], FAILED),
        "repair": ("tests.fuzz.commands:repair", [str(root), str(out)], REPAIRED),
        "split": ("texturegen.cli.shards:split", [str(whole), *both], None),
    }


def test_failing_calls_lose_nothing(photos: Photos, builds: dict[str, Path], server: Server, tmp_path: Path) -> None:  # noqa: F811
    out, expected = tmp_path / "out", {}
    commands = _commands(photos.root, out, builds[REPAIRED])
    calls: dict[tuple[str, str], int] = {}
    outcomes: Counter[str] = Counter()
    findings = []

    def attempt(name: str, kind: str, at: int, code: int, lasts: bool) -> dict[str, Any]:
        command, arguments, start = commands[name]
        shutil.rmtree(out, ignore_errors=True)
        if start is not None:
            shutil.copytree(builds[start], out)
        elif name == "split":
            out.mkdir()
        if name == "repair":
            damage(out, 1)
        return server.run(command, arguments, tmp_path, kind, at, code, lasts)

    for name in commands:
        for kind in ("write", "fsync", "rename"):
            done = attempt(name, kind, 1 << 30, 0, False)
            assert done["status"] == 0, done["output"]
            assert expected.setdefault(name, _files(out)) == _files(out)
            calls[name, kind] = done["seen"]
            assert done["seen"] > 1, (name, kind)
    for number in range(SEED, SEED + CASES):
        draws = random.Random(f"system {number}")
        name, kind = draws.choice(list(calls))
        at, code = draws.randrange(calls[name, kind]), draws.choice([errno.ENOSPC, errno.EIO])
        lasts = draws.random() < 0.5
        done = attempt(name, kind, at, code, lasts)
        case = f"FUZZ_SEED={number}: {name}, {kind} {at} fails with {errno.errorcode[code]}{' for ever' * lasts}"
        try:
            _check(done, name, out, builds)
            command, arguments, _ = commands[name]
            if name == "split" and done["status"] == 0:
                shutil.rmtree(out)  # split refuses directories with files
                out.mkdir()
            again = server.run(command, arguments, tmp_path, kind, 1 << 30, 0, False)
            assert again["status"] == 0, again["output"]
            assert _files(out) == expected[name], "the repeated command makes other files"
            outcomes["refused" if done["status"] else "unchanged"] += 1
        except AssertionError as error:
            outcomes["finding"] += 1
            findings.append(f"{case}: {error}")
    if REPORT:
        with open(REPORT, "a") as f:
            f.write(json.dumps({"target": "system calls", "seed": SEED, **outcomes, "findings": findings}) + "\n")
    assert not findings, f"{len(findings)} of {CASES} cases\n" + "\n".join(findings[:5])
    assert outcomes["refused"] > 0


def _files(out: Path) -> dict[str, str]:
    """Return the content of all files; of a build, their digests, because its build.json holds times."""
    if (out / "build.json").exists():
        return digests(out)
    return {str(path.relative_to(out)): path.read_bytes().hex() for path in sorted(out.rglob("*")) if path.is_file()}


def _check(done: dict[str, Any], name: str, out: Path, builds: dict[str, Path]) -> None:  # noqa: F811
    assert done["status"] in (0, 1), (done["status"], done["output"])
    assert "Traceback" not in done["output"], done["output"]
    assert done["status"] == 0 or "error: " in done["output"], done["output"]
    if name == "split":
        sides = [side for side in (out / "kept", out / "rest") if (side / "build.json").exists()]
        assert len(sides) in (0, 2), "one side of the split"
        assert all(verify(side, workers=1) == [] for side in sides)
        return
    if not (out / "build.json").exists():
        assert name != "repair", "the build is lost"
        for path in out.glob("*.tar"):
            assert path.read_bytes() in [(build / path.name).read_bytes() for build in builds.values()], path
        return
    faults = verify(out, workers=1)
    if name == "repair":  # the shard that was damaged may still be
        assert all("shard-000001.tar" in fault for fault in faults), faults
        assert {path.name for path in out.glob("*.tar")} == {path.name for path in builds[REPAIRED].glob("*.tar")}
    else:
        assert faults == []
