"""The `sacl-train` command. torch is imported when the work begins: `--help` answers at once."""

import os
import shlex
import sys
from pathlib import Path
from typing import Any

import click

from texturegen import __version__
from texturegen.console import FriendlyCommand, read_pairs

HELP = {"help_option_names": ["-h", "--help"]}


@click.command(cls=FriendlyCommand, context_settings=HELP)
@click.option("--shards", required=True, type=click.Path(path_type=Path), help="Made by `texturegen build`.")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Directory of the run.")
@click.option("--config", type=click.Path(path_type=Path), help="TOML file of settings.")
@click.option("--set", "settings", multiple=True, callback=read_pairs, help="KEY=VALUE; goes before --config.")
@click.option("--method", help="sacl, fast-moco, mocov2, simclr, byol, simsiam, pirl or barlow  [default: sacl]")
@click.option("--encoder", help="se_resnet18, 34, 50, 101, se_resnet20 or se_resnet8  [default: se_resnet50]")
@click.option("--epochs", type=int, help="0 writes an untrained encoder  [default: 200]")
@click.option("--batch-size", type=int, help="[default: 128]")
@click.option("--texture-role", help="negative, instance, positive or none  [default: negative for sacl, else none]")
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
    from sacl_train import train
    from sacl_train.config import dump_config, load_config
    from sacl_train.distributed import first_started
    from sacl_train.training.dry_run import plan
    from sacl_train.training.loop import Stopped

    given = {key: value for key, value in flags.items() if value is not None}
    asked = load_config(config, {**settings, **given})
    if dry_run:
        resolved, line = plan(asked, shards, out)
        print(f"# {line}\n{dump_config(resolved)}", end="")
        return
    first = first_started()
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
    online = f", online probe {last['online_top1']:.1%} (training images)" if "online_top1" in last else ""
    print(f"{out}: epoch {last['epoch']}, loss {last['loss']:.3f}{knn}{online}")
