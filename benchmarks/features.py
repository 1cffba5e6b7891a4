"""Spectrograms of both backends against plain forms and other libraries: `python -m benchmarks.features [--json FILE]`.

The model's mel spectrogram and the denoiser's STFT in float32, of one sound of 30 s and of 32 of 3 s, on one core by
its processor time and on all of them by the clock, a process for each backend. The contenders take turns, so that
other work on the machine meets them all. What is told is the median of each turn's ratio and, in brackets, the ratio
of the fastest turns, which other work touched least. A plain form is what one writes first: `torch.stft`, or a gather
and `jnp.fft.rfft`, and a product with the whole filter bank. The other libraries' mel spectrograms are let off
pre-emphasis and logarithm. A library that is not here is left out.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from parity_tests import seeded
from parity_tests.rungs_signal import peak_error
from parivox.backend import BackendName, installed
from parivox.features import (
    DENOISER_STFT,
    SAMPLE_RATE,
    MelSpec,
    hann_window,
    mel_filter_bank,
    mel_oracle,
    stft_oracle,
)

SHAPES = {"1 x 30 s": (1, 30), "32 x 3 s": (32, 3)}
ROUNDS = {"1 x 30 s": 9, "32 x 3 s": 3}
SLOW, SLOW_ROUNDS = 0.25, 2
"""Whoever takes so many seconds for each 30 s of sound has fewer turns."""

MEL, STFT = MelSpec(), DENOISER_STFT
BLOCK = 48

Work = Callable[[], Any]


def torch_work(x: np.ndarray, threads: int) -> Iterator[tuple[str, str, Work]]:
    """What is computed, who computes it, and how: the contenders of PyTorch."""
    import torch

    from torch_impl.features import mel_spectrogram, stft

    torch.set_num_threads(threads)
    torch.set_grad_enabled(False)
    given = torch.from_numpy(x)
    windows = {spec: torch.from_numpy(np.float32(hann_window(spec.n_fft))) for spec in (MEL.stft, STFT)}
    bank = torch.from_numpy(np.float32(mel_filter_bank()))

    def plain_stft(x: torch.Tensor, spec: Any) -> torch.Tensor:
        words: Any = {"window": windows[spec], "pad_mode": spec.pad_mode, "return_complex": True}
        return torch.stft(x, spec.n_fft, spec.hop, **words)

    def plain_mel() -> torch.Tensor:
        y = given - MEL.preemphasis * torch.nn.functional.pad(given, (1, 0))[:, :-1]
        mel = torch.einsum("bfn,fm->bmn", plain_stft(y, MEL.stft).abs(), bank)
        return (20 * torch.log10(mel.clamp(min=MEL.magnitude_min)) - MEL.min_db) / (
            MEL.headroom_db - MEL.min_db
        )

    frames = torch.nn.functional.pad(given, (STFT.n_fft // 2,) * 2).unfold(-1, STFT.n_fft, STFT.hop)
    ready = frames[0, : BLOCK * threads].contiguous()

    wide = ready.double()

    def transforms(ready: torch.Tensor) -> None:
        for _ in range(-(-frames.shape[0] * frames.shape[1] // len(ready))):
            torch.fft.rfft(ready)

    yield "mel", "torch", lambda: mel_spectrogram(given)
    yield "mel", "plain torch", plain_mel
    yield "stft", "torch", lambda: stft(given, STFT)
    yield "stft", "plain torch", lambda: plain_stft(given, STFT)
    yield "stft", "torch, rfft alone", lambda: transforms(ready)
    yield "stft", "torch, rfft alone in float64", lambda: transforms(wide)
    if find_spec("nnAudio"):
        nn_audio: Any = import_module("nnAudio.features")

        words = {"sr": SAMPLE_RATE, "hop_length": MEL.stft.hop, "verbose": False}
        mel = nn_audio.MelSpectrogram(**words, n_mels=MEL.num_mels, power=1.0, pad_mode="constant")
        other = nn_audio.STFT(**words, n_fft=STFT.n_fft, output_format="Complex")
        yield "mel", "nnAudio", lambda: mel(given)
        yield "stft", "nnAudio", lambda: other(given)


def jax_work(x: np.ndarray, _: int) -> Iterator[tuple[str, str, Work]]:
    """The contenders of JAX, each compiled."""
    import jax
    import jax.numpy as jnp

    from jax_impl.features import mel_spectrogram, stft

    given = jnp.asarray(x)

    def plain_stft(x: jax.Array, spec: Any) -> jax.Array:
        half = spec.n_fft // 2
        wide = jnp.pad(x, ((0, 0), (half, half)), mode=spec.pad_mode)
        place = spec.hop * jnp.arange(1 + x.shape[1] // spec.hop)[:, None] + jnp.arange(spec.n_fft)
        return jnp.fft.rfft(wide[:, place] * jnp.asarray(hann_window(spec.n_fft), x.dtype)).swapaxes(1, 2)

    def plain_mel(x: jax.Array) -> jax.Array:
        y = x - MEL.preemphasis * jnp.pad(x, ((0, 0), (1, 0)))[:, :-1]
        bank = jnp.asarray(mel_filter_bank(), x.dtype)
        mel = jnp.einsum("bfn,fm->bmn", jnp.abs(plain_stft(y, MEL.stft)), bank)
        return (20 * jnp.log10(jnp.maximum(mel, MEL.magnitude_min)) - MEL.min_db) / (
            MEL.headroom_db - MEL.min_db
        )

    def ready(of: Callable[[jax.Array], jax.Array]) -> Work:
        compiled = jax.jit(of).lower(given).compile()
        return lambda: jax.block_until_ready(compiled(given))

    shape = (x.shape[0], STFT.n_fft // 2 + 1, 1 + x.shape[1] // STFT.hop)
    yield "mel", "jax", ready(mel_spectrogram)
    yield "mel", "plain jax", ready(plain_mel)
    yield "stft", "jax", ready(lambda x: stft(x, STFT))
    yield "stft", "plain jax", ready(lambda x: plain_stft(x, STFT))
    yield (
        "stft",
        "jax, an array of the result's size alone",
        ready(lambda x: x[0, 0] + jnp.zeros(shape, "c8")),
    )
    if find_spec("librosax"):
        librosax: Any = import_module("librosax")

        words = {"n_fft": 2048, "hop_length": 420, "n_mels": 128, "power": 1.0, "pad_mode": "constant"}
        yield (
            "mel",
            "librosax",
            ready(lambda x: librosax.feature.melspectrogram(y=x, sr=SAMPLE_RATE, **words)),
        )
        yield "stft", "librosax", ready(lambda x: librosax.stft(x, STFT.n_fft, STFT.hop, pad_mode="reflect"))


def librosa_work(x: np.ndarray, _: int) -> Iterator[tuple[str, str, Work]]:
    """librosa's STFT; its bank is computed once, which `librosa.feature.melspectrogram` does each time."""
    import librosa

    bank = librosa.filters.mel(sr=SAMPLE_RATE, n_fft=MEL.stft.n_fft, n_mels=MEL.num_mels)

    def mel() -> np.ndarray:
        z = librosa.stft(x, n_fft=MEL.stft.n_fft, hop_length=MEL.stft.hop, pad_mode="constant")
        return bank @ np.abs(z)

    yield "mel", "librosa", mel
    yield (
        "stft",
        "librosa",
        lambda: librosa.stft(x, n_fft=STFT.n_fft, hop_length=STFT.hop, pad_mode="reflect"),
    )


