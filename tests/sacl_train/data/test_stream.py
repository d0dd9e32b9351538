"""Stream of batches: each sample at most once per epoch, reproducible order, exact pixels, damaged samples."""

import shutil
import threading
from itertools import chain
from pathlib import Path

import fsspec
import numpy as np
import pytest
import torch

import sacl_train.data.memory
from sacl_train.data.memory import available_memory
from sacl_train.data.statistics import channel_statistics
from sacl_train.data.stream import Plan, Stream
from texturegen import open_shards
from texturegen.builds import Recipe, build
from texturegen.errors import UserError
from texturegen.storage.ranges import Remote

IN_MEMORY = "kept decoded in memory"


@pytest.mark.parametrize("cache_gb", [0.0, 1.0])
def test_epoch_gives_whole_batches_of_distinct_samples(shapes_shards: Path, cache_gb: float) -> None:
    shards = open_shards(shapes_shards)
    stream = Stream(shards, Plan(10, seed=3, textures="all"), cache_gb=cache_gb)
    for epoch in (0, 1):  # the second is served from the cache where there is one
        batches = list(stream.epoch(epoch))
        assert [len(batch["image"]) for batch in batches] == [10] * 6
        seen = np.concatenate([batch["index"] for batch in batches])
        assert len(set(seen.tolist())) == 60
        for batch in batches:
            for i, index in enumerate(batch["index"].tolist()):
                sample = shards[index]
                np.testing.assert_array_equal(batch["image"][i].permute(1, 2, 0), sample.image)
                np.testing.assert_array_equal(batch["texture"][i].permute(0, 2, 3, 1), sample.textures)


def test_order_is_function_of_seed_and_epoch(shapes_shards: Path) -> None:
    def order(seed: int, epoch: int) -> list[int]:
        stream = Stream(open_shards(shapes_shards), Plan(16, seed))
        return np.concatenate([batch["index"] for batch in stream.epoch(epoch)]).tolist()

    assert order(0, 1) == order(0, 1)
    assert order(0, 1) != order(0, 0)
    assert order(0, 1) != order(1, 1)


def test_in_order_gives_every_sample_once_without_textures_unless_asked(shapes_shards: Path) -> None:
    stream = Stream(open_shards(shapes_shards), Plan(50))
    batches = list(stream.in_order())
    assert np.concatenate([batch["index"] for batch in batches]).tolist() == list(range(64))
    assert "texture" not in batches[0]
    assert [batch["index"].tolist() for batch in stream.in_order(np.array([7, 5]))] == [[7, 5]]
    stream = Stream(open_shards(shapes_shards), Plan(2), bad_share=1)
    stream.damaged.add({5: "damaged", 7: "damaged", 8: "damaged"})
    assert [batch["index"].tolist() for batch in stream.in_order(np.array([4, 5, 7, 8, 9]))] == [[4], [9]]


def test_shards_of_an_earlier_format_are_streamed() -> None:
    shards = open_shards(Path(__file__).parents[2] / "texturegen" / "shards" / "format2" / "finished")
    assert shards.build["format"] == 2
    (batch,) = Stream(shards, Plan(4, textures="all")).epoch(0)
    for i, index in enumerate(batch["index"].tolist()):
        np.testing.assert_array_equal(batch["image"][i].permute(1, 2, 0), shards[index].image)
        np.testing.assert_array_equal(batch["texture"][i].permute(0, 2, 3, 1), shards[index].textures)


def test_shards_without_textures_are_refused(shapes_test_shards: Path) -> None:
    with pytest.raises(UserError, match="these shards have no textures"):
        Stream(open_shards(shapes_test_shards), Plan(4, textures="one"))


def test_images_of_different_sizes_are_refused(image_folder: Path, tmp_path: Path, photo: np.ndarray) -> None:
    import cv2

    cv2.imwrite(str(image_folder / "cats" / "large.png"), photo[:64, :48])
    build(Recipe("folder"), tmp_path / "s", root=str(image_folder))
    with pytest.raises(UserError, match=r"images have 2 sizes.* build with --size"):
        Stream(open_shards(tmp_path / "s"), Plan(4))


def test_channel_statistics_are_those_of_pixels(shapes_shards: Path) -> None:
    shards = open_shards(shapes_shards)
    pixels = np.concatenate([sample.image.reshape(-1, 3) for sample in shards]) / 255
    mean, std = channel_statistics(shards)
    np.testing.assert_allclose(mean, pixels.mean(0), atol=1e-4)
    np.testing.assert_allclose(std, pixels.std(0), atol=1e-4)


@pytest.fixture(scope="module")
def three_textures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("three") / "s"
    build(Recipe("shapes", limit=40, per_image=3, shard_size=16), out)
    return out


