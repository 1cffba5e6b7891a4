"""Programs that the tests of `jax_impl.sharding` start: `python -m tests.ranks_jax WHAT ...`."""

from __future__ import annotations

import json
import sys
import time
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jax_impl import sharding
from jax_impl.optim import AdamState, clip_by_global_norm, fused_adam, global_norm
from parivox.errors import DataError
from parivox.parallel import launched_world
from parivox.watchdog import Watchdog
from parivox.weights import initial_denoiser

ROWS, UPDATES = 16, 3
RATE = np.float32(0.01)


class State(NamedTuple):
    params: dict[str, jax.Array]
    adam: AdamState


Arrays = dict[str, np.ndarray]


def first_state(params: Arrays) -> State:
    """Host arrays; every moment 0."""
    zeros = {name: np.zeros_like(array) for name, array in params.items()}
    return State(params, AdamState(np.int32(0), zeros, dict(zeros)))


def tiny_params() -> Arrays:
    """24 is a multiple of 2, 4 and 8; `bias` can be shared by none of them."""
    rng, shapes = np.random.default_rng(0), {"in": (24, 8), "out": (14, 24), "bias": (3, 1)}
    return {name: (0.3 * rng.standard_normal(shape)).astype(np.float32) for name, shape in shapes.items()}


def tiny_loss(params, noisy, target):
    bands = jnp.abs(jnp.fft.rfft(noisy)) @ params["in"].T
    output = jnp.tanh(bands) @ params["out"].T + params["bias"].sum()
    return jnp.abs(output - target).mean(), output


def batch_of(update: int, length: int, rows: int = ROWS) -> Arrays:
    rng = np.random.default_rng([7, update])
    return {name: rng.standard_normal((rows, length)).astype(np.float32) for name in ("noisy", "target")}


def step_of(gradient):
    clip, adam = clip_by_global_norm(0.05), fused_adam()

    def step(state, noisy, target, rate):
        (loss, output), grads = gradient(state.params, noisy, target)
        clipped, _ = clip.update(grads, optax.EmptyState())
        updates, moments = adam.update(clipped, state.adam, learning_rate=rate)
        made = State(optax.apply_updates(state.params, updates), moments)
        return made, {"loss": loss, "grad_norm": global_norm(grads), "energy": jnp.sum(output**2)}

    return step


def kind_of(params: Arrays) -> np.dtype:
    return next(iter(params.values())).dtype


def named(state: State) -> Arrays:
    """Everything of a state, whole, on the host."""
    trees = {"params": state.params, "exp_avg": state.adam.exp_avg, "exp_avg_sq": state.adam.exp_avg_sq}
    return {
        f"{kind}.{name}": array
        for kind, tree in trees.items()
        for name, array in sharding.full_arrays(tree).items()
    }


def plain_run(loss, params: Arrays, length: int) -> tuple[Arrays, list[float]]:
    """One device, and nothing of `sharding` but the copy to the host; result and metrics."""
    step = jax.jit(step_of(jax.value_and_grad(loss, has_aux=True)))
    state, told = jax.tree.map(jnp.asarray, first_state(params)), []
    for k in range(UPDATES):
        rows = [jnp.asarray(array, kind_of(params)) for array in batch_of(k, length).values()]
        state, metrics = step(state, *rows, RATE)
        told += [float(metrics[name]) for name in ("loss", "grad_norm", "energy")]
    return named(state), told


def sharded_run(loss, params: Arrays, length: int, mesh, stage: int, mine=slice(None)):
    """The same on a mesh; result, metrics, and bytes a device of weights, gradients and optimizer."""
    host, kind = first_state(params), kind_of(params)
    gradient = sharding.data_parallel(jax.value_and_grad(loss, has_aux=True), host.params, stage, mesh)
    state = sharding.place(host, sharding.state_shardings(host, stage, mesh))
    step = sharding.make_sharded_step(step_of(gradient), host, stage, mesh)
    told: list[float] = []
    for k in range(UPDATES):
        rows = {name: array[mine] for name, array in batch_of(k, length).items()}
        state, metrics = step(state, *sharding.shard_batch(rows, mesh, kind).values(), RATE)
        told += [float(metrics[name]) for name in ("loss", "grad_norm", "energy")]
    (_, _), grads = jax.jit(gradient)(state.params, *sharding.shard_batch(rows, mesh, kind).values())
    wanted = sharding.gradient_shardings(host.params, stage, mesh)
    assert all(grads[name].sharding.is_equivalent_to(wanted[name], grads[name].ndim) for name in grads)
    held = [sharding.bytes_per_device(tree) for tree in (state.params, grads, state.adam)]
    return named(state), told, held


