"""The commands as a user types them: output, error messages, exit statuses."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
import tomllib
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated, ClassVar

import cv2
import numpy as np
import pytest
from click.testing import CliRunner

from sacl_train.nets import ENCODERS
from tests.commands import BIN, call, refused, start
from texturegen import __version__
from texturegen.builds.engines import ENGINES
from texturegen.builds.engines import Entry as EngineEntry
from texturegen.cli import main
from texturegen.errors import UserError
from texturegen.sources import SOURCES, Entry, open_source
from texturegen.sources.base import Item, Source
from texturegen.texture import METHODS, Method, resolve_settings, synthesize
from texturegen.texture.settings import Integer

TRAIN = ["--set", "width=4", "--set", "stem=cifar-stride2", "--set", "projector_hidden=16", "--set", "projector_out=16"]
TRAIN += ["--encoder", "se_resnet8", "--batch-size", "16", "--device", "cpu"]


@pytest.mark.parametrize("command", ["texturegen", "sacl-train", "sacl-eval", "sacl-export"])
def test_version_and_help(command: str) -> None:
    status, stdout, stderr = start(command, "--version")
    assert (status, stdout, stderr) == (0, f"{command}, version {__version__}\n", "")
    assert "Usage" in call(command, "--help")[1]


@pytest.mark.parametrize("command", ["texturegen", "sacl-eval"])
def test_the_list_of_commands_shows_whole_sentences(command: str) -> None:
    lines = call(command, "--help")[1].partition("Commands:\n")[2].splitlines()
    assert len(lines) > 5
    assert [line for line in lines if line.endswith("...")] == []
    assert [line for line in lines if not line.startswith("  ") or line.startswith("   ")] == []  # nothing wrapped


def test_help_groups_options_and_names_every_encoder() -> None:
    build, train = call("texturegen", "build", "--help")[1], call("sacl-train", "--help")[1]
    headings = re.findall(r"^(\w+):$", build, re.MULTILINE)
    assert headings == ["Images", "Synthesis", "Shards", "Execution", "Options"]
    assert build.index("Images:") < build.index("--dataset") < build.index("Synthesis:") < build.index("--method")
    for name in ENCODERS:
        assert name in train or name.removeprefix("se_resnet") in train


def fake_method(
    patches: Sequence[np.ndarray], size: tuple[int, int], seed: int, *, row: Annotated[int, Integer(0, 9)] = 0
) -> np.ndarray:
    """Repeat one pixel of the first patch."""
    return np.full((*size, 3), (0, row, 0), np.int32)


class FakeSource(Source):
    name, split, size = "fake", None, None
    classes: ClassVar[list[str]] = []

    def __init__(self, split: None, size: int | None) -> None: ...

    def __len__(self) -> int:
        return 2

    def key(self, index: int) -> str:
        return f"fake-{index}"

    def _read(self, index: int) -> Item:
        return Item(self.key(index), np.full((16, 16, 3), index, np.uint8))

    def _identity(self) -> str:
        return "fake"


def test_a_new_method_or_source_is_one_module_and_one_entry(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "texturegen.texture.methods.fake", SimpleNamespace(fake=fake_method))
    monkeypatch.setitem(METHODS, "fake-method", Method("fake:fake", "a method of this test"))
    monkeypatch.setitem(sys.modules, "texturegen.sources.fake", SimpleNamespace(Fake=FakeSource))
    monkeypatch.setitem(SOURCES, "fake-source", Entry("fake:Fake", "a source of this test"))
    monkeypatch.setitem(ENGINES, "fake-engine", EngineEntry("fake:fake", "an engine of this test"))
    for command in ("build", "plan", "texture"):
        shown = CliRunner().invoke(main, [command, "--help"]).output
        assert re.search(r"^ +fake-method +a method of this test$", shown, re.MULTILINE)
        assert (re.search(r"^ +fake-source +a source of this test$", shown, re.MULTILINE) is None) == (
            command == "texture"
        )
        assert ("an engine of this test" in shown) == (command == "build")
        # Longer lines would be broken in a terminal of 80 columns.
        assert max(map(len, shown.splitlines())) <= 80
        for name in (*METHODS, *(SOURCES if command != "texture" else ())):
            assert re.search(rf"^ +{name}  ", shown, re.MULTILINE)
    source = open_source("fake-source")
    assert (synthesize([source[1].image], (4, 5), "fake-method", row=3).image == 1).all()
    with pytest.raises(UserError, match="setting 'row' of method 'fake-method' must be an integer from 0 to 9"):
        resolve_settings("fake-method", {"row": 10})


def test_build_info_verify_preview(tmp_path: Path) -> None:
    out = tmp_path / "s"
    status, stdout, _ = call(
        "texturegen", "build", "--dataset", "shapes", "--limit", 12, "--per-image", 2, "--out", out
    )
    assert status == 0
    assert "12 images, 24 textures, 0 failed" in stdout
    status, stdout, _ = call("texturegen", "info", out)
    assert status == 0
    assert "shapes, split train, 10 classes" in stdout
    assert "24 (2 per image), coherent" in stdout
    assert call("texturegen", "verify", out)[0] == 0
    sheet = tmp_path / "sheet.png"
    assert call("texturegen", "preview", out, "-o", sheet)[0] == 0
    assert cv2.imread(str(sheet)).shape[1] > 3 * 96
    tar = out / "shard-000000.tar"
    tar.write_bytes(tar.read_bytes()[:-1])
    status, _, stderr = call("texturegen", "verify", out)
    assert status == 1
    assert "shard-000000.tar" in stderr
    assert "shard-000000.tar" in refused("texturegen", "info", out)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--dataset", "cifar"], "did you mean 'cifar10'"),
        (["--dataset", "shapes", "--method", "efros"], "did you mean 'efros-leung'"),
        (["--dataset", "shapes", "--split", "validation"], "validation"),
        (["--dataset", "shapes", "--method-option", "size=3"], "size"),
        (["--dataset", "shapes", "--source-option", "backgrund=photo"], "backgrund"),
        (["--dataset", "shapes", "--source-option", "background=forest"], "forest"),
        (["--dataset", "folder", "--root", "nowhere"], "nowhere"),
        (["--dataset", "cifar10", "--root", "nowhere"], "--download"),
        (["--dataset", "stl10", "--root", "nowhere"], "--download"),
        (["--dataset", "folder"], "--root"),
        (["--dataset", "shapes", "--per-image", "-1"], "--per-image"),
        (["--dataset", "shapes", "--size", "0"], "size"),
    ],
)
def test_a_wrong_build_is_refused(tmp_path: Path, arguments: list[str], message: str) -> None:
    assert message in refused("texturegen", "build", *arguments, "--out", tmp_path / "s")
    assert not (tmp_path / "s").exists()


def test_log_json_reports_errors_failures_and_plans(image_folder: Path, tmp_path: Path) -> None:
    def events(*arguments: str | Path) -> list[dict]:
        return [json.loads(line) for line in call("texturegen", *arguments, "--log-json")[1].splitlines()]

    folder = ["--dataset", "folder", "--root", str(image_folder)]
    (image_folder / "cats" / "bad.png").write_text("no image")
    (finished,) = events("build", *folder, "--out", tmp_path / "s")
    assert (finished["event"], finished["failed"]) == ("finished", 1)
    assert finished["failures"][0]["key"].startswith("cats-bad-")
    (error,) = events("build", *folder, "--seed", "1", "--out", tmp_path / "s")
    assert error["event"] == "error"
    assert "holds another build (recipe.seed 0 there, 1 requested)" in error["message"]
    (plan,) = events("plan", *folder, "--seconds", "0.2")
    assert (plan["event"], plan["images"], plan["shards"], plan["failed"]) == ("plan", 7, 1, 1)
    assert "--seconds is nan" in refused("texturegen", "plan", *folder, "--seconds", "nan")


def test_classes_are_what_a_file_holds_not_where_it_lies(tmp_path: Path, photo: np.ndarray) -> None:
    for wnid in ("n02102040", "n01440764"):
        (tmp_path / "train" / wnid).mkdir(parents=True)
        cv2.imwrite(str(tmp_path / "train" / wnid / "1.JPEG"), photo)
    (tmp_path / "a.txt").write_text("n02102040\nn01440764\n")
    (tmp_path / "b.txt").write_text("n02102040\nn01440764")
    build = ["texturegen", "build", "--dataset", "imagenet100", "--root", str(tmp_path), "--out", str(tmp_path / "s")]
    assert call(*build, "--per-image", "0", "--classes", str(tmp_path / "a.txt"))[0] == 0
    (tmp_path / "a.txt").unlink()
    assert call(*build, "--per-image", "0", "--source-option", f"classes={tmp_path / 'b.txt'}")[0] == 0
    (tmp_path / "s" / "shard-000000.tar").unlink()
    (tmp_path / "b.txt").unlink()
    assert call("texturegen", "repair", str(tmp_path / "s"), "--root", str(tmp_path))[0] == 0


def test_an_unreadable_option_is_a_usage_error(tmp_path: Path) -> None:
    status, _, stderr = call(
        "texturegen", "build", "--dataset", "shapes", "--method-option", "window", "--out", tmp_path
    )
    assert status == 2
    assert "not of the form KEY=VALUE" in stderr


def test_empty_folders_are_refused(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    refused("texturegen", "build", "--dataset", "folder", "--root", tmp_path / "images", "--out", tmp_path / "s")
    (tmp_path / "images" / "notes.txt").write_text("no image")
    refused("texturegen", "build", "--dataset", "folder", "--root", tmp_path / "images", "--out", tmp_path / "s")
    assert not (tmp_path / "s").exists()


def test_a_folder_with_bad_files_is_built_without_them(image_folder: Path, tmp_path: Path, photo: np.ndarray) -> None:
    from PIL import Image

    good = Image.fromarray(photo[:32, :32])
    folder = image_folder / "cats"
    (folder / "notes.txt").write_text("no image")
    good.save(folder / "whole.jpg")
    data = (folder / "whole.jpg").read_bytes()
    (folder / "truncated.jpg").write_bytes(data[: len(data) * 2 // 3])
    cv2.imwrite(str(folder / "deep.png"), photo[:32, :32].astype(np.uint16) * 257)
    good.convert("CMYK").save(folder / "cmyk.jpg")
    good.save(folder / "moving.gif", save_all=True, append_images=[Image.fromarray(photo[40:72, 40:72])])
    out = tmp_path / "s"
    status, stdout, stderr = call("texturegen", "build", "--dataset", "folder", "--root", image_folder, "--out", out)
    assert status == 3
    assert "10 images, 10 textures, 1 failed" in stdout
    assert "failed: cats-truncated" in stderr
    assert "ignored 1 file (not an image): cats/notes.txt\n" in stderr
    assert stderr.splitlines()[-1].startswith("error: 1 image")
    assert call("texturegen", "verify", out)[0] == 0
    again = call("texturegen", "build", "--dataset", "folder", "--root", image_folder, "--out", out)
    assert (again[0], again[1]) == (3, stdout)


def test_a_build_needs_no_stderr(image_folder: Path, tmp_path: Path) -> None:
    (image_folder / "cats" / "bad.png").write_text("no image")
    out = tmp_path / "s"
    command = f"{BIN / 'texturegen'} build --dataset folder --root {image_folder} --workers 1 --out {out} 2>&-"
    done = subprocess.run(command, shell=True, stdout=subprocess.PIPE, text=True)
    assert (done.returncode, done.stdout) == (3, f"{out}: 6 images, 6 textures, 1 failed\n")
    assert call("texturegen", "verify", out)[0] == 0


def test_control_characters_in_file_names_are_escaped(image_folder: Path, tmp_path: Path) -> None:
    (image_folder / "cats" / "x\x1b[2J\n.jpg").write_bytes(b"")
    status, stdout, stderr = call(
        "texturegen", "build", "--dataset", "folder", "--root", image_folder, "--out", tmp_path / "s"
    )
    assert status == 3
    assert all(line.isprintable() for line in (stdout + stderr).splitlines())
    assert r"cats/x\x1b[2J\n.jpg: the file is empty" in stderr


def make_pictures(folder: bytes, count: int = 4) -> None:
    os.makedirs(folder, exist_ok=True)
    for i in range(count):
        image = np.random.default_rng(i).integers(0, 256, (32, 32, 3), np.uint8)
        with open(folder + b"/%d.png" % i, "wb") as f:
            f.write(cv2.imencode(".png", image)[1])


def test_class_names_that_are_not_utf8_are_shown_with_a_replacement(tmp_path: Path) -> None:
    for name in (b"chat", b"fen\xeatre"):
        make_pictures(os.fsencode(tmp_path) + b"/in/" + name)
    out, run = tmp_path / "s", tmp_path / "r"
    assert call("texturegen", "build", "--dataset", "folder", "--root", tmp_path / "in", "--out", out)[0] == 0
    assert json.loads((out / "build.json").read_text())["source"]["classes"] == ["chat", "fen\ufffdtre"]
    assert call("texturegen", "preview", out, "-o", tmp_path / "p.png")[0] == 0
    train = ["--shards", out, "--out", run, "--epochs", 0, *TRAIN, "--batch-size", 4]
    assert call("sacl-train", *train)[0] == 0
    assert call("sacl-eval", "embed", "--run", run, "--images", out)[0] == 0
    make_pictures(os.fsencode(tmp_path) + b"/in/fen\xebtre")
    message = refused("texturegen", "build", "--dataset", "folder", "--root", tmp_path / "in", "--out", tmp_path / "t")
    assert "the names of several folders are not UTF-8" in message


@pytest.mark.parametrize("name", [b"s3:donn\xe9es", b"file:x"])
def test_paths_that_arrow_would_misread(tmp_path: Path, name: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    make_pictures(os.fsencode(tmp_path) + b"/in/a")
    (tmp_path / "in" / "a" / "bad.png").write_bytes(b"")
    monkeypatch.chdir(tmp_path)
    out = os.fsdecode(name)
    build = ["build", "--dataset", "folder", "--root", "in", "--workers", "1", "--out", out]
    for arguments, expected in (
        (build, 3),
        (build, 3),
        ([*build, "--retry-failed"], 3),
        (["verify", out], 0),
        (["info", out], 0),
        (["repair", out, "--root", "in"], 0),
        (["split", out, "--share", "0.5", "-o", f"{out}3"], 0),
    ):
        status, _, stderr = call("texturegen", *arguments)
        assert status == expected, stderr


def test_files_rewritten_during_a_build_are_failed_images(tmp_path: Path, uncovered: dict[str, str]) -> None:
    make_pictures(os.fsencode(tmp_path) + b"/in", 60)
    command = [BIN / "texturegen", "build", "--dataset", "folder", "--root", "in", "--per-image", "8", "--workers", "1"]
    command += ["--shard-size", "10", "--out", "s"]
    process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True, env=uncovered)
    while not (tmp_path / "s" / "parts" / "recipe.json").exists():
        assert process.poll() is None
        time.sleep(0.01)
    for i in (58, 59):
        (tmp_path / "in" / f"{i}.png").write_bytes((tmp_path / "in" / "0.png").read_bytes() + b"\n" * (i - 57))
    _, stderr = process.communicate(timeout=120)
    assert process.returncode == 3, stderr
    assert re.search(r"58\.png: had \d+ bytes when the images were listed and has \d+ now; restore it", stderr)
    assert "error: 2 images failed" in stderr
    message = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=uncovered).stderr
    assert "the data set's images differ" in message


def test_a_link_that_leads_nowhere_is_named(shapes_shards: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("nowhere")
    for out in (tmp_path / "link", tmp_path / "link" / "s"):
        for message in (
            refused("texturegen", "build", "--dataset", "shapes", "--limit", "3", "--out", out),
            refused("sacl-train", "--shards", shapes_shards, *TRAIN, "--out", out),
        ):
            assert f"{tmp_path / 'link'} is a link to nowhere, which does not exist; create that directory" in message


@pytest.mark.parametrize("guard", ["", "if __name__ == '__main__':\n    "])
def test_a_script_needs_a_main_guard(tmp_path: Path, guard: str) -> None:
    build = "texturegen.build(texturegen.Recipe('shapes', limit=4), 's', workers=2)\n"
    (tmp_path / "script.py").write_text(f"import texturegen\n{guard}{build}")
    done = subprocess.run([sys.executable, "script.py"], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    if guard:
        assert (done.returncode, done.stderr) == (0, "")
    else:
        assert done.returncode == 1
        assert done.stderr.count("Traceback") == 1
        assert 'must do so below `if __name__ == "__main__":`' in done.stderr.splitlines()[-1]


def test_a_script_on_stdin_builds_with_workers(tmp_path: Path) -> None:
    script = "import texturegen\ntexturegen.build(texturegen.Recipe('shapes', limit=4), 's', workers=1)\n"
    done = subprocess.run(
        [sys.executable, "-"], input=script, cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert (done.returncode, done.stderr) == (0, "")


INTERRUPT = """
import os, signal, sys

