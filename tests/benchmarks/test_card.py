"""The script that measures a GPU runs end to end at toy size on a CPU, from packed CIFAR-10 to probes."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from benchmarks.cifar_pack import main as cifar_pack

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "card.py"


@pytest.mark.slow
def test_stages_end_well_from_packed_cifar10_to_probes(
    cifar10_root: Path, tmp_path: Path, uncovered: dict[str, str]
) -> None:
    packed, tars, out = tmp_path / "packed", tmp_path / "tars", tmp_path / "card.jsonl"
    for arguments in (
        ["pack", cifar10_root, packed, "--limit", 200],
        ["unpack", packed / "part0", packed / "part1", "--to", tars],
    ):
        done = CliRunner().invoke(cifar_pack, [str(argument) for argument in arguments])
        assert done.exit_code == 0, done.output
    command = [sys.executable, SCRIPT, "--out", out, "--data", tars, "--device", "cpu", "--toy", "--minutes", "8"]
    stages = ("hardware", "steps", "exact", "pirl", "profile", "cifar")
    subprocess.run([*command, "--stages", ",".join(stages)], check=True, capture_output=True, env=uncovered)
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    ended = {line["stage"]: line["ended"] for line in lines if "ended" in line}
    assert ended == dict.fromkeys(stages, 0)
    assert [line["launches"] > 100 for line in lines if "images_per_s" in line] == [True] * 3
    compared = [(line["method"], line["run"], line["that_differ"]) for line in lines if "that_differ" in line]
    assert compared == [(name, run, 0) for name in ("sacl", "pirl") for run in ("resumed", "eager")]
    probes = {line["probe"]: line["test"][0]["images"] for line in lines if "probe" in line}
    assert probes == {"knn": 200, "linear": 200}
