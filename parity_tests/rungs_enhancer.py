"""The rung of the enhancer: every part and both training stages, against recorded numbers and each other."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from parity_tests import rungs_discriminator, seeded
from parity_tests.ladder import Finding, Ladder
from parity_tests.result import Row, Skipped
from parity_tests.rungs_signal import distance, published_bound, recorded_row
from parity_tests.sides import Side
from parity_tests.sides_enhancer import EnhancerSide, Step, enhancer_side
from parivox.backend import NamedArrays
from parivox.enhancer_tables import SNAKE_RANGE, time_frequencies
from parivox.hparams import EnhancerHParams
from parivox.weights_enhancer import STATISTICS

MANIFEST = "enhancer_tiny"

DOUBLE = ("time_map", "time_frequencies")
"""Recorded in float64 in either dtype, or not a backend's; the flow's rows hold what float32 makes of them."""

Arrays = Mapping[str, np.ndarray]


class Case(NamedTuple):
    """One recorded file.

    Attributes:
        record: its name without the ending.
        run: what a backend makes of the inputs, at least of these names in the file.
        short: the names that are looked at where little time is to be spent; None for all.
        compiles_long: whether XLA takes long to compile it; where little time is to be spent, torch alone is then
            compared, and the tests compare the two backends on a narrower model.
    """

    record: str
    run: Callable[[Ladder, EnhancerSide, Sequence[str]], Arrays]
    short: tuple[str, ...] | None = None
    compiles_long: bool = False


def settings(stage: str = "cfm") -> EnhancerHParams:
    """Hyperparameters of the recorded model."""
    return EnhancerHParams(
        irmae_hidden_dim=64,
        wn_hidden_dim=64,
        wn_layers=10,
        univnet_nc=16,
        lcfm_z_scale=6 if stage == "cfm" else 5,
        lcfm_training_mode="cfm" if stage == "cfm" else "ae",
    )


def _weights(ladder: Ladder) -> NamedArrays:
    """Seeded weights; empty where there is no manifest."""
    return ladder.reference.weights(MANIFEST) or {}


def _noise(ladder: Ladder, name: str, *shape: int, kind: str = "normal") -> np.ndarray:
    return seeded.noise(ladder.reference.seed, name, shape, kind)


# What a backend computes for each recorded file


def normalizer(ladder: Ladder, side: EnhancerSide, keys: Sequence[str]) -> Arrays:
    """Statistics after four batches, and the last batch.

    Compared as one vector, as the losses are: a single float32 number is right to its last bit by luck.
    """
    # In float32 and in this order, to the last bit: what was recorded had rounded after each.
    noises = [_noise(ladder, f"norm{i}", 2, 8, 16) for i in range(4)]
    scale, shift = np.float32(0.3), [np.float32(0.1 * i) for i in range(4)]
    batches = [noise * np.float32(i + 1) * scale + shift[i] for i, noise in enumerate(noises)]
    statistics, last = side.normalize(batches)
    return {"stats": statistics, "last": last}


def irmae(ladder: Ladder, side: EnhancerSide, keys: Sequence[str]) -> Arrays:
    """Latent, decoded condition and head of the auto-encoder."""
    return side.run(_weights(ladder), settings(), "irmae", {"mel": _noise(ladder, "mel", 2, 128, 24)})


def flow(ladder: Ladder, side: EnhancerSide, keys: Sequence[str]) -> Arrays:
    """Time map, velocity, and where each solver arrives."""
    weights, hp, found = _weights(ladder), settings(), {}
    inputs = {"psi": _noise(ladder, "psi", 2, 64, 24), "mel": _noise(ladder, "mel", 2, 128, 24)}
    for key in keys:
        if key == "time_map":
            found |= side.run(weights, hp, "time map", {"t": np.linspace(0, 1, 17)})
        elif key == "velocity":
            found |= side.run(weights, hp, "velocity", {**inputs, "t": np.array([0.1, 0.7], np.float32)})
        else:
            method, nfe = key.split("_")
            found |= side.run(weights, hp, "flow", inputs, method=method, nfe=int(nfe))
    return found


def vocoder(ladder: Ladder, side: EnhancerSide, keys: Sequence[str]) -> Arrays:
    """Sound of a condition and noise."""
    inputs = {"condition": _noise(ladder, "vmel", 2, 160, 12), "noise": _noise(ladder, "vz", 2, 128, 22)}
    return side.run(_weights(ladder), settings(), "vocoder", inputs)


def enhance(ladder: Ladder, side: EnhancerSide, keys: Sequence[str]) -> Arrays:
    """Enhanced sound; a key says the share of the denoised spectrogram, tau, solver and evaluations."""
    found = {}
    for key in keys:
        blend, tau, solver = key.split("_")
        method = solver.rstrip("0123456789")
        inputs = {
            "x": ladder.reference.signal(8, 1, 12_607),
            "prior": _noise(ladder, "prior", 1, 64, 30),
            "noise": _noise(ladder, "vz2", 1, 128, 40),
            "tau": np.array([float(tau[1:])]),
        }
        if float(blend[1:]) > 0:
            inputs["blend"] = np.array([float(blend[1:])])
        nfe = int(solver.removeprefix(method))
        made = side.run(_weights(ladder), settings(), "enhance", inputs, method=method, nfe=nfe)
        found[key] = made["output"]
    return found


CASES = (
    Case("normalizer", normalizer),
    Case("irmae_tiny", irmae),
    Case("cfm_tiny", flow, ("time_map", "velocity")),
    Case("vocoder_tiny", vocoder, compiles_long=True),
    Case("enhance_tiny", enhance, ("l0.0_t0.5_midpoint8",), compiles_long=True),
)


def stage1(ladder: Ladder, side: EnhancerSide, gradients: bool = True) -> Step:
    """The first stage with the discriminator."""
    judge = ladder.reference.weights("discriminator") or {}
    x, noise = ladder.reference.signal(12, 2, 8400), _noise(ladder, "vz3", 2, 128, 30)
    return side.stage1(_weights(ladder), judge, settings("ae"), x, noise, gradients)


def stage2(ladder: Ladder, side: EnhancerSide, gradients: bool = True) -> Step:
    """The second stage with its denoiser."""
    draws = {
        "blend": np.array([0.3, 0.9]),
        "tau": _noise(ladder, "tau", 2, 1, 1, kind="uniform").reshape(2),
        "prior": _noise(ladder, "prior2", 2, 64, 20),
        "sigma": _noise(ladder, "sig", 2, 64, 20),
        "time": _noise(ladder, "t", 2, kind="uniform"),
    }
    signals = [ladder.reference.signal(k, 2, 8400) for k in (9, 10, 11)]
    return side.stage2(_weights(ladder), settings(), signals, draws, gradients)


# Rows


def enhancer(ladder: Ladder) -> Iterator[Finding]:
    """Every part in float64, and in float32 too where there is time for it."""
    missing = missing_records(ladder, [case.record for case in CASES])
    if not _weights(ladder):
        yield Skipped("outputs", f"{missing[0]} is not in {ladder.reference.folder}")
        return
    yield from (Skipped("outputs", f"{name} is not in {ladder.reference.folder}") for name in missing)
    yield from frequency_rows(ladder)
    for dtype in _dtypes(ladder):
        yield from (snake_row(ladder, side) for side in ladder.sides(dtype))
    for case in CASES:
        if ladder.reference.arrays("float64", case.record) is not None:
            for dtype in _dtypes(ladder):
                found = {}
                for side in ladder.sides(dtype):
                    if case.compiles_long and side.name == "jax" and not ladder.options.long:
                        continue
                    found[side.name] = computed(ladder, side, case)
                    yield from case_rows(ladder, side, case, found[side.name])
                yield from _between(ladder, dtype, case.record, found)


def stages(ladder: Ladder) -> Iterator[Finding]:
    """Losses, sound, statistics and gradients of both training stages."""
    for stage, run in (("stage1", stage1), ("stage2", stage2)):
        missing = missing_stage(ladder, stage)
        if missing:
            yield Skipped("gradients", f"{missing[0]} is not in {ladder.reference.folder}")
            continue
        for dtype in ("float64", "float32"):
            steps = {}
            for side in ladder.sides(dtype):
                steps[side.name] = run(ladder, enhancer_side(side))
                yield from stage_rows(ladder, side, stage, steps[side.name])
            if len(steps) == 2:
                yield _leaves(ladder, dtype, stage, steps)


def _dtypes(ladder: Ladder) -> tuple[str, ...]:
    return _BOTH if ladder.options.long else _BOTH[:1]


def missing_records(ladder: Ladder, names: Sequence[str]) -> list[str]:
    """Files of the record that are absent, the manifest first."""
    missing = [] if _weights(ladder) else [f"{MANIFEST}.manifest.json"]
    return missing + [f"{name}.npz" for name in names if ladder.reference.arrays("float64", name) is None]


def missing_stage(ladder: Ladder, stage: str) -> list[str]:
    """The same for a training stage."""
    missing = missing_records(ladder, [f"{stage}_tiny"])
    if ladder.reference.norms("float64", f"{stage}_tiny") is None:
        missing.append(f"{stage}_tiny.grads.json")
    if stage == "stage1" and ladder.reference.weights("discriminator") is None:
        missing.append("discriminator.manifest.json")
    return missing


def computed(ladder: Ladder, side: Side, case: Case) -> Arrays:
    """What a backend makes of a case, by the names in its record."""
    keys = case.short if case.short and not ladder.options.long else _keys(ladder, case.record)
    found = case.run(ladder, enhancer_side(side), keys)
    return {key: found[key] for key in keys if side.dtype == "float64" or key not in DOUBLE}


def _keys(ladder: Ladder, record: str) -> tuple[str, ...]:
    recorded = ladder.reference.arrays("float64", record) or {}
    return tuple(key for key in recorded if key != "time_frequencies")


def case_rows(ladder: Ladder, side: Side, case: Case, found: Arrays) -> Iterator[Row]:
    """One backend against a recorded file."""
    for name, group in _groups(case.record, found).items():
        truth, rounded = (_vector(ladder.reference.arrays(d, case.record) or {}, group) for d in _BOTH)
        title, own = f"{name}, {side.name}", _vector(found, group)
        if own.shape != truth.shape:
            limit = ladder.bound("recorded", "float64")
            note = f"{own.size} values, not {truth.size}"
            yield Row("outputs", title, "recorded float64", np.inf, limit, ladder.label(side.dtype), note)
            continue
        yield recorded_row(ladder, "outputs", title, side, own, truth, rounded)
        if side.dtype == "float32" and group == ("velocity",):
            # The published program's distance is that of its time frequencies, so the row above does not tell
            # them from others as far from the truth.
            error, limit = distance(own, rounded), ladder.bound("outputs", "float32")
            yield Row("outputs", title, "recorded float32", error, limit, ladder.label("float32"))


_BOTH = ("float64", "float32")


def _groups(record: str, found: Arrays) -> dict[str, tuple[str, ...]]:
    """Names of rows, and what of a record each compares."""
    if record == "normalizer":
        return {"normalizer, statistics and output": tuple(found)}
    return {f"{record}, {key}": (key,) for key in found}


def _vector(arrays: Arrays, keys: Sequence[str]) -> np.ndarray:
    return np.concatenate([np.ravel(np.asarray(arrays.get(key, np.nan), np.float64)) for key in keys])


def _between(ladder: Ladder, dtype: str, record: str, found: Mapping[str, Arrays]) -> Iterator[Row]:
    if len(found) < 2:
        return
    for name, group in _groups(record, found["jax"]).items():
        error = distance(_vector(found["jax"], group), _vector(found["torch"], group))
        limit = ladder.bound("outputs", "float64")
        if dtype == "float32":
            truth, rounded = (_vector(ladder.reference.arrays(d, record) or {}, group) for d in _BOTH)
            # Each may lie so far from the truth.
            limit = 2 * published_bound(ladder, "outputs", distance(rounded, truth))
        yield Row("outputs", f"{name}, jax", "torch", error, limit, ladder.label(dtype))


def snake_row(ladder: Ladder, side: Side) -> Row:
    """The periodic activation with frequencies and amplitudes on both sides of where they are cut.

    The record's lie inside, as drawn weights do, so its formula in NumPy is what this is compared with.
    """
    weights, name = dict(_weights(ladder)), "vocoder.blocks.0.amp_block.0.1.act.log_"
    channels = settings().univnet_nc
    for part, first in (("alpha", -8.0), ("beta", 8.0)):
        weights[name + part] = np.linspace(first, -first, channels).astype(np.float32)
    x = _noise(ladder, "snake", 2, channels, 50)
    alpha, beta = (
        np.clip(np.exp(weights[name + part].astype(np.float64)), *SNAKE_RANGE)[:, None]
        for part in ("alpha", "beta")
    )
    wanted = x + np.sin(alpha * x) ** 2 / beta
    found = enhancer_side(side).run(weights, settings(), "snake", {"x": x})["output"]
    limit, label = ladder.bound("outputs", side.dtype), ladder.label(side.dtype)
    return Row("outputs", f"SnakeBeta, {side.name}", "float64 NumPy", distance(found, wanted), limit, label)


def frequency_rows(ladder: Ladder) -> Iterator[Row]:
    """The time embedding's frequencies, which no backend computes: equal in float32, of which the weights know."""
    for dtype in _BOTH:
        recorded = (ladder.reference.arrays(dtype, "cfm_tiny") or {}).get("time_frequencies")
        if recorded is not None:
            found = time_frequencies(dtype)
            case, against = "time frequencies", f"recorded {dtype}"
            if dtype == "float64":
                error, limit = distance(found, recorded), ladder.bound("recorded", "float64")
            else:
                error, limit = float((found != recorded).sum()), ladder.bound("settings", "exact")
            yield Row("outputs", case, against, error, limit, dtype)


