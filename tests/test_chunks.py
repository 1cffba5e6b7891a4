"""Chunks: split and join give the input back bit for bit, shifts are found, the published join is met."""

from __future__ import annotations

import hashlib
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from parivox.chunks import ChunkJoiner, alignment_shift, join_chunks, split_chunks

RATE = 44_100
STEP = RATE // 200
HOP, OVERLAP = 35_280, 8_820


def recorded_signal() -> np.ndarray:
    """The signal of the recorded join: the reference outputs' own rule for seed 27, 3 s (t,) float32."""
    length = 3 * RATE
    digest = hashlib.sha256(f"27:signal:1:{length}".encode()).digest()
    rng = np.random.Generator(np.random.PCG64(int.from_bytes(digest[:8], "little")))
    t = np.arange(length) / RATE
    pitch = rng.uniform(90, 240) * (1 + 0.15 * np.sin(2 * np.pi * rng.uniform(2, 5) * t + rng.uniform(0, 6)))
    phase = 2 * np.pi * np.cumsum(pitch) / RATE
    out = np.zeros(length)
    for harmonic in range(1, 40):
        out += np.cos(harmonic * phase + rng.uniform(0, 6)) * rng.uniform(0.2, 1.0) / harmonic
    out *= 0.5 + 0.5 * np.sin(2 * np.pi * rng.uniform(2, 6) * t + rng.uniform(0, 6))
    out += 0.05 * rng.standard_normal(length)
    gap = int(rng.uniform(0.1, 0.8) * length)
    out[gap : gap + length // 20] = 0.0
    return (out * (rng.uniform(0.1, 0.9) / np.abs(out).max())).astype(np.float32)


# What the published program makes of it in double precision, cut every 35,280 samples with the second
# chunk rolled by 441: every 4001st sample from 35,280 on, the energy, and a projection on a cosine.
RECORDED = [
    0.18839141726493835, 0.0, 0.0, 0.10794252902269363, -0.07923242449760437, 0.20971249043941498,
    0.047397322952747345, -0.175691619515419, 0.07092246413230896, 0.16924425367190327, -0.0360164480128196,
    0.25432455466709813, 0.04273749142885208, 0.07887192815542221, -0.032135892659425735,
    -0.11992891132831573, -0.017938267439603806, -0.24933761358261108, -0.020779046198231302,
    0.041750809165717453,
]  # fmt: skip
RECORDED_ENERGY, RECORDED_PROJECTION = 2851.2086707816757, 0.20226930464336146


@pytest.mark.parametrize(("dtype", "bound"), [(np.float64, 1e-12), (np.float32, 1e-6)])
def test_the_recorded_join_is_met(dtype, bound):
    chunks = [chunk.copy() for chunk in split_chunks(recorded_signal().astype(dtype), HOP, OVERLAP)]
    chunks[1] = np.roll(chunks[1], 441)
    shifts = [alignment_shift(a[-OVERLAP:], b[:OVERLAP]) for a, b in pairwise(chunks)]
    assert shifts == [0, 2 * STEP, 0]
    joined = join_chunks(chunks, HOP, OVERLAP)
    assert (joined.shape, joined.dtype) == ((3 * RATE,), dtype)
    np.testing.assert_allclose(joined[35_280:115_280:4001], RECORDED, rtol=0, atol=bound)
    joined = joined.astype(np.float64)
    np.testing.assert_allclose(np.sum(joined**2), RECORDED_ENERGY, rtol=bound)
    projection = np.sum(joined * np.cos(0.01 * np.arange(len(joined))))
    np.testing.assert_allclose(projection, RECORDED_PROJECTION, rtol=1e4 * bound)  # the sum cancels


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    "length",
    [1, OVERLAP, HOP, HOP + OVERLAP, HOP + OVERLAP + 1, 2 * HOP + OVERLAP, 2 * HOP + OVERLAP + 1, 132_300],
)
def test_split_and_join_give_the_input_back_bit_for_bit(length, dtype):
    rng = np.random.default_rng(length)
    wav = rng.standard_normal((2, length)).astype(dtype)
    joined = join_chunks(split_chunks(wav, HOP, OVERLAP), HOP, OVERLAP)
    assert joined.dtype == dtype
    np.testing.assert_array_equal(joined, wav)


@pytest.mark.parametrize("frequency", [50.0, 200.0, 220.5, 1000.0])
def test_a_steady_sound_is_not_shifted(frequency):
    # Here one shift correlates as well as another, but for the reflected ends.
    wav = np.sin(2 * np.pi * frequency * np.arange(120_000) / RATE)
    for sound in (wav, np.zeros_like(wav), np.ones_like(wav)):
        np.testing.assert_array_equal(join_chunks(split_chunks(sound, HOP, OVERLAP), HOP, OVERLAP), sound)


