"""How the enhancer draws a sound: its options, and noise that is the same for both backends and any batch.

The noise of a chunk is drawn by a NumPy generator for each channel, keyed by (seed, number of the chunk, number of the
channel), frame after frame: every file begins with the same noise, and what is cut off a recording's end changes none
of that before it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import get_args

import numpy as np
from jaxtyping import Float, Int

from parivox.backend import Solver
from parivox.enhancer_tables import TAIL, VOCODER_NOISE
from parivox.errors import ConfigError
from parivox.hparams import EnhancerHParams
from parivox.rows import Place

MAX_NFE = 128
"""Most evaluations of the flow's velocity that can be asked for."""


@dataclass(frozen=True)
class Sampling:
    """Options of a draw; `lambd` and `tau` begin with what the published program's command line does.

    Attributes:
        nfe: evaluations of the flow's velocity, rounded down to whole steps of the solver, at least one; None takes
            the hyperparameters'.
        solver: `midpoint`, `euler` or `rk4`, with 2, 1 or 4 evaluations a step; None takes the hyperparameters'.
        lambd: share of the denoised sound's mel spectrogram in the condition, the rest is the recording's own;
            0 leaves the denoiser out.
        tau: share of noise in what the flow begins with, the rest is the latent of the recording.
        seed: of all noise.

    Raises:
        ConfigError: a number is out of range, or the solver unknown; names it and what can be used.
    """

    nfe: int | None = None
    solver: Solver | None = None
    lambd: float = 1.0
    tau: float = 0.5
    seed: int = 0

    def __post_init__(self) -> None:
        """Check the ranges; a share that is NaN is in none."""
        if self.solver not in (None, *get_args(Solver)):
            raise ConfigError(f"--solver is '{self.solver}'; use one of {', '.join(get_args(Solver))}")
        if self.nfe is not None and not 1 <= self.nfe <= MAX_NFE:
            raise ConfigError(f"--nfe is {self.nfe}; use 1 to {MAX_NFE}")
        for name in ("lambd", "tau"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"--{name} is {getattr(self, name)}; it is a share, use 0 to 1")
        if self.seed < 0:
            raise ConfigError(f"--seed is {self.seed}; use 0 or more")


def row_noise(
    seed: int, places: Sequence[Place], latent: int, frames: int
) -> tuple[Float[np.ndarray, "b l n"], Float[np.ndarray, "b z n+10"]]:
    """Standard normal noise of the flow's prior and of the vocoder, float32.

    Args:
        seed: of the whole recording.
        places: number of the chunk and of the channel of each row, from 0.
        latent: width of the latent.
        frames: of the mel spectrogram.
    """
    parts: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])
    for place in places:
        streams = np.random.SeedSequence(seed, spawn_key=tuple(place)).spawn(2)
        for part, stream, shape in zip(
            parts, streams, ((frames, latent), (frames + TAIL, VOCODER_NOISE)), strict=True
        ):
            rng = np.random.Generator(np.random.PCG64(stream))
            part.append(rng.standard_normal(shape, dtype=np.float32).T)
    return np.stack(parts[0]), np.stack(parts[1])


class Sampler:
    """An enhancer as a model for rows (`parivox.rows.RowModel`): the noise of a row belongs to its place."""

    def __init__(
        self,
        enhance: Callable[..., np.ndarray],
        hp: EnhancerHParams,
        sampling: Sampling,
        batch: int = 1,
        compiles: bool = False,
    ):
        """Take `Backend.enhance` with a model, and the hyperparameters it was made of."""
        self.enhance, self.hp, self.sampling = enhance, hp, sampling
        self.batch, self.compiles = batch, compiles

    def __call__(
        self,
        wav: Float[np.ndarray, "b t"],
        lengths: Int[np.ndarray, " b"] | None,
        places: Sequence[Place],
    ) -> Float[np.ndarray, "b t"]:
        """Enhance rows."""
        rows, length = wav.shape
        asked, hp = self.sampling, self.hp
        prior, noise = row_noise(asked.seed, places, hp.lcfm_latent_dim, length // hp.hop_size)
        out = self.enhance(
            wav,
            prior,
            noise,
            np.full(rows, asked.tau, np.float32),
            np.full(rows, asked.lambd, np.float32) if asked.lambd else None,
            asked.solver or hp.cfm_solver_method,
            asked.nfe or hp.cfm_solver_nfe,
            lengths,
        )
        # The model makes whole frames; what is missing lies in the zeros that end a row and are cut off again.
        return np.pad(out, ((0, 0), (0, length - out.shape[1])))
