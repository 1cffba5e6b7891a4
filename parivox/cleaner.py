"""A model that is loaded once and cleans many arrays and streams: what `parivox.load` gives.

`parivox enhance` uses it too, for files.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from parivox.backend import Backend, BackendName, Precision, Solver, get_backend
from parivox.enhance import clean
from parivox.errors import AudioError, ConfigError
from parivox.hparams import DenoiserHParams, EnhancerHParams
from parivox.hub import PUBLIC
from parivox.loading import Loaded, load_for_cleaning, own_denoiser
from parivox.rows import Place, RowModel
from parivox.samples import checked_rate, checked_wav
from parivox.sampling import Sampler, Sampling
from parivox.stream import clean_stream

ACCELERATED_ROWS = 4
"""Rows that are computed at once where it is not a CPU."""

_turn = threading.Lock()
"""Whoever holds it computes. torch's switches for TF32 belong to the process, and two chunks need twice the memory."""


def load(
    what: str | Path = PUBLIC,
    backend: BackendName | None = None,
    device: str = "auto",
    precision: Precision = "highest",
    *,
    denoise_only: bool | None = None,
    message: Callable[[str], object] = print,
) -> Cleaner:
    """A model that is ready to clean.

    Args:
        what: a run folder, one of its checkpoints, a published folder, a safetensors file, or
            `hub:OWNER/REPO[@REVISION]`, which is downloaded once; the public weights where nothing is named.
        backend: `jax` or `torch`; None takes what is installed, JAX first, or `PARIVOX_BACKEND`.
        device: `auto`, `cpu`, `gpu` (`cuda` is the same), or `tpu` (JAX only).
        precision: arithmetic of convolutions and matrix products: `highest` is true float32, or `tf32`, `bf16`.
        denoise_only: True takes of an enhancer its denoiser alone; False refuses a denoiser; None takes what there is.
        message: called with one line before a download, and for what is strange about the weights.

    Raises:
        BackendError: the backend, device or precision is not available here.
        CheckpointError: the model is missing, damaged, does not fit its hyperparameters, or cannot be fetched.
        ConfigError: the model is a first stage, or a denoiser where `denoise_only` is False.
    """
    engine = get_backend(backend, device=device, precision=precision)  # before a download
    return Cleaner(load_for_cleaning(Path(what), denoise_only, message), engine, str(what))


