"""Training checkpoints: one safetensors file each, the same for every backend.

A file holds the weights under `weights/<public name>`, the optimizer's moments under `exp_avg/<name>` and
`exp_avg_sq/<name>` (those that it keeps), tensors of a published model that are not trained (windows, filter banks)
under `buffers/<name>`, and everything else as JSON strings in the safetensors header. A discriminator's tensors are
in groups of their own, such as `discriminator.weights/<name>`.
SHA-256 digests of each group of tensors and of the header make a torn, truncated or altered file known. The form is at
https://github.com/huggingface/safetensors.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from parivox.atomic import TEMPORARY_SUFFIX, replacing
from parivox.backend import NamedArrays, TrainArrays
from parivox.errors import CheckpointError, ConfigError

FORMAT_VERSION = 1
"""Raised when a file can no longer be read by older programs."""

FOLDER = "checkpoints"
"""Where a run folder keeps its checkpoints."""

_STATE = ("weights", "exp_avg", "exp_avg_sq")
_JUDGE = "discriminator."
_GROUPS = (*_STATE, "buffers", *(_JUDGE + group for group in _STATE))
_NAME = re.compile(r"step-(\d{8,})\.safetensors")
_WHITHER = "use another checkpoint, or train anew"


@dataclass(frozen=True)
class CheckpointMeta:
    """What a checkpoint says besides its tensors; the dicts hold JSON values only.

    Attributes:
        model: what the weights are of, such as `denoiser`.
        step: batches used so far; each made an update, but for those that float16 skipped.
        data_position: where the data stream goes on.
        seed: the seed of the run.
        hparams: `HParams.to_dict()` of the run.
        schedule: the learning-rate schedule and where it stands.
        writer: backend, device and library versions that wrote it.
        permanent: never deleted to make room for newer ones.
        extra: anything else, such as the files that were skipped.
        scaler: the loss scale of float16; filled in from the arrays when a checkpoint is written.
        discriminator_step: updates of the discriminator; -1 without one. Filled in likewise.
    """

    model: str
    step: int
    data_position: dict[str, Any]
    seed: int
    hparams: dict[str, Any]
    schedule: dict[str, Any] = field(default_factory=dict)
    writer: dict[str, Any] = field(default_factory=dict)
    permanent: bool = False
    extra: dict[str, Any] = field(default_factory=dict)
    scaler: dict[str, float] = field(default_factory=dict)
    discriminator_step: int = -1


@dataclass(frozen=True)
class Checkpoint:
    """A training state and what belongs to it.

    Attributes:
        arrays: the state.
        meta: what it says besides.
        buffers: tensors of a published checkpoint that a model computes for itself, kept as they were.

    Raises:
        ValueError: the arrays and the metadata are of different steps.
    """

    arrays: TrainArrays
    meta: CheckpointMeta
    buffers: NamedArrays = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check that both parts are of one step."""
        step = self.arrays.step + self.arrays.skipped
        if step != self.meta.step:
            raise ValueError(f"the arrays are of step {step}, the metadata of {self.meta.step}")


class CheckpointVersionError(CheckpointError):
    """A whole checkpoint in a form that this version of the program does not read."""


def checkpoint_path(run_dir: str | Path, step: int) -> Path:
    """Where a run keeps the checkpoint of a step."""
    return Path(run_dir) / FOLDER / f"step-{step:08d}.safetensors"


def list_checkpoints(run_dir: str | Path) -> list[Path]:
    """The checkpoint files of a run, newest first; unfinished files are not among them."""
    found = [(_NAME.fullmatch(path.name), path) for path in (Path(run_dir) / FOLDER).glob("step-*")]
    return [path for _, path in sorted(((int(m[1]), path) for m, path in found if m), reverse=True)]