@pytest.mark.parametrize("cache", ["none", "ram"])
def test_one_texture_is_drawn_per_epoch_or_all_are_used(three_textures: Path, cache: str) -> None:
    shards = open_shards(three_textures)
    expected = [shards[i].textures for i in range(len(shards))]
    chosen: dict[int, list[int]] = {i: [] for i in range(len(shards))}
    one = Stream(shards, Plan(8, textures="one"), cache=cache)
    for epoch in range(12):
        for batch in one.epoch(epoch):
            assert batch["texture"].shape == (8, 1, 3, 32, 32)
            for index, texture in zip(batch["index"].tolist(), batch["texture"][:, 0], strict=True):
                same = [np.array_equal(texture.permute(1, 2, 0).numpy(), other) for other in expected[index]]
                assert any(same)
                chosen[index].append(same.index(True))
    assert all(len(set(numbers)) > 1 for numbers in chosen.values())
    assert one._choose(np.arange(40), 0) != Stream(shards, Plan(8, 1, "one"))._choose(np.arange(40), 0)
    counts = np.bincount(np.concatenate(list(chosen.values())), minlength=3)
    assert counts.min() > 0.25 * counts.sum()
    for batch in Stream(shards, Plan(8, textures="all"), cache=cache).epoch(0):
        for index, textures in zip(batch["index"].tolist(), batch["texture"], strict=True):
            assert np.array_equal(textures.permute(0, 2, 3, 1).numpy(), np.stack(expected[index]))


@pytest.mark.parametrize("order", ["global", "shards"])
@pytest.mark.parametrize("remainder", ["drop", "wrap"])
def test_ranks_together_read_the_batches_of_one_process(shapes_shards: Path, order: str, remainder: str) -> None:
    shards = open_shards(shapes_shards)

    def read(rank: int, ranks: int, skip: int = 0) -> list[torch.Tensor]:
        plan = Plan(12, order=order, shuffle_buffer=10, remainder=remainder, rank=rank, ranks=ranks)
        return [batch["index"] for batch in Stream(shards, plan).epoch(3, skip)]

    whole, parts = read(0, 1), [read(rank, 3) for rank in range(3)]
    assert len(whole) == {"drop": 5, "wrap": 6}[remainder]
    for step, batch in enumerate(whole):
        together = torch.cat([part[step] for part in parts])
        assert sorted(together.tolist()) == sorted(batch.tolist())
        if order == "shards":
            assert (np.diff(shards.numbers[together]) >= 0).all(), "each reads from as few shards as may be"
    seen = torch.cat(whole).tolist()
    assert len(set(seen)) == {"drop": 60, "wrap": 64}[remainder]
    assert [batch.tolist() for batch in read(1, 3, skip=2)] == [batch.tolist() for batch in parts[1][2:]]


def damage(shards: Path, out: Path, which: list[int]) -> list[int]:
    """Copy shards, and overwrite the image bytes of some samples."""
    shutil.copytree(shards, out)
    for index in which:
        sample = open_shards(shards)[index]
        tar = out / Path(sample.shard).name
        content, encoded = tar.read_bytes(), sample.image_bytes
        assert content.count(encoded) == 1
        tar.write_bytes(content.replace(encoded, bytes(len(encoded))))
    return which


@pytest.mark.parametrize("cache", ["none", "ram"])
def test_damaged_sample_is_replaced_counted_and_reported(
    shapes_shards: Path, tmp_path: Path, cache: str, capsys: pytest.CaptureFixture
) -> None:
    bad = damage(shapes_shards, tmp_path / "s", [3, 41])
    shards = open_shards(tmp_path / "s")

    def read(threads: int) -> list[list[int]]:
        stream = Stream(shards, Plan(16, textures="one"), threads=threads, cache=cache, bad_share=0.05)
        batches = [batch["index"].tolist() for batch in stream.epoch(0)]
        list(stream.epoch(1))
        assert sorted(stream.damaged.found()) == bad
        return batches

    first = read(1)
    assert capsys.readouterr().err.count("skipped: ") == 2, "each is named once, not in every epoch"
    assert read(4) == first, "the same samples stand in, whatever the timing"
    seen = list(chain(*first))
    assert len(seen) == 64
    assert not set(seen) & set(bad)
    assert all(len(set(batch)) == 16 for batch in first), "no image is its own negative"
    sound = [batch["index"].tolist() for batch in Stream(open_shards(shapes_shards), Plan(16)).epoch(0)]
    assert sum(a != b for a, b in zip(chain(*sound), seen, strict=True)) == 2
    in_order = Stream(shards, Plan(16), bad_share=0.05).in_order()
    assert list(chain(*(batch["index"].tolist() for batch in in_order))) == [i for i in range(64) if i not in bad]


