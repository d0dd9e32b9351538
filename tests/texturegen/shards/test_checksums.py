"""A flipped bit is refused or changes nothing: build.json has its own checksum, and members those of the manifest."""

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from texturegen import open_shards
from texturegen.builds import Recipe, build
from texturegen.builds.repair import repair
from texturegen.cli.shards import verify as command
from texturegen.errors import DamagedError, UserError
from texturegen.shards.build_json import read_build
from texturegen.shards.layout import BUILD
from texturegen.shards.verify import verify
from texturegen.storage.sealed import seal


@pytest.fixture
def copy(shapes_shards: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(shapes_shards, tmp_path / "s"))


def swap(names: list[str]) -> list[str]:
    return [names[1], names[0], *names[2:]]


@pytest.mark.parametrize(
    "change",
    [
        lambda build: build["source"].update(classes=swap(build["source"]["classes"])),
        lambda build: build["recipe"].update(seed=1),
        lambda build: build["shards"][0].update(sha256="0" * 64),
        lambda build: build["versions"].update(numpy="0.1"),
        lambda build: build.update(sha256="0" * 64),
        lambda build: build.update(sha256=None),
    ],
    ids=["classes", "seed", "sha256 of a shard", "versions", "its own", "null"],
)
def test_changed_build_json_is_refused_by_every_reader(copy: Path, change: Callable[[dict[str, Any]], object]) -> None:
    content = json.loads((copy / BUILD).read_text())
    change(content)
    (copy / BUILD).write_text(json.dumps(content))
    expected = f"{copy / BUILD}: damaged (its content differs from its own checksum)"
    (fault,) = verify(copy)
    assert fault.startswith(expected)
    for read in (open_shards, repair, lambda path: build(Recipe("shapes", limit=64, shard_size=20), path)):
        with pytest.raises(DamagedError) as caught:
            read(copy)
        assert str(caught.value).startswith(expected)


def test_flipped_bits_of_build_json_are_never_silent(copy: Path) -> None:
    path, draws, refused = copy / BUILD, random.Random(0), 0
    data, expected = path.read_bytes(), read_build(copy)
    for _ in range(200):
        damaged = bytearray(data)
        damaged[draws.randrange(len(data))] ^= 1 << draws.randrange(8)
        path.write_bytes(damaged)
        try:
            found = read_build(copy)
        except UserError:
            refused += 1
        else:  # white space, or the name of the checksum itself
            assert {name: found.get(name) for name in expected.keys() - {"sha256"}} == {
                name: value for name, value in expected.items() if name != "sha256"
            }
    assert refused >= 190


def test_checksum_does_not_depend_on_format_of_the_file(copy: Path) -> None:
    content = json.loads((copy / BUILD).read_text())
    (copy / BUILD).write_text(json.dumps(dict(reversed(content.items())), indent=None, ensure_ascii=False))
    assert read_build(copy) == content == seal(content)
    del content["sha256"]
    (copy / BUILD).write_text(json.dumps(content))
    with pytest.raises(DamagedError, match="differs from its own checksum"):
        read_build(copy)
    del content["algorithms"]  # as texturegen 0.1.0 wrote it
    (copy / BUILD).write_text(json.dumps(content))
    assert len(open_shards(copy)) == 64
    assert verify(copy) == []


def test_results_are_printed_on_one_line_whatever_the_path(copy: Path) -> None:
    place = copy.rename(copy.with_name("a\nb\x1b[31m\udcff"))
    done = CliRunner().invoke(command, [str(place), "--deep"])
    assert done.stdout.splitlines() == [f"{copy.parent}/a\\nb\\x1b[31m\\udcff: no faults found"]


def test_verify_command_says_what_it_does_not_check(copy: Path) -> None:
    def lines(*options: str) -> list[str]:
        done = CliRunner().invoke(command, [str(copy), *options])
        assert done.exit_code == 0
        return [line.removeprefix(f"{copy}: ") for line in done.stdout.splitlines()]

    not_deep = "images were not decoded, nor sizes and labels compared with the manifest; --deep does that"
    assert lines() == [not_deep, "no faults found"]
    assert lines("--deep") == ["no faults found"]
    content = json.loads((copy / BUILD).read_text())
    del content["sha256"], content["algorithms"]
    (copy / BUILD).write_text(json.dumps(content))
    assert lines("--deep")[0] == "build.json has no checksum, so class names, recipe and versions were not checked"


@pytest.mark.parametrize("encoding", ["jpeg", "webp"])
def test_flipped_bit_in_a_member_is_never_silent(tmp_path: Path, encoding: str) -> None:
    out = tmp_path / "s"
    build(Recipe("shapes", limit=8, encoding=encoding), out)
    shards, draws = open_shards(out), random.Random(0)
    rows, (tar,) = shards.manifest.to_pylist(), out.glob("*.tar")
    data = tar.read_bytes()
    for number in range(300):
        row, kind = draws.choice(rows), ("image", "texture")[number % 2]
        place = row[f"{kind}_offset"] + draws.randrange(row[f"{kind}_size"])
        with tar.open("r+b") as f:
            f.seek(place)
            f.write(bytes([data[place] ^ 1 << draws.randrange(8)]))
        sample = shards[row["position"]]
        with pytest.raises(
            DamagedError, match=rf"{row['key']}: {kind}.*: its bytes differ from those that were written"
        ):
            np.asarray(sample.image if kind == "image" else sample.textures)
        with pytest.raises(DamagedError):
            (sample.image_bytes, sample.texture_bytes)  # noqa: B018 (reads)
        with tar.open("r+b") as f:
            f.seek(place)
            f.write(data[place : place + 1])
    assert shards[0].image.shape == (32, 32, 3)


@pytest.mark.parametrize(
    ("part", "name", "value"),
    [
        ("source", "split", 5),
        ("source", "name", ["x"]),
        ("recipe", "settings", "x"),
        ("recipe", "seed", "0"),
        ("algorithms", "png", "1"),
        ("versions", "numpy", 2),
        ("run", "seconds", {"read": "x"}),
        ("run", "seconds", 1),
        ("counts", "ignored", -1),
    ],
)
def test_values_that_commands_print_or_copy_have_their_types(copy: Path, part: str, name: str, value: object) -> None:
    content = json.loads((copy / BUILD).read_text())
    content[part][name] = value
    (copy / BUILD).write_text(json.dumps(seal(content)))
    with pytest.raises(DamagedError, match=rf"build.json: damaged \(.*{part}"):
        read_build(copy)
