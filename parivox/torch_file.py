"""Files of `torch.save`, read and written without torch, and so that nothing in them can run.

Such a file is a zip archive: `data.pkl` names tensors by storage, offset, size and stride (`parivox.torch_pickle`),
and `data/KEY` holds the bytes of a storage.
"""

from __future__ import annotations

import struct
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from parivox.errors import CheckpointError
from parivox.torch_pickle import DTYPES, RefusedError, StoredTensor, pickle_of, run_pickle

LARGEST_PICKLE = 2**26
"""Bytes of `data.pkl`; that of the enhancer has 2**18."""


class TorchFile:
    """An open file of `torch.save`.

    Attributes:
        content: what was saved: dicts, lists, tuples, plain values, and `StoredTensor`s.
    """

    def __init__(self, path: Path, archive: zipfile.ZipFile):
        self._path, self._archive = path, archive
        entries = {info.filename: info for info in archive.infolist()}
        pickles = [name for name in entries if name.partition("/")[2] == "data.pkl"]
        if len(pickles) != 1 or len(entries) != len(archive.infolist()):
            raise ValueError("it holds no data.pkl, or an entry twice")
        self._entries, self._root = entries, pickles[0].partition("/")[0]
        if entries[pickles[0]].file_size > LARGEST_PICKLE:
            raise ValueError("its data.pkl is too large")
        order = f"{self._root}/byteorder"
        self._order = self._bytes(order) if order in entries else b"little"
        if self._order not in (b"little", b"big"):
            raise ValueError("its byte order is unknown")
        self.content = run_pickle(self._bytes(pickles[0]))

    def _bytes(self, name: str) -> bytes:
        info = self._entries[name]
        # torch never compresses, and a small compressed entry may be of any size.
        if info.compress_type != zipfile.ZIP_STORED or info.compress_size != info.file_size:
            raise ValueError(f"its entry {name} is compressed")
        return self._archive.read(info)

    def array(self, tensor: StoredTensor) -> np.ndarray:
        """Read a tensor, contiguous and in this machine's byte order; ValueError where it leaves its storage."""
        native = np.dtype(DTYPES[tensor.storage.kind])
        dtype = native.newbyteorder("<" if self._order == b"little" else ">")
        name = f"{self._root}/data/{tensor.storage.key}"
        if name not in self._entries:
            raise ValueError(f"its entry {name} is missing")
        data = self._bytes(name)
        if len(data) != tensor.storage.count * dtype.itemsize:
            raise ValueError(f"its entry {name} has {len(data)} bytes for {tensor.storage.count} numbers")
        numbers = np.frombuffer(data, dtype)
        sides = list(zip(tensor.shape, tensor.strides, strict=True))
        last = tensor.offset + sum((n - 1) * stride for n, stride in sides)
        if 0 not in tensor.shape and last >= len(numbers):
            raise ValueError(f"a tensor leaves its entry {name}")
        if 0 in tensor.shape:
            return np.zeros(tensor.shape, native)
        strides = [stride * dtype.itemsize if n > 1 else 0 for n, stride in sides]
        view = np.lib.stride_tricks.as_strided(
            numbers[tensor.offset :], tensor.shape, strides, writeable=False
        )
        return view.astype(native, order="C")


@contextmanager
def open_torch_file(path: Path) -> Iterator[TorchFile]:
    """Open a file of `torch.save`; nothing in it is run.

    Raises:
        CheckpointError: missing, truncated, damaged, of torch's old form, or asks for anything but tensors in plain
            containers; names the file and what is wrong, also while tensors are read.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            yield TorchFile(path, archive)
    except RefusedError as error:
        raise CheckpointError(
            f"{path}: refused, it asks for {error}, which no model needs; nothing of it was run; get the file from a"
            " source that you trust"
        ) from error
    except zipfile.BadZipFile as error:
        remedy = "copy it again, or save it with torch 1.6 or newer"
        raise CheckpointError(f"{path}: truncated, damaged or no torch file ({error}); {remedy}") from error
    except OSError as error:
        reason = error.strerror or error
        raise CheckpointError(
            f"{path}: cannot be read ({reason}); check the path and copy it again"
        ) from error
    except (
        ValueError,
        LookupError,
        TypeError,
        ArithmeticError,
        struct.error,
        EOFError,
        RuntimeError,
    ) as error:
        # Compression, encryption and other things that zipfile knows of, and pickles that make no sense.
        reason = " ".join(str(error).split()) or type(error).__name__
        raise CheckpointError(f"{path}: damaged ({reason}); copy it again") from error


def write_torch_file(path: Path, module: Mapping[str, np.ndarray]) -> None:
    """Write `{"module": module}` as `torch.save` would; `torch.load(path, weights_only=True)` reads it.

    Args:
        path: written in place.
        module: float16 or float32 arrays by name.

    Raises:
        OSError: the file cannot be written.
    """
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        _entry(archive, "archive/data.pkl", pickle_of(module))
        _entry(archive, "archive/byteorder", b"little")
        for key, array in enumerate(module.values()):
            little = array.astype(array.dtype.newbyteorder("<"), copy=False)
            _entry(archive, f"archive/data/{key}", little.tobytes())
        _entry(archive, "archive/version", b"3\n")


def _entry(archive: zipfile.ZipFile, name: str, data: bytes) -> None:
    """An entry whose bytes begin at a multiple of 64, so that the file can be mapped into memory."""
    info = zipfile.ZipInfo(name)  # dated 1980: equal weights make equal files
    assert archive.fp is not None
    begin = archive.fp.tell() + 30 + len(name) + 4
    padding = -begin % 64
    info.extra = struct.pack("<2sH", b"FB", padding) + bytes(padding)
    archive.writestr(info, data)
