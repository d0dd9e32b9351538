"""A small recipe run by the real commands, its reports, and errors in recipes."""

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from pipelines import runner
from pipelines.cli import main
from pipelines.commands import Commands
from pipelines.options import evaluation
from pipelines.recipe import HERE, load_recipe
from pipelines.report import _table, write_report
from pipelines.runner import Reports, run
from sacl_train.cli.evaluate import eval_main
from sacl_train.config import load_config
from tests.commands import call
from texturegen.errors import UserError
from texturegen.sources import SOURCES

TINY = {
    "sets.train.limit": 64,
    "sets.test.limit": 40,
    "sets.conflict.limit": 40,
    "train.width": 4,
    "train.epochs": 1,
    "train.batch_size": 16,
    "evaluate.linear.epochs": 5,
    "evaluate.shape-bias.epochs": 5,
}


_Popen = subprocess.Popen


class _CommandHere:
    """Stands for the process of a command: it saves the import of torch or Numba."""

    def __init__(self, line: list[str], *, stdout: int | None, **_: object) -> None:
        self.status, output, errors = call(Path(line[0]).name, *line[1:])
        self.stdout = None if stdout is None else (output + errors).splitlines(keepends=True)

    def wait(self) -> int:
        return self.status


@pytest.fixture
def start() -> Callable[..., Any]:
    """Start a command as `pipelines` does: the first of each name as a process, the others in this process."""
    started = set()

    def begin(line: list[str], **settings: Any) -> Any:
        if (name := Path(line[0]).name) in started:
            return _CommandHere(line, **settings)
        started.add(name)
        return _Popen(line, **settings)

    return begin


