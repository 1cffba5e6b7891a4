"""How the memory of the full-width vocoder grows with the length of the sound: `python -m benchmarks.vocoder_memory`.

Each measurement is a process of its own: it loads the weights, compiles, forgets its peak so far (Linux), makes
the sound once on a CPU, and reports how far its resident memory rose above where it had been. `--whole` measures
the shortest length without tiles of time too.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np

from benchmarks.machine import RESULTS as FOLDER
from benchmarks.machine import machine, write_results
from parivox.backend import BACKENDS, BackendName, installed
from parivox.enhancer_tables import FRAME, TAIL, TILE, VOCODER_NOISE
from parivox.features import SAMPLE_RATE
from parivox.hparams import EnhancerHParams
from parivox.weights_enhancer import initial_enhancer

# Everything but the vocoder is as narrow as it can be, so that loading it takes little.
HP = EnhancerHParams(irmae_hidden_dim=32, wn_hidden_dim=4, wn_layers=1)
SECONDS = (10.0, 60.0)
RESULTS = FOLDER / "vocoder_memory.json"
ALLOWED = 1.2
"""The longest sound's peak may be so many times that of the shortest."""


def resident(kind: str) -> float:
    """Resident memory of this process in MB, `VmRSS` now or `VmHWM` at its peak."""
    found = re.search(rf"{kind}:\s+(\d+) kB", Path("/proc/self/status").read_text(encoding="utf-8"))
    if found is None:
        raise OSError(f"/proc/self/status does not tell {kind}")
    return int(found[1]) / 1024


def rise(work: Callable[[], object]) -> float:
    """How many MB the resident memory rises above where it is while something works."""
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
    before = resident("VmRSS")
    work()
    return resident("VmHWM") - before


def torch_work(condition: np.ndarray, noise: np.ndarray, tile: int | None) -> Callable[[], object]:
    """The vocoder of the PyTorch backend, ready to run."""
    import torch

    from torch_impl import weights
    from torch_impl.model import weight_norm

    params, buffers = weights.enhancer_from_arrays(initial_enhancer(0, HP), HP, torch.float32, device="cpu")
    model = weights.bind_enhancer(
        weights.abstract_enhancer(HP, folded=True)[0], weight_norm.fold(params), buffers
    )
    model.vocoder.tile = tile
    inputs = torch.from_numpy(condition), torch.from_numpy(noise)

    def work() -> object:
        with torch.inference_mode():
            return model.vocoder(*inputs)

    return work


def jax_work(condition: np.ndarray, noise: np.ndarray, tile: int | None) -> Callable[[], object]:
    """The vocoder of the JAX backend, compiled."""
    import jax
    import jax.numpy as jnp

    from jax_impl import weights
    from jax_impl.model import weight_norm
    from jax_impl.precision import arithmetic

    params, buffers = weights.enhancer_from_arrays(initial_enhancer(0, HP), HP, jnp.dtype("float32"))
    params = jax.block_until_ready(weight_norm.fold(params))
    graph, _, _ = weights.abstract_enhancer(HP, folded=True)

    def vocode(params: dict, buffers: dict, condition: jax.Array, noise: jax.Array) -> jax.Array:
        with arithmetic("highest", "cpu"):
            model = weights.bind_enhancer(graph, params, buffers)
            model.vocoder.tile = tile
            return model.vocoder(condition.swapaxes(1, 2), noise.swapaxes(1, 2))

    inputs = params, buffers, jnp.asarray(condition), jnp.asarray(noise)
    compiled = jax.jit(vocode).lower(*inputs).compile()
    return lambda: jax.block_until_ready(compiled(*inputs))


WORK = {"jax": jax_work, "torch": torch_work}


def measure_here(name: BackendName, seconds: float, tile: int | None) -> float:
    """MB above the weights that one backend needs for so much sound."""
    frames, draw = round(seconds * SAMPLE_RATE / FRAME), np.random.default_rng(0)
    channels = HP.num_mels + HP.vocoder_extra_dim
    condition = draw.standard_normal((1, channels, frames), np.float32)
    noise = draw.standard_normal((1, VOCODER_NOISE, frames + TAIL), np.float32)
    return rise(WORK[name](condition, noise, tile))


def measure(name: BackendName, seconds: float, tile: int | None) -> float:
    """The same in a fresh process."""
    words = ["--here", name, str(seconds), "" if tile is None else str(tile)]
    command = [sys.executable, "-m", "benchmarks.vocoder_memory", *words]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1])


def main() -> None:
    """Measure, print, and write the figures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, default=RESULTS, help="write the figures here")
    parser.add_argument("--whole", action="store_true", help="measure the shortest length in one piece too")
    parser.add_argument("--here", nargs=3, metavar=("BACKEND", "SECONDS", "TILE"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.here:
        name, seconds, tile = given.here
        print(measure_here(name, float(seconds), int(tile) if tile else None))
        return
    found: dict = {"machine": machine(), "tile_frames": TILE, "backends": {}}
    for name in filter(installed, BACKENDS):
        peaks = {f"{seconds:g}": measure(name, seconds, TILE) for seconds in SECONDS}
        ratio = peaks[f"{SECONDS[-1]:g}"] / peaks[f"{SECONDS[0]:g}"]
        row: dict = {"peak_mb": peaks, "ratio": ratio}
        told = ", ".join(f"{seconds} s {peak:.0f} MB" for seconds, peak in peaks.items())
        verdict = "flat" if ratio <= ALLOWED else "GROWS"
        print(f"{name:6} {told}: {ratio:.2f} times, {verdict}", flush=True)
        if given.whole:
            row["whole_mb"] = {f"{SECONDS[0]:g}": measure(name, SECONDS[0], None)}
            print(f"{name:6} {SECONDS[0]:g} s in one piece: {row['whole_mb'][f'{SECONDS[0]:g}']:.0f} MB")
        found["backends"][name] = row
    write_results(given.json, found)


if __name__ == "__main__":
    main()
