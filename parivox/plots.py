"""Pictures for reports, evaluation steps and documentation: spectrograms, waveforms and curves as PNG.

Everything is drawn with matplotlib's object interface on the Agg canvas: no window, no global state, safe
in any thread. matplotlib is imported inside the functions, so that a command that draws nothing starts fast.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from parivox.atomic import replacing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FLOOR_DB = -80.0
"""Bottom of the colour scale, dB below the loudest bin of all panels."""

DIFFERENCE_RANGE_DB = 60.0
"""Height of the colour scale of a difference, dB."""

SILENCE = 1e-12
"""Magnitudes below this are drawn as this; 240 dB below full scale, under float32's own rounding."""

WIDTH = 10.0
"""Inches; with `DPI`, 1,200 pixels."""

STRIP_HEIGHT = 2.2
"""Inches of a spectrogram without words."""

DPI = 120
WINDOW = 2048
"""Samples of the spectrogram's Hann window."""

MAX_COLUMNS = 2000
"""Frames in one spectrogram. Longer recordings are drawn with a larger hop."""

MAX_BARS = 40
"""Numbers that are drawn as bars; more are drawn as a histogram."""

MAX_NAME = 40
"""Characters of a name beside its bar."""

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
"""The colours of Okabe and Ito (2008), told apart by colour-blind readers."""

Panels = Sequence[tuple[str, Float[np.ndarray, "_"]]]
"""(title, samples) for each panel, from top to bottom."""


