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
from typing import Literal

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import save_file

from parivox.atomic import replacing, temporary_name
from parivox.backend import NamedArrays
from parivox.checkpoint import (
    Checkpoint,
    digest_arrays,
    digest_header,
    one_line,
    save_checkpoint,
    storable,
)
from parivox.errors import CheckpointError
from parivox.model_files import (
    ABOUT,
    FORMAT,
    FORMAT_VERSION,
    Form,
    Model,
    read_model,
    report_buffers,
)
from parivox.public_layout import HPARAMS, write_public
from parivox.run import meta_of
from parivox.run_config import config_of
from parivox.run_start import arrays_of
from parivox.stages import has_judge

ModelDtype = Literal["float16", "float32"]


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
    config = config_of(model.hp, None)
    meta = meta_of(model.hp, 0, 0, seed=0, writer={"converted_from": source.name}, config=config)
    arrays = arrays_of(model.hp, model.weights(), meta.seed, config.optimizer)
    model.hp.save(folder / HPARAMS)
    save_checkpoint(folder, Checkpoint(arrays, meta, model.stored_buffers()))


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
