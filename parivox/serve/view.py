"""One sound as a piece of the page: player, spectrogram and levels, as HTML that is readable on a phone.

The picture is part of the HTML and lies in no file. Its axes are text of the page, so that they keep their size and
take the colours of light and dark.
"""

from __future__ import annotations

import base64
import math
from dataclasses import dataclass
from html import escape
from pathlib import Path
from urllib.parse import quote

import numpy as np
from jaxtyping import Float

from parivox.audio import read_audio
from parivox.plots import magnitude_spectrogram, strip_png
from parivox.serve.levels import Levels, measure
from parivox.serve.limits import duration

FILE_ROUTE = "gradio_api/file="
"""Relative to the page, so that it works below any path of a proxy too."""

NICE = (1, 2, 2.5, 5, 10)


@dataclass(frozen=True)
class Sound:
    """What is shown of a recording.

    Attributes:
        path: the file.
        rate: in Hz.
        channels: number of channels.
        seconds: length.
        levels: how loud it is.
        magnitudes: spectrogram, root mean square over the channels.
    """

    path: Path
    rate: int
    channels: int
    seconds: float
    levels: Levels
    magnitudes: Float[np.ndarray, "f n"]

    @property
    def loudest(self) -> float:
        """The largest magnitude."""
        return float(self.magnitudes.max())


def look_at(path: Path) -> Sound:
    """Measure a recording.

    Raises:
        AudioError: it cannot be read.
    """
    wav, rate = read_audio(path)
    powers = [np.square(magnitude_spectrogram(row, rate)[0]) for row in wav]
    magnitudes = np.sqrt(np.mean(powers, axis=0))
    return Sound(path, rate, len(wav), wav.shape[1] / rate, measure(wav, rate), magnitudes)


def row_html(title: str, sound: Sound, before: Sound, remarks: list[str] | None = None) -> str:
    """A row of the page.

    Args:
        title: its heading.
        sound: what it shows.
        before: the recording it was made of; the colours and the changes of level refer to it.
        remarks: sentences to add.
    """
    channels = {1: "mono", 2: "stereo"}.get(sound.channels, f"{sound.channels} channels")
    facts = f"{duration(sound.seconds)} · {sound.rate / 1000:g} kHz · {channels}"
    notes = "".join(f'<p class="pv-note">{escape(remark)}</p>' for remark in remarks or ())
    source = escape(FILE_ROUTE + quote(str(sound.path)))
    return (
        f'<section class="pv-row"><header><h2>{escape(title)}</h2><span>{facts}</span></header>'
        f'<audio controls preload="metadata" src="{source}" aria-label="{escape(title)}"></audio>'
        f"{_figure(title, sound, before.loudest)}{_levels(sound.levels, None if sound is before else before.levels)}"
        f"{notes}</section>"
    )


def _figure(title: str, sound: Sound, loudest: float) -> str:
    picture = base64.b64encode(strip_png(sound.magnitudes, loudest)).decode()
    top = sound.rate / 2000
    heights = _ticks(top, 4)
    kilohertz = "".join(
        f'<span style="bottom:{100 * value / top:.2f}%">{value:g}{" kHz" * (value == heights[-1])}</span>'
        for value in heights
    )
    seconds = "".join(
        f'<span style="left:{100 * value / sound.seconds:.2f}%">{value:g}</span>'
        for value in _ticks(sound.seconds, 5)
    )
    return (
        f'<div class="pv-figure"><div class="pv-kilohertz" aria-hidden="true">{kilohertz}</div>'
        f'<img alt="Spectrogram, {escape(title)}: 0 to {top:g} kHz over {duration(sound.seconds)}"'
        f' src="data:image/png;base64,{picture}">'
        f'<div class="pv-seconds" aria-hidden="true">{seconds}</div></div>'
    )


def _ticks(top: float, count: int) -> list[float]:
    """Round numbers from 0 on, about `count` steps, none so close to the end that its label would stick out."""
    rough = top / count
    unit = 10 ** math.floor(math.log10(rough))
    step = next(unit * nice for nice in NICE if unit * nice >= rough)
    return [float(f"{index * step:.6g}") for index in range(math.floor(0.94 * top / step) + 1)]


def _levels(levels: Levels, before: Levels | None) -> str:
    cells = [
        _level("Peak", "dBFS", levels.peak, before.peak if before else None),
        _level("RMS", "dBFS", levels.rms, before.rms if before else None),
        _level("Loudness", "LUFS", levels.loudness, before.loudness if before else None),
    ]
    return f'<dl class="pv-levels">{"".join(cells)}</dl>'


def _level(name: str, unit: str, value: float | None, before: float | None) -> str:
    if value is None:
        text = "too short or silent" if unit == "LUFS" else "silent"
        return f"<div><dt>{name}, {unit}</dt><dd>{text}</dd></div>"
    change = "" if before is None else f" <small>{_signed(value - before)} dB</small>"
    return f"<div><dt>{name}, {unit}</dt><dd>{_minus(f'{value:.1f}')}{change}</dd></div>"


def _signed(value: float) -> str:
    return _minus(f"{value:+.1f}" if abs(value) >= 0.05 else "±0")


def _minus(text: str) -> str:
    """With the typographer's minus, as long as the plus."""
    return text.replace("-", "\N{MINUS SIGN}")
