from __future__ import annotations

import io
import subprocess
import sys

import numpy as np
import pytest
from matplotlib.image import imread

from parivox import plots

RATE = 44_100
SECOND = np.arange(RATE) / RATE
TONE = np.sin(2 * np.pi * 5_000 * SECOND).astype(np.float32)


def pixels(png: bytes) -> np.ndarray:
    """The picture as (height, width, 3) from 0 to 1."""
    return imread(io.BytesIO(png), format="png")[..., :3]


def share_of(picture: np.ndarray, colour: str) -> float:
    """The share of pixels that have a colour."""
    wanted = np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    return float((np.abs(picture - wanted).max(-1) < 0.02).mean())


def test_a_full_scale_sine_has_magnitude_one_in_its_own_bin():
    magnitudes, step = plots.magnitude_spectrogram(TONE, RATE)
    middle = magnitudes[:, magnitudes.shape[1] // 2]
    assert np.argmax(middle) == round(5_000 * plots.WINDOW / RATE)
    assert 0.8 < middle.max() <= 1.001
    assert magnitudes.shape[1] == -(-RATE // round(step * RATE))


def test_long_recordings_keep_a_bounded_number_of_columns():
    magnitudes, step = plots.magnitude_spectrogram(np.zeros(90 * RATE, np.float32), RATE)
    assert magnitudes.shape[1] <= plots.MAX_COLUMNS
    assert magnitudes.shape[1] * step == pytest.approx(90, rel=0.01)


def test_a_recording_shorter_than_the_window_is_drawn():
    assert pixels(plots.spectrogram_png([("short", TONE[:10])], RATE)).shape[1] == 1200


def test_panels_share_one_colour_scale():
    noise = np.random.default_rng().standard_normal(RATE).astype(np.float32)
    quiet = pixels(plots.spectrogram_png([("loud", noise), ("40 dB less", noise / 100)], RATE))
    equal = pixels(plots.spectrogram_png([("loud", noise), ("as loud", noise)], RATE))
    rows = slice(int(quiet.shape[0] * 0.6), int(quiet.shape[0] * 0.8))
    columns = slice(200, 900)
    assert quiet.shape == equal.shape
    assert quiet[rows, columns].mean() < 0.6 * equal[rows, columns].mean()


def test_silence_is_drawn_dark_and_without_a_warning():
    silence = np.zeros(RATE, np.float32)
    picture = pixels(plots.spectrogram_png([("silence", silence)], RATE))
    assert picture[picture.shape[0] // 3 : picture.shape[0] // 2, 200:900].max() < 0.02
    plots.difference_png(("a", silence), ("b", silence), RATE)
    plots.waveforms_png([("silence", silence)], RATE)


@pytest.mark.parametrize(("bad", "why"), [(np.zeros(0), "no samples"), (np.array([0.0, np.nan]), "NaN")])
def test_samples_that_cannot_be_drawn_are_named(bad, why):
    with pytest.raises(ValueError, match=f"'the second'.*{why}"):
        plots.spectrogram_png([("the first", TONE), ("the second", bad.astype(np.float32))], RATE)


def test_nothing_to_draw_is_an_error():
    for draw in (plots.spectrogram_png, plots.waveforms_png):
        with pytest.raises(ValueError, match="nothing to draw"):
            draw([], RATE)
    with pytest.raises(ValueError, match="nothing to draw"):
        plots.curves_png({}, "title", "x", "y")
    with pytest.raises(ValueError, match="no samples"):
        plots.waveforms_png([("empty", np.zeros(0, np.float32))], RATE)


def test_a_difference_needs_equal_lengths_and_shows_in_the_picture():
    with pytest.raises(ValueError, match="'a' has 44100 samples, but 'b' has 44099"):
        plots.difference_png(("a", TONE), ("b", TONE[1:]), RATE)
    # The difference has a scale of its own, so a faint one is bright; equal signals are dark.
    noise = np.random.default_rng().standard_normal(RATE).astype(np.float32)
    faint = pixels(plots.difference_png(("a", noise), ("b", noise * np.float32(1.0001)), RATE))
    equal = pixels(plots.difference_png(("a", noise), ("b", noise), RATE))
    third = slice(int(faint.shape[0] * 0.7), int(faint.shape[0] * 0.9))
    assert faint[third, 200:900].mean() > 0.3 > 0.05 > equal[third, 200:900].mean()


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (np.zeros(3), "none: every sample is equal"),
        (np.array([0.0, -1e-6, 0.0]), "largest 1.0e-06, 120 dB below the peak"),
    ],
)
def test_a_difference_is_said_in_words(error, words):
    assert plots._peak_ratio(error, np.array([0.5, -1.0, 0.0]), np.zeros(3)) == words


def test_curves_that_cover_each_other_are_both_visible():
    x = np.arange(100)
    picture = pixels(plots.curves_png({"jax": (x, x**0.5), "torch": (x, x**0.5)}, "Loss", "update", "loss"))
    one, two = (share_of(picture, colour) for colour in plots.COLOURS[:2])
    assert min(one, two) > 0.2 * max(one, two) > 0


def test_curves_take_gaps_zeros_and_a_logarithmic_axis():
    x = np.arange(4)
    gap = plots.curves_png({"a": (x, [1.0, np.nan, 3.0, 4.0])}, "t", "x", "y")
    linear = plots.curves_png({"a": (x, [0.0, 1e-9, 1e-3, 1.0])}, "t", "x", "y")
    logarithmic = plots.curves_png({"a": (x, [0.0, 1e-9, 1e-3, 1.0])}, "t", "x", "y", log=True)
    zeros = plots.curves_png({"a": (x, [0, 0, 0, 0])}, "t", "x", "y", log=True)
    assert len({gap, linear, logarithmic, zeros}) == 4
    with pytest.raises(ValueError, match="dimension"):
        plots.curves_png({"a": (x, [1.0])}, "t", "x", "y")


def test_a_million_learning_rates_are_thinned():
    rates = np.linspace(1e-4, 1e-5, 1_000_000)
    assert plots.learning_rate_png({"jax": rates}) != plots.learning_rate_png({"jax": rates[::-1]})


def test_a_long_waveform_keeps_its_peaks():
    wav = np.zeros(60 * RATE, np.float32)
    wav[[12_345, 2_000_000]] = 1.0, -0.5
    low, high = plots._envelope(wav)
    assert (low.size, high.size) == (plots.MAX_COLUMNS, plots.MAX_COLUMNS)
    assert (low.min(), high.max()) == (-0.5, 1.0)
    assert share_of(pixels(plots.waveforms_png([("spikes", wav)], RATE)), plots.COLOURS[0]) > 0


def test_the_file_holds_what_is_returned_and_nothing_else_is_left(tmp_path):
    path = tmp_path / "new folder" / "picture.png"
    png = plots.spectrogram_png([("tone", TONE)], RATE, path)
    assert path.read_bytes() == png
    assert [file.name for file in path.parent.iterdir()] == ["picture.png"]
    assert png == plots.spectrogram_png([("tone", TONE)], RATE), "equal input gives equal bytes"


def test_matplotlib_is_imported_late_and_pyplot_never():
    code = """
import sys, numpy as np
from parivox import plots
print("matplotlib" in sys.modules, end=" ")
plots.waveforms_png([("a", np.ones(100, np.float32))], 100)
print("matplotlib" in sys.modules, "matplotlib.pyplot" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "True", "False"]


def test_few_numbers_are_bars_and_many_a_histogram():
    values = [3.0, 1.0, 2.0]
    few = pixels(plots.values_png(["a", "b$_$", "a name/" * 20], values, "Score", "dB"))
    assert 0.08 < share_of(few, plots.COLOURS[0]) < 0.5  # a third, two thirds and all of the width
    assert share_of(few, plots.COLOURS[1]) > 0  # the mean
    longer = pixels(
        plots.values_png([str(k) for k in range(20)], [float(k) for k in range(20)], "Score", "dB")
    )
    assert longer.shape[0] > 2 * few.shape[0]
    many = np.random.default_rng(0).standard_normal(1000).tolist()
    histogram = pixels(plots.values_png(["x"] * 1000, many, "Score", "dB"))
    assert histogram.shape[0] < longer.shape[0] and share_of(histogram, plots.COLOURS[0]) > 0.1
    equal = pixels(plots.values_png(["x"] * 50, [2.0] * 50, "Score", "dB"))
    assert share_of(equal, plots.COLOURS[0]) > 0.1
    with pytest.raises(ValueError, match="nothing to draw"):
        plots.values_png([], [], "Score", "dB")
