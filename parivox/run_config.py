"""The DeepSpeed config of a run folder: what it is trained by, and that it stays the same."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from parivox import deepspeed_config
from parivox.atomic import write_text
from parivox.deepspeed_config import TrainConfig
from parivox.errors import ConfigError
from parivox.hparams import HParams

CONFIG_FILE = "deepspeed.json"
"""Where a run keeps the config that it was begun with, as given."""

_ABSENT = object()


def config_of(hp: HParams, path: Path | None, world_size: int = 1) -> TrainConfig:
    """How to train: after a DeepSpeed config file, or where there is none after the hyperparameters alone.

    Raises:
        ConfigError: listing everything that is wrong with it.
    """
    if path is not None:
        return deepspeed_config.load(path, world_size=world_size, hparams=hp)
    source = "the hyperparameters' DeepSpeed config"
    return deepspeed_config.resolve(hp.deepspeed_config, world_size=world_size, source=source, hparams=hp)


def own_config(
    folder: Path, kept: dict[str, Any] | None, deepspeed: Path | None, restore: bool = True
) -> dict[str, Any] | None:
    """The DeepSpeed config that a run was begun with, as given; None where it was begun without.

    Args:
        folder: the run folder.
        kept: what its checkpoint holds of it.
        deepspeed: the file that the caller asks for; None for the run's own.
        restore: write the run's file again where it was removed.

    Raises:
        ConfigError: the caller asks for another config than the run's own, listing each key that differs.
    """
    path = folder / CONFIG_FILE
    if kept is not None and not path.exists() and restore:
        write_config(folder, kept)
    own = read_config(path) if path.exists() else kept
    if deepspeed is None:
        return own
    if own is None:
        raise ConfigError(
            f"{folder}: was begun without a DeepSpeed config; leave --deepspeed-config out, or start a new run folder"
        )
    listing = "; ".join(
        f"{key}: run has {_shown(ours)}, given is {_shown(theirs)}"
        for key, ours, theirs in differences(own, read_config(deepspeed))
    )
    if listing:
        raise ConfigError(
            f"{path} differs from {deepspeed} ({listing}); leave --deepspeed-config out, edit that file on purpose,"
            " or start a new run folder"
        )
    return own


def differences(own: Any, given: Any, path: str = "") -> list[tuple[str, Any, Any]]:
    """Keys whose values differ, as (path, value in own, value in given)."""
    if isinstance(own, Mapping) and isinstance(given, Mapping):
        names = [*own, *(name for name in given if name not in own)]
        return [
            found
            for name in names
            for found in differences(
                own.get(name, _ABSENT), given.get(name, _ABSENT), f"{path}.{name}" if path else str(name)
            )
        ]
    # 1 and true are equal in Python and not in JSON; 1 and 1.0 are equal in both.
    same = own == given and isinstance(own, bool) == isinstance(given, bool)
    return [] if same else [(path, own, given)]


def read_config(path: Path) -> dict[str, Any]:
    """The JSON object of a file, unchecked.

    Raises:
        ConfigError: it cannot be read, or is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{path}: cannot be read as JSON ({error}); give an existing DeepSpeed config"
        ) from None


def write_config(folder: Path, given: Mapping[str, Any]) -> None:
    """Keep a config in a run folder; it appears whole or not at all.

    Raises:
        ConfigError: the folder cannot be written.
    """
    path = folder / CONFIG_FILE
    try:
        write_text(path, json.dumps(given, indent=2) + "\n")
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written ({error.strerror}); choose another place") from error


def _shown(value: Any) -> str:
    return "(absent)" if value is _ABSENT else json.dumps(value)