WORK: dict[BackendName, Callable[[np.ndarray, int], Iterator[tuple[str, str, Work]]]] = {
    "torch": torch_work,
    "jax": jax_work,
}


def contenders(x: np.ndarray, backend: BackendName, threads: int) -> Iterator[tuple[str, str, Work]]:
    """Those of one backend, and librosa."""
    yield from WORK[backend](x, threads)
    if find_spec("librosa"):
        yield from librosa_work(x, threads)


def timed(
    works: dict[tuple[str, str], Work], clock: Callable[[], float], rounds: int, slow_from: float
) -> dict[tuple[str, str], list[float]]:
    """Seconds of each in each round; they take turns, and a first round is not counted."""
    took: dict[tuple[str, str], list[float]] = {key: [] for key in works}
    slow = set()
    for turn in range(-1, rounds):
        for key, work in works.items():
            if key in slow and turn >= SLOW_ROUNDS:
                continue
            begin = clock()
            work()
            seconds = clock() - begin
            if turn < 0 and seconds > slow_from:
                slow.add(key)
            if turn >= 0:
                took[key].append(seconds)
    return took


def errors(x: np.ndarray, works: dict[tuple[str, str], Work]) -> dict[str, dict[str, float]]:
    """How far ours and the plain forms are from the float64 oracle, of the peak."""
    wanted = {"mel": mel_oracle(x), "stft": stft_oracle(x, STFT)}
    return {
        what: {
            name: peak_error(np.asarray(work()), wanted[what])
            for (kind, name), work in works.items()
            if kind == what and name in ("torch", "plain torch", "jax", "plain jax")
        }
        for what in wanted
    }


