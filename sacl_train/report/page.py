"""The HTML report of one or several runs: a single file that works offline. `report.html` is its template.

It is made from the files in the runs' directories: config.toml, metrics.jsonl, sheet.png, and the output of `sacl-eval`
(eval-*.json, embedding.parquet and embedding.png). Missing output of `sacl-eval` is mentioned in the report.
"""

import json
import shlex
import statistics
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from html import escape
from pathlib import Path
from string import Template
from typing import Any

import numpy as np

from sacl_train.report.curves import LABELS, PANELS, Panel
from sacl_train.report.elements import Chart, chart_element, colour, figure, image, percent_table, table, titled
from sacl_train.report.figures import describe_probes, flatten, read_figures
from texturegen.errors import DamagedError, MissingError, UserError
from texturegen.storage.atomic import write_atomically

TEMPLATE = Path(__file__).with_name("report.html")
SETTINGS = ("method", "encoder", "attention", "weak", "texture_role", "epochs", "batch_size", "lr", "seed")
# Metrics of an epoch whose medians are in the table of runs -> heading, format. The last two are of GPUs.
SPEEDS = {
    "samples_per_second": ("images/s", ",.0f"),
    "mfu": ("of the matrix peak", ".0%"),
    "peak_memory_gb": ("peak memory, GB", ".1f"),
}
MAX_POINTS = 2000  # per map
DASHES = ("solid", "dash", "dot")  # one for each metric of a chart


@dataclass(frozen=True)
class _Run:
    """The files of a run.

    Attributes
    ----------
    directory : Path
    config : dict
        config.toml, parsed.
    config_text : str
        Text of config.toml.
    rows : list of dict
        Rows of metrics.jsonl.
    figures : dict
        Name of the probe -> the JSON that `sacl-eval` wrote.
    """

    directory: Path
    config: dict[str, Any]
    config_text: str
    rows: list[dict[str, Any]]
    figures: dict[str, dict[str, Any]]


