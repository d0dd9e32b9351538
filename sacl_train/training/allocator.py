"""Keep freed memory for the next step, on CPUs."""

import ctypes
import sys

# From glibc's malloc.h.
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4
MAX_INT = 2**31 - 1


def keep_freed_memory() -> bool:
    """Tell glibc's malloc to keep the memory that this process frees; return True if that worked.

    By default every large tensor of a step is mapped again by the kernel, page by page, which takes a tenth to a third
    of a step on a CPU (benchmarks/train.py --only simclr). The process stays as large as its peak.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # not glibc
        return False
    settings = ((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, MAX_INT), (M_TOP_PAD, 64 << 20))
    done = [mallopt(name, value) == 1 for name, value in settings]
    return all(done)