calls = None  # since run_command was called; counted, not timed, so that a busy machine hits the same places

def count(frame, event, argument):
    global calls
    if calls is None and event == "call" and frame.f_code.co_name == "run_command":
        calls = 0
    elif calls is not None:
        calls += 1
        if calls == int(os.environ["INTERRUPT_AT"]):
            os.kill(os.getpid(), signal.SIGINT)

sys.setprofile(count)
"""


@pytest.mark.parametrize(
    "command",
    [
        ["texturegen", "build", "--dataset", "shapes", "--limit", "5", "--out", "s"],
        ["texturegen", "verify", "shards"],
        ["sacl-train", "--shards", "shards", "--out", "r"],
        ["sacl-eval", "embed", "--run", "r", "--images", "shards"],
        ["sacl-export", "r"],
    ],
)
def test_ctrl_c_while_a_command_starts(
    shapes_shards: Path, tmp_path: Path, command: list[str], uncovered: dict[str, str]
) -> None:
    (tmp_path / "sitecustomize.py").write_text(INTERRUPT)
    (tmp_path / "shards").symlink_to(shapes_shards)
    # The handler is there after some 20 calls; a command imports for about 200,000 before it runs.
    for calls in (40, 5_000, 60_000, 150_000):
        environment = {**uncovered, "PYTHONPATH": str(tmp_path), "INTERRUPT_AT": str(calls)}
        done = subprocess.run(
            [BIN / command[0], *command[1:]], cwd=tmp_path, env=environment, capture_output=True, text=True
        )
        assert (done.returncode, "Traceback" in done.stderr) == (130, False), (calls, done.stderr)


def test_a_full_disk_is_one_line_and_the_build_can_resume(tmp_path: Path, uncovered: dict[str, str]) -> None:
    # A limit on the size of files simulates the full disk: the same write fails with an OSError.
    build = [str(BIN / "texturegen"), "build", "--dataset", "shapes", "--limit", "60", "--shard-size", "20"]
    script = "import resource, signal, sys, os; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
    script += "resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000)); os.execv(sys.argv[1], sys.argv[1:])"
    command = [sys.executable, "-c", script, *build, "--workers", "1", "--out", str(tmp_path / "s")]
    done = subprocess.run(command, capture_output=True, text=True, env=uncovered)
    assert done.returncode == 1
    assert "File too large" in done.stderr
    assert "Traceback" not in done.stderr
    assert not list((tmp_path / "s").glob("*.tmp"))
    assert (
        call("texturegen", "build", "--dataset", "shapes", "--limit", 60, "--shard-size", 20, "--out", tmp_path / "s")[
            0
        ]
        == 0
    )


def test_a_directory_that_cannot_be_created_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    places = [tmp_path / "file" / "s"]
    if Path("/sys/kernel").is_dir():  # not even root can create one there
        places.append(Path("/sys/s"))
    for out in places:
        message = refused("texturegen", "build", "--dataset", "shapes", "--limit", 3, "--out", out)
        assert re.search(r"([Nn]ot a directory|not permitted|Permission denied|Read-only)", message)
        assert str(out) in message


def test_train_and_evaluate(shapes_shards: Path, shapes_test_shards: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    status, stdout, stderr = call("sacl-train", "--shards", shapes_shards, "--out", run, "--epochs", 2, *TRAIN)
    assert status == 0, stderr
    assert "epoch 2, loss" in stdout
    for probe in ("knn", "linear"):
        options = ["--run", run, "--shards", shapes_shards, "--test-shards", shapes_test_shards, "--device", "cpu"]
        status, stdout, stderr = call("sacl-eval", probe, *options)
        assert status == 0, stderr
        assert "texture decisions" in stdout
        figures = json.loads((run / f"eval-{probe}.json").read_text())
        assert figures["probe"] == probe
        assert figures["command"].startswith(f"sacl-eval {probe} --run")
        assert f"{figures['test'][0]['top1']:.2%}" in stdout


def test_a_dry_run_prints_the_settings_and_writes_nothing(shapes_shards: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    train = ["--shards", shapes_shards, "--out", run, *TRAIN]
    status, stdout, stderr = call("sacl-train", *train, "--epochs", 2, "--dry-run")
    assert status == 0, stderr
    assert not run.exists()
    assert stdout.startswith("# 64 images, kept decoded in memory; 2 epochs of ")
    settings = tomllib.loads(stdout)
    assert settings["epochs"] == 2
    assert len(settings["mean"]) == 3
    assert "grid" in refused("sacl-train", *train, "--dry-run", "--set", "grid=3")
    assert call("sacl-train", *train, "--epochs", 1)[0] == 0
    assert "holds another run (epochs: 1 there, 2 here)" in refused("sacl-train", *train, "--dry-run", "--epochs", 2)


def test_wrong_training_is_refused(shapes_shards: Path, shapes_test_shards: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    train = ["--out", out, *TRAIN]
    assert "have no textures" in refused(
        "sacl-train", *train, "--shards", shapes_test_shards, "--texture-role", "negative"
    )
    assert "batch_size is 100" in refused("sacl-train", *train, "--shards", shapes_shards, "--batch-size", 100)
    assert "no shards here" in refused("sacl-train", *train, "--shards", tmp_path)
    assert "did you mean 'se_resnet50'" in refused(
        "sacl-train", *train, "--shards", shapes_shards, "--encoder", "se_resnet5"
    )
    assert "did you mean 'epochs'" in refused("sacl-train", *train, "--shards", shapes_shards, "--set", "epoch=3")
    assert "nowhere.toml" in refused("sacl-train", *train, "--shards", shapes_shards, "--config", "nowhere.toml")
    (tmp_path / "bom.toml").write_bytes(b"\xef\xbb\xbfepochs = 3\r\n")  # as Windows' Notepad saves it
    assert (
        "epochs = 3"
        in call("sacl-train", *train, "--shards", shapes_shards, "--config", tmp_path / "bom.toml", "--dry-run")[1]
    )
    assert "cuda:7" in refused("sacl-train", *train, "--shards", shapes_shards, "--device", "cuda:7")
    copy = Path(shutil.copytree(shapes_shards, tmp_path / "copy"))
    data = (copy / "shard-000001.tar").read_bytes()
    (copy / "shard-000001.tar").write_bytes(data[:3000] + data[3001:])
    assert "shard-000001.tar" in refused("sacl-train", *train, "--shards", copy)
    assert not out.exists()
