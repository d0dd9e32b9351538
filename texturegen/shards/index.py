"""The small files that other readers want beside the tars, written from the manifest and build.json without the tars.

`INDEXES` is the registry: name -> what the files are for, a function that yields the path and content of each, and how
to tell that they are there.
"""

import json
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from texturegen.errors import DamagedError, UserError, nearest
from texturegen.shards.build_json import read_build
from texturegen.shards.card import CARD, make_card, read_contents
from texturegen.shards.checks import check_rows
from texturegen.shards.layout import BUILD, IMAGE_EXTENSIONS, MANIFEST
from texturegen.shards.manifest import COLUMNS, read_manifest, select_ok
from texturegen.shards.members import list_members
from texturegen.storage.atomic import as_json, sha256_of, write_atomically
from texturegen.storage.ranges import local_path
from texturegen.storage.tar import BLOCK

SPLIT = "train"  # name of the only split: the split of a directory is what its user makes of it

Files = Iterator[tuple[str, bytes]]  # path below the directory, content


@dataclass(frozen=True)
class Inputs:
    """What an index is made from.

    Attributes
    ----------
    directory : Path
        The shard directory.
    build : mapping
        Content of build.json.
    rows : pyarrow.Table
        `manifest.COLUMNS` of all samples, without failed images.
    """

    directory: Path
    build: Mapping[str, Any]
    rows: pa.Table

    def shards(self) -> list[dict[str, Any]]:
        """Return the entries of the shards that have a file."""
        return [shard for shard in self.build["shards"] if shard["samples"]]

    def members(self) -> Iterator[tuple[str, pa.Table]]:
        """Yield the name of each shard and its `list_members`."""
        per_sample = max(self.build["recipe"]["per_image"], 1)
        start = 0
        for shard in self.shards():
            yield shard["name"], list_members(self.rows.slice(start, shard["samples"] * per_sample))
            start += shard["samples"] * per_sample


@dataclass(frozen=True)
class Index:
    """An entry of `INDEXES`.

    Attributes
    ----------
    help : str
        What reads the files, for `--help`.
    make : callable
        Yields them.
    probe : str or None
        Pattern of files of which one exists if the index was written; None: `verify` does not compare the files.
    """

    help: str
    make: Callable[[Inputs], Files]
    probe: str | None


def write_indexes(directory: str | Path, names: Sequence[str]) -> list[Path]:
    """Write the index files of some readers in a finished shard directory; files that are there are replaced.

    Parameters
    ----------
    directory : str or Path
        The directory. Only build.json and the manifest are read.
    names : sequence of str
        Names in `INDEXES`.

    Returns
    -------
    list of Path
        The files written.

    Raises
    ------
    MissingError, DamagedError
        The directory holds no finished build, or its manifest is damaged.
    UserError
        An unknown name.
    """
    for name in names:
        if name not in INDEXES:
            raise UserError(f"there is no index {name!r}{nearest(name, INDEXES)}; known: {', '.join(INDEXES)}")
    directory = local_path(directory)
    build = read_build(directory)
    if sha256_of(directory / MANIFEST) != build["manifest_sha256"]:
        raise DamagedError(f"{directory / MANIFEST}: its checksum differs from {BUILD}; copy it again")
    table = read_manifest(directory / MANIFEST, COLUMNS)
    _, faults = check_rows(table, build, [shard["name"] for shard in build["shards"]])
    if faults:
        raise DamagedError(f"{directory / MANIFEST}: {faults[0]}; `texturegen verify` lists all damage")
    inputs = Inputs(directory, build, select_ok(table))
    written = []
    for name in names:
        for path, content in INDEXES[name].make(inputs):
            (directory / path).parent.mkdir(exist_ok=True)
            write_atomically(directory / path, content)
            written.append(directory / path)
    return written


