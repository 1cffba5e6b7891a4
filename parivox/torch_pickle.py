"""The pickles of `torch.save`, without torch and without pickle, so that nothing in them can run.

A pickle is a program for a small stack machine. The one here knows the instructions that torch writes, builds
plain containers and records of tensors, and calls nothing: what a file asks for beyond that is refused by its name.
"""

from __future__ import annotations

import math
import pickletools
import struct
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

DTYPES = {"FloatStorage": "float32", "HalfStorage": "float16"}
"""Storages that can be read and written."""

OTHER_STORAGES = ("Double", "BFloat16", "Long", "Int", "Short", "Char", "Byte", "Bool")
"""Kinds that may stand beside the model, as an optimizer's count does; they are not read."""


@dataclass(frozen=True)
class Name:
    """A Python name that a pickle mentions."""

    module: str
    name: str

    def __str__(self) -> str:
        """Dotted."""
        return f"{self.module}.{self.name}"


@dataclass(frozen=True)
class Storage:
    """Where a tensor's numbers are: kind, entry of the archive, count."""

    kind: str
    key: str
    count: int


@dataclass(frozen=True)
class StoredTensor:
    """A tensor of the file, not yet read; offset and strides in elements."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    @property
    def dtype(self) -> str:
        """NumPy's name, or torch's where it cannot be read."""
        return DTYPES.get(self.storage.kind, self.storage.kind.removesuffix("Storage").lower())


class RefusedError(Exception):
    """A pickle asks for something that no tensor needs."""


def _natural(value: object) -> int:
    if type(value) is not int or not 0 <= value < 2**62:
        raise ValueError("a size is no number")
    return value


def _naturals(value: object) -> tuple[int, ...]:
    if not isinstance(value, (tuple, list)):
        raise ValueError("a shape is no tuple")
    return tuple(map(_natural, value))


def _rebuild(storage: object, offset: object, shape: object, strides: object, *rest: object) -> StoredTensor:
    """`torch._utils._rebuild_tensor_v2`."""
    if not isinstance(storage, Storage) or len(rest) > 3:
        raise ValueError("a tensor has no storage")
    tensor = StoredTensor(storage, _natural(offset), _naturals(shape), _naturals(strides))
    if len(tensor.shape) != len(tensor.strides) or len(tensor.shape) > 16:
        raise ValueError("a tensor's shape and strides differ in length")
    return tensor


def _parameter(tensor: object, *rest: object) -> object:
    """`torch._utils._rebuild_parameter`: the tensor alone."""
    return tensor


def _mapping() -> dict:
    """`collections.OrderedDict`, which torch fills item by item."""
    return {}


def _size(*sides: Any) -> tuple:
    """`torch.Size`."""
    return tuple(*sides)


CALLS: dict[str, Callable[..., Any]] = {
    "collections.OrderedDict": _mapping,
    "torch._utils._rebuild_tensor_v2": _rebuild,
    "torch._utils._rebuild_parameter": _parameter,
    "torch.Size": _size,
}
"""Names that a pickle may call, and what is done instead."""

STORAGES = {f"torch.{kind}": kind for kind in (*DTYPES, *(f"{kind}Storage" for kind in OTHER_STORAGES))}


def _name(module: object, name: object) -> Name:
    if not isinstance(module, str) or not isinstance(name, str):
        raise ValueError("a name is no text")
    found = Name(module, name)
    if str(found) not in CALLS and str(found) not in STORAGES:
        raise RefusedError(f"the Python name {str(found)[:100]!r}")
    return found


def _storage(persistent: object) -> Storage:
    if not isinstance(persistent, tuple) or len(persistent) != 5 or persistent[0] != "storage":
        raise ValueError("a storage is described otherwise than torch does")
    _, kind, key, _, count = persistent
    if not isinstance(kind, Name) or str(kind) not in STORAGES or not isinstance(key, str):
        raise ValueError("a storage is described otherwise than torch does")
    return Storage(STORAGES[str(kind)], key, _natural(count))


MARK = object()

PLAIN = (str, int, float, type(None))
"""Keys of dicts. A tuple within a tuple, a hundred thousand times over, has a hash that ends the process."""


class _Machine:
    """The stack machine of pickle, protocol 2, with the instructions that torch writes."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def marked(self) -> list[Any]:
        """Everything above the last mark."""
        at = len(self.stack) - 1
        while self.stack[at] is not MARK:
            at -= 1
            if at < 0:
                raise ValueError("a mark is missing")
        items = self.stack[at + 1 :]
        del self.stack[at:]
        return items

    def step(self, code: str, value: Any) -> None:
        """One instruction."""
        stack = self.stack
        match code:
            case "PROTO" | "FRAME":
                pass
            case "MARK":
                stack.append(MARK)
            case "EMPTY_DICT":
                stack.append({})
            case "EMPTY_LIST":
                stack.append([])
            case "EMPTY_TUPLE":
                stack.append(())
            case "NONE" | "NEWTRUE" | "NEWFALSE":
                stack.append({"NONE": None, "NEWTRUE": True, "NEWFALSE": False}[code])
            case "BININT" | "BININT1" | "BININT2" | "LONG1" | "BINFLOAT" | "BINUNICODE" | "SHORT_BINUNICODE":
                stack.append(value)
            case "TUPLE":
                stack.append(tuple(self.marked()))
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                count = int(code[-1])
                if len(stack) < count:
                    raise ValueError("a tuple lacks its items")
                stack[-count:] = [tuple(stack[-count:])]
            case "BINPUT" | "LONG_BINPUT" | "MEMOIZE":
                self.memo[len(self.memo) if code == "MEMOIZE" else value] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(self.memo[value])
            case "APPEND" | "APPENDS":
                items = [stack.pop()] if code == "APPEND" else self.marked()
                list.extend(stack[-1], items)
            case "SETITEM" | "SETITEMS":
                items = [stack.pop(-2), stack.pop()] if code == "SETITEM" else self.marked()
                if not all(isinstance(key, PLAIN) for key in items[::2]):
                    raise ValueError("a key is no plain value")
                dict.update(stack[-1], zip(items[::2], items[1::2], strict=True))
            case "GLOBAL":
                stack.append(_name(*value.split(" ", 1)))
            case "STACK_GLOBAL":
                name, module = stack.pop(), stack.pop()
                stack.append(_name(module, name))
            case "BINPERSID":
                stack.append(_storage(stack.pop()))
            case "REDUCE":
                arguments, called = stack.pop(), stack.pop()
                if not isinstance(called, Name):
                    raise RefusedError(f"a call of something of type {type(called).__name__}")
                if str(called) not in CALLS:
                    raise RefusedError(f"a call of '{called}'")
                stack.append(CALLS[str(called)](*arguments))
            case "BUILD":
                # An OrderedDict of weights carries versions of its modules, which nothing here needs.
                stack.pop()
                if not isinstance(stack[-1], dict):
                    raise RefusedError("the state of a Python object")
            case _:
                raise RefusedError(f"the pickle instruction {code}")