def write_page(directories: list[Path], out: Path) -> Path:
    """Write the HTML report of runs.

    Parameters
    ----------
    directories : list of Path
        Directories of `sacl-train`.
    out : Path
        The HTML file.

    Returns
    -------
    Path
        `out`.

    Raises
    ------
    MissingError
        If a directory holds no run, or plotly is not installed.
    DamagedError
        If a file of a run cannot be parsed.
    UserError
        If a run is given twice.
    """
    try:
        from plotly.offline import get_plotlyjs
    except ImportError:
        raise MissingError("the report's charts need plotly; pip install 'sacl-texture[report]'") from None
    names = _short_names(directories)
    runs = {name: _read_run(directory) for name, directory in zip(names, directories, strict=True)}
    charts: list[Chart] = []
    sections = [_runs_section(runs), _training_section(runs, charts), _probes_section(runs)]
    sections += [_pictures_section(name, run, charts) for name, run in runs.items()]
    sections.append(_settings_section(runs))
    text = Template(TEMPLATE.read_text("utf-8")).substitute(
        title=escape(f"SACL: {', '.join(names)}" if len(names) < 4 else f"SACL: {len(names)} runs"),
        subtitle=escape("Written by sacl-eval report. Every figure comes from a file in the runs' directories."),
        body="\n".join(sections),
        library=get_plotlyjs(),
        charts=json.dumps([vars(chart) for chart in charts]).replace("</", "<\\/"),
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(out, text)
    return out


def _short_names(directories: list[Path]) -> list[str]:
    """Return the shortest suffixes of the paths, of equal length, that are unique."""
    paths = [directory.resolve().parts for directory in directories]
    for length in range(1, max(map(len, paths)) + 1):
        names = ["/".join(parts[-length:]) for parts in paths]
        if len(set(names)) == len(names):
            return names
    raise UserError("a run is given twice; give each run once")


def _read_run(directory: Path) -> _Run:
    if not (directory / "config.toml").is_file():
        raise MissingError(
            f"{directory}: no run here (config.toml is missing); "
            f"train one with `sacl-train --out {shlex.quote(str(directory))}`"
        )
    metrics = directory / "metrics.jsonl"
    try:
        text = (directory / "config.toml").read_text("utf-8")
        return _Run(
            directory,
            tomllib.loads(text),
            text,
            [json.loads(line) for line in metrics.read_text().splitlines()] if metrics.is_file() else [],
            {
                path.stem.removeprefix("eval-"): read_figures(path)
                for path in sorted(directory.glob("eval-*.json"), key=lambda path: path.stem)
            },
        )
    except ValueError as error:
        raise DamagedError(
            f"{directory}: config.toml or metrics.jsonl is damaged ({error}); repeat the command that wrote it"
        ) from None


def _runs_section(runs: Mapping[str, _Run]) -> str:
    speeds = [key for key in SPEEDS if any(key in row for run in runs.values() for row in run.rows)]
    rows = [
        [
            name,
            *(str(run.config.get(key, "-")) for key in SETTINGS),
            str(len(run.rows)),
            *(_median(run.rows, key, SPEEDS[key][1]) for key in speeds),
        ]
        for name, run in runs.items()
    ]
    heads = ["run", *(key.replace("_", " ") for key in SETTINGS), "epochs done", *(SPEEDS[key][0] for key in speeds)]
    return "<h2>Runs</h2>" + table(heads, rows, words=True)


def _median(rows: list[dict[str, Any]], key: str, form: str) -> str:
    """Return the median of a metric over the epochs, formatted; "-" if no epoch has it."""
    values = [row[key] for row in rows if key in row]
    return format(statistics.median(values), form) if values else "-"


def _training_section(runs: Mapping[str, _Run], charts: list[Chart]) -> str:
    figures = []
    for panel in PANELS:
        traces = _traces(panel, runs)
        if traces:
            last = max(max(trace["x"]) for trace in traces)
            charts.append(Chart(f"chart{len(charts)}", traces, panel.unit, -(-last // 8), panel.limits))
            figures.append(figure(chart_element(charts[-1]), f"{panel.caption}."))
    if not figures:
        return "<h2>Training</h2><p class='note'>No run has been trained.</p>"
    return f'<h2>Training</h2><div class="charts">{"".join(figures)}</div>'


def _traces(panel: Panel, runs: Mapping[str, _Run]) -> list[dict[str, Any]]:
    """Return a Plotly trace for each run and metric of a panel; the colour identifies the run, the dash the metric."""
    traces = []
    for index, (name, run) in enumerate(runs.items()):
        for dash, key in zip(DASHES, panel.keys, strict=False):
            if points := panel.points(run.rows, key):
                traces.append(
                    {
                        "x": [x for x, _ in points],
                        "y": [y for _, y in points],
                        "name": escape(name if len(panel.keys) == 1 else f"{name}: {LABELS[key]}"),
                        "mode": "lines+markers",
                        "line": {"color": colour(index), "dash": dash},
                        "marker": {"size": 5},
                    }
                )
    return traces


def _probes_section(runs: Mapping[str, _Run]) -> str:
    values: dict[str, dict[str, float]] = {name: {} for name in runs}
    labels: dict[str, None] = {}  # the rows of a probe stay together, also where runs were scored on different sets
    for probe in sorted({probe for run in runs.values() for probe in run.figures}):
        for name, run in runs.items():
            found = flatten(probe, run.figures.get(probe, {}))
            values[name] |= found
            labels |= dict.fromkeys(found)
    if not any(values.values()):
        return "<h2>Probes</h2><p class='note'>None yet; see <code>sacl-eval --help</code>.</p>"
    note = "<p class='note'>In per cent. The JSON file of each probe holds the command and the package versions.</p>"
    heads = ["probe", "protocol", "network", "BatchNorm statistics", "precision", "runs"]
    of_runs = {name: run.figures for name, run in runs.items()}
    corruptions = {name: _mean_errors(run.figures.get("corruption", {})) for name, run in runs.items()}
    biases = {name: _shape_biases(run.figures.get("shape-bias", {})) for name, run in runs.items()}
    tables = [
        f"<h2>Probes</h2>{note}{percent_table('figure', values, labels)}",
        titled("Error by corruption, mean over the severities", percent_table("corruption", corruptions)),
        titled("Shape bias, by the shape of the stimulus", percent_table("shape", biases)),
        titled("How the probes were measured", table(heads, describe_probes(of_runs), words=True)),
    ]
    return "".join(tables)


def _mean_errors(figures: dict[str, Any]) -> dict[str, float]:
    return {name.replace("_", " "): sum(errors) / len(errors) for name, errors in figures.get("errors", {}).items()}


def _shape_biases(figures: dict[str, Any]) -> dict[str, float]:
    return {name: row["bias"] for name, row in figures.get("classes", {}).items() if row["bias"] is not None}


def _pictures_section(name: str, run: _Run, charts: list[Chart]) -> str:
    parts = [f"<h2>Pictures of {escape(name)}</h2>"]
    sheet, features, neighbours = (run.directory / file for file in ("sheet.png", "embedding.parquet", "embedding.png"))
    if sheet.is_file():
        caption = "Training images, each with its texture (if the shards have textures) and two weak views."
        parts.append(figure(image(sheet, caption), caption))
    if features.is_file():
        charts.append(_read_map(features, f"chart{len(charts)}"))
        element = chart_element(charts[-1], "chart map")
        caption = "Map of the features, a point per image, coloured by class. Hover over a point to see its key."
        parts.append(figure(element, caption))
    else:
        command = escape(shlex.join(["sacl-eval", "embed", "--run", str(run.directory)]))
        parts.append(f"<p class='note'>There is no map yet; create one with <code>{command}</code>.</p>")
    if features.is_file() and neighbours.is_file():
        caption = "Each row: an image and its nearest neighbours by cosine similarity of the features, nearest first."
        parts.append(figure(image(neighbours, caption), caption))
    return "\n".join(parts)


def _read_map(path: Path, chart_id: str) -> Chart:
    """Read the map written by `sacl-eval embed`; one trace per class."""
    import pyarrow.parquet as pq

    from texturegen.storage.arrow import open_for_arrow

    points = pq.read_table(open_for_arrow(path), columns=["key", "class", "x", "y"])
    picked = np.unique(np.linspace(0, len(points) - 1, min(MAX_POINTS, len(points))).astype(int))
    points = points.take(picked)
    classes = np.array(points["class"].to_pylist())
    traces = []
    for index, name in enumerate(sorted(set(classes.tolist()))):
        part = points.take(np.flatnonzero(classes == name))
        traces.append(
            {
                "x": [round(x, 4) for x in part["x"].to_pylist()],
                "y": [round(y, 4) for y in part["y"].to_pylist()],
                "text": [escape(key) for key in part["key"].to_pylist()],
                "name": escape(name),
                "mode": "markers",
                "marker": {"size": 5, "color": colour(index), "opacity": 0.8},
                "hovertemplate": "%{text}<extra>%{fullData.name}</extra>",
            }
        )
    return Chart(chart_id, traces)


def _settings_section(runs: Mapping[str, _Run]) -> str:
    parts = ["<h2>Settings and versions</h2>"]
    for name, run in runs.items():
        text = run.config_text
        evaluations = [figures for figures in run.figures.values() if "versions" in figures]
        if evaluations:
            versions = ", ".join(f"{package} {version}" for package, version in evaluations[0]["versions"].items())
            commands = "\n".join(figures["command"] for figures in evaluations)
            text = f"{text}\n# {versions}\n{commands}"
        parts.append(f"<details><summary>{escape(name)}</summary><pre>{escape(text)}</pre></details>")
    return "\n".join(parts)
