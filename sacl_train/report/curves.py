"""Training curves as a picture."""

from pathlib import Path
from typing import Any

from texturegen.storage.atomic import write_atomically

# Title, unit, keys of metrics.jsonl.
PANELS = (
    ("loss", "loss", ("loss",)),
    ("similarity of a query to", "cosine", ("positive_similarity", "negative_similarity", "texture_similarity")),
    ("spread of embeddings (1: even, 0: collapsed)", "", ("embedding_std",)),
    ("top-1 on training images, while training", "%", ("knn", "online_top1")),
)


def label_of(key: str) -> str:
    """What a figure of a panel is called beside the others."""
    return {"knn": "kNN", "online_top1": "online probe"}.get(key, key.removesuffix("_similarity"))


def draw_curves(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write a PNG of the metrics over epochs; `rows` are those of metrics.jsonl. Figures a run lacks are left out."""
    from matplotlib.figure import Figure  # not pyplot: no display, no global state

    figure = Figure(figsize=(12, 2.8), layout="constrained")
    for axes, (title, unit, names) in zip(figure.subplots(1, len(PANELS)), PANELS, strict=True):
        for name in names:
            factor = 100 if unit == "%" else 1
            points = [(row["epoch"], row[name] * factor) for row in rows if row.get(name) is not None]
            if points:
                axes.plot(*zip(*points, strict=True), marker=".", label=label_of(name))
        axes.set(title=title, xlabel="epoch", ylabel=unit)
        axes.title.set_fontsize(9)
        axes.grid(alpha=0.3)
        if len(names) > 1 and axes.lines:
            axes.legend(fontsize=8)
    write_atomically(path, lambda f: figure.savefig(f, format="png", dpi=110))
