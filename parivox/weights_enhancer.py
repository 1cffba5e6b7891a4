"""Tensor names, shapes and initial weights of the enhancer, as `parivox.weights` has those of the denoiser.

The names are those of the public checkpoint. What it holds beside the parameters is computed
(`parivox.enhancer_tables.computed_buffers`) or measured in training (`STATISTICS`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from parivox import enhancer_tables as size
from parivox.hparams import EnhancerHParams, HParams
from parivox.weights import (
    Initialization,
    TensorSpec,
    check_arrays,
    denoiser_specs,
    initial_denoiser,
    initial_tensor,
)
from parivox.weights_discriminator import DIRECTION, GAIN

STATISTICS = tuple(
    f"{owner}.running_{kind}_unsafe"
    for owner in ("normalizer", "lcfm.ae.estimator")
    for kind in ("mean", "var")
)
"""Running mean and variance of the mel spectrogram and of the latent: scalars, NaN until first measured."""

TRAINED = {"ae": ("lcfm.ae.", "vocoder."), "cfm": ("lcfm.cfm.", "denoiser.")}
"""Beginnings of the names of the parameters that each stage (`lcfm_training_mode`) trains."""

Specs = Iterator[tuple[str, TensorSpec]]


def _conv(name: str, inputs: int, outputs: int, kernel: int, bias: bool = True) -> Specs:
    yield f"{name}.weight", TensorSpec((outputs, inputs, kernel), inputs * kernel)
    if bias:
        yield f"{name}.bias", TensorSpec((outputs,), inputs * kernel)


def _normed(name: str, inputs: int, outputs: int, kernel: int) -> Specs:
    # The transposed convolutions have as many inputs as outputs, so the order of the two is no matter here.
    yield f"{name}.bias", TensorSpec((outputs,), inputs * kernel)
    yield f"{name}.{GAIN}", TensorSpec((outputs, 1, 1))
    yield f"{name}.{DIRECTION}", TensorSpec((outputs, inputs, kernel), inputs * kernel)


def _norm(name: str, channels: int) -> Specs:
    yield f"{name}.weight", TensorSpec((channels,), start=1.0)
    yield f"{name}.bias", TensorSpec((channels,))


def _irmae(hp: EnhancerHParams) -> Specs:
    width, latent, wide = hp.irmae_hidden_dim, hp.lcfm_latent_dim, hp.num_mels + hp.vocoder_extra_dim
    for part, inputs in (("encoder", hp.num_mels), ("decoder", latent)):
        name = f"lcfm.ae.{part}"
        yield from _conv(f"{name}.0", inputs, width, 3)
        for block in range(1, size.IRMAE_BLOCKS + 1):
            for layer in range(len(size.IRMAE_DILATIONS)):
                yield from _norm(f"{name}.{block}.{3 * layer}", width)
                yield from _normed(f"{name}.{block}.{3 * layer + 2}", width, width, 3)
        after = size.IRMAE_BLOCKS + 1
        if part == "encoder":
            for i in range(size.IRMAE_MAPS):
                yield from _conv(f"{name}.{after + i}", latent if i else width, latent, 1, bias=False)
        else:
            yield from _conv(f"{name}.{after}", width, wide, 1)
    yield from _conv("lcfm.ae.head.0", wide, width, 3)
    yield from _conv("lcfm.ae.head.2", width, hp.num_mels, 1)


def _velocity(hp: EnhancerHParams) -> Specs:
    width, name = hp.wn_hidden_dim, "lcfm.cfm.net"
    yield from _conv(f"{name}.start", hp.lcfm_latent_dim, width, 1)
    for i in range(hp.wn_layers):
        yield from _conv(f"{name}.layers.{i}.gconv", size.TIME_WIDTH, width, 1)
        yield from _conv(f"{name}.layers.{i}.lconv", hp.num_mels, 2 * width, 1)
        yield from _conv(f"{name}.layers.{i}.dconv", width, 2 * width, 3)
        yield from _conv(f"{name}.layers.{i}.out", width, 2 * width, 1)
    yield from _conv(f"{name}.end", width, hp.lcfm_latent_dim, 1)


def _block(name: str, hp: EnhancerHParams, stride: int) -> Specs:
    width, inner, layers = hp.univnet_nc, size.PREDICTOR_WIDTH, len(size.LVC_DILATIONS)
    predictor = f"{name}.kernel_predictor"
    yield from _normed(f"{predictor}.input_conv.0", hp.num_mels + hp.vocoder_extra_dim, inner, 5)
    for i in range(size.PREDICTOR_PAIRS):
        for j in (1, 3):
            yield from _normed(f"{predictor}.residual_convs.{i}.{j}", inner, inner, 3)
    yield from _normed(f"{predictor}.kernel_conv", inner, layers * width * 2 * width * size.LVC_TAPS, 3)
    yield from _normed(f"{predictor}.bias_conv", inner, layers * 2 * width, 3)
    yield from _normed(f"{name}.convt_pre.1", width, width, 2 * stride)
    for i in range(len(size.AMP_DILATIONS)):
        yield from _normed(f"{name}.amp_block.{i}.0", width, width, 3)
        for part in ("alpha", "beta"):
            yield f"{name}.amp_block.{i}.1.act.log_{part}", TensorSpec((width,))
        yield from _normed(f"{name}.amp_block.{i}.2", width, width, 3)
    for i in range(layers):
        yield from _normed(f"{name}.conv_blocks.{i}.1", width, width, 3)


def _vocoder(hp: EnhancerHParams) -> Specs:
    for i, stride in enumerate(size.STRIDES):
        yield from _block(f"vocoder.blocks.{i}", hp, stride)
    yield from _normed("vocoder.conv_pre", size.VOCODER_NOISE, hp.univnet_nc, 7)
    yield from _normed("vocoder.conv_post.1", hp.univnet_nc, 1, 7)


def enhancer_specs(hp: EnhancerHParams) -> dict[str, TensorSpec]:
    """Every parameter of the enhancer with its denoiser."""
    specs = dict(_irmae(hp)) | dict(_velocity(hp)) | dict(_vocoder(hp))
    return specs | {f"denoiser.{name}": spec for name, spec in denoiser_specs(hp.unet_hidden_dim).items()}


def enhancer_shapes(hp: EnhancerHParams) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every tensor of a public checkpoint: parameters, statistics and computed buffers."""
    shapes = {name: spec.shape for name, spec in enhancer_specs(hp).items()}
    shapes |= {name: () for name in STATISTICS}
    return shapes | {name: array.shape for name, array in size.computed_buffers(hp).items()}


