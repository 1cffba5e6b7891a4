"""What each porting trap costs on this model: `python -m benchmarks.traps`, the figures of docs/porting.md.

Each fault of the parity ladder is put into a backend, and the distance to the sound backend is printed, in the unit
of its rung. A few traps that are no faults of the ladder are measured beside them.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from parity_tests import faults, seeded
from parity_tests.ladder import Ladder, LadderOptions
from parity_tests.rungs_signal import distance
from parivox.features import DENOISER_STFT
from parivox.hparams import HParams


def ladder_faults(ladder: Ladder) -> Iterator[tuple[str, float]]:
    """The largest error that each planted fault causes, over backends."""
    for fault in faults.FAULTS:
        worst = 0.0
        for name in ladder.backends:
            with fault.patches[name]():
                rows = list(fault.probe(ladder, ladder.side(name, fault.dtype)))
            worst = max([worst, *(row.error for row in rows)])
        yield f"{fault.name} ({fault.rung}, {fault.dtype})", worst


def device_schedule() -> int:
    """Updates of a million at which a schedule computed in float32 on the device misses the engine's rate."""
    import jax
    import jax.numpy as jnp

    from parivox.schedule import warmup_decay_lr

    params = HParams().deepspeed_config["scheduler"]["params"]
    low, high, warmup, total = (
        params[k] for k in ("warmup_min_lr", "warmup_max_lr", "warmup_num_steps", "total_num_steps")
    )

    @jax.jit
    def rate(step: jax.Array) -> jax.Array:
        step = step.astype(jnp.float32)
        falling = jnp.maximum(0.0, (total - step) / (total - warmup))
        return low + (high - low) * jnp.where(step < warmup, step / warmup, falling)

    steps = np.arange(total)
    wanted = warmup_decay_lr(**params)(steps).astype(np.float32)
    return int((np.asarray(rate(jnp.asarray(steps, jnp.int32))) != wanted).sum())


def float32_beta() -> float:
    """Relative error of a second moment whose 1 - 0.999 is formed in double precision, unlike the engine's."""
    return float(abs((1 - 0.999) - (np.float32(1) - np.float32(0.999))) / (1 - 0.999))


def fast_variance(seed: int) -> tuple[float, float]:
    """Error of a float32 group norm on an offset input: E[x^2] - E[x]^2, and from centred values."""
    x = seeded.noise(seed, "variance", (16, 4096)) + 30
    wide = x.astype(np.float64)
    truth = (wide - wide.mean(1, keepdims=True)) / np.sqrt(wide.var(1, keepdims=True) + 1e-5)
    mean = x.mean(1, keepdims=True)
    fast = (x - mean) / np.sqrt((x * x).mean(1, keepdims=True) - mean * mean + np.float32(1e-5))
    centred = x - mean
    slow = centred / np.sqrt((centred * centred).mean(1, keepdims=True) + np.float32(1e-5))
    return distance(fast, truth), distance(slow, truth)


def scipy_stft(seed: int) -> float:
    """Distance of `jax.scipy.signal.stft` to the specified STFT, with its window and padding made equal."""
    import jax
    from jax.scipy.signal import stft

    from parivox.features import hann_window, stft_oracle

    with jax.enable_x64(True):
        x = seeded.signal(seed, 1, 44_100).astype(np.float64)
        spec = DENOISER_STFT
        padded = np.pad(x, ((0, 0), (spec.n_fft // 2,) * 2), mode="reflect")
        window = hann_window(spec.n_fft)
        found = stft(
            padded,
            window=window,
            nperseg=spec.n_fft,
            noverlap=spec.n_fft - spec.hop,
            boundary=None,
            padded=False,
        )[2]
        return distance(np.abs(np.asarray(found)), np.abs(stft_oracle(x, spec)))


def measure(seed: int = 20) -> dict[str, float]:
    """Every figure by name."""
    found = dict(ladder_faults(Ladder(LadderOptions(seed=seed))))
    found["updates of 1,000,000 that a float32 schedule on the device misses"] = device_schedule()
    found["second moment with 1 - 0.999 in double precision, relative"] = float32_beta()
    fast, slow = fast_variance(seed)
    found["float32 norm of an input with mean 30, deviation 1: E[x^2] - E[x]^2, relative"] = fast
    found["the same from centred values, relative"] = slow
    found["jax.scipy.signal.stft, padding and window made equal, relative"] = scipy_stft(seed)
    return found


def main() -> None:
    """Print the figures, and write them as JSON where asked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--seed", type=int, default=20)
    arguments = parser.parse_args()
    found = measure(arguments.seed)
    for name, value in found.items():
        print(f"{value:12.3g}  {name}")
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
