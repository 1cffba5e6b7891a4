"""`parivox convert`: a model from one form into another."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from parivox.commands.options import NO_HINT


@dataclass(frozen=True)
class ConvertCommand:
    """Convert a model between the published layout, a Parivox run and one safetensors file.

    Every tensor keeps its name, its numbers to the last bit and, unless told otherwise, its dtype. Needs neither JAX
    nor PyTorch, and runs nothing of what a file holds.

    Attributes:
        source: A published folder (hparams.yaml, ds/G), a run folder or one of its checkpoints, a safetensors
            file, or a model on the Hugging Face hub, hub:OWNER/REPO[@REVISION].
        target: What to write; must not exist. A name that ends in .safetensors is one file, any other a folder.
        to: What to write into a folder; by default the published layout from a run, and a run from anything else.
        dtype: Of all tensors; by default each keeps its own.
    """

    source: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="SRC")]
    target: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="DST")]
    to: Annotated[Literal["public", "run", "safetensors"] | None, NO_HINT] = None
    dtype: Annotated[Literal["float16", "float32"] | None, NO_HINT] = None

    def run(self) -> int:
        """Convert; returns the exit status."""
        from parivox.convert import ABOUT, convert

        done = convert(self.source, self.target, self.to, self.dtype, _tell)
        tensors = done.model.tensors
        dtypes = " and ".join(sorted({array.dtype.name for array in tensors.values()}))
        print(
            f"{self.target}: {ABOUT[done.target]}, {done.model.kind.name}, {len(tensors)} tensors, {dtypes},"
            f" from {ABOUT[done.source]}"
        )
        return 0


def _tell(line: str) -> None:
    print(f"parivox: {line}", file=sys.stderr, flush=True)
