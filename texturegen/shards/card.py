"""The data set card of a shard directory: README.md, which also tells Hugging Face `datasets` how to read it.

Without it, `load_dataset(DIR)` may take manifest.parquet for the data, and infers the columns from the first five
samples: where PNG and JPEG are mixed, images of the other type are lost without a message.
"""

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from texturegen.shards.layout import IMAGE_EXTENSIONS, QUALITY
from texturegen.storage.arrow import open_for_arrow
from texturegen.storage.names import to_text

CARD = "README.md"
# Types of passed-through members in `datasets`, by the last part of the extension; others are left out, because their
# columns depend on what is in them.
_TYPES = {"txt": "string", **dict.fromkeys(IMAGE_EXTENSIONS, "image"), "bin": "binary", "cls": "int64"}
MAX_SETTINGS = 200  # characters of the method's settings


@dataclass(frozen=True)
class Contents:
    """What the manifest says about all samples.

    Attributes
    ----------
    images, textures : dict of str to int
        Extension -> how many images, or textures, have it; the most frequent first.
    members : list of str
        Extensions of the passed-through members.
    medians : dict of str to float
        Median of each figure of `layout.QUALITY`; empty without textures.
    """

    images: dict[str, int]
    textures: dict[str, int]
    members: list[str]
    medians: dict[str, float]


def read_contents(manifest: Path) -> Contents:
    """Return the contents of a manifest file, reading a row group at a time."""
    file = pq.ParquetFile(open_for_arrow(manifest))
    columns = ["index", "image_ext", "texture_ext", "members.list.element.ext", *QUALITY]
    return count_contents(file.read_row_group(group, columns) for group in range(file.num_row_groups))


def count_contents(tables: Iterable[pa.Table]) -> Contents:
    """Return the contents of a manifest, given as tables of consecutive rows."""
    images: Counter[str] = Counter()
    textures: Counter[str] = Counter()
    members: set[str] = set()
    figures: dict[str, list[pa.Array]] = {name: [] for name in QUALITY}
    for table in tables:
        first = table.filter(pc.equal(pc.fill_null(table["index"], 0), 0))
        for column, counts in ((first["image_ext"], images), (table["texture_ext"], textures)):
            counts.update({entry["values"]: entry["counts"] for entry in column.drop_null().value_counts().to_pylist()})
        for chunk in first["members"].chunks:
            members |= {*chunk.flatten().field("ext").unique().to_pylist()}
        for name, chunks in figures.items():
            chunks += table[name].chunks
    medians = {}
    if textures:
        columns = {name: pa.chunked_array(chunks, pa.float32()) for name, chunks in figures.items()}
        found = {name: pc.quantile(column, 0.5)[0].as_py() for name, column in columns.items()}
        medians = {name: value for name, value in found.items() if value is not None}
    image_types, texture_types = (
        dict(sorted(counts.items(), key=lambda entry: (-entry[1], entry[0]))) for counts in (images, textures)
    )
    return Contents(image_types, texture_types, sorted(members - {"cls"}), medians)


def describe_kinds(contents: Contents) -> str | None:
    """Return "900 png and 100 jpg" if images have several extensions, else None."""
    if len(contents.images) < 2:
        return None
    return " and ".join(f"{number} {ext}" for ext, number in contents.images.items())


