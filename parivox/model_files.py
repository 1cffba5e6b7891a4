"""Models in any form: the published layout, a Parivox run, one safetensors file."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from safetensors import SafetensorError, safe_open

from parivox.backend import NamedArrays
from parivox.checkpoint import (
    digest_arrays,
    digest_header,
    list_checkpoints,
    load_model,
    one_line,
    writable,
)
from parivox.errors import CheckpointError
from parivox.hparams import HParams
from parivox.hub import hub_folder, is_hub_name, parse_name
from parivox.model_kinds import Kind, kind_named
from parivox.public_layout import HPARAMS, LATEST, read_public
from parivox.weights import check_arrays

Form = Literal["public", "run", "safetensors"]

ABOUT: dict[Form, str] = {
    "public": "the published layout",
    "run": "a Parivox run",
    "safetensors": "one safetensors file",
}

FORMAT = "parivox-model"
FORMAT_VERSION = "1"
"""Raised when a plain file can no longer be read by older programs."""


@dataclass(frozen=True)
class Model:
    """A model without its training state.

    Attributes:
        kind: what it is.
        hp: its hyperparameters.
        tensors: weights and computed buffers, by the published names, float16 or float32.
        step: updates that a run has made; None where that is not known.
        judged: whether a run trains it with a discriminator, which is no part of a model.
        stored: whether the buffers were read; else they are computed, and a run does without them.
    """

    kind: Kind
    hp: HParams
    tensors: NamedArrays
    step: int | None = None
    judged: bool = False
    stored: bool = True

    def stored_buffers(self) -> NamedArrays:
        """The buffers that were read, as they were; they belong to the model as its weights do."""
        names = self.kind.buffers(self.hp) if self.stored else ()
        return {name: self.tensors[name] for name in names}

    def weights(self) -> NamedArrays:
        """All that training changes."""
        return {name: self.tensors[name] for name in self.kind.weights(self.hp)}


def read_model(path: Path, message: Callable[[str], object] = print) -> tuple[Model, Form]:
    """A model in any form, also one on the hub, which is downloaded where it is not cached.

    Raises:
        CheckpointError: missing, damaged, unsafe, or it does not fit its hyperparameters.
        ConfigError: its hyperparameters have unknown names or make no sense.
    """
    if is_hub_name(path):
        return _read_hub(path, message), "public"
    form = _form(path)
    if form == "public":
        return Model(*read_public(path)), form
    if form == "safetensors":
        return _read_plain(path), form
    weights, buffers, meta = load_model(path, message)
    kind = kind_named(meta.model, str(path))
    hp = kind.hparams.from_dict(meta.hparams, f"{path}: hyperparameters")
    stored = bool(buffers)
    if not stored:
        # A model that was trained here; its buffers are as precise as its weights.
        dtype = next(iter(weights.values())).dtype if weights else np.dtype(np.float32)
        buffers = {name: buffer.astype(dtype) for name, buffer in kind.buffers(hp).items()}
    tensors = _fitting(kind, hp, weights | buffers, path)
    return Model(kind, hp, tensors, meta.step, meta.discriminator_step >= 0, stored), form


def _read_hub(path: Path, message: Callable[[str], object]) -> Model:
    folder = hub_folder(str(path), message)
    try:
        return Model(*read_public(folder))
    except CheckpointError as error:
        store = parse_name(str(path)).store
        raise CheckpointError(f"{error}; it is of {path}: to fetch it anew, delete {store}") from error


def report_buffers(model: Model, source: Path, message: Callable[[str], object]) -> None:
    """One line where stored buffers, which are used as they are, differ from computed ones beyond rounding."""
    strange = model.kind.strange_buffers(model.hp, model.tensors)
    if strange:
        message(f"{source}: stored buffers differ from computed ones beyond rounding: {', '.join(strange)}")


def _form(path: Path) -> Form:
    if path.is_dir():
        if list_checkpoints(path):
            return "run"
        if (path / HPARAMS).exists() or (path / LATEST).exists():
            return "public"
        raise CheckpointError(
            f"{path}: neither a run (no checkpoints) nor a published model (no {HPARAMS}, no {LATEST}); check the path"
        )
    if not path.exists():
        raise CheckpointError(f"{path}: no such file or folder; check the path")
    if path.suffix in (".pt", ".pth", ".bin", ".ckpt"):
        raise CheckpointError(
            f"{path}: is a part of a model; give the folder that holds {HPARAMS} and {LATEST}"
        )
    return "safetensors" if _header(path).get("format") == FORMAT else "run"


def _header(path: Path) -> dict[str, str]:
    try:
        with safe_open(path, framework="numpy") as file:
            return dict(file.metadata() or {})
    except (OSError, SafetensorError, ValueError) as error:
        raise CheckpointError(
            f"{path}: truncated, damaged or no safetensors file ({one_line(error)}); copy it again"
        ) from error


def _fitting(kind: Kind, hp: HParams, tensors: NamedArrays, path: Path) -> NamedArrays:
    expected = kind.shapes(hp)
    check_arrays(expected, tensors, str(path))
    return {name: tensors[name] for name in expected}


def _read_plain(path: Path) -> Model:
    header = _header(path)
    digest = header.pop("header_digest", "")
    if digest != digest_header(header):
        raise CheckpointError(f"{path}: damaged (the digest of the header differs); copy it again")
    if header.get("format_version") != FORMAT_VERSION:
        raise CheckpointError(
            f"{path}: form {header.get('format_version')}, this program reads {FORMAT_VERSION}; "
            "use the version of Parivox that wrote it"
        )
    tensors = _tensors(path)
    if digest_arrays(tensors) != header.get("digest"):
        raise CheckpointError(f"{path}: damaged (the digest of the tensors differs); copy it again")
    kind = kind_named(header.get("model", ""), str(path))
    try:
        values: Any = json.loads(header.get("hparams", ""))
    except ValueError:
        values = None
    if not isinstance(values, dict):
        raise CheckpointError(f"{path}: holds no hyperparameters; convert the model again")
    hp = kind.hparams.from_dict(values, f"{path}: hyperparameters")
    return Model(kind, hp, _fitting(kind, hp, tensors, path))


def _tensors(path: Path) -> NamedArrays:
    try:
        with safe_open(path, framework="numpy") as file:
            names = list(file.keys())
            strange = [name for name in names if file.get_slice(name).get_dtype() not in ("F16", "F32")]
            if strange:
                raise ValueError(f"neither float16 nor float32: {', '.join(strange)}")
            return {name: writable(file.get_tensor(name)) for name in names}
    except (OSError, SafetensorError, ValueError) as error:
        raise CheckpointError(f"{path}: damaged ({one_line(error)}); copy it again") from error
