"""The figures of a probe's JSON as one flat list, for tables."""

from typing import Any


def flatten(probe: str, figures: dict[str, Any]) -> dict[str, float]:
    """The figures (0..1) of what a probe wrote, by a name that tells what they are of."""
    found: dict[str, float] = {}
    for test in figures.get("test", []):
        marks = [probe, test.get("variant") or "", f"{test['share']:.0%} of labels" if "share" in test else ""]
        name = ", ".join(part for part in (*marks, str(test["split"] or test["set"])) if part)
        for key in ("top1", "top5", "texture_decisions", "destroyed"):
            if key in test:
                found[f"{name}: {key.replace('_', ' ')}"] = test[key]
    for key in ("bias", "shape_decisions", "texture_decisions", "clean_error", "mean_error"):
        if figures.get(key) is not None:
            found[f"{probe}: {key.replace('_', ' ')}"] = figures[key]
    for key in ("told_apart", "one_direction", "own_share"):
        if key in figures:
            found[f"{probe}: {key.replace('_', ' ')}"] = figures[key]
    return found
