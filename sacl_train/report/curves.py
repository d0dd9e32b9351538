"""Training curves as an image."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from texturegen.storage.atomic import write_atomically


@dataclass(frozen=True)
class Panel:
    """One plot of the training curves.

    Attributes
    ----------
    title : str
        Short title above the plot.
    caption : str
        Caption of the plot in the HTML report.
    unit : str
        Label of the vertical axis; values are multiplied by 100 if it is "%".
    keys : tuple of str
        Metrics of metrics.jsonl, one curve each.
    limits : tuple of float or None
        Range of the vertical axis; None: chosen from the values.
    """

    title: str
    caption: str
    unit: str
    keys: tuple[str, ...]
    limits: tuple[float, float] | None = None

    def points(self, rows: list[dict[str, Any]], key: str) -> list[tuple[int, float]]:
        """Return (epoch, value) of one metric, for the rows of metrics.jsonl that have it."""
        factor = 100 if self.unit == "%" else 1
        return [(row["epoch"], row[key] * factor) for row in rows if row.get(key) is not None]


PANELS = (
    Panel("Training loss", "Training loss", "loss", ("loss",)),
    Panel(
        "Similarity of queries to keys",
        "Mean cosine similarity of a query to its own key (positive), to other images' keys (negative) and to its own "
        "texture",
        "cosine",
        ("positive_similarity", "negative_similarity", "texture_similarity"),
    ),
    Panel(
        "Spread of the embeddings",
        "Spread of the embeddings: 1 if they are evenly spread, 0 if they have collapsed to one point",
        "spread",
        ("embedding_std",),
        (0, 1.05),
    ),
    Panel(
        "Effective rank",
        "Effective rank of the features (RankMe): it falls when dimensions collapse; at most their number",
        "rank",
        ("rankme",),
    ),
    Panel(
        "Top-1 while training",
        "Top-1 accuracy for monitoring: kNN with queries that are held out (training images if held_out is 0), and the "
        "online probe on training images; figures for test images are in the table of probes",
        "%",
        ("knn", "online_top1"),
    ),
)
LABELS = {
    "positive_similarity": "positive",
    "negative_similarity": "negative",
    "texture_similarity": "texture",
    "knn": "kNN",
    "online_top1": "online probe",
}


def draw_curves(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write a PNG of the training curves by epoch. Metrics that are missing from the run are left out.

    Parameters
    ----------
    path : Path
        The file.
    rows : list of dict
        The rows of metrics.jsonl.
    """
    from matplotlib.figure import Figure  # unlike pyplot, needs no display and has no global state
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(16, 3), layout="constrained")
    for axes, panel in zip(figure.subplots(1, len(PANELS)), PANELS, strict=True):
        for key in panel.keys:
            if points := panel.points(rows, key):
                axes.plot(*zip(*points, strict=True), marker=".", label=LABELS.get(key))
        axes.set(title=panel.title, xlabel="epoch", ylabel=panel.unit)
        axes.title.set_fontsize(11)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
        if panel.limits is not None:
            axes.set_ylim(panel.limits)
        axes.grid(alpha=0.3)
        if len(panel.keys) > 1 and axes.lines:
            axes.legend(fontsize=8)
    write_atomically(path, lambda file: figure.savefig(file, format="png", dpi=110))
