"""merge and split copy bytes and whole samples, refuse faults, and leave nothing incomplete; filters."""

import errno
import hashlib
import json
import os
import shutil
import tarfile
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import webdataset

from tests.texturegen import kill
from tests.texturegen.shards.test_verify import flip, make, rows_of, update_checksums
from texturegen import open_shards
from texturegen.builds import Recipe, build
from texturegen.errors import BusyError, OtherBuildError, UserError
from texturegen.shards.filter import rows_that_pass
from texturegen.shards.layout import BUILD, MANIFEST
from texturegen.shards.merge import merge, split
from texturegen.shards.verify import verify
from texturegen.storage.atomic import write_json
from texturegen.storage.lock import LOCK
from texturegen.storage.sealed import seal


@pytest.fixture
def two(tmp_path: Path) -> Path:
    return make(tmp_path / "two", textures=2)


def contents(directory: Path) -> dict[str, bytes]:
    return {str(path.relative_to(directory)): path.read_bytes() for path in sorted(directory.rglob("*"))}


def samples(directory: Path) -> list[tuple[Any, ...]]:
    return [(s.key, s.label, s.meta, s.image_bytes, s.texture_bytes) for s in open_shards(directory)]


def test_merging_a_split_restores_the_tars(shapes_shards: Path, tmp_path: Path) -> None:
    keys = open_shards(shapes_shards).keys
    first = ", ".join(repr(key) for key in keys[:27])
    a, b, c = (tmp_path / name for name in "abc")
    counts = split(shapes_shards, a, b, where=f"key in ({first})")
    assert [one["samples"] for one in counts] == [27, 37]
    assert samples(a) == samples(shapes_shards)[:27]
    assert samples(b) == samples(shapes_shards)[27:]
    assert merge([a, b], c)["samples"] == 64
    for tar in sorted(shapes_shards.glob("*.tar")):
        assert (c / tar.name).read_bytes() == tar.read_bytes()
    assert pq.read_table(c / MANIFEST).equals(pq.read_table(shapes_shards / MANIFEST))
    for directory in (a, b, c):
        assert verify(directory, deep=True) == []
    urls = [str(path) for path in sorted(b.glob("*.tar"))]
    assert [s["__key__"] for s in webdataset.WebDataset(urls, shardshuffle=False, empty_check=False)] == keys[27:]


def test_a_build_into_a_split_directory_is_refused(shapes_shards: Path, tmp_path: Path) -> None:
    split(shapes_shards, tmp_path / "all", where="label >= 0")  # its recipe and data set are those of the build
    with pytest.raises(OtherBuildError, match=r"all: was made by `texturegen split`, and is finished; choose another"):
        build(Recipe("shapes", limit=64, shard_size=20), tmp_path / "all", retry_failed=True)


def test_output_is_deterministic(two: Path, tmp_path: Path) -> None:
    for name in "ab":
        split(two, tmp_path / name / "kept", tmp_path / name / "rest", share=0.5, seed=3)
        merge([tmp_path / name / "kept", tmp_path / name / "rest"], tmp_path / name / "joined")
    assert contents(tmp_path / "a" / "joined") == contents(tmp_path / "b" / "joined")
    assert contents(tmp_path / "a" / "kept") == contents(tmp_path / "b" / "kept")


