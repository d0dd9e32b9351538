"""open_shards reads local and remote members by the manifest's offsets, from many threads, and reports damage."""

import json
import os
import pickle
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.texturegen.shards.test_verify import change_rows, update_checksums
from texturegen import open_shards
from texturegen.errors import DamagedError, MissingError, UserError
from texturegen.shards import Shards, ShardWriter, store
from texturegen.shards.layout import BUILD, FORMAT, MANIFEST, PARTS
from texturegen.storage.image import ENCODINGS, encode_image
from texturegen.storage.ranges import Remote
from texturegen.storage.sealed import seal

KEYS = ["a", "dogs/b-1", "c", "d", "e", "f"]


def make_pictures(number: int, textures: int) -> list[np.ndarray]:
    random = np.random.default_rng(number)
    return [random.integers(0, 256, (5, 7, 3), dtype=np.uint8) for _ in range(1 + textures)]


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., Path]:
    """Return make(textures, encoding), which writes six samples with "json" and "pyd" members to three shards."""

    def write(textures: int = 2, encoding: str = "png") -> Path:
        directory = tmp_path / f"{encoding}-{textures}"
        (directory / PARTS).mkdir(parents=True)
        stats, tables, ext = [], [], ENCODINGS[encoding]
        for shard in range(3):
            with ShardWriter(directory, shard, "f") as writer:
                for i in (2 * shard, 2 * shard + 1):
                    image, *others = [encode_image(p, encoding) for p in make_pictures(i, textures)]
                    row = {"key": KEYS[i], "label": i, "width": 7, "height": 5, "status": "ok", "meta": f'{{"n": {i}}}'}
                    members = {"json": b"{%d}" % i, "pyd": b"raw"}
                    for place in writer.add(KEYS[i], image, ext, others, i, ext, members):
                        writer.add_row(**row, **place)
                writer.add_row(key=f"failed{shard}", status="failed", error="no", meta="{}")
                stats.append(writer.commit())
            tables.append(pq.read_table(directory / PARTS / f"{shard:06d}.parquet"))
        pq.write_table(pa.concat_tables(tables), directory / MANIFEST)
        counts = {"samples": 6, "textures": 6 * textures, "failed": 3, "ignored": 0}
        content = {"format": FORMAT, "recipe": {"per_image": textures}, "source": {"classes": []}, "counts": counts}
        (directory / BUILD).write_text(json.dumps({**content, "shards": stats}))
        shutil.rmtree(directory / PARTS)
        update_checksums(directory)
        return directory

    return write


@pytest.fixture
def upload() -> Any:
    """Return upload(directory), which copies the files to fsspec's memory file system and returns the URL."""
    memory = fsspec.filesystem("memory")

    def copy(directory: Path) -> str:
        for path in directory.iterdir():
            memory.pipe_file(f"/bucket/set/{path.name}", path.read_bytes())
        return "memory://bucket/set"

    yield copy
    memory.store.clear()


def assert_complete(shards: Shards, textures: int) -> None:
    assert len(shards) == len(list(shards)) == 6
    for samples in (
        list(shards),
        [shards[i] for i in range(6)],
        [pickle.loads(pickle.dumps(shards[i])) for i in range(-6, 0)],
    ):
        for i, sample in enumerate(samples):
            image, *others = make_pictures(i, textures)
            assert (sample.key, sample.label, sample.meta) == (KEYS[i], i, {"n": i})
            assert sample.members == {"json": b"{%d}" % i, "pyd": b"raw"}
            np.testing.assert_array_equal(sample.image, image)
            assert sample.textures.shape == (textures, 5, 7, 3)
            for number, (mine, other) in enumerate(zip(sample.textures, others, strict=True)):
                np.testing.assert_array_equal(mine, other)
                np.testing.assert_array_equal(sample.texture(number), other)
            for number in (-1, textures):
                with pytest.raises(IndexError):
                    sample.texture(number)
            assert sample.image is sample.image
            assert type(sample.image_bytes) is bytes
            assert sample.shard == f"{shards.directory}/shard-{i // 2:06d}.tar"
    for i in (-7, 6):
        with pytest.raises(IndexError):
            shards[i]
    for wrong in (slice(0, 2), 1.0, "1"):
        with pytest.raises(TypeError, match="cannot be interpreted as an integer"):
            shards[wrong]
    assert shards.labels.flags.writeable  # so that a tensor can share the memory


