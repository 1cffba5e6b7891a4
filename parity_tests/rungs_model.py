"""The rungs of the whole denoiser: outputs, loss and gradients."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from parity_tests import seeded
from parity_tests.ladder import Finding, Ladder
from parity_tests.result import Figure, Row, Skipped
from parity_tests.rungs_signal import distance, published_bound, recorded_row
from parity_tests.sides import Pass, Side
from parivox.backend import NamedArrays
from parivox.features import SAMPLE_RATE
from parivox.plots import difference_png
from parivox.weights import denoiser_specs

RECORDED = {"denoiser": (2, 2, 22_050), "denoiser_odd": (4, 1, 33_333)}
"""Recorded outputs: offset of the signal's seed, rows, samples."""

SMALL_HIDDEN = 4
"""Width of the model that the backends compare where nothing is recorded, and that faults are planted in."""

SMALL_SAMPLES = 6000


def recorded_pass(ladder: Ladder, side: Side) -> Pass:
    """The recorded pass forward and back of the full-size model."""
    x, y = (ladder.reference.signal(k, 2, 22_050) for k in (2, 3))
    return side.loss_and_grads(ladder.reference.weights("denoiser") or {}, 16, x, y)


def small_pass(ladder: Ladder, side: Side) -> Pass:
    """The same of a narrow model with seeded weights, none of them at a special value."""
    seed = ladder.options.seed
    shapes = {name: spec.shape for name, spec in denoiser_specs(SMALL_HIDDEN).items()}
    x, y = seeded.signal(seed, 2, SMALL_SAMPLES), seeded.signal(seed + 1, 2, SMALL_SAMPLES)
    return side.loss_and_grads(seeded.weights(shapes, seed), SMALL_HIDDEN, x, y)


def sound(ladder: Ladder, side: Side, run: Callable[[Ladder, Side], Pass]) -> Pass:
    """A pass without any fault, computed once for a climb: compiling it takes most of its time."""
    key = (run.__name__, side.name, side.dtype)
    if key not in ladder.passes:
        ladder.passes[key] = run(ladder, side)
    return ladder.passes[key]


def outputs(ladder: Ladder) -> Iterator[Finding]:
    """What the denoiser answers: against the record, then the backends against each other."""
    weights = ladder.reference.weights("denoiser")
    for name, (offset, rows, length) in RECORDED.items():
        if weights is None or ladder.reference.arrays("float64", name) is None:
            yield Skipped(
                "outputs", f"{name}.npz or denoiser.manifest.json is not in {ladder.reference.folder}"
            )
            continue
        for dtype in ("float64", "float32"):
            found = {}
            for side in ladder.sides(dtype):
                if name == "denoiser" and has_gradients(ladder):
                    found[side.name] = sound(ladder, side, recorded_pass).output
                else:
                    x = ladder.reference.signal(offset, rows, length)
                    found[side.name] = side.denoise(weights, 16, x)
                yield output_row(ladder, side, name, found[side.name])
            yield from _between(ladder, "outputs", f"{name} output, full size", dtype, found)
        if name == "denoiser" and len(found) == 2:
            png = difference_png(("jax", found["jax"][0]), ("torch", found["torch"][0]), SAMPLE_RATE)
            yield Figure(
                "The same noise through both backends", "Seeded weights, float32. Below: the difference.", png
            )
    if weights is None or ladder.options.faults:
        for dtype in ("float32", "float64"):
            found = {side.name: sound(ladder, side, small_pass).output for side in ladder.sides(dtype)}
            yield from _between(ladder, "outputs", "small denoiser output", dtype, found)


def has_gradients(ladder: Ladder) -> bool:
    """Whether the record has the gradients of the full-size model."""
    known = ladder.reference.norms("float64", "denoiser"), ladder.reference.weights("denoiser")
    return all(part is not None for part in known)


def output_row(ladder: Ladder, side: Side, name: str, found: np.ndarray) -> Row:
    """One full-size output against its record."""
    truth = (ladder.reference.arrays("float64", name) or {})["output"]
    rounded = (ladder.reference.arrays("float32", name) or {}).get("output")
    return recorded_row(ladder, "outputs", f"{name} output, {side.name}", side, found, truth, rounded)


def worst_leaf(found: NamedArrays, wanted: NamedArrays) -> float:
    """Largest relative L2 distance of any tensor."""
    return max(distance(found[name], wanted[name]) for name in wanted)


def gradients(ladder: Ladder) -> Iterator[Finding]:
    """The loss and its derivative by every weight."""
    truth = ladder.reference.norms("float64", "denoiser")
    if truth is None or not has_gradients(ladder):
        yield Skipped("gradients", f"denoiser.grads.json or its manifest is not in {ladder.reference.folder}")
    else:
        for dtype in ("float64", "float32"):
            for side in ladder.sides(dtype):
                found = sound(ladder, side, recorded_pass)
                yield from gradient_rows(ladder, side, found.loss, found.grads, truth)
            yield from _leaves(ladder, dtype, recorded_pass, "full size")
    if truth is None or ladder.options.faults:
        for dtype in ("float32", "float64"):
            yield from _leaves(ladder, dtype, small_pass, "small denoiser")


def _leaves(ladder: Ladder, dtype: str, run: Callable[[Ladder, Side], Pass], what: str) -> Iterator[Finding]:
    if len(ladder.backends) == 2:
        jax, torch = (sound(ladder, side, run).grads for side in ladder.sides(dtype))
        case = f"{what}, worst of {len(torch)} tensors, jax"
        limit = ladder.bound("gradients", dtype)
        yield Row("gradients", case, "torch", worst_leaf(jax, torch), limit, ladder.label(dtype))


def gradient_rows(
    ladder: Ladder, side: Side, loss: float, grads: NamedArrays, truth: dict[str, float]
) -> Iterator[Row]:
    """Loss and gradient norms of one backend against the record."""
    recorded = float((ladder.reference.arrays("float64", "denoiser") or {})["loss"])
    rounded = float((ladder.reference.arrays("float32", "denoiser") or {"loss": np.nan})["loss"])
    yield recorded_row(
        ladder,
        "outputs",
        f"L1 loss, {side.name}",
        side,
        np.array([loss]),
        np.array([recorded]),
        np.array([rounded]),
    )
    case = f"worst of {len(truth)} norms, {side.name}"
    error = worst_norm(
        {name: float(np.linalg.norm(g.astype(np.float64))) for name, g in grads.items()}, truth
    )
    if side.dtype == "float64":
        yield Row(
            "gradients",
            case,
            "recorded float64",
            error,
            ladder.bound("recorded gradients", "float64"),
            "float64",
        )
        return
    own = worst_norm(ladder.reference.norms("float32", "denoiser") or {}, truth)
    limit = published_bound(ladder, "gradients", own)
    yield Row(
        "gradients",
        case,
        "recorded float64",
        error,
        limit,
        ladder.label("float32"),
        f"published program: {own:.1e}",
    )


def worst_norm(found: dict[str, float], truth: dict[str, float]) -> float:
    """Largest relative error of a gradient norm; NaN where one is missing."""
    return float(np.max([abs(found.get(name, np.nan) - norm) / abs(norm) for name, norm in truth.items()]))


def _between(ladder: Ladder, rung: str, case: str, dtype: str, found: dict[str, np.ndarray]) -> Iterator[Row]:
    if len(found) == 2:
        error = distance(found["jax"], found["torch"])
        yield Row(rung, f"{case}, jax", "torch", error, ladder.bound(rung, dtype), ladder.label(dtype))