def find_stale(directory: Path, build: Mapping[str, Any], rows: pa.Table) -> list[str]:
    """Return the index files in a directory whose content differs from what `write_indexes` would write.

    The card is not among them: its user may edit it.

    Parameters
    ----------
    directory, build, rows
        As in `Inputs`.
    """
    inputs = Inputs(directory, build, rows)
    stale = []
    for index in INDEXES.values():
        if index.probe is not None and any(directory.glob(index.probe)):
            for path, content in index.make(inputs):
                file = directory / path
                if file.is_file() and file.read_bytes() != content:
                    stale.append(path)
    return stale


def _name(inputs: Inputs) -> str:
    source = inputs.build["source"]
    return "-".join(filter(None, [source.get("name") or "images", source.get("split")]))


def _make_dali(inputs: Inputs) -> Files:
    """Yield an .idx file per tar, as version 1.2 of wds2idx writes it.

    It has a line per sample, with the extension, offset, size and name of each member.
    """
    for shard, members in inputs.members():
        names = members["name"].to_pylist()
        keys, exts = zip(*(name.split(".", 1) for name in names), strict=True)  # keys have no dots
        lines: list[list[str]] = []
        previous = None
        columns = (members["offset"].to_pylist(), members["size"].to_pylist())
        for key, ext, offset, size, name in zip(keys, exts, *columns, names, strict=True):
            if key != previous:
                lines.append([])
                previous = key
            lines[-1].append(f"{ext} {offset} {size} {name}")
        text = "\n".join([f"v1.2 {len(lines)}", *(" ".join(line) for line in lines)]) + "\n"
        yield f"{Path(shard).stem}.idx", text.encode()


def _make_wids(inputs: Inputs) -> Files:
    """Yield wids.json, the list of shards of webdataset's indexed reader."""
    shards = [
        {"url": shard["name"], "nsamples": shard["samples"], "filesize": shard["bytes"]} for shard in inputs.shards()
    ]
    name = _name(inputs)
    content = {"__kind__": "wids-shard-index-v1", "wids_version": 1, "name": name, "shardlist": shards}
    yield "wids.json", as_json(content).encode()


def _make_timm(inputs: Inputs) -> Files:
    """Yield _info.json, which timm's reader `wds/` looks for."""
    shards = inputs.shards()
    split = {
        "name": SPLIT,
        "filenames": [shard["name"] for shard in shards],
        "shard_lengths": [shard["samples"] for shard in shards],
        "num_samples": sum(shard["samples"] for shard in shards),
    }
    yield "_info.json", as_json({"splits": {SPLIT: split}}).encode()


