"""The figures of a grid's cells: their labels, how they are kept, and the lines of a table of them."""

from typing import Any

Runs = list[dict[str, Any]]  # the figures (0..1) of one cell, one dict per seed, each with its "seed"
Found = dict[tuple[str, str], Runs]  # (row, column) -> runs

# Key of a cell's figures -> label, factor.
FIGURES = {
    "linear": ("linear top-1, %", 100.0),
    "top5": ("linear top-5, %", 100.0),
    "knn": ("kNN (k = 20) top-1, %", 100.0),
    "destroyed": ("linear top-1 on shuffled patches, %", 100.0),
    **{
        f"without_{cue}": (f"share of the accuracy left without {cue}, %", 100.0)
        for cue in ("shape", "texture", "colour")
    },
    "corruption": ("corruption error, %", 100.0),
    "shape_bias": ("shape bias, %", 100.0),
    "ood": ("AUROC of other images, %", 100.0),
    "ood_textures": ("AUROC of textures, %", 100.0),
    **{
        f"novelty_{score}": (f"AUROC, {name}, %", 100.0)
        for score, name in (
            ("knn", "kNN"),
            ("mahalanobis", "Mahalanobis"),
            ("csi", "CSI eq. 6"),
            ("shift", "shift head"),
            ("csi-shifts", "CSI eq. 9"),
        )
    },
    "told_apart": ("texture detection (chance 50), %", 100.0),
    "one_direction": ("explained by one direction, %", 100.0),
    "own_texture": ("cosine to own texture", 1.0),
    "spread": ("spread of embeddings (1: even, 0: collapsed)", 1.0),
}
NOT_COMPARED = ("told_apart", "one_direction")  # descriptive figures, for which neither higher nor lower is better


def pair_by_seed(runs: Runs, base: Runs) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Return (run, base run) for every seed that both have."""
    of_seed = {run["seed"]: run for run in base}
    return [(run, of_seed[run["seed"]]) for run in runs if run["seed"] in of_seed]


def head(heads: list[str]) -> list[str]:
    """Return the first two lines of a Markdown table."""
    return [line(heads), line(["---"] * len(heads))]


def line(cells: list[str]) -> str:
    """Return a line of a Markdown table."""
    return f"| {' | '.join(cells)} |"