def measure_here(backend: BackendName, threads: int) -> dict:
    """One backend on so many threads in this process."""
    # Before the libraries start their threads. JAX takes as many as there are cores that it may run on.
    if threads == 1 and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[-1:])
    clock = time.process_time if threads == 1 else time.perf_counter
    found: dict = {"backend": backend, "threads": threads, "clock": clock.__name__, "shapes": {}}
    for name, (rows, seconds) in SHAPES.items():
        x = np.tile(seeded.signal(0, min(rows, 4), seconds * SAMPLE_RATE), (-(-rows // 4), 1))[:rows]
        works = {(what, who): work for what, who, work in contenders(x, backend, threads)}
        row = found["shapes"][name] = {"audio_seconds": rows * seconds, "seconds": {"mel": {}, "stft": {}}}
        for (what, who), took in timed(works, clock, ROUNDS[name], SLOW * rows * seconds / 30).items():
            row["seconds"][what][who] = took
        if rows == 1:
            row["error_of_peak"] = errors(x, works)
    return found


def measure(backend: str, threads: int) -> dict:
    """The same in a fresh process, whose waiting threads leave the cores to others."""
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.features", "--here", backend, str(threads)]
    scope = {**os.environ, "OMP_WAIT_POLICY": "passive", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(command, capture_output=True, text=True, env=scope, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def ratios(other: list[float], ours: list[float]) -> tuple[float, float]:
    """How many times as long another one took: the median of the rounds that both had; the fastest of each."""
    return statistics.median(a / b for a, b in zip(other, ours, strict=False)), min(other) / min(ours)


def tell(found: dict) -> None:
    """Print one process's figures."""
    print(f"{found['backend']}, {found['threads']} thread(s), {found['clock']}")
    for shape, row in found["shapes"].items():
        for what, took in row["seconds"].items():
            who = found["backend"]
            middle = statistics.median(took[who])
            others = {name: ratios(seconds, took[who]) for name, seconds in took.items() if name != who}
            row.setdefault("times_as_long", {})[what] = others
            told = ", ".join(f"{name} {one:.2f} ({best:.2f})" for name, (one, best) in others.items())
            speed = row["audio_seconds"] / middle
            print(
                f"  {what:4} {shape}: {1e3 * middle:.0f} ms, {speed:.0f} x real time; times as long: {told}"
            )
        for what, wrong in row.get("error_of_peak", {}).items():
            told = ", ".join(f"{name} {error:.1e}" for name, error in wrong.items())
            print(f"  {what:4} {shape}: off by, of the peak: {told}", flush=True)


def main() -> None:
    """Measure, print, and write the figures where asked."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--threads", type=int, nargs="*", default=sorted({1, os.cpu_count() or 1}))
    parser.add_argument("--here", nargs=2, metavar=("BACKEND", "THREADS"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.here:
        print(json.dumps(measure_here(given.here[0], int(given.here[1]))))
        return
    names = ["torch", "jax", "librosa", "nnAudio", "librosax"]
    for name in (name for name in names if not find_spec(name)):
        print(f"{name} is not here: left out")
    git = ["git", "rev-parse", "HEAD"]
    found: dict = {
        "machine": {
            "platform": platform.platform(),
            "python": platform.python_version(),
            "cpus": os.cpu_count(),
            "load_before": os.getloadavg() if hasattr(os, "getloadavg") else None,
        },
        "versions": {name: version(name) for name in names if find_spec(name)},
        "commit": subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip(),
        "rounds": ROUNDS,
        "runs": [],
    }
    for threads in given.threads:
        for backend in filter(installed, WORK):
            found["runs"].append(measure(backend, threads))
            tell(found["runs"][-1])
    if given.json:
        given.json.parent.mkdir(parents=True, exist_ok=True)
        given.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