def test_too_many_damaged_samples_stop_stream(shapes_shards: Path, tmp_path: Path) -> None:
    damage(shapes_shards, tmp_path / "s", [3, 41])
    with pytest.raises(UserError, match=r"of 64 samples are damaged, more than bad_share allows.*texturegen repair"):
        list(Stream(open_shards(tmp_path / "s"), Plan(16), bad_share=0.02).epoch(0))
    assert len(list(Stream(open_shards(tmp_path / "s"), Plan(16), bad_share=2 / 64).epoch(0))) == 4


def test_replacement_has_its_own_texture(three_textures: Path, tmp_path: Path) -> None:
    damage(three_textures, tmp_path / "s", [3])
    stream, twice = Stream(open_shards(tmp_path / "s"), Plan(8, textures="one"), bad_share=0.05), 0
    for epoch in range(6):
        seen: dict[int, torch.Tensor] = {}
        for batch in stream.epoch(epoch):
            for index, texture in zip(batch["index"].tolist(), batch["texture"], strict=True):
                twice += index in seen
                assert torch.equal(seen.setdefault(index, texture), texture)
    assert twice == 6


def test_at_most_ten_damaged_samples_are_reported(shapes_shards: Path, capsys: pytest.CaptureFixture) -> None:
    stream = Stream(open_shards(shapes_shards), Plan(16), bad_share=1)
    for number in range(12):
        stream.damaged.note(number, f"sample {number}")
    said = capsys.readouterr().err
    assert said.count("skipped: ") == 10
    assert "sample 9; further damaged samples are only counted" in said


def test_statistics_use_readable_images_spread_over_the_set(shapes_shards: Path, tmp_path: Path) -> None:
    def mean(*indices: int) -> np.ndarray:
        return np.mean([open_shards(shapes_shards)[i].image / 255 for i in indices], axis=(0, 1, 2))

    np.testing.assert_allclose(channel_statistics(open_shards(shapes_shards), 2)[0], mean(0, 63), atol=1e-4)
    damage(shapes_shards, tmp_path / "first", [0])
    np.testing.assert_allclose(channel_statistics(open_shards(tmp_path / "first"), 2)[0], mean(63), atol=1e-4)
    damage(tmp_path / "first", tmp_path / "both", [63])
    with pytest.raises(UserError, match="00000063: image: its bytes differ from those that were written"):
        channel_statistics(open_shards(tmp_path / "both"), 2)


def test_too_small_cache_is_refused_or_skipped(shapes_shards: Path) -> None:
    shards = open_shards(shapes_shards)
    assert Stream(shards, Plan(16), cache="auto").place == IN_MEMORY
    assert Stream(shards, Plan(16), cache="auto", cache_gb=1e-4).place != IN_MEMORY
    assert Stream(shards, Plan(16), cache="none").place != IN_MEMORY
    with pytest.raises(UserError, match="cache ram: the pixels take"):
        Stream(shards, Plan(16), cache="ram", cache_gb=1e-4)


def test_indivisible_batch_is_refused(shapes_shards: Path) -> None:
    for ranks, accumulate in ((3, 2), (2, 3)):
        with pytest.raises(
            UserError, match=f"batch_size 16 is not divisible by {ranks} processes times accumulate {accumulate}"
        ):
            Stream(open_shards(shapes_shards), Plan(16, ranks=ranks, accumulate=accumulate))


