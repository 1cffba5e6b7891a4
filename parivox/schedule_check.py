"""What DeepSpeed's schedulers may be given: names, kinds and ranges of their parameters."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any, ParamSpec, TypeVar

from parivox.errors import ConfigError

_P = ParamSpec("_P")
_R = TypeVar("_R")

SCHEDULERS: dict[str, Callable[..., Any]] = {}
"""DeepSpeed's name of a scheduler -> the function of `parivox.schedule` that builds it."""

_OPTIONAL = {"lr", "warmup_max_lr", "cycle_second_step_size", "cycle_second_stair_count"}
_FLAGS = {"cycle_momentum", "lr_range_test_staircase"}
_WHOLE = {"warmup_num_steps", "lr_range_test_step_size"}
_ANY_SIGN = {"cycle_first_stair_count", "cycle_second_stair_count"}
_LARGEST = 2**53
"""Above it float64 has no whole numbers left to count steps with."""

_MOMENTA = {"cycle_min_mom", "cycle_max_mom"}
_FOR_EACH_GROUP = {
    "warmup_min_lr",
    "warmup_max_lr",
    "lr_range_test_min_lr",
    "cycle_min_lr",
    "cycle_max_lr",
    *_MOMENTA,
}


def registered(name: str) -> Callable[[Callable[_P, _R]], Callable[_P, _R]]:
    """A decorator: keeps a function under DeepSpeed's name and checks the values that it is called with.

    The call raises ConfigError with one list of all values that make no sense.
    """

    def register(function: Callable[_P, _R]) -> Callable[_P, _R]:
        signature = inspect.signature(function).parameters

        @functools.wraps(function)
        def call(*args: Any, **params: Any) -> Any:
            plain = {key: _single(key, value) for key, value in params.items()}
            faults = [
                fault
                for key, value in plain.items()
                if key in signature and (fault := value_fault(key, value))
            ]
            if faults:
                raise ConfigError(f"scheduler {name}: {'; '.join(faults)}")
            return function(*args, **plain)

        SCHEDULERS[name] = call
        return call

    return register


def _single(name: str, value: Any) -> Any:
    # DeepSpeed takes a list with a value for each parameter group; a config makes one group.
    is_list = name in _FOR_EACH_GROUP and isinstance(value, (list, tuple)) and len(value) == 1
    return value[0] if is_list else value


def value_fault(name: str, value: Any) -> str | None:
    """What is wrong with a parameter, or None."""
    if value is None and name in _OPTIONAL:
        return None
    if name == "warmup_type":
        fine, wanted = value in ("linear", "log"), "DeepSpeed knows 'linear' and 'log'"
    elif name in _FLAGS:
        fine, wanted = isinstance(value, int) and value in (0, 1), "give true or false"
    elif isinstance(value, bool) or not isinstance(value, (int, float)):
        several = isinstance(value, (list, tuple)) and name in _FOR_EACH_GROUP
        fine, wanted = False, "give one number: there is one parameter group" if several else "give a number"
    elif not abs(value) <= _LARGEST:
        fine, wanted = False, "give a finite number up to 2**53"
    elif name in _WHOLE:
        fine, wanted = isinstance(value, int) and value > 0, "give a whole number above 0"
    elif name == "cycle_first_step_size":
        fine, wanted = value >= 1, "give a number of 1 or more"
    elif name == "decay_step_size":
        fine, wanted = value == 0 or value >= 1, "give 0 for no decay, or a number of 1 or more"
    elif name in _MOMENTA:
        fine, wanted = 0 <= value < 1, "give a number from 0 to below 1"
    else:
        fine, wanted = value >= 0 or name in _ANY_SIGN, "give a number that is not negative"
    return None if fine else f"{name} is {value!r}; {wanted}"


def names_fault(kind: str, params: Mapping[str, Any]) -> str | None:
    """Which names a scheduler does not take or misses, or None."""
    signature = inspect.signature(SCHEDULERS[kind]).parameters
    takes = [name for name in signature if name != "lr"]
    unknown = [name for name in params if name not in takes]
    missing = [n for n in takes if signature[n].default is inspect.Parameter.empty and n not in params]
    faults = [f"unknown parameter '{name}' (it takes {', '.join(takes)})" for name in unknown]
    return "; ".join(faults + [f"'{name}' is missing" for name in missing]) or None
