"""The rung of spectrograms, mixing and joining."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator

import numpy as np

from parity_tests.ladder import Finding, Ladder
from parity_tests.result import Row, Skipped
from parity_tests.sides import Side
from parity_tests.tolerances import FACTOR_OF_PUBLISHED
from parivox.chunks import alignment_shift, join_chunks
from parivox.data import mix
from parivox.features import (
    DENOISER_STFT,
    SAMPLE_RATE,
    MelSpec,
    istft_oracle,
    mel_filter_bank,
    mel_oracle,
    stft_oracle,
)

CHUNK, HOP = 44_100, 35_280
"""Samples of the recorded joining: chunk length and distance."""


def peak_error(found: np.ndarray, wanted: np.ndarray) -> float:
    """Largest difference over the largest value."""
    return float(np.abs(found - wanted).max() / np.abs(wanted).max())


def distance(found: np.ndarray, wanted: np.ndarray) -> float:
    """Relative L2 distance, in float64."""
    found, wanted = np.asarray(found, np.float64), np.asarray(wanted, np.float64)
    return float(np.linalg.norm(found - wanted) / np.linalg.norm(wanted))


def features(ladder: Ladder) -> Iterator[Finding]:
    """STFT, inverse and mel against the oracle, librosa and recorded numbers."""
    for dtype in ("float32", "float64"):
        for side in ladder.sides(dtype):
            yield from oracle_rows(ladder, side)
    yield from _librosa(ladder)
    for name in ("features", "denoiser_stft"):
        if ladder.reference.arrays("float64", name) is None:
            yield Skipped("features", f"{name}.npz is not in {ladder.reference.folder}")
            continue
        for dtype in ("float64", "float32"):
            for side in ladder.sides(dtype):
                yield from recorded_rows(ladder, side, name)
    yield from _framework_free(ladder)


def oracle_rows(ladder: Ladder, side: Side) -> Iterator[Row]:
    """One backend against float64 NumPy; errors are relative to the peak."""
    limit, label = ladder.bound("features peak", side.dtype), ladder.label(side.dtype)

    def row(case: str, error: float) -> Row:
        return Row("features", f"{case}, {side.name}", "float64 NumPy", error, limit, label, "of the peak")

    for x in (ladder.reference.signal(0, 2, 44_100), ladder.reference.signal(1, 1, 30_001)):
        z = stft_oracle(x, DENOISER_STFT)
        length = f"{x.shape[1]:,} samples"
        yield row(f"STFT 1680/420, {length}", peak_error(side.stft(x, DENOISER_STFT), z))
        yield row(
            f"STFT 2048/420, {length}",
            peak_error(side.stft(x, MelSpec().stft), stft_oracle(x, MelSpec().stft)),
        )
        yield row(
            f"inverse STFT, {length}",
            peak_error(side.istft(z, DENOISER_STFT), istft_oracle(z, DENOISER_STFT)),
        )
        yield row(f"mel, {length}", peak_error(side.mel(x), mel_oracle(x)))


def _librosa(ladder: Ladder) -> Iterator[Finding]:
    if importlib.util.find_spec("librosa") is None:
        yield Skipped("features", "librosa is not installed (pip install librosa)")
        return
    import librosa

    spec = MelSpec()
    x = ladder.reference.signal(0, 2, 44_100).astype(np.float64)
    bank = librosa.filters.mel(sr=SAMPLE_RATE, n_fft=2048, n_mels=128, dtype=np.float64).T
    limit = ladder.bound("features peak", "float64")
    yield Row(
        "features",
        "mel filter bank",
        "librosa",
        peak_error(mel_filter_bank(), bank),
        limit,
        "float64",
        "of the peak",
    )
    z = librosa.stft(
        x, n_fft=1680, hop_length=420, window="hann", center=True, pad_mode="reflect", dtype=np.complex128
    )
    y = x - spec.preemphasis * np.pad(x, ((0, 0), (1, 0)))[:, :-1]
    magnitude = np.abs(librosa.stft(y, n_fft=2048, hop_length=420, pad_mode="constant", dtype=np.complex128))
    decibel = 20 * np.log10(np.maximum(np.einsum("bfn,fm->bmn", magnitude, bank), spec.magnitude_min))
    mel = (decibel + 80) / 95
    for dtype in ("float32", "float64"):
        for side in ladder.sides(dtype):
            limit, label = ladder.bound("features peak", dtype), ladder.label(dtype)
            for case, found, wanted in (
                ("STFT 1680/420", side.stft(x, DENOISER_STFT), z),
                ("mel", side.mel(x), mel),
            ):
                error = peak_error(found, wanted)
                yield Row("features", f"{case}, {side.name}", "librosa", error, limit, label, "of the peak")


def _cases(side: Side, name: str, ladder: Ladder) -> dict[str, np.ndarray]:
    """What a backend makes of the inputs of a recorded file, by the names in it."""
    x = ladder.reference.signal(0, 2, 44_100)
    if name == "features":
        return {"mel_44100": side.mel(x), "mel_30001": side.mel(ladder.reference.signal(1, 1, 30_001))}
    z = side.stft(x, DENOISER_STFT)[..., :-1]
    magnitude, cos, sin = (part[..., :20] for part in side.magnitude_phase(z))
    inverse = side.istft(np.concatenate([z, z[..., -1:]], axis=-1), DENOISER_STFT)
    return {"mag": magnitude, "cos": cos, "sin": sin, "istft": inverse}


def recorded_rows(ladder: Ladder, side: Side, name: str) -> Iterator[Row]:
    """One backend against one recorded file: the two proofs."""
    truth = ladder.reference.arrays("float64", name)
    rounded = ladder.reference.arrays("float32", name) or {}
    for key, found in _cases(side, name, ladder).items():
        yield recorded_row(
            ladder, "features", f"{key}, {side.name}", side, found, (truth or {})[key], rounded.get(key)
        )


def recorded_row(
    ladder: Ladder,
    rung: str,
    case: str,
    side: Side,
    found: np.ndarray,
    truth: np.ndarray,
    rounded: np.ndarray | None,
) -> Row:
    """Against the float64 record: to 1e-9 in float64, within twice the published program's error in float32."""
    error = distance(found, truth)
    if side.dtype == "float64":
        return Row(rung, case, "recorded float64", error, ladder.bound("recorded", "float64"), "float64")
    own = distance(rounded, truth) if rounded is not None else float("nan")
    limit = published_bound(ladder, "features peak" if rung == "features" else rung, own)
    note = f"published program: {own:.1e}"
    return Row(rung, case, "recorded float64", error, limit, ladder.label("float32"), note)


