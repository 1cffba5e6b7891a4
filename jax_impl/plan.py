"""A program compiled for devices that are described and not here: `python -m jax_impl.plan`; PyTorch has no such thing.

Reads a `parivox.plan.Request` as JSON from the standard input and prints the `parivox.plan.Plan` in one line. The
programs are those of `train_step` and `infer`; what they take is described by shapes, and nothing is run.
"""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec, SingleDeviceSharding

from jax_impl import sharding
from jax_impl.infer import denoiser_program, enhancer_program
from jax_impl.objective import objective_of
from jax_impl.train_step import Drive, Recipe, abstract_state, make_step
from jax_impl.weights import abstract_denoiser, abstract_enhancer
from parivox.backend import check_devices
from parivox.errors import BackendError
from parivox.hlo import read_program
from parivox.hparams import DenoiserHParams, EnhancerHParams
from parivox.plan import Plan, Request, row_shapes
from parivox.schedule import update_rates
from parivox.stages import is_judged
from parivox.topologies import Topology

__all__ = ["described_devices", "lower", "plan"]

_OUT_OF_MEMORY = re.compile(r"[Uu]sed ([\d.]+)([KMGT]?) of ([\d.]+)([KMGT]?) hbm")
_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


def described_devices(topology: Topology) -> list[Any]:
    """The devices of a topology: described ones of a TPU, or the CPU's simulated ones.

    Raises:
        BackendError: libtpu cannot describe it, or this process has too few simulated devices.
    """
    if topology.chip is None:
        found = jax.devices("cpu")
        if len(found) < topology.devices:
            raise BackendError(
                f"{topology.name}: this process has {len(found)} devices; set JAX_NUM_CPU_DEVICES={topology.devices}"
            )
        return list(found[: topology.devices])
    from jax.experimental import topologies

    try:
        devices = topologies.get_topology_desc(topology.name, platform="tpu").devices
    except Exception as error:  # whatever libtpu has to say
        first = str(error).partition("\n")[0]
        raise BackendError(f"{topology.name}: libtpu cannot describe it ({first}); update libtpu") from error
    if len(devices) != topology.devices:
        raise BackendError(
            f"{topology.name}: libtpu describes {len(devices)} devices, not {topology.devices}; use libtpu 0.0.52"
        )
    return list(devices)


def lower(request: Request, devices: Sequence[Any]) -> tuple[Any, dict[str, int]]:
    """The traced program, and bytes on a device of what it works on, as `Plan.held` has them."""
    if request.task == "train":
        return _training(request, devices)
    whole = SingleDeviceSharding(devices[0])
    task = _denoising if request.task == "denoise" else _enhancing
    return task(request, whole, devices[0].platform)


def plan(request: Request) -> Plan:
    """Compile a request here, in a process that has its devices.

    Raises:
        BackendError: the devices cannot be described.
        jax.errors.JaxRuntimeError: the compiler failed for another reason than memory.
    """
    devices = described_devices(request.topology)
    lowered, held = lower(request, devices)
    begin = time.monotonic()
    made = Plan(True, len(devices) if request.task == "train" else 1, held, versions=_versions(request))
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        short = _OUT_OF_MEMORY.search(str(error))
        if short is None:
            raise
        needed, limit = (round(float(short[k]) * _UNITS[short[k + 1]]) for k in (1, 3))
        took = time.monotonic() - begin
        return replace(made, fits=False, needed=needed, limit=limit, compile_seconds=took)
    took = time.monotonic() - begin
    text = compiled.as_text()
    program, cost, stats = read_program(text), compiled.cost_analysis(), compiled.memory_analysis()
    seconds = cost.get("optimal_seconds", 0.0)
    return replace(
        made,
        memory=_memory(stats),
        flops=cost.get("flops", 0.0),
        accessed=cost.get("bytes accessed", 0.0),
        seconds=seconds if seconds > 0 else None,
        cycles=program.cycles,
        loops=program.loops,
        collectives={one.kind: [one.count, one.bytes] for one in program.collectives},
        float64=program.float64,
        host=program.host,
        compile_seconds=took,
    )


