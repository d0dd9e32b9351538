"""A recipe is checked as a whole before its first image; a set's own root comes before --root."""

import re
from pathlib import Path
from typing import Any

import pytest

from pipelines import runner
from pipelines.checks import check_journey
from pipelines.commands import Commands
from pipelines.options import make_flags, read_build
from pipelines.recipe import load_recipe
from texturegen.builds import Recipe
from texturegen.errors import UserError

FOLDERS = """
[build]
dataset = "folder"
[sets.train]
root = "photos/train"
[sets.test]
root = "photos/val"
per_image = 0
[train]
encoder = "se_resnet8"
epochs = 0
[runs.untrained]
texture_role = "none"
[evaluate.knn]
"""


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, image_folder: Path) -> Path:
    """A recipe of two folders, in the current directory."""
    monkeypatch.chdir(tmp_path)
    for name in ("train", "val"):
        for number, path in enumerate(sorted(image_folder.rglob("*.png"))):
            target = tmp_path / "photos" / name / "ab"[number % 2] / path.name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(path.read_bytes() if name == "train" else b"other")
    path = tmp_path / "mine.toml"
    path.write_text(FOLDERS)
    return path


def test_root_of_a_set_comes_first_and_the_second_run_skips_the_build(
    folders: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    journey = load_recipe(str(folders), {})
    plans = check_journey(journey, "photos", ["cpu"])
    assert (
        "--root photos does not apply to train, test: mine names their root, which comes first"
        in capsys.readouterr().err
    )
    del journey.sets["test"]["root"]
    check_journey(journey, "photos/val", ["cpu"])
    assert "--root photos/val does not apply to train: mine names" in capsys.readouterr().err
    calls: list[tuple[str, ...]] = []

    def stop(self: Commands, name: str, *line: str) -> None:
        calls.append(line)

    monkeypatch.setattr(Commands, "call", stop)
    commands = Commands(folders.parent, 1)
    for name, options in journey.sets.items():
        commands.build(folders.parent / name, options, "photos/val")
    assert [line[line.index("--root") + 1] for line in calls] == ["photos/train", "photos/val"]
    from texturegen.builds import build

    build(*[read_build(journey.sets["train"])[0], folders.parent / "train"], root="photos/train", workers=0)
    calls.clear()
    for plan in (None, plans["train"]):
        commands.build(folders.parent / "train", journey.sets["train"], None, plan)
        assert calls == []
        assert "already done" in capsys.readouterr().out
        monkeypatch.setattr("texturegen.builds.recipe.make_plan", None)  # the data set is not opened again


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sets.test.root": "nowhere"}, r"mine: \[sets\.test\]: the image folder nowhere does not exist"),
        ({"sets.test.sise": 32}, r"\[sets\.test\]: No such option '?--sise'?.*--size"),
        ({"sets.test.out": "x"}, r"\[sets\.test\]: out is chosen by the recipe; leave it out"),
        ({"evaluate.knn.encoder": "x.pth"}, r"\[evaluate\.knn\]: encoder is chosen by the recipe"),
        ({"sets.test.size": "large"}, r"\[sets\.test\]: Invalid value for '--size'"),
        ({"build.method": "wang"}, r"\[sets\.train\]: .*'wang'.*did you mean 'wang-tiles'"),
        (
            {"sets.test.split": "a"},
            r"\[evaluate\.knn\]: the classes of set test \(none\) are not .* train \(a, b\)",
        ),
        ({"runs.untrained.epoch": 3}, r"\[runs\.untrained\]: there is no setting 'epoch'"),
        ({"evaluate.knn.k": "many"}, r"\[evaluate\.knn\]: Invalid value for '--k'"),
        (
            {"evaluate.shape-bias.stimuli": "cues"},
            r"\[evaluate\.shape-bias\]: stimuli is 'cues', which is neither",
        ),
        (
            {"runs.untrained.texture_role": "negative", "sets.train.per_image": 0},
            r"\[runs\.untrained\]: texture_role negative needs textures, but \[sets\.train\] has per_image = 0",
        ),
    ],
)
def test_mistakes_are_found_before_the_first_image(
    changes: dict[str, Any], message: str, folders: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Commands, "call", lambda *_: pytest.fail("a command was run"))
    with pytest.raises(UserError, match=message):
        runner.run(load_recipe(str(folders), changes), folders.parent / "out")
    assert not (folders.parent / "out").exists()


@pytest.mark.parametrize("source", ["patch-shuffle", "rotations"])
def test_textures_made_while_training_need_none_in_the_shards(source: str, folders: Path) -> None:
    changes = {"texture_role": "negative", "texture_source": source}
    settings = {f"runs.untrained.{name}": value for name, value in changes.items()} | {"sets.train.per_image": 0}
    check_journey(load_recipe(str(folders), settings), None, ["cpu"])


def test_unknown_device_and_equal_sets_are_said(folders: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError, match="device 'cuda:77' is not available"):
        check_journey(load_recipe(str(folders), {}), None, ["cuda:77"])
    check_journey(load_recipe(str(folders), {"sets.test.root": "photos/train"}), None, ["cpu"])
    assert "the sets train and test have the same images" in capsys.readouterr().err


def test_recipes_of_the_docs_are_valid(folders: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / "recipes.md").read_text()
    first, roots = re.findall(r"```toml\n(.*?)```", page, flags=re.DOTALL)
    before, _, after = first.replace('root = "photos"\n', "").partition("[sets.train]")
    second = before + re.sub('"/data/.*/', '"photos/', roots) + after[after.index("[train]") :]
    for text in (first, second):
        folders.write_text(text)
        journey = load_recipe(str(folders), {})
        check_journey(journey, None, ["cpu"])
        assert (list(journey.sets), list(journey.probes)) == (["train", "test"], ["knn", "linear"])


def test_options_are_read_as_the_command_reads_them(tmp_path: Path) -> None:
    (tmp_path / "names").write_text("a")
    options = {
        "dataset": "webdataset",
        "root": "x",
        "recipe": "ge2021",
        "source_option": {"label": "txt"},
        "classes": str(tmp_path / "names"),
        "method_option": {"passes": 2},
        "shard_size": 7,
    }
    recipe, root = read_build(options)
    assert root == "x"
    assert recipe.source_options == {"label": "txt", "classes": str(tmp_path / "names")}
    assert (recipe.shard_size, recipe.settings, recipe.patch_size) == (7, {"passes": 2}, 96)
    assert recipe != Recipe("webdataset")
    typed = {"rename_keys": True, "label": "12", "classes": ["a", "b"], "image": "left.png"}
    assert read_build({"dataset": "webdataset", "source_option": typed})[0].source_options == typed
    assert make_flags({"download": False, "paste": False}) == ["--no-download"]
    with pytest.raises(UserError, match="Missing option '--dataset'"):
        read_build({})
