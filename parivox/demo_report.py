"""What the demo says about its two runs: losses, sound, and pictures for the report."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float

from parity_tests.result import Figure, Report, Row, Skipped, Sound
from parity_tests.tolerances import bound
from parivox.audio import read_audio
from parivox.backend import BackendName
from parivox.hparams import WAV_RATE
from parivox.metrics import si_sdr
from parivox.plots import curves_png, difference_png, learning_rate_png, spectrogram_png
from parivox.runlog import read_metrics


@dataclass(frozen=True)
class Curve:
    """The log of one run: for each update its step, loss and learning rate, each (n,)."""

    steps: Float[np.ndarray, " n"]
    losses: Float[np.ndarray, " n"]
    rates: Float[np.ndarray, " n"]


@dataclass(frozen=True)
class Outcome:
    """What the demo did before the ladder.

    Attributes:
        row: the comparison of the losses; None where one backend trained.
        curves: the log of each run.
        sounds: name -> audio file, in the order to listen to them.
        missing: backend -> why it did not train.
    """

    row: Row | None
    curves: Mapping[BackendName, Curve]
    sounds: Mapping[str, Path]
    missing: Mapping[BackendName, str]


def losses(run_dir: Path) -> Curve:
    """Read a run's log.

    Raises:
        ConfigError: there is none, or it is damaged.
    """
    lines = read_metrics(run_dir, "train")
    return Curve(*(np.array([line[name] for line in lines], np.float64) for name in ("step", "loss", "lr")))


def print_losses(curves: Mapping[BackendName, Curve]) -> Row | None:
    """Print some steps of each run side by side, and how far they are apart; returns the comparison."""
    first = next(iter(curves.values()))
    print("   step" + "".join(f"{'loss, ' + name:>15}" for name in curves))
    for index in np.unique(np.linspace(0, len(first.steps) - 1, 6).astype(int)):
        values = "".join(f"{curve.losses[index]:15.7f}" for curve in curves.values())
        print(f"{first.steps[index]:7.0f}{values}")
    if len(curves) < 2:
        print("one backend trained, so there is nothing to compare", flush=True)
        return None
    row = compare(curves["jax"], curves["torch"])
    word = "inside" if row.passed else "OUTSIDE"
    print(f"largest relative difference of all {len(first.steps)} steps: {row.error:.1e},", end=" ")
    print(f"{word} the bound of {row.bound:.0e}", flush=True)
    return row


def compare(jax: Curve, torch: Curve) -> Row:
    """The largest relative difference of two runs' losses; infinite when they made different updates."""
    case = f"demo run, worst loss of {len(jax.steps)} updates, jax"
    error = float("inf")
    if np.array_equal(jax.steps, torch.steps):
        error = float((np.abs(jax.losses - torch.losses) / np.abs(torch.losses)).max())
    return Row("training", case, "torch", error, bound("training", "float32"), "float32", "the whole program")


def print_sounds(sounds: Mapping[str, Path]) -> None:
    """Print the SI-SDR of each recording against the clean one."""
    wavs = {name: _read(path) for name, path in sounds.items()}
    clean = wavs.pop("clean")
    levels = {name: float(si_sdr(wav, clean)) for name, wav in wavs.items()}
    print("SI-SDR against the clean voice (higher is better; so short a training can do little):")
    for name, level in levels.items():
        gain = "" if name == "noisy" else f"  ({level - levels['noisy']:+.2f})"
        print(f"  {name:15} {level:6.2f} dB{gain}", flush=True)


def assemble(report: Report, outcome: Outcome) -> None:
    """Put what the demo did into the ladder's report: row, reasons, pictures first, sounds."""
    if outcome.row is not None:
        rungs = [row.rung for row in report.rows]
        # Beside the other rows of its rung, where there are some.
        at = len(rungs) - rungs[::-1].index("training") if "training" in rungs else len(rungs)
        report.rows.insert(at, outcome.row)
    report.skipped += [Skipped("training", f"demo run: {reason}") for reason in outcome.missing.values()]
    report.figures[:0] = _figures(outcome)
    report.sounds += [Sound(name, path.read_bytes()) for name, path in outcome.sounds.items()]


def _figures(outcome: Outcome) -> list[Figure]:
    curves = outcome.curves
    wavs = {name: _read(path) for name, path in outcome.sounds.items()}
    loss = {name: (curve.steps, curve.losses) for name, curve in curves.items()}
    figures = [
        Figure(
            "Loss of the demo's runs",
            "Every update of each backend, on the same batches from the same start. The later one is dashed: "
            "where they agree, both are seen as one.",
            curves_png(loss, "Training loss", "update", "L1 loss"),
        ),
        Figure(
            "Learning rate of the demo's runs",
            "Warm-up, then decay to the lowest rate, as DeepSpeed's scheduler gives it.",
            learning_rate_png({name: curve.rates for name, curve in curves.items()}),
        ),
        Figure(
            "The recording before and after",
            "The noisy recording, what each model made of it, and the clean voice.",
            spectrogram_png(list(wavs.items()), WAV_RATE),
        ),
    ]
    if len(curves) > 1:
        pair = [(f"denoised by {name}", wavs[f"denoised-{name}"]) for name in ("jax", "torch")]
        caption = "Each backend with the model it trained itself. Below: the difference."
        figures.append(
            Figure("The two cleaned recordings", caption, difference_png(pair[0], pair[1], WAV_RATE))
        )
    return figures


def _read(path: Path) -> Float[np.ndarray, " t"]:
    wav, _ = read_audio(path)
    return wav[0]
