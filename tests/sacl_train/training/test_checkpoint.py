"""Checkpoints: order, damaged and foreign files, failed writes, and the lock."""

import errno
import os
import resource
import shutil
import signal
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from sacl_train.training.checkpoint import (
    WRITTEN,
    Checkpoint,
    directory_of,
    exclusive,
    list_checkpoints,
    load_checkpoint,
    read_checkpoint,
    save_checkpoint,
    write_tensors,
)
from texturegen.errors import DamagedError, MissingError, UserError
from texturegen.storage.atomic import temporary_name


class Harm:
    """An object that creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return Path.touch, (self.path,)


def content(step: int, **changes: Any) -> Checkpoint:
    """Return a checkpoint in which only the step matters."""
    named: dict[str, Any] = {name: {} for name in Checkpoint.__required_keys__}
    named |= {"step": step, "epoch": 0, "steps_bytes": 0, "metrics": [], "shards": "", "image_size": (8, 8)}
    return {**named, **changes}  # type: ignore[typeddict-item, return-value]


def flip_a_bit(path: Path) -> None:
    """Flip a bit in the middle of the largest entry, which holds the numbers of a tensor."""
    data = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        entry = max(archive.infolist(), key=lambda entry: entry.file_size)
    name, extra = (int.from_bytes(data[entry.header_offset + at :][:2], "little") for at in (26, 28))
    data[entry.header_offset + 30 + name + extra + entry.file_size // 2] ^= 0x40
    path.write_bytes(data)


def test_code_in_checkpoint_is_not_run(tmp_path: Path) -> None:
    torch.save(content(1) | {"harm": Harm(tmp_path / "done")}, tmp_path / "checkpoint-00000001.pt")
    with pytest.raises(UserError, match=r"checkpoint-00000001.pt: cannot be read"):
        read_checkpoint(tmp_path / "checkpoint-00000001.pt")
    assert not (tmp_path / "done").exists()


def test_newest_checkpoint_has_most_steps(tmp_path: Path) -> None:
    for name in ("checkpoint-99999999.pt", "checkpoint-00000002.pt", "checkpoint-x.pt", "checkpoint-3.pt.tmp"):
        torch.save(content(0), tmp_path / name)
    for step in (10**8, 10**8 + 1):
        save_checkpoint(tmp_path, content(step), keep=3, best=step == 10**8)
    assert [path.name for path in list_checkpoints(tmp_path)] == [
        "checkpoint-100000001.pt",
        "checkpoint-100000000.pt",
        "checkpoint-99999999.pt",
    ]
    assert load_checkpoint(tmp_path) == content(10**8 + 1)
    assert read_checkpoint(tmp_path / "best.pt") == content(10**8)


def test_run_may_be_named_like_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "run.pt").mkdir()
    assert directory_of(tmp_path / "run.pt") == tmp_path / "run.pt"
    assert directory_of(tmp_path / "run" / "best.pt") == tmp_path / "run"


def test_flipped_bit_is_detected_and_previous_checkpoint_used(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    for step in (1, 2):
        save_checkpoint(tmp_path, content(step, method={"w": torch.ones(1000)}))
    newest = tmp_path / "checkpoint-00000002.pt"
    flip_a_bit(newest)
    assert not torch.equal(torch.load(newest)["method"]["w"], torch.ones(1000)), "torch reads it without a complaint"
    with pytest.raises(DamagedError, match=r"checkpoint-00000002.pt: cannot be read \(the checksum of .*/data/0 does"):
        read_checkpoint(newest)
    checkpoint = load_checkpoint(tmp_path)
    assert checkpoint is not None
    assert checkpoint["step"] == 1
    assert "checkpoint-00000002.pt: cannot be read" in capsys.readouterr().err
    flip_a_bit(tmp_path / "checkpoint-00000001.pt")
    with pytest.raises(DamagedError, match=r"checkpoint-00000001.pt: .* no older checkpoint is left"):
        load_checkpoint(tmp_path)


def test_damaged_checkpoint_of_later_step_does_not_count_as_kept(tmp_path: Path) -> None:
    for step in (3, 9):
        save_checkpoint(tmp_path, content(step))
    (tmp_path / "checkpoint-00000009.pt").write_bytes(b"damaged")
    save_checkpoint(tmp_path, content(4), keep=2)
    checkpoint = load_checkpoint(tmp_path)
    assert checkpoint is not None
    assert checkpoint["step"] == 4
    assert (tmp_path / "checkpoint-00000003.pt").exists()


@pytest.mark.parametrize(
    "foreign", [torch.nn.Linear(2, 2).state_dict(), [1, 2], {"step": 1}], ids=["state dict", "list", "dict"]
)
def test_torch_file_that_is_not_a_checkpoint_is_reported(foreign: Any, tmp_path: Path) -> None:
    path = tmp_path / "checkpoint-00000005.pt"
    torch.save(foreign, path)
    with pytest.raises(DamagedError, match=r"00000005.pt: not a checkpoint of sacl-train \(it has no .*config"):
        read_checkpoint(path)
    torch.save(foreign, path, _use_new_zipfile_serialization=False)
    with pytest.raises(DamagedError, match=r"checkpoint-00000005.pt: cannot be read"):
        read_checkpoint(path)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (PermissionError(errno.EACCES, "Permission denied"), PermissionError),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"), MemoryError),
        (OSError(errno.EIO, "Input/output error"), DamagedError),
    ],
)
def test_only_a_damaged_checkpoint_is_called_damaged(
    error: Exception, expected: type[Exception], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    save_checkpoint(tmp_path, content(1))
    monkeypatch.setattr(torch, "load", fail)
    with pytest.raises(expected):
        load_checkpoint(tmp_path)


def test_missing_checkpoint_is_reported(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match=r"best.pt: there is no such checkpoint"):
        read_checkpoint(tmp_path / "best.pt")


@pytest.mark.parametrize("size", [1000, 50_000, 300_000, 1_600_000])
def test_full_disk_raises_oserror_with_file_name(size: int, tmp_path: Path) -> None:
    save_checkpoint(tmp_path, content(1))
    usual, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, usual[1]))  # stands for a disk that is full
    try:
        with pytest.raises(OSError, match="File too large") as raised:
            save_checkpoint(tmp_path, content(2, method={f"w{i}": torch.zeros(20_000) for i in range(20)}))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, usual)
        signal.signal(signal.SIGXFSZ, handler)
    assert (raised.value.errno, raised.value.filename) == (errno.EFBIG, str(tmp_path / "checkpoint-00000002.pt"))
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-00000001.pt"]


def test_other_torch_errors_propagate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("not about the disk")

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(RuntimeError, match="not about the disk"):
        write_tensors(tmp_path / "x.pt", {})


KILLED = """
import os, sys
from pathlib import Path
import texturegen.storage.atomic
from sacl_train.training.checkpoint import exclusive, write_tensors
texturegen.storage.atomic.os.replace = lambda *_: os.kill(os.getpid(), 9)
with exclusive(Path(sys.argv[1])):
    write_tensors(Path(sys.argv[1]) / "checkpoint-00000001.pt", {})
"""


def test_temporary_files_of_killed_trainer_are_removed_by_next(tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert subprocess.run([sys.executable, "-c", KILLED, run]).returncode == -signal.SIGKILL
    (left,) = run.glob("*.tmp")
    for name in WRITTEN:
        temporary_name(run / name.replace("*", "00000007")).touch()
    others = [run / "eval-knn.json.0123abcd.tmp", run / "checkpoint-00000001.pt"]  # an evaluation may be writing one
    for path in others:
        path.touch()
    with exclusive(run):
        assert not left.exists()
        assert sorted(path.name for path in run.iterdir()) == sorted(["lock", *(path.name for path in others)])


def test_two_trainers_cannot_share_directory(tmp_path: Path) -> None:
    run = tmp_path / "deep" / "run"
    with (
        exclusive(run),
        pytest.raises(UserError, match=rf"run: process {os.getpid()} on .* is training there"),
        exclusive(run),
    ):
        pass
    assert not run.parent.exists()
    run.mkdir(parents=True)
    with exclusive(run):
        shutil.copy(__file__, run / "file")
    assert [path.name for path in run.iterdir()] == ["file"]
