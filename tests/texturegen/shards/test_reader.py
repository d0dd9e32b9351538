"""open_shards: bytes by the manifest's offsets, local and remote, from many threads; damage is one sentence."""

import json
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

from texturegen import open_shards
from texturegen.errors import UserError
from texturegen.shards import Shards, ShardWriter
from texturegen.shards.layout import BUILD, FORMAT, MANIFEST, MANIFEST_SCHEMA, PARTS
from texturegen.storage import ranges as store
from texturegen.storage.image import ENCODINGS, encode_image

KEYS = ["a", "dogs/b-1", "c", "d", "e", "f"]


def make_pictures(number: int, textures: int) -> list[np.ndarray]:
    random = np.random.default_rng(number)
    return [random.integers(0, 256, (5, 7, 3), dtype=np.uint8) for _ in range(1 + textures)]


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., Path]:
    """make(textures, encoding): six samples in three shards, a member "json" in each."""

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
        return directory

    return write


@pytest.fixture
def upload() -> Any:
    """upload(directory): the same files in fsspec's memory; the URL."""
    memory = fsspec.filesystem("memory")

    def copy(directory: Path) -> str:
        for path in directory.iterdir():
            memory.pipe_file(f"/bucket/set/{path.name}", path.read_bytes())
        return "memory://bucket/set"

    yield copy
    memory.store.clear()


def assert_all_there(shards: Shards, textures: int) -> None:
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
    assert shards.labels.flags.writeable  # a tensor may share its memory


@pytest.mark.parametrize("textures", [0, 1, 2])
@pytest.mark.parametrize("encoding", ["png", "webp"])
def test_all_is_there_locally(make: Callable[..., Path], textures: int, encoding: str) -> None:
    assert_all_there(open_shards(make(textures, encoding)), textures)


@pytest.mark.parametrize("block", [1, 1 << 20])
def test_all_is_there_remotely(
    make: Callable[..., Path], upload: Callable[[Path], str], block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "BLOCK", block)
    shards = open_shards(upload(make(2)) + "/")
    assert_all_there(shards, 2)
    assert shards.manifest.num_rows == 15
    assert_all_there(pickle.loads(pickle.dumps(shards)), 2)


def test_a_remote_sample_is_one_request_and_iteration_asks_for_blocks(
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


def test_a_sample_travels_alone(make: Callable[..., Path]) -> None:
    shards = open_shards(make(1))
    assert len(pickle.dumps(shards[2])) < 6000
    directory = shards.directory
    sample = pickle.loads(pickle.dumps(shards[2]))
    shutil.rmtree(directory)
    np.testing.assert_array_equal(sample.image, make_pictures(2, 1)[0])


def test_a_manifest_that_was_read_does_not_travel(make: Callable[..., Path]) -> None:
    shards = open_shards(make(1))
    before = len(pickle.dumps(shards))
    assert shards.manifest.num_rows == 9
    assert len(pickle.dumps(shards)) == before


def test_the_digest_changes_with_any_shard(make: Callable[..., Path]) -> None:
    path = make(1) / BUILD
    before, content = open_shards(path.parent).digest, json.loads(path.read_text())
    assert open_shards(path.parent).digest == before
    content["shards"][2]["sha256"] = "0" * 64
    path.write_text(json.dumps(content))
    assert open_shards(path.parent).digest != before


def test_a_member_before_its_image_is_read_where_it_lies(
    make: Callable[..., Path], upload: Callable[[Path], str]
) -> None:
    path = make(2) / MANIFEST
    rows = pq.read_table(path).to_pylist()
    assert [member["ext"] for member in rows[2]["members"]] == ["cls", "json", "pyd"]
    rows[2]["members"][1].update(offset=rows[2]["image_offset"] - 512, size=12)  # the name in the image's header
    pq.write_table(pa.Table.from_pylist(rows, MANIFEST_SCHEMA), path)
    for place in (path.parent, upload(path.parent)):
        assert open_shards(place)[1].members["json"] == b"dogs/b-1.png"


def test_few_maps_serve_many_shards_and_threads(make: Callable[..., Path]) -> None:
    shards = open_shards(make(1))
    assert shards._maps is not None
    shards._maps.at_most = 1
    kept = list(shards)
    order = np.random.default_rng(0).integers(0, 6, 2000)

    def same(i: int) -> bool:
        return bool((shards[i].image == make_pictures(i, 1)[0]).all())

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(same, order.tolist()))
    assert sum(data is not None for data in shards._maps._maps) == 1
    assert [sample.key for sample in kept if sample.image_bytes] == KEYS


def test_a_missing_driver_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "s3fs", None)
    with pytest.raises(UserError, match=r"s3://bucket/set: .*pip install s3fs"):
        open_shards("s3://bucket/set")
    with pytest.raises(UserError, match="no driver"):
        open_shards("nothing://bucket/set")


