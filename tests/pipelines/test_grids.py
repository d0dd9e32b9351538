"""Grids: their cells, how they run, resume and are skipped, and the arithmetic of the table."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipelines.grids import GRIDS, SCALES, make_grid, narrow, runner
from pipelines.grids.means import differences_of_means, table_of_means
from pipelines.grids.report import _colours, mean_and_deviation, write_grid
from pipelines.grids.runner import probe_settings, run_grid
from pipelines.grids.worker import Job, run_cell
from sacl_train.config import load_config
from sacl_train.methods import METHODS
from texturegen.builds import Recipe, build
from texturegen.errors import MissingError, UserError
from texturegen.storage.sealed import seal

TINY = SCALES["tiny"]
# One row of each kind in the largest grid; the settings of every row are checked. SACL_ALL_CELLS=1 trains all rows.
ROWS = ("untrained", "none", "texture", "patch-shuffle", "texture inside", "texture by wang-tiles")
ROWS += ("texture, mocov2", "texture, flat textures removed")


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("name", GRIDS)
def test_all_cells_have_valid_settings(name: str, scale: str) -> None:
    grid = make_grid(name, SCALES[scale])
    places = [(cell.row, cell.column) for cell in grid.cells]
    assert len(set(places)) == len(places) > 2
    assert len(
        {(c.row, str(sorted(c.settings.items())), c.dataset, str(c.build), c.filter) for c in grid.cells}
    ) == len(places)
    for cell in grid.cells:
        load_config(None, cell.settings)
        assert {"train", "test"} <= SCALES[scale].data[cell.dataset].keys()


def test_figures_of_paper_are_in_right_cells() -> None:
    def paper(name: str) -> dict[tuple[str, str], dict[str, float]]:
        return {(cell.row, cell.column): cell.paper for cell in make_grid(name, SCALES["paper"]).cells}

    assert paper("table3")["sacl", "stl10"] == {"linear": 84.90}
    assert paper("table3")["sacl", "imagenet100"] == {"linear": 78.3}
    assert paper("table3")["fast-moco", "cifar10"] == {}
    assert paper("table4")["pre", "imagenet100"] == {"linear": 77.77, "top5": 93.57}
    assert paper("table5")["cifar100", "64"] == {"linear": 41.26}
    assert paper("table6")["imagenet100", "0.99"] == {"linear": 78.00}
    assert paper("table7")["sacl", "800"] == {"linear": 65.83}
    settings = {c.column: c.settings for c in make_grid("table3", SCALES["paper"]).cells if c.row == "sacl"}["cifar10"]
    assert (settings["encoder"], settings["epochs"], settings["batch_size"]) == ("se_resnet50", 200, 128)
    # The paper trains and probes for 200 epochs, on ImageNet-100 for 100 (SACL §3.2).
    for name in ("table3", "table4", "table6"):
        for cell in make_grid(name, SCALES["paper"]).cells:
            expected = 100 if cell.dataset == "imagenet100" else 200
            assert cell.settings["epochs"] == expected
            assert probe_settings(SCALES["paper"], cell)["epochs"] == expected
            assert cell.settings["precision"] == "bf16"


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards of the tiny scale, built once for all tests."""
    out = tmp_path_factory.mktemp("grids") / "shards"
    for name, options in TINY.data["shapes"].items():
        build(Recipe(**options), out / f"shapes-{name}")
    return out


@pytest.fixture
def out(built: Path, tmp_path: Path) -> Path:
    """Output directory of a grid, with its shards."""
    (tmp_path / "grid").mkdir()
    (tmp_path / "grid" / "shards").symlink_to(built)
    return tmp_path / "grid"


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "ProcessPoolExecutor", _InProcess)
    monkeypatch.setattr("sacl_train.training.loop.draw_curves", lambda *_: None)  # takes longer than a tiny cell


def stamps(out: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in out.rglob("figures.json")}


