"""Scores of a sound, with or without the sound that it should be: what `parivox evaluate` can measure.

Each metric takes one channel. Where it has a package of its own, that package computes it and nothing is
added; docs/evaluate.md says what each means.
"""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from jaxtyping import Float

from parivox.audio import resample
from parivox.errors import BackendError, ConfigError
from parivox.features import SAMPLE_RATE
from parivox.metrics import (
    LSD_FRAME,
    MCD_FRAME,
    MCD_RATE,
    limited_si_sdr,
    log_spectral_distance,
    mel_cepstral_distortion,
)

SPEECH_RATE = 16_000
"""Rate in Hz of everything that listens to speech."""

PIECE_SECONDS = 20.0
"""PESQ and the recogniser take a longer sound in equal pieces. PESQ's own code has room for 50 utterances, each with a
pause at least 0.4 s, and writes beyond it for more."""

STOI_SECONDS = 0.4
"""Shortest sound with the 30 frames that STOI compares."""

DNSMOS_SECONDS = 1.0
"""Shortest sound that DNSMOS is asked about. Its model hears 9 s, and the package repeats what is shorter."""

Better = Literal["higher", "lower"]


class UndefinedError(Exception):
    """A metric says nothing about a sound; the message is the reason."""


@dataclass(frozen=True)
class Column:
    """One number of a metric.

    Attributes:
        name: in CSV and JSON.
        title: above a column of a table, short.
        unit: of the number; empty for a score without one.
        better: which numbers are good.
        digits: to print after the point.
    """

    name: str
    title: str
    unit: str
    better: Better
    digits: int = 2


class Channel:
    """One channel of a sound and of what it should be, at any rate.

    Args:
        estimate: samples (t,).
        rate: of the estimate, in Hz.
        reference: samples (t2,) that last as long; None where nothing is known.
        reference_rate: of the reference, in Hz.
    """

    def __init__(
        self,
        estimate: Float[np.ndarray, " t"],
        rate: int,
        reference: Float[np.ndarray, " t2"] | None = None,
        reference_rate: int | None = None,
    ) -> None:
        self._given = {"estimate": (estimate, rate)}
        self.rate = rate
        if reference is not None and reference_rate is not None:
            self._given["reference"] = (reference, reference_rate)
            self.rate = reference_rate
        self._made: dict[tuple[str, int], np.ndarray] = {}

    def estimate(self, rate: int) -> Float[np.ndarray, " t"]:
        """The estimate at a rate.

        Raises:
            UndefinedError: it is silent.
        """
        wav = self._at("estimate", rate)
        if not wav.any():
            raise UndefinedError("the sound is silent")
        return wav

    def pair(self, rate: int) -> tuple[Float[np.ndarray, " t"], Float[np.ndarray, " t"]]:
        """Estimate and reference at a rate, as long as the shorter of them.

        Raises:
            UndefinedError: the reference is silent, so that nothing can be compared with it.
        """
        estimate, reference = self._at("estimate", rate), self._at("reference", rate)
        length = min(len(estimate), len(reference))
        if not reference[:length].any():
            raise UndefinedError("the reference is silent")
        return estimate[:length], reference[:length]

    def _at(self, which: str, rate: int) -> np.ndarray:
        if (which, rate) not in self._made:
            wav, own = self._given[which]
            self._made[which, rate] = resample(wav, own, rate)
        return self._made[which, rate]


