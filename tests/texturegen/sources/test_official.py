"""Official files: found, verified, and downloaded completely or not at all."""

import hashlib
import http.server
import io
import random
import tarfile
import threading
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from texturegen import builds
from texturegen.builds import run
from texturegen.cli import main
from texturegen.errors import MissingError, UserError
from texturegen.shards import open_shards
from texturegen.sources import download, official, open_source, stl10
from texturegen.sources.official import Archive, require_files
from texturegen.storage.lock import acquire

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


class Server(http.server.BaseHTTPRequestHandler):
    """Serves DATA, or what FAULTS, one per request, make of it; REQUESTS holds the Range of each request."""

    data = b""
    ranges = True
    faults: list[str] = []  # noqa: RUF012
    requests: list[str | None] = []  # noqa: RUF012

    def do_GET(self) -> None:
        self.requests.append(self.headers["Range"])
        fault = self.faults.pop(0) if self.faults else ""
        start = int(self.headers["Range"][6:-1]) if self.ranges and self.headers["Range"] else 0
        if fault == "busy" or start >= len(self.data):
            self.send_response(503 if fault == "busy" else 416)
            self.send_header("Content-Range", f"bytes */{len(self.data)}")
            self.end_headers()
            return
        body = self.data[start:]
        if fault == "wrong bytes":
            body = bytes(len(body))
        self.send_response(206 if start else 200)
        length = {"says too much": len(body) + 1000, "says too little": len(body) - 10}.get(fault, len(body))
        self.send_header("Content-Length", str(length))
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(self.data) - 1}/{start + length}")
        self.end_headers()
        if fault == "breaks off":
            body = body[: len(body) // 2]
        self.wfile.write(body[:length])

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[type[Server], str]]:
    handler = type("Handler", (Server,), {"data": random.Random(0).randbytes(4000), "faults": [], "requests": []})
    monkeypatch.setattr(download, "PAUSE", 0.0)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as listening:
        thread = threading.Thread(target=listening.serve_forever, args=(0.01,))
        thread.start()
        yield handler, f"http://127.0.0.1:{listening.server_port}/set.tar.gz"
        listening.shutdown()
        thread.join()


@pytest.mark.parametrize(
    ("faults", "ranges"),
    [
        (["breaks off", "busy", "breaks off"], True),
        (["breaks off"], False),  # the server sends the whole file again
        (["says too much"], True),  # and answers 416 to a request beyond the end
        (["breaks off", "wrong bytes"], True),
    ],
)
def test_a_broken_download_is_resumed(
    tmp_path: Path, server: tuple[type[Server], str], faults: list[str], ranges: bool
) -> None:
    handler, url = server
    handler.faults, handler.ranges = [*faults], ranges
    target = tmp_path / "file"
    half = len(handler.data) // 2
    if "wrong bytes" in faults:  # an earlier process left half; what follows it is another file's
        (tmp_path / "file.part").write_bytes(handler.data[:half])
        handler.faults = ["wrong bytes"]
    download.download(url, target, hashlib.md5(handler.data).hexdigest())
    assert target.read_bytes() == handler.data
    assert tree(tmp_path) == ["file"]
    at = f"bytes={len(handler.data) if faults == ['says too much'] else half}-"
    assert (handler.requests[1] or handler.requests[0]) == at
    assert len(handler.requests) == (4 if "busy" in faults else 2)


@pytest.mark.parametrize(
    ("faults", "message", "kept"),
    [
        (["wrong bytes"], r"is damaged \(MD5 \w+, official \w+\)", False),
        (["says too little"], r"the file of \d+ bytes that the server sent is damaged", False),
        (["busy"] * 9, "the server answers 503 Service Unavailable$", False),
        (["breaks off"] + ["busy"] * 9, "answers 503 .* after 0 MB, which are kept: run the same command again", True),
    ],
)
def test_a_download_that_fails_keeps_only_what_can_be_resumed(
    tmp_path: Path, server: tuple[type[Server], str], faults: list[str], message: str, kept: bool
) -> None:
    handler, url = server
    handler.faults = [*faults]
    with pytest.raises(UserError, match=message):
        download.download(url, tmp_path / "file", hashlib.md5(handler.data).hexdigest())
    assert tree(tmp_path) == (["file.part"] if kept else [])


