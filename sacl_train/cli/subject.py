"""What `sacl-eval` scores: a run, or an encoder of another program."""

from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

import click

from sacl_train.cli.runs import newest_run
from sacl_train.nets.encoder_file import EncoderFile
from texturegen.console import note, option

ENCODER = "Encoder"  # section of --help
CHANNELS = click.FloatRange(0)


def subject_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add --run, --encoder and what describes an encoder; the command gets one of them as `run`."""

    @wraps(command)
    def wrapped(
        run: Path | None,
        encoder: str | None,
        arch: str | None,
        prefix: str | None,
        mean: tuple[float, ...] | None,
        std: tuple[float, ...] | None,
        **options: Any,
    ) -> Any:
        if run is not None and encoder is not None:
            raise click.UsageError("give either --run or --encoder")
        if encoder is None:
            described = {"--arch": arch, "--prefix": prefix, "--mean": mean, "--std": std}
            for name, value in described.items():
                if value is not None:
                    raise click.UsageError(f"{name} describes an encoder of another program; it needs --encoder")
            if run is None:
                run = newest_run()
                note(f"without --run: {run}, the newest")
            return command(run=run, **options)
        file = EncoderFile(encoder, arch, prefix, mean, std, options.get("size"))
        return command(run=file, **options)

    for add in reversed(
        (
            option(
                "--run",
                type=click.Path(path_type=Path),
                help="Directory of `sacl-train`, or a checkpoint in it  [default: the newest below runs/]",
                section=ENCODER,
            ),
            option(
                "--encoder",
                help="Instead of --run: FILE of another program, or timm:NAME in timm's cache.",
                section=ENCODER,
            ),
            option(
                "--arch",
                help="Architecture of FILE: resnet50, timm:NAME, torchvision:NAME or torchscript.",
                section=ENCODER,
            ),
            option(
                "--prefix", help="Prefix of the names of the encoder's tensors  [default: detected]", section=ENCODER
            ),
            option(
                "--mean",
                nargs=3,
                type=CHANNELS,
                metavar="R G B",
                help="Mean of pixels, 0 to 1  [default: FILE's own]",
                section=ENCODER,
            ),
            option(
                "--std",
                nargs=3,
                type=CHANNELS,
                metavar="R G B",
                help="Standard deviation of pixels  [default: FILE's own]",
                section=ENCODER,
            ),
        )
    ):
        wrapped = add(wrapped)
    return wrapped
