"""The training loop, written once for both backends.

folders -> grain pipeline -> batch -> `backend.step` -> metrics; checkpoints, evaluation, signals and resume.
"""

from __future__ import annotations

import json
import signal
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from parivox.backend import Backend, StepResult
from parivox.checkpoint import Checkpoint, list_checkpoints, save_checkpoint
from parivox.data import BatchStream, TrainBatch, open_stream, validation_batches
from parivox.data.index import index_files
from parivox.data.praat import require_praat
from parivox.data.stream import MAX_SEED
from parivox.errors import ConfigError, NonFiniteError
from parivox.evaluation import evaluate
from parivox.features import SAMPLE_RATE
from parivox.hparams import DenoiserHParams
from parivox.progress import TrainProgress
from parivox.run import Run, locked, meta_of, open_run
from parivox.run_config import config_of
from parivox.runlog import RunLog, read_metrics, write_summary
from parivox.weights import Initialization

SILENT_RATIO = 0.01
"""Output energy over target energy below which a model counts as silent: 20 dB under the target."""

SILENT_STEPS = 10
"""Updates in a row that must be silent before a warning."""

SKIPPED_STEPS = 20
"""Updates in a row that float16 must skip before a warning; a scale of 2^16 reaches 1 within 16."""


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


def train_denoiser(
    folder: Path, backend: Backend, hp: DenoiserHParams | None = None, options: TrainOptions | None = None
) -> dict[str, Any]:
    """Train until `max_steps`, going on from the newest checkpoint; returns and writes the run's summary.

    SIGINT and SIGTERM end it after the update at hand, with a checkpoint.

    Raises:
        ParivoxError: bad options, data or checkpoints; NonFiniteError when a loss or gradient is not finite.
    """
    options = options or TrainOptions()
    if not (folder / "hparams.yaml").exists() and not list_checkpoints(folder):
        config_of(hp or DenoiserHParams(), options.deepspeed_config)
        _check_data(hp or DenoiserHParams())
    with ExitStack() as stack:
        stack.enter_context(locked(folder))
        run = open_run(
            folder,
            hp,
            seed=options.seed,
            init=options.init,
            keep=options.keep,
            message=print,
            deepspeed=options.deepspeed_config,
        )
        last = min(options.stop_at or run.hp.max_steps, run.hp.max_steps)
        progress = stack.enter_context(TrainProgress(last, run.checkpoint.meta.step))
        return _Loop(run, backend, options, progress).go(stack)


def _check_data(hp: DenoiserHParams) -> None:
    # A mistyped folder must not leave a run behind whose hyperparameters then refuse the right one.
    require_praat(hp.praat_augment_prob)
    index_files(hp)