@pytest.mark.slow
@pytest.mark.parametrize("name", GRIDS)
def test_tiny_grid_runs_and_is_not_repeated(
    name: str, out: Path, in_process: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    grid = make_grid(name, TINY)
    if name == "negatives" and "SACL_ALL_CELLS" not in os.environ:
        grid = narrow(grid, ROWS, {})
    if name == "novelty":
        grid = narrow(grid, ("simclr, none", "sacl, rotations and textures as instances, head", "shapes 3"), {})
    written = []
    # Writing the table after each cell takes longer than a tiny cell, so it is written once below.
    monkeypatch.setattr(runner, "write_grid", lambda *a: written.append(a) or out / f"{name}.md")
    methods = {cell.build["method"] for cell in grid.cells if "method" in cell.build} - {"quilting"}
    for method in methods:  # quilting is built by the grid itself
        build(Recipe(**{**TINY.data["shapes"]["train"], "method": method}), out / "shards" / f"shapes-train-{method}")
    run_grid(grid, TINY, out, device="cpu", seeds=1)
    assert len(written) == len(grid.cells)
    monkeypatch.undo()
    first = stamps(out)
    text = run_grid(grid, TINY, out, device="cpu", seeds=1).read_text()
    assert stamps(out) == first
    content = json.loads((out / f"{name}.json").read_text())
    assert len(content["cells"]) == len(first) == len(grid.cells)
    for cell in content["cells"]:
        (figures,) = cell["runs"]
        assert f"{100 * figures[grid.figures[0]]:.1f}" in text
        assert ("Linear: " + figures["probes"] in text) if "linear" in figures else "probes" not in figures
        # undefined if no decision was for shape or texture, and without a shift head
        shown = set(grid.figures) - {"shape_bias", "novelty_shift", "novelty_csi-shifts"}
        assert shown - {"spread", *figures} == set() or "spread" in shown
    assert (out / f"{name}.png").stat().st_size > 5000


class _InProcess:
    """Run jobs immediately in this process, because importing torch takes longer than a tiny cell."""

    def __init__(self, *_: object, **__: object) -> None: ...

    def __enter__(self) -> "_InProcess":
        return self

    def __exit__(self, *_: object) -> None: ...

    def submit(self, work, job):
        from concurrent.futures import Future

        future: Future = Future()
        future.set_result(work(job))
        return future

    def shutdown(self, **_: object) -> None: ...


@pytest.mark.slow
def test_seeds_run_in_worker_processes(out: Path) -> None:
    grid = narrow(make_grid("table6", TINY), ("0.9",), {})
    run_grid(grid, TINY, out, device="cpu", seeds=2, jobs=2)
    (cell,) = json.loads((out / "table6.json").read_text())["cells"]
    assert len(cell["runs"]) == 2
    assert (out / "table6.md").read_text().count("±") == 4


def test_finished_cell_is_independent_of_paths_devices_threads_and_versions(
    out: Path, in_process: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    grid = narrow(make_grid("table4", TINY), ("pre",), {})
    monkeypatch.chdir(out.parent)
    run_grid(grid, TINY, Path("grid"), device="cpu", seeds=1)
    first = stamps(out)
    for path in (*out.rglob("stage.json"), *out.rglob("shards/*/build.json")):  # as an older version writes them
        content = json.loads(path.read_text())
        if "texturegen" in content:
            content["texturegen"] = "0.0.1"
        else:
            del content["run"]["settings"]["online"]  # a newer setting
        path.write_text(json.dumps(seal(content) if path.name == "build.json" else content))
    moved = out.rename(out.with_name("moved"))
    run_grid(narrow(grid, (), {"threads": 1}), TINY, moved, device="auto", seeds=1)
    assert {path.relative_to(moved): stamp for path, stamp in stamps(moved).items()} == {
        path.relative_to(out): stamp for path, stamp in first.items()
    }
    assert not list(moved.rglob("*.old-*"))


def test_cell_with_other_settings_is_set_aside_and_moved_back(
    out: Path, in_process: None, capsys: pytest.CaptureFixture[str]
) -> None:
    grid = narrow(make_grid("table4", TINY), ("pre", "post"), {})
    run_grid(grid, TINY, out, device="cpu", seeds=1)
    first, cell = stamps(out), out / "cells" / "pre" / "shapes"
    before = {path.name: path.read_bytes() for path in (cell / "seed0").glob("checkpoint-*.pt")}
    changed = replace(grid, cells=(narrow(grid, ("pre",), {"tau": 0.5}).cells[0], grid.cells[1]))
    run_grid(changed, TINY, out, device="cpu", seeds=1)
    assert {path.name: path.read_bytes() for path in (cell / "seed0.old-1").glob("checkpoint-*.pt")} == before
    assert "seed0 was made with other settings or data: renamed to seed0.old-1" in (cell / "seed0.log").read_text()
    assert "tau = 0.5" in (cell / "seed0" / "config.toml").read_text()
    assert stamps(out / "cells" / "post") == {p: t for p, t in first.items() if "post" in p.parts}
    run_grid(grid, TINY, out, device="cpu", seeds=1)
    assert stamps(cell / "seed0") == {p: t for p, t in first.items() if "pre" in p.parts}
    assert len(list(cell.glob("seed0.old-*/checkpoint-*.pt"))) == 1


def test_rows_run_separately_are_in_one_table(out: Path, in_process: None, capsys: pytest.CaptureFixture[str]) -> None:
    grid = make_grid("table4", TINY)
    run_grid(grid, TINY, out, device="cpu", seeds=1, only=("pre",))
    text = run_grid(grid, TINY, out, device="cpu", seeds=1, only=("post",)).read_text()
    lines = [line.split(" | ") for line in text.splitlines() if line.startswith("| p")]
    assert [line[0] for line in lines] == ["| placement", "| pre", "| post"]
    assert all(len(line) == 4 and float(line[2]) >= 0 for line in lines[1:])
    # A row with another setting does not belong in the table.
    text = run_grid(narrow(grid, (), {"tau": 0.5}), TINY, out, device="cpu", seeds=1, only=("post",)).read_text()
    assert "| pre" not in text
    assert "left out of the table, because settings or shards differ: pre, shapes" in capsys.readouterr().out


def test_missing_package_raises_before_first_cell(out: Path, in_process: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "imagecorruptions", None)
    with pytest.raises(UserError, match="imagecorruptions-imaug"):
        run_grid(make_grid("negatives", TINY), TINY, out, device="cpu", seeds=1, only=("none",))
    assert not (out / "cells").exists()


def test_cells_are_distributed_over_devices(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def cell(job: runner.Job) -> tuple[str, Any]:
        seen.append(job.device)
        return "done", {"linear": 0.5, "top5": 0.5, "images": 60, "epochs": 1}

    monkeypatch.setattr(runner, "ProcessPoolExecutor", _InProcess)
    monkeypatch.setattr(runner, "run_cell", cell)
    run_grid(make_grid("table4", TINY), TINY, out, device="cuda:0,cuda:1", seeds=1)
    assert sorted(seen) == ["cuda:0", "cuda:0", "cuda:1", "cuda:1"]


@pytest.mark.slow
def test_ctrl_c_starts_no_further_cell_and_killed_grid_resumes(
    out: Path, monkeypatch: pytest.MonkeyPatch, uncovered: dict[str, str]
) -> None:
    line = [sys.executable, "-m", "pipelines", "table4", "--out", str(out), "--seeds", "1", "--device", "cpu"]
    line += ["--only", "pre", "--only", "post", "--set", "epochs=15", "--set", "save_every=1"]

    def begin(env: dict[str, str]) -> subprocess.Popen:
        return subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True, env=env)

    # A terminal's Ctrl-C, then a signal to the parent alone. No other test starts `python -m pipelines`.
    for kill, env in ((os.killpg, {**os.environ}), (os.kill, uncovered)):
        before = set(out.rglob("checkpoint-*.pt"))
        process = begin(env)
        while process.poll() is None and set(out.rglob("checkpoint-*.pt")) <= before:
            time.sleep(0.02)
        kill(process.pid, signal.SIGINT)
        output, _ = process.communicate(timeout=60)
        assert process.returncode == 130, output.decode()
        assert "Traceback" not in output.decode()
        assert len(list(out.rglob("config.toml"))) == 1, output.decode()
        assert not list(out.rglob("figures.json"))
    process = begin(uncovered)
    # A cell is done from stage.json on; killed between figures.json and that, it is measured again.
    while process.poll() is None and not list(out.rglob("stage.json")):
        time.sleep(0.02)
    process.kill()
    process.communicate(timeout=120)  # the workers hold the pipe, so this waits until they exit
    done = stamps(out)
    assert len(done) == 1
    grid = narrow(make_grid("table4", TINY), (), {"epochs": 15, "save_every": 1})
    monkeypatch.setattr(runner, "ProcessPoolExecutor", _InProcess)
    run_grid(grid, TINY, out, device="cpu", seeds=1, only=("pre", "post"))
    assert len(stamps(out)) == 2
    assert {path: stamps(out)[path] for path in done} == done


def test_failed_cell_is_reported_and_others_run(out: Path, in_process: None) -> None:
    grid = narrow(make_grid("table4", TINY), ("pre", "post"), {})
    broken = replace(grid.cells[0], settings={**grid.cells[0].settings, "batch_size": 500})
    with pytest.raises(UserError, match=r"1 of 2 runs failed; the first: pre, shapes, seed 0: batch_size is 500"):
        run_grid(replace(grid, cells=(broken, grid.cells[1])), TINY, out, device="cpu", seeds=1)
    assert len(json.loads((out / "table4.json").read_text())["cells"][1]["runs"]) == 1
    with pytest.raises(
        UserError, match=r"table4 has no row or column 'prae' \(did you mean 'pre'\?\); it has post, pre, "
    ):
        narrow(grid, ("prae",), {})


def test_missing_stimuli_are_found_before_the_first_build(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match="--stimuli nowhere: there is no such folder"):
        run_grid(make_grid("negatives", TINY), TINY, tmp_path / "out", stimuli="nowhere")
    assert not (tmp_path / "out").exists()


def fail_with_a_name_that_is_no_text(*_: object) -> None:
    raise RuntimeError(os.fsdecode(b"\xe9.png"))


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (OSError(28, "No space left on device", "run/checkpoint-1.pt"), "run/checkpoint-1.pt: No space left on device"),
        (MemoryError("Unable to allocate 9 GiB"), "not enough memory; try fewer --jobs"),
    ],
)
def test_a_full_disk_or_memory_is_not_an_internal_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, reason: str
) -> None:
    def end(*_: object) -> None:
        raise error

    monkeypatch.setattr("pipelines.grids.worker._run_cell", end)
    job = Job(make_grid("table4", TINY).cells[0], 0, str(tmp_path / "cell"), {}, {}, (), {}, {}, None, "cpu")
    assert run_cell(job) == ("failed", reason)
    assert str(error) in (tmp_path / "cell.log").read_text()


