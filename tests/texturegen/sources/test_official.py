"""Official files: found, verified, and downloaded completely or not at all."""

import hashlib
import http.server
import io
import tarfile
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from texturegen.errors import UserError
from texturegen.sources.official import Archive, require_files

CONTENT = {"one.bin": b"1" * 1000, "two.bin": b"2" * 2000}
FILES = {name: hashlib.md5(data).hexdigest() for name, data in CONTENT.items()}


def pack(members: dict[str, bytes], links: dict[str, str] | None = None) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as tar:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
        for name, target in (links or {}).items():
            member = tarfile.TarInfo(name)
            member.type, member.linkname = tarfile.SYMTYPE, target
            tar.addfile(member)
    return stream.getvalue()


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """A folder, and the URL under which a local server serves it."""
    folder = tmp_path / "served"
    folder.mkdir()
    handler = partial(http.server.SimpleHTTPRequestHandler, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield folder, f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def publish(served: tuple[Path, str], packed: bytes) -> Archive:
    (served[0] / "set.tar.gz").write_bytes(packed)
    return Archive(f"{served[1]}/set.tar.gz", hashlib.md5(packed).hexdigest(), "set")


def good_archive() -> bytes:
    return pack({f"./set/{name}": data for name, data in CONTENT.items()})


def tree(root: Path) -> list[str]:
    return sorted(path.relative_to(root).as_posix() for path in root.rglob("*"))


def test_download_fetches_unpacks_and_verifies(tmp_path: Path, served: tuple[Path, str]) -> None:
    root = tmp_path / "new" / "root"
    archive = publish(served, good_archive())
    folder = require_files("set", root, archive, FILES, download=True, check=True)
    assert tree(root) == ["set", "set/one.bin", "set/two.bin"]
    assert {name: (folder / name).read_bytes() for name in FILES} == CONTENT
    (served[0] / "set.tar.gz").unlink()  # complete files are not downloaded again
    assert require_files("set", root, archive, FILES, download=True, check=True) == folder


def test_download_replaces_a_damaged_file(tmp_path: Path, served: tuple[Path, str]) -> None:
    archive = publish(served, good_archive())
    folder = require_files("set", tmp_path, archive, FILES, download=True, check=True)
    (folder / "two.bin").write_bytes(b"damaged")
    with pytest.raises(UserError, match=r"two\.bin is damaged \(MD5 .*, official .*\); add --download"):
        require_files("set", tmp_path, archive, FILES, download=False, check=True)
    assert require_files("set", tmp_path, archive, FILES, download=False, check=False) == folder
    require_files("set", tmp_path, archive, FILES, download=True, check=True)
    assert (folder / "two.bin").read_bytes() == CONTENT["two.bin"]


def test_a_missing_file_is_named_with_the_remedy(tmp_path: Path) -> None:
    archive = Archive("http://127.0.0.1/set.tar.gz", "0" * 32, "set")
    for check in (True, False):
        with pytest.raises(UserError) as caught:
            require_files("set", tmp_path, archive, FILES, download=False, check=check)
        assert str(caught.value) == (
            f"set: the file one.bin is not in {tmp_path / 'set'}; "
            f"add --download, or unpack http://127.0.0.1/set.tar.gz under {tmp_path}"
        )


@pytest.mark.parametrize("fault", ["not found", "wrong checksum", "no archive", "refused"])
def test_a_failed_download_is_an_error_and_leaves_nothing(tmp_path: Path, served: tuple[Path, str], fault: str) -> None:
    root = tmp_path / "root"
    archive = publish(served, b"this is no archive" if fault == "no archive" else good_archive())
    if fault == "not found":
        (served[0] / "set.tar.gz").unlink()
    if fault == "wrong checksum":
        (served[0] / "set.tar.gz").write_bytes(good_archive()[:-40])
    if fault == "refused":
        archive = Archive("http://127.0.0.1:1/set.tar.gz", archive.md5, "set")
    with pytest.raises(UserError, match=r"^set: http://127.* could not be downloaded to") as caught:
        require_files("set", root, archive, FILES, download=True, check=True)
    assert "\n" not in str(caught.value)
    assert tree(root) == []


def test_extraction_stays_inside_the_folder(tmp_path: Path, served: tuple[Path, str]) -> None:
    root = tmp_path / "root"
    hostile = {"../out.bin": b"x", "set/../../out.bin": b"x", str(tmp_path / "out.bin"): b"x", "set/deep/er.bin": b"x"}
    packed = pack({f"set/{name}": data for name, data in CONTENT.items()} | hostile, {"set/link": "/etc/passwd"})
    require_files("set", root, publish(served, packed), FILES, download=True, check=True)
    assert tree(root) == ["set", "set/one.bin", "set/two.bin"]
    assert not (tmp_path / "out.bin").exists()


def test_an_archive_without_the_files_is_an_error(tmp_path: Path, served: tuple[Path, str]) -> None:
    archive = publish(served, pack({"set/one.bin": b"another", "set/two.bin": CONTENT["two.bin"]}))
    with pytest.raises(UserError, match=r"one\.bin is damaged"):
        require_files("set", tmp_path / "root", archive, FILES, download=True, check=False)
    archive = publish(served, pack({"set/one.bin": CONTENT["one.bin"]}))
    with pytest.raises(UserError, match=r"the file two\.bin is not in"):
        require_files("set", tmp_path / "other", archive, FILES, download=True, check=True)
