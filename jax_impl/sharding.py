"""One training state on many devices, and many processes; the twin of `torch_impl.sharding`.

DeepSpeed's ZeRO stages as placements on a mesh with one axis, `data`. Stage 0 keeps everything on every device; 1
divides the optimizer's memory; 2 also the gradients; 3 also the weights. S. Rajbhandari et al., "ZeRO: memory
optimizations toward training trillion parameter models", 2020.

Loss and gradient run under `shard_map`: each device works on its rows and the gradients are summed explicitly. Left
to the compiler's partitioner, a Fourier transform is not divided by rows: every device would transform every row.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from parivox.backend import Batch, NamedArrays
from parivox.deepspeed_config import TrainConfig
from parivox.errors import BackendError, ConfigError
from parivox.parallel import World

__all__ = [
    "bytes_per_device",
    "full_arrays",
    "initialize",
    "share",
    "agree",
    "gather",
    "Mean",
    "data_parallel",
    "gradient_shardings",
    "make_mesh",
    "make_sharded_step",
    "one_device",
    "place",
    "shard_batch",
    "state_shardings",
]

AXIS = "data"
START_SECONDS = 300
HEARTBEAT_SECONDS = 50
"""After so long JAX itself ends the processes of a run that has lost one; `parivox.watchdog` comes before."""

SHUTDOWN_SECONDS = 20
SHARED_BYTES = 1024

Tree = TypeVar("Tree")


def bytes_per_device(tree: Any) -> int:
    """Bytes that a tree of arrays takes on the fullest device of this process."""
    held: dict[Any, int] = {}
    for leaf in jax.tree.leaves(tree):
        for shard in leaf.addressable_shards:
            held[shard.device] = held.get(shard.device, 0) + shard.data.nbytes
    return max(held.values(), default=0)


def full_arrays(tree: Any) -> NamedArrays:
    """Named arrays on the host, whole; every process must ask for them, and each gets all.

    Args:
        tree: name -> array, wherever its parts are.
    """
    scattered = {name: leaf for name, leaf in tree.items() if not leaf.is_fully_addressable}
    whole = _on_every_device(scattered)
    return {name: np.array(whole.get(name, leaf)) for name, leaf in tree.items()}


def one_device(tree: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
    """Named arrays, whole, on the first device of this process; every process must ask for them."""
    scattered = {name: leaf for name, leaf in tree.items() if not leaf.is_fully_replicated}
    whole = _on_every_device(scattered)
    return {name: whole.get(name, leaf).addressable_data(0) for name, leaf in tree.items()}


def _on_every_device(tree: dict[str, jax.Array]) -> dict[str, jax.Array]:
    if not tree:
        return {}
    sharding: Any = next(iter(tree.values())).sharding
    return _replicator(sharding.mesh)(tree)


@lru_cache
def _replicator(mesh: Mesh) -> Callable[[Any], Any]:
    return jax.jit(lambda tree: tree, out_shardings=NamedSharding(mesh, PartitionSpec()))


def initialize(world: World) -> World:
    """Meet the other processes; before anything else is done with JAX.

    On CPUs the processes then talk through gloo.

    Returns:
        The world, with rank and size filled in where the cluster knows them.

    Raises:
        BackendError: the processes do not meet, or JAX is in use already.
    """
    if world.size == 1 and not world.detect:
        return world
    known: dict[str, Any] = {}
    if not world.detect:
        known = {
            "coordinator_address": world.coordinator,
            "num_processes": world.size,
            "process_id": world.rank,
        }
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    try:
        jax.distributed.initialize(
            **known,
            initialization_timeout=START_SECONDS,
            heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
            shutdown_timeout_seconds=SHUTDOWN_SECONDS,
        )
    except (RuntimeError, ValueError) as error:
        remedy = (
            "no cluster was recognised; give --coordinator, --num-processes and --process-id"
            if world.detect
            else f"check that process 0 runs and that {world.coordinator} is its address"
        )
        first = str(error).partition("\n")[0]
        raise BackendError(f"the JAX processes did not meet ({first}); {remedy}") from error
    met = World(jax.process_index(), jax.process_count(), 0, world.coordinator)
    with _without_gloo_s_line():
        share("")
    return met


@contextmanager
def _without_gloo_s_line() -> Iterator[None]:
    # With the first operation between CPU processes gloo's C++ code prints how many have met.
    sys.stdout.flush()
    kept = os.dup(1)
    try:
        with open(os.devnull, "w") as nothing:
            os.dup2(nothing.fileno(), 1)
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)


def share(text: str) -> str:
    """The text that rank 0 hands in, on every rank; every process must call this.

    Raises:
        ValueError: the text is longer than 1,020 bytes.
    """
    data = text.encode()
    if len(data) > SHARED_BYTES - 4:
        raise ValueError(f"{len(data)} bytes cannot be shared; {SHARED_BYTES - 4} can")
    block = np.zeros(SHARED_BYTES, np.uint8)
    block[:4] = np.frombuffer(len(data).to_bytes(4, "big"), np.uint8)
    block[4 : 4 + len(data)] = np.frombuffer(data, np.uint8)
    got = np.asarray(multihost_utils.broadcast_one_to_all(block), np.uint8).tobytes()
    return got[4 : 4 + int.from_bytes(got[:4], "big")].decode()


def agree(flag: int) -> int:
    """The largest flag of all ranks, on every rank; every process must call this."""
    return int(np.max(multihost_utils.process_allgather(np.int32(flag))))


def gather(text: str) -> list[str]:
    """The texts of all ranks in their order, on every rank; every process must call this."""
    data = np.frombuffer(text.encode(), np.uint8)
    lengths = np.atleast_1d(multihost_utils.process_allgather(np.int32(len(data))))
    block = np.zeros(max(int(lengths.max()), 1), np.uint8)
    block[: len(data)] = data
    blocks = np.asarray(multihost_utils.process_allgather(block), np.uint8).reshape(len(lengths), -1)
    return [row[:length].tobytes().decode() for row, length in zip(blocks, lengths, strict=True)]


def make_mesh(devices: Sequence[Any] | None = None) -> Mesh:
    """A mesh with one axis, over all devices of all processes; the devices of a process stand side by side.

    So the rows of process 0 come first in a global batch, as in the stream.
    """
    chosen = sorted(devices or jax.devices(), key=lambda device: (device.process_index, device.id))
    return Mesh(np.array(chosen), (AXIS,), axis_types=(AxisType.Auto,))


def divided_axis(shape: Sequence[int], count: int) -> int | None:
    """The longest axis that `count` devices can share evenly, the first of several; None when there is none."""
    fitting = [axis for axis, length in enumerate(shape) if length and length % count == 0]
    return max(fitting, key=lambda axis: shape[axis], default=None)


def _spec(shape: Sequence[int], mesh: Mesh, divide: bool) -> PartitionSpec:
    axis = divided_axis(shape, mesh.size) if divide else None
    return PartitionSpec() if axis is None else PartitionSpec(*[None] * axis, AXIS)


def gradient_shardings(params: Mapping[str, Any], stage: int, mesh: Mesh) -> dict[str, NamedSharding]:
    """Where the gradient of each parameter is kept: divided from stage 2 on."""
    return {name: NamedSharding(mesh, _spec(leaf.shape, mesh, stage >= 2)) for name, leaf in params.items()}


def state_shardings(state: Tree, stage: int, mesh: Mesh) -> Tree:
    """Where each leaf of a training state is kept.

    What lies under the state's field `params` are the weights, divided at stage 3; what lies under `others` is not
    trained and stays whole; everything else with a size is the optimizer's memory, divided from stage 1 on. A tensor
    with no axis that the devices can share evenly stays whole on each.

    Args:
        state: a NamedTuple or dataclass tree of arrays or of their shapes.
        stage: 0 to 3.
        mesh: of `make_mesh`.

    Raises:
        ConfigError: there is no such stage.
    """
    if stage not in range(4):
        raise ConfigError(f"zero_optimization.stage is {stage}; use 0 to 3")

    def placement(path: tuple[Any, ...], leaf: Any) -> NamedSharding:
        divided_from = {"params": 3, "others": 4}.get(getattr(path[0], "name", ""), 1)
        return NamedSharding(mesh, _spec(leaf.shape, mesh, stage >= divided_from))

    return jax.tree_util.tree_map_with_path(placement, state)


def place(tree: Tree, shardings: Tree) -> Tree:
    """Put host arrays on the devices; each process holds all of them and keeps its parts."""

    def put(array: Any, sharding: NamedSharding) -> jax.Array:
        # A copy: a CPU device would otherwise borrow the caller's memory.
        host = np.array(array)
        return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])

    return jax.tree.map(put, tree, shardings)


def shard_batch(batch: Batch, mesh: Mesh, dtype: Any = np.float32, axis: int = 0) -> dict[str, jax.Array]:
    """The global batch from this process's rows.

    Args:
        batch: arrays of this process's rows, as its stream gives them; (b, t).
        mesh: of `make_mesh`.
        dtype: of the result.
        axis: which axis counts rows; 1 where micro batches are stacked before it.

    Raises:
        ConfigError: the devices of this process cannot share the rows evenly.
    """
    here = sum(device.process_index == jax.process_index() for device in mesh.devices.flat)
    sharding = NamedSharding(mesh, PartitionSpec(*[None] * axis, AXIS))
    for array in batch.values():
        if array.shape[axis] % here:
            raise ConfigError(
                f"{array.shape[axis]} rows cannot be shared evenly by {here} devices; choose a batch size that is a"
                f" multiple of {here}, or fewer devices"
            )
    return {
        name: jax.make_array_from_process_local_data(sharding, np.asarray(array, dtype))
        for name, array in batch.items()
    }


@dataclass(frozen=True)
class Mean:
    """How the gradients of the devices are averaged: divided, summed, divided again.

    Where the number of devices is a power of two this is one result, unless a sum overflows float16.

    Attributes:
        before: factor on each device's gradient.
        after: factor on their sum.
        dtype: what is summed in; None for the gradient's own.
    """

    before: float = 1.0
    after: float = 1.0
    dtype: str | None = None

    @classmethod
    def of(cls, config: TrainConfig) -> Mean:
        """As DeepSpeed's engine (0.19) has it: where ranks get parts of the sum they divide before it."""
        devices, factor = config.world_size, config.gradient_predivide_factor
        dtype = "float32" if config.deepspeed.get("communication_data_type") == "fp32" else None
        scatters = config.deepspeed.get("zero_optimization", {}).get("reduce_scatter", True)
        if config.zero_stage == 3 or (config.zero_stage and scatters) or config.prescale_gradients:
            return cls(1 / devices, 1.0, dtype)
        return cls(1 / factor, factor / devices, dtype)


