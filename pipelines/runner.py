"""Run a recipe from images to figures by the command line tools; finished builds and runs are skipped."""

import json
import tomllib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue
from typing import Any, NamedTuple

from pipelines.checks import check_journey
from pipelines.commands import Commands
from pipelines.options import evaluation
from pipelines.recipe import Journey
from pipelines.report import write_report
from pipelines.stages import (
    assign_devices,
    claim_run,
    describe_run,
    digest_folder,
    digest_shards,
)
from sacl_train.report.figures import read_figures
from texturegen.sources import SOURCES
from texturegen.system.threads import count_cpus


class Reports(NamedTuple):
    """Paths of the reports: `markdown`, and `html` unless plotly is missing."""

    markdown: Path
    html: Path | None


def run(journey: Journey, out: Path, root: str | None = None, device: str = "auto", jobs: int = 1) -> Reports:
    """Build the sets, train the runs, evaluate each, and write the reports.

    A stage is skipped if its output exists and was made with the same settings and data. Results of other settings are
    set aside (see `stages`).

    Parameters
    ----------
    journey : Journey
        The recipe, from `load_recipe`.
    out : Path
        Directory for OUT/shards/SET, OUT/runs/RUN, OUT/report.md and OUT/report.html.
    root : str, optional
        Directory of the images of the sets that name none themselves.
    device : str
        "auto", a device, or several ("cuda:0,cuda:1") that each train one run at a time.
    jobs : int
        Runs to train at once, with the cores divided evenly among them. A small batch does not keep two cores busy.

    Returns
    -------
    Reports
        Paths of the reports.

    Raises
    ------
    UserError
        A setting is invalid, or a command failed and has printed the reason.
    """
    assigned = assign_devices(device, jobs)
    plans = check_journey(journey, root, assigned)
    out.mkdir(parents=True, exist_ok=True)
    devices = SimpleQueue[str]()
    for name in assigned:
        devices.put(name)
    jobs = devices.qsize()
    commands = Commands(out, max(1, count_cpus() // jobs))

    shards = {name: out / "shards" / name for name in journey.sets}
    for name, options in journey.sets.items():
        entry = SOURCES.get(options["dataset"])
        commands.build(shards[name], options, root if entry and entry.needs_root else None, plans[name])
    digests = {name: digest_shards(directory) for name, directory in shards.items()}
    preview = out / "preview.png"
    line = ("texturegen", "preview", str(shards["train"]), "-o", str(preview))
    commands.stage("", line, out / "preview.json", {}, digests["train"], preview)

    def train_and_evaluate(name: str) -> dict[str, Any]:
        device, label = devices.get(), name if jobs > 1 else ""
        try:
            _train(commands, label, journey.runs[name], out / "runs" / name, shards["train"], device)
            return _evaluate(commands, label, journey, name, out / "runs" / name, shards, digests, device)
        finally:
            devices.put(device)

    with ThreadPoolExecutor(jobs) as pool:
        results = dict(zip(journey.runs, pool.map(train_and_evaluate, journey.runs), strict=True))
    html = _write_html([out / "runs" / name for name in journey.runs], out / "report.html")
    steps = [(line, commands.times.get(line)) for line in commands.lines]
    markdown = write_report(out, journey, results, steps, html)
    return Reports(markdown, html)


def _train(
    commands: Commands, label: str, settings: dict[str, Any], directory: Path, shards: Path, device: str
) -> None:
    assignments = [text for key, value in settings.items() for text in ("--set", f"{key}={json.dumps(value)}")]
    line = ["sacl-train", "--out", str(directory), "--shards", str(shards), "--device", device, *assignments]
    claim_run(directory, settings, shards)
    if _is_trained(directory):
        commands.skip(label, *line)
    else:
        commands.call(label, *line)
    if not _is_trained(directory):
        raise KeyboardInterrupt  # on Ctrl-C, `sacl-train` saves its state and exits with status 0


def _evaluate(
    commands: Commands,
    label: str,
    journey: Journey,
    name: str,
    directory: Path,
    shards: dict[str, Path],
    digests: dict[str, str],
    device: str,
) -> dict[str, Any]:
    """Evaluate one run; return probe -> figures."""
    figures = {}
    run = describe_run(journey.runs[name], digests["train"])
    for probe, options in journey.probes.items():
        output = directory / f"eval-{probe}.json"
        line = evaluation(probe, directory, shards, journey.tests, device, {**options, "json": str(output)})
        inputs = [probe, options, digests, {k: digest_folder(v) for k, v in options.items() if _is_folder(v)}]
        commands.stage(label, line, directory / f"stage-{probe}.json", run, inputs, output)
        figures[probe] = read_figures(output)
    return figures


def _write_html(runs: list[Path], path: Path) -> Path | None:
    """Write the HTML report; if plotly is missing, print how to install it and return None."""
    from sacl_train.report.page import write_page

    try:
        import plotly  # noqa: F401
    except ImportError:
        print(f"{path}: not written, because its charts need plotly; pip install 'sacl-texture[report]'", flush=True)
        return None
    return write_page(runs, path)


def _is_folder(value: Any) -> bool:
    return isinstance(value, str) and Path(value).is_dir()


def _is_trained(run: Path) -> bool:
    if not (run / "config.toml").is_file():
        return False
    epochs = tomllib.loads((run / "config.toml").read_text("utf-8"))["epochs"]
    metrics = run / "metrics.jsonl"
    done = len(metrics.read_text().splitlines()) if metrics.is_file() else 0
    return done >= epochs and any(run.glob("checkpoint-*.pt"))
