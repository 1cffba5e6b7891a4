"""Checks of sound that a program hands over as arrays; whatever is wrong is one `AudioError` line."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from parivox.audio_formats import MAX_RATE
from parivox.errors import AudioError

MANY_CHANNELS = 32
"""More channels than this, and more than samples, are taken for an array that lies on its side."""


def checked_wav(wav: object, what: str = "wav") -> Float[np.ndarray, "c t"]:
    """Samples as float32 rows.

    Args:
        wav: floating-point samples (t,) or (channels, t); t may be 0.
        what: how a message calls them.

    Raises:
        AudioError: another dtype or shape, or a sample that is NaN or infinite.
    """
    array = np.asarray(wav)
    if not np.issubdtype(array.dtype, np.floating):
        bits = 8 * array.dtype.itemsize - 1
        cure = f": wav.astype('float32') / 2**{bits}" if np.issubdtype(array.dtype, np.signedinteger) else ""
        raise AudioError(f"{what} is of {array.dtype}; give floats with full scale -1 to 1{cure}")
    if array.ndim not in (1, 2) or array.shape[0] == 0 < array.ndim - 1:
        raise AudioError(f"{what} has the shape {array.shape}; give (t,) or (channels, t)")
    rows = np.atleast_2d(array)
    channels, length = rows.shape
    if channels > max(MANY_CHANNELS, length):
        raise AudioError(
            f"{what} has {channels} channels of {length} samples; give (channels, t), such as wav.T"
        )
    with np.errstate(over="ignore"):
        rows = rows.astype(np.float32, copy=False)
    if not np.isfinite(rows).all():
        channel, sample = np.argwhere(~np.isfinite(rows))[0]
        raise AudioError(
            f"{what} is NaN or infinite at sample {sample} of channel {channel}; replace it, with numpy.nan_to_num"
            " for instance"
        )
    return rows


def checked_rate(rate: object) -> int:
    """A sample rate in Hz.

    Raises:
        AudioError: it is no whole number from 1 to 768,000.
    """
    if not isinstance(rate, (int, np.integer)) or isinstance(rate, bool) or not 0 < rate <= MAX_RATE:
        raise AudioError(f"the sample rate is {rate!r}; give a whole number of Hz, 1 to {MAX_RATE}")
    return int(rate)
