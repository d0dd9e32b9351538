"""The `sacl-train` and `sacl-eval` commands. torch is imported when the work begins: `--help` answers at once."""

import json
import os
import shlex
import sys
from pathlib import Path
from typing import Any

import click

from texturegen import __version__
from texturegen.console import FriendlyCommand, FriendlyGroup, read_pairs, warn
from texturegen.files import write_atomically

HELP = {"help_option_names": ["-h", "--help"]}


@click.command(cls=FriendlyCommand, context_settings=HELP)
@click.option("--shards", required=True, type=click.Path(path_type=Path), help="Made by `texturegen build`.")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Directory of the run.")
@click.option("--config", type=click.Path(path_type=Path), help="TOML file of settings.")
@click.option("--set", "settings", multiple=True, callback=read_pairs, help="KEY=VALUE; goes before --config.")
@click.option("--method", help="sacl, fast-moco, mocov2, simclr, byol, simsiam or barlow  [default: sacl]")
@click.option("--encoder", help="se_resnet18, 34, 50, 101, se_resnet20 or se_resnet8  [default: se_resnet50]")
@click.option("--epochs", type=int, help="0 writes an untrained encoder  [default: 200]")
@click.option("--batch-size", type=int, help="[default: 128]")
@click.option("--texture-role", help="negative, positive or none  [default: negative for sacl, else none]")
@click.option("--order", help="global or shards  [default: global]")
@click.option("--cache", help="auto, ram or none  [default: auto]")
@click.option("--precision", help="fp32, bf16 or fp16  [default: fp32]")
@click.option("--compile/--no-compile", default=None, help="[default: no]")
@click.option("--device", help="cpu, cuda ...  [default: cuda where there is one]")
@click.option("--seed", type=int, help="[default: 0]")
@click.option("--dry-run", is_flag=True, help="Check everything, print the settings, write nothing.")
@click.version_option(__version__)
def train_main(
    shards: Path, out: Path, config: Path | None, settings: dict[str, Any], dry_run: bool, **flags: Any
) -> None:
    """Train an encoder on shards. Run the same command again to go on where it was.

    Ctrl-C and SIGTERM save a checkpoint at the next step and end with status 0.

    Settings come from their defaults, --config, --set and the flags, the later ones winning.

    On several GPUs or machines: `torchrun --nproc-per-node 4 -m sacl_train ...`.
    """
    from sacl_train.config import dump_config, load_config
    from sacl_train.loop import Stopped, train
    from sacl_train.run import plan

    given = {key: value for key, value in flags.items() if value is not None}
    asked = load_config(config, {**settings, **given})
    if dry_run:
        resolved, line = plan(asked, shards, out)
        print(f"# {line}\n{dump_config(resolved)}", end="")
        return
    first = os.environ.get("RANK", "0") == "0"
    try:
        rows = train(asked, shards, out)
    except Stopped as stopped:
        torchrun = "the same torchrun command, or " if "TORCHELASTIC_RUN_ID" in os.environ else ""
        if first:
            print(f"{out}: {stopped}; to go on: {torchrun}{shlex.join(['sacl-train', *sys.argv[1:]])}")
        return
    if not first:
        return
    if not rows:
        print(f"{out}: an untrained encoder")
        return
    last = rows[-1]
    knn = f", kNN {last['knn']:.1%}" if last.get("knn") is not None else ""
    print(f"{out}: epoch {last['epoch']}, loss {last['loss']:.3f}{knn}")


@click.group(cls=FriendlyGroup, context_settings=HELP)
@click.version_option(__version__)
def eval_main() -> None:
    """Score a trained encoder on labelled shards."""


def _probe_options(command: Any) -> Any:
    options = (
        click.option("--run", required=True, type=click.Path(path_type=Path), help="Directory of `sacl-train`."),
        click.option("--shards", required=True, type=click.Path(path_type=Path), help="Labelled training images."),
        click.option(
            "--test-shards",
            required=True,
            multiple=True,
            type=click.Path(path_type=Path),
            help="Test images; may be given again.",
        ),
        click.option("--device", default="auto", show_default=True),
        click.option("--destroy", is_flag=True, help="Score the test images with shuffled cells (4x4) too."),
        click.option("--json", "output", type=click.Path(path_type=Path), help="[default: RUN/eval-PROBE.json]"),
    )
    for option in reversed(options):
        command = option(command)
    return command


@eval_main.command()
@_probe_options
@click.option("--k", default=20, show_default=True, type=click.IntRange(1), help="Neighbours.")
@click.option("--tau", default=0.07, show_default=True, help="Temperature of the votes.")
def knn(**options: Any) -> None:
    """Weighted k nearest neighbours (Wu et al. 2018)."""
    _evaluate("knn", **options)


