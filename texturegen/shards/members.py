"""The members of a shard, in the tar's order, from the manifest's rows alone."""

from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

_EXTENT = ("offset", "size", "sha256")


def list_members(rows: pa.Table) -> pa.Table:
    """Return a row per member of a shard, in the tar's order.

    Parameters
    ----------
    rows : pyarrow.Table
        `manifest.COLUMNS` of the shard's samples, without failed images.

    Returns
    -------
    pyarrow.Table
        The columns are name, offset, size, sha256, width and height (null except for images and textures), and label
        (null except for "cls").
    """
    rows = rows.combine_chunks()
    first = rows.filter(pc.equal(pc.fill_null(rows["index"], 0), 0))
    textured = rows.filter(pc.is_valid(rows["index"]))
    members = first["members"].combine_chunks()
    members = members if isinstance(members, pa.Array) else pa.array([], first.schema.field("members").type)
    listed, parents = members.flatten(), pc.list_parent_indices(members)

    def table(names: Any, about: pa.Table, prefix: str) -> pa.Table:
        extent = {column: about[f"{prefix}_{column}"] for column in _EXTENT}
        return pa.table({"name": names, **extent, "width": about["width"], "height": about["height"]})

    indices = pc.cast(textured["index"], pa.string())
    exts = listed.field("ext")
    # Taking whole rows would repeat the list of members once per member, so only single columns are taken.
    labels = pc.if_else(pc.equal(exts, "cls"), first["label"].combine_chunks().take(parents), None)
    tables = [
        table(_join(first["key"], ".", first["image_ext"]), first, "image"),
        table(_join(textured["key"], ".texture", indices, ".", textured["texture_ext"]), textured, "texture"),
        pa.table(
            {
                "name": _join(first["key"].combine_chunks().take(parents), ".", exts),
                **{column: listed.field(column) for column in _EXTENT},
                "label": labels,
            }
        ),
    ]
    return pa.concat_tables(tables, promote_options="default").combine_chunks().sort_by("offset")


def _join(*parts: Any) -> Any:
    return pc.binary_join_element_wise(*parts, "")