@dataclass(frozen=True)
class Metric:
    """Something that can be measured.

    Attributes:
        name: for `--metrics`.
        columns: the numbers it gives.
        score: from a channel to those numbers; raises UndefinedError where there are none.
        reference: whether it compares with a reference.
        extra: the extra of Parivox that it needs; empty where it needs none.
        modules: what that extra must bring for it.
    """

    name: str
    columns: tuple[Column, ...]
    score: Callable[[Channel], tuple[float, ...]]
    reference: bool = True
    extra: str = ""
    modules: tuple[str, ...] = ()

    @property
    def installed(self) -> bool:
        """Whether everything that it needs is there."""
        return all(importlib.util.find_spec(module) is not None for module in self.modules)

    @property
    def remedy(self) -> str:
        """What to do where it is not."""
        return f"pip install 'parivox[{self.extra}]'"

    def measure(self, channel: Channel) -> tuple[float, ...]:
        """The numbers of a channel.

        Raises:
            UndefinedError: there are none, for the reason it gives.
            BackendError: the packages are there, and cannot be imported.
        """
        try:
            values = tuple(float(value) for value in self.score(channel))
        except (ImportError, OSError) as error:
            raise BackendError(
                f"{self.name}: a package cannot be used ({error}); {self.remedy} --force-reinstall, "
                "or leave it out of --metrics"
            ) from error
        except Exception as error:
            if not self.modules or isinstance(error, UndefinedError):
                raise
            # A package's own way to say that it cannot judge a sound must not end the judging of others.
            raise UndefinedError(f"its package fails ({type(error).__name__}: {error})") from error
        if not np.isfinite(values).all():
            raise UndefinedError("it comes out as no number")
        return values


