"""What the benchmarks let a backend do, ready to be run again and again: denoise, enhance, train one step."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from typing import Any

import numpy as np

from parivox.backend import Backend, NamedArrays, first_arrays
from parivox.deepspeed_config import resolve
from parivox.enhancer_tables import TAIL, VOCODER_NOISE
from parivox.hparams import WAV_RATE, EnhancerHParams, HParams
from parivox.plan import row_shapes
from parivox.stages import has_judge
from parivox.weights import initial_denoiser
from parivox.weights_discriminator import initial_discriminator
from parivox.weights_enhancer import initial_enhancer, trained_names

Work = Callable[[], object]
"""One call; it has ended when it returns."""

UNIT_ROWS = ("blend", "tau", "time")
"""Arrays of a batch that hold shares, in [0, 1]."""


@lru_cache(maxsize=2)
def initial(hp: HParams) -> NamedArrays:
    """Weights from a seed."""
    if isinstance(hp, EnhancerHParams):
        return initial_enhancer(0, hp)
    return initial_denoiser(0, _width(hp))


def denoising(backend: Backend, hp: HParams, rows: int, seconds: float) -> Work:
    """Denoise so many rows of noise."""
    model = backend.load_denoiser(hp, initial(hp))
    wav = _noise((rows, round(seconds * WAV_RATE)))
    return lambda: backend.denoise(model, wav)


def enhancing(backend: Backend, hp: EnhancerHParams, rows: int, seconds: float, nfe: int) -> Work:
    """Enhance so many rows of noise, with the denoiser in front."""
    return enhancing_with(backend, backend.load_enhancer(hp, initial(hp)), hp, rows, seconds, nfe)


def enhancing_with(
    backend: Backend, model: Any, hp: EnhancerHParams, rows: int, seconds: float, nfe: int
) -> Work:
    """The same with a model that has been loaded."""
    samples = round(seconds * WAV_RATE)
    frames = samples // hp.hop_size
    wav = _noise((rows, samples))
    prior, noise = _noise((rows, hp.lcfm_latent_dim, frames)), _noise((rows, VOCODER_NOISE, frames + TAIL))
    half = np.full(rows, 0.5, np.float32)
    return lambda: backend.enhance(model, wav, prior, noise, half, half, hp.cfm_solver_method, nfe)


def training(backend: Backend, hp: HParams) -> tuple[Work, Callable[[], Any]]:
    """An update on one batch, and what tells the state as it is; with a discriminator it takes part at once.

    Raises:
        BackendError: the backend does not train this here.
    """
    if isinstance(hp, EnhancerHParams) and has_judge(hp):
        hp = hp.replace(gan_training_start_step=0)
    config = resolve(hp.deepspeed_config, world_size=1, hparams=hp)
    judge = first_arrays(initial_discriminator(0), config.optimizer) if has_judge(hp) else None
    weights = initial(hp)
    # A stage trains a part of the enhancer, and only that has moments.
    names = trained_names(hp) if isinstance(hp, EnhancerHParams) else list(weights)
    own = first_arrays({name: weights[name] for name in names}, config.optimizer)
    held = [backend.create_state(hp, replace(own, weights=weights, discriminator=judge), config)]
    rows = batch(hp)

    def step() -> object:
        # A step may consume the state that it is given.
        held[0], result = backend.step(held[0], rows)
        return result

    return step, lambda: held[0]


def repeat(work: Work, at_least: int = 2, seconds: float = 2.0, most: int = 5) -> dict[str, float]:
    """The first call, in which a backend may compile, and the fastest and slowest of the following ones."""
    took: list[float] = []
    begin = time.perf_counter()
    while len(took) < 1 + at_least or (len(took) <= most and time.perf_counter() - begin < took[0] + seconds):
        start = time.perf_counter()
        work()
        took.append(time.perf_counter() - start)
    return {"first": took[0], "min": min(took[1:]), "max": max(took[1:])}


def batch(hp: HParams) -> dict[str, np.ndarray]:
    """A batch of noise, with as many rows as the hyperparameters say."""
    draw, found = np.random.default_rng(0), {}
    for name, shape in row_shapes(hp, hp.batch_size_per_gpu).items():
        values = draw.random(shape) if name in UNIT_ROWS else 0.1 * draw.standard_normal(shape)
        found[name] = values.astype(np.float32)
    return found


def _noise(shape: tuple[int, ...]) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape, np.float32)


def _width(hp: HParams) -> int:
    return int(getattr(hp, "unet_hidden_dim", 0))
