"""A place for Numba's compiled code where the package and the home cannot be written to."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from texturegen.system import jit_cache
from texturegen.system.jit_cache import _private_directory, ensure_cache_directory

# Permission bits do not bind root, so the system call by which Numba, and we, try a directory is made to fail.
SCRIPT = """
import os, tempfile
create = tempfile.TemporaryFile
def refuse_elsewhere(dir=None, **options):
    if not str(dir).startswith(os.environ["TMPDIR"]):
        raise PermissionError(13, "Permission denied", dir)
    return create(dir=dir, **options)
tempfile.TemporaryFile = refuse_elsewhere
from texturegen.texture.kernels.rand import derive
print(os.environ["NUMBA_CACHE_DIR"], derive.stats.cache_path)
"""


def test_kernels_are_cached_in_a_private_temporary_directory(tmp_path: Path) -> None:
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    environment.pop("NUMBA_CACHE_DIR", None)
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, env=environment)
    assert done.stderr == ""
    directory = tmp_path / f"texturegen-{os.getuid()}"
    chosen, used = map(Path, done.stdout.split())
    assert (chosen, used.parent) == (directory, directory)
    assert directory.stat().st_mode & 0o777 == 0o700


def test_a_writable_place_is_left_to_numba(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NUMBA_CACHE_DIR", raising=False)
    monkeypatch.setattr(jit_cache, "_private_directory", lambda: pytest.fail("not needed"))
    ensure_cache_directory(tmp_path)
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path / "not" / "made" / "yet"))
    ensure_cache_directory(Path("/proc/nowhere"))


def test_a_place_without_room_for_the_code_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    resource = pytest.importorskip("resource")
    full, temporary = tmp_path / "home", tmp_path / "tmp"
    temporary.mkdir()
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(full))
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    monkeypatch.setattr("numba.config.CACHE_DIR", str(full))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (jit_cache.ROOM // 2, hard))  # stands for a quota: the same write fails
    try:
        with monkeypatch.context() as patch:
            patch.setattr(jit_cache, "parent_process", lambda: "the build, which has checked it")
            ensure_cache_directory(tmp_path)
            assert os.environ["NUMBA_CACHE_DIR"] == str(full)
        ensure_cache_directory(tmp_path)
        assert os.environ["NUMBA_CACHE_DIR"] == str(temporary / f"texturegen-{os.getuid()}")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_directory_that_others_may_write_to_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    planted = tmp_path / f"texturegen-{os.getuid()}"
    planted.mkdir()
    planted.chmod(0o777)
    assert _private_directory() != planted
    planted.rmdir()
    planted.symlink_to(tmp_path)
    assert _private_directory() != planted
    planted.unlink()
    assert _private_directory() == planted == _private_directory()
