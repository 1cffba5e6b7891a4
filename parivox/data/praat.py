"""Praat's "Change gender" as an augmentation; needs the extra `parivox[praat]`."""

from __future__ import annotations

import threading
import warnings
from importlib.util import find_spec

import numpy as np
from jaxtyping import Float

from parivox.errors import ConfigError

PITCH_FLOOR, PITCH_CEILING = 75, 600  # Hz
FORMANT_SHIFT = (1.1, 1.5)
PITCH_RANGE = (0.5, 2.0)

SHORTEST = 3 / PITCH_FLOOR
"""Seconds: Praat finds pitch only in a sound of at least three periods."""

_lock = threading.Lock()


def require_praat(prob: float) -> None:
    """Check that Praat is there when an augmentation asks for it.

    Raises:
        ConfigError: it is not, and `prob` is above 0.
    """
    if prob > 0 and find_spec("parselmouth") is None:
        raise ConfigError(
            f"praat_augment_prob is {prob} but Praat is missing; run: pip install 'parivox[praat]'"
        )


def change_gender(
    wav: Float[np.ndarray, " t"], rate: int, rng: np.random.Generator
) -> Float[np.ndarray, " t"]:
    """Shift the formants up by 1.1 to 1.5 and stretch the pitch range by 0.5 to 2.

    Praat draws random numbers in its resynthesis; it is seeded from `rng`, so that the result is a
    function of the generator.

    Args:
        wav: (t,) speech; silence and sounds below 40 ms are returned as they are.
        rate: Hz.
        rng: the record's generator.

    Returns:
        (t,) of the same length and dtype, not normalised.

    Raises:
        ConfigError: the extra is missing.
    """
    require_praat(1.0)
    import parselmouth
    from parselmouth import praat

    shift, pitch_range = rng.uniform(*FORMANT_SHIFT), rng.uniform(*PITCH_RANGE)
    seed = int(rng.integers(1 << 31))
    if wav.shape[-1] <= SHORTEST * rate or not np.abs(wav).max() > 0:
        return wav
    # The generator of Praat is one for the process: seeding and use must not be interleaved.
    with _lock, warnings.catch_warnings():
        warnings.simplefilter("ignore", parselmouth.PraatWarning)  # "no voiced segments": harmless here
        praat.run(f"random_initializeWithSeedUnsafelyButPredictably ({seed})")
        sound = parselmouth.Sound(wav.astype(np.float64), rate)
        # Median pitch 0 keeps the speaker's own; duration factor 1 keeps the length.
        made = praat.call(sound, "Change gender", PITCH_FLOOR, PITCH_CEILING, shift, 0, pitch_range, 1)
    out = made.values[0][: wav.shape[-1]]
    return np.pad(out, (0, wav.shape[-1] - out.shape[-1])).astype(wav.dtype)