def published_bound(ladder: Ladder, rung: str, own: float) -> float:
    """Twice the published program's own float32 error; the table's bound where faster arithmetic was asked for."""
    return (
        FACTOR_OF_PUBLISHED * own if ladder.label("float32") == "float32" else ladder.bound(rung, "float32")
    )


def _framework_free(ladder: Ladder) -> Iterator[Finding]:
    """Mixing and joining, which `parivox` does for both backends."""
    limit = ladder.bound("recorded", "float64")
    recorded = ladder.reference.arrays("float64", "mix")
    if recorded is None:
        yield Skipped("features", f"mix.npz is not in {ladder.reference.folder}")
    else:
        fg, bg = (ladder.reference.signal(k, 3, 8000).astype(np.float64) for k in (5, 6))
        for key, alpha in (("a02", 0.2), ("a08", 0.8)):
            yield Row(
                "features",
                f"mix {alpha}",
                "recorded float64",
                distance(mix(fg, bg, alpha), recorded[key]),
                limit,
                "float64",
            )
    recorded = ladder.reference.arrays("float64", "merge")
    if recorded is None:
        yield Skipped("features", f"merge.npz is not in {ladder.reference.folder}")
        return
    x = ladder.reference.signal(7, 1, 3 * SAMPLE_RATE)[0].astype(np.float64)
    chunks = [x[start : start + CHUNK] for start in range(0, len(x) - (CHUNK - HOP), HOP)]
    chunks[1] = np.roll(chunks[1], 441)
    joined = join_chunks(chunks, HOP, CHUNK - HOP)[: len(x)]
    yield Row(
        "features",
        "joined chunks",
        "recorded float64",
        distance(joined, recorded["merged"]),
        limit,
        "float64",
    )
    shift = -alignment_shift(chunks[0][HOP:], chunks[1][: CHUNK - HOP])
    yield Row(
        "features", "offset of a chunk", "recorded", abs(shift - int(recorded["offset"])), 0.0, "", "samples"
    )
