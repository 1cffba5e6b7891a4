"""The rung of the enhancer's adversarial and spectral losses, against recorded numbers and each other."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from parity_tests.ladder import Finding, Ladder
from parity_tests.result import Row, Skipped
from parity_tests.rungs_signal import distance, published_bound, recorded_row
from parity_tests.sides import Judgement, Side
from parivox.backend import NamedArrays
from parivox.features import NORMALIZE_EPS

STFT_LOSSES = ("sc", "mag")
GENERATOR_LOSSES = ("g_mpd", "g_mrd")
DISCRIMINATOR_LOSSES = ("d_mpd_fake", "d_mpd_real", "d_mrd_fake", "d_mrd_real")
"""Names in the record. Losses are compared as one vector: a float32 number near 1 is right to 3e-8 or by luck."""

NEEDED = ("mrstft", "stage1_tiny")


def recorded_sounds(ladder: Ladder) -> tuple[np.ndarray, np.ndarray]:
    """What the recorded generator made, and the recording that it had heard, float64.

    Both backends judge the sound of the float64 record in every dtype, so that the generator is not in the comparison.
    """
    fake = (ladder.reference.arrays("float64", "stage1_tiny") or {})["fake"]
    return fake, ladder.reference.signal(12, 2, 8400).astype(np.float64)


def stft_cases(ladder: Ladder) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Output and target of each recorded STFT loss. In training the target alone is peak-normalised."""
    fake, real = recorded_sounds(ladder)
    target = real / (np.abs(real).max(axis=-1, keepdims=True) + NORMALIZE_EPS)
    signals = tuple(ladder.reference.signal(k, 2, 22_050) for k in (2, 3))
    return {"mrstft": (signals[0], signals[1]), "stage1_tiny": (fake, target)}


def judged(ladder: Ladder, side: Side) -> Judgement:
    """The recorded judgement with its gradients, made once for a climb."""
    key = side.name, side.dtype
    if key not in ladder.judgements:
        weights = ladder.reference.weights("discriminator") or {}
        ladder.judgements[key] = side.judge(weights, *recorded_sounds(ladder))
    return ladder.judgements[key]


def discriminator(ladder: Ladder) -> Iterator[Finding]:
    """STFT losses, hinge losses and gradients; where little time is to be spent, losses in float64 alone."""
    missing = missing_records(ladder)
    if missing:
        yield Skipped("outputs", f"{missing[0]} is not in {ladder.reference.folder}")
        return
    if not ladder.options.long:
        weights = ladder.reference.weights("discriminator") or {}
        for side in ladder.sides("float64"):
            yield from stft_rows(ladder, side)
            if side.name == "jax":
                continue  # XLA compiles it for half a minute; the tests compare its scores with torch's
            losses = side.judge(weights, *recorded_sounds(ladder), gradients=False).losses
            yield from loss_rows(ladder, side, losses)
        return
    for dtype in ("float64", "float32"):
        for side in ladder.sides(dtype):
            yield from stft_rows(ladder, side)
            found = judged(ladder, side)
            yield from loss_rows(ladder, side, found.losses)
            yield gradient_row(ladder, side, found.grads)
        yield from _between(ladder, dtype)


def missing_records(ladder: Ladder) -> list[str]:
    """Files of the record that are absent."""
    missing = [f"{name}.npz" for name in NEEDED if ladder.reference.arrays("float64", name) is None]
    if ladder.reference.norms("float64", "discriminator_tiny") is None:
        missing.append("discriminator_tiny.grads.json")
    if ladder.reference.weights("discriminator") is None:
        missing.append("discriminator.manifest.json")
    return missing


def stft_rows(ladder: Ladder, side: Side) -> Iterator[Row]:
    """Spectral convergence and log magnitudes of one backend."""
    for name, sounds in stft_cases(ladder).items():
        yield _loss_row(ladder, side, "STFT losses", name, STFT_LOSSES, side.stft_losses(*sounds))


def loss_rows(ladder: Ladder, side: Side, losses: Mapping[str, float]) -> Iterator[Row]:
    """The discriminator's and the generator's losses of one backend."""
    for case, names in (("hinge losses", DISCRIMINATOR_LOSSES), ("generator's losses", GENERATOR_LOSSES)):
        found = np.array([losses[name] for name in names])
        yield _loss_row(ladder, side, case, "stage1_tiny", names, found)


def _loss_row(
    ladder: Ladder, side: Side, case: str, record: str, names: tuple[str, ...], found: np.ndarray
) -> Row:
    truth, rounded = (
        np.array([arrays.get(name, np.nan) for name in names])
        for arrays in (ladder.reference.arrays(dtype, record) or {} for dtype in ("float64", "float32"))
    )
    return recorded_row(ladder, "outputs", f"{case}, {record}, {side.name}", side, found, truth, rounded)


def gradient_row(ladder: Ladder, side: Side, grads: NamedArrays) -> Row:
    """Norms of the gradient of the sum of hinge losses by every weight."""
    truth = ladder.reference.norms("float64", "discriminator_tiny") or {}
    found = {name: float(np.linalg.norm(g.astype(np.float64))) for name, g in grads.items()}
    case = f"discriminator, worst of {len(truth)} norms, {side.name}"
    error = worst_norm(found, truth)
    if side.dtype == "float64":
        limit = ladder.bound("recorded gradients", "float64")
        return Row("gradients", case, "recorded float64", error, limit, "float64")
    own = worst_norm(ladder.reference.norms("float32", "discriminator_tiny") or {}, truth)
    limit, note = published_bound(ladder, "gradients", own), f"published program: {own:.1e}"
    return Row("gradients", case, "recorded float64", error, limit, ladder.label("float32"), note)


def worst_norm(found: Mapping[str, float], truth: Mapping[str, float]) -> float:
    """Largest relative error of a gradient norm; NaN where one is missing.

    Where the gradients of real and generated sound cancel, the norm is 0, and the largest norm is the measure.
    """
    largest = max(truth.values())
    return float(
        np.max([abs(found.get(name, np.nan) - norm) / (norm or largest) for name, norm in truth.items()])
    )


def worst_leaf(found: NamedArrays, wanted: NamedArrays, truth: Mapping[str, float]) -> float:
    """Largest L2 distance of a gradient, relative to its recorded norm or, where that is 0, to the largest."""
    largest = max(truth.values())
    return max(
        float(np.linalg.norm(found[name].astype(np.float64) - wanted[name])) / (norm or largest)
        for name, norm in truth.items()
    )


def _between(ladder: Ladder, dtype: str) -> Iterator[Row]:
    if len(ladder.backends) < 2:
        return
    jax, torch = ladder.side("jax", dtype), ladder.side("torch", dtype)
    weights = ladder.reference.weights("discriminator") or {}
    truth = ladder.reference.norms("float64", "discriminator_tiny") or {}
    sounds = stft_cases(ladder)["stage1_tiny"]
    limit, label = ladder.bound("gradients", dtype), ladder.label(dtype)
    leaves = worst_leaf(judged(ladder, jax).grads, judged(ladder, torch).grads, truth)
    yield Row(
        "gradients", f"discriminator, worst of {len(truth)} tensors, jax", "torch", leaves, limit, label
    )
    sound = distance(jax.sound_gradient(weights, *sounds), torch.sound_gradient(weights, *sounds))
    yield Row("gradients", "STFT and generator's losses by the sound, jax", "torch", sound, limit, label)
