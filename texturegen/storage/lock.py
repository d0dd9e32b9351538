"""Locks on files and directories. The operating system releases them when their process ends, however it ends."""

import errno
import os
import socket
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import IO

from texturegen.errors import BusyError

try:
    import fcntl
except ImportError:  # Windows: locking is unavailable: concurrent processes are not detected
    fcntl = None  # type: ignore[assignment]

LOCK = ".texturegen.lock"  # hidden, and named after this package: it cannot be a user's own file
MAX_ATTEMPTS = 100


def acquire(path: Path, shared: bool = False, location: Path | None = None, activity: str = "building") -> IO[str]:
    """Lock a file until the returned file object is closed or the process ends.

    On file systems without locks the call succeeds without a lock.

    Parameters
    ----------
    path : Path
        The lock file; created if missing, in an existing directory. It contains one line that identifies the last
        process to lock it.
    shared : bool
        Any number of processes may hold a shared lock at once, as long as none holds an exclusive one.
    location : Path, optional
        What the lock guards, for the error message. Default: the directory of `path`.
    activity : str
        What this process does there, for the error message of others: "building", "training".

    Returns
    -------
    file
        The open lock file.

    Raises
    ------
    BusyError
        Another process holds the lock. The message names the last process to take it, which may have ended while
        others still share the lock.
    """
    location = location or path.parent
    for _ in range(MAX_ATTEMPTS):
        f = open(path, "a+")  # noqa: SIM115 - returned open: closing it releases the lock
        try:
            if fcntl is not None:
                fcntl.flock(f, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError:
            f.seek(0)
            holder = f.read().strip() or "another process is working"
            f.close()
            raise BusyError(
                f"{location}: {holder} there; wait for it to finish, stop it, or choose another directory"
            ) from None
        except OSError:
            pass  # this file system has no locks
        if _is_same_file(f, path):
            f.truncate(0)
            f.write(f"process {os.getpid()} on {socket.gethostname()} is {activity}\n")
            f.flush()
            return f
        # The last holder removed the file after it was opened here. The next process will create a new one, so this
        # lock would exclude no other process.
        f.close()
    raise BusyError(f"{location}: other processes keep starting and stopping there; run the same command again")


class DirectoryLock:
    """Lock on a directory, as a context manager.

    The lock is a hidden file in the directory. The holder of an exclusive lock removes the file on exit, and with it
    any directory that it created and left empty. Holders of a shared lock leave the file in place, because the others
    still rely on it. A directory that this process cannot write to (a read-only mount) is not locked: nothing in it can
    change.

    Parameters
    ----------
    directory : Path
        The directory to lock.
    activity : str
        What this process does there, for the error message of others: "building", "repairing".
    shared : bool
        Take a shared lock, see `acquire`.
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
    OSError
        The directory is missing (with `create` False), is not a directory, or cannot be created.
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
            self._created = [path for path in (self.directory, *self.directory.parents) if not path.exists()]
        for attempt in range(MAX_ATTEMPTS):
            if self.create:
                self.directory.mkdir(parents=True, exist_ok=True)
            try:
                self._file = acquire(self.directory / self.name, self.shared, self.directory, self.activity)
                break
            except FileNotFoundError:
                # Another process removed the directory, which it had created and left empty, after the mkdir above.
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
            # Removed while it is still locked: see `acquire` on processes that have opened it already.
            with suppress(OSError):
                (self.directory / self.name).unlink()
        self._file.close()
        self._file = None
        for directory in self._created:
            with suppress(OSError):  # usually not empty
                directory.rmdir()


def _is_same_file(f: IO[str], path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(f.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _is_read_only(directory: Path, error: OSError) -> bool:
    return error.errno == errno.EROFS or (error.errno == errno.EACCES and not os.access(directory, os.W_OK))
