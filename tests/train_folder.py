"""Small runs for the tests of training: a folder of data, a backend of a few lines, a process to kill.

`python -m tests.train_folder DATA RUN BACKEND STEPS` trains in a process of its own.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from parivox import train as training
from parivox.audio import peak_normalize
from parivox.backend import Backend, Batch, HeldOut, NamedArrays, StepResult, TrainArrays, get_backend
from parivox.checkpoint import latest_checkpoint
from parivox.deepspeed_config import TrainConfig
from parivox.hparams import DenoiserHParams, HParams
from parivox.parallel import World
from parivox.runlog import read_metrics
from parivox.schedule import from_deepspeed
from parivox.train import TrainOptions
from parivox.weights import initial_denoiser
from tests.data_folder import folders

ROOT = Path(__file__).parent.parent
HIDDEN, ROWS, SAMPLES = 1, 2, 882
GROUPS = ("weights", "exp_avg", "exp_avg_sq")


def small_hparams(root: Path, **fields: object) -> DenoiserHParams:
    """The narrowest denoiser on 20 ms crops of made-up recordings below `root`."""
    values = {
        "unet_hidden_dim": HIDDEN,
        "batch_size_per_gpu": ROWS,
        "training_seconds": SAMPLES / 44_100,
        "warmup_steps": 2,
        "max_steps": 12,
        "max_lr": 1e-3,
    }
    return folders(root, **(values | fields))


def plain_hparams(**fields: object) -> DenoiserHParams:
    """The same without any files."""
    values = {"unet_hidden_dim": HIDDEN, "batch_size_per_gpu": ROWS, "warmup_steps": 2, "max_steps": 12}
    return DenoiserHParams.from_dict({**values, "max_lr": 1e-3, **fields})


def random_batch(seed: int, samples: int = SAMPLES) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    target = rng.standard_normal((ROWS, samples)).astype(np.float32)
    return {
        "noisy": 0.5 * target + 0.5 * rng.standard_normal(target.shape).astype(np.float32),
        "target": target,
    }


def first_arrays(hidden: int = HIDDEN, seed: int = 0) -> TrainArrays:
    weights = initial_denoiser(seed, hidden)
    zeros = {name: np.zeros_like(array) for name, array in weights.items()}
    return TrainArrays(weights, zeros, {name: array.copy() for name, array in zeros.items()}, 0)


def unequal(a: TrainArrays, b: TrainArrays) -> list[str]:
    """Tensors that differ in any bit, and `step` where that does."""
    found = [] if a.step == b.step else ["step"]
    for group in GROUPS:
        one, two = getattr(a, group), getattr(b, group)
        assert one.keys() == two.keys()
        found += [f"{group}/{name}" for name in one if one[name].tobytes() != two[name].tobytes()]
    return found


def train(folder: Path, backend: Backend, hp: DenoiserHParams | None, **options: Any) -> dict[str, Any]:
    """Train in this process, the data made by a thread."""
    return training.train(folder, backend, hp, TrainOptions(**({"workers": 0, "eval_every": 0} | options)))


def newest(folder: Path) -> TrainArrays:
    found = latest_checkpoint(folder)
    assert found is not None
    return found.arrays


def curve(folder: Path) -> list[tuple[int, float]]:
    """(step, loss) of every logged update, in the order of the file."""
    return [(line["step"], line["loss"]) for line in read_metrics(folder, "train")]


class ToyBackend:
    """A linear model in NumPy: every update depends on the batch, the state and the learning rate.

    Args:
        before: called with the number of each update (from 1) before it is made.
        energy: number of an update to the energy ratio it reports.
    """

    name = "jax"
    compiles = False

    def __init__(
        self,
        before: Callable[[int], object] = lambda step: None,
        energy: Callable[[int], float] = lambda step: 1.0,
    ):
        self.before, self.energy = before, energy
        self.world, self.data_parallel = World(), 1

    def describe(self) -> dict[str, str]:
        return {"backend": "jax", "device": "none"}

    def create_state(
        self, hp: HParams, arrays: TrainArrays, config: TrainConfig | None = None
    ) -> dict[str, Any]:
        groups = {g: {k: v.copy() for k, v in getattr(arrays, g).items()} for g in GROUPS}
        return {**groups, "step": arrays.step, "rate": from_deepspeed(hp.deepspeed_config)}

    def step(self, state: dict[str, Any], batch: Batch) -> tuple[dict[str, Any], StepResult]:
        self.before(state["step"] + 1)
        rate = float(state["rate"](np.asarray(state["step"])))
        gain = float(state["weights"]["net.head.2.bias"].mean())
        loss = float(np.abs(gain * batch["noisy"] - batch["target"]).mean())
        result = StepResult(loss, abs(loss), rate, self.energy(state["step"] + 1), bool(np.isfinite(loss)))
        if result.finite:
            state["step"] += 1
            for name, weight in state["weights"].items():
                mean, square = state["exp_avg"][name], state["exp_avg_sq"][name]
                mean += np.float32(0.1) * (np.float32(loss) * weight - mean)
                square += np.float32(0.001) * (np.float32(loss) ** 2 - square)
                weight -= np.float32(rate) * mean
        return state, result

    def export_state(self, state: dict[str, Any]) -> TrainArrays:
        groups = ({k: v.copy() for k, v in state[g].items()} for g in GROUPS)
        return TrainArrays(*groups, state["step"])

    def evaluate(self, state: dict[str, Any], batch: Batch) -> HeldOut:
        loss = float(np.abs(batch["noisy"] - batch["target"]).mean())
        return HeldOut({"l1": loss}, {"denoised": peak_normalize(batch["noisy"])})

    def share(self, text: str) -> str:
        return text

    def agree(self, flag: int) -> int:
        return flag

    def gather(self, text: str) -> list[str]:
        return [text]

    def load_denoiser(self, hp: HParams, weights: NamedArrays) -> float:
        return float(weights["net.head.2.bias"].mean())

    def denoise(self, model: float, wav: np.ndarray, lengths: np.ndarray | None = None) -> np.ndarray:
        return peak_normalize(wav) * np.float32(model)

    def load_enhancer(self, hp: HParams, weights: NamedArrays) -> float:
        raise NotImplementedError

    def enhance(self, model: Any, *arguments: Any, **options: Any) -> Any:
        raise NotImplementedError


def process_command(data: Path, run: Path, backend: str, steps: int) -> list[str]:
    """A training process; a warning ends it."""
    words = [str(data), str(run), backend, str(steps)]
    return [sys.executable, "-u", "-W", "error", "-m", "tests.train_folder", *words]


def process_environment() -> dict[str, str]:
    """One thread: where cores are busy, OpenMP's threads wait for each other by spinning, and a step takes seconds."""
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    fixed = {"PYTHONPATH": os.pathsep.join(paths), "JAX_PLATFORMS": "cpu", "MPLBACKEND": "agg"}
    return {**os.environ, **fixed, **dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1")}


def main(data: str, run: str, name: str, steps: str) -> None:
    places = {f"{kind}_dir": f"{data}/{kind}" for kind in ("fg", "bg", "rir")}
    hp = plain_hparams(training_seconds=SAMPLES / 44_100, nj=0, max_steps=int(steps), **places)
    backend = ToyBackend() if name == "toy" else get_backend(name, device="cpu")
    train(Path(run), backend, hp, checkpoint_every=2)


if __name__ == "__main__":
    main(*sys.argv[1:])
