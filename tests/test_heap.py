"""Freed memory goes back to the system."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from parivox.heap import HUGE_PAGES, THRESHOLD, return_large_blocks

LEFT_MB = """
import sys
import numpy as np
from parivox.heap import return_large_blocks

def resident():
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) / 1024

if sys.argv[1] == "returned":
    return_large_blocks()
np.ones(2**21)  # when these 16 MB are freed, glibc takes blocks below that size for common ones
before = resident()
blocks = [(np.ones(2**20), bytearray(2**12)) for _ in range(50)]
small = [one for _, one in blocks]  # each lies above a large one and holds it in the heap
del blocks
print(resident() - before)
"""


def printed(script: str, how: str) -> float:
    # A test before this one may have called the function in this process, whose environment a child would have.
    unset = {name: value for name, value in os.environ.items() if name not in (HUGE_PAGES, THRESHOLD)}
    command = [sys.executable, "-c", script, how]
    return float(subprocess.run(command, env=unset, capture_output=True, text=True, check=True).stdout)


HUGE_MB = """
import sys
from parivox.heap import return_large_blocks

if sys.argv[1] == "returned":
    return_large_blocks()
import torch
kept = torch.ones(2**24)
with open("/proc/self/smaps_rollup") as lines:
    print(next(int(line.split()[1]) for line in lines if line.startswith("AnonHugePages")) / 1024)
"""


def huge_pages_on_request() -> bool:
    setting = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    return setting.exists() and "[madvise]" in setting.read_text(encoding="utf-8")


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries have other ways")
def test_large_blocks_do_not_stay_in_the_heap():
    assert printed(LEFT_MB, "kept") > 300  # of 400 MB; what the function is for
    assert printed(LEFT_MB, "returned") < 40


def test_the_environment_goes_first(monkeypatch):
    monkeypatch.setenv(THRESHOLD, "131072")
    monkeypatch.setenv(HUGE_PAGES, "0")
    assert not return_large_blocks()
    assert os.environ[HUGE_PAGES] == "0"


@pytest.mark.skipif(not huge_pages_on_request(), reason="the system gives no huge pages on request")
def test_large_tensors_lie_in_huge_pages():
    # In each case 64 MB; what the C library itself takes from the system is not asked for in huge pages.
    assert printed(HUGE_MB, "kept") < 32
    assert printed(HUGE_MB, "returned") >= 60
