"""How cost grows: `python -m benchmarks.scaling [--json benchmarks/results/scaling.json] [--quick]`.

Seconds by the clock against the length of the sound, rows at once, evaluations of the flow (nfe) and the denoiser's
width, for both backends on the CPU. Each axis is fitted with a + b x and with c x^p; the better one is told, with its
worst relative residual. Length, rows and nfe are measured on narrow models, so that all of it ends in 5 minutes.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks.machine import machine, write_results
from benchmarks.works import Work, denoising, enhancing_with, initial, repeat
from parivox.backend import BACKENDS, Backend, get_backend, installed
from parivox.chunks import split_chunks
from parivox.enhance import chunk_sizes, clean, full_row
from parivox.hparams import WAV_RATE, DenoiserHParams, EnhancerHParams
from parivox.presets import preset

BUDGET = 240.0
"""Seconds for all axes together; with what follows and the start it is less than 5 minutes."""

LONGEST = 2 * 3600
"""Seconds of the recording whose chunks are counted."""


@dataclass(frozen=True)
class Sizes:
    """What is measured.

    Attributes:
        lengths: seconds of sound that a narrow denoiser takes at once.
        enhanced: the same of a narrow enhancer.
        rows: at once, of `row_seconds`.
        row_seconds: length of a row where that is not what grows.
        nfe: evaluations of the flow.
        widths: `unet_hidden_dim`.
        narrow: width of the denoiser where that is not what grows.
        chunk: seconds of a chunk, and how much neighbours share.
    """

    lengths: tuple[float, ...] = (1, 3, 10, 30, 100)
    enhanced: tuple[float, ...] = (1, 3, 10)
    rows: tuple[float, ...] = (1, 2, 4, 8)
    row_seconds: float = 1.0
    nfe: tuple[float, ...] = (1, 2, 4, 8, 16, 32, 64)
    widths: tuple[float, ...] = (4, 8, 16, 32)
    narrow: int = 4
    chunk: tuple[float, float] = (30.0, 1.0)


QUICK = Sizes((0.1, 0.2, 0.4), (0.1, 0.2), (1, 2), 0.1, (1, 2, 4), (1, 2, 4), 1, (0.4, 0.1))


class Axis(NamedTuple):
    """One thing that grows.

    Attributes:
        name: what is computed, and what grows.
        unit: of the values.
        values: rising.
        make: value -> the work.
    """

    name: str
    unit: str
    values: tuple[float, ...]
    make: Callable[[float], Work]


class Fit(NamedTuple):
    """What describes an axis best.

    Attributes:
        kind: `linear`, a + b x, or `power`, c x^p.
        a: of the linear fit, seconds.
        b: of the linear fit, seconds for each unit.
        c: of the power law, seconds.
        p: of the power law; 1 where cost grows in proportion.
        worst: largest relative residual of the one that fits better.
    """

    kind: str
    a: float
    b: float
    c: float
    p: float
    worst: float

    def at(self, x: float) -> float:
        """Seconds that follow for a value."""
        return self.a + self.b * x if self.kind == "linear" else self.c * x**self.p

    def describe(self, unit: str) -> str:
        """In one line."""
        if self.kind == "linear":
            law = f"{self.a:.3g} s {'+' if self.b >= 0 else '-'} {abs(self.b):.3g} s for each {unit}"
        else:
            law = f"{self.c:.3g} s * x^{self.p:.2f}"
        return f"{law}, {self.worst:.0%} off at most (as a power: x^{self.p:.2f})"


def fit(xs: Sequence[float], ys: Sequence[float]) -> Fit | None:
    """Least squares of relative residuals, linear and as a power; None for fewer than three points.

    Short times count as much as long ones, since it is the relative residual that is made small.
    """
    if len(xs) < 3:
        return None
    x, y = np.asarray(xs, float), np.asarray(ys, float)
    a, b = np.linalg.lstsq(np.stack([1 / y, x / y], 1), np.ones(len(y)), rcond=None)[0]
    log_c, p = np.linalg.lstsq(np.stack([np.ones(len(x)), np.log(x)], 1), np.log(y), rcond=None)[0]
    c = float(np.exp(log_c))
    worst = {
        "linear": float(np.abs((a + b * x) / y - 1).max()),
        "power": float(np.abs(c * x**p / y - 1).max()),
    }
    kind = min(worst, key=lambda name: worst[name])
    return Fit(kind, float(a), float(b), c, float(p), worst[kind])


def enhancer() -> EnhancerHParams:
    """A narrow one."""
    hp = preset("enhancer_stage2_small")
    if not isinstance(hp, EnhancerHParams):
        raise TypeError("the preset is no enhancer")
    return hp


def axes(backend: Backend, sizes: Sizes) -> list[Axis]:
    """What grows, on one backend."""
    narrow, small = DenoiserHParams(unet_hidden_dim=sizes.narrow), enhancer()
    if sizes is QUICK:
        small = small.replace(
            univnet_nc=4, irmae_hidden_dim=32, wn_hidden_dim=4, wn_layers=1, unet_hidden_dim=1
        )
    model, long = backend.load_enhancer(small, initial(small)), sizes.row_seconds

    def rows(count: float) -> Work:
        return denoising(backend, narrow, round(count), long)

    def enhanced_rows(count: float) -> Work:
        return enhancing_with(backend, model, small, round(count), long, 4)

    def wide(width: float) -> Work:
        return denoising(backend, DenoiserHParams(unet_hidden_dim=round(width)), 1, long)

    return [
        Axis("denoise, length", "s of sound", sizes.lengths, partial(denoising, backend, narrow, 1)),
        Axis(
            *("enhance, length", "s of sound", sizes.enhanced),
            lambda seconds: enhancing_with(backend, model, small, 1, seconds, 4),
        ),
        Axis("denoise, rows", "row", sizes.rows, rows),
        Axis("enhance, rows", "row", sizes.rows, enhanced_rows),
        Axis(
            *("enhance, nfe", "evaluation", sizes.nfe),
            lambda nfe: enhancing_with(backend, model, small, 1, long, round(nfe)),
        ),
        Axis("denoise, width", "channel", sizes.widths, wide),
    ]


def walk(axis: Axis, budget: float) -> dict[float, dict[str, float]]:
    """Value -> seconds, for as many values as the budget allows."""
    found: dict[float, dict[str, float]] = {}
    end, last = time.perf_counter() + budget, 0.0
    for value in axis.values:
        # Compiling takes as long as before; computing grows at most with the value, or with its square.
        if found:
            ahead = found[last]["first"] + 3 * found[last]["min"] * value / last
            if time.perf_counter() + ahead > end:
                break
        found[value], last = repeat(axis.make(value)), value
    return found


def chunks_of(seconds: float, chunk: float, overlap: float) -> int:
    """How many chunks the command makes of a recording."""
    hop, shared = chunk_sizes(chunk, overlap)
    # One sample seen again and again: hours of it take no memory.
    return len(split_chunks(np.broadcast_to(np.float32(0), (1, round(seconds * WAV_RATE))), hop, shared))


def chunked(backend: Backend, sizes: Sizes, count: int = 3) -> dict[str, float]:
    """Three whole chunks through the command's own way, against three times one of them."""
    hp, (hop, shared) = DenoiserHParams(unet_hidden_dim=sizes.narrow), chunk_sizes(*sizes.chunk)
    model = backend.load_denoiser(hp, initial(hp))
    wav = np.random.default_rng(0).standard_normal((1, count * hop + shared), np.float32)
    one = wav[:, : full_row(hop, shared)]
    alone = repeat(lambda: backend.denoise(model, one), at_least=1, most=2)["min"]
    begin = time.perf_counter()
    clean(
        *(wav, WAV_RATE, lambda rows: backend.denoise(model, rows)),
        chunk_seconds=sizes.chunk[0],
        overlap_seconds=sizes.chunk[1],
    )
    whole = time.perf_counter() - begin
    many = chunks_of(LONGEST, *sizes.chunk)
    return {"chunk": alone, "chunks": count, "whole": whole, "longest_chunks": many, "longest": many * alone}


