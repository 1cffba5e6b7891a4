"""`parivox export`: a denoiser as one file that runs without Parivox."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from parivox.commands.options import NO_HINT


@dataclass(frozen=True)
class ExportCommand:
    """Write the denoiser of a model as one file that runs without Parivox: ONNX or StableHLO.

    Attributes:
        model: A run folder, a published folder, a safetensors file, or hub:OWNER/REPO; of an enhancer, the denoiser
            inside.
        target: The file; must not exist. A name in .onnx is made with PyTorch, one in .stablehlo with JAX.
        format: What to write; by default what the name says.
        check: Compare what the program computes with the backend; too far apart, and nothing is written.
    """

    model: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="MODEL")]
    target: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="OUT")]
    format: Annotated[Literal["onnx", "stablehlo"] | None, NO_HINT] = None
    check: bool = True

    def run(self) -> int:
        """Export; returns the exit status."""
        import sys

        from parivox.exported import export_model, format_of
        from parivox.loading import load_for_cleaning

        form = format_of(self.target, self.format)
        model = load_for_cleaning(self.model, True, lambda line: print(f"parivox: {line}", file=sys.stderr))
        distance = export_model(model, self.target, form, self.check)
        said = "not checked" if distance is None else f"{distance:.0f} dB from the backend"
        print(f"{self.target}: {form}, denoiser, {self.target.stat().st_size / 1e6:.1f} MB, {said}")
        return 0
