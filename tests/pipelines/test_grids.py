"""The grids: what is in them, that they run, go on, and are not done again; the table and its arithmetic."""

import json
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from pipelines import grid_runner
from pipelines.__main__ import GRID_NAMES, SCALE_NAMES
from pipelines.grid_report import mean_and_deviation, write_grid
from pipelines.grid_runner import Job, run_cell, run_grid
from pipelines.grids import GRIDS, SCALES, make_grid, narrow
from pipelines.stages import is_done, record_done
from sacl_train.config import load_config
from texturegen.errors import UserError

TINY = SCALES["tiny"]


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("name", GRIDS)
def test_every_cell_of_every_scale_is_a_run_that_can_be_configured(name: str, scale: str) -> None:
    grid = make_grid(name, SCALES[scale])
    places = [(cell.row, cell.column) for cell in grid.cells]
    assert len(set(places)) == len(places) > 2
    assert len({(c.row, str(sorted(c.settings.items())), c.dataset, c.synthesis) for c in grid.cells}) == len(places)
    for cell in grid.cells:
        load_config(None, cell.settings)
        assert {"train", "test"} <= SCALES[scale].data[cell.dataset].keys()
    assert (tuple(GRIDS), tuple(SCALES)) == (GRID_NAMES, SCALE_NAMES)


def test_the_papers_figures_stand_where_the_paper_has_them() -> None:
    def paper(name: str) -> dict[tuple[str, str], float | None]:
        return {(cell.row, cell.column): cell.paper for cell in make_grid(name, SCALES["paper"]).cells}

    assert paper("table3")["sacl", "stl10"] == 84.90
    assert paper("table3")["fast-moco", "cifar10"] is None
    assert paper("table4")["pre", "imagenet100"] == 77.77
    assert paper("table5")["cifar100", "64"] == 41.26
    assert paper("table6")["imagenet100", "0.99"] == 78.00
    assert paper("table7")["sacl", "800"] == 65.83
    settings = {c.column: c.settings for c in make_grid("table3", SCALES["paper"]).cells if c.row == "sacl"}["cifar10"]
    assert (settings["encoder"], settings["epochs"], settings["batch_size"]) == ("se_resnet50", 200, 128)


@pytest.mark.slow
@pytest.mark.parametrize("name", GRIDS)
def test_a_tiny_grid_runs_and_is_not_run_again(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grid_runner, "ProcessPoolExecutor", _Here)
    grid = make_grid(name, TINY)
    text = run_grid(grid, TINY, tmp_path, device="cpu", seeds=1).read_text()
    content = json.loads((tmp_path / f"{name}.json").read_text())
    assert len(content["cells"]) == len(grid.cells)
    for cell in content["cells"]:
        (figures,) = cell["runs"]
        assert f"{100 * figures['linear']:.1f}" in text
        shown = set(grid.figures) - {"shape_bias"}  # undefined where nothing was decided for either
        assert shown - {"spread", *figures} == set() or "spread" in shown
    assert (tmp_path / f"{name}.png").stat().st_size > 5000
    stamps = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("figures.json")}
    assert len(stamps) == len(grid.cells)
    run_grid(grid, TINY, tmp_path, device="cpu", seeds=1)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("figures.json")} == stamps


class _Here:
    """A pool that does the work at once, in this process: the imports cost more than tiny cells."""

    def __init__(self, *_: object, **__: object) -> None: ...

    def __enter__(self) -> "_Here":
        return self

    def __exit__(self, *_: object) -> None: ...

    def submit(self, work, job):
        from concurrent.futures import Future

        future: Future = Future()
        future.set_result(work(job))
        return future

    def shutdown(self, **_: object) -> None: ...


@pytest.mark.slow
def test_seeds_run_in_processes_and_what_changed_is_done_again(tmp_path: Path) -> None:
    grid = narrow(make_grid("table6", TINY), ("0.9", "0.99"), {})
    run_grid(grid, TINY, tmp_path, device="cpu", seeds=2, jobs=2)
    first = json.loads((tmp_path / "table6.json").read_text())["cells"]
    assert [len(cell["runs"]) for cell in first] == [2, 2]
    table = (tmp_path / "table6.md").read_text()
    assert table.count("±") == 5
    stamps = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("figures.json")}
    changed = replace(grid, cells=(grid.cells[0], *narrow(grid, ("0.99",), {"tau": 0.5}).cells))
    run_grid(changed, TINY, tmp_path, device="cpu", seeds=2)
    again = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("figures.json")}
    assert {path.parent.parent.name for path in again if again[path] != stamps[path]} == {"0.99"}


