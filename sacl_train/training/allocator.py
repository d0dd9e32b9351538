"""Memory on CPUs: freed blocks are kept for the next step."""

import ctypes
import sys

# Of glibc's malloc.h.
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4
LARGEST = 2**31 - 1


def keep_freed_memory() -> bool:
    """Let this process keep the memory it frees, up to its peak; whether that could be set (glibc only).

    Without it every large tensor of a step is mapped anew by the kernel, page by page: a tenth to a third of a step on
    a CPU (benchmarks/train.py --only simclr). The results are the same.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # another C library
        return False
    settings = ((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, LARGEST), (M_TOP_PAD, 64 << 20))
    done = [mallopt(name, value) == 1 for name, value in settings]
    return all(done)
