"""Elements of the HTML report: charts, pictures and tables, with everything escaped."""

import base64
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

# Okabe & Ito 2008 and more; colour-blind readers can distinguish them on light and dark backgrounds.
COLOURS = (
    *("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00"),
    *("#56b4e9", "#9467bd", "#8c8c8c", "#b8a400", "#a0522d"),
)


@dataclass(frozen=True)
class Chart:
    """An interactive chart; report.html draws it from JSON into the element `id`.

    Attributes
    ----------
    id : str
        Id of the HTML element.
    data : list of dict
        Plotly traces.
    unit : str
        Label of the vertical axis.
    step : int or None
        Distance between the ticks of the horizontal axis; None: Plotly's choice.
    limits : tuple of float or None
        Range of the vertical axis; None: Plotly's choice.
    """

    id: str
    data: list[dict[str, Any]]
    unit: str = ""
    step: int | None = None
    limits: tuple[float, float] | None = None


def figure(content: str, caption: str) -> str:
    """Return HTML `content` with a caption, plain text."""
    return f"<figure>{content}<figcaption>{escape(caption)}</figcaption></figure>"


def chart_element(chart: Chart, classes: str = "chart") -> str:
    """Return the element that a chart is drawn into."""
    return f'<div class="{classes}" id="{chart.id}"></div>'


def image(path: Path, text: str) -> str:
    """Return a PNG as part of the page, with its description."""
    content = base64.b64encode(path.read_bytes()).decode()
    return f'<img src="data:image/png;base64,{content}" alt="{escape(text)}">'


def titled(title: str, content: str) -> str:
    """Return HTML `content` under a heading, or "" if there is no content."""
    return f"<h3>{escape(title)}</h3>{content}" if content else ""


def percent_table(head: str, runs: Mapping[str, dict[str, float]], labels: Iterable[str] = ()) -> str:
    """Return a table of fractions in per cent, with a column per run; "" if there are none.

    Rows are in the order of `labels`, then of the runs.
    """
    labels = dict.fromkeys([*labels, *(label for values in runs.values() for label in values)])
    rows = [
        [label, *(f"{100 * values[label]:.1f}" if label in values else "-" for values in runs.values())]
        for label in labels
    ]
    return table([head, *runs], rows) if rows else ""


def table(heads: list[str], rows: list[list[str]], words: bool = False) -> str:
    """Return a table of plain text. One of `words` breaks lines; one of figures does not, and scrolls if it is wide."""
    head = "".join(f"<th>{escape(cell)}</th>" for cell in heads)
    lines = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    kind = ' class="words"' if words else ""
    return f'<div class="scroll"><table{kind}><thead><tr>{head}</tr></thead><tbody>{lines}</tbody></table></div>'


def colour(index: int) -> str:
    """Return the colour of the run, or the class, with this index."""
    return COLOURS[index % len(COLOURS)]
