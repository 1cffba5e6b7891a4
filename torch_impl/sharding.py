"""One training state on many processes; the twin of `jax_impl.sharding`.

DeepSpeed divides the state itself, as its ZeRO stage says: 1 the optimizer's memory, 2 also the gradients, 3 also the
weights. What is here lets the processes meet, weighs what each holds, and turns a divided state into whole named
arrays and back, so that a checkpoint does not depend on the stage or on the number of processes.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterable, Mapping, Sequence
from contextlib import redirect_stdout
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist

from parivox.backend import NamedArrays
from parivox.errors import BackendError
from parivox.parallel import World

__all__ = [
    "bytes_per_device",
    "full_arrays",
    "initialize",
    "share",
    "agree",
    "gather",
    "engine_bytes",
    "put_arrays",
]

COLLECTIVE_TIMEOUT = timedelta(minutes=30)
"""Rank 0 evaluates and writes while the others wait, so this is long; `parivox.watchdog` notices a dead process."""

MASTER = "weights"
"""Name of the float32 weights among the kinds of arrays; the other kinds are the optimizer's own: `exp_avg`, ..."""


def bytes_per_device(tree: Iterable[Tensor]) -> int:
    """Bytes that tensors take on this process's device; memory that several share counts once."""
    held = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tree}
    return sum(held.values())


def full_arrays(engine: Any, kinds: Iterable[str]) -> dict[str, NamedArrays]:
    """Whole arrays on the host from a DeepSpeed engine at any stage; every process must ask, and each gets all.

    Args:
        engine: a DeepSpeed engine; its module's names are the names of the arrays.
        kinds: `weights` for the float32 weights, and keys of the optimizer's state, such as `exp_avg`.

    Returns:
        Kind -> name -> array. A parameter that is not trained has weights alone.
    """
    _link(engine)
    found: dict[str, NamedArrays] = {}
    for kind in kinds:
        tensors = {name: _whole(engine, p, kind) for name, p in engine.module.named_parameters()}
        found[kind] = {
            k: t.detach().float().cpu().numpy().copy() for k, t in tensors.items() if t is not None
        }
    return found


def initialize(world: World, device: str = "cpu") -> World:
    """Meet the other processes: through gloo on CPUs, NCCL on GPUs.

    Raises:
        BackendError: the processes do not meet.
    """
    if world.size == 1:
        return world
    from torch_impl.engine import import_deepspeed  # which takes from here what it needs

    if device != "cpu":
        torch.cuda.set_device(world.local_rank)
    deepspeed = import_deepspeed(device)
    # DeepSpeed calls them by their old names; each process would say so at every call.
    warnings.filterwarnings("ignore", r"`torch\.distributed\.\w+` is deprecated", FutureWarning)
    backend = "gloo" if device == "cpu" else "nccl"
    try:
        with redirect_stdout(io.StringIO()):  # it prints which extension it has loaded
            deepspeed.init_distributed(dist_backend=backend, timeout=COLLECTIVE_TIMEOUT, verbose=False)
    except (RuntimeError, ValueError) as error:
        first = str(error).partition("\n")[0]
        raise BackendError(
            f"the processes did not meet ({first}); check that rank 0 runs and that {world.coordinator} is its address"
        ) from error
    return world


def share(text: str) -> str:
    """The text that rank 0 hands in, on every rank; every process must call this."""
    box = [text]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def agree(flag: int) -> int:
    """The largest flag of all ranks, on every rank; every process must call this."""
    if not dist.is_initialized():
        return flag
    box = torch.tensor([flag], device=_device())
    dist.all_reduce(box, op=dist.ReduceOp.MAX)
    return int(box.item())


def gather(text: str) -> list[str]:
    """The texts of all ranks in their order, on every rank; every process must call this."""
    if not dist.is_initialized():
        return [text]
    box: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(box, text)
    return box


def _device() -> str:
    return "cuda" if dist.get_backend() == "nccl" else "cpu"


