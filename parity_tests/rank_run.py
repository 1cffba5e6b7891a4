"""One process of a training on many devices, for the rung "devices" and the tests.

`python -m parity_tests.rank_run FILE RANK SIZE PORT` makes every run that the JSON file FILE lists, through the real
backend, and process 0 writes what came of them beside it.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np

from parity_tests import rungs_training
from parivox.backend import Backend, BackendName, TrainArrays, first_arrays, get_backend
from parivox.deepspeed_config import TrainConfig, resolve
from parivox.parallel import World, launched_world
from parivox.watchdog import Watchdog
from parivox.weights import initial_denoiser

GLOBAL_ROWS = 8
"""Records of an update, on however many devices."""

HPARAMS = rungs_training.HPARAMS
PARTS = ("parameters", "gradients", "optimizer")


def global_batch(seed: int, update: int) -> dict[str, np.ndarray]:
    """The records of one update."""
    parts = GLOBAL_ROWS // rungs_training.ROWS
    made = [rungs_training.batches(seed + 97 * (parts * update + k), 1)[0] for k in range(parts)]
    return {name: np.concatenate([part[name] for part in made]) for name in made[0]}


def config_of(devices: int, stage: int, passes: int, entries: Mapping[str, Any]) -> TrainConfig:
    """The narrow model's own config for so many devices, with the global batch fixed."""
    written = {k: v for k, v in HPARAMS.deepspeed_config.items() if not k.startswith("train_")}
    own = {
        "train_batch_size": GLOBAL_ROWS,
        "gradient_accumulation_steps": passes,
        # DeepSpeed would keep small weights whole, and all weights of this model are small.
        "zero_optimization": {"stage": stage, "stage3_param_persistence_threshold": 0},
    }
    return resolve({**written, **own, **entries}, world_size=devices)


def train(backend: Backend, run: Mapping[str, Any]) -> tuple[dict[str, Any], TrainArrays]:
    """Make one run; losses, norms, bytes of a device, and the state at the end."""
    config = config_of(backend.data_parallel, run["stage"], run["passes"], run.get("entries", {}))
    begin = first_arrays(initial_denoiser(run["seed"], HPARAMS.unet_hidden_dim), config.optimizer)
    state = backend.create_state(HPARAMS, begin, config)
    told: dict[str, Any] = {"losses": [], "norms": [], "finite": True}
    for update in range(run["updates"]):
        batch = global_batch(run["seed"], update)
        if run.get("fault") == "same rows":
            batch = same_rows(batch, backend.data_parallel)
        if run.get("fault") == "last is NaN" and update + 1 == run["updates"]:
            batch["noisy"][0] = np.nan  # one row of one device
        rows = own_rows(batch, backend.world.rank, backend.world.size)
        if run.get("weigh") and update + 1 == run["updates"]:
            told["bytes"] = weighed(backend, state, rows)
        state, result = backend.step(state, rows)
        told["losses"].append(result.loss)
        told["norms"].append(result.grad_norm)
        told["finite"] &= result.finite
    held = told.get("bytes")
    told["bytes"] = held() if callable(held) else held
    return told, backend.export_state(state)


def own_rows(batch: Mapping[str, np.ndarray], rank: int, ranks: int) -> dict[str, np.ndarray]:
    """The block of one process."""
    return {name: np.split(array, ranks)[rank] for name, array in batch.items()}


def same_rows(batch: Mapping[str, np.ndarray], devices: int) -> dict[str, np.ndarray]:
    """A fault: the block of the first device on every device."""
    return {name: np.concatenate([np.split(array, devices)[0]] * devices) for name, array in batch.items()}


def weighed(backend: Backend, state: Any, rows: Mapping[str, np.ndarray]) -> Any:
    """Bytes of a device by part; on PyTorch a function that knows them after the next update."""
    if backend.name == "torch":
        from torch_impl.sharding import engine_bytes

        held: dict[str, int] = {}
        sound = state.model.update

        def update(loss: Any) -> Any:
            held.update(engine_bytes(state.model.engine))
            return sound(loss)

        state.model.update = update
        return lambda: held
    return _weighed_jax(backend, state, rows)


def _weighed_jax(backend: Any, state: Any, rows: Mapping[str, np.ndarray]) -> dict[str, int]:
    import jax

    from jax_impl import sharding

    params = state.state.params
    gradients = params  # one device keeps a gradient of each
    if backend.mesh is not None:
        # How a gradient leaves the devices does not depend on how it was found: weights stand for it here.
        def found(own: Any, rows: Any) -> Any:
            return (rows.mean(), rows), own

        on_all = sharding.data_parallel(found, params, state.config.zero_stage, backend.mesh)
        batch = sharding.shard_batch(rows, backend.mesh, backend.dtype)
        with backend._scope():
            gradients = jax.jit(on_all)(params, batch["noisy"])[1]
    held = (params, gradients, state.state.adam)
    return dict(zip(PARTS, map(sharding.bytes_per_device, held), strict=True))


def opened(name: BackendName, run: Mapping[str, Any], world: World | None) -> Backend:
    """The backend on the devices of a run; in one process JAX may take some of all that there are."""
    dtype = run.get("dtype", "float32")
    if name == "jax" and run.get("devices"):
        import jax

        from jax_impl import sharding
        from jax_impl.backend import JaxBackend

        devices = jax.devices()[: run["devices"]]
        mesh = None if len(devices) == 1 else sharding.make_mesh(devices)
        return cast(Backend, JaxBackend(devices[0], "highest", dtype, World(), mesh))
    return get_backend(name, device="cpu", dtype=dtype, world=world)


def plant(name: BackendName, faults: set[str | None]) -> None:
    """Put the fault `sum`, for the mean over devices, into this process; `same rows` is planted in `train`."""
    if "sum" not in faults:
        return
    if name == "jax":
        from jax_impl import sharding

        sound = sharding.Mean.of
        sharding.Mean.of = lambda config: sharding.Mean(1.0, 1.0, sound(config).dtype)
    else:
        from torch_impl.engine import DeepSpeedPlayer

        backward = DeepSpeedPlayer.backward
        DeepSpeedPlayer.backward = lambda self, loss: backward(self, loss * self.config.world_size)


def main(file: str, rank: str, size: str, port: str) -> None:
    """Make the runs of a file."""
    path = Path(file)
    job = json.loads(path.read_text(encoding="utf-8"))
    name: BackendName = job["backend"]
    flags: dict[str, Any] = {}
    if name == "jax" and int(size) > 1:
        flags = {"coordinator": f"127.0.0.1:{port}", "num_processes": int(size), "process_id": int(rank)}
    world = launched_world(name, **flags)
    backend = get_backend(name, device="cpu", world=world)
    plant(name, {run.get("fault") for run in job["runs"]})
    with Watchdog(backend.world, backend.share):
        backend.agree(0)
        for number, run in enumerate(job["runs"]):
            chosen = opened(name, run, None) if backend.world.size == 1 else backend
            told, end = train(chosen, run)
            if backend.world.is_main:
                np.savez(path.with_name(f"{path.stem}-{number}.npz"), **end.weights)  # type: ignore[arg-type]
                told |= {"device": chosen.describe()["device"]}
                path.with_name(f"{path.stem}-{number}.json").write_text(json.dumps(told), encoding="utf-8")
        backend.share("written")


if __name__ == "__main__":
    main(*sys.argv[1:])
