"""The arithmetic of cleaning and of training, counted: `python -m benchmarks.flops`. Needs PyTorch, and no GPU.

PyTorch's own counter follows the programs of `torch_impl` on tensors without memory, so nothing is computed and full
size takes seconds. It counts convolutions and matrix products, a multiplication with its addition as two. Fourier
transforms, norms and all that works element by element are left out, as in every share of a peak. The vocoder is
the one written plainly: the fast one multiplies zeros too, which is no work done, and calls what is not counted.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.machine import machine, write_results
from benchmarks.plain import plainly
from parivox.backend import Solver
from parivox.enhancer_tables import TAIL, VOCODER_NOISE
from parivox.features import DENOISER_STFT
from parivox.hparams import WAV_RATE, DenoiserHParams, EnhancerHParams, HParams
from parivox.plan import row_shapes
from parivox.presets import preset
from parivox.stages import has_judge, is_judged, structure
from torch_impl.model.weight_norm import fold
from torch_impl.objective import Judge, objective_of
from torch_impl.weights import (
    abstract_denoiser,
    abstract_discriminator,
    abstract_enhancer,
    bind_discriminator,
    bind_enhancer,
)

META = torch.device("meta")
BINS = DENOISER_STFT.n_fft // 2 + 1
STEP_FACTOR = 3
"""A training step's arithmetic over that of the forward pass: it multiplies by each weight and by each input again."""

NFE = (1, 2, 64)
PRESETS = ("denoiser", "enhancer_stage1", "enhancer_stage2")


class Passes(NamedTuple):
    """GFLOP for one second of sound: of the forward pass, and of the backward pass."""

    forward: float
    backward: float

    @property
    def both(self) -> float:
        """Of a training step, but for the optimizer's few operations for each weight."""
        return self.forward + self.backward


def training(hp: HParams) -> Passes:
    """An update, with the discriminator where the run ever has one."""
    objective, judge = objective_of(structure(hp)), None
    if isinstance(hp, EnhancerHParams):
        _, params, others = abstract_enhancer(hp)
        if has_judge(hp) and is_judged(hp, hp.max_steps - 1):
            module, named = abstract_discriminator(hp.stft_cfgs)
            module = bind_discriminator(module, _without_memory(named))
            judge = Judge(module, module)
    else:
        params, others = abstract_denoiser(_width(hp))[1], {}
    model = objective.module(_without_memory(params), _without_memory(others))
    rows = {name: torch.empty(shape, device=META) for name, shape in row_shapes(hp, 1).items()}
    with plainly("torch"):
        with FlopCounterMode(display=False) as forward:
            told = objective(model, judge, rows)
        with FlopCounterMode(display=False) as backward:
            sum(told.losses.values()).backward()  # pyright: ignore[reportAttributeAccessIssue]
            if judge is not None:
                sum(told.judge_losses.values()).backward()  # pyright: ignore[reportAttributeAccessIssue]
    seconds = rows["target"].shape[1] / WAV_RATE
    return Passes(*(count.get_total_flops() / seconds / 1e9 for count in (forward, backward)))


def denoising(hp: HParams, seconds: float) -> float:
    """GFLOP for a second of sound, denoised in rows of so many seconds."""
    params = _without_memory(abstract_denoiser(_width(hp))[1])
    model = abstract_denoiser(_width(hp))[0]
    model.load_state_dict(params, assign=True)
    with torch.inference_mode(), FlopCounterMode(display=False) as count:
        model(torch.empty(1, round(seconds * WAV_RATE), device=META))
    return count.get_total_flops() / seconds / 1e9


