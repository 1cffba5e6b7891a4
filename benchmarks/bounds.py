"""What bounds a program on an accelerator: from the times of its kernels, or from its operations and bytes."""

from __future__ import annotations

import re
from collections.abc import Mapping

KINDS = {
    "Fourier transforms": r"fft",
    "copies and layouts": r"memcpy|memset|copy|nchw|nhwc|transpose|\bcat|catarray|index|contiguous",
    "convolutions and matrix products": (
        r"gemm|conv(?!ert)|cutlass|cudnn|implicit|wgrad|dgrad|mma|gemv|cublas|\bmm\b|bmm|addmm"
    ),
    "sums and norms": r"reduce|norm|softmax|\bsum\b|mean",
}
"""Kind of kernel -> what its name has in it, the first that fits; the others work element by element."""

HOST = 0.6
"""A device that works for less than this share of the time waits for the host."""


def kind_of(kernel: str) -> str:
    """What a kernel does, by its name."""
    return next(
        (kind for kind, words in KINDS.items() if re.search(words, kernel.lower())), "element by element"
    )


def shares(kernels: Mapping[str, float]) -> dict[str, float]:
    """Share of each kind in the time of all kernels, largest first."""
    whole, found = sum(kernels.values()), dict[str, float]()
    for name, seconds in kernels.items():
        found[kind_of(name)] = found.get(kind_of(name), 0.0) + seconds / (whole or 1.0)
    return dict(sorted(found.items(), key=lambda pair: -pair[1]))


def told_of_kernels(kernels: Mapping[str, float], seconds: float, top: int = 5) -> str:
    """What bounds a call that took so long without being watched, and its longest kernels.

    Args:
        kernels: name -> seconds in one call.
        seconds: of the call by the clock.
        top: how many kernels are named.
    """
    whole = sum(kernels.values())
    if not whole:
        return "no kernel was seen"
    busy, parts = whole / seconds, shares(kernels)
    bound = "the host, which starts kernels too slowly" if busy < HOST else next(iter(parts))
    told = ", ".join(f"{kind} {share:.0%}" for kind, share in parts.items())
    longest = sorted(kernels.items(), key=lambda pair: -pair[1])[:top]
    names = ", ".join(f"{name[:60]} {took / whole:.0%}" for name, took in longest)
    return f"bound by {bound}; kernels run for {busy:.0%} of the time: {told}; longest: {names}"


def told_of_roof(
    gflop: float, gigabytes: float, peak_gflops: float, gb_a_second: float, seconds: float | None = None
) -> str:
    """Where a program stands under the roofline of its device.

    Args:
        gflop: of one call.
        gigabytes: that it reads and writes.
        peak_gflops: what the device computes a second.
        gb_a_second: what its memory moves.
        seconds: what the call took; None where it was not measured.
    """
    work, moved = gflop / peak_gflops, gigabytes / gb_a_second
    bound = "arithmetic" if work >= moved else "memory"
    told = (
        f"{gflop:,.4g} GFLOP need {1e3 * work:,.3g} ms at the peak, {gigabytes:,.4g} GB {1e3 * moved:,.3g} ms of the"
        f" memory: bound by {bound}"
    )
    return (
        told if seconds is None else f"{told}; the call reaches {max(work, moved) / seconds:.0%} of that roof"
    )
