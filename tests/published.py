"""Small models in the published layout, whole and broken, for tests of conversions."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from parivox.backend import NamedArrays
from parivox.convert import convert
from parivox.errors import CheckpointError
from parivox.hparams import DenoiserHParams, HParams
from parivox.model_kinds import KINDS
from parivox.public_layout import LATEST, STATES, write_public

STATES_PATH = Path(LATEST).with_name("default") / STATES


def drawn(shapes: Mapping[str, tuple[int, ...]], dtype: str, seed: int = 0) -> NamedArrays:
    """Random numbers, and among the first ones some that a careless conversion changes."""
    rng = np.random.default_rng(seed)
    tensors = {name: np.asarray(rng.standard_normal(shape), dtype) for name, shape in shapes.items()}
    odd = np.array([np.nan, np.inf, -np.inf, -0.0, 6e-8, 65504.0], dtype)
    for tensor in tensors.values():
        if tensor.size > 2 * len(odd):
            tensor.reshape(-1)[: len(odd)] = odd
    return tensors


def denoiser(dtype: str = "float32", hidden: int = 2) -> tuple[DenoiserHParams, NamedArrays]:
    """A narrow denoiser with its buffers."""
    hp, kind = DenoiserHParams(unet_hidden_dim=hidden), KINDS["denoiser"]
    buffers = {name: buffer.astype(dtype) for name, buffer in kind.buffers(hp).items()}
    return hp, drawn(kind.weights(hp), dtype) | buffers


def published(folder: Path, hp: HParams, tensors: NamedArrays) -> Path:
    """The published layout, written without torch."""
    folder.mkdir(parents=True)
    write_public(folder, hp, tensors)
    return folder


def rewritten(folder: Path, changes: Mapping[str, bytes | None], **options: int) -> None:
    """Write the file of tensors anew with some entries changed or, where None, left out."""
    path = folder / STATES_PATH
    with zipfile.ZipFile(path) as archive:
        entries = {info.filename.partition("/")[2]: archive.read(info) for info in archive.infolist()}
    with zipfile.ZipFile(path, "w", **options) as archive:
        for name, data in {**entries, **changes}.items():
            if data is not None:
                archive.writestr(f"archive/{name}", data)


def pickle_in(folder: Path) -> bytes:
    """The pickle of the file of tensors."""
    with zipfile.ZipFile(folder / STATES_PATH) as archive:
        return archive.read("archive/data.pkl")


def same(one: NamedArrays, two: NamedArrays) -> bool:
    """Whether names, dtypes, shapes and every bit are equal."""
    return one.keys() == two.keys() and all(
        (a.dtype, a.shape, a.tobytes()) == (two[name].dtype, two[name].shape, two[name].tobytes())
        for name, a in one.items()
    )


def refused(source: Path, tmp_path: Path, kind: type[Exception] = CheckpointError) -> str:
    """The message of a conversion that is refused and leaves nothing behind."""
    target = tmp_path / "target" / "out"
    with pytest.raises(kind) as caught:
        convert(source, target, message=pytest.fail)
    assert not target.parent.exists()
    message = str(caught.value)
    assert "\n" not in message
    return message
