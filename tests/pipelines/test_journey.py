"""A whole journey through the real commands, small; and what recipes may say."""

import json
from pathlib import Path

import pytest

from pipelines.recipe import HERE, load_recipe
from pipelines.report import write_report
from pipelines.runner import run
from sacl_train.config import load_config
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
}


@pytest.mark.slow
def test_a_journey_ends_with_a_report_and_can_be_run_again(tmp_path: Path) -> None:
    report = run(load_recipe("shapes", TINY), tmp_path, device="cpu")
    text = report.read_text()
    results = json.loads((tmp_path / "report.json").read_text())["results"]
    assert list(results) == ["untrained", "none", "negative"]
    for name, probes in results.items():
        assert list(probes) == ["knn", "linear"]
        for figures in probes.values():
            variants = [""] if figures["probe"] == "linear" else ["k=20", "k=200"]
            places = [(test["split"], test["variant"]) for test in figures["test"]]
            assert places == [(split, variant) for split in ("test", "conflict") for variant in variants]
            for test in figures["test"]:
                assert f"{100 * test['top1']:.1f} ±" in text
        assert (tmp_path / "runs" / name / "sheet.png").is_file()
    for line in text.splitlines():
        if line.startswith("!["):
            assert (tmp_path / line.split("(")[1].rstrip(")")).is_file()
    kinds = ("*.tar", "checkpoint-*.pt", "eval-*.json")
    before = {p: p.stat().st_mtime_ns for kind in kinds for p in tmp_path.rglob(kind)}
    assert len(before) == 8 + 6
    run(load_recipe("shapes", TINY), tmp_path, device="cpu", jobs=2)
    assert {p: p.stat().st_mtime_ns for p in before} == before


def _figures(top1: float, epochs: int) -> dict:
    test = {"set": "t", "split": "test", "variant": "", "images": 1000, "top1": top1}
    return {"linear": {"trained_epochs": epochs, "test": [test]}}


def test_the_report_calls_a_difference_one_only_beyond_two_standard_errors(tmp_path: Path) -> None:
    journey = load_recipe("shapes", {})
    journey = type(journey)(journey.name, journey.sets, journey.runs, {"linear": {}})
    results = {"untrained": _figures(0.4, 0), "none": _figures(0.6, 5), "negative": _figures(0.61, 5)}
    text = write_report(tmp_path, journey, results, [("texturegen build", 2.0)]).read_text()
    assert "`none` against `untrained` on test: +20.0 points ± 2.2, more than chance would give" in text
    assert "`negative` against `none` on test: +1.0 points ± 2.2, no more than chance would give" in text
    assert "| negative | 5 | 61.0 ± 1.5 |" in text


def test_every_shipped_recipe_can_be_read() -> None:
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
    ],
)
def test_a_wrong_recipe_is_named(name: str, changes: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_recipe(name, changes)


def test_a_failing_command_ends_the_journey(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="exit status 1"):
        run(load_recipe("shapes", {"build.method": "wang"}), tmp_path)