@settings(max_examples=40)
@given(length=st.integers(1, 4000), hop=st.integers(1, 600), share=st.integers(0, 100))
def test_any_sizes_cover_the_input_and_join_back(length, hop, share):
    overlap = hop * share // 100
    wav = np.random.default_rng(length).standard_normal(length)
    chunks = split_chunks(wav, hop, overlap)
    assert all(len(chunk) == hop + overlap for chunk in chunks[:-1])
    assert len(chunks) == 1 or overlap < len(chunks[-1]) <= hop + overlap
    np.testing.assert_array_equal(join_chunks(chunks, hop, overlap, rate=1600), wav)


@pytest.mark.parametrize("frames", [-8, -3, 0, 1, 5, 12])
def test_a_shift_is_found_to_the_step(frames):
    rng = np.random.default_rng(3)
    envelope = np.repeat(rng.uniform(0, 1, 80), 551)  # syllables of 12.5 ms
    sound = envelope * rng.standard_normal(len(envelope))
    earlier = sound[15_000 : 15_000 + OVERLAP]
    later = sound[15_000 + frames * STEP :][:OVERLAP]
    assert alignment_shift(earlier, later) == frames * STEP


def test_channels_move_together():
    rng = np.random.default_rng(4)
    sound = np.repeat(rng.uniform(0, 1, 80), 551) * rng.standard_normal(80 * 551)
    earlier, later = sound[15_000:][:OVERLAP], sound[15_000 + 4 * STEP :][:OVERLAP]
    quiet = 1e-3 * rng.standard_normal((1, OVERLAP))
    assert alignment_shift(np.stack([earlier, quiet[0]]), np.stack([later, quiet[0]])) == 4 * STEP


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_pushing_gives_the_same_samples_and_holds_two_chunks(dtype):
    rng = np.random.default_rng(6)
    envelope = np.repeat(rng.uniform(0, 1, 700), 551)
    wav = (envelope * rng.standard_normal((2, len(envelope)))).astype(dtype)
    chunks = [chunk.copy() for chunk in split_chunks(wav, HOP, OVERLAP)]
    for index, frames in enumerate([0, 3, -5, 8, 0, -9, 2]):
        chunks[index] = np.roll(chunks[index], frames * STEP, axis=-1)
    joiner = ChunkJoiner(HOP, OVERLAP)
    parts = []
    for index, chunk in enumerate(chunks):
        parts.append(joiner.push(chunk))
        given = sum(part.shape[-1] for part in parts)
        assert (index + 1) * HOP - OVERLAP <= given <= (index + 1) * HOP
    parts.append(joiner.finish())
    joined = np.concatenate(parts, axis=-1)
    assert joined.shape == wav.shape
    np.testing.assert_array_equal(joined, join_chunks(chunks, HOP, OVERLAP))
    np.testing.assert_allclose(
        joined, plain_join(chunks, wav.shape[-1]), rtol=0, atol=10 * np.finfo(dtype).eps
    )


def plain_join(chunks: list[np.ndarray], length: int) -> np.ndarray:
    """The definition, all in memory and in float64: every chunk times its fades, added at its start."""
    out = np.zeros((2, length + HOP + 2 * OVERLAP))
    rise = np.linspace(0, 1, OVERLAP)
    for index, chunk in enumerate(chunks):
        weight, start = np.ones(chunk.shape[-1]), index * HOP
        if index > 0:
            start += alignment_shift(chunks[index - 1][:, HOP:], chunk[:, :OVERLAP])
            weight[:OVERLAP] *= rise
        if index < len(chunks) - 1:
            weight[HOP:] *= rise[::-1]
        out[:, start : start + chunk.shape[-1]] += chunk * weight
    return out[:, :length]


def test_one_chunk_is_not_faded():
    wav = np.ones(HOP + OVERLAP)
    np.testing.assert_array_equal(join_chunks([wav], HOP, OVERLAP), wav)


def test_pushed_arrays_may_be_reused_by_the_caller():
    wav = np.random.default_rng(0).standard_normal(HOP * 3)
    joiner, parts = ChunkJoiner(HOP, OVERLAP), []
    for chunk in split_chunks(wav, HOP, OVERLAP):
        buffer = chunk.copy()
        parts.append(joiner.push(buffer))
        buffer[:] = np.nan
    np.testing.assert_array_equal(np.concatenate([*parts, joiner.finish()]), wav)


def test_wrong_sizes_are_named():
    for hop, overlap in [(0, 0), (10, 11), (10, -1)]:
        with pytest.raises(ValueError, match="do not fit"):
            ChunkJoiner(hop, overlap)
        with pytest.raises(ValueError, match="do not fit"):
            split_chunks(np.zeros(100), hop, overlap)
    with pytest.raises(ValueError, match="no chunks"):
        join_chunks([], 10, 5)
    for chunks in ([16], [0], [14, 15]):
        with pytest.raises(ValueError, match="samples"):
            join_chunks([np.zeros(size) for size in chunks], 10, 5)
