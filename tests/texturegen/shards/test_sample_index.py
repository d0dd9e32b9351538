"""The cached index of a large directory, and keys as a sequence."""

import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from texturegen.errors import DamagedError
from texturegen.shards import reader, sample_index
from texturegen.shards.layout import MANIFEST
from texturegen.shards.reader import Shards, open_shards
from texturegen.shards.sample_index import Keys


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's cache, which takes small directories too."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(sample_index, "MIN_SAMPLES", 1)
    return tmp_path / "cache" / "texturegen" / "index"


def assert_equal(found: Shards, expected: Shards) -> None:
    assert found.keys == list(expected.keys)
    assert np.array_equal(found.labels, expected.labels)
    assert found.labels.flags.writeable
    assert found.image_size() == expected.image_size()
    assert found.metas() == expected.metas()
    for a, b in zip(found, expected, strict=True):
        assert (a.key, a.label, a.members, a.shard) == (b.key, b.label, b.members, b.shard)
        assert a.image_bytes == b.image_bytes
        assert np.array_equal(a.textures, b.textures)


def test_the_manifest_is_checked_once(shapes_shards: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as uncached:
        uncached.setattr(sample_index, "MIN_SAMPLES", 1000)
        expected = open_shards(shapes_shards)
    assert not cache.exists()
    assert_equal(open_shards(shapes_shards), expected)
    (file,) = cache.iterdir()
    with monkeypatch.context() as unchecked:
        unchecked.setattr(reader, "check_rows", None)
        again = open_shards(shapes_shards)
        assert_equal(again, expected)
        data = pickle.dumps(again)
        assert len(data) < 4000 + len(pickle.dumps(again.build)), "workers map the file, too"
        assert_equal(pickle.loads(data), expected)
        sample = pickle.loads(pickle.dumps(again[7]))
        assert (sample.key, sample.image_bytes) == (expected[7].key, expected[7].image_bytes)
        file.unlink()
        assert_equal(pickle.loads(pickle.dumps(again)), expected)


def test_a_copy_opens_the_directory_where_the_cached_file_is_missing(shapes_shards: Path, cache: Path) -> None:
    shards = open_shards(shapes_shards)
    data = pickle.dumps(shards)
    shutil.rmtree(cache)  # as on another machine, or if it was used longest ago
    assert_equal(pickle.loads(data), shards)


def test_damage_to_the_cached_file_is_noticed(shapes_shards: Path, cache: Path) -> None:
    expected = open_shards(shapes_shards)
    (file,) = cache.iterdir()
    data = bytearray(file.read_bytes())
    data[data.index(np.arange(4, dtype=np.int64).tobytes())] ^= 1  # a label
    file.write_bytes(data)
    assert open_shards(shapes_shards).labels.tolist() == expected.labels.tolist()
    (file,) = cache.iterdir()
    assert file.read_bytes() != bytes(data)


def test_a_damaged_manifest_is_noticed_in_spite_of_the_cache(shapes_shards: Path, cache: Path, tmp_path: Path) -> None:
    shutil.copytree(shapes_shards, tmp_path / "s")
    open_shards(tmp_path / "s")
    with open(tmp_path / "s" / MANIFEST, "r+b") as f:
        f.seek(100)
        f.write(b"x")
    with pytest.raises(DamagedError, match=r"its checksum differs from build.json"):
        open_shards(tmp_path / "s")


def test_without_a_writable_cache_the_index_stays_in_memory(shapes_shards: Path, cache: Path) -> None:
    cache.parent.mkdir(parents=True)
    cache.write_text("a file")
    assert len(open_shards(shapes_shards)) == 64


def test_the_least_recently_used_files_are_removed(
    shapes_shards: Path, shapes_test_shards: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sample_index, "MAX_FILES", 1)
    for directory in (shapes_shards, shapes_test_shards, shapes_shards):
        assert len(open_shards(directory)) in (64, 40)
        assert len(list(cache.iterdir())) == 1


def test_keys_are_a_sequence_of_strings() -> None:
    names = ["a/b", "c", "d_e-f", "g"]
    for keys in (Keys(pa.array(names)), Keys(pa.array(["x", *names, "y"])[1:-1])):
        assert keys == names
        assert list(keys) == names
        assert [keys[i] for i in range(-4, 4)] == names * 2
        assert keys[1:3] == names[1:3]
        assert keys.index("d_e-f") == 2
        assert "c" in keys
        assert keys + names[:1] == [*names, "a/b"]
        assert pickle.loads(pickle.dumps(keys)) == names
        for i in (4, -5):
            with pytest.raises(IndexError, match=f"key {i} of 4"):
                keys[i]
    assert Keys(pa.array([], pa.string())) == []
    assert Keys(pa.array(names)) != [*names, "h"]


def test_opening_from_the_cache_does_not_load_pandas(shapes_shards: Path, cache: Path) -> None:
    open_shards(shapes_shards)
    program = """
import sys
from texturegen.shards import sample_index
sample_index.MIN_SAMPLES = 1
from texturegen import open_shards
shards = open_shards(sys.argv[1])
print(shards[5].textures.shape, shards._index.cached is not None, "pandas" in sys.modules)
"""
    command = [sys.executable, "-c", program, str(shapes_shards)]
    assert subprocess.check_output(command, text=True) == "(1, 32, 32, 3) True False\n"
