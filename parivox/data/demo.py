"""Demo data made by this program: voices, noises and rooms, small and always the same."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
from jaxtyping import Float

from parivox.atomic import replacing
from parivox.audio import write_audio
from parivox.data.rooms import ARRAY_RATE, DECAY
from parivox.data.voice import band, draw_speaker, fade, speak
from parivox.errors import DataError

RATE = 44_100
SPEAKERS, CLIPS = 5, 4  # clips of each speaker
NOISE_SECONDS = 5.0
ROOMS = {"booth": 0.15, "office": 0.35, "hall": 0.9}
"""Name -> reverberation time in seconds."""

OTHER_FORMS = {"speaker2/clip1": ("ogg", RATE), "speaker4/clip2": ("wav", 48_000)}
"""Clips that are not flac at 44.1 kHz, as in a real folder."""

Wave = Float[np.ndarray, " t"]


def make_demo_data(folder: str | Path) -> Path:
    """Write `folder/fg` (20 clips of 2 to 4 s), `folder/bg` (5 noises) and `folder/rir` (3 rooms).

    Every file depends on its name alone, so that all calls make the same samples; what exists is kept, and
    a call that was stopped is completed by the next.

    Returns:
        The folder.

    Raises:
        AudioError, DataError: a file cannot be written.
    """
    folder = Path(folder)
    try:
        for name in ("bg", "rir", *(f"fg/speaker{k}" for k in range(SPEAKERS))):
            (folder / name).mkdir(parents=True, exist_ok=True)
        for name, decay in ROOMS.items():
            _write_room(folder / "rir" / f"{name}.npy", decay)
    except OSError as error:
        raise DataError(f"{folder}: cannot be written ({error.strerror}); choose another folder") from error
    for k in range(SPEAKERS):
        for clip in range(CLIPS):
            _write_voice(folder / "fg", f"speaker{k}", f"clip{clip}")
    for name, make in NOISES.items():
        _write(folder / "bg" / f"{name}.flac", RATE, make)
    return folder


def rain(rng: np.random.Generator) -> Wave:
    """Steady hiss with drops."""
    hiss = _band(rng.standard_normal(_count()), 800.0, 12_000.0)
    drops = np.where(rng.random(_count()) < 60 / RATE, rng.exponential(1.0, _count()), 0.0)
    return hiss / hiss.std() + 6 * _band(drops, 2000.0, 9000.0) / 0.15


def hum(rng: np.random.Generator) -> Wave:
    """Mains hum: 50 Hz and its harmonics, slowly changing, over a faint rumble."""
    time = np.arange(_count()) / RATE
    tones = [np.sin(2 * np.pi * (50 * h * time + rng.random())) / h**0.7 for h in range(1, 24)]
    swell = 1 + 0.2 * np.sin(2 * np.pi * (0.7 * time + rng.random()))
    return swell * np.sum(tones, axis=0) + 0.3 * _band(rng.standard_normal(_count()), 30.0, 300.0)


def babble(rng: np.random.Generator) -> Wave:
    """Eight voices at once, as through a wall: none can be followed, the highs are missing."""
    voices = [speak(draw_speaker(rng), NOISE_SECONDS, RATE, rng) for _ in range(8)]
    return _band(np.sum(voices, axis=0), 100.0, 2500.0)


def clicks(rng: np.random.Generator) -> Wave:
    """Keys and switches: short ringing bursts, a few a second, over a faint hiss."""
    out = 0.02 * rng.standard_normal(_count())
    ring = np.arange(round(0.03 * RATE)) / RATE
    for at in rng.integers(0, _count() - ring.size, size=round(9 * NOISE_SECONDS)):
        burst = rng.standard_normal(ring.size) + 2 * np.sin(2 * np.pi * rng.uniform(800, 4000) * ring)
        out[at : at + ring.size] += rng.uniform(0.3, 1) * burst * np.exp(-ring * rng.uniform(150, 500))
    return out


def wind(rng: np.random.Generator) -> Wave:
    """Low rumble in gusts."""
    gusts = np.interp(np.arange(_count()), np.linspace(0, _count(), 12), rng.uniform(0.2, 1, 12))
    return gusts * _band(rng.standard_normal(_count()), 40.0, 500.0)


NOISES = {"rain": rain, "hum": hum, "babble": babble, "clicks": clicks, "wind": wind}


def _write_voice(folder: Path, speaker: str, clip: str) -> None:
    suffix, rate = OTHER_FORMS.get(f"{speaker}/{clip}", ("flac", RATE))

    def voice(rng: np.random.Generator) -> Wave:
        return speak(draw_speaker(_generator(speaker)), rng.uniform(2.0, 4.0), rate, rng)

    _write(folder / speaker / f"{clip}.{suffix}", rate, voice)


def _write(path: Path, rate: int, make: Callable[[np.random.Generator], Wave]) -> None:
    if path.exists():
        return
    wav = fade(make(_generator(f"{path.parent.name}/{path.stem}")), round(0.005 * rate))
    write_audio(path, (0.7 * wav / np.abs(wav).max()).astype(np.float32)[None], rate)


def _write_room(path: Path, decay: float) -> None:
    """Direct sound, six early reflections and a tail that decays exponentially (Polack's model)."""
    if path.exists():
        return
    rng = _generator(f"rir/{path.stem}")
    time = np.arange(round(1.2 * decay * ARRAY_RATE)) / ARRAY_RATE
    wav = 0.05 * rng.standard_normal(time.size) * np.exp(-DECAY * time / decay)
    wav[: round(0.005 * ARRAY_RATE)] = 0
    early = rng.integers(round(0.002 * ARRAY_RATE), round(0.03 * ARRAY_RATE), size=6)
    wav[early] += rng.uniform(-0.4, 0.4, size=6)
    wav[0] = 1
    with replacing(path) as temporary, temporary.open("wb") as file:
        np.save(file, wav.astype(np.float32))


def _generator(name: str) -> np.random.Generator:
    digest = hashlib.blake2b(f"parivox demo 1: {name}".encode(), digest_size=8).digest()
    return np.random.default_rng(int.from_bytes(digest, "little"))


def _count() -> int:
    return round(NOISE_SECONDS * RATE)


def _band(wav: Wave, low: float, high: float) -> Wave:
    return band(wav, low, high, RATE)