def test_internal_error_is_in_log_of_cell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cell = make_grid("table4", TINY).cells[0]
    job = Job(cell, 0, str(tmp_path / "cell"), {"train": None}, {"train": ""}, ("linear",), {}, {}, None, "cpu")  # type: ignore[dict-item]
    status, why = run_cell(job)
    assert (status, why) == ("failed", f"internal error, see the traceback in {tmp_path}/cell.log")
    assert "TypeError" in (tmp_path / "cell.log").read_text()
    monkeypatch.setattr("pipelines.grids.worker._run_cell", fail_with_a_name_that_is_no_text)
    assert run_cell(job)[0] == "failed"
    assert r"\udce9.png" in (tmp_path / "cell.log").read_text()


def test_table_has_mean_deviation_and_figure_of_paper(tmp_path: Path) -> None:
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


def test_table_of_figures_has_those_of_paper(tmp_path: Path) -> None:
    grid = make_grid("table4", SCALES["paper"])
    found = {(cell.row, cell.column): [{"seed": 0, "linear": 0.5, "top5": 0.75}] for cell in grid.cells}
    text = write_grid(tmp_path, grid, "paper", found).read_text()
    assert "| pre | 1 | 50.0 (77.77) | 75.0 (93.57) |" in text


@pytest.mark.parametrize("scale", SCALES)
def test_methods_are_compared_on_like_views_and_the_table_says_how(scale: str, tmp_path: Path) -> None:
    grid = make_grid("table3", SCALES[scale])
    assert {cell.row for cell in grid.cells} == {*METHODS}
    configs = [load_config(None, cell.settings) for cell in grid.cells]
    assert {(c.weak, c.crop_scale, c.jitter, c.grey) for c in configs} == {("mocov2", None, None, 0.2)}
    runs = [{"seed": 0, "linear": 0.5, "probes": "by least squares"}]
    text = write_grid(tmp_path, grid, scale, {(cell.row, cell.column): runs for cell in grid.cells}).read_text()
    assert text.startswith("# Linear evaluation by method (SACL, table 3), all methods on MoCo v2's views\n")
    assert text.count("Linear: by least squares;") == 1