class _Loop:
    """One run of the loop over an opened run folder."""

    def __init__(self, run: Run, backend: Backend, options: TrainOptions, progress: TrainProgress):
        meta = run.checkpoint.meta
        self.run, self.backend, self.options, self.progress = run, backend, options, progress
        self.step, self.seed = meta.step, meta.seed
        self.last = min(options.stop_at or run.hp.max_steps, run.hp.max_steps)
        self.skipped: dict[str, str] = dict(meta.extra.get("skipped", {}))
        self.position: int = meta.data_position["records"]
        self.saved = meta.step
        self.silence = _SilenceWatch(progress.message)
        self.overflows = _OverflowWatch(progress.message)
        self.held_out: list[TrainBatch] = []
        self.evaluated: dict[str, Any] | None = None
        self.stopped_by: str | None = None

    def go(self, stack: ExitStack) -> dict[str, Any]:
        """Train to the end; returns the summary."""
        hp, say = self.run.hp, self.progress.message
        begun = "going on with" if self.step else "training"
        about = self.backend.describe()
        say(
            f"{begun} {self.run.folder} from step {self.step} to {self.last}, {about['backend']} on {about['device']}"
        )
        config = self.run.config
        rows = config.micro_batch_size
        self.held_out = validation_batches(hp, seed=self.seed, batch_size=rows, message=say)
        self.skipped |= dict(pair for batch in self.held_out for pair in batch.skipped)
        self.log = stack.enter_context(RunLog(self.run.folder, resume_step=self.step))
        self.state = self.backend.create_state(hp, self.run.checkpoint.arrays, config)
        stream = stack.enter_context(
            open_stream(
                hp,
                seed=self.seed,
                start=self.position,
                workers=self.options.workers,
                batch_size=config.train_batch_size // config.world_size,
                message=say,
            )
        )
        with _signals(self._ask_to_stop):
            while self.step < self.last and self.stopped_by is None:
                self._one(stream)
        self._finish()
        return self._summary()

    def _one(self, stream: BatchStream) -> None:
        begin = time.perf_counter()
        batch = next(stream)
        waited = time.perf_counter() - begin
        self.state, result = self.backend.step(self.state, batch.arrays)
        if not result.finite:
            self._stop_non_finite(batch, result)
        self.step += 1
        self.position = batch.position
        self.skipped |= stream.skipped
        self._record(batch, result, waited, time.perf_counter() - begin)
        at_end = self.step >= self.last
        if self.options.eval_every and self.step % self.options.eval_every == 0 and not at_end:
            self._evaluate()
        if (self.step % self.options.checkpoint_every == 0 or self._permanent) and not at_end:
            self._save()

    def _record(self, batch: TrainBatch, result: StepResult, waited: float, seconds: float) -> None:
        audio = batch.arrays["noisy"].size / SAMPLE_RATE
        scalars = {
            "loss": result.loss,
            "lr": result.learning_rate,
            "grad_norm": result.grad_norm,
            "energy_ratio": result.energy_ratio,
            "data_wait": waited / seconds,
            "audio_per_second": audio / seconds,
            "seconds": seconds,
        }
        if self.run.config.loss_scale is not None:
            scalars |= {"loss_scale": result.loss_scale, "overflow": float(result.skipped)}
            self.overflows.see(self.step, result)
        self.log.write(self.step, {**scalars, "backend": self.backend.name})
        self.progress.update(
            self.step,
            loss=result.loss,
            learning_rate=result.learning_rate,
            grad_norm=result.grad_norm,
            audio_seconds=audio,
            wait_seconds=waited,
        )
        if not result.skipped:
            self.silence.see(self.step, result.energy_ratio)

    def _evaluate(self) -> None:
        folder = self.run.folder / "eval" / f"step-{self.step:08d}"
        found = evaluate(self.backend, self.state, self.held_out, folder)
        self.evaluated = {"step": self.step, **found.scalars()}
        self.log.write(self.step, found.scalars(), event="valid")
        self.progress.message(
            f"step {self.step}: held-out loss {found.loss:.4f}, SI-SDR {found.si_sdr_noisy:.1f} ->"
            f" {found.si_sdr_denoised:.1f} dB ({found.si_sdr_gain:+.1f}); sound and pictures in {folder}"
        )

    @property
    def _permanent(self) -> bool:
        every = self.options.permanent_every
        return every > 0 and self.step > 0 and self.step % every == 0

    def _save(self) -> Path:
        arrays = self.backend.export_state(self.state)
        given = {} if self.run.given is None else {"deepspeed": self.run.given}
        meta = meta_of(
            self.run.hp,
            self.step,
            self.position,
            self.seed,
            writer=self.backend.describe(),
            permanent=self._permanent,
            extra={"skipped": self.skipped, **given},
            config=self.run.config,
            updates=arrays.step,
        )
        self.log.sync()
        path = save_checkpoint(self.run.folder, Checkpoint(arrays, meta), keep=self.options.keep)
        self.saved = self.step
        return path

    def _finish(self) -> None:
        if self.saved != self.step:
            self._save()
        if self.stopped_by:
            self.progress.message(
                f"stopped by {self.stopped_by} at step {self.step}; the same command goes on"
            )
        elif not self._evaluated_before():
            self._evaluate()

    def _evaluated_before(self) -> bool:
        """Whether an earlier process has logged an evaluation of this step; its numbers then stand."""
        found = [line for line in read_metrics(self.run.folder, "valid") if line["step"] == self.step]
        if found:
            self.evaluated = {name: value for name, value in found[-1].items() if name != "event"}
        return bool(found)

    def _summary(self) -> dict[str, Any]:
        summary = {
            "step": self.step,
            "finished": self.step >= self.run.hp.max_steps,
            "stopped_by": self.stopped_by,
            "backend": self.backend.describe(),
            "evaluation": self.evaluated,
            "skipped_files": self.skipped,
        }
        write_summary(self.run.folder, summary)
        if self.skipped:
            listing = "; ".join(f"{path} ({reason})" for path, reason in self.skipped.items())
            self.progress.message(f"{len(self.skipped)} files did not decode and were skipped: {listing}")
        return summary

    def _stop_non_finite(self, batch: TrainBatch, result: StepResult) -> None:
        folder = self.run.folder / "nonfinite"
        folder.mkdir(exist_ok=True)
        path = folder / f"step-{self.step:08d}.npz"
        np.savez(path, **batch.arrays)  # type: ignore[arg-type]
        told = {"loss": repr(result.loss), "grad_norm": repr(result.grad_norm), "records": batch.records}
        path.with_suffix(".json").write_text(json.dumps(told, indent=2), encoding="utf-8")
        saved = self._save() if self.saved != self.step else f"checkpoint of step {self.step}"
        raise NonFiniteError(
            f"update {self.step} was not made: loss {result.loss}, gradient norm {result.grad_norm}. The batch is in"
            f" {path} (from {', '.join(batch.records)}), the weights before it in {saved}; look at those files, or"
            " lower max_lr"
        )

    def _ask_to_stop(self, name: str) -> None:
        self.stopped_by = name


