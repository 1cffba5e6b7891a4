"""A model as one file that runs without Parivox: ONNX from PyTorch, StableHLO from JAX."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np

from parivox import __version__
from parivox.atomic import replacing
from parivox.backend import BackendName, installed
from parivox.errors import BackendError, CheckpointError, ConfigError
from parivox.features import SAMPLE_RATE
from parivox.loading import Loaded

ExportFormat = Literal["onnx", "stablehlo"]

BLOCK = 6_720
"""Samples of 16 frames; every length inside of an exported program is a multiple of it."""

SHORTEST = 841
"""Samples that a row must have at least, as for `Backend.denoise`."""

LEAST_DB = 90.0
"""An exported program that is less close to its backend than this is not written."""

MAKERS: dict[ExportFormat, BackendName] = {"onnx": "torch", "stablehlo": "jax"}
"""Which backend makes a format."""

Program = Callable[[np.ndarray], np.ndarray]


def format_of(path: Path, given: ExportFormat | None) -> ExportFormat:
    """The format that was asked for, or that the suffix names.

    Raises:
        ConfigError: the suffix names none.
    """
    if given is not None:
        return given
    if path.suffix == ".onnx":
        return "onnx"
    if path.suffix == ".stablehlo":
        return "stablehlo"
    raise ConfigError(f"{path}: the name tells no format; end it in .onnx or .stablehlo, or give --format")


def export_model(model: Loaded, path: Path, form: ExportFormat, check: bool = True) -> float | None:
    """Write a denoiser for use without Parivox; the file appears whole or not at all.

    Args:
        model: a denoiser, as `parivox.loading.load_for_cleaning` gives it.
        path: of the file; must not exist.
        form: what to write.
        check: run the program on a made-up sound and compare it with the backend that made it.

    Returns:
        How far it is from the backend in dB, the higher the closer; None without a check.

    Raises:
        BackendError: the backend or the extra is not installed, or the program does not compute what the backend does.
        CheckpointError: the file exists or cannot be written; the tensors do not fit.
    """
    if path.exists() or path.is_symlink():
        raise CheckpointError(f"{path}: exists already; name another place, or move it away")
    _check_installed(form)
    maker = MAKERS[form]
    hidden = model.hp.unet_hidden_dim
    program = importlib.import_module(f"{maker}_impl.export").export_denoiser(
        model.weights, hidden, _metadata(model, path)
    )
    distance = _distance(model, program, form) if check else None
    if distance is not None and not distance >= LEAST_DB:
        raise BackendError(
            f"{path}: not written, the exported program is {distance:.0f} dB from the backend and not"
            f" {LEAST_DB:.0f}; report this with the output of: parivox doctor"
        )
    try:
        with replacing(path) as temporary:
            temporary.write_bytes(program)
    except OSError as error:
        raise CheckpointError(
            f"{path}: cannot be written ({error.strerror}); free some space or choose another place"
        ) from error
    return distance


def _check_installed(form: ExportFormat) -> None:
    maker = MAKERS[form]
    if not installed(maker):
        raise BackendError(
            f"{form} is made with {maker}, which is not installed; pip install 'parivox[{maker}]'"
        )
    needed = ("onnx", "onnxruntime") if form == "onnx" else ("flatbuffers",)
    if any(importlib.util.find_spec(name) is None for name in needed):
        raise BackendError(f"{form} needs the extra export; pip install 'parivox[export]'")


def _metadata(model: Loaded, path: Path) -> Mapping[str, str]:
    return {
        "name": path.stem,
        "parivox": __version__,
        "model": model.about,
        "sample_rate": str(SAMPLE_RATE),
        "shortest": str(SHORTEST),
        "scale": "each row is divided by its peak within; the result stays at that scale",
    }


def _distance(model: Loaded, program: bytes, form: ExportFormat) -> float:
    """The smallest signal-to-difference ratio over two shapes, in dB."""
    from parivox.backend import get_backend

    backend = get_backend(MAKERS[form], device="cpu")
    denoiser: Any = backend.load_denoiser(model.hp, model.weights)  # pyright: ignore[reportArgumentType]
    run: Program = importlib.import_module(f"{MAKERS[form]}_impl.export").load_program(program)
    found = []
    for rows, samples in ((1, 9_001), (2, 13_440)):
        t = np.arange(samples) / SAMPLE_RATE
        rng = np.random.default_rng(samples)
        tones = np.stack([np.sin(2 * np.pi * (200 + 100 * row + 900 * t) * t) for row in range(rows)])
        sound = (0.3 * tones + 0.05 * rng.standard_normal((rows, samples))).astype(np.float32)
        wanted, made = (f.astype(np.float64) for f in (backend.denoise(denoiser, sound), run(sound)))
        found.append(_ratio(wanted, made))
    return min(found)


def _ratio(wanted: np.ndarray, made: np.ndarray) -> float:
    if wanted.shape != made.shape:
        return -np.inf
    return float(10 * np.log10((wanted**2).sum() / max(((wanted - made) ** 2).sum(), 1e-300)))
