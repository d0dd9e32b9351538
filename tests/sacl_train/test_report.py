"""The HTML report: its tables, and in a browser its charts, without errors or network, on a phone, in dark mode."""

import json
import re
import shlex
import shutil
from collections.abc import Iterator
from html import escape
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from sacl_train import train
from sacl_train.cli.evaluate import eval_main
from sacl_train.config import load_config
from sacl_train.evaluate.probe import PROTOCOLS
from sacl_train.export import export
from sacl_train.report.figures import read_figures
from sacl_train.report.page import write_page
from texturegen.errors import DamagedError, UserError

RUN = {"encoder": "se_resnet8", "width": 4, "stem": "cifar-stride2", "device": "cpu", "batch_size": 16, "knn_every": 1}
FLAGS = ("headless", "no-sandbox", "disable-gpu", "no-first-run", "disable-background-networking", "disable-sync")


@pytest.fixture(scope="module")
def page(shapes_shards: Path, shapes_test_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a report of two runs, one of them with probes and a map."""
    root = tmp_path_factory.mktemp("report")
    for name, changes in (("first", {"online": True}), ("<second>", {"texture_role": "none"})):
        train(load_config(None, {**RUN, "epochs": 2, **changes}), shapes_shards, root / name)
    run = ["--run", str(root / "first"), "--device", "cpu"]
    sets = ["--train", str(shapes_shards), "--test", str(shapes_test_shards)]
    for command in (
        ["knn", *run, *sets, "--destroy"],
        ["linear", *run, *sets, "--epochs", "3"],
        ["finetune", *run, *sets, "--share", "1", "--epochs", "1"],
        ["shortcut", *run, "--shards", str(shapes_shards)],
        ["embed", *run, "--images", str(shapes_test_shards)],
    ):
        done = CliRunner().invoke(eval_main, command)
        assert done.exit_code == 0, done.output
    out = root / "report.html"
    done = CliRunner().invoke(eval_main, ["report", str(root / "first"), str(root / "<second>"), "-o", str(out)])
    assert done.exit_code == 0, done.output
    return out


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    binary, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not binary or not driver:
        pytest.skip("needs chromium and chromedriver")
    webdriver = pytest.importorskip("selenium.webdriver")
    options = webdriver.ChromeOptions()
    options.binary_location = binary
    for flag in FLAGS:
        options.add_argument(f"--{flag}")
    options.add_argument(f"--user-data-dir={tmp_path_factory.mktemp('chromium')}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    service = webdriver.ChromeService(executable_path=driver)
    found = webdriver.Chrome(options=options, service=service)
    yield found
    found.quit()


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1200])
def test_report_works_in_browser(browser: Any, page: Path, scheme: str, width: int) -> None:
    browser.execute_cdp_cmd(
        "Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    )
    metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    browser.get(page.as_uri())
    assert [entry for entry in browser.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")] == []
    charts = browser.find_elements("css selector", ".chart .main-svg")
    assert len(browser.find_elements("css selector", ".chart")) == 5
    assert len(charts) >= 5
    assert len(browser.find_elements("css selector", ".map .point")) == 40
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    requests = browser.execute_script("return performance.getEntriesByType('resource').map(r => r.name)")
    assert [name for name in requests if not name.startswith(("data:", "blob:"))] == []
    ground = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
    plot = browser.execute_script("return getComputedStyle(document.querySelector('.chart .main-svg')).backgroundColor")
    assert ground == plot == {"light": "rgb(255, 255, 255)", "dark": "rgb(20, 23, 26)"}[scheme]
    for image in browser.find_elements("css selector", "img"):
        assert browser.execute_script("return arguments[0].naturalWidth", image) > 100


def test_report_has_every_figure_of_runs(page: Path) -> None:
    text = page.read_text()
    run = page.parent / "first"
    for probe in ("knn", "linear", "finetune"):
        for test in json.loads((run / f"eval-{probe}.json").read_text())["test"]:
            assert f"<td>{100 * test['top1']:.1f}</td>" in text
    for probe in ("knn", "linear"):  # how each was measured
        assert f"<td>{probe}</td><td>{PROTOCOLS[probe]}</td><td>online</td><td>images</td>" in text
    assert "online probe" in text
    assert "&lt;second&gt;" in text
    assert "<second>" not in text.replace("<\\/", "</").split('id="charts"')[0]
    assert "torch " in text


def test_every_corruption_and_every_class_has_row(page: Path, tmp_path: Path) -> None:
    for name in ("first", "<second>"):
        shutil.copytree(page.parent / name, tmp_path / name)
    errors = {"errors": {"fog": [0.25, 0.5], "snow": [0.75, 1.0]}}
    (tmp_path / "first" / "eval-corruption.json").write_text(json.dumps(errors))
    classes = {"classes": {"cat": {"bias": 0.8}, "dog": {"bias": None}}}
    (tmp_path / "<second>" / "eval-shape-bias.json").write_text(json.dumps(classes))
    knn = json.loads((tmp_path / "first" / "eval-knn.json").read_text())
    other = {"test": [{**row, "split": "other"} for row in knn["test"]]}
    (tmp_path / "<second>" / "eval-knn.json").write_text(json.dumps(other))
    write_page([tmp_path / "first", tmp_path / "<second>"], tmp_path / "r.html")
    text = (tmp_path / "r.html").read_text()
    rows = re.findall("<td>(knn|linear), ", text)  # a probe's rows stay together, whichever run has them
    assert rows == sorted(rows)
    assert "<td>knn, k=20, other: top-1</td>" in text
    for row in (("fog", "37.5", "-"), ("snow", "87.5", "-"), ("cat", "-", "80.0")):
        assert f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" in text
    assert "<td>dog</td>" not in text
    command = shlex.join(["sacl-eval", "embed", "--run", str(tmp_path / "<second>")])
    assert f"<code>{escape(command)}</code>" in text
    assert "Error by corruption" not in page.read_text()


def test_errors_name_directory(tmp_path: Path, page: Path) -> None:
    with pytest.raises(UserError, match="train one with `sacl-train --out 'no run'`"):
        write_page([Path("no run")], tmp_path / "r.html")
    with pytest.raises(UserError, match="a run is given twice"):
        write_page([page.parent / "first"] * 2, tmp_path / "r.html")
    (tmp_path / "config.toml").write_text("epochs = 1")
    (tmp_path / "eval-knn.json").write_text("{")
    with pytest.raises(DamagedError, match=r"eval-knn.json: damaged; it does not hold a JSON object"):
        write_page([tmp_path], tmp_path / "r.html")
    (tmp_path / "eval-knn.json").unlink()
    (tmp_path / "metrics.jsonl").write_text("{")
    with pytest.raises(DamagedError, match=r"config.toml or metrics.jsonl is damaged"):
        write_page([tmp_path], tmp_path / "r.html")


def test_changed_digit_of_figures_is_damage(page: Path, tmp_path: Path) -> None:
    figures = page.parent / "first" / "eval-knn.json"
    assert set(json.loads(figures.read_text())) - set(read_figures(figures)) == {"sha256"}
    shutil.copytree(page.parent / "first", tmp_path / "first")
    damaged = tmp_path / "first" / "eval-knn.json"
    damaged.write_text(re.sub(r'("top1": 0\.)(\d)', lambda m: f"{m[1]}{(int(m[2]) + 1) % 10}", figures.read_text()))
    message = r"eval-knn.json: damaged, its content differs .*; evaluate again"
    with pytest.raises(DamagedError, match=message):
        write_page([tmp_path / "first"], tmp_path / "r.html")
    with pytest.raises(DamagedError, match=message):
        export(tmp_path / "first", "safetensors")


def test_table_of_runs_has_speed_and_on_gpus_share_of_peak(page: Path, tmp_path: Path) -> None:
    assert "<th>images/s</th>" in page.read_text()
    assert "of the matrix peak" not in page.read_text()
    shutil.copytree(page.parent / "first", tmp_path / "card")
    rows = [json.loads(line) for line in (tmp_path / "card" / "metrics.jsonl").read_text().splitlines()]
    for row, mfu in zip(rows, (0.2, 0.28), strict=True):
        row |= {"samples_per_second": 17410.4, "mfu": mfu, "peak_memory_gb": 1.62}
    (tmp_path / "card" / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    text = write_page([tmp_path / "card"], tmp_path / "card.html").read_text()
    for cell in ("<th>of the matrix peak</th>", "<td>17,410</td>", "<td>24%</td>", "<td>1.6</td>"):
        assert cell in text