def stage_rows(ladder: Ladder, side: Side, stage: str, step: Step) -> Iterator[Row]:
    """One backend's training stage against its record."""
    record = f"{stage}_tiny"
    truth, rounded = (ladder.reference.arrays(dtype, record) or {} for dtype in _BOTH)
    found: dict[str, np.ndarray] = {name: np.asarray(loss) for name, loss in step.losses.items()}
    if step.results:
        found["buffers"] = np.array([step.results[name] for name in STATISTICS[:2]])
        sounds = step.results["fake"], truth["fake"], rounded.get("fake")
        yield recorded_row(ladder, "outputs", f"{stage}, sound, {side.name}", side, *sounds)
    what = f"{stage}, losses{' and statistics' if step.results else ''}, {side.name}"
    vectors = (_vector(arrays, tuple(found)) for arrays in (found, truth, rounded))
    yield recorded_row(ladder, "outputs", what, side, *vectors)
    if step.grads:
        yield gradient_row(ladder, side, stage, step.grads)


def gradient_row(ladder: Ladder, side: Side, stage: str, grads: NamedArrays) -> Row:
    """Norms of the gradient of the sum of a stage's losses by every weight that it trains."""
    truth = ladder.reference.norms("float64", f"{stage}_tiny") or {}
    norms = {name: float(np.linalg.norm(g.astype(np.float64))) for name, g in grads.items()}
    case, error = f"{stage}, worst of {len(truth)} norms, {side.name}", worst_norm(norms, truth)
    if side.dtype == "float64":
        limit = ladder.bound("recorded gradients", "float64")
        return Row("gradients", case, "recorded float64", error, limit, "float64")
    own = worst_norm(ladder.reference.norms("float32", f"{stage}_tiny") or {}, truth)
    limit, note = published_bound(ladder, "gradients", own), f"published program: {own:.1e}"
    return Row("gradients", case, "recorded float64", error, limit, ladder.label("float32"), note)


def _leaves(ladder: Ladder, dtype: str, stage: str, steps: Mapping[str, Step]) -> Row:
    truth = ladder.reference.norms("float64", f"{stage}_tiny") or {}
    error = rungs_discriminator.worst_leaf(steps["jax"].grads, steps["torch"].grads, truth)
    case, limit = f"{stage}, worst of {len(truth)} tensors, jax", ladder.bound("gradients", dtype)
    if dtype == "float32":
        rounded = worst_norm(ladder.reference.norms("float32", f"{stage}_tiny") or {}, truth)
        limit = max(limit, 2 * published_bound(ladder, "gradients", rounded))
    return Row("gradients", case, "torch", error, limit, ladder.label(dtype))


def worst_norm(found: Mapping[str, float], truth: Mapping[str, float]) -> float:
    """Largest relative error of a gradient norm; NaN where a tensor is missing on either side."""
    if found.keys() != truth.keys():
        return float("nan")
    return rungs_discriminator.worst_norm(found, truth)