class _SilenceWatch:
    """Warns when the output has been silent for a while, and again only after it has sounded."""

    def __init__(self, message: Callable[[str], None]):
        self._recent: deque[float] = deque(maxlen=SILENT_STEPS)
        self._message = message
        self._warned = False

    def see(self, step: int, ratio: float) -> None:
        self._recent.append(ratio)
        silent = len(self._recent) == SILENT_STEPS and max(self._recent) < SILENT_RATIO
        if silent and not self._warned:
            self._message(
                f"warning: at step {step} the output has fallen silent (energy {ratio:.1e} of the target's for"
                f" {SILENT_STEPS} updates); the L1 loss rewards silence at high rates: lower max_lr and start again"
            )
        self._warned = silent


class _OverflowWatch:
    """Warns when float16 has skipped many updates in a row: no loss scale then mends it."""

    def __init__(self, message: Callable[[str], None]):
        self._message, self._count = message, 0

    def see(self, step: int, result: StepResult) -> None:
        self._count = self._count + 1 if result.skipped else 0
        if self._count and self._count % SKIPPED_STEPS == 0:
            self._message(
                f"warning: at step {step} the last {self._count} updates were skipped, since gradients overflow float16"
                f" (loss {result.loss:g}, loss scale {result.loss_scale:g}); lower max_lr, or train with bf16"
            )


@contextmanager
def _signals(ask: Callable[[str], None]) -> Iterator[None]:
    """Turn SIGINT and SIGTERM into a wish to stop after the update at hand; a second one ends at once."""
    kinds = (signal.SIGINT, signal.SIGTERM)
    before = {kind: signal.getsignal(kind) for kind in kinds}

    def handler(number: int, frame: object) -> None:
        ask(signal.Signals(number).name)
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)

    try:
        for kind in kinds:
            signal.signal(kind, handler)
        yield
    finally:
        for kind, old in before.items():
            signal.signal(kind, old)