def pieces(*wavs: Float[np.ndarray, " t"], rate: int) -> Iterator[tuple[np.ndarray, ...]]:
    """Sounds of one length in as few equal pieces as `PIECE_SECONDS` allows."""
    count = max(1, -(-len(wavs[0]) // round(PIECE_SECONDS * rate)))
    yield from zip(*(np.array_split(wav, count) for wav in wavs), strict=True)


def _si_sdr(channel: Channel) -> tuple[float, ...]:
    return (float(limited_si_sdr(*channel.pair(channel.rate))),)


def _lsd(channel: Channel) -> tuple[float, ...]:
    """At the rate of the models at most, as in training; a lower rate is kept, for nothing lies above it."""
    estimate, reference = channel.pair(min(channel.rate, SAMPLE_RATE))
    _longer_than(reference, LSD_FRAME)
    return (float(log_spectral_distance(estimate, reference)),)


def _mcd(channel: Channel) -> tuple[float, ...]:
    estimate, reference = channel.pair(MCD_RATE)
    _longer_than(reference, MCD_FRAME[0])
    return (float(mel_cepstral_distortion(estimate, reference)),)


def _pesq(channel: Channel) -> tuple[float, ...]:
    from pesq import BufferTooShortError, NoUtterancesError, pesq

    estimate, reference = channel.pair(SPEECH_RATE)
    found, reason, end = [], "", 0.0
    for one, other in pieces(estimate, reference, rate=SPEECH_RATE):
        begin, end = end, end + len(one) / SPEECH_RATE
        if not other.any():
            reason = "the reference is silent"
        elif not one.any():
            # The mean of the other pieces would flatter a sound that has lost one.
            whole = len(one) == len(estimate)
            raise UndefinedError(
                "the sound is silent" + ("" if whole else f" from {begin:.0f} to {end:.0f} s")
            )
        else:
            try:
                found.append(float(pesq(SPEECH_RATE, other, one, "wb")))
            except NoUtterancesError:
                reason = "PESQ finds no speech"
            except BufferTooShortError:
                reason = "PESQ needs 0.25 s of sound"
    if not found:
        raise UndefinedError(reason)
    return (float(np.mean(found)),)


def _stoi(channel: Channel) -> tuple[float, ...]:
    """pystoi brings a sound to 10,000 Hz by itself, with the filter that STOI is defined with."""
    from pystoi import stoi

    estimate, reference = channel.pair(channel.rate)
    if len(reference) < STOI_SECONDS * channel.rate:
        raise UndefinedError(f"STOI needs {STOI_SECONDS} s of sound")
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        score = float(stoi(reference, estimate, channel.rate))
    if any("Not enough STFT frames" in str(warning.message) for warning in said):
        raise UndefinedError(f"STOI needs {STOI_SECONDS} s of speech")
    return (score,)


def _dnsmos(channel: Channel) -> tuple[float, ...]:
    from speechmos import dnsmos

    wav = channel.estimate(SPEECH_RATE)
    if len(wav) < DNSMOS_SECONDS * SPEECH_RATE:
        raise UndefinedError(f"DNSMOS needs {DNSMOS_SECONDS:g} s of sound")
    with warnings.catch_warnings():
        # Of its 120 mel bands some are narrower than a bin; the model was trained with them.
        warnings.filterwarnings("ignore", "Empty filters detected", UserWarning)
        # What a filter overshoots is beyond full scale, which the package refuses.
        found: Any = dnsmos.run(np.clip(wav, -1, 1), SPEECH_RATE)
    return tuple(float(found[f"{name}_mos"]) for name in ("ovrl", "sig", "bak", "p808"))


def _wer(channel: Channel) -> tuple[float, ...]:
    from parivox.changed import word_error

    return (word_error(*channel.pair(SPEECH_RATE)),)


def _speaker(channel: Channel) -> tuple[float, ...]:
    from parivox.changed import speaker_similarity

    return (speaker_similarity(*channel.pair(SPEECH_RATE)),)


def _longer_than(wav: np.ndarray, count: int) -> None:
    if len(wav) < count:
        raise UndefinedError(f"it needs {count} samples of sound")


METRICS: tuple[Metric, ...] = (
    Metric("si_sdr", (Column("si_sdr", "SI-SDR", "dB", "higher", 1),), _si_sdr),
    Metric("pesq", (Column("pesq", "PESQ", "", "higher"),), _pesq, True, "metrics", ("pesq",)),
    Metric("stoi", (Column("stoi", "STOI", "", "higher", 3),), _stoi, True, "metrics", ("pystoi",)),
    Metric("lsd", (Column("lsd", "LSD", "dB", "lower"),), _lsd),
    Metric("mcd", (Column("mcd", "MCD", "dB", "lower"),), _mcd),
    Metric(
        "dnsmos",
        (
            Column("dnsmos_ovrl", "MOS ovrl", "", "higher"),
            Column("dnsmos_sig", "MOS sig", "", "higher"),
            Column("dnsmos_bak", "MOS bak", "", "higher"),
            Column("dnsmos_p808", "MOS p808", "", "higher"),
        ),
        _dnsmos,
        False,
        "metrics",
        ("speechmos", "onnxruntime", "librosa", "requests"),
    ),
    Metric("wer", (Column("wer", "WER", "%", "lower", 1),), _wer, True, "changed", ("pocketsphinx", "jiwer")),
    Metric(
        "speaker",
        (Column("speaker", "speaker", "", "higher", 3),),
        _speaker,
        True,
        "changed",
        ("resemblyzer", "webrtcvad", "torch", "librosa"),
    ),
)
"""Everything that can be measured, in the order of tables."""


def choose(names: Sequence[str] | None, reference: bool) -> tuple[list[Metric], list[str]]:
    """The metrics to compute, and a line on each extra whose metrics are left out because it is missing.

    Args:
        names: of metrics; None takes every one that is installed.
        reference: whether there is a reference.

    Raises:
        ConfigError: a metric is unknown, or needs a reference where there is none.
        BackendError: a metric asked for by name is not installed, or none is.
    """
    table = {metric.name: metric for metric in METRICS}
    if names is not None:
        if not names:
            raise ConfigError(f"--metrics names none; use some of {', '.join(table)}")
        return [_asked(name, table, reference) for name in dict.fromkeys(names)], []
    wanted = [metric for metric in METRICS if reference or not metric.reference]
    chosen = [metric for metric in wanted if metric.installed]
    missing: dict[str, list[Metric]] = {}
    for metric in wanted:
        if not metric.installed:
            missing.setdefault(metric.extra, []).append(metric)
    lines = [
        f"{', '.join(metric.name for metric in metrics)}: left out, not installed; {metrics[0].remedy}"
        for metrics in missing.values()
    ]
    if not chosen:
        raise BackendError(f"nothing can be scored without a reference: {'; '.join(lines)}")
    return chosen, lines


def _asked(name: str, table: dict[str, Metric], reference: bool) -> Metric:
    """The metric of a name, where it can be computed."""
    if name not in table:
        raise ConfigError(f"--metrics {name}: there is no such metric; use some of {', '.join(table)}")
    metric = table[name]
    if metric.reference and not reference:
        raise ConfigError(f"--metrics {name}: compares with a reference; name one, or leave out {name}")
    if not metric.installed:
        raise BackendError(f"--metrics {name}: not installed; {metric.remedy}")
    return metric