def save_checkpoint(run_dir: str | Path, checkpoint: Checkpoint, *, keep: int = 3) -> Path:
    """Write a checkpoint whole or not at all, then delete old ones.

    The arrays are written from where they are, without a second copy.

    Args:
        run_dir: the run folder; made when needed.
        checkpoint: what to write.
        keep: how many checkpoints that are not permanent stay, this one counted. Newer ones are left alone.

    Returns:
        The file.

    Raises:
        CheckpointError: the folder cannot be written, or the disk is full; older checkpoints stay.
        ConfigError: `keep` is below 1.
    """
    if keep < 1:
        raise ConfigError(f"the number of checkpoints to keep is {keep}; it must be 1 or more")
    path = checkpoint_path(run_dir, checkpoint.meta.step)
    arrays, judge = checkpoint.arrays, checkpoint.arrays.discriminator
    groups = {group: getattr(arrays, group) for group in _STATE} | {"buffers": checkpoint.buffers}
    if judge is not None:
        groups |= {_JUDGE + group: getattr(judge, group) for group in _STATE}
    tensors = {
        f"{group}/{name}": storable(array)
        for group, arrays in groups.items()
        for name, array in arrays.items()
    }
    try:
        _remove_unfinished(path.parent)
        with replacing(path) as temporary:
            judged = -1 if judge is None else judge.step
            meta = dataclasses.replace(checkpoint.meta, scaler=dict(arrays.scaler), discriminator_step=judged)
            save_file(tensors, temporary, metadata=_header(meta, tensors))
        _remove_old(run_dir, checkpoint.meta.step, keep)
    except (OSError, SafetensorError) as error:
        reason = one_line(error)
        raise CheckpointError(
            f"{path}: cannot be written ({reason}); free some space or mend the folder"
        ) from error
    return path


def load_checkpoint(path: str | Path) -> Checkpoint:
    """Read a whole checkpoint and check its digests.

    Raises:
        CheckpointError: missing, damaged, or in a form this version does not read; names file and reason.
    """
    groups, meta = _read(Path(path), _GROUPS)
    updates = meta.step - int(meta.scaler.get("skipped", 0))
    judge = None
    if meta.discriminator_step >= 0:
        judge = TrainArrays(*(groups[_JUDGE + group] for group in _STATE), step=meta.discriminator_step)
    own = [groups[group] for group in _STATE]
    arrays = TrainArrays(*own, step=updates, scaler=meta.scaler, discriminator=judge)
    return Checkpoint(arrays, meta, groups["buffers"])


def latest_checkpoint(run_dir: str | Path, message: Callable[[str], object] = print) -> Checkpoint | None:
    """The newest whole checkpoint of a run, or None when the run has none at all.

    Args:
        run_dir: the run folder.
        message: called with one line for each newer checkpoint that is damaged.

    Raises:
        CheckpointError: there are checkpoints, but none is whole; or the newest needs a newer program.
    """
    files = list_checkpoints(run_dir)
    return _newest(files, load_checkpoint, message) if files else None


def load_model(
    path: str | Path, message: Callable[[str], object] = print
) -> tuple[NamedArrays, NamedArrays, CheckpointMeta]:
    """The model alone, without reading the optimizer's moments.

    Args:
        path: a run folder (its newest whole checkpoint is used) or a checkpoint file.
        message: called with one line for each newer checkpoint that is damaged.

    Returns:
        Weights and stored buffers by public tensor name, and the metadata.

    Raises:
        CheckpointError: no such file, no checkpoint in the folder, or none that is whole.
    """
    path = Path(path)
    if not path.is_dir():
        return _read_model(path)
    files = list_checkpoints(path)
    if not files:
        raise CheckpointError(f"{path}: holds no checkpoint; give a trained run folder or a checkpoint file")
    return _newest(files, _read_model, message)


def _newest(files: list[Path], read: Callable[[Path], Any], message: Callable[[str], object]) -> Any:
    for path in files:
        try:
            return read(path)
        except CheckpointVersionError:
            raise  # whole, so an older one must not take its place unasked
        except CheckpointError as error:
            message(f"skipping a checkpoint: {error}")
    raise CheckpointError(
        f"{files[0].parent}: none of the {len(files)} checkpoints is whole; start a new run folder"
    )


def _read_model(path: Path) -> tuple[NamedArrays, NamedArrays, CheckpointMeta]:
    groups, meta = _read(path, ("weights", "buffers"))
    return groups["weights"], groups["buffers"], meta


def _read(path: Path, wanted: tuple[str, ...]) -> tuple[dict[str, NamedArrays], CheckpointMeta]:
    """The wanted groups of a file, each checked against its digest, and the metadata."""
    if not path.is_file():
        raise CheckpointError(f"{path}: no such checkpoint; give a run folder or a checkpoint file")
    try:
        with safe_open(path, framework="numpy") as file:
            meta, digests = _parse_header(path, file.metadata() or {})
            groups: dict[str, NamedArrays] = {group: {} for group in wanted}
            for key in file.keys():  # noqa: SIM118 (not a dict)
                group, _, name = key.partition("/")
                if group not in _GROUPS:
                    raise CheckpointError(f"{path}: damaged (unknown tensor '{key}'); {_WHITHER}")
                if group in groups:
                    groups[group][name] = writable(file.get_tensor(key))
    except OSError as error:
        raise CheckpointError(
            f"{path}: cannot be read ({one_line(error)}); mend the file's rights"
        ) from error
    except (SafetensorError, ValueError) as error:
        raise CheckpointError(f"{path}: damaged ({one_line(error)}); {_WHITHER}") from error
    for group, arrays in groups.items():
        # Most files have no buffers and no discriminator, and no digest of them.
        if digest_arrays(arrays) != digests.get(group, None if group in _STATE else digest_arrays({})):
            raise CheckpointError(f"{path}: damaged (the digest of {group} differs); {_WHITHER}")
    return groups, meta


