"""Reads a configuration by its tables of keys and collects every problem on the way."""

from __future__ import annotations

import difflib
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

from parivox.deepspeed_keys import TOP
from parivox.deepspeed_recipes import OPTIMIZERS, SCHEDULERS
from parivox.deepspeed_values import Key, Wrong, show
from parivox.hparams import HParams

FROM_HPARAMS = {
    "gradient_clipping": "gradient_clipping",
    "optimizer.params.lr": "max_lr",
    "scheduler.params.warmup_min_lr": "min_lr",
    "scheduler.params.warmup_max_lr": "max_lr",
    "scheduler.params.warmup_num_steps": "warmup_steps",
    "scheduler.params.total_num_steps": "max_steps",
    "scheduler.params.cycle_min_lr": "min_lr",
    "scheduler.params.cycle_max_lr": "max_lr",
    "scheduler.params.lr_range_test_min_lr": "min_lr",
}
"""Where "auto" takes its value from; the batch size has rules of its own."""


def join(path: str, name: str) -> str:
    """The path of a key within the object at `path`, in one line whatever the key holds."""
    plain = name if name.isprintable() and 0 < len(name) <= 60 else show(name)
    return f"{path}.{plain}" if path else plain


def _homes() -> dict[str, str]:
    """Name -> the one object that a key of this name belongs into; names of several objects are left out."""
    found: dict[str, set[str]] = defaultdict(set)
    places = [("the top level", TOP)]
    places += [(f"'{name}'", key.table) for name, key in TOP.items() if key.role == "used" and key.table]
    places += [("'optimizer.params'", table) for table in OPTIMIZERS.values()]
    places += [("'scheduler.params'", table) for table in SCHEDULERS.values()]
    for place, table in places:
        for name, key in table.items():
            if key.role in ("used", "accepted"):
                found[name].add(place)
    return {name: next(iter(homes)) for name, homes in found.items() if len(homes) == 1}


HOMES = _homes()


class Reader:
    """One pass over one configuration.

    Attributes:
        hparams: where "auto" may take its value from.
        problems: what is wrong, one line each.
        remarks: what changes nothing, one line each with the reason.
        auto: paths of the keys whose value is "auto".
        bad: paths of the keys whose value was refused.
    """

    def __init__(self, hparams: HParams | None):
        self.hparams = hparams
        self.problems: list[str] = []
        self.remarks: list[str] = []
        self.auto: set[str] = set()
        self.bad: set[str] = set()

    def wrong(self, path: str, text: str) -> None:
        """Note a problem of the key at `path`."""
        self.bad.add(path)
        self.problems.append(f"{path}: {text}")

    def is_object(self, path: str, value: object) -> bool:
        """Whether a value is an object; notes a problem if it is none."""
        if not isinstance(value, Mapping):
            self.wrong(path, f"is {show(value)}; it must be an object {{...}}, or be left out")
        return isinstance(value, Mapping)

    def table(self, path: str, given: Mapping[Any, Any], keys: Mapping[str, Key]) -> dict[str, Any]:
        """The values of an object's keys that are used or accepted; absent, null and unresolved "auto" are left out.

        Args:
            path: of the object; empty at the top.
            given: the object.
            keys: what is known of its keys.
        """
        found: dict[str, Any] = {}
        for name, value in given.items():
            if not isinstance(name, str):
                self.problems.append(f"{path or 'the top level'}: a key is {show(name)}; keys must be text")
            elif name not in keys:
                self._unknown(join(path, name), name, keys)
            else:
                self._entry(join(path, name), name, value, keys[name], found)
        return found

    def _unknown(self, here: str, name: str, keys: Mapping[str, Key]) -> None:
        near = difflib.get_close_matches(name[:80], keys, n=1, cutoff=0.7)
        if name in HOMES:
            remedy = f"is not known here; move it to {HOMES[name]}"
        elif near:
            remedy = f"is not known; did you mean '{near[0]}'?"
        else:
            remedy = "is not a key of DeepSpeed; remove it"
        self.wrong(here, remedy)

    def _entry(self, here: str, name: str, value: object, key: Key, found: dict[str, Any]) -> None:
        if value is None and key.nullable:
            return
        if isinstance(value, str) and value == "auto" and key.table is None:
            self.auto.add(here)
            if self.hparams is None or here not in FROM_HPARAMS:
                return
            value = getattr(self.hparams, FROM_HPARAMS[here])
        if key.role == "refused":
            if not _is_off(value, key):
                self.wrong(here, f"is {show(value)}: {key.note}")
        elif key.table is not None:
            self._section(here, name, value, key, found)
        else:
            self._plain(here, name, value, key, found)

    def _section(self, here: str, name: str, value: object, key: Key, found: dict[str, Any]) -> None:
        if not self.is_object(here, value):
            return
        spoken = len(self.remarks)
        inner = self.table(here, value, key.table or {})  # type: ignore[arg-type]
        if key.role == "silenced":
            self.remarks[spoken:] = [f"{here}: {key.note}"]
        else:
            found[name] = inner

    def _plain(self, here: str, name: str, value: object, key: Key, found: dict[str, Any]) -> None:
        try:
            checked = key.check(value) if key.check else value
        except Wrong as allowed:
            source = f" ({FROM_HPARAMS[here]} of the hyperparameters)" if here in self.auto else ""
            self.wrong(here, f"is {show(value)}{source}; it must be {allowed}")
            return
        if key.role != "used":
            self.remarks.append(f"{here}: {key.note}")
        if key.role != "silenced":
            found[name] = checked


def _is_off(value: object, key: Key) -> bool:
    # 0 and False are equal in Python and not in JSON.
    if any(type(value) is type(off) and value == off for off in key.off):
        return True
    if key.switch is None or not isinstance(value, Mapping):
        return False
    name, off = key.switch
    if not value:
        return True
    found = value.get(name)
    return (type(found) is type(off) and found == off) or found == "auto"
