"""Speech-like voices from a source-filter model: nothing is recorded, nothing is copied.

Glottal pulses with a gliding pitch, or noise, go through five resonators that move from vowel to vowel, in
syllables, with fricatives and pauses between them (G. Fant, Acoustic Theory of Speech Production, 1960).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy import signal

VOWELS = {
    "i": (270, 2290, 3010),
    "e": (530, 1840, 2480),
    "a": (730, 1090, 2440),
    "o": (570, 840, 2410),
    "u": (300, 870, 2240),
    "er": (490, 1350, 1690),
}
"""Mean formants of men in Hz (G. Peterson and H. Barney, JASA 24, 1952)."""

UPPER_FORMANTS = (3500.0, 4500.0)  # Hz, the same for all vowels
BANDWIDTHS = (60.0, 90.0, 130.0, 250.0, 300.0)  # Hz
FRAME = 220  # samples (5 ms) between two settings of the resonators
RAMP = 0.012  # seconds in which a sound swells and fades

Wave = Float[np.ndarray, " t"]


@dataclass(frozen=True)
class Speaker:
    """A voice: mean pitch in Hz, vocal tract scale (1 is a man), share of breath noise."""

    pitch: float
    tract: float
    breath: float


def draw_speaker(rng: np.random.Generator) -> Speaker:
    """A man, woman or child at random."""
    pitch = float(np.exp(rng.uniform(np.log(90), np.log(260))))
    return Speaker(pitch, 0.95 + 0.25 * (pitch - 90) / 170, rng.uniform(0.005, 0.03))


def speak(speaker: Speaker, seconds: float, rate: int, rng: np.random.Generator) -> Wave:
    """Babble syllables for some seconds.

    Returns:
        (t,) float64, peak 0.7, with a little silence at both ends.
    """
    pieces, time = [np.zeros(round(0.05 * rate))], 0.05
    vowels, vowel = list(VOWELS), "a"
    while time < seconds - 0.4:
        phrase = int(rng.integers(3, 7))
        for k in range(phrase):
            if rng.random() < 0.55:
                pieces.append(fricative(rate, rng))
            following = vowels[int(rng.integers(len(vowels)))]
            fall = 1.12 - 0.25 * k / phrase  # pitch falls along a phrase
            pieces.append(syllable(speaker, vowel, following, fall, rate, rng))
            vowel = following
        pieces.append(np.zeros(round(rng.uniform(0.12, 0.35) * rate)))
        time = sum(map(len, pieces)) / rate
    wav = np.concatenate(pieces)[: round(seconds * rate)]
    wav = fade(np.pad(wav, (0, round(seconds * rate) - len(wav))), round(0.02 * rate))
    return 0.7 * wav / np.abs(wav).max()


def syllable(
    speaker: Speaker, vowel: str, following: str, fall: float, rate: int, rng: np.random.Generator
) -> Wave:
    """A voiced stretch of 130 to 280 ms that glides from one vowel to the next."""
    count = round(rng.uniform(0.13, 0.28) * rate)
    place = np.linspace(0, 1, count)
    tremor = 0.01 * np.sin(2 * np.pi * (5.5 * place * count / rate + rng.random()))
    drift = rng.uniform(-0.12, 0.12) * place + tremor
    source = pulses(speaker.pitch * fall * (1 + drift), rate)
    # The pulse's spectrum falls by 12 dB an octave, the lips give 6 dB back.
    source = signal.lfilter([1.0], [1.0, -0.97], source) + speaker.breath * rng.standard_normal(count)
    begin, end = (speaker.tract * np.array([*VOWELS[name], *UPPER_FORMANTS]) for name in (vowel, following))
    glide = 1 / (1 + np.exp(-12 * (place[::FRAME] - 0.5)))
    formants = begin + (end - begin) * glide[:, None]
    wav = resonate(source, formants, rate)
    return fade(wav / np.abs(wav).max() * rng.uniform(0.6, 1.0), round(RAMP * rate))


def pulses(pitch: Wave, rate: int) -> Wave:
    """Unit pulses at the instants where the phase of `pitch` (Hz, one value a sample) passes a whole number.

    Each is shared by its two neighbouring samples, so that the pitch is not rounded to whole periods.
    """
    phase = np.cumsum(pitch) / rate
    at = np.flatnonzero(np.diff(np.floor(phase), prepend=0.0)).astype(np.int64)
    late = (phase[at] % 1.0) * rate / pitch[at]  # samples since the phase passed
    out = np.zeros_like(pitch)
    np.add.at(out, at, 1 - late.clip(0, 1))
    np.add.at(out, np.maximum(at - 1, 0), late.clip(0, 1))
    return out


def resonate(source: Wave, formants: Float[np.ndarray, "n k"], rate: int) -> Wave:
    """Pass a source through five two-pole resonators in cascade, set anew for each 5 ms frame.

    Each has unit gain at 0 Hz (D. Klatt, JASA 67, 1980).
    """
    out = np.empty_like(source)
    state = np.zeros((len(BANDWIDTHS), 2))
    radius = np.exp(-np.pi * np.array(BANDWIDTHS) / rate)
    for k, row in enumerate(formants):
        b = 2 * radius * np.cos(2 * np.pi * row / rate)
        a = 1 - b + radius**2
        zero = np.zeros_like(a)
        sections = np.stack([a, zero, zero, zero + 1, -b, radius**2], axis=1)
        span = slice(k * FRAME, (k + 1) * FRAME)
        out[span], state = signal.sosfilt(sections, source[span], zi=state)
    return out


def fricative(rate: int, rng: np.random.Generator) -> Wave:
    """Unvoiced noise of 50 to 130 ms around 2.5 to 7 kHz, softer than a vowel."""
    noise = rng.standard_normal(round(rng.uniform(0.05, 0.13) * rate))
    centre = rng.uniform(2500, 7000)
    wav = band(noise, 0.7 * centre, 1.4 * centre, rate)
    return fade(wav / np.abs(wav).max() * rng.uniform(0.15, 0.4), round(RAMP * rate))


def band(wav: Wave, low: float, high: float, rate: int) -> Wave:
    """Second-order Butterworth band-pass between two frequencies in Hz."""
    sections = signal.butter(2, (low, high), "bandpass", fs=rate, output="sos")
    return np.asarray(signal.sosfilt(sections, wav))


def fade(wav: Wave, samples: int) -> Wave:
    """Raised-cosine ramps of `samples` at both ends."""
    ramp = 0.5 - 0.5 * np.cos(np.pi * (np.arange(samples) + 0.5) / samples)
    out = wav.copy()
    out[:samples] *= ramp
    out[-samples:] *= ramp[::-1]
    return out
