"""Speed of cleaning, denoiser and enhancer on both backends: `python -m benchmarks.inference [--json FILE] [--quick]`.

Full width and untrained weights, which take as long as trained ones; the published number of evaluations of the flow.
A process for each backend, as the command has, with the heap set up as there; in one process each backend's threads
and memory cost the other up to a quarter. What is told: time over the sound's length, the share of the matrix
peak of the same process, the ratio of the two backends, and of each vocoder to the same written plainly
(`benchmarks.plain`). `--quick` shows in half a minute that it works, with a narrow model and a short sound; its
figures mean nothing.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import vocoder_memory
from benchmarks.flops import denoiser_flops, enhancer_flops
from benchmarks.machine import (
    Times,
    calm_threads,
    in_process,
    in_turn,
    machine,
    matrix_peak,
    timed,
    write_results,
)
from benchmarks.plain import plainly
from parivox.backend import BACKENDS, Backend, BackendName, get_backend, installed
from parivox.enhancer_tables import FRAME, TILE
from parivox.features import SAMPLE_RATE
from parivox.heap import return_large_blocks
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
        enhance: seconds that are enhanced. Each evaluation of the flow reads a quarter of a gigabyte of weights, so a
            sound of one second waits for the memory; a recording goes through in pieces of up to 30 s.
        nfe: evaluations of the flow.
        vocode: seconds of sound that the vocoder alone makes, and the plain one.
        denoise_repeats: timed runs of each denoiser.
        enhance_repeats: timed runs of each enhancer.
    """

    preset: str = "enhancer_stage2"
    denoise: float = 2.0
    enhance: float = 4.0
    nfe: int = 64
    vocode: float = 1.0
    denoise_repeats: int = 5
    enhance_repeats: int = 2


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


def hparams_of(size: Size) -> EnhancerHParams:
    """The hyperparameters of the model that is measured."""
    hp = preset(size.preset)
    if not isinstance(hp, EnhancerHParams):
        raise TypeError(f"{size.preset} is no enhancer's preset")
    return hp


def measure_here(name: BackendName, size: Size) -> dict[str, Any]:
    """Times of one backend, in this process."""
    return_large_blocks()
    hp, peaks = hparams_of(size), [matrix_peak()]
    weights, backend = initial_enhancer(0, hp), get_backend(name, device="cpu")
    found: dict[str, Any] = {"describe": backend.describe()}
    found["denoise"] = timed(denoising(backend, hp, weights, sound(size.denoise)), size.denoise_repeats)
    peaks.append(matrix_peak())
    found["enhance"] = timed(
        enhancing(backend, hp, weights, sound(size.enhance), size.nfe), size.enhance_repeats
    )
    peaks.append(matrix_peak())
    # Other work may have met some of them: a machine's peak is the best that it was seen to do.
    found["peak_gflops"] = max(peaks)
    found["against_plain"] = against_plain(name, size.vocode, size.denoise_repeats)
    return found


def measure(quick: bool, names: list[BackendName]) -> dict[str, Any]:
    """Everything, with the machine it was measured on."""
    size, words = (QUICK, ["--quick"]) if quick else (Size(), [])
    hp, lengths = hparams_of(size), {task: sound(getattr(size, task)).shape[1] for task in PUBLISHED}
    parts = enhancer_flops(hp, lengths["enhance"], size.nfe, hp.cfm_solver_method)
    flops = {
        "denoise": denoiser_flops(hp.unet_hidden_dim, lengths["denoise"]),
        "enhance": sum(parts.values()),
    }
    found: dict[str, Any] = {"machine": machine(), "size": vars(size), "published": PUBLISHED}
    found["gflops"] = {
        "denoise": flops["denoise"] / 1e9,
        "enhance": {part: count / 1e9 for part, count in parts.items()},
    }
    for name in names:
        found[name] = row = in_process("benchmarks.inference", "--here", name, *words)
        for task, length in lengths.items():
            row[task] = told(row[task], length / SAMPLE_RATE, flops[task], row["peak_gflops"], task)
        show(name, row)
    if set(names) == set(BACKENDS):
        found["jax_over_torch"] = {
            task: found["jax"][task]["seconds"]["median"] / found["torch"][task]["seconds"]["median"]
            for task in PUBLISHED
        }
        for task, ratio in found["jax_over_torch"].items():
            print(f"jax / torch, {task}: {ratio:.2f} of the time", flush=True)
    return found


def against_plain(name: BackendName, seconds: float, repeats: int) -> dict[str, Any]:
    """How many times as fast the vocoder is as its plain form; the two take turns."""
    times = in_turn(
        {"ours": vocoding(name, seconds, plain=False), "plain": vocoding(name, seconds, plain=True)}, repeats
    )
    ratio = times["plain"]["median"] / times["ours"]["median"]
    return {"seconds": times["ours"], "plain_seconds": times["plain"], "ratio": ratio}


def show(name: str, found: Mapping[str, Any]) -> None:
    """Print what was found of a backend."""
    for task in PUBLISHED:
        row = found[task]
        print(
            f"{name:6} {task:8} {row['time_over_length']:6.2f} times the sound's length, {row['share_of_peak']:.0%}"
            f" of peak, {row['over_published_share']:.2f} times the published program's share",
            flush=True,
        )
    ratio = found["against_plain"]["ratio"]
    print(f"{name:6} vocoder {ratio:.2f} times as fast as written plainly", flush=True)


def main() -> None:
    """Measure, print, and write the figures where asked."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--quick", action="store_true", help="a narrow model, to see that it works")
    parser.add_argument("--here", choices=BACKENDS, help=argparse.SUPPRESS)
    given = parser.parse_args()
    calm_threads()
    if given.here:
        print(json.dumps(measure_here(given.here, QUICK if given.quick else Size())))
        return
    found = measure(given.quick, [name for name in BACKENDS if installed(name)])
    if given.json:
        write_results(given.json, found)


if __name__ == "__main__":
    main()
