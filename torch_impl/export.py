"""The denoiser as a file that runs without Parivox, from PyTorch; the twin of `jax_impl.export`."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import pad

from parivox.exported import BLOCK
from parivox.features import DENOISER_STFT, hann_window
from torch_impl.ends import ending, ends, kept, padded
from torch_impl.features import overlap_add, peak_normalize
from torch_impl.model.denoiser import Denoiser
from torch_impl.objective import bind
from torch_impl.weights import from_arrays

__all__ = ["OPSET", "export_denoiser", "load_program"]

OPSET = 20
"""Version of ONNX's operators; the first with an exact GELU."""


class _RealDenoiser(nn.Module):
    """`Denoiser` without complex numbers, which ONNX has not: the Fourier transform is a matrix product."""

    circle: Tensor
    steps: Tensor
    window: Tensor

    def __init__(self, denoiser: Denoiser):
        super().__init__()
        self.denoiser = denoiser
        size = DENOISER_STFT.n_fft
        turn = 2 * np.pi * np.arange(size) / size
        self.register_buffer("circle", torch.from_numpy(np.stack([np.cos(turn), -np.sin(turn)])))
        self.register_buffer("steps", torch.arange(size))
        self.register_buffer("window", torch.from_numpy(np.array(hann_window(size), np.float64)))

    def forward(self, x: Float[Tensor, "b t"]) -> Float[Tensor, "b t"]:
        """As `Denoiser.forward`, for any length from 841 on."""
        t = x.shape[1]
        total = (t + BLOCK - 1) // BLOCK * BLOCK
        # Counted, since tracing would keep the example's length as a constant.
        lengths = torch.ones_like(x, dtype=torch.int64).sum(1)
        with ending(lengths, total):
            y = self._filled(kept(pad(x, (0, total - t))[:, None])[:, 0])
        return y[:, :t]

    def _filled(self, x: Tensor) -> Tensor:
        re, im = self._spectrum(peak_normalize(x))
        with ending(ends(re.shape[-1]), re.shape[-1]):
            magnitude = torch.sqrt(re**2 + im**2)
            empty = magnitude == 0
            divisor = magnitude.masked_fill(empty, 1)
            cos, sin = (re / divisor).masked_fill(empty, 1), (im / divisor).masked_fill(empty, 0)
            magnitude, cos, sin = (part.to(x.dtype) for part in (magnitude, cos, sin))
            parts = self.denoiser.turned(magnitude, cos, sin)
            return kept(self._sound(*(padded(part, 0, 1, "replicate") for part in parts)))

    def _spectrum(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Real and imaginary part (b, f, n) of all frames but the last, as `features.spectra` rounds them."""
        half, hop = DENOISER_STFT.n_fft // 2, DENOISER_STFT.hop
        count, pieces = x.shape[-1] // hop, DENOISER_STFT.n_fft // hop
        wide = padded(x[:, None], half, half, DENOISER_STFT.pad_mode)[:, 0]
        blocks = wide[:, : (count + pieces - 1) * hop].reshape(x.shape[0], count + pieces - 1, hop)
        frames = torch.cat([blocks[:, i : i + count] for i in range(pieces)], dim=-1).double() * self.window
        basis = self._basis()
        re, im = (torch.matmul(frames, table).to(x.dtype).double().transpose(1, 2) for table in basis)
        return re, im

    def _sound(self, re: Tensor, im: Tensor) -> Tensor:
        """The inverse, as `features.istft`."""
        size, hop, count = DENOISER_STFT.n_fft, DENOISER_STFT.hop, re.shape[-1]
        # Each bin but the first and the last stands for its conjugate too.
        weight = torch.full((size // 2 + 1,), 2 / size, dtype=torch.float64)
        weight = torch.cat([weight[:1] / 2, weight[1:-1], weight[-1:] / 2])
        tables = [(table * weight).T.to(re.dtype) for table in self._basis()]
        frames = sum(torch.matmul(p.transpose(1, 2), t) for p, t in zip((re, im), tables, strict=True))
        window = self.window.to(re.dtype)
        last = ends(count - 1)
        if last is None:
            raise ValueError("the rows of an exported program have ends")
        there = (torch.arange(count) <= last[:, None])[..., None].to(re.dtype)
        keep = slice(size // 2, size // 2 + hop * (count - 1))
        squares = overlap_add(there * window**2, hop)[:, keep]
        sound = overlap_add(frames * there * window, hop)[:, keep]
        return sound / squares.masked_fill(squares == 0, 1)

    def _basis(self) -> tuple[Tensor, Tensor]:
        """Cosine and minus sine (size, f), looked up by the angle, so that a file need not hold 22 MB of them."""
        size = DENOISER_STFT.n_fft
        angle = self.steps[:, None] * self.steps[: size // 2 + 1] % size
        return self.circle[0][angle], self.circle[1][angle]


def export_denoiser(arrays: Mapping[str, np.ndarray], hidden: int, metadata: Mapping[str, str]) -> bytes:
    """ONNX, for any number of rows of any length.

    A row is filled up to whole blocks of 16 frames and computed as `parivox.backend.Backend.denoise` computes rows
    that end early. So every size inside is a multiple of one number, which a compiler can reason about.

    Args:
        arrays: named arrays of a denoiser.
        hidden: its width.
        metadata: kept in the file's `metadata_props`.

    Raises:
        CheckpointError: listing tensors that are missing, extra or misshapen.
    """
    module = bind(hidden, from_arrays(arrays, hidden, torch.float32)).requires_grad_(False).eval()
    with warnings.catch_warnings(), tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "denoiser.onnx"
        # Tracing warns of every decision that it takes from the example; the sizes above make each hold always.
        warnings.simplefilter("ignore")
        torch.onnx.export(
            _RealDenoiser(module).eval(),
            (torch.zeros(2, BLOCK + 1),),
            file,
            dynamo=False,
            do_constant_folding=False,  # the basis is computed from its circle when a file is loaded
            opset_version=OPSET,
            input_names=["noisy"],
            output_names=["denoised"],
            dynamic_axes={"noisy": {0: "b", 1: "t"}, "denoised": {0: "b", 1: "t"}},
        )
        return _described(file.read_bytes(), metadata)


def load_program(program: bytes) -> Callable[[np.ndarray], np.ndarray]:
    """A function from (b, t) to (b, t) on the host of what `export_denoiser` gave."""
    import onnxruntime

    session = onnxruntime.InferenceSession(program, providers=["CPUExecutionProvider"])
    return lambda x: np.asarray(session.run(None, {"noisy": x})[0])


def _described(program: bytes, metadata: Mapping[str, str]) -> bytes:
    import onnx

    model = onnx.load_model_from_string(program)
    onnx.helper.set_model_props(model, dict(metadata))
    onnx.checker.check_model(model)
    return model.SerializeToString()
