"""The `sacl-train` command. torch is imported only when the command runs, so `--help` is fast."""

import os
import shlex
import sys
from pathlib import Path
from typing import Any

import click

from sacl_train.cli.command import TorchCommand
from sacl_train.methods import METHODS
from sacl_train.nets import ENCODERS
from texturegen import __version__
from texturegen.console import note, option, read_pairs, say

PATH = click.Path(path_type=Path)


@click.command(cls=TorchCommand)
@option("--shards", required=True, help="Directory or URL of shards from `texturegen build`.", section="Run")
@option(
    "--out",
    type=PATH,
    help="Directory of the run  [default: runs/METHOD-ENCODER-DIGEST of shards and settings]",
    section="Run",
)
@option("--config", type=PATH, help="TOML file of settings.", section="Settings")
@option(
    "--set", "settings", multiple=True, callback=read_pairs, help="KEY=VALUE; overrides --config.", section="Settings"
)
@option("--method", help=f"One of {', '.join(METHODS)}  [default: sacl]", section="Training")
@option(
    "--recipe", help="Published settings of the method: cifar or imagenet; for sacl also paper.", section="Settings"
)
@option("--encoder", help=f"{', '.join(ENCODERS)} or timm:NAME  [default: se_resnet50]", section="Training")
@option("--init", help="Weights to start the encoder from: a file of any program, or timm:NAME.", section="Training")
@option(
    "--epochs", type=int, help="Number of epochs; 0 writes an untrained encoder  [default: 200]", section="Training"
)
@option("--batch-size", type=int, help="Images per step, over all processes  [default: 128]", section="Training")
@option(
    "--texture-role",
    help="negative, instance, positive or none  [default: negative for sacl, else none]",
    section="Training",
)
@option("--order", help="global: shuffle all samples; shards: read shard by shard  [default: global]", section="Speed")
@option(
    "--cache",
    help="Where decoded images are kept: device, ram or none  [default: the first that fits]",
    section="Speed",
)
@option("--precision", help="fp32, bf16 or fp16  [default: bf16 on CUDA, else fp32]", section="Speed")
@option(
    "--compile",
    is_flag=False,
    flag_value="default",
    help="Mode of torch.compile, or none; without a value: default  [default: default on CUDA, else none]",
    section="Speed",
)
@option("--device", help="cpu, cuda, cuda:1, ...  [default: cuda if it is available, else cpu]", section="Speed")
@option(
    "--seed", type=int, help="Seed of the weights, the sample order and the views  [default: 0]", section="Training"
)
@option("--dry-run", is_flag=True, help="Check everything, print the settings, write nothing.", section="Run")
@click.version_option(__version__)
def train_main(
    shards: str, out: Path | None, config: Path | None, settings: dict[str, Any], dry_run: bool, **flags: Any
) -> None:
    """Train an encoder on shards, or resume a run.

    Run the same command again to resume from the last checkpoint. Ctrl-C and SIGTERM save a checkpoint after the
    current step and exit with status 0.

    Settings are taken from the defaults, --recipe, --config, --set and the other flags; later ones override earlier
    ones.

    On several GPUs or machines: `torchrun --nproc-per-node 4 -m sacl_train ...`.
    """
    from sacl_train import train
    from sacl_train.cli.runs import default_out
    from sacl_train.config import dump_config, load_config
    from sacl_train.distributed import is_first_started
    from sacl_train.training.dry_run import plan
    from sacl_train.training.loop import Stopped
    from texturegen.shards.build_json import read_build, shards_digest

    given = {key: value for key, value in flags.items() if value is not None}
    requested = load_config(config, {**settings, **given})
    is_first = is_first_started()
    if out is None:
        out = default_out(requested, shards_digest(read_build(shards)))
        if is_first:
            note(f"run directory: {out}")
    if dry_run:
        resolved, line = plan(requested, shards, out)
        print(f"# {line}\n{dump_config(resolved)}", end="")
        return
    try:
        rows = train(requested, shards, out)
    except Stopped as stopped:
        torchrun = "the same torchrun command, or " if "TORCHELASTIC_RUN_ID" in os.environ else ""
        if is_first:
            say(f"{out}: {stopped}; to resume: {torchrun}{shlex.join(['sacl-train', *sys.argv[1:]])}")
        return
    if not is_first:
        return
    if not rows:
        say(f"{out}: an untrained encoder")
        return
    last = rows[-1]
    images = "held-out" if requested.held_out else "training"
    knn = f", kNN {last['knn']:.1%} ({images} images)" if last.get("knn") is not None else ""
    online = f", online probe {last['online_top1']:.1%} (training images)" if "online_top1" in last else ""
    say(f"{out}: epoch {last['epoch']}, loss {last['loss']:.3f}{knn}{online}")