def buffer_names(hp: HParams) -> set[str]:
    """Tensors of a public checkpoint that a model computes for itself; none of a denoiser."""
    return set(size.computed_buffers(hp)) if isinstance(hp, EnhancerHParams) else set()


def trained_names(hp: EnhancerHParams) -> list[str]:
    """Parameters that the stage of these hyperparameters trains; the others stay as they are."""
    return [name for name in enhancer_specs(hp) if name.startswith(TRAINED[hp.lcfm_training_mode])]


def check_enhancer(arrays: Mapping[str, np.ndarray], hp: EnhancerHParams, what: str) -> dict[str, np.ndarray]:
    """What named arrays leave to be computed: buffers that are absent, by public name, float64.

    Raises:
        CheckpointError: listing parameters and statistics that are missing, and every extra or misshapen tensor.
    """
    computed = size.computed_buffers(hp)
    absent = {name: array for name, array in computed.items() if name not in arrays}
    expected = {name: shape for name, shape in enhancer_shapes(hp).items() if name not in absent}
    check_arrays(expected, arrays, what)
    return absent


def initial_enhancer(
    seed: int, hp: EnhancerHParams, init: Initialization = "identity"
) -> dict[str, np.ndarray]:
    """Initial parameters and statistics by public name, float32; the same numbers for both backends.

    Directions, weights and biases are uniform in +-1/sqrt(fan_in), a gain is the norm of its direction, so that the
    weight is the direction itself. SnakeBeta's logarithms are 0.

    Args:
        seed: every tensor is drawn from its own generator, keyed by seed and name.
        hp: hyperparameters, which give the sizes.
        init: how the denoiser begins, see `initial_denoiser`, whose draws these are.
    """
    specs = enhancer_specs(hp)
    weights = {name: initial_tensor(seed, name, spec) for name, spec in specs.items()}
    for name, direction in weights.items():
        if name.endswith(DIRECTION):
            # In blocks: the largest tensor would take 340 MB in float64.
            norms = [np.sqrt((row.astype(np.float64) ** 2).sum()) for row in direction]
            weights[name.removesuffix(DIRECTION) + GAIN] = np.array(norms, np.float32).reshape(-1, 1, 1)
    denoiser = initial_denoiser(seed, hp.unet_hidden_dim, init)
    weights |= {f"denoiser.{name}": array for name, array in denoiser.items()}
    return weights | {name: np.array(np.nan, np.float32) for name in STATISTICS}
