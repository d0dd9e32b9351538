"""Arrow reads files whose names it would take for a URL, or cannot encode."""

import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from texturegen.storage.arrow import map_for_arrow, open_for_arrow

NAMES = [b"plain", b"file:x", b"s3:x", b"hdfs:", b"100%", b"donn\xe9es", "données".encode(), b"new\nline", b" "]


@pytest.mark.parametrize("name", NAMES)
def test_any_name_is_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: bytes) -> None:
    monkeypatch.chdir(tmp_path)  # "file:x" looks like a URL only at the start of a path
    table = pa.table({"a": [1, 2, 3]})
    path = Path(os.fsdecode(name))
    with open(path, "wb") as f:
        pq.write_table(table, f)
    assert pq.read_table(open_for_arrow(path)) == table
    with open(path, "wb") as f, pa.ipc.new_file(f, table.schema) as writer:
        writer.write_table(table)
    assert pa.ipc.open_file(map_for_arrow(path)).read_all() == table


def test_a_missing_file_is_an_error_of_the_system(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        open_for_arrow(tmp_path / "nothing")