def test_remote_faults_name_the_url(make: Callable[..., Path], upload: Callable[[Path], str]) -> None:
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
    with pytest.raises(UserError, match=r"memory://bucket/set/shard-000001.tar: ends at byte 700"):
        shards[2]
    with pytest.raises(UserError, match=r"memory://bucket/set/shard-000001.tar: 700 bytes where"):
        open_shards(url)
    memory.rm("/bucket/set/shard-000001.tar")
    with pytest.raises(UserError, match=r"memory://bucket/set/shard-000001.tar: missing"):
        list(shards)
    with pytest.raises(UserError, match=r"shard-000001.tar: missing"):
        open_shards(url)


def test_a_shard_that_shrinks_before_it_is_mapped_is_named(make: Callable[..., Path]) -> None:
    shards = open_shards(make(1))
    path = shards.directory / "shard-000002.tar"
    path.write_bytes(path.read_bytes()[:600])
    with pytest.raises(UserError, match=r"shard-000002.tar: 600 bytes where"):
        shards[4].image  # noqa: B018 (reads)


DAMAGE = [
    ("image_offset", -512, "image: placed outside the shard"),
    ("image_size", -1, "image: placed outside"),
    ("image_size", 1 << 62, "image: placed outside"),
    ("texture_offset", (1 << 63) - 1, "texture: placed outside"),
    ("texture_size", 10**10, "texture: placed outside"),
    ("texture_offset", 0, "far from each other"),
    ("shard", "../shard-000000.tar", "does not list"),
    ("shard", "/etc/passwd", "does not list"),
    ("shard", "shard-000001.tar", "not those of one sample"),
    ("image_offset", 0, "not those of one sample"),
    ("image_size", 1, "not those of one sample"),
    ("key", "other", "not those of one sample"),
    ("key", "../b", "no key"),
    ("key", "b" * 81, "longer than"),
    ("index", 1, "not in order"),
    ("image_ext", "pyd", "not opened"),
    ("texture_ext", "tif", "not opened"),
    ("width", 0, "width is not positive"),
    ("height", 0, "height is not positive"),
    ("members", [{"ext": "json", "offset": -1, "size": 3, "sha256": bytes(32)}], "members: placed outside"),
    ("members", [{"ext": "../x", "offset": 0, "size": 3, "sha256": bytes(32)}], "no ext"),
    ("members", [{"ext": "json", "offset": None, "size": 3, "sha256": bytes(32)}], "no offset"),
    *(
        (column, None, f"it has no {column}")
        for column in ("shard", "label", "width", "meta", "index", "image_ext", "image_offset", "texture_size")
    ),
]


@pytest.mark.parametrize(("column", "value", "fault"), DAMAGE)
def test_a_damaged_manifest_is_refused_with_its_key(
    make: Callable[..., Path], column: str, value: object, fault: str
) -> None:
    path = make(2) / MANIFEST
    rows = pq.read_table(path).to_pylist()
    assert rows[2]["key"] == "dogs/b-1"
    rows[2][column] = value
    pq.write_table(pa.Table.from_pylist(rows, MANIFEST_SCHEMA), path)
    with pytest.raises(UserError, match=f"{path}: '.*{fault}") as error:
        open_shards(path.parent)
    assert (value if column == "key" else "dogs/b-1") in str(error.value)


def test_a_texture_among_images_without_any_is_refused(make: Callable[..., Path]) -> None:
    path = make(0) / MANIFEST
    rows = pq.read_table(path).to_pylist()
    rows[1]["index"] = 0
    pq.write_table(pa.Table.from_pylist(rows, MANIFEST_SCHEMA), path)
    with pytest.raises(UserError, match=r"'dogs/b-1': it has a texture, and the others have none"):
        open_shards(path.parent)


def test_a_text_that_is_none_is_damage(make: Callable[..., Path]) -> None:
    path = make(0) / MANIFEST
    table = pq.read_table(path)
    keys = [key.encode() for key in table["key"].to_pylist()]
    keys[1] = b"\xff\xfe"
    buffers = pa.array(keys, pa.binary()).buffers()
    no_texts = pa.StringArray.from_buffers(len(keys), buffers[1], buffers[2])
    pq.write_table(table.set_column(0, "key", no_texts), path)
    with pytest.raises(UserError, match=f"{path}: damaged"):
        open_shards(path.parent)


