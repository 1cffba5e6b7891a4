"""What a C library does with memory that was freed."""

from __future__ import annotations

import ctypes
import os
import platform
import sys

M_MMAP_THRESHOLD = -3
"""As glibc's malloc.h has it; see mallopt(3)."""

LARGE = 2**23
"""Bytes from which a block is the system's own again as soon as it is freed."""

HUGE_PAGES = "THP_MEM_ALLOC_ENABLE"
"""PyTorch reads this before its first tensor: blocks from 2 MB lie in pages of 2 MB, where the system has such."""

THRESHOLD = "MALLOC_MMAP_THRESHOLD_"
"""The same setting of glibc's from the environment."""


def return_large_blocks() -> bool:
    """Give each large block of this process back to the system when it is freed, and take large ones in huge pages.

    Left alone, glibc learns to keep blocks of up to 32 MB for later. Those of a network come in many sizes and leave
    gaps that the next ones do not fill: the peak of ten chunks was a sixth above that of the first one. The
    price is that the system clears each block's pages anew, 4 KB at a time, which took as long as all else that an
    enhancer does; in pages of 2 MB it takes a quarter of that. `MALLOC_MMAP_THRESHOLD_` and `THP_MEM_ALLOC_ENABLE`
    in the environment go first. To be called before PyTorch makes its first tensor.

    Returns:
        Whether glibc was told: other C libraries have other ways.
    """
    if sys.platform == "linux":
        os.environ.setdefault(HUGE_PAGES, "1")
    if sys.platform != "linux" or platform.libc_ver()[0] != "glibc" or THRESHOLD in os.environ:
        return False
    return bool(ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, LARGE))
