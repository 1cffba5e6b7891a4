"""Which process of a run this is: read from a launcher's environment, or from flags.

Nothing here opens a connection: `jax_impl.sharding.initialize` and `torch_impl.sharding.initialize` do that.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from parivox.errors import ConfigError

LAUNCHER = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
"""What torchrun and the deepspeed launcher set for each process."""

RENDEZVOUS = ("MASTER_ADDR", "MASTER_PORT")
"""Where the processes of a launcher meet; set as well."""


@dataclass(frozen=True)
class World:
    """The place of this process among those of its run.

    Attributes:
        rank: number of this process; 0 alone writes files and prints progress.
        size: processes in all.
        local_rank: number of this process on its machine. PyTorch takes the GPU of this number; JAX has no use for it.
        coordinator: "host:port" where the processes meet; None in a run of one process.
        detect: JAX finds rank, size and coordinator itself, from the environment of a cluster; the numbers here
            then mean nothing before `jax_impl.sharding.initialize` has returned the true ones.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    coordinator: str | None = None
    detect: bool = False

    @property
    def is_main(self) -> bool:
        """Whether this process writes the run's files."""
        return self.rank == 0


def launched_world(
    backend: Literal["jax", "torch"],
    *,
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    distributed: bool = False,
    environment: Mapping[str, str] | None = None,
) -> World:
    """Which process this is.

    PyTorch is told by its launcher, through the environment. JAX is told by three flags, or with `distributed` by
    the cluster: SLURM, Open MPI, Kubernetes and Cloud TPU are found by `jax.distributed.initialize` itself.

    Args:
        backend: `torch` or `jax`.
        coordinator: JAX: "host:port" of process 0; any free port.
        num_processes: JAX: processes in all.
        process_id: JAX: number of this process, from 0.
        distributed: JAX: let the cluster tell.
        environment: environment variables; None takes those of this process.

    Raises:
        ConfigError: settings are half given, contradict each other, or belong to the other backend.
    """
    variables = os.environ if environment is None else environment
    flags = {"--coordinator": coordinator, "--num-processes": num_processes, "--process-id": process_id}
    given = [name for name, value in flags.items() if value is not None]
    if distributed:
        given.append("--distributed")
    if backend == "torch":
        if given:
            raise ConfigError(
                f"{', '.join(given)}: belong to JAX; PyTorch is started by torchrun or the deepspeed launcher"
            )
        return _from_launcher(variables)
    _refuse_launcher(variables)
    if distributed:
        if len(given) > 1:
            raise ConfigError(
                f"--distributed finds out what {', '.join(given[:-1])} would say; leave one side out"
            )
        return World(detect=True)
    if not given:
        return World()
    missing = [name for name in flags if name not in given]
    if missing:
        raise ConfigError(
            f"{', '.join(given)} given without {', '.join(missing)}; give all three to each process, or --distributed"
        )
    return _checked_world(
        _number(process_id, "--process-id"),
        _number(num_processes, "--num-processes"),
        0,
        _address(coordinator or "", "--coordinator"),
        ("--process-id", "--num-processes"),
    )


def _from_launcher(variables: Mapping[str, str]) -> World:
    """The world that torchrun or the deepspeed launcher has described."""
    given = [name for name in LAUNCHER if name in variables]
    if not given:
        return World()
    several = variables.get("WORLD_SIZE") != "1"
    missing = [name for name in (*LAUNCHER, *(RENDEZVOUS if several else ())) if name not in variables]
    if missing:
        raise ConfigError(
            f"the environment has {', '.join(given)} but not {', '.join(missing)}; start every process with torchrun"
            " or the deepspeed launcher, or unset all of them to train in one process"
        )
    rank, size, local_rank = (_number(variables[name], name) for name in LAUNCHER)
    where = None
    if several:
        where = _address(":".join(variables[name] for name in RENDEZVOUS), ":".join(RENDEZVOUS))
    return _checked_world(rank, size, local_rank, where, ("RANK", "WORLD_SIZE"))


def _refuse_launcher(variables: Mapping[str, str]) -> None:
    # Two processes that each take themselves for the only one would train the same thing twice.
    if variables.get("WORLD_SIZE", "1") != "1":
        raise ConfigError(
            f"WORLD_SIZE is {variables['WORLD_SIZE']}, as PyTorch's launchers set it; start the processes of JAX with"
            " --coordinator, --num-processes and --process-id, or unset WORLD_SIZE"
        )


def _checked_world(
    rank: int, size: int, local_rank: int, coordinator: str | None, names: tuple[str, str]
) -> World:
    if size < 1:
        raise ConfigError(f"{names[1]} is {size}; it must be 1 or more")
    if not 0 <= rank < size:
        raise ConfigError(f"{names[0]} is {rank}; with {names[1]} {size} it must be 0 to {size - 1}")
    if not 0 <= local_rank <= rank:
        raise ConfigError(f"LOCAL_RANK is {local_rank}; with {names[0]} {rank} it must be 0 to {rank}")
    return World(rank, size, local_rank, coordinator)


def _number(text: object, name: str) -> int:
    try:
        return int(str(text))
    except ValueError:
        raise ConfigError(f"{name} is '{text}'; it must be a whole number") from None


def _address(text: str, name: str) -> str:
    host, _, port = text.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise ConfigError(f"{name} is '{text}'; give host:port, such as 10.0.0.1:12345")
    return text