@pytest.mark.slow
def test_recipe_writes_reports_and_reruns_only_changed_stages(
    start: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("pipelines.commands.subprocess.Popen", start)
    whole = load_recipe("shapes", TINY)
    probes = {"linear": whole.probes["linear"], "shape-bias": whole.probes["shape-bias"]}
    journey = replace(whole, runs={name: whole.runs[name] for name in ("untrained", "negative")}, probes=probes)
    reports = run(journey, Path("j"), device="cpu")
    assert reports == (Path("j/report.md"), Path("j/report.html"))
    text = reports.markdown.read_text()
    assert "[report.html](report.html)" in text
    results = json.loads(Path("j/report.json").read_text())["results"]
    assert list(results) == ["untrained", "negative"]
    for name, found in results.items():
        assert list(found) == ["linear", "shape-bias"]
        assert [test["split"] for test in found["linear"]["test"]] == ["test", "conflict"]
        for test in found["linear"]["test"]:
            assert f"{100 * test['top1']:.1f} ±" in text
        assert Path("j/runs", name, "sheet.png").is_file()
    decided = [f"{100 * found['shape-bias']['shape_decisions']:.1f}" for found in results.values()]
    assert f"| shape decisions | {' | '.join(decided)} |" in text
    lines = text.splitlines()
    pictures = [number for number, line in enumerate(lines) if line.startswith("![")]
    assert len(pictures) == 4  # preview, two sheets, the curves of the trained run
    for figure, number in enumerate(pictures, start=1):
        assert Path("j", lines[number].split("(")[1].rstrip(")")).is_file()
        assert lines[number + 2].startswith(f"*Figure {figure}. ")
    page = Path("j/report.html").read_text()
    assert page.count('<img src="data:image/png') == 2
    assert len(page) > 1e6
    kinds = ("*.tar", "checkpoint-*.pt", "eval-*.json", "preview.png")
    before = {p: p.stat().st_mtime_ns for kind in kinds for p in Path("j").rglob(kind)}
    assert len(before) == 4 + 2 + 4 + 1
    calls = []
    monkeypatch.setattr(Commands, "call", lambda self, name, *line: calls.append(line))
    run(journey, tmp_path / "j", device="auto", jobs=2)
    assert calls == []
    assert {p: p.stat().st_mtime_ns for p in before} == before
    monkeypatch.undo()
    # Changed settings of a run, or other images in a set, rerun their stages, and old results are kept.
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("pipelines.commands.subprocess.Popen", start)
    runs = {"untrained": journey.runs["untrained"], "negative": {**journey.runs["negative"], "tau": 0.5}}
    sets = {**journey.sets, "conflict": {**journey.sets["conflict"], "limit": 30}}
    run(replace(journey, runs=runs, sets=sets, probes={"linear": probes["linear"]}), Path("j"), device="cpu")
    changed = {p for p in before if not p.is_file() or p.stat().st_mtime_ns != before[p]}
    assert {p.relative_to("j").parts[:2] for p in changed if p.suffix in (".tar", ".pt")} == {
        ("shards", "conflict"),
        ("runs", "negative"),
    }
    assert before[Path("j/shards/conflict/shard-000000.tar")] == (
        Path("j/shards/conflict.old-1/shard-000000.tar").stat().st_mtime_ns
    )
    assert list(Path("j/runs/negative.old-1").glob("checkpoint-*.pt"))
    assert json.loads(Path("j/report.json").read_text())["results"]["untrained"]["linear"]["test"][1]["images"] == 30


@pytest.mark.parametrize(
    ("probe", "options", "expected"),
    [
        (
            "knn",
            {"k": [5, 20]},
            "--shards S/train --device cpu --test-shards S/test --test-shards S/conflict --k 5 --k 20",
        ),
        (
            "finetune",
            {"share": 0.1},
            "--shards S/train --device cpu --test-shards S/test --test-shards S/conflict --share 0.1",
        ),
        ("shape-bias", {}, "--shards S/train --device cpu --stimuli S/conflict"),
        ("shape-bias", {"stimuli": "shapes:conflict"}, "--shards S/train --device cpu --stimuli shapes:conflict"),
        ("corruption", {"images": 5}, "--shards S/train --device cpu --test-shards S/test --images 5"),
        ("shortcut", {}, "--shards S/train --device cpu"),
        ("ood", {"ood": "conflict"}, "--shards S/train --device cpu --test-shards S/test --ood S/conflict"),
        ("embed", {"images": "conflict"}, "--device cpu --images S/conflict"),
    ],
)
def test_evaluation_command_line(probe: str, options: dict, expected: str) -> None:
    shards = {name: Path("S") / name for name in ("train", "test", "conflict")}
    line = evaluation(probe, Path("R"), shards, ["test", "conflict"], "cpu", options)
    assert line == ["sacl-eval", probe, "--run", "R", *expected.split()]
    eval_main.commands[probe].make_context(probe, line[2:])  # parses, or raises


def test_two_test_sets_of_same_split_have_column_each() -> None:
    tests = [{"set": place, "split": "test", "variant": "", "images": 10, "top1": 0.5} for place in ("a", "b")]
    assert _table({"run": {"linear": {"trained_epochs": 1, "test": tests}}}, "linear")[0] == (
        "| run | epochs | test (a), % | test (b), % |"
    )


def _figures(top1: float, epochs: int) -> dict:
    test = {"set": "t", "split": "test", "variant": "", "images": 1000, "top1": top1}
    return {"linear": {"trained_epochs": epochs, "test": [test]}}


def test_report_compares_differences_with_two_standard_errors(tmp_path: Path) -> None:
    journey = load_recipe("shapes", {})
    journey = type(journey)(journey.name, journey.sets, journey.runs, {"linear": {}})
    results = {"untrained": _figures(0.4, 0), "none": _figures(0.6, 5), "negative": _figures(0.61, 5)}
    text = write_report(tmp_path, journey, results, [("texturegen build", 2.0)]).read_text()
    assert "`none` compared with `untrained` on test: +20.0 ± 2.2 points, more than two standard errors" in text
    assert "`negative` compared with `none` on test: +1.0 ± 2.2 points, no more than two standard errors" in text
    assert "| negative | 5 | 61.0 ± 1.5 |" in text


def test_every_included_recipe_is_valid() -> None:
    names = [path.stem for path in HERE.glob("*.toml")]
    assert {"shapes", "cifar10", "cifar100", "stl10", "imagenet100"} == set(names)
    for name in names:
        journey = load_recipe(name, {})
        assert {"none", "negative", "untrained"} <= set(journey.runs)
        assert journey.tests
        for settings in journey.runs.values():
            load_config(None, settings)
        for options in journey.sets.values():
            entry = SOURCES[options["dataset"]]
            assert options["split"] in entry.splits


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("shape", {}, "did you mean 'shapes'"),
        ("shapes", {"epochs": 3}, "write SECTION.KEY=VALUE"),
        ("shapes", {"trian.epochs": 3}, "did you mean 'train'"),
        ("shapes", {"train.encoder.x": 3}, "encoder is a value, not a section"),
        ("shapes", {"runs.x": 1}, "every section must be a table"),
        ("shapes", {"evaluate.linaer.epochs": 1}, "did you mean 'linear'"),
        ("shapes", {"evaluate.linear.epoch": 1}, "did you mean '--epochs'"),
        ("shapes", {"evaluate.report": {}}, "always written"),
    ],
)
def test_mistake_in_recipe_is_reported(name: str, changes: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_recipe(name, changes)


def test_failed_command_stops_the_run(tmp_path: Path) -> None:
    journey = load_recipe("shapes", {**TINY, "build.workers": 1})
    (tmp_path / "shards" / "train").mkdir(parents=True)
    (tmp_path / "shards" / "train" / "mine").write_text("not a build")
    with pytest.raises(UserError, match="exit status 1"):
        run(journey, tmp_path)


def test_missing_plotly_prints_a_hint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "plotly", None)
    monkeypatch.setitem(sys.modules, "plotly.offline", None)
    assert runner._write_html([tmp_path / "run"], tmp_path / "report.html") is None
    printed = capsys.readouterr().out
    assert printed.count("\n") == 1
    assert "pip install 'sacl-texture[report]'" in printed
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("with_html", [True, False])
def test_command_prints_report_paths(with_html: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    markdown, html = tmp_path / "report.md", tmp_path / "report.html" if with_html else None
    markdown.write_text("# Figures, ± two", "utf-8")
    read = Path.read_text
    monkeypatch.setattr(Path, "read_text", lambda path, encoding="ascii": read(path, encoding))  # as in the locale C
    monkeypatch.setattr(runner, "run", lambda *_: Reports(markdown, html))
    done = CliRunner().invoke(main, ["run", "shapes", "--out", str(tmp_path)])
    assert done.output.splitlines()[-1] == f"report: {html if with_html else markdown}"
    assert "# Figures, ± two" in done.output
    assert f"report: {markdown}" in done.output
