"""The `sacl-export` command."""

from pathlib import Path

import click

from texturegen import __version__
from texturegen.console import FriendlyCommand

HELP = {"help_option_names": ["-h", "--help"]}


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
