"""Keep freed memory in the process, in huge pages, to save page faults for large tensors (Linux with glibc)."""

import ctypes
import os
import platform

# Constants of <malloc.h>.
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4


def keep_freed_memory() -> bool:
    """Let glibc reuse large blocks. By default, it returns each to the kernel as soon as it is freed.

    This makes a CPU update on 40,000 environment steps in one piece 1.7 times as fast, and larger updates even faster.
    Huge pages, which torch enables through an environment variable at its first large tensor, bring another tenth. The
    process then holds its peak memory until it ends. Returns whether the setting was accepted. Does nothing without
    glibc.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    mallopt = ctypes.CDLL(None).mallopt
    settings = ((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, 2**31 - 1), (M_TOP_PAD, 64 << 20))
    return all([mallopt(name, value) == 1 for name, value in settings])