def _training(request: Request, devices: Sequence[Any]) -> tuple[Any, dict[str, int]]:
    """The step of a run's last updates: the discriminator takes part where it ever does."""
    hp, config = request.hp, request.config()
    check_devices(config, len(devices))
    judged = is_judged(hp, hp.max_steps - 1)
    recipe = Recipe.of(hp, config, request.precision, judged, devices[0].platform)
    stage, state = config.zero_stage, abstract_state(recipe)
    grads = {
        name: jax.ShapeDtypeStruct(leaf.shape, recipe.compute or leaf.dtype)
        for name, leaf in objective_of(recipe.hp, judged).shapes.items()
    }
    if len(devices) > 1:
        mesh = sharding.make_mesh(devices)
        step = make_step(recipe, mesh, stage, sharding.Mean.of(config))
        placed = _placed(state, sharding.state_shardings(state, stage, mesh))
        grads = _placed(grads, sharding.gradient_shardings(grads, stage, mesh))
        divided = NamedSharding(mesh, PartitionSpec(sharding.AXIS))
    else:
        step, divided = make_step(recipe), SingleDeviceSharding(devices[0])
        placed = _placed(state, jax.tree.map(lambda _: divided, state))
        grads = _placed(grads, jax.tree.map(lambda _: divided, grads))
    shapes = row_shapes(hp, config.train_batch_size)
    rows = {name: _shape(shapes[name], divided) for name in objective_of(recipe.hp).inputs}
    held = {
        "parameters": _bytes(placed.params),
        "gradients": _bytes(grads),
        "optimizer": _bytes((placed.adam, placed.judge)),
        "fixed": _bytes(placed.others),
        "rows": _bytes(rows),
    }
    moved = update_rates(config.optimizer, config.scheduler).betas is not None
    own = _drive(moved, recipe.scaled)
    return step.lower(placed, rows, own, _drive(moved, False) if judged else None), held


def _drive(moved: bool, scaled: bool) -> Drive:
    pair = jax.ShapeDtypeStruct((2,), jnp.float32)
    return Drive(jax.ShapeDtypeStruct((), jnp.float32), pair if moved else None, pair if scaled else None)


def _denoising(request: Request, whole: Any, device: str) -> tuple[Any, dict[str, int]]:
    hp: Any = request.hp
    if not isinstance(hp, DenoiserHParams | EnhancerHParams):
        raise BackendError("plain HParams have no denoiser")
    _, shapes = abstract_denoiser(hp.unet_hidden_dim)
    params, x = _placed_whole(shapes, whole), _shape((request.rows, request.samples), whole)
    program = denoiser_program(hp.unet_hidden_dim, request.precision, device)
    return program.lower(params, x, None), {"parameters": _bytes(params), "rows": _bytes(x)}


def _enhancing(request: Request, whole: Any, device: str) -> tuple[Any, dict[str, int]]:
    hp: Any = request.hp
    _, named, tables = abstract_enhancer(hp, folded=True)
    params, buffers = _placed_whole(named, whole), _placed_whole(tables, whole)
    x = _shape((request.rows, request.samples), whole)
    all_shapes = row_shapes(hp, request.rows)
    frames = request.samples // hp.hop_size
    wanted = {"prior": "prior", "noise": "vocoder_noise"}
    tail = all_shapes["vocoder_noise"][2] - all_shapes["prior"][2]
    lengths = {"prior": frames, "noise": frames + tail}
    inputs = {name: _shape((*all_shapes[of][:2], lengths[name]), whole) for name, of in wanted.items()}
    inputs |= {name: _shape((request.rows,), whole) for name in ("tau", "blend")}
    program = enhancer_program(hp, request.precision, device)
    lowered = program.lower(params, buffers, x, inputs, None, method=request.solver, nfe=request.nfe)
    return lowered, {"parameters": _bytes((params, buffers)), "rows": _bytes((x, inputs))}


def _shape(shape: tuple[int, ...], where: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, jnp.float32, sharding=where)


def _placed(tree: Any, shardings: Any) -> Any:
    return jax.tree.map(
        lambda leaf, where: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where), tree, shardings
    )


def _placed_whole(named: Mapping[str, Any], where: Any) -> dict[str, jax.ShapeDtypeStruct]:
    return {
        name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where) for name, leaf in named.items()
    }


def _bytes(tree: Any) -> int:
    """Bytes on a device, without the padding of layouts."""
    total = 0
    for leaf in jax.tree.leaves(tree):
        count = 1
        for length in leaf.sharding.shard_shape(leaf.shape):
            count *= length
        total += count * leaf.dtype.itemsize
    return total


def _memory(stats: Any) -> dict[str, int]:
    arguments, outputs = stats.argument_size_in_bytes, stats.output_size_in_bytes
    aliased, temporaries = stats.alias_size_in_bytes, stats.temp_size_in_bytes
    code = stats.generated_code_size_in_bytes
    return {
        "arguments": arguments,
        "outputs": outputs,
        "aliased": aliased,
        "temporaries": temporaries,
        "code": code,
        "peak": arguments + outputs - aliased + temporaries + code,
    }


def _versions(request: Request) -> dict[str, str]:
    from importlib.metadata import version

    names = ("jax", "jaxlib", *(("libtpu",) if request.topology.chip else ()))
    return {name: version(name) for name in names}


if __name__ == "__main__":
    try:
        answer = json.dumps(plan(Request.from_json(sys.stdin.read())).to_dict())
    except BackendError as error:
        sys.exit(str(error))
    print(answer, flush=True)