@pytest.mark.parametrize("textures", [0, 1, 2])
@pytest.mark.parametrize("encoding", ["png", "webp"])
def test_read_all_samples_locally(make: Callable[..., Path], textures: int, encoding: str) -> None:
    assert_complete(open_shards(make(textures, encoding)), textures)


@pytest.mark.parametrize("block", [1, 1 << 20])
def test_read_all_samples_remotely(
    make: Callable[..., Path], upload: Callable[[Path], str], block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "BLOCK", block)
    shards = open_shards(upload(make(2)) + "/")
    assert_complete(shards, 2)
    assert shards.manifest.num_rows == 15
    assert_complete(pickle.loads(pickle.dumps(shards)), 2)


def test_requests_per_remote_sample_and_per_iteration(
    make: Callable[..., Path], upload: Callable[[Path], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    shards = open_shards(upload(make(2)))
    asked: list[tuple[int, int]] = []
    memory = type(fsspec.filesystem("memory"))
    fetch = memory.cat_file

    def count(self: Any, path: str, start: int | None = None, end: int | None = None, **more: Any) -> bytes:
        asked.append((start or 0, end or 0))
        return fetch(self, path, start=start, end=end, **more)

    monkeypatch.setattr(memory, "cat_file", count)
    sample = shards[3]
    sample.image, sample.textures, sample.members  # noqa: B018 (reads)
    assert len(asked) == 1
    assert asked[0][1] - asked[0][0] < 8 * 1024
    list(shards)
    assert len(asked) == 1 + 3


def test_pickled_sample_contains_only_its_own_bytes(make: Callable[..., Path]) -> None:
    shards = open_shards(make(1))
    assert len(pickle.dumps(shards[2])) < 6000
    directory = shards.directory
    sample = pickle.loads(pickle.dumps(shards[2]))
    shutil.rmtree(directory)
    np.testing.assert_array_equal(sample.image, make_pictures(2, 1)[0])


def test_pickled_shards_exclude_manifest(make: Callable[..., Path]) -> None:
    shards = open_shards(make(1))
    before = len(pickle.dumps(shards))
    assert shards.manifest.num_rows == 9
    assert len(pickle.dumps(shards)) == before


def test_digest_changes_with_any_shard(make: Callable[..., Path]) -> None:
    path = make(1) / BUILD
    before, content = open_shards(path.parent).digest, json.loads(path.read_text())
    assert open_shards(path.parent).digest == before
    content["shards"][2]["sha256"] = "0" * 64
    path.write_text(json.dumps(seal(content)))
    assert open_shards(path.parent).digest != before


def test_many_shards_and_threads_need_few_open_files(make: Callable[..., Path]) -> None:
    shards = open_shards(make(1))
    assert isinstance(shards._store, store.LocalStore)
    files = shards._store.files
    files.max_open = 1
    kept = list(shards)
    order = np.random.default_rng(0).integers(0, 6, 2000)

    def is_equal(i: int) -> bool:
        return bool((shards[i].image == make_pictures(i, 1)[0]).all())

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(is_equal, order.tolist()))
    assert sum(handle is not None for handle in files._handles) == 1
    assert [sample.key for sample in kept if sample.image_bytes] == KEYS


def test_reading_leaves_no_file_open(make: Callable[..., Path]) -> None:
    descriptors = Path("/proc/self/fd")
    if not descriptors.is_dir():
        pytest.skip("the system does not list open files")
    before = len(list(descriptors.iterdir()))
    shards = open_shards(make(1))
    assert [sample.image is None for sample in shards] == [False] * 6
    assert len(list(descriptors.iterdir())) == before + 3
    del shards
    assert len(list(descriptors.iterdir())) == before


def test_missing_fsspec_driver_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "s3fs", None)
    with pytest.raises(UserError, match=r"s3://bucket/set: cannot read s3:// URLs: pip install s3fs"):
        open_shards("s3://bucket/set")
    with pytest.raises(UserError, match="has no driver"):
        open_shards("nothing://bucket/set")