def _make_energon(inputs: Inputs) -> Files:
    """Yield .nv-meta/ and the offsets of the samples of each shard, for Megatron-Energon."""
    shards = inputs.shards()
    counts = {shard["name"]: shard["samples"] for shard in shards}
    yield ".nv-meta/.info.json", as_json({"shard_counts": counts}).encode()
    # JSON is valid YAML.
    split = {"split_parts": {SPLIT: [*counts], "val": [], "test": []}, "exclude": []}
    yield ".nv-meta/split.yaml", as_json(split).encode()
    dataset = {"__module__": "megatron.energon", "__class__": "CrudeWebdataset"}
    yield ".nv-meta/dataset.yaml", as_json(dataset).encode()
    for shard, members in inputs.members():
        keys = np.array([name.split(".", 1)[0] for name in members["name"].to_pylist()])
        offsets, sizes = members["offset"].to_numpy(), members["size"].to_numpy()
        starts = offsets[np.append(True, keys[1:] != keys[:-1])] - BLOCK  # of the header of the sample's first member
        end = int(offsets[-1] - (-sizes[-1] // BLOCK) * BLOCK)
        yield f"{shard}.idx", struct.pack(f"<{len(starts) + 1}Q", *starts.tolist(), end)


def _make_hf(inputs: Inputs) -> Files:
    """Yield README.md, which Hugging Face `datasets` reads; new directories have it."""
    yield CARD, make_card(inputs.build, read_contents(inputs.directory / MANIFEST)).encode()


def _make_croissant(inputs: Inputs) -> Files:
    """Yield croissant.json, MLCommons' description of a data set, with the checksums of build.json."""
    build, shards = inputs.build, inputs.shards()
    name = _name(inputs)
    files = [(MANIFEST, "application/x-parquet", build["manifest_sha256"])]
    files += [(shard["name"], "application/x-tar", shard["sha256"]) for shard in shards]
    distribution: list[dict[str, Any]] = [
        {
            "@type": "cr:FileObject",
            "@id": file,
            "name": file,
            "contentUrl": file,
            "encodingFormat": kind,
            "sha256": sha256,
        }
        for file, kind, sha256 in files
    ]
    columns = {"image_ext", "texture_ext"} & {*inputs.rows.column_names}
    found = {ext for column in columns for ext in pc.unique(inputs.rows[column]).to_pylist()}
    distribution += [
        {
            "@type": "cr:FileSet",
            "@id": f"{ext}-files",
            "name": f"{ext}-files",
            "containedIn": [{"@id": shard["name"]} for shard in shards],
            "encodingFormat": f"image/{'jpeg' if ext == 'jpg' else ext}",
            "includes": f"*.{ext}",
        }
        for ext in IMAGE_EXTENSIONS
        if ext in found
    ]
    kinds = {"key": "sc:Text", "shard": "sc:Text", "index": "sc:Integer", "label": "sc:Integer"}
    kinds |= {"width": "sc:Integer", "height": "sc:Integer", "image_ext": "sc:Text", "texture_ext": "sc:Text"}
    fields = [
        {
            "@type": "cr:Field",
            "@id": f"textures/{column}",
            "name": f"textures/{column}",
            "dataType": kind,
            "source": {"fileObject": {"@id": MANIFEST}, "extract": {"column": column}},
        }
        for column, kind in kinds.items()
    ]
    content = {
        "@context": _CROISSANT_CONTEXT,
        "@type": "sc:Dataset",
        "name": name,
        "description": f"{build['counts']['samples']} images and {build['counts']['textures']} textures.",
        "conformsTo": "http://mlcommons.org/croissant/1.0",
        "distribution": distribution,
        "recordSet": [{"@type": "cr:RecordSet", "@id": "textures", "name": "textures", "field": fields}],
    }
    yield "croissant.json", (json.dumps(content, indent=2) + "\n").encode()


INDEXES = {
    "dali": Index("fn.readers.webdataset of NVIDIA DALI: an .idx file per tar", _make_dali, "*-*[0-9].idx"),
    "wids": Index("webdataset's indexed reader: wids.json", _make_wids, "wids.json"),
    "timm": Index("timm's wds/ reader: _info.json", _make_timm, "_info.json"),
    "energon": Index("Megatron-Energon: .nv-meta/ and a .tar.idx file per tar", _make_energon, ".nv-meta/.info.json"),
    "hf": Index("Hugging Face datasets: README.md", _make_hf, None),  # its user may edit the card
    "croissant": Index("mlcroissant: croissant.json", _make_croissant, "croissant.json"),
}
# The context that version 1.0 of the specification prescribes.
_CROISSANT_CONTEXT: dict[str, Any] = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "citeAs": "cr:citeAs",
    "column": "cr:column",
    "conformsTo": "dct:conformsTo",
    "cr": "http://mlcommons.org/croissant/",
    "rai": "http://mlcommons.org/croissant/RAI/",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "dct": "http://purl.org/dc/terms/",
    "examples": {"@id": "cr:examples", "@type": "@json"},
    "extract": "cr:extract",
    "field": "cr:field",
    "fileProperty": "cr:fileProperty",
    "fileObject": "cr:fileObject",
    "fileSet": "cr:fileSet",
    "format": "cr:format",
    "includes": "cr:includes",
    "isLiveDataset": "cr:isLiveDataset",
    "jsonPath": "cr:jsonPath",
    "key": "cr:key",
    "md5": "cr:md5",
    "parentField": "cr:parentField",
    "path": "cr:path",
    "recordSet": "cr:recordSet",
    "references": "cr:references",
    "regex": "cr:regex",
    "repeated": "cr:repeated",
    "replace": "cr:replace",
    "sc": "https://schema.org/",
    "separator": "cr:separator",
    "source": "cr:source",
    "subField": "cr:subField",
    "transform": "cr:transform",
}
