"""The beginning of a training: its options, and the run folder, opened by one process for all."""

from __future__ import annotations

import os
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from parivox.backend import Backend
from parivox.checkpoint import list_checkpoints
from parivox.data.draws import item_samples
from parivox.data.index import index_files
from parivox.data.praat import require_praat
from parivox.data.stream import MAX_SEED
from parivox.errors import ConfigError
from parivox.hparams import EnhancerHParams, HParams
from parivox.parallel import World
from parivox.presets import default_hparams
from parivox.run import Run, locked, open_run
from parivox.run_config import config_of
from parivox.stages import Stage
from parivox.weights import Initialization


@dataclass(frozen=True)
class TrainOptions:
    """How to train, apart from the hyperparameters; but for the DeepSpeed config nothing here changes an update.

    Attributes:
        stop_at: updates after which to stop although the schedule goes on; None goes to `max_steps`.
        seed: of initial weights and data; None takes the run's own, or 0.
        init: initial weights of a new run.
        workers: processes that make the data; None takes the hyperparameter `nj`, capped at the CPUs.
        checkpoint_every: updates between checkpoints.
        keep: ordinary checkpoints to keep.
        permanent_every: updates between checkpoints that are kept for good; 0 keeps none.
        eval_every: updates between evaluations; 0 evaluates at the end alone.
        deepspeed_config: DeepSpeed config of a new run; None takes the run's own, or that of the hyperparameters.

    Raises:
        ConfigError: a number is out of range.
    """

    stop_at: int | None = None
    seed: int | None = None
    init: Initialization = "identity"
    workers: int | None = None
    checkpoint_every: int = 500
    keep: int = 3
    permanent_every: int = 0
    eval_every: int = 500
    deepspeed_config: Path | None = None

    def __post_init__(self) -> None:
        """Refuse numbers that make no sense, before a run folder is touched."""
        lowest = {"stop_at": 1, "checkpoint_every": 1, "keep": 1}
        lowest |= dict.fromkeys(("seed", "workers", "permanent_every", "eval_every"), 0)
        for name, low in lowest.items():
            value = getattr(self, name)
            if value is not None and value < low:
                raise ConfigError(f"{name} is {value}; it must be {low} or more")
        if self.seed is not None and self.seed > MAX_SEED:
            raise ConfigError(f"seed is {self.seed}; use 0 to {MAX_SEED}")


def open_for_training(
    stack: ExitStack,
    folder: Path,
    backend: Backend,
    hp: HParams | None,
    options: TrainOptions,
    stage: Stage = "denoiser",
) -> Run:
    """The run folder, opened by rank 0 for writing, and then by the others for reading; every rank must call this.

    Raises:
        ParivoxError: as `parivox.run.open_run`; ConfigError too where a rank sees another folder than rank 0.
    """
    world, begun = backend.world, ""
    if world.is_main:
        if not (folder / "hparams.yaml").exists() and not list_checkpoints(folder):
            wanted = hp or default_hparams(stage)
            config_of(wanted, options.deepspeed_config, backend.data_parallel)
            _check_data(wanted)
        stack.enter_context(locked(folder))
    else:
        begun = backend.share("")
        if not (folder / "hparams.yaml").exists():
            raise _elsewhere(folder, world)
    run = open_run(
        folder,
        hp,
        seed=options.seed,
        init=options.init,
        keep=options.keep,
        message=print if world.is_main else _say_nothing,
        deepspeed=options.deepspeed_config,
        world_size=backend.data_parallel,
        stage=stage,
    )
    own = f"step {run.checkpoint.meta.step} of seed {run.checkpoint.meta.seed}"
    if world.is_main:
        backend.share(own)
    elif own != begun:
        raise _elsewhere(folder, world)
    return run


def _elsewhere(folder: Path, world: World) -> ConfigError:
    return ConfigError(
        f"{folder}: rank {world.rank} does not see the run that rank 0 has opened; the run folder must be on a file"
        " system that all machines see, under the same path"
    )


def console_of(stack: ExitStack, world: World) -> Console | None:
    """Where progress goes; nowhere on other ranks than 0."""
    if world.is_main:
        return None
    return Console(file=stack.enter_context(open(os.devnull, "w", encoding="utf-8")))


def _say_nothing(text: str) -> None:
    """What other ranks than 0 do with a line for the user."""


def _check_data(hp: HParams) -> None:
    # A mistyped folder or length must not leave a run behind whose hyperparameters then refuse the right one.
    require_praat(hp.praat_augment_prob)
    if isinstance(hp, EnhancerHParams):
        item_samples(hp)
    index_files(hp)