def test_remote_errors_name_the_url(make: Callable[..., Path], upload: Callable[[Path], str]) -> None:
    with pytest.raises(UserError, match=r"memory://nowhere/set: no shards here"):
        open_shards("memory://nowhere/set")
    fsspec.filesystem("memory").pipe_file("/bucket/begun/parts/recipe.json", b"{}")
    with pytest.raises(UserError, match=r"memory://bucket/begun: this build is not finished"):
        open_shards("memory://bucket/begun")
    url = upload(make(1))
    shards = open_shards(url)
    memory = fsspec.filesystem("memory")
    whole = memory.cat_file("/bucket/set/shard-000001.tar")
    memory.pipe_file("/bucket/set/shard-000001.tar", whole[:700])
    with pytest.raises(UserError, match=r"memory://bucket/set/shard-000001.tar: ends before byte"):
        shards[2]
    with pytest.raises(UserError, match=r"memory://bucket/set/shard-000001.tar: 700 bytes, but 20480 were written"):
        open_shards(url)
    memory.rm("/bucket/set/shard-000001.tar")
    with pytest.raises(UserError, match=r"memory://bucket/set/shard-000001.tar: missing"):
        list(shards)
    with pytest.raises(UserError, match=r"shard-000001.tar: missing"):
        open_shards(url)


def test_shard_truncated_before_first_read_is_reported(make: Callable[..., Path]) -> None:
    shards = open_shards(make(1))
    path = shards.directory / "shard-000002.tar"
    path.write_bytes(path.read_bytes()[:600])
    with pytest.raises(DamagedError, match=r"shard-000002.tar: 600 bytes where"):
        shards[4].image  # noqa: B018 (reads)


def test_shard_truncated_while_open_is_reported(make: Callable[..., Path]) -> None:
    """Reading from a memory map would kill the process with SIGBUS."""
    shards = open_shards(make(1))
    shards[4].image  # noqa: B018 (opens the shard)
    path = shards.directory / "shard-000002.tar"
    os.truncate(path, 2600)
    with pytest.raises(DamagedError, match=rf"{path}: ends before byte"):
        list(shards[5].texture_bytes)
    os.truncate(path, 0)
    with pytest.raises(DamagedError, match=rf"{path}: ends before byte"):
        shards[4].image_bytes  # noqa: B018 (reads)


@pytest.mark.parametrize("where", ["data", "footer"])
def test_manifest_with_one_flipped_bit_is_refused(
    make: Callable[..., Path], upload: Callable[[Path], str], where: str
) -> None:
    path = make(1) / MANIFEST
    data = bytearray(path.read_bytes())
    data[40 if where == "data" else data.rindex(b"image_offset")] ^= 8
    path.write_bytes(data)
    for place in (path.parent, upload(path.parent)):
        with pytest.raises(DamagedError, match=f"{place}/{MANIFEST}: its checksum differs from build.json"):
            open_shards(place)


def test_manifest_changed_after_opening_is_refused(make: Callable[..., Path]) -> None:
    shards = open_shards(make(1))
    change_rows(shards.directory, lambda rows: rows[0].update(label=5))
    with pytest.raises(DamagedError, match=r"its checksum differs from build\.json"):
        shards.manifest  # noqa: B018 (reads)


def test_error_of_damaged_manifest_names_the_key(make: Callable[..., Path]) -> None:
    directory = make(2)
    change_rows(directory, lambda rows: rows[2].update(width=0))
    with pytest.raises(
        DamagedError, match=rf"{directory / MANIFEST}: dogs/b-1: its width is not positive; the manifest"
    ):
        open_shards(directory)


def test_missing_manifest_is_reported(make: Callable[..., Path], upload: Callable[[Path], str]) -> None:
    directory = make(0)
    (directory / MANIFEST).unlink()
    for place in (directory, upload(directory)):
        with pytest.raises(MissingError, match=rf"{place}/{MANIFEST}: missing"):
            open_shards(place)


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"format": 1}, "format 1 was written by an earlier version; build again"),
        ({"format": 99}, "newer than this version"),
        ({"format": None}, "damaged"),
        ({"recipe": {"per_image": None}}, "damaged"),
        ({"recipe": {"per_image": -1}}, "damaged"),
        ({"counts": {}}, r"damaged \(no samples\)"),
        ({"shards": [{"name": ".."}]}, r"shard 0 is named \.\., not shard-000000.tar"),
        ({"shards": [{"name": "a\0"}]}, "shard 0 is named"),
        ({"shards": [{"name": "shard-000000.tar", "sha256": "0" * 64, "bytes": "1"}]}, "not a non-negative integer"),
        ({"shards": 3}, "damaged"),
        ({"source": {"classes": None}}, "damaged"),
    ],
)
def test_damaged_build_json_is_refused(make: Callable[..., Path], change: dict[str, Any], fault: str) -> None:
    path = make(1) / BUILD
    path.write_text(json.dumps(seal({**json.loads(path.read_text()), **change})))
    with pytest.raises(UserError, match=f"{path}: .*{fault}"):
        open_shards(path.parent)