def data_parallel(
    gradient: Callable[..., Any], params: Mapping[str, Any], stage: int, mesh: Mesh, mean: Mean | None = None
) -> Callable[..., Any]:
    """A gradient function of one device, made to run on all: each on its rows, with whole weights.

    The loss must be a mean over rows, which then is the mean of the devices' means, as DeepSpeed takes it. The
    result takes `whole`, further arguments that are the same on every device, beside what `gradient` takes.

    Args:
        gradient: (params, *arrays, *whole) -> ((loss, output), gradients), as
            `jax.value_and_grad(..., has_aux=True)` makes it; the first axis of every array and of the output counts
            rows, or devices.
        params: name -> parameter or its shape.
        stage: weights arrive divided at stage 3, and gradients leave divided from stage 2 on.
        mesh: of `make_mesh`.
        mean: how the gradients are averaged; None divides their sum.
    """
    weights = {name: _spec(leaf.shape, mesh, stage >= 3) for name, leaf in params.items()}
    grads = {name: _spec(leaf.shape, mesh, stage >= 2) for name, leaf in params.items()}
    rows, everywhere = PartitionSpec(AXIS), PartitionSpec()
    how = mean or Mean(after=1 / mesh.size)

    def on_one(own: Mapping[str, jax.Array], arrays: Sequence[jax.Array], whole: Sequence[Any]) -> Any:
        gathered = {name: _gathered(own[name], weights[name]) for name in own}
        (loss, output), found = gradient(gathered, *arrays, *whole)
        averaged = {name: _averaged(g, grads[name], how) for name, g in found.items()}
        return (jax.lax.pmean(loss, AXIS), output), averaged

    # The check of replication does not see through an explicit sum; the tests do.
    shared = jax.shard_map(
        on_one,
        mesh=mesh,
        in_specs=(weights, rows, everywhere),
        out_specs=((everywhere, rows), grads),
        check_vma=False,
    )
    return lambda own, *arrays, whole=(): shared(dict(own), arrays, tuple(whole))


