"""The `sacl-export` command."""

from pathlib import Path

import click

from sacl_train.cli.command import TorchCommand
from texturegen import __version__


@click.command(cls=TorchCommand)
@click.argument("run", type=click.Path(path_type=Path))
@click.option(
    "--format",
    "form",
    default="safetensors",
    show_default=True,
    help="safetensors, hub, torchvision, timm or onnx; hub and timm are directories.",
)
@click.option("--out", help="File or directory  [default: RUN/encoder-FORMAT.EXT]")
@click.version_option(__version__)
def export_main(run: Path, form: str, out: str | None) -> None:
    """Write the encoder of RUN for other programs.

    RUN is a directory of `sacl-train`, or a checkpoint in it. A model card is written next to the encoder, or into its
    directory. Nothing is uploaded.
    """
    from sacl_train.export import card_of, export

    written = export(run, form, out)
    print(f"{written}\n{card_of(written)}")
