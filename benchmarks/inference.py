"""Speed of cleaning, denoiser and enhancer on both backends: `python -m benchmarks.inference [--json FILE] [--quick]`.

Full width and untrained weights, which take as long as trained ones; the published number of evaluations of the flow.
What is told: time over the sound's length, the share of the matrix peak of the same process, the ratio of the two
backends, and of each vocoder to the same written plainly (`benchmarks.plain`). The contenders take turns.
`--quick` shows in half a minute that it works, with a narrow model and a short sound; its figures mean nothing.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import vocoder_memory
from benchmarks.flops import denoiser_flops, enhancer_flops
from benchmarks.machine import Times, calm_threads, in_turn, machine, matrix_peak, write_results
from benchmarks.plain import plainly
from parivox.backend import BACKENDS, Backend, BackendName, get_backend, installed
from parivox.enhancer_tables import FRAME, TILE
from parivox.features import SAMPLE_RATE
from parivox.hparams import EnhancerHParams
from parivox.presets import preset
from parivox.rows import Place
from parivox.sampling import row_noise
from parivox.weights_enhancer import initial_enhancer

PUBLISHED = {
    "denoise": {"time_over_length": 0.84, "share_of_peak": 0.30},
    "enhance": {"time_over_length": 24.6, "share_of_peak": 0.22},
}
"""The published program on a CPU of two cores whose matrix products reach 183 GFLOP/s, as recorded on that machine."""


@dataclass(frozen=True)
class Size:
    """How much is measured.

    Attributes:
        preset: hyperparameters.
        denoise: seconds of sound that are denoised.
        enhance: seconds that are enhanced.
        nfe: evaluations of the flow.
        vocode: seconds of sound that the vocoder alone makes, and the plain one.
        denoise_repeats: timed runs of each denoiser.
        enhance_repeats: timed runs of each enhancer.
    """

    preset: str = "enhancer_stage2"
    denoise: float = 2.0
    enhance: float = 1.0
    nfe: int = 64
    vocode: float = 1.0
    denoise_repeats: int = 5
    enhance_repeats: int = 3


QUICK = Size("enhancer_stage2_small", 0.2, 0.2, 4, 0.1, 1, 1)

Weights = dict[str, np.ndarray]
Work = Callable[[], object]


def sound(seconds: float) -> np.ndarray:
    """Noise (1, t), t in whole frames."""
    samples = round(seconds * SAMPLE_RATE) // 420 * 420
    return np.random.default_rng(0).uniform(-1, 1, (1, samples)).astype(np.float32)


def denoising(backend: Backend, hp: EnhancerHParams, weights: Weights, wav: np.ndarray) -> Work:
    """The denoiser of an enhancer, ready to run."""
    own = {k.removeprefix("denoiser."): v for k, v in weights.items() if k.startswith("denoiser.")}
    model = backend.load_denoiser(hp, own)
    return lambda: backend.denoise(model, wav)


def enhancing(backend: Backend, hp: EnhancerHParams, weights: Weights, wav: np.ndarray, nfe: int) -> Work:
    """An enhancer, ready to run."""
    prior, noise = row_noise(0, [Place(0, 0)], hp.lcfm_latent_dim, wav.shape[1] // hp.hop_size)
    shares = np.full(1, 0.5, np.float32), np.ones(1, np.float32)
    model, method = backend.load_enhancer(hp, weights), hp.cfm_solver_method
    return lambda: backend.enhance(model, wav, prior, noise, *shares, method, nfe)


def vocoding(name: BackendName, seconds: float, plain: bool) -> Work:
    """The vocoder alone, of full width, ready to run; in JAX it is compiled here, with the layers that stand here."""
    hp, frames = vocoder_memory.HP, round(seconds * SAMPLE_RATE / FRAME)
    condition, noise = row_noise(0, [Place(0, 0)], hp.num_mels + hp.vocoder_extra_dim, frames)

    def layers() -> AbstractContextManager[None]:
        return plainly(name) if plain else nullcontext()

    with layers():
        work = vocoder_memory.WORK[name](condition, noise, TILE)

    def run() -> object:
        with layers():
            return work()

    return run


def told(times: Times, seconds: float, flops: float, peak: float, name: str) -> dict[str, Any]:
    """What a results file holds of one contender.

    Args:
        times: seconds of its runs.
        seconds: of sound.
        flops: of a run.
        peak: GFLOP/s of a matrix product.
        name: `denoise` or `enhance`.
    """
    share = flops / times["median"] / 1e9 / peak
    return {
        "seconds": times,
        "time_over_length": times["median"] / seconds,
        "share_of_peak": share,
        "over_published_share": share / PUBLISHED[name]["share_of_peak"],
    }


def measure(size: Size, names: list[BackendName]) -> dict[str, Any]:
    """Everything, with the machine it was measured on."""
    hp = preset(size.preset)
    if not isinstance(hp, EnhancerHParams):
        raise TypeError(f"{size.preset} is no enhancer's preset")
    found: dict[str, Any] = {"machine": machine(), "size": vars(size), "published": PUBLISHED}
    peaks = [matrix_peak()]
    weights, short, long = initial_enhancer(0, hp), sound(size.denoise), sound(size.enhance)
    backends = {name: get_backend(name, device="cpu") for name in names}
    found["describe"] = {name: backend.describe() for name, backend in backends.items()}

    denoisers = {name: denoising(backend, hp, weights, short) for name, backend in backends.items()}
    denoised = in_turn(denoisers, size.denoise_repeats)
    peaks.append(matrix_peak())
    enhancers = {name: enhancing(backend, hp, weights, long, size.nfe) for name, backend in backends.items()}
    enhanced = in_turn(enhancers, size.enhance_repeats)
    # Other work may have met the first of them: a machine's peak is the best that it was seen to do.
    found["peak_gflops"] = peak = max(*peaks, matrix_peak())

    parts = enhancer_flops(hp, long.shape[1], size.nfe, hp.cfm_solver_method)
    flops = {"denoise": denoiser_flops(hp.unet_hidden_dim, short.shape[1]), "enhance": sum(parts.values())}
    found["gflops"] = {
        "denoise": flops["denoise"] / 1e9,
        "enhance": {name: part / 1e9 for name, part in parts.items()},
    }
    for task, times, wav in (("denoise", denoised, short), ("enhance", enhanced, long)):
        seconds = wav.shape[1] / SAMPLE_RATE
        found[task] = {name: told(row, seconds, flops[task], peak, task) for name, row in times.items()}
        show(task, found[task])

    found["against_plain"] = against_plain(names, size.vocode, size.denoise_repeats)
    return found


def against_plain(names: list[BackendName], seconds: float, repeats: int) -> dict[str, Any]:
    """How many times as fast each vocoder is as its plain form."""
    works: dict[str, Work] = {}
    for name in names:
        works[name] = vocoding(name, seconds, plain=False)
        works[f"plain {name}"] = vocoding(name, seconds, plain=True)
    times, found = in_turn(works, repeats), {}
    for name in names:
        one, other = times[name], times[f"plain {name}"]
        ratio = other["median"] / one["median"]
        found[name] = {"seconds": one, "plain_seconds": other, "ratio": ratio}
        print(f"{name:6} vocoder {ratio:.2f} times as fast as written plainly", flush=True)
    return found


def show(task: str, rows: Mapping[str, Mapping[str, Any]]) -> None:
    """Print what was found."""
    for name, row in rows.items():
        print(
            f"{name:6} {task:8} {row['time_over_length']:6.2f} times the sound's length, {row['share_of_peak']:.0%}"
            f" of peak, {row['over_published_share']:.2f} times the published program's share",
            flush=True,
        )
    if set(rows) == set(BACKENDS):
        jax, torch = (rows[name]["seconds"]["median"] for name in BACKENDS)
        print(f"jax / torch, {task}: {jax / torch:.2f} of the time", flush=True)


def main() -> None:
    """Measure, print, and write the figures where asked."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--quick", action="store_true", help="a narrow model, to see that it works")
    given = parser.parse_args()
    calm_threads()
    names: list[BackendName] = [name for name in BACKENDS if installed(name)]
    found = measure(QUICK if given.quick else Size(), names)
    if given.json:
        write_results(given.json, found)


if __name__ == "__main__":
    main()