def test_a_full_disk_is_named_before_the_download(
    tmp_path: Path, server: tuple[type[Server], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 100})())
    with pytest.raises(UserError, match=r"has 0 MB free, but \d+ MB are to be downloaded; choose a larger disk"):
        download.download(server[1], tmp_path / "file", "0" * 32)


def test_a_second_process_waits_for_the_download_of_the_first(
    tmp_path: Path, served: tuple[Path, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    archive = publish(served, good_archive())
    held = acquire(tmp_path / ".set.lock", activity="downloading")

    def finish_first(seconds: float) -> None:
        (tmp_path / "set").mkdir()
        for name, data in CONTENT.items():
            (tmp_path / "set" / name).write_bytes(data)
        held.close()

    monkeypatch.setattr(official.time, "sleep", finish_first)
    (served[0] / "set.tar.gz").unlink()
    require_files("set", tmp_path, archive, FILES, download=True, check=True)
    assert "is downloading there; waiting" in capsys.readouterr().err


@pytest.fixture
def small_stl10(served: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An STL-10 of 6 images, served in the official layout; the current directory and the cache are empty."""
    pixels = np.random.default_rng(0).integers(0, 256, (6, 3, 96, 96), np.uint8)
    files = {"train_X.bin": pixels.tobytes(), "train_y.bin": bytes(range(1, 7)), "class_names.txt": b"airplane\n"}
    archive = publish(served, pack({f"stl10_binary/{name}": data for name, data in files.items()}))
    monkeypatch.setattr(stl10, "ARCHIVE", replace(archive, folder="stl10_binary"))
    monkeypatch.setattr(
        stl10, "MD5", {name: hashlib.md5(data).hexdigest() for name, data in files.items() if name.endswith("bin")}
    )
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("TEXTUREGEN_DATA", raising=False)
    # Other processes would import the checksums of the real files.
    monkeypatch.setattr(builds, "build", lambda *given: run.build(*given[:4], 0, *given[5:]))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path


def call(*arguments: str) -> tuple[int, str, str]:
    done = CliRunner().invoke(main, ["build", "--dataset", "stl10", "--workers", "1", *arguments])
    return done.exit_code, done.stdout, done.stderr


def test_build_without_root_says_so_and_downloads(small_stl10: Path) -> None:
    status, _, stderr = call("--out", "none", "--no-download")
    assert status == 1
    assert stderr.startswith("error: stl10: its files are in none of ")
    status, stdout, stderr = call("--per-image", "0", "--out", "shards")
    assert (status, stdout) == (0, "shards: 6 images, 0 textures, 0 failed\n")
    cache = small_stl10 / "cache" / "texturegen"
    assert stderr.startswith(f"stl10: downloading {stl10.ARCHIVE.url} to {cache}\n")
    assert tree(cache) == [
        "stl10_binary",
        *(f"stl10_binary/{name}" for name in ("class_names.txt", "train_X.bin", "train_y.bin")),
    ]
    assert np.array_equal(open_shards("shards")[3].image, open_source("stl10", root=cache)[3].image)
    assert "downloading" not in call("--per-image", "0", "--out", "again")[2]
    status, _, stderr = call("--root", "elsewhere", "--out", "none")
    assert status == 1
    assert "add --download" in stderr


def test_the_first_folder_with_all_files_is_used(small_stl10: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = small_stl10 / "own"
    monkeypatch.setenv("TEXTUREGEN_DATA", str(own))
    assert open_source("stl10", download=None).root == own  # downloaded into the variable's folder
    (small_stl10 / "here" / "data").symlink_to(own)
    for folder in (own, small_stl10 / "here" / "data"):
        assert open_source("stl10", download=None).root == folder
        monkeypatch.delenv("TEXTUREGEN_DATA", raising=False)
    (own / "stl10_binary" / "train_y.bin").unlink()
    with pytest.raises(MissingError, match=r"here/data/stl10_binary, .*cache/texturegen/stl10_binary; add --download"):
        open_source("stl10")


def test_imagenet_is_found_or_the_message_says_what_to_fetch(small_stl10: Path) -> None:
    with pytest.raises(MissingError, match=r"data/imagenet, .*fetch ILSVRC2012_img_train\.tar.*give DIR with --root"):
        open_source("imagenet100")
    (small_stl10 / "here" / "data" / "imagenet" / "train").mkdir(parents=True)
    with pytest.raises(UserError, match=r"class folders are missing in .*data/imagenet/train"):
        open_source("imagenet100")