def farthest(got: Arrays, wanted: Arrays) -> float:
    """The largest relative distance of a tensor."""
    assert got.keys() == wanted.keys()
    return max(
        float(np.linalg.norm(got[k] - wanted[k]) / max(np.linalg.norm(wanted[k]), 1e-30)) for k in wanted
    )


def compare(loss, params: Arrays, length: int, devices, stages) -> None:
    """Print a line for each number of devices and stage."""
    wanted, wanted_told = plain_run(loss, params, length)
    for count in devices:
        mesh = sharding.make_mesh(jax.devices()[:count])
        for stage in stages:
            got, told, held = sharded_run(loss, params, length, mesh, stage)
            away = float(np.max(np.abs(np.array(told) / np.array(wanted_told) - 1)))
            line = {"devices": count, "stage": stage, "tensors": farthest(got, wanted), "metrics": away}
            print(json.dumps(line | {"bytes": held}), flush=True)


def denoiser(devices: str, stages: str) -> None:
    """In float64: a weight whose true gradient is 0 is moved by Adam along the noise of float32."""
    from jax_impl.objective import loss_and_output
    from jax_impl.weights import abstract_denoiser

    jax.config.update("jax_enable_x64", True)
    graph, _ = abstract_denoiser(2)
    start = {name: a.astype(np.float64) for name, a in initial_denoiser(0, 2, "published").items()}

    def loss(params, noisy, target):
        return loss_and_output(params, graph, noisy, target)

    compare(loss, start, 4410, json.loads(devices), json.loads(stages))


def process(rank: str, size: str, port: str, folder: str) -> None:
    """One of several processes with two devices each."""
    flags = {"coordinator": f"127.0.0.1:{port}", "num_processes": int(size), "process_id": int(rank)}
    world = sharding.initialize(launched_world("jax", **flags))
    with Watchdog(world, sharding.share):
        rows = ROWS // world.size
        mine = slice(world.rank * rows, (world.rank + 1) * rows)
        for stage in (0, 3):
            got, told, held = sharded_run(tiny_loss, tiny_params(), 14, sharding.make_mesh(), stage, mine)
            np.savez(Path(folder, f"{stage}-{rank}.npz"), told=told, held=held, **got)


def wait_for_ever(rank: str, size: str, port: str, folder: str) -> None:
    """Take part in sums until killed."""
    flags = {"coordinator": f"127.0.0.1:{port}", "num_processes": int(size), "process_id": int(rank)}
    world = sharding.initialize(launched_world("jax", **flags))
    with Watchdog(world, sharding.share):
        while True:
            sharding.share("still here")
            Path(folder, rank).touch()
            time.sleep(0.05)


def one_fails(rank: str, size: str, port: str, folder: str) -> None:
    """The last rank meets an error of its own while the others wait for it."""
    del folder
    flags = {"coordinator": f"127.0.0.1:{port}", "num_processes": int(size), "process_id": int(rank)}
    world = sharding.initialize(launched_world("jax", **flags))
    with Watchdog(world, sharding.share):
        if world.rank == world.size - 1:
            raise DataError("speech: nothing here decodes; mend it")
        sharding.share("waiting")


if __name__ == "__main__":
    what = {
        "tiny": partial(compare, tiny_loss, tiny_params(), 14, (1, 2, 8), (0, 1, 2, 3)),
        "denoiser": denoiser,
        "process": process,
        "wait": wait_for_ever,
        "fail": one_fails,
    }
    what[sys.argv[1]](*sys.argv[2:])
