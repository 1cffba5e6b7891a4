"""Arithmetic of the models: twice the multiplications of every convolution and matrix product.

PyTorch's own counter looks at the plain model without computing anything. The plain one, since the fast vocoder
multiplies zeros as well, which is no work done. Spectrograms, norms and activations are left out; they are a few
hundredths.
"""

from __future__ import annotations

from collections.abc import Callable

from benchmarks.plain import plainly
from parivox.backend import Solver
from parivox.enhancer_tables import TAIL, VOCODER_NOISE
from parivox.features import DENOISER_STFT
from parivox.hparams import EnhancerHParams

BINS = DENOISER_STFT.n_fft // 2 + 1
STEP_FACTOR = 3
"""A training step's arithmetic over that of the forward pass: it multiplies by each weight and by each input again."""


def denoiser_flops(hidden: int, samples: int) -> float:
    """FLOPs of the denoiser's network for one row."""
    import torch

    from torch_impl.weights import abstract_denoiser

    net = abstract_denoiser(hidden)[0].net
    image = torch.empty(1, 3, BINS, samples // DENOISER_STFT.hop, device="meta")
    return _counted(lambda: net(image))


def enhancer_flops(hp: EnhancerHParams, samples: int, nfe: int, method: Solver) -> dict[str, float]:
    """FLOPs of each part of the enhancer for one row, its denoiser among them."""
    import torch

    from torch_impl.weights import abstract_enhancer

    model, frames = abstract_enhancer(hp, folded=True)[0], samples // hp.hop_size
    mel, latent, noise = (
        torch.empty(1, channels, length, device="meta")
        for channels, length in (
            (hp.num_mels, frames),
            (hp.lcfm_latent_dim, frames),
            (VOCODER_NOISE, frames + TAIL),
        )
    )
    wide = torch.empty(1, hp.num_mels + hp.vocoder_extra_dim, frames, device="meta")
    auto, flow = model.lcfm.ae, model.lcfm.cfm
    with plainly("torch"):
        return {
            "denoiser": denoiser_flops(hp.unet_hidden_dim, samples),
            "encoder": _counted(lambda: auto.encode(mel)),
            "flow": _counted(lambda: flow.sample(latent, mel, method, nfe)),
            "decoder": _counted(lambda: auto.decode(latent)),
            "vocoder": _counted(lambda: model.vocoder(wide, noise)),
        }


def _counted(work: Callable[[], object]) -> float:
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        work()
    return float(counter.get_total_flops())
