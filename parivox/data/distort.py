"""What rooms, microphones and telephones do to a recording: a random ordered subset of six effects."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from parivox.audio import peak_normalize
from parivox.data import filters, rooms
from parivox.data.crop import Skips, draw
from parivox.data.index import ClipPool

EFFECT_PROB = 0.5
"""Chance of each effect to be in the subset."""

NOISE_ALPHA = (0.8, 1.0)
OVERDRIVE_GAIN = (5.0, 40.0)  # dB
OVERDRIVE_COLOUR = (20.0, 80.0)
EQ_FREQ, EQ_Q, EQ_GAIN = (100.0, 4000.0), (1.0, 5.0), (-30.0, 30.0)  # Hz, -, dB
LOW_PASS_FREQ, LOW_PASS_Q = (2000.0, 16_000.0), math.sqrt(0.5)  # Hz; Butterworth
BAND_PASS_FREQ, BAND_PASS_Q = (500.0, 4000.0), (0.3, 1.0)  # Hz
REVERB_DECAY, REVERB_WET, REVERB_DELAY = (0.1, 1.0), (0.1, 0.7), (0.0, 0.03)  # s, amplitude, s

FIXED_REVERB = {"decay": 0.5, "wet": 0.4, "delay": 0.01}
"""The reverb of validation; its tail is drawn from generator 0."""

Signal = Float[np.ndarray, " t"]
Effect = Callable[[Signal, np.random.Generator, Skips], Signal]


@dataclass(frozen=True)
class Distorter:
    """Applies each of six effects with probability 1/2, in random order.

    The effects: a recorded room, reverb, Gaussian noise, overdrive, peaking EQ, low-pass or band-pass.
    They are computed in float64 and peak-normalised after each, so that nothing grows without bound. None
    of them delays the signal.

    Attributes:
        rate: Hz.
        rooms: impulse responses.
        fixed: validation: always the first room and one reverb; the other draws stay the record's own.
    """

    rate: int
    rooms: ClipPool
    fixed: bool = False

    def __call__(self, wav: Signal, rng: np.random.Generator, skips: Skips) -> Signal:
        """A distorted, peak-normalised copy, in the dtype of `wav`; silence stays silence.

        Args:
            wav: (t,) samples.
            rng: the record's generator.
            skips: gets each impulse response that did not decode.

        Raises:
            DataError: no impulse response decodes.
        """
        used = rng.random(len(EFFECTS)) < EFFECT_PROB
        out = wav.astype(np.float64)
        for k in rng.permutation(len(EFFECTS)):
            # Silence has nothing to distort, and normalising would blow up the traces of an effect.
            if used[k] and np.abs(out).max() > 0:
                out = peak_normalize(EFFECTS[k](self, out, rng, skips))
        return out.astype(wav.dtype)

    def room(self, wav: Signal, rng: np.random.Generator, skips: Skips) -> Signal:
        """Convolve with a recorded impulse response."""
        first = self.rooms.files[0] if self.fixed else None
        response, _ = draw(self.rooms, first, rng, skips, lambda path: rooms.load_room(path, self.rate))
        return rooms.convolve(wav, response)

    def reverb(self, wav: Signal, rng: np.random.Generator, skips: Skips) -> Signal:
        """Add an artificial diffuse tail."""
        if self.fixed:
            return rooms.reverb(wav, np.random.default_rng(0), self.rate, **FIXED_REVERB)
        decay, wet, delay = (rng.uniform(*limits) for limits in (REVERB_DECAY, REVERB_WET, REVERB_DELAY))
        return rooms.reverb(wav, rng, self.rate, decay, wet, delay)

    def noise(self, wav: Signal, rng: np.random.Generator, skips: Skips) -> Signal:
        """Add white noise: a * x + (1 - a) * noise of the same energy, 12 dB at a = 0.8, clean at 1."""
        alpha = rng.uniform(*NOISE_ALPHA)
        hiss = rng.standard_normal(wav.shape)
        hiss *= np.sqrt(np.square(wav).sum() / np.square(hiss).sum())
        return alpha * wav + (1 - alpha) * hiss

    def overdrive(self, wav: Signal, rng: np.random.Generator, skips: Skips) -> Signal:
        """Drive a soft clipper."""
        gain, colour = rng.uniform(*OVERDRIVE_GAIN), rng.uniform(*OVERDRIVE_COLOUR)
        return filters.overdrive(peak_normalize(wav), gain, colour)

    def equalizer(self, wav: Signal, rng: np.random.Generator, skips: Skips) -> Signal:
        """Raise or lower one band."""
        freq, q, gain = log_uniform(EQ_FREQ, rng), rng.uniform(*EQ_Q), rng.uniform(*EQ_GAIN)
        return filters.apply(filters.peaking(freq, q, gain, self.rate), wav)

    def band_limit(self, wav: Signal, rng: np.random.Generator, skips: Skips) -> Signal:
        """A low-pass, or just as often a band-pass."""
        if rng.random() < 0.5:
            section = filters.low_pass(log_uniform(LOW_PASS_FREQ, rng), LOW_PASS_Q, self.rate)
        else:
            freq, q = log_uniform(BAND_PASS_FREQ, rng), rng.uniform(*BAND_PASS_Q)
            section = filters.band_pass(freq, q, self.rate)
        return filters.apply(section, wav)


EFFECTS = (
    Distorter.room,
    Distorter.reverb,
    Distorter.noise,
    Distorter.overdrive,
    Distorter.equalizer,
    Distorter.band_limit,
)


def log_uniform(limits: tuple[float, float], rng: np.random.Generator) -> float:
    """A frequency between two, every octave equally likely."""
    return math.exp(rng.uniform(math.log(limits[0]), math.log(limits[1])))