def engine_bytes(engine: Any) -> dict[str, int]:
    """Bytes of `parameters`, `gradients` and `optimizer` that this process holds; between backward and step.

    The float32 copy of the weights that ZeRO updates counts to the optimizer, as in the paper.
    """
    parameters = list(engine.module.parameters())
    optimizer, inner = engine.optimizer, _inner(engine)
    if _is_stage3(parameters):
        weights = [p.ds_tensor for p in parameters]
        gradients = [optimizer.get_local_fp32_grad_for_param(p) for p in parameters if p.requires_grad]
        masters = list(optimizer.fp32_partitioned_groups_flat)
    else:
        weights = parameters
        gradients = [p.grad for p in parameters if p.grad is not None]
        divided = getattr(optimizer, "averaged_gradients", {})
        gradients += [tensor for group in divided.values() for tensor in group or ()]
        masters = list(_masters(optimizer))
    moments = [x for state in inner.state.values() for x in state.values() if torch.is_tensor(x)]
    # A gradient is a view of a bucket: its own part is what counts.
    return {
        "parameters": bytes_per_device([p.data for p in weights]),
        "gradients": sum(g.numel() * g.element_size() for g in gradients),
        "optimizer": bytes_per_device([*masters, *moments]),
    }


@torch.no_grad()
def put_arrays(engine: Any, arrays: Mapping[str, NamedArrays], count: int) -> None:
    """Put whole arrays into a new DeepSpeed engine at any stage; the inverse of `full_arrays`.

    Args:
        engine: a DeepSpeed engine that has made no update.
        arrays: kind -> name -> array, as from `full_arrays`; the same on every process.
        count: updates that the optimizer has made.
    """
    inner = _inner(engine)
    # Without ZeRO, DeepSpeed's float16 and bfloat16 wrapper makes a step with zero gradients when it is built, and
    # Adam's bias correction is one update ahead from then on. It must be after a restart as well.
    count += max((int(state.get("step", 0)) for state in inner.state.values()), default=0)
    for name, parameter in engine.module.named_parameters():
        for kind, named in arrays.items():
            if name in named:
                value = torch.tensor(named[name], device=engine.device)
                _put(engine, parameter, kind, value, count)
    for group in inner.param_groups:
        group["step"] = count
    _link(engine)


def _inner(engine: Any) -> Any:
    """The optimizer under DeepSpeed's wrapper, whose state is keyed by what it updates."""
    return getattr(engine.optimizer, "optimizer", engine.optimizer)


def _is_stage3(parameters: Iterable[Tensor]) -> bool:
    return any(hasattr(p, "ds_id") for p in parameters)


def _masters(optimizer: Any) -> Sequence[Tensor]:
    """The flat float32 weights that a wrapper of DeepSpeed updates; none where it updates the module's own."""
    for name in ("single_partition_of_fp32_groups", "fp32_groups_flat_partition", "fp32_groups_flat"):
        if hasattr(optimizer, name):
            return getattr(optimizer, name)
    return [master for group in getattr(optimizer, "fp32_groups", ()) for master in group]


def _link(engine: Any) -> None:
    # The moments come into being with the first update; then ZeRO must be told where each parameter's are.
    link = getattr(engine.optimizer, "_lazy_init_hp_params_optimizer_state", None)
    if link is not None and all(len(_inner(engine).state.get(p, {})) for p in _masters(engine.optimizer)):
        link()


def _stretch(engine: Any, parameter: Any) -> tuple[Tensor, int] | None:
    """The float32 tensor that holds a whole parameter under a float16 or bfloat16 module without ZeRO, and where."""
    optimizer = engine.optimizer
    if hasattr(optimizer, "fp32_groups"):  # the wrapper of optimizers without a fused kernel: one tensor each
        for masters, group in zip(optimizer.fp32_groups, optimizer.fp16_groups, strict=True):
            for master, one in zip(masters, group, strict=True):
                if one is parameter:
                    return master, 0
    if not hasattr(optimizer, "fp32_groups_flat"):
        return None
    for flat, group in zip(optimizer.fp32_groups_flat, optimizer.fp16_groups, strict=True):
        start = 0
        for one in group:
            if one is parameter:
                return flat, start
            start += one.numel()
    return None