@pytest.mark.parametrize("rows", [slice(1, None), slice(0, 12), slice(0, 0), [*range(15), 14, 0]])
def test_missing_rows_are_counted(make: Callable[..., Path], rows: slice | list[int]) -> None:
    path = make(2) / MANIFEST
    table = pq.read_table(path)
    pq.write_table(table.take(np.arange(15)[rows]), path)
    with pytest.raises(UserError, match=r"rows where build.json counts 6 samples of 2"):
        open_shards(path.parent)


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"format": 1}, "built by an earlier version .*: build again"),
        ({"format": 99}, "newer than this version"),
        ({"format": None}, "damaged"),
        ({"recipe": {"per_image": None}}, "damaged"),
        ({"recipe": {"per_image": -1}}, "damaged"),
        ({"counts": {}}, "damaged"),
        ({"shards": [{"name": "..", "bytes": 1}]}, "leads out of the directory"),
        ({"shards": [{"name": "a\0", "bytes": 1}]}, "leads out of the directory"),
        ({"shards": [{"name": "a.tar", "bytes": "1"}]}, "damaged"),
        ({"shards": 3}, "damaged"),
        ({"source": {"classes": None}}, "damaged"),
    ],
)
def test_a_damaged_build_is_refused(make: Callable[..., Path], change: dict[str, Any], fault: str) -> None:
    path = make(1) / BUILD
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(UserError, match=f"{path}: .*{fault}"):
        open_shards(path.parent)


def test_a_meta_that_is_no_object_and_sizes_that_differ_are_named(make: Callable[..., Path]) -> None:
    path = make(1) / MANIFEST
    rows = pq.read_table(path).to_pylist()
    rows[0]["meta"], rows[1]["height"] = "[", 6
    pq.write_table(pa.Table.from_pylist(rows, MANIFEST_SCHEMA), path)
    shards = open_shards(path.parent)
    with pytest.raises(UserError, match=r"shard-000000.tar: a: .*meta"):
        shards[0].meta  # noqa: B018 (parses)
    with pytest.raises(UserError, match=r"dogs/b-1: texture0: 7x5 pixels, the manifest says 7x6"):
        shards[1].textures  # noqa: B018 (decodes)
    with pytest.raises(UserError, match=r"images of 2 sizes, \(5, 7\) to \(6, 7\)"):
        shards.image_size()


def test_a_block_ends_with_its_shard_and_where_bytes_go_back() -> None:
    numbers = np.array([0, 0, 1, 1, 1])
    ranges = np.array([[0, 10], [10, 20], [30, 40], [40, 50], [0, 5]])
    assert list(store._blocks(numbers, ranges)) == [(0, [(0, 10), (10, 20)]), (1, [(30, 40), (40, 50)]), (1, [(0, 5)])]


@pytest.mark.parametrize(("size", "counts"), [(19, [1, 1, 1, 1]), (20, [2, 2]), (30, [3, 1]), (40, [4])])
def test_a_block_has_no_more_bytes_than_asked_for(
    monkeypatch: pytest.MonkeyPatch, size: int, counts: list[int]
) -> None:
    monkeypatch.setattr(store, "BLOCK", size)
    ranges = np.array([[0, 10], [10, 20], [20, 30], [30, 40]])
    assert [len(places) for _, places in store._blocks(np.zeros(4, int), ranges)] == counts


def test_iteration_runs_no_more_than_some_blocks_ahead(
    make: Callable[..., Path], upload: Callable[[Path], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "BLOCK", 1)
    shards, asked = open_shards(upload(make(2))), []
    fetch = store.Remote.fetch
    monkeypatch.setattr(store.Remote, "fetch", lambda *about: asked.append(about) or fetch(*about))
    next(samples := iter(shards))
    assert len(asked) <= store.AHEAD < 6
    assert len(list(samples)) == 5
    assert len(asked) == 6


def test_the_blocks_used_last_are_kept_and_one_that_failed_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "BLOCK", 10)
    asked: list[int] = []

    class Places:
        """A file in which byte i is i."""

        def sample(self, name: str, start: int, end: int) -> store.Chunk:
            asked.append(start // 10)
            if asked == [9]:
                raise UserError("not now")
            return store.Chunk(bytes(range(start, end)), start)

    blocks = store.Blocks(Places(), 20)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="not now"):
        blocks.sample("a", 90, 95, 95)
    for number in (9, 0, 9, 1, 9, 0):
        assert (
            blocks.sample("a", 10 * number + 1, 10 * number + 4, 95).read(0, 10 * number + 2, 1)[0] == 10 * number + 2
        )
    assert asked == [9, 9, 0, 1, 0]


def test_blocks_of_any_size_give_the_same_samples(
    shapes_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Samples over several blocks, blocks with several samples, threads, and a file that is not there."""
    local, places = open_shards(shapes_shards), np.random.default_rng(0).permutation(64).tolist()
    memory = fsspec.filesystem("memory")
    memory.put(str(shapes_shards), "/odd", recursive=True)
    try:
        for block in (700, 4096, 10**6):
            monkeypatch.setattr(store, "BLOCK", block)
            remote = open_shards("memory://odd")
            remote.keep_blocks(3 * block)
            with ThreadPoolExecutor(8) as pool:
                for i, members in zip(places, pool.map(lambda i, r=remote: r[i].members, places), strict=True):
                    assert members == local[i].members
        memory.rm("/odd/shard-000002.tar")
        remote.keep_blocks(0)
        with pytest.raises(UserError, match=r"memory://odd/shard-000002.tar: missing"):
            remote[45]
    finally:
        memory.rm("/odd", recursive=True)
