"""Accuracy of the probes with the BatchNorm statistics of the training and with those of whole images, by network.

    python benchmarks/norm_statistics.py --train train/ --test test/ --out norm-statistics.jsonl runs/*

Writes a line for each run, network (online and, where the method has one, target) and kind of statistics.
"""

import argparse
import json
import shlex
import sys
from pathlib import Path

from sacl_train.evaluate.norm import STATISTICS
from sacl_train.evaluate.probe import evaluate
from sacl_train.evaluate.subject import NETWORKS, open_model
from texturegen.errors import UserError


def main() -> None:
    """Score every run and append its lines."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--train", required=True, type=Path)
    parser.add_argument("--test", required=True, type=Path)
    parser.add_argument("--out", required=True, type=Path)
    parser.add_argument("--epochs", type=int, default=50, help="Epochs of the linear probe.")
    options = parser.parse_args()
    for run in options.runs:
        for network in NETWORKS:
            for statistics in STATISTICS:
                row = measure(run, options, network, statistics)
                if row is not None:
                    print(row, flush=True)
                    with options.out.open("a") as file:
                        file.write(json.dumps(row) + "\n")


def measure(run: Path, options: argparse.Namespace, network: str, statistics: str) -> dict[str, object] | None:
    """Return the figures of one network with one kind of statistics; None if the method has no such network."""
    given = {"device": "cpu", "network": network, "norm_statistics": statistics}
    try:
        with open_model(run, **given) as model:
            seed, about = model.config.seed, model.about()
    except UserError as error:
        if "has no target network" in str(error):
            return None
        raise
    knn = evaluate("knn", run, options.train, [options.test], **given, k=(20,))["test"][0]
    linear = evaluate("linear", run, options.train, [options.test], **given, epochs=options.epochs)["test"][0]
    keys = ("method", "texture_role", "encoder", "trained_epochs", "network", "norm_statistics", "precision")
    figures = {"images": knn["images"], "knn": knn["top1"], "linear": linear["top1"], "linear_epochs": options.epochs}
    command = shlex.join(["python", *sys.argv])
    return {"run": run.name, "seed": seed, **{key: about[key] for key in keys}, **figures, "command": command}


if __name__ == "__main__":
    main()