def _whole(engine: Any, parameter: Any, kind: str) -> Tensor | None:
    """The whole of one kind of array; None where there is none."""
    key = None if kind == MASTER else kind
    if not parameter.requires_grad:
        if key is not None:
            return None
        return _joined(engine, parameter) if hasattr(parameter, "ds_id") else parameter
    if hasattr(parameter, "ds_id"):
        return engine.optimizer.get_full_hp_param(parameter, key)
    if hasattr(parameter, "_hp_mapping"):
        return parameter.get_full_hp_param(key)
    state, found = _inner(engine).state, _stretch(engine, parameter)
    if found is None:
        return parameter if key is None else state[parameter].get(key)
    flat, start = found
    source = flat if key is None else state[flat].get(key)
    return None if source is None else source.view(-1).narrow(0, start, parameter.numel()).view_as(parameter)


def _joined(engine: Any, parameter: Any) -> Tensor:
    """A parameter that ZeRO 3 divides and does not train."""
    own = parameter.ds_tensor.data
    parts = [torch.empty_like(own) for _ in range(engine.dp_world_size)]
    dist.all_gather(parts, own)
    return torch.cat(parts)[: parameter.ds_numel].view(parameter.ds_shape)


def _put(engine: Any, parameter: Any, kind: str, value: Tensor, count: int) -> None:
    if kind == MASTER:
        _put_module(engine, parameter, value)
    if not parameter.requires_grad:
        return
    inner, flat = _inner(engine), value.flatten()
    if hasattr(parameter, "ds_id"):
        group, start, length = engine.optimizer.grad_position[engine.optimizer.get_param_id(parameter)]
        whole = engine.optimizer.fp32_partitioned_groups_flat[group]
        _of(inner, whole, kind, count).narrow(0, start, length).copy_(
            _own_part(engine, parameter, flat)[:length]
        )
    elif hasattr(parameter, "_hp_mapping"):
        mapping = parameter._hp_mapping
        if mapping is None:
            return  # all of it is another rank's
        whole = _masters(engine.optimizer)[mapping.param_group_index]
        here, there = mapping.hp_fragment_address, mapping.lp_fragment_address
        part = flat.narrow(0, there.start, there.numel)
        _of(inner, whole, kind, count).narrow(0, here.start, here.numel).copy_(part)
    elif (found := _stretch(engine, parameter)) is not None:
        _of(inner, found[0], kind, count).view(-1).narrow(0, found[1], flat.numel()).copy_(flat)
    elif kind != MASTER:
        _of(inner, parameter, kind, count).copy_(value)


def _put_module(engine: Any, parameter: Any, value: Tensor) -> None:
    """Set what the forward pass computes with."""
    if hasattr(parameter, "ds_id"):
        parameter.ds_tensor.data.copy_(_own_part(engine, parameter, value.flatten()))
    else:
        parameter.copy_(value)


def _own_part(engine: Any, parameter: Any, flat: Tensor) -> Tensor:
    """This rank's part of a parameter under ZeRO 3; the last part is filled up where the ranks cannot share evenly."""
    size = parameter.ds_tensor.numel()
    padded = torch.nn.functional.pad(flat, (0, size * engine.dp_world_size - flat.numel()))
    return padded.narrow(0, size * dist.get_rank(), size)


def _of(inner: Any, key: Tensor, kind: str, count: int) -> Tensor:
    """The float32 weights or one of the optimizer's tensors beside them, made when it is not there yet."""
    if kind == MASTER:
        return key.data
    state = inner.state[key]
    state["step"] = count
    return state.setdefault(kind, torch.zeros_like(key.data))
