"""The commands of `sacl-eval` that test a probe on images unlike those that it was fitted on."""

from pathlib import Path
from typing import Any

import click

from sacl_train.cli.command import TorchCommand
from sacl_train.cli.probes import (
    COUNT,
    IMAGES,
    PATH,
    PROBE,
    finish,
    percent,
    probe_epochs_option,
    probe_options,
    seed_option,
    test_option,
)
from texturegen.console import option

probe_option = option(
    "--probe",
    default="linear",
    show_default=True,
    help="Fitted on untouched images: linear, knn or ridge.",
    section=PROBE,
)


@click.command("shape-bias", cls=TorchCommand)
@probe_options("shape-bias")
@option(
    "--stimuli", required=True, help="Folder of CLASS/SHAPE<k>-TEXTURE<k>.png, or shapes:conflict.", section="Images"
)
@probe_epochs_option
@seed_option
def shape_bias(run: Path, output: Path | None, **options: Any) -> None:
    """Shape bias of a linear probe on cue-conflict stimuli.

    Geirhos et al. 2019. Only stimuli with both shape and texture among the training classes are
    scored.
    """
    from sacl_train.evaluate.shape_bias import evaluate_shape_bias

    figures = evaluate_shape_bias(run, **options)
    rows = [
        [name, str(row["stimuli"]), *(percent(row[key]) for key in ("shape_decisions", "texture_decisions", "bias"))]
        for name, row in {"all": figures, **figures["classes"]}.items()
    ]
    finish(figures, run, output, ["shape", "stimuli", "shape decisions", "texture decisions", "bias"], rows)


@click.command(cls=TorchCommand)
@probe_options("corruption", test_option)
@option(
    "--images", type=COUNT, help="Number of test images, evenly spaced over the set  [default: all]", section="Images"
)
@option(
    "--severities",
    default=(1, 2, 3, 4, 5),
    multiple=True,
    type=click.IntRange(1, 5),
    show_default=True,
    help="Severity of the corruptions; may be repeated.",
    section=PROBE,
)
@probe_epochs_option
@seed_option
def corruption(run: Path, output: Path | None, **options: Any) -> None:
    """Error of a linear probe under fifteen corruptions.

    Hendrycks & Dietterich 2019.
    """
    from sacl_train.evaluate.corruption import evaluate_corruption

    figures = evaluate_corruption(run, **options)
    rows = [[name, *map(percent, errors)] for name, errors in figures["errors"].items()]
    clean, mean = (
        f"{figures[f'{name}_error']:.1%} ({_interval(figures[f'{name}_interval'])})" for name in ("clean", "mean")
    )
    means = f"clean {clean}, mean of all corruptions {mean}; 95 % intervals over the test images"
    finish(figures, run, output, ["error by severity", *map(str, figures["severities"])], rows, below=[means])


@click.command(cls=TorchCommand)
@probe_options("ood", test_option)
@option("--ood", multiple=True, help=f"Out-of-distribution images; may be repeated. {IMAGES}", section="Images")
@option(
    "--textures",
    is_flag=True,
    help="The textures of the test shards are an out-of-distribution set too.",
    section="Images",
)
@option(
    "--k", default=50, show_default=True, type=COUNT, help="Neighbour whose distance is the score knn.", section=PROBE
)
@probe_epochs_option
@seed_option
def ood(run: Path, ood: tuple[str, ...], output: Path | None, **options: Any) -> None:
    """Detect images of other sets by four scores.

    Distance to the k-th neighbour (Sun et al. 2022), Mahalanobis distance (Lee et al. 2018), CSI's score (Tack et al.
    2020) and the largest softmax of a linear probe. --test is the in-distribution set, --train the reference.
    """
    from sacl_train.evaluate.ood import evaluate_ood

    figures = evaluate_ood(run, ood=list(ood), **options)
    rows = [
        [
            row["set"] if row["split"] is None else f"{row['split']} ({row['set']})",
            row["variant"],
            str(row["images"]),
            *(percent(row[key]) for key in ("auroc", "aupr", "fpr95")),
        ]
        for row in figures["test"]
    ]
    inside = f"in-distribution: {figures['in_distribution']}, {figures['in_distribution_images']} images"
    heads = ["out of distribution", "score", "images", "AUROC", "AUPR", "FPR@95"]
    finish(figures, run, output, heads, rows, above=[inside])


@click.command(cls=TorchCommand)
@probe_options("suppression", test_option)
@probe_option
def suppression(run: Path, output: Path | None, **options: Any) -> None:
    """Accuracy when shape, texture or colour is suppressed.

    Burgert et al. 2025. The accuracy on changed test images is also given relative to that on the untouched ones, with
    a 95 % interval over the test images.
    """
    from sacl_train.evaluate.suppression import evaluate_suppression

    figures = evaluate_suppression(run, **options)
    rows = [
        [row["variant"], str(row["images"]), percent(row["top1"]), percent(row["relative"]), _interval(row["interval"])]
        for row in figures["test"]
    ]
    finish(figures, run, output, ["", "images", "top1", "relative", "95 % interval"], rows)


@click.command(cls=TorchCommand)
@probe_options("backgrounds", test_option)
@option(
    "--masks",
    type=PATH,
    help="Folder of masks for a folder of test images: CLASS/NAME.png for CLASS/NAME.jpg.",
    section="Images",
)
@probe_option
def backgrounds(run: Path, output: Path | None, **options: Any) -> None:
    """Accuracy with objects on other backgrounds.

    Xiao et al. 2021 (ImageNet-9). --test is shapes:SPLIT, or a folder of class folders with --masks. The background gap
    is the accuracy on backgrounds of the object's class minus that on backgrounds of any class.
    """
    from sacl_train.evaluate.backgrounds import evaluate_backgrounds

    figures = evaluate_backgrounds(run, **options)
    rows = [
        [row["variant"], str(row["images"]), percent(row["top1"]), _interval(row["interval"])]
        for row in figures["test"]
    ]
    gaps = []
    for gap in figures["gaps"]:
        name = f"background gap, {gap['variant']}" if gap["variant"] else "background gap"
        gaps.append(f"{name}: {percent(gap['gap'])} ({_interval(gap['interval'])})")
    finish(figures, run, output, ["", "images", "top1", "95 % interval"], rows, below=gaps)


def _interval(interval: list[float] | None) -> str:
    return "-" if interval is None else f"{interval[0]:.1%} to {interval[1]:.1%}"


COMMANDS = (shape_bias, corruption, ood, suppression, backgrounds)