def test_build_json_records_inputs(two: Path, tmp_path: Path) -> None:
    split(two, tmp_path / "kept", tmp_path / "rest", where="completeness < 50")
    content = json.loads((tmp_path / "kept" / BUILD).read_text())
    original = json.loads((two / BUILD).read_text())
    assert content["algorithms"] == original["algorithms"] == {"decoding": 1, "png": 1}
    assert content["derived"]["operation"] == "split"
    assert content["derived"]["filter"] == "completeness < 50"
    (described,) = content["derived"]["inputs"]
    assert described["name"] == "two"
    assert {name: described[name] for name in ("manifest_sha256", "recipe", "source")} == {
        name: original[name] for name in ("manifest_sha256", "recipe", "source")
    }
    assert content["recipe"] == original["recipe"]
    assert content["counts"] == {"samples": 4, "textures": 8, "failed": 0, "ignored": 0}
    assert content["source"] == {
        "name": "made",
        "split": "train",
        "items": 4,
        "classes": ["x", "y", "z"],
        "digest": None,
    }
    other = json.loads((tmp_path / "rest" / BUILD).read_text())
    other["recipe"]["dataset"] = "else"
    other["counts"]["ignored"] = 2
    other["algorithms"]["png"] = 2
    (tmp_path / "rest" / BUILD).write_text(json.dumps(seal(other)))
    merge([tmp_path / "kept", tmp_path / "rest"], tmp_path / "joined", shard_size=3)
    joined = json.loads((tmp_path / "joined" / BUILD).read_text())
    assert joined["recipe"] == {"per_image": 2, "shard_size": 3, "dataset": None, "settings": {}}
    assert joined["algorithms"] == {"decoding": 1, "png": None}
    assert [one["name"] for one in joined["derived"]["inputs"]] == ["kept", "rest"]
    assert joined["derived"]["inputs"][0]["derived"] == content["derived"]
    assert [shard["samples"] for shard in joined["shards"]] == [3, 3, 1]
    assert joined["counts"] == {"samples": 7, "textures": 14, "failed": 1, "ignored": 2}
    assert verify(tmp_path / "joined", deep=True) == []


def test_sample_keeps_all_textures(two: Path, tmp_path: Path) -> None:
    # Sample i has the figures 10 i and 10 i + 1: the filter passes one texture of a/4.
    split(two, tmp_path / "kept", tmp_path / "rest", where="completeness <= 40")
    assert open_shards(tmp_path / "kept").keys == ["a/0", "a/1", "a/2"]
    assert open_shards(tmp_path / "rest").keys == ["a/4", "a/5", "a/6", "a/7"]
    for name in ("kept", "rest"):
        assert open_shards(tmp_path / name).manifest["index"].to_pylist().count(1) == len(open_shards(tmp_path / name))


def test_failed_images_and_extra_members_are_copied(two: Path, tmp_path: Path) -> None:
    split(two, tmp_path / "kept", tmp_path / "rest", where="completeness < 40")
    assert open_shards(tmp_path / "kept").build["counts"]["failed"] == 0
    failed = open_shards(tmp_path / "rest").manifest.to_pylist()[0]
    assert (failed["key"], failed["status"], failed["error"], failed["shard"]) == ("a/3", "failed", "no image", None)
    with tarfile.open(tmp_path / "rest" / "shard-000000.tar") as tar:
        assert tar.extractfile("a/4.json").read() == b'{"i": 4}'  # type: ignore[union-attr]
    split(two, tmp_path / "chosen", where="completeness < 40 or status == 'failed'")
    assert open_shards(tmp_path / "chosen").build["counts"] == {"samples": 3, "textures": 6, "failed": 1, "ignored": 0}


@pytest.mark.parametrize("textures", [0, 1])
def test_share_is_exact_and_independent_of_order(tmp_path: Path, textures: int) -> None:
    many = make(tmp_path / "many", textures, samples=40)
    split(many, tmp_path / "a", tmp_path / "b", share=0.9)
    a, b = open_shards(tmp_path / "a"), open_shards(tmp_path / "b")
    assert (len(a), len(b)) == (35, 4)
    assert [shards.build["counts"]["failed"] for shards in (a, b)] == [1, 0]
    assert sorted(a.keys + b.keys) == sorted(open_shards(many).keys)
    positions = list(a.manifest["position"].to_pylist())
    assert positions == sorted(positions)
    assert split(many, tmp_path / "c", share=0.5)[0]["samples"] == 20  # of 39: rounded to the nearest
    assert {*open_shards(tmp_path / "c").keys} < {*a.keys}
    split(many, tmp_path / "d", share=0.5, seed=1)
    assert open_shards(tmp_path / "c").keys != open_shards(tmp_path / "d").keys
    merge([tmp_path / "b", tmp_path / "a"], tmp_path / "e")
    split(tmp_path / "e", tmp_path / "f", share=0.5)
    assert sorted(open_shards(tmp_path / "f").keys) == sorted(open_shards(tmp_path / "c").keys)


