"""Small runs of the enhancer's two stages, for the tests of training; and a process to kill.

`python -m tests.enhancer_folder DATA RUN STAGE BACKEND STEPS [STAGE1]` trains in a process of its own.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from parivox import train as training
from parivox.backend import Backend, TrainArrays, get_backend
from parivox.hparams import EnhancerHParams
from parivox.stages import stage_of
from parivox.train import TrainOptions
from tests.data_folder import folders
from tests.train_folder import unequal

GAN_START, STEPS = 2, 4
SIZES: dict[str, Any] = {
    "irmae_hidden_dim": 32,
    "wn_hidden_dim": 16,
    "wn_layers": 2,
    "univnet_nc": 4,
    "unet_hidden_dim": 1,
    "lcfm_latent_dim": 16,
    "cfm_solver_nfe": 2,
    "batch_size_per_gpu": 2,
    "training_seconds": 0.06,
    "warmup_steps": 2,
    "max_steps": STEPS,
}


def stage1_hparams(root: Path, **fields: Any) -> EnhancerHParams:
    """The narrowest first stage on 60 ms crops of made-up recordings below `root`; the discriminator joins early."""
    speech = folders(root)
    values = {"lcfm_training_mode": "ae", "gan_training_start_step": GAN_START, **fields}
    return EnhancerHParams(
        fg_dir=speech.fg_dir, bg_dir=speech.bg_dir, rir_dir=speech.rir_dir, nj=0, **(SIZES | values)
    )


def stage2_hparams(root: Path, stage1: Path | None, **fields: Any) -> EnhancerHParams:
    """The second stage after a run of the first."""
    values = {"gan_training_start_step": None, "enhancer_stage1_run_dir": stage1, "lcfm_training_mode": "cfm"}
    return stage1_hparams(root, **(values | fields))


def train(folder: Path, backend: Backend, hp: EnhancerHParams, **options: Any) -> dict[str, Any]:
    """Train in this process, the data made by a thread."""
    given: dict[str, Any] = {"workers": 0, "eval_every": 0, "checkpoint_every": 2, **options}
    return training.train(folder, backend, hp, TrainOptions(**given), stage_of(hp))


def unequal_runs(one: TrainArrays, other: TrainArrays) -> list[str]:
    """Tensors that differ in any bit, the discriminator's too."""
    found = unequal(replace(one, discriminator=None), replace(other, discriminator=None))
    assert (one.discriminator is None) == (other.discriminator is None)
    if one.discriminator is not None and other.discriminator is not None:
        found += [f"discriminator {name}" for name in unequal(one.discriminator, other.discriminator)]
    return found


def main(data: str, run: str, stage: str, backend: str, steps: str, stage1: str = "") -> None:
    root = Path(data)
    made = stage1_hparams(root) if stage == "enhancer-stage1" else stage2_hparams(root, Path(stage1))
    train(Path(run), get_backend(backend, device="cpu"), made.replace(max_steps=int(steps)))  # type: ignore[arg-type]


if __name__ == "__main__":
    main(*sys.argv[1:])
