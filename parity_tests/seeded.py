"""Weights, signals and noise that any process rebuilds from a seed and a name.

Recorded reference outputs were made from these, so the recipe is fixed to the last bit: NumPy's PCG64, keyed by
the first 8 bytes of SHA-256 of "seed:name", and the order of the draws below.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float

from parivox.features import SAMPLE_RATE

COMPUTED = (
    "dummy",
    "stft_magnitude_min",
    "spectrogram.window",
    "mel_scale.fb",
    "upsample.filter",
    "lowpass.filter",
)
"""Ends of the names of tensors that a module computes for itself; none is drawn."""


def _generator(seed: int, name: str) -> np.random.Generator:
    key = int.from_bytes(hashlib.sha256(f"{seed}:{name}".encode()).digest()[:8], "little")
    return np.random.Generator(np.random.PCG64(key))


def tensor(seed: int, name: str, shape: Sequence[int]) -> np.ndarray:
    """One float32 tensor; its name says what it is, and that its scale."""
    draw = _generator(seed, name)
    shape = tuple(shape)
    if name.endswith("running_mean_unsafe"):
        values = np.full(shape, 0.25)
    elif name.endswith("running_var_unsafe"):
        values = np.full(shape, 0.04)
    elif name.endswith("weight.original0"):
        values = draw.uniform(0.6, 1.0, shape)
    elif name.endswith(("log_alpha", "log_beta")):
        values = 0.3 * draw.standard_normal(shape)
    elif len(shape) > 1:
        values = draw.standard_normal(shape) / np.sqrt(int(np.prod(shape[1:])))
    else:
        values = 0.1 * draw.standard_normal(shape) + (1.0 if name.endswith("weight") else 0.0)
    return values.astype(np.float32)


def weights(manifest: Mapping[str, Sequence[int]], seed: int) -> dict[str, np.ndarray]:
    """All drawn tensors of a manifest (name -> shape), float32."""
    return {
        name: tensor(seed, name, shape) for name, shape in manifest.items() if not name.endswith(COMPUTED)
    }


def noise(seed: int, name: str, shape: Sequence[int], kind: str = "normal") -> np.ndarray:
    """float32 noise by name: standard normal, or uniform on [0, 1)."""
    draw = _generator(seed, f"noise:{name}")
    values = draw.standard_normal(tuple(shape)) if kind == "normal" else draw.uniform(size=tuple(shape))
    return values.astype(np.float32)


def signal(seed: int, batch: int, length: int) -> Float[np.ndarray, "b t"]:
    """(batch, length) float32, like speech: gliding harmonics, syllables, some noise and a silent gap."""
    draw = _generator(seed, f"signal:{batch}:{length}")
    time = np.arange(length) / SAMPLE_RATE
    rows = []
    for _ in range(batch):
        base = draw.uniform(90, 240)
        pitch = base * (1 + 0.15 * np.sin(2 * np.pi * draw.uniform(2, 5) * time + draw.uniform(0, 6)))
        phase = 2 * np.pi * np.cumsum(pitch) / SAMPLE_RATE
        row = np.zeros(length)
        for harmonic in range(1, 40):
            shift = draw.uniform(0, 6)
            row += np.cos(harmonic * phase + shift) * draw.uniform(0.2, 1.0) / harmonic
        syllables = 0.5 + 0.5 * np.sin(2 * np.pi * draw.uniform(2, 6) * time + draw.uniform(0, 6))
        row = row * syllables + 0.05 * draw.standard_normal(length)
        gap = int(draw.uniform(0.1, 0.8) * length)
        row[gap : gap + length // 20] = 0
        rows.append(row * (draw.uniform(0.1, 0.9) / np.abs(row).max()))
    return np.stack(rows).astype(np.float32)