def _gathered(leaf: jax.Array, spec: PartitionSpec) -> jax.Array:
    return jax.lax.all_gather(leaf, AXIS, axis=len(spec) - 1, tiled=True) if spec else leaf


def _averaged(leaf: jax.Array, spec: PartitionSpec, mean: Mean) -> jax.Array:
    sent = (leaf if mean.dtype is None else leaf.astype(mean.dtype)) * mean.before
    if spec:
        total = jax.lax.psum_scatter(sent, AXIS, scatter_dimension=len(spec) - 1, tiled=True)
    else:
        total = jax.lax.psum(sent, AXIS)
    return (total * mean.after).astype(leaf.dtype)


def make_sharded_step(
    step: Callable[..., tuple[Tree, Any]], state: Tree, stage: int, mesh: Mesh
) -> Callable[..., tuple[Tree, Any]]:
    """Compile (state, ...) -> (state, metrics) so that the state stays where its stage wants it; it is donated.

    The step must take its gradient through `data_parallel`. Metrics come back whole on every device.

    Args:
        step: a pure function.
        state: the state or its shapes.
        stage: 0 to 3.
        mesh: of `make_mesh`.
    """
    whole = NamedSharding(mesh, PartitionSpec())
    shardings = state_shardings(state, stage, mesh)
    return jax.jit(step, out_shardings=(shardings, whole), donate_argnums=0)
