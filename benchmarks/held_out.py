"""How much a run's checkpoints gain on many held-out mixtures: `python -m benchmarks.held_out RUN ... --draws 10`.

Training judges itself by one mixture of each of the ten held-out files, too few to tell a good model from luck:
crops, noises and weights are drawn once. This draws them again and again, never from files that were trained on.
Prints one JSON line for each checkpoint.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from parivox.audio import peak_normalize
from parivox.backend import Backend, get_backend
from parivox.checkpoint import list_checkpoints, load_checkpoint
from parivox.data import validation_batches
from parivox.evaluation import LIMIT
from parivox.hparams import DenoiserHParams
from parivox.metrics import si_sdr

BANDS = ((-np.inf, 0.0), (0.0, 6.0), (6.0, np.inf))
"""Input SI-SDR in dB by which the gains are grouped."""


def measure(run: Path, backend: Backend, draws: int) -> Iterator[dict[str, Any]]:
    """For each checkpoint of a run: mean gain in dB, its standard error, and the gain by input SI-SDR."""
    hp = DenoiserHParams.load(run / "hparams.yaml")
    # Seed 0 is the run's own usual one; its ten mixtures are in the run's log.
    sets = [validation_batches(hp, seed=1 + k, batch_size=10)[0].arrays for k in range(draws)]
    for path in list_checkpoints(run):
        model = backend.load_denoiser(hp, load_checkpoint(path).arrays.weights)
        parts = [
            scores(batch["noisy"], backend.denoise(model, batch["noisy"]), batch["target"]) for batch in sets
        ]
        before, after = (np.concatenate(part) for part in zip(*parts, strict=True))
        gain = after - before
        step = re.search(r"\d+", path.stem)
        yield {
            "run": run.name,
            "step": int(step.group()) if step else None,
            "mixtures": len(gain),
            "si_sdr_noisy": float(before.mean()),
            "si_sdr_gain": float(gain.mean()),
            "standard_error": float(gain.std(ddof=1) / np.sqrt(len(gain))),
            "gain_by_input": {
                f"{low:g} to {high:g} dB": float(gain[(before >= low) & (before < high)].mean())
                for low, high in BANDS
            },
        }


def scores(noisy: np.ndarray, output: np.ndarray, target: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """SI-SDR of mixtures and outputs in dB, where the target sounds."""
    target = peak_normalize(target)
    before, after = (np.clip(si_sdr(x, target), -LIMIT, LIMIT) for x in (noisy, output))
    sounding = ~np.isnan(before)
    return before[sounding], after[sounding]


def main() -> None:
    """Measure the runs that the command line names."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN")
    parser.add_argument("--backend", choices=("jax", "torch"))
    parser.add_argument("--draws", type=int, default=10, help="mixtures of each of the ten held-out files")
    given = parser.parse_args()
    backend = get_backend(given.backend)
    for run in given.runs:
        for found in measure(run, backend, given.draws):
            print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