def test_mismatched_inputs_are_refused(two: Path, tmp_path: Path) -> None:
    one = make(tmp_path / "one", textures=1)
    copy = Path(shutil.copytree(two, tmp_path / "copy"))
    with pytest.raises(UserError, match="textures per image differ"):
        merge([two, one], tmp_path / "out")
    with pytest.raises(UserError, match=r"key 'a/\d' is in both .*two and .*copy"):
        merge([two, copy], tmp_path / "out")
    content = json.loads((copy / BUILD).read_text())
    content["source"]["classes"] = ["x", "y"]
    (copy / BUILD).write_text(json.dumps(seal(content)))
    with pytest.raises(UserError, match="classes differ"):
        merge([two, copy], tmp_path / "out")
    with pytest.raises(UserError, match="at least two directories"):
        merge([two], tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["copy", "one", "two"]


def test_overlapping_directories_are_refused(two: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").symlink_to(tmp_path)
    with pytest.raises(UserError, match="--out and --rest must differ"):
        split(two, tmp_path / "x", tmp_path / "here" / "x", share=0.5)
    with pytest.raises(UserError, match=r"is inside the input .*two"):
        split(two, two / "sub", share=0.5)
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    assert split(two, tmp_path / "link", share=0.5)[0]["samples"] == len(open_shards(tmp_path / "real"))
    monkeypatch.chdir(tmp_path / "link")
    with pytest.raises(UserError, match="exists and is not empty"):
        split(two, ".", share=0.5)


def test_nonempty_output_is_refused(two: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.tex").write_text("irreplaceable")
    with pytest.raises(UserError, match=r"out: exists"):
        split(two, out, share=0.5)
    assert (out / "thesis.tex").read_text() == "irreplaceable"
    with pytest.raises(UserError, match=r"thesis.tex: exists"):
        split(two, out / "thesis.tex", share=0.5)
    assert (out / "thesis.tex").read_text() == "irreplaceable"
    shutil.rmtree(out)
    for name in ("thesis.tex", "build.json", "parts/recipe.json"):
        (tmp_path / "out.partial" / name).parent.mkdir(parents=True)
        (tmp_path / "out.partial" / name).write_text("irreplaceable")
        with pytest.raises(UserError, match=r"out.partial: exists and is not empty"):
            split(two, out, share=0.5)
        assert (tmp_path / "out.partial" / name).read_text() == "irreplaceable"
        shutil.rmtree(tmp_path / "out.partial")
    out.mkdir()  # an empty directory is allowed
    split(two, out, share=0.5)
    assert not (tmp_path / "out.partial").exists()


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
def test_interrupted_split_leaves_nothing(two: Path, tmp_path: Path, error: type[BaseException]) -> None:
    seen = []

    def stop(samples: int) -> None:
        seen.append(samples)
        if len(seen) == 6:  # in the second directory
            raise error

    with pytest.raises(error):
        split(two, tmp_path / "a", tmp_path / "b", share=0.5, progress=stop)
    assert [path.name for path in tmp_path.iterdir()] == ["two"]


def test_both_sides_are_complete_before_either_is_renamed(
    two: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[Path] = []

    def fail_at_the_second(path: Path, content: Any) -> None:
        written.append(path)
        if len(written) == 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        write_json(path, content)

    monkeypatch.setattr(import_module("texturegen.shards.publish"), "write_json", fail_at_the_second)
    with pytest.raises(OSError, match="No space"):
        split(two, tmp_path / "a", tmp_path / "b", share=0.5)
    assert [path.parent.name for path in written] == ["a.partial", "b.partial"]
    assert [path.name for path in tmp_path.iterdir()] == ["two"]


@pytest.mark.parametrize("fault", [KeyboardInterrupt, OSError(errno.EIO, "Input/output error")])
def test_failed_second_rename_removes_first_side(
    two: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: Any
) -> None:
    renamed: list[Path] = []
    replace = os.replace

    def fail_at_the_second(source: Path, target: Path) -> None:
        if target in (tmp_path / "a", tmp_path / "b"):
            renamed.append(target)
            if len(renamed) == 2:
                raise fault
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", fail_at_the_second)
        with pytest.raises((KeyboardInterrupt, OSError)):
            split(two, tmp_path / "a", tmp_path / "b", share=0.5)
    assert len(renamed) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["two"]
    split(two, tmp_path / "a", tmp_path / "b", share=0.5)


def test_interrupt_right_after_rename_removes_directory(
    two: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace = os.replace

    def interrupt_after(source: Path, target: Path) -> None:
        replace(source, target)
        if target == tmp_path / "a":
            raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupt_after)
    with pytest.raises(KeyboardInterrupt):
        split(two, tmp_path / "a", share=0.5)
    assert [path.name for path in tmp_path.iterdir()] == ["two"]


def test_error_on_enter_leaves_nothing(two: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mkdir = Path.mkdir

    def fail(path: Path, *arguments: Any, **options: Any) -> None:
        if path.name == "parts":
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        mkdir(path, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "mkdir", fail)
        with pytest.raises(OSError, match="No space"):
            split(two, tmp_path / "a", share=0.5)
    assert [path.name for path in tmp_path.iterdir()] == ["two"]
    split(two, tmp_path / "a", share=0.5)


def test_a_link_that_leads_nowhere_is_refused(two: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("nowhere")
    with pytest.raises(UserError, match="is a link to nowhere, which does not exist"):
        split(two, tmp_path / "link", share=0.5)
    assert not (tmp_path / "nowhere").exists()


def test_directory_is_locked_until_renamed(two: Path, tmp_path: Path) -> None:
    def start_another(samples: int) -> None:
        with pytest.raises(BusyError, match=r"a.partial: process \d+ on .* is writing there"):
            split(two, tmp_path / "a", share=0.5)

    split(two, tmp_path / "a", share=0.5, progress=start_another)
    assert not (tmp_path / "a" / LOCK).exists()


@kill.STRIDES
def test_split_killed_at_any_file_operation_can_be_rerun(two: Path, tmp_path: Path, stride: int) -> None:
    command = partial(split, two, tmp_path / "a", tmp_path / "b", share=0.5)
    for number in range(0, 1000, stride):
        if kill.run(command, kill_before=number) != kill.KILLED:
            break
        for name in ("a", "b"):
            if (tmp_path / name).exists():  # renamed before the kill, so complete
                assert verify(tmp_path / name) == []
                shutil.rmtree(tmp_path / name)
        command()
        assert verify(tmp_path / "a") == verify(tmp_path / "b") == []
        assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", "two"]
        assert not list(tmp_path.glob("[ab]/*.lock"))
        for name in ("a", "b"):
            shutil.rmtree(tmp_path / name)
    assert 20 < number < 900


@pytest.mark.parametrize("member", ["image", "texture", "members"])
def test_damage_is_not_copied(two: Path, tmp_path: Path, member: str) -> None:
    row = rows_of(two)[2]
    flip(two / row["shard"], row["members"][1]["offset"] if member == "members" else row[f"{member}_offset"] + 9)
    with pytest.raises(UserError, match=r"shard-000001.tar: a/5: its bytes differ"):
        split(two, tmp_path / "out", share=0.9999)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("change", [{"image_offset": -5}, {"image_size": 1 << 60}, {"shard": "../x"}, {"key": "../x"}])
def test_hostile_manifest_is_refused(two: Path, tmp_path: Path, change: dict[str, Any]) -> None:
    rows = pq.read_table(two / MANIFEST).to_pylist()
    for row in rows[:2]:
        row.update(change)
    pq.write_table(pa.Table.from_pylist(rows, schema=pq.read_schema(two / MANIFEST)), two / MANIFEST)
    update_checksums(two)
    with pytest.raises(UserError):
        split(two, tmp_path / "out", where="status == 'ok'")
    assert [path.name for path in tmp_path.iterdir()] == ["two"]


def test_empty_side_is_refused(two: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"out: would hold no images, because none of the 7"):
        split(two, tmp_path / "out", where="completeness < 0")
    with pytest.raises(UserError, match=r"rest: would hold no images, because all of the 7"):
        split(two, tmp_path / "out", tmp_path / "rest", where="status in ('ok', 'failed')")
    for share in (-0.5, 0, 1, 1.5, float("nan")):
        with pytest.raises(UserError, match="between 0 and 1"):
            split(two, tmp_path / "out", share=share)
    with pytest.raises(UserError, match="either a filter or a share"):
        split(two, tmp_path / "out")
    with pytest.raises(UserError, match="--shard-size is 0"):
        split(two, tmp_path / "out", share=0.5, shard_size=0)


TABLE = pa.table(
    {
        "key": ["a", "b", "c", "d"],
        "label": [0, 1, 2, -1],
        "index": pa.array([0, 1, None, 0], pa.int32()),
        "completeness": pa.array([1.5, float("nan"), None, 30], pa.float32()),
        "verbatim": pa.array([2.0, 0, 0, 0.3], pa.float32()),
        "patches": pa.array([[1], None, [], [2]]),
    }
)


@pytest.mark.parametrize(
    ("text", "passing"),
    [
        ("completeness < 12", "a"),
        ("not completeness < 12", "bcd"),
        ("completeness >= 1.5 and key != 'a'", "d"),
        ("completeness >= 1.5", "ad"),
        ("completeness > 1.5", "d"),
        ("-1 <= label < 2", "abd"),
        ("0 < label", "bc"),
        ("label in (0, -1)", "ad"),
        ("label not in [0, -1]", "bc"),
        ("index not in {0}", "bc"),
        ("index is None", "c"),
        ("patches is not None", "acd"),
        ("completeness < verbatim", "a"),
        ("key == 'b' or key > 'c' and label == -1", "bd"),
        ("(key == 'b' or key > 'c') and label == -1", "d"),
        (" label > 0.5 ", "bc"),
        ("label == 1e400 or label == 1", "b"),
        ("verbatim <= 0.3", "bcd"),  # 0.3 in 32 bits is more than in 64
        ("0.3 < verbatim", "a"),
        ("verbatim in (0.3, 2)", "ad"),
    ],
)
def test_filter_has_python_semantics(text: str, passing: str) -> None:
    passed = rows_that_pass(text, TABLE).to_pylist()
    assert "".join(key for key, yes in zip("abcd", passed, strict=True) if yes) == passing
    assert {*passed} <= {True, False}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "invalid filter"),
        ("completeness <", "at (character|its end)"),
        (
            "completness < 12",
            r"'completness' at character 1 is not a column \(did you mean 'completeness'\?\); columns:",
        ),
        ("(label == 1 or\n  completness < 2)", "'completness' at character 3 of line 2 is not a column"),
        ("label == 1\nor label == 2", "at character 1 of line 2"),
        ("key == 'éé' and completness < 2", "'completness' at character 17 is not a column"),
        (
            "label == 1 and completeness < 'a'",
            "'completeness' at character 16 is compared .*: .* 'a' is a string",
        ),
        ("key < 3", "key is a string and 3 is a number"),
        ("label", "is a column, not a condition"),
        ("1 < 2", "another constant"),
        ("True", "is not a condition"),
        ("label == True", "neither a column nor a constant"),
        ("label == None", "`is None`"),
        ("label is 3", "`is` can only test"),
        ("label in 'ab'", "`in` needs"),
        ("label in (1, 'a')", "cannot occur in label"),
        ("label in ()", "`in` needs"),
        ("patches == 3", "which a filter cannot compare"),
        ("__import__('os').system('touch pwned')", "is not a condition"),
        ("label + 1 == 2", "neither a column nor a constant"),
        ("label == (lambda: 1)()", "neither a column nor a constant"),
        ("key == f'{label}'", "neither a column nor a constant"),
        ("label == 10 ** 99", "neither a column nor a constant"),
        (f"label == {10**30}", "outside the range of any column"),
        ("key == '\ud800'", "invalid filter|outside"),
        ("(" * 5000 + "label" + ")" * 5000, "invalid filter"),
        ("not " * 50_000 + "label == 1", "invalid filter"),
        ("label == 1\0", "invalid filter"),
        ("x = 1", "invalid filter"),
        ("[k for k in label]", "is not a condition"),
    ],
)
def test_invalid_filter_is_refused(text: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        rows_that_pass(text, TABLE)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500 or len(text) > 1000


def test_copied_manifest_differs_only_in_shards_and_offsets(two: Path, tmp_path: Path) -> None:
    split(two, tmp_path / "all", where="status in ('ok', 'failed')")
    before, after = (pq.read_table(directory / MANIFEST) for directory in (two, tmp_path / "all"))
    for column in set(before.column_names) - {"shard", "members"}:
        if not column.endswith("_offset"):
            assert before[column].equals(after[column]), column
    np.testing.assert_array_equal(before["index"].to_numpy(), after["index"].to_numpy())
    assert (
        hashlib.sha256((tmp_path / "all" / MANIFEST).read_bytes()).hexdigest()
        == json.loads((tmp_path / "all" / BUILD).read_text())["manifest_sha256"]
    )
