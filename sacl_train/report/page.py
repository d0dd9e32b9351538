"""The HTML report of one run or several: one file that needs no network (`report.html` beside this is its frame).

It shows what lies in the runs' directories: metrics.jsonl, what `sacl-eval` wrote (eval-*.json, embedding.parquet and
.png), sheet.png and config.toml. What is not there is left out, and said.
"""

import base64
import json
from html import escape
from pathlib import Path
from string import Template
from typing import Any

import numpy as np

from sacl_train.report.curves import PANELS, label_of
from sacl_train.report.figures import flatten
from texturegen.errors import UserError
from texturegen.storage.atomic import write_atomically

FRAME = Path(__file__).with_name("report.html")
DASHES = ("solid", "dash", "dot")
SETTINGS = ("method", "encoder", "attention", "weak", "texture_role", "epochs", "batch_size", "lr", "seed")
POINTS = 2000  # of a map


def write_page(runs: list[Path], out: Path) -> Path:
    """Write the report to `out`; UserError when a directory holds no run or plotly is missing."""
    try:
        from plotly.offline import get_plotlyjs
    except ImportError:
        raise UserError("the report's charts need plotly: pip install 'sacl-texture[report]'") from None
    names = _short_names(runs)
    found = {name: _read_run(run) for name, run in zip(names, runs, strict=True)}
    charts: list[dict[str, Any]] = []
    body = [_settings(found), _curves(found, charts), _probes(found)]
    for name, run in zip(names, runs, strict=True):
        body.append(_pictures(name, run, charts))
    body.append(_configs(found))
    text = Template(FRAME.read_text()).substitute(
        title=escape(f"SACL: {', '.join(names)}" if len(names) < 4 else f"SACL: {len(names)} runs"),
        subtitle=escape("Made by sacl-eval report. Every figure comes from a file in the runs' directories."),
        body="\n".join(body),
        library=get_plotlyjs(),
        charts=json.dumps(charts).replace("</", "<\\/"),
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(out, text)
    return out


def _read_run(run: Path) -> dict[str, Any]:
    if not (run / "config.toml").is_file():
        raise UserError(f"{run}: no run here (config.toml is missing); train one with `sacl-train --out {run}`")
    import tomllib

    metrics = run / "metrics.jsonl"
    evaluations = sorted(run.glob("eval-*.json"))
    try:
        return {
            "config": tomllib.loads((run / "config.toml").read_text()),
            "text": (run / "config.toml").read_text(),
            "rows": [json.loads(line) for line in metrics.read_text().splitlines()] if metrics.is_file() else [],
            "figures": {path.stem.removeprefix("eval-"): json.loads(path.read_text()) for path in evaluations},
        }
    except ValueError as error:
        raise UserError(f"{run}: a file of the run is damaged ({error})") from None


def _short_names(runs: list[Path]) -> list[str]:
    """The last parts of the paths, as many as tell them apart."""
    paths = [run.resolve().parts for run in runs]
    for length in range(1, max(map(len, paths)) + 1):
        names = ["/".join(parts[-length:]) for parts in paths]
        if len(set(names)) == len(names):
            return names
    raise UserError("the same run is given twice")


def _settings(found: dict[str, dict[str, Any]]) -> str:
    rows = [
        [name, *(str(run["config"].get(key, "-")) for key in SETTINGS), str(len(run["rows"]))]
        for name, run in found.items()
    ]
    return "<h2>Runs</h2>" + _table(["run", *(key.replace("_", " ") for key in SETTINGS), "epochs done"], rows)


def _curves(found: dict[str, dict[str, Any]], charts: list[dict[str, Any]]) -> str:
    places = []
    for title, unit, keys in PANELS:
        data = []
        for number, (name, run) in enumerate(found.items()):
            for dash, key in zip(DASHES, keys, strict=False):
                factor = 100 if unit == "%" else 1
                points = [(row["epoch"], row[key] * factor) for row in run["rows"] if row.get(key) is not None]
                if points:
                    label = label_of(key)
                    data.append(
                        {
                            "x": [x for x, _ in points],
                            "y": [y for _, y in points],
                            "name": name if len(keys) == 1 else f"{name}: {label}",
                            "mode": "lines+markers",
                            "line": {"color": _colour(number), "dash": dash},
                            "marker": {"size": 5},
                        }
                    )
        if data:
            last = max(max(line["x"]) for line in data)
            charts.append({"id": f"chart{len(charts)}", "unit": unit, "step": -(-last // 8), "data": data})
            place = f'<div class="chart" id="{charts[-1]["id"]}"></div>'
            places.append(f"<figure><figcaption>{escape(title)}, by epoch</figcaption>{place}</figure>")
    if not places:
        return "<h2>Training</h2><p class='note'>No run has been trained.</p>"
    return f'<h2>Training</h2><div class="charts">{"".join(places)}</div>'


def _probes(found: dict[str, dict[str, Any]]) -> str:
    lines: dict[str, dict[str, float]] = {}  # figure -> run -> value
    for name, run in found.items():
        for probe, figures in run["figures"].items():
            for label, value in flatten(probe, figures).items():
                lines.setdefault(label, {})[name] = value
    if not lines:
        return "<h2>Probes</h2><p class='note'>None yet: see <code>sacl-eval --help</code>.</p>"
    rows = [
        [label, *(f"{100 * values[name]:.1f}" if name in values else "-" for name in found)]
        for label, values in lines.items()
    ]
    note = "<p class='note'>In per cent. Each probe's JSON beside the run has its command and versions.</p>"
    parts = [f"<h2>Probes</h2>{note}{_table(['figure', *found], rows)}"]
    corruptions = {name: _errors(run["figures"].get("corruption", {})) for name, run in found.items()}
    parts.append(_side_by_side("Error by corruption, mean of the severities", "corruption", corruptions))
    biases = {name: _biases(run["figures"].get("shape-bias", {})) for name, run in found.items()}
    parts.append(_side_by_side("Shape bias by the stimulus's shape", "shape", biases))
    return "".join(parts)


def _errors(figures: dict[str, Any]) -> dict[str, float]:
    return {name: sum(errors) / len(errors) for name, errors in figures.get("errors", {}).items()}


def _biases(figures: dict[str, Any]) -> dict[str, float]:
    return {name: row["bias"] for name, row in figures.get("classes", {}).items() if row["bias"] is not None}


def _side_by_side(title: str, head: str, found: dict[str, dict[str, float]]) -> str:
    """A table of shares, in per cent, a column per run; nothing where no run has any."""
    labels = dict.fromkeys(label for figures in found.values() for label in figures)
    rows = [
        [label, *(f"{100 * figures[label]:.1f}" if label in figures else "-" for figures in found.values())]
        for label in labels
    ]
    return f"<h3>{escape(title)}</h3>{_table([head, *found], rows)}" if rows else ""


def _pictures(name: str, run: Path, charts: list[dict[str, Any]]) -> str:
    parts = [f"<h2>{escape(name)}</h2>"]
    if (run / "sheet.png").is_file():
        caption = "Images, each with its texture (where there are textures) and two weak views"
        parts.append(f"<h3>{caption}</h3>{_image(run / 'sheet.png', caption)}")
    if (run / "embedding.parquet").is_file():
        charts.append(_map(run / "embedding.parquet", f"chart{len(charts)}"))
        parts.append(f'<h3>Features in the plane</h3><div class="chart map" id="{charts[-1]["id"]}"></div>')
        caption = "Each row: an image and its nearest neighbours by cosine"
        if (run / "embedding.png").is_file():
            parts.append(f"<h3>{caption}</h3>{_image(run / 'embedding.png', caption)}")
    else:
        parts.append(f"<p class='note'>No map: <code>sacl-eval embed --run {escape(str(run))}</code> makes one.</p>")
    return "\n".join(parts)


def _map(path: Path, identity: str) -> dict[str, Any]:
    import pyarrow.parquet as pq

    table = pq.read_table(path, columns=["key", "class", "x", "y"])
    picked = np.unique(np.linspace(0, len(table) - 1, min(POINTS, len(table))).astype(int))
    table = table.take(picked)
    classes = np.array(table["class"].to_pylist())
    data = []
    for number, name in enumerate(sorted(set(classes.tolist()))):
        chosen = np.flatnonzero(classes == name)
        part = table.take(chosen)
        data.append(
            {
                "x": [round(x, 4) for x in part["x"].to_pylist()],
                "y": [round(y, 4) for y in part["y"].to_pylist()],
                "text": [escape(key) for key in part["key"].to_pylist()],
                "name": escape(name),
                "mode": "markers",
                "marker": {"size": 5, "color": _colour(number), "opacity": 0.8},
                "hovertemplate": "%{text}<extra>%{fullData.name}</extra>",
            }
        )
    return {"id": identity, "unit": "", "step": None, "data": data}


def _configs(found: dict[str, dict[str, Any]]) -> str:
    parts = ["<h2>Settings and versions</h2>"]
    for name, run in found.items():
        versions: dict[str, str] = next((f["versions"] for f in run["figures"].values() if "versions" in f), {})
        commands = "\n".join(f["command"] for f in run["figures"].values() if "command" in f)
        told = ", ".join(f"{package} {number}" for package, number in versions.items())
        text = escape(f"{run['text']}\n# {told}\n{commands}" if told else run["text"])
        parts.append(f"<details><summary>{escape(name)}</summary><pre>{text}</pre></details>")
    return "\n".join(parts)


def _image(path: Path, caption: str) -> str:
    content = base64.b64encode(path.read_bytes()).decode()
    return f'<img src="data:image/png;base64,{content}" alt="{escape(caption)}">'


def _table(heads: list[str], rows: list[list[str]]) -> str:
    head = "".join(f"<th>{escape(cell)}</th>" for cell in heads)
    lines = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{lines}</tbody></table></div>'


def _colour(number: int) -> str:
    # Okabe & Ito 2008: told apart by colour-blind readers too, and on light and dark ground.
    colours = (
        "#0072b2",
        "#d55e00",
        "#009e73",
        "#cc79a7",
        "#e69f00",
        "#56b4e9",
        "#9467bd",
        "#8c8c8c",
        "#b8a400",
        "#a0522d",
    )
    return colours[number % len(colours)]