def test_remote_shards_in_shard_order_are_read_in_blocks(shapes_shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    memory = fsspec.filesystem("memory")
    memory.put(str(shapes_shards), "/blocks", recursive=True)
    requests: list[str] = []
    fetch = Remote.fetch

    def counted(self: Remote, name: str, start: int | None = None, end: int | None = None) -> bytes | None:
        requests.append(name)
        return fetch(self, name, start, end)

    monkeypatch.setattr(Remote, "fetch", counted)
    read: dict[str, dict[int, torch.Tensor]] = {}
    try:
        for order in ("shards", "global"):
            shards = open_shards("memory://blocks")
            requests.clear()
            stream = Stream(shards, Plan(16, textures="one", order=order, shuffle_buffer=8), threads=4, cache="none")
            read[order] = {
                int(i): image
                for batch in stream.epoch(0)
                for i, image in zip(batch["index"], batch["image"], strict=True)
            }
            tars = [name for name in requests if name.endswith(".tar")]
            assert len(tars) == {"shards": 4, "global": 64}[order], "once for each shard, or for each sample"
        assert read["shards"].keys() == read["global"].keys()
        assert all(torch.equal(read["shards"][i], read["global"][i]) for i in read["shards"])
    finally:
        memory.rm("/blocks", recursive=True)


def test_fraction_of_damaged_samples_is_over_all_processes(shapes_shards: Path) -> None:
    shards = open_shards(shapes_shards)
    streams = [Stream(shards, Plan(16, rank=rank, ranks=2), bad_share=0.02) for rank in (0, 1)]  # one of 64
    for number, stream in enumerate(streams):
        stream.damaged.note(number, f"sample {number}")
    both = {**streams[0].damaged.found(), **streams[1].damaged.found()}
    for stream in streams:
        with pytest.raises(UserError, match="2 of 64 samples are damaged, more than bad_share allows"):
            stream.damaged.add(both)


def test_cache_may_use_half_of_available_memory(
    shapes_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shards = open_shards(shapes_shards)
    for ranks in (1, 2):
        monkeypatch.setenv("LOCAL_WORLD_SIZE", str(ranks))
        for spare in (-1, 1):
            half = 64 * 32 * 32 * 3 + spare  # bytes of all images
            monkeypatch.setattr(sacl_train.data.memory, "available_memory", lambda size=2 * half * ranks: size)
            assert (Stream(shards, Plan(16), cache="auto").place == IN_MEMORY) == (spare > 0)
        assert Stream(shards, Plan(16), cache="auto", cache_gb=1.0).place == IN_MEMORY
    monkeypatch.setattr(sacl_train.data.memory, "available_memory", lambda: 0.0)
    with pytest.raises(UserError, match="half of the memory available to this process is 0 GB; set cache_gb higher"):
        Stream(shards, Plan(16), cache="ram")


def test_available_memory_respects_system_and_container(tmp_path: Path) -> None:
    proc, group = tmp_path / "meminfo", tmp_path / "group"
    proc.write_text("MemTotal:  4000 kB\nMemFree:  100 kB\nMemAvailable:    2000 kB\n")
    assert available_memory(proc, [group]) == 2000 * 1024
    group.mkdir()
    for name, text in (
        ("memory.max", "900000"),
        ("memory.current", "700000"),
        ("memory.stat", "anon 1\nfile 300000\n"),
    ):
        (group / name).write_text(text)
    assert available_memory(proc, [group]) == 500000
    (group / "memory.stat").write_text("anon 1\nfile 300000\nshmem 100000\n")  # files in /dev/shm
    assert available_memory(proc, [group]) == 400000
    (group / "memory.max").write_text("9000000")
    assert available_memory(proc, [group]) == 2000 * 1024, "the machine has less than the group may take"
    (group / "memory.max").write_text("300000")
    assert available_memory(proc, [group]) == 0
    (group / "memory.max").write_text("max\n")
    assert available_memory(proc, [group]) == 2000 * 1024
    assert available_memory(tmp_path / "none", []) > 0


def test_cached_batches_equal_decoded_batches(tmp_path: Path) -> None:
    build(Recipe("shapes", limit=24, per_image=3), tmp_path / "shards")
    shards = open_shards(tmp_path / "shards")
    for textures in ("one", "all", "none"):
        plan = Plan(8, seed=1, textures=textures)
        cached, decoded = Stream(shards, plan, cache="ram"), Stream(shards, plan, cache="none")
        for epoch in range(3):
            for mine, other in zip(cached.epoch(epoch), decoded.epoch(epoch), strict=True):
                assert mine.keys() == other.keys()
                for name, values in mine.items():
                    assert torch.equal(values, other[name])
                    assert values.stride() == other[name].stride()


def test_damaged_samples_can_be_read_while_threads_find_more(shapes_shards: Path) -> None:
    stream = Stream(open_shards(shapes_shards), Plan(16), bad_share=1e6)
    finding = threading.Thread(target=lambda: [stream.damaged.note(n, "damaged") for n in range(100_000)])
    finding.start()
    sizes = []
    while finding.is_alive():
        sizes.append(len(sorted(stream.damaged.found().items())))
    finding.join()
    assert sizes == sorted(sizes)
    assert len(stream.damaged.found()) == 100_000


def test_smallest_control_group_limit_applies(tmp_path: Path) -> None:
    proc = tmp_path / "meminfo"
    proc.write_text("MemAvailable:    2000 kB\n")
    task, job, old = (tmp_path / name for name in ("task", "job", "old"))
    for group, names, amounts in (
        (task, ("memory.max", "memory.current"), ("max", "700000")),
        (job, ("memory.max", "memory.current"), ("900000", "700000")),
        (old, ("memory.limit_in_bytes", "memory.usage_in_bytes", "memory.stat"), ("500000", "450000", "total_cache 9")),
    ):
        group.mkdir()
        for name, amount in zip(names, amounts, strict=True):
            (group / name).write_text(amount)
    assert available_memory(proc, [task, job]) == 200000
    assert available_memory(proc, [task, job, old]) == 50009
    assert available_memory(proc, [task]) == 2000 * 1024