def enhancing(hp: EnhancerHParams, seconds: float, nfe: int) -> float:
    """GFLOP for a second of sound, enhanced in rows of so many seconds, the denoiser included."""
    _, params, buffers = abstract_enhancer(hp)
    model = bind_enhancer(
        abstract_enhancer(hp, folded=True)[0], fold(_without_memory(params)), _without_memory(buffers)
    )
    # Tiles bound the memory and overlap a little; without memory the whole is one.
    model.vocoder.tile = None
    samples = round(seconds * WAV_RATE)
    frames = samples // hp.hop_size
    draws = {
        "prior": torch.empty(1, hp.lcfm_latent_dim, frames, device=META),
        "noise": torch.empty(1, VOCODER_NOISE, frames + TAIL, device=META),
        "tau": torch.empty(1, device=META),
        "blend": torch.empty(1, device=META),
    }
    with plainly("torch"), torch.inference_mode(), FlopCounterMode(display=False) as count:
        model(torch.empty(1, samples, device=META), **draws, method=hp.cfm_solver_method, nfe=nfe)
    return count.get_total_flops() / seconds / 1e9


def denoiser_flops(hidden: int, samples: int) -> float:
    """FLOPs of the denoiser's network for one row."""
    net = abstract_denoiser(hidden)[0].net
    image = torch.empty(1, 3, BINS, samples // DENOISER_STFT.hop, device=META)
    return _counted(lambda: net(image))


def enhancer_flops(hp: EnhancerHParams, samples: int, nfe: int, method: Solver) -> dict[str, float]:
    """FLOPs of each part of the enhancer for one row, its denoiser among them; the vocoder in one tile."""
    model, frames = abstract_enhancer(hp, folded=True)[0], samples // hp.hop_size
    mel, latent, noise, wide = (
        torch.empty(1, channels, length, device=META)
        for channels, length in (
            (hp.num_mels, frames),
            (hp.lcfm_latent_dim, frames),
            (VOCODER_NOISE, frames + TAIL),
            (hp.num_mels + hp.vocoder_extra_dim, frames),
        )
    )
    auto, flow, model.vocoder.tile = model.lcfm.ae, model.lcfm.cfm, None
    with plainly("torch"):
        return {
            "denoiser": denoiser_flops(hp.unet_hidden_dim, samples),
            "encoder": _counted(lambda: auto.encode(mel)),
            "flow": _counted(lambda: flow.sample(latent, mel, method, nfe)),
            "decoder": _counted(lambda: auto.decode(latent)),
            "vocoder": _counted(lambda: model.vocoder(wide, noise)),
        }


def _counted(work: Callable[[], object]) -> float:
    with torch.no_grad(), FlopCounterMode(display=False) as count:
        work()
    return float(count.get_total_flops())


def _width(hp: HParams) -> int:
    return hp.unet_hidden_dim if isinstance(hp, DenoiserHParams | EnhancerHParams) else 0


def _without_memory(named: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: torch.empty(leaf.shape, dtype=leaf.dtype, device=META) for name, leaf in named.items()}


def measure() -> dict[str, Any]:
    """Everything at full size: rows of 30 s are cleaned, and the presets trained on crops of 3 s."""
    enhancer: Any = preset("enhancer_stage2")
    found: dict[str, Any] = {
        "machine": machine(),
        "denoise": denoising(DenoiserHParams(), 30),
        "enhance": {nfe: enhancing(enhancer, 30, nfe) for nfe in NFE},
    }
    hps = {name: preset(name).replace(training_seconds=3) for name in PRESETS}
    hps["enhancer_stage1 without discriminator"] = hps["enhancer_stage1"].replace(
        gan_training_start_step=None
    )
    found["train"] = {name: training(hp)._asdict() for name, hp in hps.items()}
    return found


def main() -> None:
    """Print the counts, and write them as JSON where asked."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, help="write the counts here")
    given, found = parser.parse_args(), measure()
    print("GFLOP for a second of sound")
    print(f"{'denoise':40} {found['denoise']:8.1f}")
    for nfe, gflop in found["enhance"].items():
        print(f"{f'enhance, nfe {nfe}':40} {gflop:8.1f}")
    for name, passes in found["train"].items():
        both = Passes(**passes)
        print(
            f"{name:40} {both.forward:8.1f} forward, {both.backward:8.1f} backward, {both.both:8.1f} in all"
        )
    if given.json:
        write_results(given.json, found)


if __name__ == "__main__":
    main()