def run_pickle(data: bytes) -> Any:
    """What a pickle of torch describes.

    Raises:
        RefusedError: it asks for more than tensors in plain containers.
        ValueError: or KeyError, IndexError, TypeError; it makes no sense.
    """
    machine = _Machine()
    with warnings.catch_warnings():
        # pickletools decodes escapes in names; Python warns of odd ones.
        warnings.simplefilter("ignore", DeprecationWarning)
        for code, value, _ in pickletools.genops(data):
            if code.name == "STOP":
                break
            machine.step(code.name, value)
    if len(machine.stack) != 1:
        raise ValueError("its pickle ends in the middle")
    return machine.stack[0]


def pickle_of(module: Mapping[str, np.ndarray]) -> bytes:
    """Protocol 2, as `pickletools.dis` shows it of torch's own."""
    kinds = {dtype: kind for kind, dtype in DTYPES.items()}

    def text(value: str) -> bytes:
        data = value.encode()
        return b"X" + struct.pack("<I", len(data)) + data

    def number(value: int) -> bytes:
        if value < 2**31:
            return b"J" + struct.pack("<i", value)
        data = value.to_bytes(9, "little", signed=True)
        return b"\x8a" + bytes([len(data)]) + data

    def numbers(values: tuple[int, ...]) -> bytes:
        return b"(" + b"".join(map(number, values)) + b"t"

    parts = [b"\x80\x02}", text("module"), b"ccollections\nOrderedDict\n)R("]
    for key, (name, array) in enumerate(module.items()):
        strides = tuple(math.prod(array.shape[k + 1 :]) for k in range(array.ndim))
        storage = b"ctorch\n" + kinds[array.dtype.name].encode() + b"\n"
        where = b"(" + text("storage") + storage + text(str(key)) + text("cpu") + number(array.size) + b"tQ"
        hooks = b"\x89ccollections\nOrderedDict\n)R"
        parts += [
            text(name),
            b"ctorch._utils\n_rebuild_tensor_v2\n(",
            where + number(0) + numbers(array.shape) + numbers(strides) + hooks + b"tR",
        ]
    return b"".join([*parts, b"us."])
