"""Models from one form into another: the published layout, a Parivox run, one safetensors file.

Tensors keep their names, their numbers to the last bit and, unless told otherwise, their dtype.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from parivox.atomic import replacing, temporary_name
from parivox.backend import NamedArrays
from parivox.checkpoint import (
    Checkpoint,
    digest_arrays,
    digest_header,
    list_checkpoints,
    load_model,
    one_line,
    save_checkpoint,
    storable,
    writable,
)
from parivox.errors import CheckpointError
from parivox.hparams import HParams
from parivox.model_kinds import Kind, kind_named
from parivox.public_layout import HPARAMS, LATEST, read_public, write_public
from parivox.run import meta_of
from parivox.run_config import config_of
from parivox.run_start import arrays_of
from parivox.stages import has_judge
from parivox.weights import check_arrays

Form = Literal["public", "run", "safetensors"]
ModelDtype = Literal["float16", "float32"]

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
    """

    kind: Kind
    hp: HParams
    tensors: NamedArrays
    step: int | None = None
    judged: bool = False


@dataclass(frozen=True)
class Conversion:
    """What `convert` did: the model, its form before and after."""

    model: Model
    source: Form
    target: Form


def convert(
    source: Path,
    target: Path,
    form: Form | None = None,
    dtype: ModelDtype | None = None,
    message: Callable[[str], object] = print,
) -> Conversion:
    """Read a model in any form and write it in another; the target appears whole or not at all.

    Args:
        source: a published folder, a run folder or one of its checkpoints, or a plain safetensors file.
        target: must not exist. A name that ends in `.safetensors` is one file, anything else a folder.
        form: what to write; None takes the file for such a name, else the published layout for a run and a run for
            anything else.
        dtype: of all tensors; None keeps them.
        message: called with one line for each thing worth knowing.

    Raises:
        CheckpointError: the source is missing, damaged, unsafe or does not fit its hyperparameters; the target exists
            or cannot be written; a number leaves the range of the dtype.
        ConfigError: the hyperparameters have unknown names or make no sense.
    """
    if target.exists() or target.is_symlink():
        raise CheckpointError(f"{target}: exists already; name another place, or move it away")
    is_file = target.suffix == ".safetensors"
    if form is not None and (form == "safetensors") != is_file:
        end = "must end" if form == "safetensors" else "must not end"
        raise CheckpointError(f"{target}: the name of {ABOUT[form]} {end} in .safetensors; choose another")
    model, found = read_model(source, message)
    report_buffers(model, source, message)
    if dtype is not None:
        model = dataclasses.replace(model, tensors=_cast(model.tensors, dtype, source))
    form = form or ("safetensors" if is_file else "public" if found == "run" else "run")
    if model.judged:
        message(f"{source}: the run's discriminator is left out; it is no part of a model")
    if form == "run" and has_judge(model.hp):
        message(f"{target}: begins with a new discriminator; no model holds one")
    try:
        if form == "safetensors":
            _write_plain(target, model)
        else:
            with _new_folder(target) as folder:
                if form == "public":
                    write_public(folder, model.hp, model.tensors)
                else:
                    _write_run(folder, model, source)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"{target}: cannot be written ({one_line(error)}); free some space or choose another place"
        ) from error
    return Conversion(model, found, form)


def read_model(path: Path, message: Callable[[str], object] = print) -> tuple[Model, Form]:
    """A model in any form.

    Raises:
        CheckpointError: missing, damaged, unsafe, or it does not fit its hyperparameters.
        ConfigError: its hyperparameters have unknown names or make no sense.
    """
    form = _form(path)
    if form == "public":
        return Model(*read_public(path)), form
    if form == "safetensors":
        return _read_plain(path), form
    weights, buffers, meta = load_model(path, message)
    kind = kind_named(meta.model, str(path))
    hp = kind.hparams.from_dict(meta.hparams, f"{path}: hyperparameters")
    if not buffers:
        # A model that was trained here; its buffers are as precise as its weights.
        dtype = next(iter(weights.values())).dtype if weights else np.dtype(np.float32)
        buffers = {name: buffer.astype(dtype) for name, buffer in kind.buffers(hp).items()}
    tensors = _fitting(kind, hp, weights | buffers, path)
    return Model(kind, hp, tensors, meta.step, meta.discriminator_step >= 0), form


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


def _cast(tensors: NamedArrays, dtype: ModelDtype, source: Path) -> NamedArrays:
    with np.errstate(over="ignore", under="ignore"):
        cast = {name: array.astype(dtype, copy=False) for name, array in tensors.items()}
    lost = [name for name in cast if (np.isfinite(tensors[name]) & ~np.isfinite(cast[name])).any()]
    if lost:
        raise CheckpointError(
            f"{source}: does not fit into {dtype}; keep float32. Too large: {', '.join(lost)}"
        )
    return cast


@contextmanager
def _new_folder(target: Path) -> Iterator[Path]:
    """A temporary folder that takes the name `target` when the block ends well."""
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_name(target)
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir()
        yield temporary
        os.rename(temporary, target)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def _write_run(folder: Path, model: Model, source: Path) -> None:
    """A run that has not made a step, with the model for its first weights."""
    buffers = model.kind.buffers(model.hp)
    weights = {name: array for name, array in model.tensors.items() if name not in buffers}
    kept = {name: array for name, array in model.tensors.items() if name in buffers}
    config = config_of(model.hp, None)
    meta = meta_of(model.hp, 0, 0, seed=0, writer={"converted_from": source.name}, config=config)
    arrays = arrays_of(model.hp, weights, meta.seed, config.optimizer)
    model.hp.save(folder / HPARAMS)
    save_checkpoint(folder, Checkpoint(arrays, meta, kept))


def _write_plain(path: Path, model: Model) -> None:
    tensors = {name: storable(array) for name, array in model.tensors.items()}
    header = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "model": model.kind.name,
        "hparams": json.dumps(model.hp.to_dict()),
        "digest": digest_arrays(tensors),
    }
    with replacing(path) as temporary:
        save_file(tensors, temporary, metadata=header | {"header_digest": digest_header(header)})


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
