"""The training loop, written once for both backends.

folders -> grain pipeline -> batch -> `backend.step` -> metrics; checkpoints, evaluation, signals and resume.

Where a run has several processes each goes through all of this with its own rows, and takes part in what divided
weights need: updates, evaluations, exports. Rank 0 alone writes into the run folder and prints.
"""

from __future__ import annotations

import json
import signal
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from parivox.backend import Backend, StepResult
from parivox.checkpoint import Checkpoint, save_checkpoint
from parivox.data import BatchStream, TrainBatch, open_stream, validation_batches
from parivox.data.index import index_files
from parivox.errors import NonFiniteError
from parivox.evaluation import evaluate
from parivox.features import SAMPLE_RATE
from parivox.hparams import HParams
from parivox.latent import latent_advice
from parivox.progress import TrainProgress
from parivox.run import Run, meta_of
from parivox.run_start import start_arrays
from parivox.runlog import RunLog, read_metrics, write_summary
from parivox.stages import Stage
from parivox.train_start import TrainOptions, console_of, open_for_training
from parivox.train_watch import REPEAT_SECONDS, OverflowWatch, SilenceWatch, signals
from parivox.watchdog import Watchdog


def train(
    folder: Path,
    backend: Backend,
    hp: HParams | None = None,
    options: TrainOptions | None = None,
    stage: Stage = "denoiser",
) -> dict[str, Any]:
    """Train until `max_steps`, going on from the newest checkpoint; returns and writes the run's summary.

    SIGINT and SIGTERM end it after the update at hand, with a checkpoint.

    Raises:
        ParivoxError: bad options, data or checkpoints; NonFiniteError when a loss or gradient is not finite.
    """
    options = options or TrainOptions()
    with ExitStack() as stack:
        stack.enter_context(Watchdog(backend.world, backend.share))
        backend.agree(0)  # all watch each other before the first one can fail
        run = open_for_training(stack, folder, backend, hp, options, stage)
        last = min(options.stop_at or run.hp.max_steps, run.hp.max_steps)
        progress = TrainProgress(last, run.checkpoint.meta.step, console=console_of(stack, backend.world))
        return _Loop(run, backend, options, stack.enter_context(progress)).go(stack)


