"""The layout in which Resemble Enhance publishes a model.

FOLDER/hparams.yaml                             hyperparameters
FOLDER/ds/G/latest                              the word `default`
FOLDER/ds/G/default/mp_rank_00_model_states.pt  a file of torch.save, whose entry `module` holds the tensors
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from parivox.backend import NamedArrays
from parivox.errors import CheckpointError
from parivox.hparams import HParams
from parivox.hparams_check import read_mapping, write_mapping
from parivox.model_kinds import OWN_FIELDS, Kind, kind_of
from parivox.torch_file import open_torch_file, write_torch_file
from parivox.torch_pickle import DTYPES, StoredTensor
from parivox.weights import check_shapes

HPARAMS = "hparams.yaml"
LATEST = "ds/G/latest"
TAG = "default"
STATES = "mp_rank_00_model_states.pt"


def read_public(folder: Path) -> tuple[Kind, HParams, NamedArrays]:
    """Kind, hyperparameters and tensors of a published model; needs no torch, and nothing of the file is run.

    Raises:
        CheckpointError: a file is missing, truncated, damaged or asks for code; or lists every tensor that is missing,
            extra or of another shape than the hyperparameters say.
        ConfigError: the hyperparameters have unknown names, or make no sense.
    """
    values = read_mapping(folder / HPARAMS)
    path = states_path(folder)
    with open_torch_file(path) as file:
        stored = _module(path, file.content)
        kind = kind_of(values, stored)
        hp = kind.hparams.from_dict(values, str(folder / HPARAMS))
        expected = kind.shapes(hp)
        check_shapes(expected, {name: tensor.shape for name, tensor in stored.items()}, str(path))
        return kind, hp, {name: file.array(stored[name]) for name in expected}


def write_public(folder: Path, hp: HParams, tensors: NamedArrays) -> None:
    """Write a model as the published program reads it, into an empty folder.

    Raises:
        OSError: a file cannot be written.
    """
    values = hp.to_dict()
    # What the published program does not know stands there only where it could not load the model anyway.
    usual = type(hp)().to_dict()
    known = {name: v for name, v in values.items() if name not in OWN_FIELDS or v != usual[name]}
    (folder / HPARAMS).write_text(write_mapping(known), encoding="utf-8")
    states = (folder / LATEST).with_name(TAG) / STATES
    states.parent.mkdir(parents=True)
    write_torch_file(states, tensors)
    (folder / LATEST).write_text(TAG, encoding="utf-8")


def states_path(folder: Path) -> Path:
    """Where a published model has its tensors: in the folder beside `latest` that `latest` names.

    Raises:
        CheckpointError: `latest` is missing, or names no folder beside it.
    """
    latest = folder / LATEST
    remedy = "give the folder of a whole published model"
    try:
        tag = latest.read_text(encoding="utf-8").strip()
    except OSError as error:
        raise CheckpointError(f"{latest}: cannot be read ({error.strerror}); {remedy}") from error
    except ValueError as error:
        raise CheckpointError(f"{latest}: holds no text; {remedy}") from error
    if tag in ("", ".", "..") or not all(c.isalnum() or c in "._-" for c in tag):
        raise CheckpointError(f"{latest}: does not name a folder beside it; write the word '{TAG}' into it")
    return latest.with_name(tag) / STATES


def _module(path: Path, content: Any) -> dict[str, StoredTensor]:
    module = content.get("module") if isinstance(content, dict) else None
    if not isinstance(module, dict) or not module:
        raise CheckpointError(f"{path}: has no entry 'module' with tensors; give a published model")
    if not all(isinstance(name, str) and name.isprintable() for name in module):
        raise CheckpointError(f"{path}: damaged (names of tensors are no text); copy it again")
    others = [name for name, value in module.items() if not isinstance(value, StoredTensor)]
    if others:
        raise CheckpointError(f"{path}: entries of 'module' are no tensors: {', '.join(others)}")
    known = DTYPES.values()
    strange = [f"{name} ({tensor.dtype})" for name, tensor in module.items() if tensor.dtype not in known]
    if strange:
        raise CheckpointError(
            f"{path}: {len(strange)} tensors are neither float16 nor float32; convert them first: {', '.join(strange)}"
        )
    return module
