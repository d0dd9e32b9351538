"""Take a recipe from images to figures, by the real commands. Finished builds and trainings are not done again."""

import json
import os
import shlex
import subprocess
import sys
import time
import tomllib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from pipelines.recipe import Journey
from pipelines.report import write_report
from pipelines.stages import is_done, newest_checkpoint, record_done
from texturegen.errors import UserError
from texturegen.files import write_json
from texturegen.sources import SOURCES

FINISHED = {"texturegen": (0, 3)}  # 3: a build that finished without some images, and said so


class Commands:
    """Runs commands and keeps their times in OUT/times.json."""

    def __init__(self, out: Path, threads: int) -> None:
        self.path = out / "times.json"
        self.times: dict[str, float] = json.loads(self.path.read_text()) if self.path.is_file() else {}
        self.lines: list[str] = []
        self.environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "PYTHONUNBUFFERED": "1"}

    def call(self, name: str, command: str, *arguments: str) -> None:
        """Run a command, its output marked with `name` where several run at once; UserError when it fails."""
        line = shlex.join([command, *arguments])
        mark = f"[{name}] " if name else ""
        print(f"{mark}$ {line}", flush=True)
        begin = time.monotonic()
        process = subprocess.Popen(
            [str(Path(sys.executable).with_name(command)), *arguments],
            env=self.environment,
            text=True,
            stdout=subprocess.PIPE if name else None,
            stderr=subprocess.STDOUT if name else None,
        )
        for text in process.stdout or ():
            print(f"{mark}{text}", end="", flush=True)
        status = process.wait()
        if status == 130:
            raise KeyboardInterrupt
        if status not in FINISHED.get(command, (0,)):
            raise UserError(f"`{line}` failed (exit status {status}); mend it and run the same command again")
        # A command that finds its work done takes no time: what is told is the longest that each has taken.
        self.times[line] = max(self.times.get(line, 0.0), time.monotonic() - begin)
        self.lines.append(line)
        write_json(self.path, dict(self.times))

    def skip(self, name: str, *command: str) -> None:
        """Say that a command need not run."""
        line = shlex.join(command)
        print(f"{f'[{name}] ' if name else ''}{line}: done before", flush=True)
        self.lines.append(line)


def run(journey: Journey, out: Path, root: str | None = None, device: str = "auto", jobs: int = 1) -> Path:
    """Build the sets, train the runs, evaluate each on every test set; return the path of the report.

    `jobs` runs train at once, with an equal share of the cores: on a CPU, small batches do not fill two cores.
    Layout: OUT/shards/SET, OUT/runs/RUN, OUT/report.md. Raises UserError when a command fails, after the command
    has said why.
    """
    out.mkdir(parents=True, exist_ok=True)
    commands = Commands(out, max(1, len(os.sched_getaffinity(0)) // jobs))
    shards = {name: out / "shards" / name for name in journey.sets}
    for name, options in journey.sets.items():
        entry = SOURCES.get(options["dataset"])
        rooted = {"root": root} if root and entry and entry.needs_root else {}
        commands.call("", "texturegen", "build", "--out", str(shards[name]), *flags_of({**options, **rooted}))
    commands.call("", "texturegen", "preview", str(shards["train"]), "-o", str(out / "preview.png"))

    def train_and_evaluate(name: str) -> dict[str, Any]:
        run_dir = out / "runs" / name
        mark = name if jobs > 1 else ""
        sets = [text for key, value in journey.runs[name].items() for text in ("--set", f"{key}={json.dumps(value)}")]
        place = ["--shards", str(shards["train"]), "--device", device]
        commands.call(mark, "sacl-train", "--out", str(run_dir), *place, *sets)
        if not _is_trained(run_dir):
            raise KeyboardInterrupt  # it was asked to stop, has saved its state, and ended well
        figures = {}
        for probe, options in journey.probes.items():
            tests = [text for test in journey.tests for text in ("--test-shards", str(shards[test]))]
            line = ["sacl-eval", probe, "--run", str(run_dir), *place, *tests, *flags_of(options)]
            inputs = [*newest_checkpoint(run_dir), *(directory / "build.json" for directory in shards.values())]
            record, output = run_dir / f"stage-{probe}.json", run_dir / f"eval-{probe}.json"
            if is_done(record, line, inputs, [output]):
                commands.skip(mark, *line)
            else:
                commands.call(mark, *line)
                record_done(record, line, inputs, [output])
            figures[probe] = json.loads(output.read_text())
        return figures

    with ThreadPoolExecutor(jobs) as pool:
        results = dict(zip(journey.runs, pool.map(train_and_evaluate, journey.runs), strict=True))
    return write_report(out, journey, results, [(line, commands.times[line]) for line in commands.lines])


def _is_trained(run_dir: Path) -> bool:
    epochs = tomllib.loads((run_dir / "config.toml").read_text())["epochs"]
    metrics = run_dir / "metrics.jsonl"
    return (len(metrics.read_text().splitlines()) if metrics.is_file() else 0) >= epochs


def flags_of(options: dict[str, Any]) -> list[str]:
    """Options as a command takes them: true is the flag alone, a list or a table the flag repeated."""
    flags = []
    for key, value in options.items():
        flag = f"--{key.replace('_', '-')}"
        if isinstance(value, dict):  # method_option, source_option
            flags += [text for k, v in value.items() for text in (flag, f"{k}={v}")]
        elif isinstance(value, list):
            flags += [text for item in value for text in (flag, str(item))]
        elif value is True:
            flags.append(flag)
        elif value is not False:
            flags += [flag, str(value)]
    return flags