class _Loop:
    """One run of the loop over an opened run folder."""

    def __init__(self, run: Run, backend: Backend, options: TrainOptions, progress: TrainProgress):
        meta = run.checkpoint.meta
        self.world = backend.world
        self.run, self.backend, self.options, self.progress = run, backend, options, progress
        self.step, self.seed = meta.step, meta.seed
        self.last = min(options.stop_at or run.hp.max_steps, run.hp.max_steps)
        self.skipped: dict[str, str] = dict(meta.extra.get("skipped", {}))
        self.position: int = meta.data_position["records"]
        self.saved = meta.step
        self.silence = SilenceWatch(progress.message)
        self.overflows = OverflowWatch(progress.message)
        self.held_out: list[TrainBatch] = []
        self.evaluated: dict[str, Any] | None = None
        self.wish = 0
        self.stopped_by: str | None = None
        self.log: RunLog | None = None

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
        if config.world_size > 1:
            say(
                f"{config.world_size} devices: batch of {config.train_batch_size} = {rows} in a pass x"
                f" {config.accumulation_steps} passes x {config.world_size} devices; ZeRO stage {config.zero_stage}"
            )
        files = index_files(hp)
        self.held_out = validation_batches(hp, seed=self.seed, batch_size=rows, files=files, message=say)
        self.skipped |= dict(pair for batch in self.held_out for pair in batch.skipped)
        if self.world.is_main:
            self.log = stack.enter_context(RunLog(self.run.folder, resume_step=self.step))
        self.state = self.backend.create_state(hp, start_arrays(self.run.checkpoint), config)
        stream = stack.enter_context(
            open_stream(
                hp,
                seed=self.seed,
                files=files,
                start=self.position,
                workers=self.options.workers,
                batch_size=config.train_batch_size // self.world.size,
                rank=self.world.rank,
                ranks=self.world.size,
                message=say,
            )
        )
        with signals(self._ask_to_stop, REPEAT_SECONDS if self.world.size > 1 else 0.0):
            while not self._stopped() and self.step < self.last:
                self._one(stream)
        self._finish()
        summary = self._summary()
        self.backend.share("written")  # no process leaves while another still writes
        return summary

    def _stopped(self) -> bool:
        """Whether any rank was asked to stop; all ranks stop after the same update."""
        wish = self.backend.agree(self.wish)
        if wish:
            self.stopped_by = signal.Signals(wish).name
        return wish != 0

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
        audio = batch.arrays["target"].size / SAMPLE_RATE * self.world.size
        scalars = {
            "loss": result.loss,
            "lr": result.learning_rate,
            "grad_norm": result.grad_norm,
            "energy_ratio": result.energy_ratio,
            "data_wait": waited / seconds,
            "audio_per_second": audio / seconds,
            "seconds": seconds,
        }
        if len(result.losses) > 1:
            scalars |= {**result.losses, **result.watched}
        if self.run.config.loss_scale is not None:
            scalars |= {"loss_scale": result.loss_scale, "overflow": float(result.skipped)}
            self.overflows.see(self.step, result)
        if self.log is not None:
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
        found = evaluate(self.backend, self.state, self.held_out, folder if self.world.is_main else None)
        self.evaluated = {"step": self.step, **found.scalars()}
        if self.log is not None:
            self.log.write(self.step, found.scalars(), event="valid")
        self.progress.message(f"step {self.step}: {found.text()}; sound and pictures in {folder}")

    @property
    def _permanent(self) -> bool:
        every = self.options.permanent_every
        return every > 0 and self.step > 0 and self.step % every == 0

    def _save(self) -> str:
        """Write a checkpoint; returns what to call it."""
        arrays = self.backend.export_state(self.state)
        self._gather_skipped()
        self.saved = self.step
        if self.log is None:
            return f"the checkpoint of step {self.step}"
        given = {} if self.run.given is None else {"deepspeed": self.run.given}
        kept = self.run.checkpoint.meta.extra
        origin = {"origin": kept["origin"]} if "origin" in kept else {}
        meta = meta_of(
            self.run.hp,
            self.step,
            self.position,
            self.seed,
            writer=self.backend.describe(),
            permanent=self._permanent,
            extra={"skipped": self.skipped, **origin, **given},
            config=self.run.config,
            updates=arrays.step,
        )
        self.log.sync()
        checkpoint = Checkpoint(arrays, meta, self.run.checkpoint.buffers)
        return str(save_checkpoint(self.run.folder, checkpoint, keep=self.options.keep))

    def _gather_skipped(self) -> None:
        """Make known to all ranks which files did not decode on any."""
        if self.world.size > 1:
            for text in self.backend.gather(json.dumps(self.skipped)):
                self.skipped |= json.loads(text)

    def _finish(self) -> None:
        if self.saved != self.step:
            self._save()
        if self.stopped_by:
            self.progress.message(
                f"stopped by {self.stopped_by} at step {self.step}; the same command goes on"
            )
        elif not self._evaluated_before():
            self._evaluate()
        if self.run.checkpoint.meta.model == "enhancer-stage1" and not self.stopped_by:
            self.progress.message(latent_advice(self.backend.export_state(self.state).weights))

    def _evaluated_before(self) -> bool:
        """Whether an earlier process has logged an evaluation of this step; its numbers then stand."""
        if self.log is None:
            return self.backend.agree(0) > 0
        found = [line for line in read_metrics(self.run.folder, "valid") if line["step"] == self.step]
        if found:
            self.evaluated = {name: value for name, value in found[-1].items() if name != "event"}
        return self.backend.agree(len(found)) > 0

    def _summary(self) -> dict[str, Any]:
        self._gather_skipped()
        summary = {
            "step": self.step,
            "finished": self.step >= self.run.hp.max_steps,
            "stopped_by": self.stopped_by,
            "backend": self.backend.describe(),
            "evaluation": self.evaluated,
            "skipped_files": self.skipped,
        }
        if self.world.is_main:
            write_summary(self.run.folder, summary)
        if self.skipped:
            listing = "; ".join(f"{path} ({reason})" for path, reason in self.skipped.items())
            self.progress.message(f"{len(self.skipped)} files did not decode and were skipped: {listing}")
        return summary

    def _stop_non_finite(self, batch: TrainBatch, result: StepResult) -> None:
        mine = [*self._write_non_finite(batch, result)] if result.suspect else []
        saved = self._save() if self.saved != self.step else f"checkpoint of step {self.step}"
        # All have written before the first one ends and the others with it.
        parts = [json.loads(text) for text in self.backend.gather(json.dumps(mine))]
        written = " and ".join(f"{path} (from {records})" for path, records in filter(None, parts))
        raise NonFiniteError(
            f"update {self.step} was not made: loss {result.loss}, gradient norm {result.grad_norm}. The batch is in"
            f" {written}, the weights before it in {saved}; look at those files, or lower max_lr"
        )

    def _write_non_finite(self, batch: TrainBatch, result: StepResult) -> tuple[str, str]:
        """Keep a batch of this rank; returns the file and what it was made of."""
        folder = self.run.folder / "nonfinite"
        folder.mkdir(exist_ok=True)
        rank = f"-rank{self.world.rank}" if self.world.size > 1 else ""
        path = folder / f"step-{self.step:08d}{rank}.npz"
        np.savez(path, **batch.arrays)  # type: ignore[arg-type]
        told = {"loss": repr(result.loss), "grad_norm": repr(result.grad_norm), "records": batch.records}
        path.with_suffix(".json").write_text(json.dumps(told, indent=2), encoding="utf-8")
        return str(path), ", ".join(batch.records)

    def _ask_to_stop(self, number: int) -> None:
        self.wish = number