@eval_main.command()
@_probe_options
@click.option("--epochs", default=200, show_default=True, type=click.IntRange(1))
@click.option("--lr", default=0.9, show_default=True, type=click.FloatRange(0, min_open=True))
@click.option("--batch-size", default=128, show_default=True, type=click.IntRange(1))
@click.option("--seed", default=0, show_default=True)
def linear(**options: Any) -> None:
    """A linear layer on frozen features, trained by LARS (SACL section 3.2)."""
    _evaluate("linear", **options)


@eval_main.command()
@_probe_options
@click.option("--penalty", default=1e-2, show_default=True, type=click.FloatRange(0, min_open=True))
def ridge(**options: Any) -> None:
    """Ridge regression in closed form: a quick look, in seconds."""
    _evaluate("ridge", **options)


@eval_main.command("shape-bias")
@click.option("--run", required=True, type=click.Path(path_type=Path), help="Directory of `sacl-train`.")
@click.option("--shards", required=True, type=click.Path(path_type=Path), help="Labelled training images.")
@click.option("--stimuli", required=True, type=click.Path(path_type=Path), help="CLASS/SHAPE<k>-TEXTURE<k>.png")
@click.option("--device", default="auto", show_default=True)
@click.option("--epochs", default=200, show_default=True, type=click.IntRange(1), help="Of the linear probe.")
@click.option("--seed", default=0, show_default=True)
@click.option("--json", "output", type=click.Path(path_type=Path), help="[default: RUN/eval-shape-bias.json]")
def shape_bias(run: Path, shards: Path, stimuli: Path, output: Path | None, **settings: Any) -> None:
    """Does it read shape or texture (Geirhos et al. 2019)? On the cue-conflict stimuli whose classes it knows."""
    from sacl_train.evaluate.shape_bias import evaluate_shape_bias

    figures = evaluate_shape_bias(run, shards, stimuli, **settings)
    output = _write_figures(figures, output or run / "eval-shape-bias.json")
    rows = {"all": figures, **figures["classes"]}
    print("shape".ljust(10), "stimuli", "shape decisions", "texture decisions", "  bias", sep="  ")
    for name, row in rows.items():
        cells = [row[key] for key in ("shape_decisions", "texture_decisions", "bias")]
        texts = ["-" if cell is None else f"{cell:.1%}" for cell in cells]
        print(
            name.ljust(10),
            str(row["stimuli"]).rjust(7),
            texts[0].rjust(15),
            texts[1].rjust(17),
            texts[2].rjust(6),
            sep="  ",
        )
    print(f"written to {output}")


def _write_figures(figures: dict[str, Any], output: Path) -> Path:
    figures["command"] = " ".join(["sacl-eval", *sys.argv[1:]])
    write_atomically(output, json.dumps(figures, indent=2) + "\n")
    return output


def _evaluate(
    probe: str,
    run: Path,
    shards: Path,
    test_shards: tuple[Path, ...],
    device: str,
    output: Path | None,
    **settings: Any,
) -> None:
    from sacl_train.evaluate.probe import evaluate

    figures = evaluate(probe, run, shards, list(test_shards), device, **settings)
    output = _write_figures(figures, output or run / f"eval-{probe}.json")
    trained, planned = figures["trained_epochs"], figures["planned_epochs"]
    print(f"{run}: {figures['encoder']}, texture role {figures['texture_role']}, trained for {trained} epochs")
    if trained < planned:
        warn(f"{run} is not finished: {trained} of {planned} epochs")
    columns = [
        name
        for name in ("top1", "top5", "texture_decisions", "destroyed")
        if any(name in test for test in figures["test"])
    ]
    names = [f"{test['split']} ({test['shards']})" for test in figures["test"]]
    wide = max(map(len, names))
    print(" " * wide, "images", *columns, sep="  ")
    for name, test in zip(names, figures["test"], strict=True):
        cells = [f"{test[c]:.2%}".rjust(len(c)) if c in test else " " * len(c) for c in columns]
        print(name.ljust(wide), str(test["images"]).rjust(6), *cells, sep="  ")
    print(f"written to {output}")


@click.command(cls=FriendlyCommand, context_settings=HELP)
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--format", "form", default="safetensors", show_default=True, help="safetensors, torchvision, timm, onnx")
@click.option("--out", type=click.Path(path_type=Path), help="[default: RUN/encoder-FORMAT.EXT]")
@click.version_option(__version__)
def export_main(run: Path, form: str, out: Path | None) -> None:
    """Write the encoder of RUN alone, for other programs, with a model card beside it."""
    from sacl_train.export import export

    written = export(run, form, out)
    print(f"{written}\n{written.with_suffix('.md')}")
