"""Wall time of `texturegen build` with one worker and with several, and the error of the estimate by `texturegen plan`.

    python benchmarks/builds.py --dataset cifar10 --root DATA [--limit 10000] [--workers 2]

Times are wall-clock seconds of complete commands. The speed of a machine drifts, so rounds alternate.
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
@click.option("--workers", default=2, show_default=True, help="Number of workers to compare with one.")
@click.option("--rounds", default=3, show_default=True)
@click.argument("options", nargs=-1, type=click.UNPROCESSED)
def main(workers: int, rounds: int, options: tuple[str, ...]) -> None:
    """Time builds with OPTIONS of `texturegen build` (all but --out and --workers)."""
    walls: dict[int, list[float]] = {1: [], workers: []}
    estimates: list[float] = []
    with tempfile.TemporaryDirectory() as directory:
        for number in range(rounds):
            estimates.append(estimate(workers, options))
            for count in walls:
                out = Path(directory, f"{number}-{count}")
                begin = time.perf_counter()
                call("build", "--out", str(out), "--workers", str(count), *options)
                walls[count].append(time.perf_counter() - begin)
        build = json.loads((out / "build.json").read_text())
    images = build["counts"]["samples"]
    print("| workers | wall seconds, median (all) | images/s |\n| --- | --- | --- |")
    for count, seconds in walls.items():
        median = statistics.median(seconds)
        print(f"| {count} | {median:.1f} ({', '.join(f'{s:.1f}' for s in seconds)}) | {images / median:.0f} |")
    pairs = zip(walls[1], walls[workers], strict=True)
    print(f"\nspeedup with {workers} workers, per round: {', '.join(f'{one / many:.2f}' for one, many in pairs)}")
    errors = [estimate / wall - 1 for estimate, wall in zip(estimates, walls[workers], strict=True)]
    print(f"error of `texturegen plan --workers {workers}`: {', '.join(f'{error:+.0%}' for error in errors)}")
    spent = build["run"]["seconds"]
    stages = ", ".join(f"{stage} {seconds / sum(spent.values()):.0%}" for stage, seconds in spent.items())
    print(f"stages of the last build: {stages}")


def call(*arguments: str) -> str:
    """Run a `texturegen` command and return its output."""
    command = [sys.executable, "-m", "texturegen", *arguments]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def estimate(workers: int, options: tuple[str, ...]) -> float:
    """Return the wall time in seconds that `texturegen plan` estimates."""
    output = call("plan", "--workers", str(workers), *options)
    found = re.search(r"wall time +([0-9.]+) (\w+)", output)
    assert found, output
    return float(found[1]) * UNITS[found[2]]


if __name__ == "__main__":
    main()
