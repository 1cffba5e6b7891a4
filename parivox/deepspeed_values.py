"""Values in a DeepSpeed configuration: what a key may hold, and how a wrong value is shown in one line."""

from __future__ import annotations

import math
import reprlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

Check = Callable[[object], Any]
"""A value as the file has it -> the value as Python has it; raises `Wrong`."""

Role = Literal["used", "accepted", "silenced", "refused"]

FLOAT32_MAX = 3.4e38
INT32_MAX = 2**31 - 1
INT64_MAX = 2**63 - 1

LONGEST = 90
"""Characters of a value in a message."""


class Wrong(ValueError):
    """A value that a key cannot take; the text says what it may be."""


@dataclass(frozen=True)
class Key:
    """One key of a configuration.

    Attributes:
        role: `used` changes the training on both backends; `accepted` goes to DeepSpeed and changes no result;
            `silenced` is checked and left out of what DeepSpeed gets; `refused` has no equal on both backends.
        check: what the value may be, where it is a plain value.
        table: the keys within, where the value is an object.
        note: why it is accepted or silenced, or what to do instead of a refused one.
        default: DeepSpeed's default, where the reader fills it in.
        off: values of a refused key that say what happens anyway; it is then left out.
        switch: (key, value) within a refused object that says the same.
        nullable: null is the same as leaving the key out.
    """

    role: Role
    check: Check | None = None
    table: Mapping[str, Key] | None = None
    note: str = ""
    default: Any = None
    off: tuple[Any, ...] = ()
    switch: tuple[str, Any] | None = None
    nullable: bool = False


def used(check: Check, default: Any = None, *, nullable: bool = False) -> Key:
    """A key that both backends follow."""
    return Key("used", check, default=default, nullable=nullable)


def refused(note: str, *off: Any, switch: tuple[str, Any] | None = None) -> Key:
    """A key that has no equal on both backends, unless it is off."""
    return Key("refused", note=note, off=off, switch=switch, nullable=True)


def accepted(note: str, **checks: Check) -> dict[str, Key]:
    """Keys that DeepSpeed gets and that change no result."""
    return {name: Key("accepted", check, note=note) for name, check in checks.items()}


def silenced(note: str, **checks: Check) -> dict[str, Key]:
    """Keys that DeepSpeed does not get, since they would have no use here."""
    return {name: Key("silenced", check, note=note, nullable=True) for name, check in checks.items()}


def boolean(value: object) -> bool:
    """True or False; 0 and 1 are neither."""
    if not isinstance(value, bool):
        raise Wrong("true or false")
    return value


def number(low: float = 0.0, high: float = FLOAT32_MAX, *, above: bool = False, below: bool = False) -> Check:
    """A finite number from `low` to `high`, one end or both left out; the check returns a float."""
    lower = f"above {low:g}" if above else f"{low:g} or more"
    upper = f" and below {high:g}" if below else f" and at most {high:g}"
    allowed = f"a number, {lower}{upper if high < FLOAT32_MAX else ''}"

    def check(value: object) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise Wrong(allowed)
        try:
            found = float(value)
        except OverflowError:  # an integer of hundreds of digits
            found = math.inf
        inside = low <= found <= high and not (above and found == low) and not (below and found == high)
        if not math.isfinite(found) or not inside:
            raise Wrong(allowed)
        return found

    return check


def whole(low: int, high: int = INT64_MAX) -> Check:
    """A whole number from `low` to `high`, written as 500 or as 5e2."""
    allowed = f"a whole number, {low} or more" + (f" and at most {high}" if high < INT64_MAX else "")

    def check(value: object) -> int:
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise Wrong(allowed)
        return value

    return check


def word(*words: str) -> Check:
    """One of a few words, in this case."""

    def check(value: object) -> str:
        if not isinstance(value, str) or value not in words:
            raise Wrong(" or ".join(f"'{w}'" for w in words))
        return value

    return check


def betas(value: object) -> tuple[float, float]:
    """Two decay factors."""
    if not isinstance(value, list | tuple) or len(value) != 2:
        raise Wrong("two numbers, each 0 or more and below 1")
    try:
        first, second = (BETA(item) for item in value)
    except Wrong:
        raise Wrong("two numbers, each 0 or more and below 1") from None
    return first, second


def texts(value: object) -> list[str]:
    """A list of texts, or one text alone."""
    items = [value] if isinstance(value, str) else value
    if not isinstance(items, list | tuple) or not all(isinstance(item, str) for item in items):
        raise Wrong("a list of texts")
    return [str(item) for item in items]


def one_group(check: Check) -> Check:
    """A value of every parameter group, as DeepSpeed's schedulers take it; there is one group here."""

    def unwrapped(value: object) -> Any:
        if not isinstance(value, list | tuple):
            return check(value)
        if len(value) != 1:
            raise Wrong("one number: all weights are in one parameter group")
        return check(value[0])

    return unwrapped


_DTYPES = {
    "fp32": ("fp32", "float32", "float", "torch.float32"),
    "fp16": ("fp16", "float16", "half", "torch.float16"),
    "bf16": ("bf16", "bfloat16", "torch.bfloat16"),
}


def dtype(value: object) -> str:
    """A floating type by any of DeepSpeed's names for it -> fp32, fp16 or bf16."""
    for name, spellings in _DTYPES.items():
        if isinstance(value, str) and value.lower() in spellings:
            return name
    raise Wrong("'fp32', 'fp16' or 'bf16'")


def anything(value: object) -> object:
    """Whatever the file has."""
    return value


BETA = number(0.0, 1.0, below=True)
RATE = number()
COUNT = whole(1, INT32_MAX)
NATURAL = whole(0)


class _Short(reprlib.Repr):
    # An integer of thousands of digits cannot even be written down.
    def repr_int(self, x: int, level: int) -> str:
        return f"an integer of {x.bit_length()} bits" if x.bit_length() > 128 else repr(x)


_SHORT = _Short()
_SHORT.maxlevel, _SHORT.maxstring, _SHORT.maxother, _SHORT.maxdict, _SHORT.maxlist = 3, 60, 60, 4, 4


def show(value: object) -> str:
    """A value in one short line, as JSON spells it."""
    named = {None: "null", True: "true", False: "false"}
    if value is None or isinstance(value, bool):
        return named[value]
    text = " ".join(_SHORT.repr(value).split())
    return text if len(text) <= LONGEST else text[:LONGEST] + "..."
