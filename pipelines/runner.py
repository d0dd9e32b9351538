"""Take a recipe from images to figures, by the real commands. Finished builds and trainings are not done again."""

import json
import os
import shlex
import subprocess
import sys
import time
import tomllib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from pipelines.recipe import Journey
from pipelines.report import write_report
from pipelines.stages import (
    build_shards,
    claim_run,
    decides_run,
    digest_folder,
    digest_shards,
    is_done,
    job_devices,
    record_done,
)
from sacl_train.cli.evaluate import eval_main
from texturegen.errors import UserError
from texturegen.sources import SOURCES
from texturegen.storage.atomic import write_json
from texturegen.system.threads import count_cpus

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

    def build(self, out: Path, options: dict[str, Any], root: str | None) -> None:
        """`texturegen build`, unless `out` holds that build; another one is moved aside."""
        rooted = {"root": root} if root else {}
        line = ("texturegen", "build", "--out", str(out), *flags_of({**options, **rooted}))
        build_shards(out, options, root, lambda: self.call("", *line), lambda: self.skip("", *line))

    def stage(self, name: str, line: Sequence[str], record: Path, run: dict[str, Any], what: Any, output: Path) -> None:
        """Run a command that makes `output` of `run` by `what`, unless that is done (see `stages.is_done`)."""
        if is_done(record, run, what, [output]):
            self.skip(name, *line)
        else:
            self.call(name, *line)
            record_done(record, run, what)

    def skip(self, name: str, *command: str) -> None:
        """Say that a command need not run."""
        line = shlex.join(command)
        print(f"{f'[{name}] ' if name else ''}{line}: done before", flush=True)
        self.lines.append(line)


def run(journey: Journey, out: Path, root: str | None = None, device: str = "auto", jobs: int = 1) -> Path:
    """Build the sets, train the runs, evaluate each; return the path of the report.

    A stage whose output is there, made of the same, is skipped; what is there of another recipe is moved aside (see
    `stages`). `jobs` runs train at once, with an equal share of the cores: on a CPU, small batches do not fill two
    cores. `device` may be a list, "cuda:0,cuda:1": a run at a time on each. Layout: OUT/shards/SET, OUT/runs/RUN,
    OUT/report.md. Raises UserError when a command fails, after the command has said why.
    """
    from sacl_train.config import load_config
    from sacl_train.evaluate.corruption import load_corruptions

    # Before hours are spent on the shards:
    for settings in journey.runs.values():
        load_config(None, settings)
    if "corruption" in journey.probes:
        load_corruptions()
    out.mkdir(parents=True, exist_ok=True)
    devices = SimpleQueue[str]()
    for name in job_devices(device, jobs):
        devices.put(name)
    jobs = devices.qsize()
    commands = Commands(out, max(1, count_cpus() // jobs))
    shards = {name: out / "shards" / name for name in journey.sets}
    for name, options in journey.sets.items():
        entry = SOURCES.get(options["dataset"])
        commands.build(shards[name], options, root if entry and entry.needs_root else None)
    digests = {name: digest_shards(place) for name, place in shards.items()}
    preview, record = out / "preview.png", out / "preview.json"
    line = ("texturegen", "preview", str(shards["train"]), "-o", str(preview))
    commands.stage("", line, record, {}, digests["train"], preview)

    def train_and_evaluate(name: str) -> dict[str, Any]:
        device = devices.get()
        try:
            return train_and_evaluate_on(device, name)
        finally:
            devices.put(device)

    def train_and_evaluate_on(device: str, name: str) -> dict[str, Any]:
        run_dir, settings = out / "runs" / name, journey.runs[name]
        mark = name if jobs > 1 else ""
        sets = [text for key, value in settings.items() for text in ("--set", f"{key}={json.dumps(value)}")]
        line = ["sacl-train", "--out", str(run_dir), "--shards", str(shards["train"]), "--device", device, *sets]
        claim_run(run_dir, settings, shards["train"])
        if _is_trained(run_dir):
            commands.skip(mark, *line)
        else:
            commands.call(mark, *line)
        if not _is_trained(run_dir):
            raise KeyboardInterrupt  # it was asked to stop, has saved its state, and ended well
        figures = {}
        for probe, options in journey.probes.items():
            if probe != "report":
                output = run_dir / f"eval-{probe}.json"
                line = evaluation(probe, run_dir, shards, journey.tests, device, options)
                what = [probe, options, digests, {k: digest_folder(v) for k, v in options.items() if _is_folder(v)}]
                run = decides_run(settings, digests["train"])
                commands.stage(mark, line, run_dir / f"stage-{probe}.json", run, what, output)
                figures[probe] = json.loads(output.read_text())
        return figures

    with ThreadPoolExecutor(jobs) as pool:
        results = dict(zip(journey.runs, pool.map(train_and_evaluate, journey.runs), strict=True))
    if "report" in journey.probes:
        places = [str(out / "runs" / name) for name in journey.runs]
        commands.call("", "sacl-eval", "report", *places, "--out", str(out / "report.html"))
    return write_report(out, journey, results, [(line, commands.times.get(line)) for line in commands.lines])


def evaluation(
    probe: str, run: Path, shards: dict[str, Path], tests: list[str], device: str, options: dict[str, Any]
) -> list[str]:
    """The command line of one evaluation: what it takes of the journey's own, and its options of the recipe.

    An option that names a set is its directory. What is not said: all tests, or the first where it takes one; the
    stimuli are the set `conflict`.
    """
    takes = {flag for parameter in eval_main.commands[probe].params for flag in parameter.opts}
    usual: dict[str, Any] = {"run": str(run), "shards": "train", "device": device}
    usual |= {"images": tests[0]} if probe == "embed" else {}
    usual |= {"test-shards": tests[0] if probe == "corruption" else tests}
    usual |= {"stimuli": "conflict"} if "conflict" in shards else {}
    chosen = {key: value for key, value in usual.items() if f"--{key}" in takes}
    aliases = {"test": "test-shards", "train": "shards"}
    chosen |= {aliases.get(key, key.replace("_", "-")): value for key, value in options.items()}

    def place(value: Any) -> Any:
        if isinstance(value, list):
            return [place(item) for item in value]
        return str(shards[value]) if isinstance(value, str) and value in shards else value

    return ["sacl-eval", probe, *flags_of({key: place(value) for key, value in chosen.items()})]


def _is_folder(value: Any) -> bool:
    return isinstance(value, str) and Path(value).is_dir()


def _is_trained(run_dir: Path) -> bool:
    if not (run_dir / "config.toml").is_file():
        return False
    epochs = tomllib.loads((run_dir / "config.toml").read_text())["epochs"]
    metrics = run_dir / "metrics.jsonl"
    done = len(metrics.read_text().splitlines()) if metrics.is_file() else 0
    return done >= epochs and any(run_dir.glob("checkpoint-*.pt"))


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