@pytest.mark.parametrize("count", [3, 10, 11, 30])
def test_rows_of_a_picture_differ_in_colour(count: int) -> None:
    from matplotlib.colors import to_hex

    assert len({to_hex(colour) for colour in _colours(count)}) == count


def test_rows_are_compared_seed_by_seed(tmp_path: Path) -> None:
    grid = make_grid("negatives", SCALES["small"])
    found = {(cell.row, cell.column): [] for cell in grid.cells}
    found["none", "cifar10"] = [{"seed": seed, "linear": value} for seed, value in enumerate((0.4, 0.3, 0.5))]
    found["texture", "cifar10"] = [{"seed": 2, "linear": 0.53}, {"seed": 0, "linear": 0.41}, {"seed": 7, "linear": 1}]
    text = write_grid(tmp_path, grid, "small", found).read_text()
    assert "| texture | none | 2 | +2.0 ± 1.0 | - |" in text
    assert grid.against["texture, no grid"] == "none, no grid"
    assert grid.against["texture, geometric views"] == "none, geometric views"
    assert grid.against["texture, mocov2"] == "none, mocov2"
    assert grid.against["texture, flat textures removed"] == "none, flat textures removed"
    assert set(grid.against.values()) <= {cell.row for cell in grid.cells}


def test_means_over_columns_and_paired_differences() -> None:
    """Two classes and two seeds: the error of a mean comes from the seeds, that of a difference from the pairs."""
    grid = narrow(make_grid("novelty", TINY), ("simclr, none", "simclr, textures", "shapes 3", "shapes 4"), {})
    values = {("none", 3): (0.5, 0.52), ("none", 4): (0.7, 0.74), ("textures", 3): (0.6, 0.6), ("textures", 4): (0.7,)}
    found = {(cell.row, cell.column): [] for cell in grid.cells}
    for (row, number), each in values.items():
        runs = [{"seed": seed, "novelty_knn": value} for seed, value in enumerate(each)]
        found[f"simclr, {row}", f"shapes {number}"] = runs
    means = table_of_means(grid, found)
    assert means[0] == "| negatives | columns | runs | AUROC, kNN, % |"
    assert means[2] == "| simclr, none | 2 | 4 | 61.5 ± 1.1 |"  # the square root of 1 + 4, over 2
    assert means[3] == "| simclr, textures | 2 | 3 | 65.0 |"
    differences = differences_of_means(grid, found)
    # 10, 8 and 0 points: 6 on average, with a standard deviation of 5.29
    assert "| simclr, textures | simclr, none | 3 | +6.0 ± 3.1 | - | - | - | - |" in differences
