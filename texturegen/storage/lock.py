"""One process at a time in a directory: a lock that the operating system drops with the process, however that ends."""

import os
import socket
from pathlib import Path
from typing import IO

from texturegen.errors import UserError

try:
    import fcntl
except ImportError:  # Windows: two processes in one directory are then not noticed
    fcntl = None  # type: ignore[assignment]


def acquire(path: Path, shared: bool = False, place: Path | None = None, doing: str = "building") -> IO[str]:
    """Lock the file `path`, made if need be, until the file returned is closed or the process ends.

    shared : any number of processes may hold it so at once, while none holds it alone.
    place, doing : the directory that it guards, by default that above the lock's own, and what is done there.

    Raises UserError that says who holds it. Network file systems without locks let everybody through.
    """
    place = place or path.parent.parent
    f = open(path, "a+")  # noqa: SIM115 - it is the lock, and lives as long
    try:
        if fcntl is not None:
            fcntl.flock(f, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        f.seek(0)
        holder = f.read().strip() or "another process"
        f.close()
        raise UserError(
            f"{place}: {holder} is {doing} there; let it finish or stop it, or choose another --out"
        ) from None
    except OSError:
        pass
    # The holder of a moment ago may have finished and removed the file that is locked now.
    if not path.exists() or not os.path.samestat(os.fstat(f.fileno()), path.stat()):
        f.close()
        raise UserError(f"{place}: another process has just finished {doing} there; run the same command again")
    f.truncate(0)
    f.write(f"process {os.getpid()} on {socket.gethostname()}\n")
    f.flush()
    return f
