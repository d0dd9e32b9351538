"""Take a recipe from images to figures, by the real commands. Finished builds and trainings are not done again."""

import json
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from pipelines.recipe import Journey
from pipelines.report import write_report
from texturegen.errors import UserError
from texturegen.files import write_json
from texturegen.sources import SOURCES

FINISHED = {"texturegen": (0, 3)}  # 3: a build that finished without some images, and said so


def run(journey: Journey, out: Path, root: str | None = None, device: str = "auto") -> Path:
    """Build the sets, train the runs, evaluate each on every test set; return the path of the report.

    Layout: OUT/shards/SET, OUT/runs/RUN, OUT/report.md. Raises UserError when a command fails, after the command
    has said why.
    """
    steps: list[tuple[str, float]] = []  # command line, seconds
    # A command that finds its work done takes no time: what is told is the longest that each has taken.
    times_path = out / "times.json"
    times: dict[str, float] = json.loads(times_path.read_text()) if times_path.is_file() else {}

    def call(command: str, *arguments: str) -> None:
        line = shlex.join([command, *arguments])
        print(f"$ {line}", flush=True)
        begin = time.monotonic()
        done = subprocess.run([str(Path(sys.executable).with_name(command)), *arguments], check=False)
        if done.returncode == 130:
            raise KeyboardInterrupt
        if done.returncode not in FINISHED.get(command, (0,)):
            raise UserError(f"`{line}` failed (exit status {done.returncode}); mend it and run the same command again")
        times[line] = max(times.get(line, 0.0), time.monotonic() - begin)
        steps.append((line, times[line]))
        write_json(times_path, times)

    out.mkdir(parents=True, exist_ok=True)
    shards = {name: out / "shards" / name for name in journey.sets}
    for name, options in journey.sets.items():
        entry = SOURCES.get(options["dataset"])
        rooted = {"root": root} if root and entry and entry.needs_root else {}
        call("texturegen", "build", "--out", str(shards[name]), *_flags({**options, **rooted}))
    call("texturegen", "preview", str(shards["train"]), "-o", str(out / "preview.png"))

    results: dict[str, dict[str, Any]] = {}
    for name, settings in journey.runs.items():
        run_dir = out / "runs" / name
        sets = [text for key, value in settings.items() for text in ("--set", f"{key}={json.dumps(value)}")]
        call("sacl-train", "--shards", str(shards["train"]), "--out", str(run_dir), "--device", device, *sets)
        for probe, options in journey.probes.items():
            tests = [text for test in journey.tests for text in ("--test-shards", str(shards[test]))]
            call(
                *("sacl-eval", probe, "--run", str(run_dir), "--shards", str(shards["train"]), *tests),
                *("--device", device, *_flags(options)),
            )
            figures = json.loads((run_dir / f"eval-{probe}.json").read_text())
            results.setdefault(name, {})[probe] = figures
    return write_report(out, journey, results, steps)


def _flags(options: dict[str, Any]) -> list[str]:
    flags = []
    for key, value in options.items():
        flag = f"--{key.replace('_', '-')}"
        if isinstance(value, dict):  # method_option, source_option
            flags += [text for k, v in value.items() for text in (flag, f"{k}={v}")]
        elif value is True:
            flags.append(flag)
        elif value is not False:
            flags += [flag, str(value)]
    return flags
