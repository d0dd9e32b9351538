"""The programs of pipelines/reuse at small scale: each method without and with textures, by kNN and linear probe.

    texturegen build --dataset cifar10 --limit 3000 --out train
    texturegen build --dataset cifar10 --split test --limit 2000 --per-image 0 --out test
    python benchmarks/reuse.py --train train --test test --epochs 5 --out reuse.jsonl

All programs train the demo's encoder instead of their ResNet-18 (0.3 M parameters, a twentieth of the time), with their
own loss, views, heads and optimizer. Rows that are in the file already are not measured again. Programs whose library
is not installed are left out.
"""

import json
import tempfile
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import click
import torch
from torch import nn

from sacl_train.evaluate.probe import evaluate
from sacl_train.nets import build_encoder
from sacl_train.nets.encoder_file import EncoderFile
from sacl_train.nets.foreign import IMAGENET_MEAN, IMAGENET_STD

ENCODER = {"name": "se_resnet8", "attention": "none", "stem": "cifar-stride2", "width": 32}
HALF = ([0.5] * 3, [0.25] * 3)
IMAGENET = ([*IMAGENET_MEAN], [*IMAGENET_STD])
PLAIN = ["--no-textures"]
# Program -> its arguments without textures, and the mean and std by which its views are normalised.
PROGRAMS = {
    "moco": (PLAIN, HALF),
    "simclr": (PLAIN, HALF),
    "byol": (["--weight", "0"], HALF),
    "dcl": (PLAIN, IMAGENET),
    "solo_learn": (PLAIN, IMAGENET),
}


def small_encoder(*_: Any, **__: Any) -> nn.Module:
    """Return the demo's encoder with the attributes of a ResNet that the programs use."""
    encoder: Any = build_encoder(**ENCODER)
    encoder.fc, encoder.inplanes = nn.Linear(encoder.out_features, 1), encoder.out_features
    return encoder


def load_program(name: str) -> Callable[..., Any]:
    """Return the program's entry point with the small encoder in place of its ResNet-18."""
    module = import_module(f"pipelines.reuse.{name}")
    if name == "solo_learn":
        module.BaseMethod._BACKBONES["resnet18"] = small_encoder
    else:
        module.resnet18 = small_encoder
    main = module.main
    return main if name == "simclr" else lambda line: main(line, standalone_mode=False)


def describe(path: Path, norm: tuple[list[float], list[float]]) -> Path:
    """Write an encoder as a directory that `sacl-eval` scores; returns it."""
    from safetensors.torch import save_file

    content = torch.load(path, weights_only=True) if path.is_file() else build_encoder(**ENCODER).state_dict()
    directory = path.with_suffix("")
    directory.mkdir()
    save_file({k: v.contiguous() for k, v in content.get("encoder", content).items()}, directory / "model.safetensors")
    about = {"arguments": ENCODER, "mean": norm[0], "std": norm[1], "size": 32}
    (directory / "config.json").write_text(json.dumps(about))
    return directory


def score(encoder: Path, train: Path, test: Path) -> dict[str, float]:
    """Return the top-1 accuracies, 0..1, with the BatchNorm statistics of whole images."""
    found = {}
    for probe, settings in (("knn", {"k": (20,)}), ("linear", {})):
        figures = evaluate(probe, EncoderFile(str(encoder)), train, [test], "cpu", norm_statistics="images", **settings)
        found[probe] = figures["test"][0]["top1"]
    return found


@click.command()
@click.option("--train", required=True, type=click.Path(exists=True, path_type=Path), help="Shards with textures.")
@click.option("--test", required=True, type=click.Path(exists=True, path_type=Path), help="Labelled shards.")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="JSON lines, appended to.")
@click.option("--epochs", default=5, show_default=True)
@click.option("--seeds", default=1, show_default=True)
@click.option("--programs", default=",".join(PROGRAMS), show_default=True)
def main(train: Path, test: Path, out: Path, epochs: int, seeds: int, programs: str) -> None:
    """Train each program without and with textures, and append a row per run to --out."""
    rows = [json.loads(line) for line in out.read_text().splitlines()] if out.is_file() else []
    done = {(row["program"], row["textures"], row["seed"]) for row in rows}
    for seed in range(seeds):
        for name in ("untrained", *programs.split(",")):
            for textures in (False, True)[: 1 if name == "untrained" else 2]:
                if (name, textures, seed) in done:
                    continue
                plain, norm = PROGRAMS.get(name, ([], HALF))
                with tempfile.TemporaryDirectory() as scratch:
                    path = Path(scratch) / "encoder.pt"
                    torch.manual_seed(seed)
                    begin = time.process_time()
                    if name != "untrained":
                        try:
                            program = load_program(name)
                        except ImportError as error:
                            print(f"{name}: left out ({error})", flush=True)
                            continue
                        line = ["--shards", str(train), "--epochs", str(epochs), "--device", "cpu", "--seed", str(seed)]
                        program([*line, "--out", str(path), *([] if textures else plain)])
                    seconds = time.process_time() - begin
                    figures = score(describe(path, norm), train, test)
                row = {"program": name, "textures": textures, "seed": seed, "epochs": epochs}
                with out.open("a") as file:
                    file.write(json.dumps({**row, **figures, "cpu_seconds": round(seconds)}) + "\n")
                print({**row, **figures, "cpu_seconds": round(seconds)}, flush=True)


if __name__ == "__main__":
    main()
