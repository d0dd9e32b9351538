"""CPU time a sample of the readers in docs/readers.md, on the same shards in one process, as a ratio to ours.

    texturegen build --dataset cifar10 --limit 3000 --out shards
    texturegen index shards --for dali,wids,timm,energon
    python benchmarks/readers.py shards [--rounds 5] [--json readers.jsonl]

Every reader gives the image decoded to RGB and the label, without workers, in the order of its own default; with
"texture", the first texture too. CPU time is that of all threads of the process. What is done once (opening, and for
Hugging Face `datasets` the copy into its cache) is not counted. Rounds are interleaved and the ratio is the median of
those within rounds. Readers that are not installed are left out.
"""

import io
import json
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import numpy as np
from PIL import Image

from texturegen import open_shards
from texturegen.shards.layout import IMAGE_EXTENSIONS

Samples = Iterator[tuple[Any, ...]]  # pixels of the image, of the texture if asked for, the label
Reader = Callable[[], Samples]


def decode(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def find_members(directory: Path, texture: bool) -> list[str]:
    """Return the extensions of image, texture and label; the shards must hold one type of each."""
    members = open_shards(directory)[0].members
    sample = next(iter(json.loads((directory / "build.json").read_text())["shards"]))["name"]
    import tarfile

    with tarfile.open(directory / sample) as tar:
        names = {member.name.partition(".")[2] for member in tar} - set(members)
    image = next(name for name in names if name in IMAGE_EXTENSIONS)
    pasted = [name for name in sorted(names) if name.startswith("texture0.")]
    return [image, *(pasted if texture else []), "cls"]


def ours(directory: Path, texture: bool) -> Reader:
    shards = open_shards(directory)
    if texture:
        return lambda: ((sample.image, sample.texture(0), sample.label) for sample in shards)
    return lambda: ((sample.image, sample.label) for sample in shards)


def webdataset(directory: Path, texture: bool) -> Reader:
    import webdataset as wds

    tars = sorted(map(str, directory.glob("*.tar")))
    data = wds.WebDataset(tars, shardshuffle=False).to_tuple(*find_members(directory, texture))
    return lambda: ((*map(decode, row[:-1]), int(row[-1])) for row in data)


def wids(directory: Path, texture: bool) -> Reader:
    import wids as library

    members = find_members(directory, texture)
    data = library.ShardListDataset(
        str(directory / "wids.json"), base=str(directory), cache_dir=tempfile.mkdtemp(), transformations=[]
    )

    def read() -> Samples:
        for i in range(len(data)):
            *files, label = (data[i][f".{name}"].read() for name in members)
            yield *map(decode, files), int(label)

    return read


def hugging_face(directory: Path, texture: bool) -> Reader:
    import datasets

    datasets.disable_progress_bars()
    data = datasets.load_dataset(str(directory), split="train", cache_dir=tempfile.mkdtemp())
    members = find_members(directory, texture)
    data = data.select_columns(members)
    return lambda: ((*(np.asarray(row[name]) for name in members[:-1]), row["cls"]) for row in data)


def timm(directory: Path, texture: bool) -> Reader:
    from timm.data import create_dataset

    if texture:
        raise ImportError("it reads images and labels only")
    data = create_dataset("wds/", root=str(directory), split="train")
    return lambda: ((np.asarray(image), label) for image, label in data)


def dali(directory: Path, texture: bool) -> Reader:
    from nvidia.dali import fn, pipeline_def

    members, tars = find_members(directory, texture), sorted(map(str, directory.glob("*.tar")))
    size, batch = len(open_shards(directory)), 64

    @pipeline_def(batch_size=batch, num_threads=1, device_id=None)
    def pipeline() -> Any:
        *files, label = fn.readers.webdataset(
            paths=tars, index_paths=[tar.replace(".tar", ".idx") for tar in tars], ext=members
        )
        return *(fn.decoders.image(file) for file in files), label

    running = pipeline()
    running.build()

    def read() -> Samples:
        for _ in range(size // batch):
            *images, labels = running.run()
            for i in range(batch):
                yield *(np.asarray(part[i]) for part in images), int(bytes(np.asarray(labels[i])))

    return read


def energon(directory: Path, texture: bool) -> Reader:
    from megatron import energon as library

    members = find_members(directory, texture)

    @library.stateless
    def cook(sample: dict[str, Any]) -> Any:
        pixels = [sample[name] for name in members[:-1]]  # energon decodes images to float tensors
        return library.TextSample(**library.basic_sample_keys(sample), text=(*pixels, int(sample["cls"])))

    class Encoder(library.DefaultTaskEncoder):
        cookers = [library.Cooker(cook)]  # noqa: RUF012

        @library.stateless
        def encode_sample(self, sample: Any) -> Any:
            return sample

    data = library.get_train_dataset(
        str(directory),
        worker_config=library.WorkerConfig(rank=0, world_size=1, num_workers=0),
        batch_size=None,
        shuffle_buffer_size=None,
        max_samples_per_sequence=None,
        task_encoder=Encoder(),
        repeat=False,
    )
    return lambda: (sample.text for sample in library.get_loader(data))


def lightly(directory: Path, texture: bool) -> Reader:
    from lightly.data import LightlyDataset

    shards = open_shards(directory)

    class Pictures:
        def __len__(self) -> int:
            return len(shards)

        def __getitem__(self, i: int) -> tuple[Any, int]:
            sample = shards[i]
            return (sample.image, sample.texture(0)) if texture else (sample.image,), sample.label

    data = LightlyDataset.from_torch_dataset(Pictures())
    return lambda: ((*data[i][0], data[i][1]) for i in range(len(data)))


READERS = {
    "texturegen": ours,
    "webdataset, Pillow": webdataset,
    "wids, Pillow": wids,
    "Hugging Face datasets": hugging_face,
    "timm": timm,
    "DALI on the CPU": dali,
    "Megatron-Energon, float tensors": energon,
    "LightlyDataset of open_shards": lightly,
}


def measure(reader: Reader) -> tuple[float, int]:
    """Return CPU microseconds a sample, and the number of samples of one pass."""
    begin, count = time.process_time(), 0
    for sample in reader():
        assert sample[0].ndim == 3
        count += 1
    return (time.process_time() - begin) / count * 1e6, count


@click.command()
@click.argument("directory", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--rounds", default=5, show_default=True)
@click.option("--json", "output", type=click.Path(path_type=Path), help="JSON lines, appended to.")
def main(directory: Path, rounds: int, output: Path | None) -> None:
    """Measure all readers on the shards in DIRECTORY."""
    warnings.simplefilter("ignore")
    for texture in (False, True):
        readers: dict[str, Reader] = {}
        for name, opens in READERS.items():
            try:
                readers[name] = opens(directory, texture)
                measure(readers[name])  # warm
            except ImportError as error:
                print(f"{name}: left out ({error})", flush=True)
        times: dict[str, list[float]] = {name: [] for name in readers}
        for _ in range(rounds):
            for name, reader in readers.items():
                times[name].append(measure(reader)[0])
        print(f"\n| reader, image{' and texture' * texture} | CPU us a sample | ratio to ours |\n| --- | --- | --- |")
        for name, found in times.items():
            ratio = statistics.median(a / b for a, b in zip(found, times["texturegen"], strict=True))
            print(f"| {name} | {statistics.median(found):.0f} | {ratio:.2f} |", flush=True)
            if output:
                row = {"reader": name, "texture": texture, "us": [round(t, 1) for t in found], "ratio": round(ratio, 3)}
                with output.open("a") as file:
                    file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