def host_seconds(seconds: float) -> float:
    """Processor seconds of cutting, aligning and joining one second of sound; the model does nothing."""
    wav = 0.1 * np.random.default_rng(0).standard_normal((1, round(seconds * WAV_RATE)), np.float32)
    begin = time.process_time()
    clean(wav, WAV_RATE, lambda rows: rows)
    return (time.process_time() - begin) / seconds


def table(name: str, unit: str, sides: dict[str, dict[float, dict[str, float]]]) -> list[str]:
    """Markdown of one axis: a row for each value, and what fits."""
    lines = [f"**{name}**", "", f"| {unit} | {' | '.join(sides)} |", f"|---|{'---|' * len(sides)}"]
    for value in sorted({value for side in sides.values() for value in side}):
        cells = [f"{side[value]['min']:.3f} s" if value in side else "no time" for side in sides.values()]
        lines.append(f"| {value:g} | {' | '.join(cells)} |")
    for backend, side in sides.items():
        found = fit(list(side), [times["min"] for times in side.values()])
        lines.append(f"\n{backend}: {found.describe(unit) if found else 'too few values for a fit'}")
    return [*lines, ""]


def measure(sizes: Sizes, budget: float) -> dict[str, Any]:
    """Everything; each axis on both backends one after another, and told as soon as it is done."""
    begin = time.perf_counter()
    backends = {name: get_backend(name, device="cpu") for name in BACKENDS if installed(name)}
    found: dict[str, Any] = {"machine": machine(), "axes": {}, "chunks": {}}
    ways = {name: axes(backend, sizes) for name, backend in backends.items()}
    names = [axis.name for axis in next(iter(ways.values()), [])]
    left = len(names) * len(ways)
    for k, name in enumerate(names):
        sides: dict[str, dict[float, dict[str, float]]] = {}
        for backend, every in ways.items():
            share = (budget - (time.perf_counter() - begin)) / left
            sides[backend], left = walk(every[k], share), left - 1
        print("\n".join(table(name, every[k].unit, sides)), flush=True)
        fits = {
            backend: law._asdict()
            for backend, side in sides.items()
            if (law := fit(list(side), [times["min"] for times in side.values()]))
        }
        found["axes"][name] = {"unit": every[k].unit, "seconds": sides, "fits": fits}
    for name, backend in backends.items():
        row = found["chunks"][name] = chunked(backend, sizes)
        print(
            f"{name}: {row['chunks']} chunks of {sizes.chunk[0]:g} s took {row['whole']:.2f} s,"
            f" {row['whole'] / (row['chunks'] * row['chunk']):.2f} times as many alone; {LONGEST / 3600:g} h are"
            f" {row['longest_chunks']} chunks, {row['longest']:.0f} s",
            flush=True,
        )
    found["host_seconds"] = host_seconds(5 if sizes is QUICK else 60)
    print(f"cutting and joining: {1e3 * found['host_seconds']:.2f} ms of processor time a second of sound")
    found["took"] = time.perf_counter() - begin
    return found


def main(words: Sequence[str] | None = None) -> None:
    """Print tables and fits, and write them as JSON where asked."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--quick", action="store_true", help="tiny sizes: shows that it runs")
    given = parser.parse_args(words)
    found = measure(QUICK if given.quick else Sizes(), BUDGET)
    if given.json:
        write_results(given.json, found)


if __name__ == "__main__":
    main()
