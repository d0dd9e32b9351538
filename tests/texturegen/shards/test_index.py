"""Index files for other readers, read by those readers where they are installed."""

import json
import shutil
import struct
import tarfile
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from texturegen.builds import Recipe, build
from texturegen.cli import main
from texturegen.errors import DamagedError, UserError
from texturegen.shards import open_shards
from texturegen.shards.card import CARD
from texturegen.shards.index import INDEXES, write_indexes
from texturegen.shards.layout import MANIFEST
from texturegen.shards.merge import split
from texturegen.shards.verify import verify


@pytest.fixture(scope="module")
def indexed(shapes_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """64 images in shards of 20, with every index. Read only."""
    directory = tmp_path_factory.mktemp("indexed") / "shards"
    shutil.copytree(shapes_shards, directory)
    for tar in directory.glob("*.tar"):  # not needed, and not read
        tar.rename(tar.with_suffix(".away"))
    done = CliRunner().invoke(main, ["index", str(directory), "--for", ",".join(INDEXES)])
    assert done.exit_code == 0, done.output
    assert done.output == (
        f"{directory}: wrote shard-000000.idx, shard-000001.idx, shard-000002.idx, shard-000003.idx and 11 more\n"
    )
    for tar in directory.glob("*.away"):
        tar.rename(tar.with_suffix(".tar"))
    return directory


def test_the_idx_of_dali_has_what_tarfile_finds(indexed: Path) -> None:
    for path in sorted(indexed.glob("*.tar")):
        with tarfile.open(path) as tar:
            found = [(member.name.split(".", 1)[1], member.offset_data, member.size, member.name) for member in tar]
        first, *lines = path.with_suffix(".idx").read_text().splitlines()
        assert first == f"v1.2 {len(lines)}"
        words = " ".join(lines).split()
        assert words == [str(word) for member in found for word in member]
        assert {line.count(".cls") for line in lines} == {1}


def test_energons_offsets_are_those_of_the_samples_first_headers(indexed: Path) -> None:
    for path in sorted(indexed.glob("*.tar")):
        with tarfile.open(path) as tar:
            starts = [
                member.offset for member in tar if member.name.count(".") == 1 and not member.name.endswith("cls")
            ]
            end = tar.offset
        data = Path(f"{path}.idx").read_bytes()
        assert struct.unpack(f"<{len(data) // 8}Q", data) == (*starts, end)
    assert json.loads((indexed / ".nv-meta" / "split.yaml").read_text())["split_parts"]["train"] == [
        f"shard-{i:06d}.tar" for i in range(4)
    ]


def test_timm_reads_the_directory(indexed: Path) -> None:
    timm = pytest.importorskip("timm.data", reason="needs timm")
    data = timm.create_dataset("wds/", root=str(indexed), split="train")
    assert len(data) == 64
    labels = sorted(label for _, label in data)
    assert labels == sorted(open_shards(indexed).labels.tolist())


def test_wids_reads_the_directory(indexed: Path, tmp_path: Path) -> None:
    content = json.loads((indexed / "wids.json").read_text())
    assert [(shard["url"], shard["nsamples"]) for shard in content["shardlist"]] == [
        ("shard-000000.tar", 20),
        ("shard-000001.tar", 20),
        ("shard-000002.tar", 20),
        ("shard-000003.tar", 4),
    ]
    wids = pytest.importorskip("wids", reason="needs wids, which webdataset shipped before version 1")
    data = wids.ShardListDataset(str(indexed / "wids.json"), base=str(indexed), cache_dir=str(tmp_path))
    assert len(data) == 64
    assert data[45]["__key__"] == open_shards(indexed).keys[45]
    assert np.array_equal(np.asarray(data[45][".png"]), open_shards(indexed)[45].image)


def test_dali_reads_the_directory(indexed: Path) -> None:
    pytest.importorskip("nvidia.dali", reason="needs NVIDIA DALI (the extra `readers`)")
    from nvidia.dali import fn, pipeline_def

    tars = sorted(str(path) for path in indexed.glob("*.tar"))

    @pipeline_def(batch_size=64, num_threads=1, device_id=None)
    def pipeline():  # type: ignore[no-untyped-def]
        image, label = fn.readers.webdataset(
            paths=tars, index_paths=[tar.replace(".tar", ".idx") for tar in tars], ext=["png", "cls"]
        )
        return fn.decoders.image(image), label

    images, labels = pipeline().run()
    for i, sample in enumerate(open_shards(indexed)):
        assert np.array_equal(np.asarray(images[i]), sample.image)
        assert bytes(np.asarray(labels[i])) == str(sample.label).encode()


def test_energon_reads_the_directory(indexed: Path) -> None:
    energon = pytest.importorskip("megatron.energon", reason="needs megatron-energon (the extra `readers`)")

    @energon.stateless
    def cook(sample: dict) -> object:
        return energon.TextSample(**energon.basic_sample_keys(sample), text=sample["cls"])

    class Encoder(energon.DefaultTaskEncoder):
        cookers = [energon.Cooker(cook)]  # noqa: RUF012

    data = energon.get_train_dataset(
        str(indexed),
        worker_config=energon.WorkerConfig(rank=0, world_size=1, num_workers=0),
        batch_size=None,
        shuffle_buffer_size=None,
        max_samples_per_sequence=None,
        task_encoder=Encoder(),
        repeat=False,
    )
    found = {sample.__key__.split("/", 1)[1]: int(sample.text) for sample in energon.get_loader(data)}
    assert found == dict(zip(open_shards(indexed).keys, open_shards(indexed).labels.tolist(), strict=True))


def test_mlcroissant_reads_the_directory(indexed: Path) -> None:
    content = json.loads((indexed / "croissant.json").read_text())
    sums = {entry["@id"]: entry.get("sha256") for entry in content["distribution"]}
    build_json = open_shards(indexed).build
    assert sums[MANIFEST] == build_json["manifest_sha256"]
    assert [sums[shard["name"]] for shard in build_json["shards"]] == [s["sha256"] for s in build_json["shards"]]
    mlcroissant = pytest.importorskip("mlcroissant", reason="needs mlcroissant (the extra `readers`)")
    data = mlcroissant.Dataset(jsonld=str(indexed / "croissant.json"))
    rows = list(data.records("textures"))
    assert [row["textures/key"].decode() for row in rows] == open_shards(indexed).keys
    assert [row["textures/label"] for row in rows] == open_shards(indexed).labels.tolist()


def test_verify_names_an_index_of_another_build(indexed: Path, tmp_path: Path) -> None:
    directory = tmp_path / "shards"
    shutil.copytree(indexed, directory)
    assert verify(directory) == []
    names = ("shard-000002.idx", "shard-000001.tar.idx", "wids.json", "_info.json", "croissant.json")
    for name in (*names, CARD):  # the card may be edited
        (directory / name).write_bytes((directory / name).read_bytes()[:-3])
    faults = verify(directory)
    assert sorted(fault.split(": ")[0].removeprefix(f"{directory}/") for fault in faults) == sorted(names)
    assert faults[0].endswith("write it again with `texturegen index`")
    write_indexes(directory, [*INDEXES])
    assert verify(directory) == []
    assert (directory / CARD).read_bytes() == (indexed / CARD).read_bytes()


def test_wrong_arguments_are_errors(shapes_shards: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"there is no index 'tim' \(did you mean 'timm'\?\); known: dali, wids,"):
        write_indexes(shapes_shards, ["tim"])
    shutil.copytree(shapes_shards, tmp_path / "s")
    with open(tmp_path / "s" / MANIFEST, "ab") as f:
        f.write(b"x")
    with pytest.raises(DamagedError, match=f"{MANIFEST}: its checksum differs from build.json"):
        write_indexes(tmp_path / "s", ["wids"])


@pytest.mark.parametrize("prefix", [None, "own-name"])
def test_a_shard_without_samples_has_no_file(tmp_path: Path, image_folder: Path, prefix: str | None) -> None:
    for name in ("cats/0.jpg", "cats/1.png"):
        (image_folder / name).write_bytes(b"no image")
    recipe = Recipe("folder", per_image=0, shard_size=2, prefix=prefix)
    counts = build(recipe, tmp_path / "s", str(image_folder)).counts
    assert (
        build(recipe, tmp_path / "s", str(image_folder)).counts
        == counts
        == {"samples": 4, "textures": 0, "failed": 2, "ignored": 0}
    )
    assert [path.name for path in sorted((tmp_path / "s").glob("*.tar"))] == [
        f"{prefix or 'shard'}-000001.tar",
        f"{prefix or 'shard'}-000002.tar",
    ]
    assert len(open_shards(tmp_path / "s")) == 4
    assert verify(tmp_path / "s", deep=True) == []
    write_indexes(tmp_path / "s", [*INDEXES])
    assert verify(tmp_path / "s") == []
    assert pq.read_schema(tmp_path / "s" / MANIFEST).metadata[b"texturegen.format"] == b"3"
    split(tmp_path / "s", tmp_path / "half", share=0.5)
    assert verify(tmp_path / "half") == []
    assert open_shards(tmp_path / "half")[0].shard.endswith(f"/{prefix or 'shard'}-000000.tar")
    build(recipe, tmp_path / "s", str(image_folder), retry_failed=True)
    assert verify(tmp_path / "s") == []


def test_a_wrong_prefix_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--prefix is 'a/b'; use up to 64 letters, digits, _ and -"):
        build(Recipe("shapes", prefix="a/b"), tmp_path / "s")


@pytest.mark.parametrize("context", [None, "spawn"])
def test_a_dataloader_collates_samples_by_default(shapes_shards: Path, context: str | None) -> None:
    data = pytest.importorskip("torch.utils.data", reason="needs torch")
    shards = open_shards(shapes_shards)
    loader = data.DataLoader(
        shards, batch_size=16, num_workers=int(context is not None), multiprocessing_context=context
    )
    start = 0
    for batch in loader:
        assert batch["key"] == shards.keys[start : start + 16]
        assert batch["label"].tolist() == shards.labels[start : start + 16].tolist()
        assert batch["textures"].shape == (16, 1, 32, 32, 3)
        assert np.array_equal(batch["image"][5], shards[start + 5].image)
        start += 16
    assert start == 64
    assert shards[0] != shards[0], "samples are compared by identity"
    with pytest.raises(KeyError, match="shard"):
        shards[0]["shard"]
