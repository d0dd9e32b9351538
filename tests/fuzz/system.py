"""A server process in which system calls fail on request.

It is started once with the library of faults.c preloaded, has imported the packages, and forks a child per command. Run
as a program, it is that server: a JSON line in, a JSON line out.
"""

import contextlib
import ctypes
import importlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

KINDS = {"write": 1, "fsync": 2, "rename": 4}
SECONDS = 60


class Server:
    """The server, as its client sees it."""

    def __init__(self, place: Path, modules: list[str]) -> None:
        self.library = place / "faults.so"
        compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
        assert compiler is not None
        source = Path(__file__).with_name("faults.c")
        subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", self.library, source, "-ldl"], check=True)
        root = Path(__file__).parents[2]
        environment = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_")}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.fuzz.system", str(self.library), *modules],
            cwd=root,
            env={**environment, "LD_PRELOAD": str(self.library), "OMP_NUM_THREADS": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(self, command: str, arguments: list[str], root: Path, kind: str, at: int, code: int, lasts: bool) -> Any:
        """Run a click command (module:name) with a fault below `root`.

        Returns
        -------
        dict
            status (of the process; -9 if it hung), output, and seen: how many calls of that kind it made.
        """
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        request = {"command": command, "arguments": arguments, "root": str(root), "kind": KINDS[kind]}
        print(json.dumps({**request, "at": at, "code": code, "lasts": lasts}), file=self.process.stdin, flush=True)
        return json.loads(self.process.stdout.readline())

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(SECONDS)


def _serve(library: str, modules: list[str]) -> None:
    faults = ctypes.CDLL(library)
    for module in modules:
        importlib.import_module(module)
    for line in sys.stdin:
        request = json.loads(line)
        with tempfile.TemporaryDirectory() as place:
            (Path(place) / "modules").touch()
            child = os.fork()
            if child == 0:
                _run(faults, request, Path(place))
            print(json.dumps(_wait(child, Path(place))), flush=True)
            # What a child had to import, later ones need not.
            for module in (Path(place) / "modules").read_text().split():
                if module not in sys.modules:
                    with contextlib.suppress(ImportError):
                        importlib.import_module(module)


def _run(faults: Any, request: dict[str, Any], place: Path) -> None:
    status = 1
    output = os.open(place / "output", os.O_CREAT | os.O_WRONLY)
    os.dup2(output, 1)
    os.dup2(output, 2)
    try:
        module, _, name = request["command"].partition(":")
        command = getattr(importlib.import_module(module), name)
        faults.fault_arm(
            request["kind"], request["at"], request["code"], int(request["lasts"]), request["root"].encode()
        )
        command(request["arguments"])
        status = 0
    except SystemExit as ended:
        status = ended.code if isinstance(ended.code, int) else 1
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        (place / "seen").write_text(str(faults.fault_disarm()))
        (place / "modules").write_text("\n".join(sys.modules))
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _wait(child: int, place: Path) -> dict[str, Any]:
    end = time.monotonic() + SECONDS
    while True:
        found, status = os.waitpid(child, os.WNOHANG)
        if found:
            break
        if time.monotonic() > end:
            os.kill(child, 9)
        time.sleep(0.002)
    seen = place / "seen"
    return {
        "status": os.waitstatus_to_exitcode(status),
        "output": (place / "output").read_text(errors="replace"),
        "seen": int(seen.read_text()) if seen.is_file() else 0,
    }


if __name__ == "__main__":
    _serve(sys.argv[1], sys.argv[2:])