@pytest.mark.slow
def test_a_killed_grid_leaves_no_process_and_goes_on(tmp_path: Path) -> None:
    line = [sys.executable, "-m", "pipelines", "table4", "--out", str(tmp_path), "--seeds", "1", "--device", "cpu"]
    process = subprocess.Popen([*line, "--set", "epochs=8"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    while process.poll() is None and not list(tmp_path.rglob("figures.json")):
        time.sleep(0.05)
    process.kill()
    process.communicate(timeout=120)  # its workers hold the pipe, so this waits for them to end
    done = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("figures.json")}
    assert 0 < len(done) < 4
    again = subprocess.run([*line, "--set", "epochs=8"], capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    assert len(list(tmp_path.rglob("figures.json"))) == 4
    assert {path: path.stat().st_mtime_ns for path in done} == done


def test_a_failing_cell_is_named_and_the_others_are_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grid_runner, "ProcessPoolExecutor", _Here)
    grid = narrow(make_grid("table4", TINY), ("pre", "post"), {})
    broken = replace(grid.cells[0], settings={**grid.cells[0].settings, "batch_size": 500})
    with pytest.raises(UserError, match=r"1 of 2 cells failed; the first: pre, shapes, seed 0: batch_size is 500"):
        run_grid(replace(grid, cells=(broken, grid.cells[1])), TINY, tmp_path, device="cpu", seeds=1)
    assert len(json.loads((tmp_path / "table4.json").read_text())["cells"][1]["runs"]) == 1
    with pytest.raises(UserError, match="table4 has no row or column 'prae'"):
        narrow(grid, ("prae",), {})


def test_a_fault_of_the_program_is_in_the_cells_log(tmp_path: Path) -> None:
    cell = make_grid("table4", TINY).cells[0]
    job = Job(cell, 0, str(tmp_path / "cell"), {"train": None}, ("linear",), {}, {}, None, "cpu")  # type: ignore[dict-item]
    status, why = run_cell(job)
    assert (status, why) == ("failed", f"a fault of the program, see {tmp_path}/cell.log")
    assert "TypeError" in (tmp_path / "cell.log").read_text()


def test_the_table_has_mean_deviation_and_the_papers_figure(tmp_path: Path) -> None:
    assert mean_and_deviation([{"linear": 0.5}, {"linear": 0.6}, {}], "linear") == pytest.approx((55, 7.0710678))
    assert mean_and_deviation([{}], "linear") is None
    grid = make_grid("table7", SCALES["paper"])
    found = {(cell.row, cell.column): [] for cell in grid.cells}
    found["sacl", "200"] = [{"linear": 0.5}, {"linear": 0.6}]
    text = write_grid(tmp_path, grid, "paper", found).read_text()
    assert "| sacl | 55.0 ± 7.1 (58.90) | - (62.26) | - (65.83) |" in text
    assert "Scale" not in text
    assert {"torch", "sacl"} <= json.loads((tmp_path / "table7.json").read_text())["versions"].keys()
    assert "Scale `small`" in write_grid(tmp_path, grid, "small", found).read_text()


def test_rows_are_compared_seed_by_seed(tmp_path: Path) -> None:
    grid = make_grid("negatives", SCALES["small"])
    found = {(cell.row, cell.column): [] for cell in grid.cells}
    found["none", "cifar10"] = [{"seed": seed, "linear": value} for seed, value in enumerate((0.4, 0.3, 0.5))]
    found["texture", "cifar10"] = [{"seed": 2, "linear": 0.53}, {"seed": 0, "linear": 0.41}, {"seed": 7, "linear": 1}]
    text = write_grid(tmp_path, grid, "small", found).read_text()
    assert "| texture | none | 2 | +2.0 ± 1.0 | - |" in text
    assert grid.against["texture, no grid"] == "none, no grid"
    assert grid.against["texture, geometric views"] == "none, geometric views"
    assert set(grid.against.values()) <= {cell.row for cell in grid.cells}


def test_a_stage_is_done_until_something_of_it_changes(tmp_path: Path) -> None:
    source, result, record = (tmp_path / name for name in ("in.txt", "out.json", "stage.json"))
    source.write_text("a")
    result.write_text("1")
    assert not is_done(record, {"x": (1,)}, [source], [result])
    record_done(record, {"x": (1,)}, [source], [result])
    assert is_done(record, {"x": (1,)}, [source], [result])
    assert not is_done(record, {"x": (2,)}, [source], [result])
    result.write_text("1")  # JSON anew with the same content
    assert is_done(record, {"x": (1,)}, [source], [result])
    result.unlink()
    assert not is_done(record, {"x": (1,)}, [source], [result])
    result.write_text("1")
    time.sleep(0.01)
    source.write_text("b")
    assert not is_done(record, {"x": (1,)}, [source], [result])