def magnitude_spectrogram(wav: Float[np.ndarray, "t"], rate: int) -> tuple[Float[np.ndarray, "f n"], float]:
    """Short-time magnitudes for a picture; 1.0 is a sine of full scale.

    Args:
        wav: samples; anything shorter than a window is padded with zeros.
        rate: samples a second.

    Returns:
        Magnitudes with frequency from 0 to rate / 2, and the seconds between columns.

    Raises:
        ValueError: no samples, or a sample is NaN or infinite.
    """
    from scipy.signal import ShortTimeFFT
    from scipy.signal.windows import hann

    if wav.size == 0:
        raise ValueError("there are no samples to draw")
    if not np.isfinite(wav).all():
        raise ValueError("a sample is NaN or infinite")
    padded = np.pad(wav, (0, max(0, WINDOW - wav.size)))
    hop = max(WINDOW // 4, -(-padded.size // MAX_COLUMNS))
    window = hann(WINDOW, sym=False)
    stft = ShortTimeFFT(window * (2 / window.sum()), hop=hop, fs=rate)
    return np.abs(stft.stft(padded, p0=0, p1=-(-padded.size // hop))), hop / rate


def spectrogram_png(panels: Panels, rate: int, path: Path | None = None) -> bytes:
    """Spectrograms above each other on one colour scale and one time axis.

    Args:
        panels: title and samples (t,) of each; lengths may differ.
        rate: samples a second of all of them.
        path: where to write the picture as well.

    Returns:
        The picture as PNG.

    Raises:
        ValueError: no panel, no samples, or a sample that is not finite.
        OSError: `path` cannot be written.
    """
    figure, axes = _figure(len(panels), height=2.3)
    spectra = _spectra(panels, rate)
    loudest = max(float(magnitudes.max()) for magnitudes, _ in spectra)
    for ax, (title, _), (magnitudes, step) in zip(axes, panels, spectra, strict=True):
        _draw_spectrogram(ax, title, _decibels(magnitudes, loudest), step, rate, FLOOR_DB, 0.0)
    axes[-1].set_xlabel("time, s")
    figure.colorbar(
        axes[0].images[0], ax=axes, label="dB, 0 is the loudest bin", pad=0.015, aspect=12 * len(panels)
    )
    return _finish(figure, path)


def strip_png(magnitudes: Float[np.ndarray, "f n"], loudest: float) -> bytes:
    """A spectrogram without frame or words, for a page that writes the axes itself, readable at any width.

    Args:
        magnitudes: as `magnitude_spectrogram` gives them.
        loudest: the magnitude at the top of the colour scale.

    Returns:
        The picture as PNG.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, STRIP_HEIGHT), dpi=DPI)
    FigureCanvasAgg(figure)
    ax = figure.add_axes((0, 0, 1, 1))
    ax.set_axis_off()
    decibels = _decibels(magnitudes, loudest)
    ax.imshow(decibels, origin="lower", aspect="auto", cmap="magma", vmin=FLOOR_DB, vmax=0.0)
    return _finish(figure, None)


def difference_png(
    first: tuple[str, Float[np.ndarray, "_"]],
    second: tuple[str, Float[np.ndarray, "_"]],
    rate: int,
    path: Path | None = None,
) -> bytes:
    """Two signals and the spectrogram of their difference, which has a colour scale of its own.

    All three are in dB relative to the loudest bin of the two signals, so the third scale says how far
    below the sound the difference lies.

    Args:
        first: title and samples (t,).
        second: title and samples (t,), of the same length.
        rate: samples a second of both.
        path: where to write the picture as well.

    Returns:
        The picture as PNG.

    Raises:
        ValueError: the lengths differ, there are no samples, or a sample is not finite.
        OSError: `path` cannot be written.
    """
    if first[1].shape != second[1].shape:
        raise ValueError(f"'{first[0]}' has {first[1].size} samples, but '{second[0]}' has {second[1].size}")
    error = np.subtract(first[1], second[1], dtype=np.float64)
    titles = (first[0], second[0], f"Difference ({_peak_ratio(error, first[1], second[1])})")
    spectra = _spectra(tuple(zip(titles, (first[1], second[1], error), strict=True)), rate)
    loudest = max(float(magnitudes.max()) for magnitudes, _ in spectra[:2])
    # Equal signals: a scale on which their difference is dark.
    top = np.ceil(_decibels(spectra[2][0], loudest).max() / 10) * 10 if error.any() else 0.0
    figure, axes = _figure(3, height=2.3)
    for ax, title, (magnitudes, step) in zip(axes, titles, spectra, strict=True):
        low, high = (top - DIFFERENCE_RANGE_DB, top) if ax is axes[2] else (FLOOR_DB, 0.0)
        image = _draw_spectrogram(ax, title, _decibels(magnitudes, loudest), step, rate, low, high)
        figure.colorbar(image, ax=ax, label="dB", pad=0.015, aspect=12)
    axes[-1].set_xlabel("time, s")
    return _finish(figure, path)


def waveforms_png(panels: Panels, rate: int, path: Path | None = None) -> bytes:
    """Waveforms above each other on one time and one amplitude axis.

    Args:
        panels: title and samples (t,) of each; lengths may differ.
        rate: samples a second of all of them.
        path: where to write the picture as well.

    Returns:
        The picture as PNG.

    Raises:
        ValueError: no panel, or one without samples.
        OSError: `path` cannot be written.
    """
    figure, axes = _figure(len(panels), height=1.5, sharey=True)
    for ax, (title, wav) in zip(axes, panels, strict=True):
        low, high = _envelope(wav)
        seconds = np.linspace(0, wav.size / rate, low.size)
        ax.fill_between(seconds, low, high, color=COLOURS[0], linewidth=0.6)
        ax.set_title(title, loc="left")
        ax.margins(x=0)
        ax.grid(alpha=0.25)
    axes[-1].set_xlabel("time, s")
    figure.supylabel("amplitude", fontsize=11)
    return _finish(figure, path)


def curves_png(
    series: Mapping[str, tuple[Any, Any]],
    title: str,
    xlabel: str,
    ylabel: str,
    log: bool = False,
    path: Path | None = None,
) -> bytes:
    """Curves in one picture. Later ones are dashed, so that those they cover stay visible.

    Args:
        series: name of each curve to its x and y, sequences of one length. A value that is NaN is a gap.
        title: stands above.
        xlabel: the x-axis, with its unit.
        ylabel: the y-axis, with its unit.
        log: draw y on a logarithmic axis; where no value is above 0 the axis stays linear.
        path: where to write the picture as well.

    Returns:
        The picture as PNG.

    Raises:
        ValueError: no curve, or x and y of one differ in length.
        OSError: `path` cannot be written.
    """
    figure, (ax,) = _figure(min(1, len(series)), height=4.2)
    for index, (name, (x, y)) in enumerate(series.items()):
        style = "-" if index == 0 else (0, (4, 1 + index))
        colour = COLOURS[index % len(COLOURS)]
        ax.plot(np.asarray(x), np.asarray(y), label=name, color=colour, linestyle=style, linewidth=1.8)
    if log and any((np.asarray(y) > 0).any() for _, y in series.values()):
        ax.set_yscale("log", nonpositive="clip")
    else:
        ax.ticklabel_format(axis="y", scilimits=(-3, 4), useMathText=True)
    ax.xaxis.set_major_formatter(lambda value, _: f"{value:,.10g}")
    ax.set_title(title, loc="left")
    ax.set_xlabel(xlabel)
    ax.set_ylabel(ylabel)
    ax.margins(x=0.01)
    ax.grid(alpha=0.25)
    ax.legend(frameon=False)
    return _finish(figure, path)


def values_png(
    names: Sequence[str], values: Sequence[float], title: str, xlabel: str, path: Path | None = None
) -> bytes:
    """One number of many things: a bar for each, from the largest to the smallest, or how they are distributed.

    Args:
        names: of the things.
        values: their numbers, finite, as many.
        title: stands above.
        xlabel: the axis of the numbers, with its unit.
        path: where to write the picture as well.

    Returns:
        The picture as PNG; a histogram for more than `MAX_BARS`. A dashed line is the mean.

    Raises:
        ValueError: there is nothing to draw.
    """
    bars = len(values) <= MAX_BARS
    figure, (ax,) = _figure(min(1, len(values)), height=max(1.2, 0.24 * len(values)) if bars else 3.0)
    if bars:
        order = sorted(range(len(values)), key=lambda k: values[k])
        ax.barh(range(len(order)), [values[k] for k in order], color=COLOURS[0], height=0.7)
        ax.set_yticks(range(len(order)), [_shortened(names[k]) for k in order], parse_math=False)
    else:
        ax.hist(np.asarray(values), bins="auto", color=COLOURS[0], edgecolor="white")
        ax.set_ylabel("files")
    ax.axvline(float(np.mean(values)), color=COLOURS[1], linestyle="--", linewidth=1.6)
    ax.set_title(title, loc="left", parse_math=False)
    ax.set_xlabel(xlabel)
    ax.grid(alpha=0.25, axis="x")
    return _finish(figure, path)


def _shortened(name: str) -> str:
    """A name that leaves room for the bars: the end says most of a path."""
    return name if len(name) <= MAX_NAME else "…" + name[1 - MAX_NAME :]


def learning_rate_png(
    schedules: Mapping[str, Float[np.ndarray, "_"]], title: str = "Learning rate", path: Path | None = None
) -> bytes:
    """The learning rate of every update, one curve for each schedule.

    Args:
        schedules: name to the rate (steps,) of update 0, 1, and so on. A million steps are thinned to draw.
        title: stands above.
        path: where to write the picture as well.

    Returns:
        The picture as PNG.

    Raises:
        ValueError: no schedule.
        OSError: `path` cannot be written.
    """
    curves = {}
    for name, rates in schedules.items():
        stride = max(1, rates.size // 20_000)
        curves[name] = (np.arange(rates.size)[::stride], rates[::stride])
    return curves_png(curves, title, "update", "learning rate", path=path)


def _spectra(panels: Panels, rate: int) -> list[tuple[np.ndarray, float]]:
    spectra = []
    for title, wav in panels:
        try:
            spectra.append(magnitude_spectrogram(wav, rate))
        except ValueError as error:
            raise ValueError(f"cannot draw '{title}': {error}") from error
    return spectra


def _decibels(magnitudes: np.ndarray, reference: float) -> np.ndarray:
    """Level in dB relative to a reference; beside a silent reference, relative to full scale."""
    return 20 * np.log10(np.maximum(magnitudes, SILENCE) / (reference if reference > SILENCE else 1.0))


def _peak_ratio(error: np.ndarray, first: np.ndarray, second: np.ndarray) -> str:
    """Words for how far the largest difference lies below the largest sample."""
    peak = max(np.abs(first).max(initial=0), np.abs(second).max(initial=0))
    largest = np.abs(error).max(initial=0)
    if largest == 0:
        return "none: every sample is equal"
    if peak == 0:
        return f"largest {largest:.1e}"
    return f"largest {largest:.1e}, {-20 * np.log10(largest / peak):.0f} dB below the peak"


def _envelope(wav: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Lowest and highest sample of up to `MAX_COLUMNS` stretches of a waveform."""
    if wav.size == 0:
        raise ValueError("there are no samples to draw")
    starts = np.unique(np.linspace(0, wav.size, MAX_COLUMNS, endpoint=False).astype(int))
    return np.minimum.reduceat(wav, starts), np.maximum.reduceat(wav, starts)


def _figure(rows: int, height: float, sharey: bool = False) -> tuple[Figure, list[Axes]]:
    """A figure of `rows` panels, each `height` inches high."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    if rows == 0:
        raise ValueError("there is nothing to draw")
    figure = Figure(figsize=(WIDTH, height * rows + 0.5), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(rows, 1, sharex=True, sharey=sharey, squeeze=False)
    axes = list(grid[:, 0])
    for ax in axes:
        ax.tick_params(labelsize=10)
        ax.title.set_fontsize(12)
        ax.xaxis.label.set_fontsize(11)
        ax.yaxis.label.set_fontsize(11)
    return figure, axes


def _draw_spectrogram(
    ax: Axes, title: str, decibels: np.ndarray, step: float, rate: int, low: float, high: float
) -> Any:
    columns = decibels.shape[1]
    extent = (-step / 2, (columns - 0.5) * step, 0.0, rate / 2000)  # a column lies around its time
    image = ax.imshow(
        decibels, origin="lower", aspect="auto", extent=extent, cmap="magma", vmin=low, vmax=high
    )
    ax.set_title(title, loc="left")
    ax.set_ylabel("frequency, kHz")
    ax.set_xlim(left=0)
    return image


def _finish(figure: Figure, path: Path | None) -> bytes:
    buffer = io.BytesIO()
    # matplotlib would write its own version into the file; without it, fewer needless differences.
    figure.savefig(buffer, format="png", metadata={"Software": None})
    png = buffer.getvalue()
    if path is not None:
        with replacing(path) as temporary:
            temporary.write_bytes(png)
    return png
