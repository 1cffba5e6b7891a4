"""What a C library does with memory that was freed."""

from __future__ import annotations

import ctypes
import os
import platform
import sys

M_MMAP_THRESHOLD = -3
"""As glibc's malloc.h has it; see mallopt(3)."""

LARGE = 2**22
"""Bytes from which a block is the system's own again as soon as it is freed."""


def return_large_blocks() -> bool:
    """Give each large block of this process back to the system when it is freed.

    Left alone, glibc learns to keep blocks of up to 32 MB for later. Those of a network come in many sizes and leave
    gaps that the next ones do not fill: the peak of ten chunks was a sixth above that of the first one. The
    price is that the system clears each block's pages anew. `MALLOC_MMAP_THRESHOLD_` in the environment goes first.

    Returns:
        Whether anything was changed: other C libraries have other ways.
    """
    if sys.platform != "linux" or platform.libc_ver()[0] != "glibc" or "MALLOC_MMAP_THRESHOLD_" in os.environ:
        return False
    return bool(ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, LARGE))
