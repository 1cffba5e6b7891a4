"""Tensor names and shapes of the models, and initial weights drawn from (seed, name).

The names are those of the public checkpoint, so they are the common tongue of both backends, of
checkpoints and of conversions.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from parivox.errors import CheckpointError

Initialization = Literal["identity", "published"]

HEAD = "net.head.2"
"""Last convolution of the denoiser; its three channels are mask, real and imaginary part of the phase turn."""


@dataclass(frozen=True)
class TensorSpec:
    """One parameter: its shape and how it starts.

    Attributes:
        shape: as in the public checkpoint, (out, in, kernel...).
        fan_in: inputs of one output, for convolution weights and their biases; 0 for norms.
        start: the value that a norm's gain (1) or shift (0) starts from.
    """

    shape: tuple[int, ...]
    fan_in: int = 0
    start: float = 0.0


def _conv(name: str, channels_in: int, channels_out: int, kernel: int) -> Iterator[tuple[str, TensorSpec]]:
    fan_in = channels_in * kernel * kernel
    yield f"{name}.weight", TensorSpec((channels_out, channels_in, kernel, kernel), fan_in)
    yield f"{name}.bias", TensorSpec((channels_out,), fan_in)


def _norm(name: str, channels: int) -> Iterator[tuple[str, TensorSpec]]:
    yield f"{name}.weight", TensorSpec((channels,), start=1.0)
    yield f"{name}.bias", TensorSpec((channels,))


def _unet_block(name: str, channels_in: int, channels_out: int) -> Iterator[tuple[str, TensorSpec]]:
    yield from _conv(f"{name}.pre_conv", channels_in, channels_out, 3)
    for block in ("res_block1", "res_block2"):
        for norm, conv in ((0, 2), (3, 5)):
            yield from _norm(f"{name}.{block}.{norm}", channels_out)
            yield from _conv(f"{name}.{block}.{conv}", channels_out, channels_out, 3)


def denoiser_specs(hidden: int = 16) -> dict[str, TensorSpec]:
    """Every parameter of the denoiser whose UNet starts at `hidden` channels (16 in the public model)."""
    widths = [hidden * 2**i for i in range(5)]
    specs = dict(_conv("net.input_proj", 3, hidden, 3))
    for i in range(4):
        specs.update(_unet_block(f"net.encoder_blocks.{i}", widths[i], widths[i + 1]))
    for i in range(2):
        specs.update(_unet_block(f"net.middle_blocks.{i}", widths[4], widths[4]))
    for i in range(4):
        specs.update(_unet_block(f"net.decoder_blocks.{i}", widths[4 - i], widths[3 - i]))
    specs.update(_conv("net.head.0", hidden, hidden, 3))
    specs.update(_conv(HEAD, hidden, 3, 1))
    return specs


def _generator(seed: int, name: str) -> np.random.Generator:
    digest = hashlib.sha256(f"parivox:{seed}:{name}".encode()).digest()
    return np.random.Generator(np.random.PCG64(int.from_bytes(digest[:16], "little")))


def initial_tensor(seed: int, name: str, spec: TensorSpec) -> np.ndarray:
    """One float32 tensor: uniform in +-1/sqrt(fan_in) (Kaiming uniform with a = sqrt(5)), norms 1 and 0."""
    if spec.fan_in == 0:
        return np.full(spec.shape, spec.start, np.float32)
    bound = 1 / np.sqrt(spec.fan_in)
    return _generator(seed, name).uniform(-bound, bound, spec.shape).astype(np.float32)


def initial_denoiser(seed: int, hidden: int = 16, init: Initialization = "identity") -> dict[str, np.ndarray]:
    """Initial weights of the denoiser by public name, float32; the same numbers for both backends.

    Args:
        seed: every tensor is drawn from its own generator, keyed by seed and name.
        hidden: channels after the first convolution.
        init: `identity` starts near passing the input through: the last convolution is a tenth as large and
            its bias is (2, 1, 0) for (mask, real, imaginary). `published` draws it like all others: half the
            magnitude with random phases, from which training first learns silence.
    """
    weights = {name: initial_tensor(seed, name, spec) for name, spec in denoiser_specs(hidden).items()}
    if init == "identity":
        weights[f"{HEAD}.weight"] *= np.float32(0.1)
        weights[f"{HEAD}.bias"] = np.array([2, 1, 0], np.float32)
    return weights


def check_arrays(
    expected: Mapping[str, tuple[int, ...]], arrays: Mapping[str, np.ndarray], what: str
) -> None:
    """Compare named arrays with the names and shapes that a model expects.

    Raises:
        CheckpointError: listing every missing, extra and misshapen tensor.
    """
    check_shapes(expected, {name: tuple(array.shape) for name, array in arrays.items()}, what)


def check_shapes(
    expected: Mapping[str, tuple[int, ...]], found: Mapping[str, tuple[int, ...]], what: str
) -> None:
    """As `check_arrays`, where only the shapes are known."""
    missing = [name for name in expected if name not in found]
    extra = [name for name in found if name not in expected]
    shapes = [
        f"{name} is {found[name]} but should be {tuple(shape)}"
        for name, shape in expected.items()
        if name in found and found[name] != tuple(shape)
    ]
    faults = [
        f"{len(items)} {kind}: {', '.join(items)}"
        for kind, items in (("missing", missing), ("extra", extra), ("of another shape", shapes))
        if items
    ]
    if faults:
        raise CheckpointError(
            f"{what} does not fit this model; use the hyperparameters it was trained with. Tensors {'; '.join(faults)}"
        )
