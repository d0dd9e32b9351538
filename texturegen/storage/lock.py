"""Locks on files and directories, which the operating system releases when their process ends in any way."""

import errno
import os
import socket
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import IO

from texturegen.errors import BusyError, UserError

try:
    import fcntl
except ImportError:  # on Windows locking is unavailable, and concurrent processes are not detected
    fcntl = None  # type: ignore[assignment]

LOCK = ".texturegen.lock"  # hidden and named after this package, so that it is never a user's own file
MAX_ATTEMPTS = 100


def acquire(path: Path, shared: bool = False, location: Path | None = None, activity: str = "building") -> IO[str]:
    """Lock a file until the returned file object is closed or the process ends.

    On file systems that do not support locks, the call succeeds without locking.

    Parameters
    ----------
    path : Path
        The lock file, in an existing directory; created if missing. It contains one line, which identifies the last
        process that locked it.
    shared : bool
        Acquire a shared lock, which any number of processes may hold while none holds an exclusive one.
    location : Path, optional
        Path that the lock protects, for the error message. Default: the directory of `path`.
    activity : str
        Activity of this process ("building", "training"), for the error message of other processes.

    Returns
    -------
    file
        The open lock file.

    Raises
    ------
    BusyError
        Another process holds the lock. The message names the last process that acquired it, which may have ended while
        others still share it.
    """
    location = location or path.parent
    for _ in range(MAX_ATTEMPTS):
        f = open(path, "a+")  # noqa: SIM115 - returned open: closing it releases the lock
        try:
            if fcntl is not None:
                fcntl.flock(f, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError:
            with f:
                raise _busy(f, location) from None
        except OSError:
            pass  # this file system has no locks
        if _is_same_file(f, path):
            with suppress(OSError):  # a full disk: the line only tells others who holds the lock
                f.truncate(0)
                os.write(f.fileno(), f"process {os.getpid()} on {socket.gethostname()} is {activity}\n".encode())
            return f
        # The last holder removed the file after it was opened here. The next process would create a new one, so this
        # lock would exclude no other process.
        f.close()
    raise BusyError(f"{location}: other processes keep starting and stopping there; run the same command again")


def refuse_locked(path: Path) -> None:
    """Raise BusyError if another process holds the lock `path`; nothing is locked or written."""
    try:
        with open(path) as f:
            try:
                if fcntl is not None:
                    fcntl.flock(f, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                raise _busy(f, path.parent) from None
    except OSError:
        pass  # no lock file, one that this user cannot read, or a file system without locks


def _busy(f: IO[str], location: Path) -> BusyError:
    f.seek(0)
    holder = f.read().strip() or "another process is working"
    return BusyError(f"{location}: {holder} there; wait for it to finish, stop it, or choose another directory")


class DirectoryLock:
    """Lock on a directory, as a context manager.

    The lock is a hidden file in the directory. The holder of an exclusive lock removes the file on exit, together with
    a directory that it created and left empty. Other holders of a shared lock still need the file, so it stays. A
    directory that this process cannot write to (on a read-only mount) is not locked, because it cannot change.

    Parameters
    ----------
    directory : Path
        The directory to lock.
    activity : str
        Activity of this process ("building", "repairing"), for the error message of other processes.
    shared : bool
        Acquire a shared lock, see `acquire`.
    create : bool
        Create the directory, and its parents, if missing.
    name : str
        Name of the lock file.

    Attributes
    ----------
    directory : Path
        Assign the new path after renaming the directory while it is locked.

    Raises
    ------
    BusyError
        Another process holds the lock.
    UserError
        The directory is a link that leads nowhere, with `create`.
    OSError
        The directory is missing and `create` is False, cannot be created, or is not a directory.
    """

    def __init__(
        self,
        directory: Path,
        activity: str = "building",
        shared: bool = False,
        create: bool = True,
        name: str = LOCK,
    ) -> None:
        self.directory, self.activity, self.shared, self.create, self.name = directory, activity, shared, create, name
        self._file: IO[str] | None = None
        self._created: list[Path] = []

    def __enter__(self) -> "DirectoryLock":
        if self.create:
            refuse_dangling_link(self.directory)
            self._created = [path for path in (self.directory, *self.directory.parents) if not path.exists()]
        for attempt in range(MAX_ATTEMPTS):
            if self.create:
                self.directory.mkdir(parents=True, exist_ok=True)
            try:
                self._file = acquire(self.directory / self.name, self.shared, self.directory, self.activity)
                break
            except FileNotFoundError:
                # After the mkdir above, another process removed the directory, which it had created and left empty.
                if not self.create or attempt == MAX_ATTEMPTS - 1:
                    raise
            except OSError as error:
                if not _is_read_only(self.directory, error):
                    raise
                break
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if self._file is None:
            return
        if not self.shared:
            # Removed while still locked, because other processes may have opened it already (see `acquire`).
            with suppress(OSError):
                (self.directory / self.name).unlink()
        self._file.close()
        self._file = None
        for directory in self._created:
            with suppress(OSError):  # usually not empty
                directory.rmdir()


def refuse_dangling_link(directory: Path) -> None:
    """Raise UserError if the directory, or one above it, is a link that leads nowhere."""
    for path in (directory, *directory.parents):
        if path.is_symlink() and not path.exists():
            raise UserError(
                f"{directory}: {path} is a link to {os.readlink(path)}, which does not exist; create that directory, "
                "or choose another"
            )


def _is_same_file(f: IO[str], path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(f.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _is_read_only(directory: Path, error: OSError) -> bool:
    return error.errno == errno.EROFS or (error.errno == errno.EACCES and not os.access(directory, os.W_OK))