def _header(meta: CheckpointMeta, tensors: NamedArrays) -> dict[str, str]:
    """Every field as a JSON string, and the digests."""
    header = {"format": "parivox-checkpoint", "format_version": str(FORMAT_VERSION)}
    header |= {item.name: json.dumps(getattr(meta, item.name)) for item in dataclasses.fields(meta)}
    digests = {"header": digest_header(header)}
    for group in _GROUPS:
        prefix = f"{group}/"
        members = {key.removeprefix(prefix): tensors[key] for key in tensors if key.startswith(prefix)}
        if group in _STATE or members:
            digests[group] = digest_arrays(members)
    return header | {"digests": json.dumps(digests)}


def _parse_header(path: Path, header: dict[str, str]) -> tuple[CheckpointMeta, dict[str, str]]:
    """The inverse of `_header`; ValueError says what is wrong."""
    if header.get("format") != "parivox-checkpoint":
        raise CheckpointError(
            f"{path}: not a Parivox checkpoint; give a run folder or one of its checkpoints"
        )
    digests = json.loads(header.pop("digests", "{}"))
    if not isinstance(digests, dict) or digests.get("header") != digest_header(header):
        raise ValueError("the digest of the header differs")
    if header["format_version"] != str(FORMAT_VERSION):
        raise CheckpointVersionError(
            f"{path}: form {header['format_version']}, this program reads {FORMAT_VERSION}; "
            "use the version of Parivox that wrote it"
        )
    names = [item.name for item in dataclasses.fields(CheckpointMeta)]
    # Older files have no loss scale and no discriminator: there was the float32 denoiser alone.
    header = {"scaler": "{}", "discriminator_step": "-1", **header}
    return CheckpointMeta(**{name: json.loads(header[name]) for name in names}), digests


def digest_header(header: Mapping[str, str]) -> str:
    """SHA-256 over the entries of a header, in any order."""
    return hashlib.sha256(json.dumps(header, sort_keys=True).encode()).hexdigest()


def digest_arrays(arrays: NamedArrays) -> str:
    """SHA-256 over name, dtype, shape and bytes of every array, by sorted name."""
    state = hashlib.sha256()
    for name in sorted(arrays):
        array = arrays[name]
        state.update(json.dumps([name, array.dtype.name, array.shape]).encode())
        state.update(array.reshape(-1).view(np.uint8).data)
    return state.hexdigest()


def storable(array: np.ndarray) -> np.ndarray:
    """The array itself where it is little-endian and contiguous, else a copy that is."""
    little = array.astype(array.dtype.newbyteorder("<"), copy=False)
    return little if little.flags.c_contiguous else little.copy(order="C")


def writable(array: np.ndarray) -> np.ndarray:
    """The array, or a copy where it is read-only."""
    return array if array.flags.writeable else array.copy()


def one_line(error: Exception) -> str:
    """The message of an error without line breaks."""
    return " ".join(str(error).split())


def _remove_unfinished(folder: Path) -> None:
    # The second pattern is safetensors' own temporary name, which a kill leaves behind.
    for pattern in (f".step-*{TEMPORARY_SUFFIX}", ".tmp??????"):
        for path in folder.glob(pattern):
            path.unlink(missing_ok=True)


def _remove_old(run_dir: str | Path, step: int, keep: int) -> None:
    """Delete all but the newest `keep` up to `step`; permanent and unreadable ones neither count nor go."""
    files = list_checkpoints(run_dir)
    ordinary = [path for path in files[files.index(checkpoint_path(run_dir, step)) :] if _is_ordinary(path)]
    for path in ordinary[keep:]:
        path.unlink(missing_ok=True)


def _is_ordinary(path: Path) -> bool:
    try:
        with safe_open(path, framework="numpy") as file:
            return (file.metadata() or {}).get("permanent") == "false"
    except (OSError, SafetensorError):
        return False  # damaged; left for its owner to look at, `latest_checkpoint` names it
