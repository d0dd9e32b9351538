"""What a build takes: one worker and two, and whether `texturegen plan` foretold it.

    python benchmarks/builds.py --dataset cifar10 --root DATA [--limit 10000] [--workers 2]

Wall seconds of the real commands, from start to end. The rounds alternate, as machines drift.
"""

import json
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import click

UNITS = {"s": 1, "min": 60, "h": 3600}


@click.command(context_settings={"ignore_unknown_options": True})
@click.option("--workers", default=2, show_default=True, help="Compared with one.")
@click.option("--rounds", default=3, show_default=True)
@click.argument("options", nargs=-1, type=click.UNPROCESSED)
def main(workers: int, rounds: int, options: tuple[str, ...]) -> None:
    """OPTIONS are those of `texturegen build`, without --out and --workers."""
    walls: dict[int, list[float]] = {1: [], workers: []}
    planned: list[float] = []
    with tempfile.TemporaryDirectory() as directory:
        for number in range(rounds):
            planned.append(foretell(workers, options))
            for count in walls:
                out = Path(directory, f"{number}-{count}")
                begin = time.perf_counter()
                call("build", "--out", str(out), "--workers", str(count), *options)
                walls[count].append(time.perf_counter() - begin)
        build = json.loads((out / "build.json").read_text())
    images = build["counts"]["samples"]
    print("| workers | wall seconds, median (all) | images/s |\n| --- | --- | --- |")
    for count, seconds in walls.items():
        middle = statistics.median(seconds)
        print(f"| {count} | {middle:.1f} ({', '.join(f'{s:.1f}' for s in seconds)}) | {images / middle:.0f} |")
    pairs = zip(walls[1], walls[workers], strict=True)
    print(f"\n{workers} workers over one, per round: {', '.join(f'{one / many:.2f}' for one, many in pairs)}")
    errors = [plan / real - 1 for plan, real in zip(planned, walls[workers], strict=True)]
    print(f"`texturegen plan` against the build of {workers}: {', '.join(f'{error:+.0%}' for error in errors)}")
    spent = build["run"]["seconds"]
    shares = ", ".join(f"{stage} {seconds / sum(spent.values()):.0%}" for stage, seconds in spent.items())
    print(f"stages of the last build: {shares}")


def call(*arguments: str) -> str:
    command = [sys.executable, "-m", "texturegen", *arguments]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def foretell(workers: int, options: tuple[str, ...]) -> float:
    """Seconds of wall time that `texturegen plan` expects."""
    said = call("plan", "--workers", str(workers), *options)
    found = re.search(r"wall time +([0-9.]+) (\w+)", said)
    assert found, said
    return float(found[1]) * UNITS[found[2]]


if __name__ == "__main__":
    main()
