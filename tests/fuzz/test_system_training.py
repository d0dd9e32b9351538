"""Failing system calls in training, evaluation and export: one line, no traceback, and no file that is not whole.

The same command without a fault ends with the bits of an undisturbed run. FUZZ_TRAINING_CASES sets the number of cases.
"""

import errno
import json
import os
import random
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from sacl_train.config import load_config
from sacl_train.export import load_exported
from sacl_train.training.checkpoint import list_checkpoints, read_checkpoint
from tests.fuzz.system import Server
from tests.fuzz.test_system import pytestmark  # noqa: F401 - the same conditions
from tests.sacl_train.training.test_loop import TINY

CASES = int(os.environ.get("FUZZ_TRAINING_CASES", "8"))
SEED = int(os.environ.get("FUZZ_SEED", "0"))
REPORT = os.environ.get("FUZZ_REPORT")
MODULES = ["sacl_train.cli.train", "sacl_train.cli.evaluate", "sacl_train.cli.export", "sacl_train.training.loop"]
MODULES += ["sacl_train.export", "sacl_train.evaluate.ridge", "sacl_train.methods.sacl"]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("faults"), MODULES)
    yield server
    server.close()


def test_failing_calls_leave_a_run_that_can_go_on(shapes_shards: Path, server: Server, tmp_path: Path) -> None:
    out, trained = tmp_path / "out", tmp_path / "trained"
    settings = {**TINY, "width": 2, "epochs": 2, "knn_every": 1, "save_every": 2, "log_every": 1}
    sets = [text for key, value in settings.items() for text in ("--set", f"{key}={value}")]
    place = str(shapes_shards)
    figures = ["--train", place, "--test", place, "--device", "cpu", "--json", str(out / "figures.json")]
    commands = {
        "train": ("sacl_train.cli.train:train_main", ["--shards", place, *sets, "--out", str(out)]),
        "eval": ("sacl_train.cli.evaluate:eval_main", ["ridge", "--run", str(out), *figures]),
        "export": ("sacl_train.cli.export:export_main", [str(out)]),
    }

    def attempt(name: str, kind: str, at: int, code: int, lasts: bool) -> dict[str, Any]:
        shutil.rmtree(out, ignore_errors=True)
        if name != "train":
            shutil.copytree(trained, out)
        done: dict[str, Any] = server.run(*commands[name], out, kind, at, code, lasts)
        return done

    calls: dict[tuple[str, str], int] = {}
    expected: dict[str, Any] = {}
    for name in commands:
        for kind in ("write", "fsync", "rename"):
            done = attempt(name, kind, 1 << 30, 0, False)
            assert done["status"] == 0, done["output"]
            if done["seen"]:
                calls[name, kind] = done["seen"]
            if name == "train" and not trained.exists():
                shutil.copytree(out, trained)
        expected[name] = _read(out)
    assert {name for name, _ in calls} == {*commands}
    outcomes: Counter[str] = Counter()
    findings = []
    for number in range(SEED, SEED + CASES):
        draws = random.Random(f"training {number}")
        name, kind = draws.choice(list(calls))
        at, code = draws.randrange(calls[name, kind]), draws.choice([errno.ENOSPC, errno.EIO])
        lasts = draws.random() < 0.5
        done = attempt(name, kind, at, code, lasts)
        try:
            assert done["status"] in (0, 1), (done["status"], done["output"])
            assert "Traceback" not in done["output"], done["output"]
            assert done["status"] == 0 or "error: " in done["output"], done["output"]
            _read(out)
            again = server.run(*commands[name], out, kind, 1 << 30, 0, False)
            assert again["status"] == 0, again["output"]
            assert "damaged" not in again["output"], again["output"]
            assert _read(out) == expected[name], "the repeated command makes other files"
            outcomes["refused" if done["status"] else "unchanged"] += 1
        except Exception as error:
            outcomes["finding"] += 1
            forever = " for ever" * lasts
            findings.append(
                f"FUZZ_SEED={number}: {name}, {kind} {at} fails with {errno.errorcode[code]}{forever}: {error!r}"
            )
    if REPORT:
        with open(REPORT, "a") as f:
            f.write(json.dumps({"target": "training's system calls", "seed": SEED, **outcomes, "findings": findings}))
            f.write("\n")
    assert not findings, f"{len(findings)} of {CASES} cases\n" + "\n".join(findings[:5])


def _read(run: Path) -> dict[str, Any]:
    """Return what a run's files say, without times. Raises an exception for a file that is not whole."""
    found: dict[str, Any] = {}
    for path in list_checkpoints(run) + [path for path in (run / "best.pt",) if path.exists()]:
        content = read_checkpoint(path)
        leaves = torch.utils._pytree.tree_leaves({name: content[name] for name in ("method", "optimizer")})  # type: ignore[literal-required]
        found[path.name] = [leaf.numpy().tobytes() if isinstance(leaf, torch.Tensor) else leaf for leaf in leaves]
    if (run / "config.toml").exists():
        load_config(run / "config.toml", {})
    if (run / "steps.jsonl").exists():
        lines = [json.loads(line) for line in (run / "steps.jsonl").read_text().splitlines()]
        found["steps"] = [(line["step"], line["loss"]) for line in lines]
    if (run / "figures.json").exists():
        found["figures"] = json.loads((run / "figures.json").read_text()).get("accuracy")
    for path in run.glob("*.safetensors"):
        load_exported(path)
        found[path.name] = path.read_bytes()
    return found
