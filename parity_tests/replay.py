"""A run on real recordings, replayed by the other backend from each of its checkpoints to the next.

Two trainings of the same model from the same start part in the end, however alike their arithmetic: each update
makes the difference of the one before a little larger, and rounding is a difference. How fast is a matter of the
training and not of the backends. What can be asked of a port is that from any state of a run its updates are the
same: so every update is compared, and every few updates the state is that of the run again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from parity_tests.result import Report, Row
from parity_tests.rungs_training import farthest_loss, logged_losses
from parity_tests.tolerances import bound
from parivox.backend import Backend, BackendName, Dtype, Precision, get_backend
from parivox.checkpoint import list_checkpoints, load_checkpoint
from parivox.data import open_stream
from parivox.errors import ConfigError
from parivox.run import CONFIG_FILE
from parivox.run_config import config_of
from parivox.run_start import start_arrays
from parivox.runlog import read_metrics
from parivox.stages import load_hparams


def replay(
    folder: Path,
    name: BackendName | None = None,
    device: str = "auto",
    precision: Precision = "highest",
    say: Callable[[str], None] = print,
) -> Report:
    """Take each checkpoint of a run to the next one; one row each, with the worst named loss between them.

    Nothing is written into the folder. The arithmetic is float64 where that of the run was.

    Args:
        folder: of a run, whose checkpoints and recordings are still there.
        name: what replays, on one device; None takes the backend that did not write the run.
        device: of the replay.
        precision: of the replay.
        say: called with a line for each row, and for each file that does not decode.

    Raises:
        ConfigError: fewer than two checkpoints, or no log of the updates between them.
        ParivoxError: recordings, checkpoints or the backend cannot be used.
    """
    paths = sorted(list_checkpoints(folder))
    if len(paths) < 2:
        raise ConfigError(
            f"{folder}: checkpoints found: {len(paths)}, and a replay goes from each to the next; train with"
            " --checkpoint-every 10 --keep 1000 for instance"
        )
    writer = load_checkpoint(paths[-1]).meta.writer
    dtype: Dtype = "float64" if writer.get("dtype") == "float64" else "float32"
    name = name or ("torch" if writer.get("backend") == "jax" else "jax")
    backend = get_backend(name, device=device, precision=precision, dtype=dtype)
    limit = bound("training", dtype if precision == "highest" else precision)
    report = Report(machine=backend.describe())
    for row in segments(folder, paths, backend, dtype, limit, say):
        say(f"{row.case}: {row.error:.1e} from {row.against}")
        report.rows.append(row)
    return report


def segments(
    folder: Path,
    paths: Sequence[Path],
    backend: Backend,
    dtype: Dtype,
    limit: float,
    say: Callable[[str], None],
) -> Iterator[Row]:
    """One row for each pair of neighbours among the checkpoints."""
    hp = load_hparams(folder / "hparams.yaml")
    logged = {line["step"]: line for line in read_metrics(folder, "train")}
    wanted = logged_losses(folder)
    given = folder / CONFIG_FILE
    config = config_of(hp, given if given.exists() else None, backend.data_parallel)
    end = load_checkpoint(paths[0])
    for path in paths[1:]:
        begin, end = end, load_checkpoint(path)
        steps = range(begin.meta.step + 1, end.meta.step + 1)
        missing = [step for step in steps if step not in logged]
        if missing:
            raise ConfigError(
                f"{folder}: its log has no update {missing[0]}; replay a run whose log is whole"
            )
        losses = []
        with open_stream(
            hp,
            seed=begin.meta.seed,
            start=begin.meta.data_position["records"],
            workers=0,
            batch_size=config.train_batch_size,
            message=say,
        ) as stream:
            state = backend.create_state(hp, start_arrays(begin), config)
            for _ in steps:
                state, result = backend.step(state, next(stream).arrays)
                losses.append({"loss": result.loss, **result.losses})
        errors = [farthest_loss(found, wanted[step]) for found, step in zip(losses, steps, strict=True)]
        yield Row(
            "training",
            f"updates {steps[0]} to {steps[-1]}, {backend.name}",
            " and ".join(dict.fromkeys(logged[step]["backend"] for step in steps)),
            float(np.max(errors)),  # NaN where one is
            limit,
            dtype,
            f"from the checkpoint of update {begin.meta.step}",
        )
