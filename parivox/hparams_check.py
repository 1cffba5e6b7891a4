"""What a hyperparameter may be: types, ranges, and the YAML form of a set of them."""

from __future__ import annotations

import difflib
import math
import numbers
import re
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from parivox.errors import ConfigError


@dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`; `low` itself is refused when `above` is set."""

    low: float
    high: float = math.inf
    above: bool = False

    def __contains__(self, value: float) -> bool:
        """Whether a number is allowed."""
        return (value > self.low if self.above else value >= self.low) and value <= self.high

    def __str__(self) -> str:
        """The range in words."""
        if self.high < math.inf:
            return f"{'above' if self.above else 'from'} {self.low:g} to {self.high:g}"
        return f"above {self.low:g}" if self.above else f"{self.low:g} or more"


COUNT = Range(1.0)
NATURAL = Range(0.0)
POSITIVE = Range(0.0, above=True)
UNIT = Range(0.0, 1.0)

RANGES: dict[str, Range] = {
    **dict.fromkeys(("wav_rate", "n_fft", "win_size", "hop_size", "num_mels"), COUNT),
    **dict.fromkeys(("batch_size_per_gpu", "max_steps", "unet_hidden_dim"), COUNT),
    **dict.fromkeys(("cfm_solver_nfe", "univnet_nc", "lcfm_latent_dim", "vocoder_extra_dim"), COUNT),
    **dict.fromkeys(("irmae_hidden_dim", "wn_hidden_dim", "wn_layers"), COUNT),
    **dict.fromkeys(("nj", "min_lr", "max_lr", "warmup_steps", "gradient_clipping"), NATURAL),
    "gan_training_start_step": NATURAL,
    "cfm_time_mapping_divisor": Range(2.0, above=True),
    **dict.fromkeys(("stft_magnitude_min", "training_seconds", "lcfm_z_scale"), POSITIVE),
    **dict.fromkeys(("praat_augment_prob", "preemphasis", "mix_alpha_range", "distort_prob"), UNIT),
}
"""Allowed numbers of every numeric field, by name."""


def refuse(name: str, value: object, allowed: str) -> ConfigError:
    """The error for one bad value: field, value, what is allowed."""
    shown = str(value) if isinstance(value, Path) else repr(value)
    return ConfigError(f"{name} is {shown}; it must be {allowed}")


def _number(name: str, value: object, kind: type[int] | type[float]) -> int | float:
    """A finite int or float in range; a whole float is an int too, True and False are neither."""
    allowed = f"{'a whole number' if kind is int else 'a number'}, {RANGES[name]}"
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise refuse(name, value, allowed)
    try:
        number = float(value)
    except OverflowError:  # hundreds of digits
        number = math.inf
    if not math.isfinite(number) or number not in RANGES[name] or (kind is int and not number.is_integer()):
        raise refuse(name, value, allowed)
    return kind(number)


def _pair(name: str, value: object) -> tuple[float, ...]:
    """Two numbers in rising order."""
    allowed = f"two numbers [low, high], {RANGES[name]}, low not above high"
    if not isinstance(value, (list, tuple)) or len(value) != 2:
        raise refuse(name, value, allowed)
    try:
        low, high = (float(_number(name, item, float)) for item in value)
    except ConfigError:
        raise refuse(name, value, allowed) from None
    if low > high:
        raise refuse(name, value, allowed)
    return low, high


def _path(name: str, value: object) -> Path:
    if not isinstance(value, (str, Path)) or not str(value):
        raise refuse(name, value, "a folder, as text")
    return Path(value)


def checked(name: str, value: object, kind: Any) -> Any:
    """One value as the type of its field.

    Args:
        name: the field.
        value: what was given; a whole number stands for a float, text for a Path, a list for a tuple.
        kind: the resolved annotation of the field.

    Raises:
        ConfigError: naming the field, the value and what is allowed.
    """
    if typing.get_origin(kind) in (types.UnionType, typing.Union):
        if value is None:
            return None
        (kind,) = (option for option in typing.get_args(kind) if option is not type(None))
    if typing.get_origin(kind) is Literal:
        if value not in typing.get_args(kind):
            raise refuse(name, value, "one of " + ", ".join(map(repr, typing.get_args(kind))))
        return value
    if typing.get_origin(kind) is tuple:
        return _pair(name, value)
    if kind is bool:
        if not isinstance(value, bool):
            raise refuse(name, value, "true or false")
        return value
    return _path(name, value) if kind is Path else _number(name, value, kind)


def check_names(given: Iterable[object], known: Iterable[str], where: str) -> None:
    """Refuse names that are not hyperparameters.

    Raises:
        ConfigError: listing every unknown name with the nearest known one.
    """
    known = list(known)
    unknown = []
    for name in given:
        if name not in known:
            near = difflib.get_close_matches(str(name), known, n=1, cutoff=0.5)
            unknown.append(f"'{name}'" + (f" (did you mean '{near[0]}'?)" if near else ""))
    if unknown:
        raise ConfigError(f"{where}: unknown hyperparameter {', '.join(unknown)}; remove or rename it")


class _Loader(yaml.SafeLoader):
    """Safe YAML that reads `1e-4` as a number and OmegaConf's paths as text; refuses a key given twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        """A mapping whose keys are all different."""
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for key in keys:
            if isinstance(key, str) and keys.count(key) > 1:
                raise yaml.constructor.ConstructorError(
                    None, None, f"'{key}' is given twice", node.start_mark
                )
        return super().construct_mapping(node, deep)


def _joined_path(loader: yaml.SafeLoader, node: yaml.Node) -> str:
    if not isinstance(node, yaml.SequenceNode):
        raise yaml.constructor.ConstructorError(None, None, "a path must be a list of parts", node.start_mark)
    return str(Path(*map(str, loader.construct_sequence(node))))


# OmegaConf writes a Path as a Python call. Only these names are known; nothing is ever called by name.
for _class in ("Path", "PosixPath", "WindowsPath"):
    _Loader.add_constructor(f"tag:yaml.org,2002:python/object/apply:pathlib.{_class}", _joined_path)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


def read_mapping(path: Path) -> dict:
    """The top-level mapping of a YAML file; no Python object is ever built from it.

    Raises:
        ConfigError: missing, unreadable, not YAML, or not a mapping; names the file.
    """
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)  # a SafeLoader
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}); give an existing YAML file") from error
    except (yaml.YAMLError, UnicodeDecodeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"{path}: not a YAML file of hyperparameters ({reason})") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: holds no hyperparameters; write lines of the form 'name: value'")
    return values


def write_mapping(values: Mapping[str, Any]) -> str:
    """YAML text of plain values, in the given order."""
    return yaml.safe_dump(dict(values), sort_keys=False, default_flow_style=False, allow_unicode=True)