def test_invalid_meta_and_different_sizes_are_reported(make: Callable[..., Path]) -> None:
    directory = make(1)

    def damage(rows: list[dict[str, Any]]) -> None:
        rows[0]["meta"], rows[1]["height"] = "[", 6

    change_rows(directory, damage)
    shards = open_shards(directory)
    with pytest.raises(DamagedError, match=r"shard-000000.tar: a: .*meta is not a JSON object"):
        shards[0].meta  # noqa: B018 (parses)
    with pytest.raises(DamagedError, match=r"dogs/b-1: texture0: is 7x5 pixels, but the manifest records 7x6"):
        shards[1].textures  # noqa: B018 (decodes)
    with pytest.raises(UserError, match=r"images have 2 sizes, \(5, 7\) to \(6, 7\)"):
        shards.image_size()


def test_run_ends_at_shard_boundary_and_at_overlap() -> None:
    numbers = np.array([0, 0, 1, 1, 1])
    ranges = np.array([[0, 10], [10, 20], [30, 40], [40, 50], [0, 5]])
    assert list(store._runs(numbers, ranges)) == [(0, [(0, 10), (10, 20)]), (1, [(30, 40), (40, 50)]), (1, [(0, 5)])]


@pytest.mark.parametrize(("size", "counts"), [(19, [1, 1, 1, 1]), (20, [2, 2]), (30, [3, 1]), (40, [4])])
def test_run_spans_at_most_one_block(monkeypatch: pytest.MonkeyPatch, size: int, counts: list[int]) -> None:
    monkeypatch.setattr(store, "BLOCK", size)
    ranges = np.array([[0, 10], [10, 20], [20, 30], [30, 40]])
    assert [len(places) for _, places in store._runs(np.zeros(4, int), ranges)] == counts


def test_iteration_prefetches_few_requests(
    make: Callable[..., Path], upload: Callable[[Path], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "BLOCK", 1)
    shards, asked = open_shards(upload(make(2))), []
    fetch = Remote.fetch
    monkeypatch.setattr(Remote, "fetch", lambda *about: asked.append(about) or fetch(*about))
    next(samples := iter(shards))
    assert len(asked) <= store.READ_AHEAD < 6
    assert len(list(samples)) == 5
    assert len(asked) == 6


def test_block_cache_keeps_recent_blocks_and_retries_failed_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "BLOCK", 10)
    asked: list[int] = []

    class Counted:
        """A file whose byte i has the value i, and whose first read fails."""

        def fetch(self, name: str, start: int, end: int) -> bytes:
            asked.append(start // 10)
            if asked == [9]:
                raise UserError("not now")
            return bytes(range(start, end))

    cache = store.BlockCache(Counted(), 20)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="not now"):
        cache.read("a", 90, 95, 95)
    for number in (9, 0, 9, 1, 9, 0):
        first = 10 * number
        assert cache.read("a", first + 1, first + 4, 95).read(0, first + 2, 1)[0] == first + 2
    assert asked == [9, 9, 0, 1, 0]


def test_samples_are_independent_of_block_size(
    shapes_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Covers samples that span several blocks, blocks with several samples, threads, and a missing file."""
    local, places = open_shards(shapes_shards), np.random.default_rng(0).permutation(64).tolist()
    memory = fsspec.filesystem("memory")
    memory.put(str(shapes_shards), "/odd", recursive=True)
    try:
        for block in (700, 4096, 10**6):
            monkeypatch.setattr(store, "BLOCK", block)
            remote = open_shards("memory://odd")
            remote.enable_block_cache(3 * block)
            with ThreadPoolExecutor(8) as pool:
                for i, members in zip(places, pool.map(lambda i, r=remote: r[i].members, places), strict=True):
                    assert members == local[i].members
        memory.rm("/odd/shard-000002.tar")
        remote.enable_block_cache(0)
        with pytest.raises(UserError, match=r"memory://odd/shard-000002.tar: missing"):
            remote[45]
    finally:
        memory.rm("/odd", recursive=True)