def make_card(build: Mapping[str, Any], contents: Contents) -> str:
    """Return the text of README.md for a directory with this build.json and these contents.

    Parameters
    ----------
    build : mapping
        Content of build.json: recipe, source, counts.
    contents : Contents
        What the manifest says.
    """
    recipe, source, counts = build["recipe"], build["source"], build["counts"]
    per_image = recipe["per_image"]
    name = to_text(" ".join(filter(None, [source.get("name") or "Images", source.get("split")])))
    images = ", ".join(f"{number} {ext}" for ext, number in contents.images.items())
    lines = [
        "---",
        *_front_matter(build, contents),
        "---",
        "",
        f"# {name} with textures" if per_image else f"# {name}",
        "",
        f"{counts['samples']} images ({images}), {per_image} texture{'s' * (per_image != 1)} for each, as WebDataset "
        "shards with a manifest. Made by sacl-texture.",
        "",
        "- Licence: that of the source images, which this card does not know; add it here before you publish.",
        f"- Classes: {len(source['classes'])}; the label -1 means none.",
    ]
    if per_image:
        settings = json.dumps(recipe.get("settings"), sort_keys=True)[:MAX_SETTINGS]
        lines += [f"- Textures: method {recipe.get('method')}, settings {settings}, seed {recipe.get('seed')}."]
    lines += [
        f"- Failed images, which are in no shard: {counts['failed']}.",
        "- `build.json` holds the whole recipe and all checksums; `texturegen verify DIR` compares them.",
        "",
        *_figures(contents),
        "## Reading",
        "",
        *_reading(contents, per_image),
    ]
    return "\n".join(lines) + "\n"


def _front_matter(build: Mapping[str, Any], contents: Contents) -> list[str]:
    """Return the YAML that `datasets` reads. JSON strings and objects are valid YAML."""
    columns = [(ext, "image") for ext in contents.images]
    columns += [
        (f"texture{i}.{ext}", "image") for i in range(build["recipe"]["per_image"]) for ext in contents.textures
    ]
    typed = ((ext, _TYPES.get(ext.rpartition(".")[2].lower())) for ext in contents.members)
    columns += [(ext, kind) for ext, kind in typed if kind]
    features = [f"  - {{name: {_quote(column)}, dtype: {kind}}}" for column, kind in columns]
    classes = [to_text(name) for name in build["source"]["classes"]]
    if classes and len({*classes}) == len(classes):
        features += ["  - name: cls", "    dtype:", "      class_label:", "        names:"]
        features += [f"          '{i}': {_quote(name)}" for i, name in enumerate(classes)]
    else:
        features += ["  - {name: cls, dtype: int64}"]
    return [
        "configs:",
        "- config_name: default",
        '  data_files: "*.tar"',
        "dataset_info:",
        "- config_name: default",
        "  features:",
        *features,
        "  - {name: __key__, dtype: string}",
        "  - {name: __url__, dtype: string}",
        "tags:",
        "- webdataset",
    ]


def _figures(contents: Contents) -> list[str]:
    if not contents.medians:
        return []
    return [
        "## Quality of the textures",
        "",
        "| figure | median |",
        "| --- | --- |",
        *(f"| {name} | {value:.3g} |" for name, value in contents.medians.items()),
        "",
    ]


def _reading(contents: Contents, per_image: int) -> list[str]:
    image, texture = next(iter(contents.images), "png"), next(iter(contents.textures), "png")
    textures = ", sample.textures" if per_image else ""
    lines = [
        "```python",
        "import texturegen",
        "for sample in texturegen.open_shards(DIR):",
        f"    sample.key, sample.label, sample.image{textures}  # uint8 (H, W, 3)",
        "",
        "from datasets import load_dataset",
        'data = load_dataset(DIR, split="train")  # the columns are those at the top of this file',
        "",
        "import webdataset",
        'data = webdataset.WebDataset(TARS, shardshuffle=False).decode("rgb8")',
        "```",
        "",
        f"A sample is `KEY.{image}`" + (f", `KEY.texture0.{texture}`" if per_image else "") + " and `KEY.cls`.",
    ]
    if len(contents.images) > 1:
        kinds = ", ".join(f"`{ext}`" for ext in contents.images)
        lines += [f"Images are in several columns ({kinds}): a sample has one of them, and the others are None."]
    return lines


def _quote(text: str) -> str:
    """Return a YAML string in double quotes; characters that YAML does not allow in it are escaped."""
    quoted = json.dumps(text, ensure_ascii=False)
    return "".join(c if c.isprintable() else f"\\U{ord(c):08x}" for c in quoted)