class Cleaner:
    """Cleans arrays and streams of any length and rate; `load` makes one.

    Threads may share it: one chunk is computed at a time, in a process, and the rest of the work goes on beside it.

    Attributes:
        name: what it was loaded from.
        about: in what form, or at which step of a run.
    """

    def __init__(self, loaded: Loaded, backend: Backend, name: str) -> None:
        """Take a model and put it on the device; an enhancer's own denoiser follows at its first use."""
        self.name, self.about = name, loaded.about
        self._backend, self._hp = backend, loaded.hp
        self._weights = {"denoise": own_denoiser(loaded)}
        if isinstance(loaded.hp, EnhancerHParams):
            self._weights["enhance"] = loaded
        self._models: dict[str, Any] = {}
        with _turn:
            self._model("enhance" if "enhance" in self._weights else "denoise")

    def __repr__(self) -> str:
        kind = "enhancer" if isinstance(self._hp, EnhancerHParams) else "denoiser"
        return f"<parivox.Cleaner: {kind} {self}>"

    def __str__(self) -> str:
        about = self._backend.describe()
        return f"{self.name} ({self.about}), {about['backend']} on {about['device']}"

    @property
    def hp(self) -> DenoiserHParams | EnhancerHParams:
        """Hyperparameters of the model; their class says whether it can enhance."""
        return self._hp

    def denoise(
        self,
        wav: np.ndarray,
        rate: int,
        *,
        chunk_seconds: float = 30.0,
        overlap_seconds: float = 1.0,
    ) -> np.ndarray:
        """Take the noise away, with the denoiser or that of the enhancer.

        Args:
            wav: floats (t,) or (channels, t), t at least 1.
            rate: in Hz, 1 to 768,000; 8,000 to 96,000 are sensible.
            chunk_seconds: how much the model hears at once; a longer chunk takes more memory.
            overlap_seconds: how much neighbouring chunks share; at most half a chunk.

        Returns:
            float32 of the same shape, at the same rate. The peak may exceed 1.

        Raises:
            AudioError: the samples have another dtype or shape, are not finite, or the rate is out of range.
            ConfigError: the overlap exceeds half a chunk, or a duration is not positive.
        """
        return _clean(wav, rate, self.denoiser(), chunk_seconds, overlap_seconds)

    def enhance(
        self,
        wav: np.ndarray,
        rate: int,
        *,
        nfe: int | None = None,
        solver: Solver | None = None,
        lambd: float = 1.0,
        tau: float = 0.5,
        seed: int = 0,
        chunk_seconds: float = 30.0,
        overlap_seconds: float = 1.0,
    ) -> np.ndarray:
        """Make the speech anew, full-band and without noise.

        Args:
            wav: floats (t,) or (channels, t), t at least 1.
            rate: in Hz, 1 to 768,000; 8,000 to 96,000 are sensible.
            nfe: evaluations of the flow's velocity, 1 to 128; None takes the model's. The time grows with it.
            solver: `midpoint`, `euler` or `rk4`; None takes the model's.
            lambd: how much it listens to the denoised sound, 0 to 1; 0 skips the denoiser.
            tau: share of noise in what the flow begins with, 0 to 1.
            seed: of all noise; the same seed gives the same sound.
            chunk_seconds: how much the model hears at once; a longer chunk takes more memory.
            overlap_seconds: how much neighbouring chunks share; at most half a chunk.

        Returns:
            float32 of the same shape, at the same rate. The peak may exceed 1.

        Raises:
            AudioError: the samples have another dtype or shape, are not finite, or the rate is out of range.
            ConfigError: the model is a denoiser, or an option is out of range.
        """
        model = self.enhancer(Sampling(nfe, solver, lambd, tau, seed))
        return _clean(wav, rate, model, chunk_seconds, overlap_seconds)

    def denoise_stream(
        self,
        blocks: Iterable[np.ndarray],
        rate: int,
        *,
        chunk_seconds: float = 30.0,
        overlap_seconds: float = 1.0,
    ) -> Iterator[np.ndarray]:
        """`denoise` for sound that comes in blocks: the same samples, with memory for about two chunks.

        Args:
            blocks: floats (t,) or (channels, t) each, of any lengths.
            rate: of all blocks, in Hz.
            chunk_seconds: how much the model hears at once, and how much later a sample comes out.
            overlap_seconds: how much neighbouring chunks share; at most half a chunk.

        Returns:
            Blocks float32 of other lengths, together exactly as long as those that went in.

        Raises:
            AudioError: as `denoise`; for a block when it is its turn.
            ConfigError: as `denoise`.
        """
        return clean_stream(
            blocks, rate, self.denoiser(), chunk_seconds=chunk_seconds, overlap_seconds=overlap_seconds
        )

    def enhance_stream(
        self,
        blocks: Iterable[np.ndarray],
        rate: int,
        *,
        nfe: int | None = None,
        solver: Solver | None = None,
        lambd: float = 1.0,
        tau: float = 0.5,
        seed: int = 0,
        chunk_seconds: float = 30.0,
        overlap_seconds: float = 1.0,
    ) -> Iterator[np.ndarray]:
        """`enhance` for sound that comes in blocks, as `denoise_stream` is `denoise`; options and errors are theirs."""
        model = self.enhancer(Sampling(nfe, solver, lambd, tau, seed))
        return clean_stream(blocks, rate, model, chunk_seconds=chunk_seconds, overlap_seconds=overlap_seconds)

    def denoiser(self, batch: int | None = None) -> RowModel:
        """The denoiser as `parivox.enhance.clean` takes it; safe from several threads.

        Args:
            batch: rows that are computed at once; None takes 1 on a CPU, which more would not make faster, else 4.
        """
        return Denoising(partial(self._call, "denoise"), batch or self._rows(), self._backend.compiles)

    def enhancer(self, sampling: Sampling, batch: int | None = None) -> RowModel:
        """The enhancer as `parivox.enhance.clean` takes it; safe from several threads.

        Args:
            sampling: the options.
            batch: see `denoiser`.

        Raises:
            ConfigError: the model is a denoiser.
        """
        if not isinstance(self._hp, EnhancerHParams):
            raise ConfigError(
                f"{self.name}: holds a denoiser, which cannot enhance; denoise, or load an enhancer"
            )
        call = partial(self._call, "enhance")
        return Sampler(call, self._hp, sampling, batch or self._rows(), self._backend.compiles)

    def _rows(self) -> int:
        return 1 if self._backend.describe()["device"].startswith("cpu") else ACCELERATED_ROWS

    def _call(self, task: str, *arguments: Any) -> np.ndarray:
        """One call of the backend, when no other thread makes one."""
        with _turn:
            call = self._backend.enhance if task == "enhance" else self._backend.denoise
            return call(self._model(task), *arguments)

    def _model(self, task: str) -> Any:
        if task not in self._models:
            backend, loaded = self._backend, self._weights[task]
            make: Callable[..., Any] = backend.load_enhancer if task == "enhance" else backend.load_denoiser
            self._models[task] = make(loaded.hp, loaded.weights)
            del self._weights[task]  # they are on the device now
        return self._models[task]


@dataclass
class Denoising:
    """A denoiser as a model for rows (`parivox.rows.RowModel`)."""

    denoise: Callable[..., np.ndarray]
    batch: int
    compiles: bool

    def __call__(self, wav: np.ndarray, lengths: np.ndarray | None, places: Sequence[Place]) -> np.ndarray:
        """Denoise rows."""
        return self.denoise(wav, lengths)


def _clean(
    wav: np.ndarray, rate: int, model: RowModel, chunk_seconds: float, overlap_seconds: float
) -> np.ndarray:
    rows, rate = checked_wav(wav), checked_rate(rate)
    if not rows.shape[1]:
        raise AudioError("wav holds no samples; give at least one")
    out = clean(rows, rate, model, chunk_seconds=chunk_seconds, overlap_seconds=overlap_seconds)
    return out.reshape(np.shape(wav))
