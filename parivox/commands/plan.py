"""`parivox plan`: what the compiler makes of a command on devices that are not here."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from parivox.commands.options import (
    BackendOption,
    CountOption,
    FileOption,
    PrecisionOption,
    SolverOption,
)
from parivox.commands.train import stage_preset
from parivox.errors import ConfigError
from parivox.hparams import HParams
from parivox.presets import default_hparams, preset
from parivox.stages import Stage, hparams_class, stage_of

if TYPE_CHECKING:
    from parivox.plan import Request

Program = Literal["train denoiser", "train enhancer-stage1", "train enhancer-stage2", "denoise", "enhance"]

ROWS = {"cpu": 1, "tpu": 4}
"""Chunks that `parivox enhance` computes at once where it is not told."""


@dataclass(frozen=True)
class PlanCommand:
    """Compile a command for TPUs that are not here: memory, work, exchange between chips, estimated time.

    The compiler is the real one, so it takes minutes and gigabytes; no weights are made and nothing is run.

    Attributes:
        program: What would run: train denoiser, train enhancer-stage1, train enhancer-stage2, denoise or enhance.
        topology: Where: v4, v5e, v5p or v6e with a slice, such as v5e:4x4, or cpu:N for N simulated CPU devices.
        batch: Training: records of an update, on all chips together; by default the preset's for each chip. Otherwise
            chunks computed at once, by default 1 on a CPU, else 4.
        zero_stage: Training: what is divided over the chips, 0 to 3; by default that of --deepspeed-config, or 0.
        precision: Arithmetic of convolutions and matrix products; highest is true float32.
        preset: Named hyperparameters; by default the published ones.
        config: YAML file of hyperparameters.
        deepspeed_config: Training: DeepSpeed config (JSON).
        chunk_seconds: Cleaning: how much the model hears at once.
        overlap_seconds: Cleaning: how much of that neighbouring chunks share.
        nfe: Enhancing: evaluations of the flow, 1 to 128.
        solver: Enhancing: solver of the flow.
        backend: JAX; PyTorch cannot plan.
        tries: Changes that are tried, each a compilation, where the program does not fit.
        json: Write the figures here too.
    """

    program: Annotated[tyro.conf.Positional[Program], tyro.conf.arg(metavar="PROGRAM")]
    topology: Annotated[str, tyro.conf.arg(metavar="KIND:SLICE", help_behavior_hint="(required)")]
    batch: CountOption = None
    zero_stage: CountOption = None
    precision: PrecisionOption = "highest"
    preset: Annotated[str | None, tyro.conf.arg(metavar="NAME", help_behavior_hint="")] = None
    config: FileOption = None
    deepspeed_config: FileOption = None
    chunk_seconds: float = 30.0
    overlap_seconds: float = 1.0
    nfe: CountOption = None
    solver: SolverOption = None
    backend: BackendOption = None
    tries: int = 3
    json: FileOption = None

    def run(self) -> int:
        """Plan; returns the exit status, 1 when it does not fit and no change made it fit."""
        from parivox.atomic import write_text
        from parivox.backend import default_backend
        from parivox.plan import check_planner, make_plan, remedies
        from parivox.plan_text import describe, describe_attempts

        request = self.request()
        check_planner(request.topology, self.backend or default_backend())
        _tell(f"compiling {self.program} for {request.topology.name}; this can take many minutes")
        plan = make_plan(request)
        print(describe(request, plan), flush=True)
        tried = remedies(request, plan, self.tries, _tell)
        if not plan.fits:
            print(describe_attempts(request, tried), flush=True)
        if self.json is not None:
            attempts = [{"change": one.change, **one.plan.to_dict()} for one in tried]
            found = {**_asked(request), **plan.to_dict(), "tried": attempts}
            try:
                write_text(self.json, json.dumps(found, indent=2) + "\n")
            except OSError as error:
                raise ConfigError(f"{self.json}: cannot be written ({error.strerror})") from error
        return 0 if plan.fits or (tried and tried[-1].plan.fits) else 1

    def request(self) -> Request:
        """What to compile.

        Raises:
            ConfigError: an option makes no sense, or belongs to another program.
        """
        from parivox.plan import Request, check_trainable, chunk_samples, with_stage
        from parivox.sampling import Sampling
        from parivox.topologies import parse_topology

        topology = parse_topology(self.topology)
        training = self.program.startswith("train ")
        stage: Any = {"denoise": "denoiser", "enhance": "enhancer-stage2"}.get(
            self.program, self.program.removeprefix("train ")
        )
        hp = self._hparams(stage)
        self._refuse_strangers(training)
        if self.batch is not None and self.batch < 1:
            raise ConfigError(f"--batch is {self.batch}; use 1 or more")
        if training:
            request = Request("train", hp, topology, self.precision, self._deepspeed(hp))
            if self.zero_stage is not None:
                request = with_stage(request, self.zero_stage)
            check_trainable(request)
            return request
        asked = Sampling(nfe=self.nfe, solver=self.solver)
        return Request(
            "denoise" if self.program == "denoise" else "enhance",
            hp,
            topology,
            self.precision,
            rows=self.batch or ROWS["cpu" if topology.chip is None else "tpu"],
            samples=chunk_samples(self.chunk_seconds, self.overlap_seconds),
            nfe=asked.nfe or getattr(hp, "cfm_solver_nfe", 0),
            solver=asked.solver or getattr(hp, "cfm_solver_method", "midpoint"),
        )

    def _hparams(self, stage: Stage) -> HParams:
        if self.config is not None and self.preset is not None:
            raise ConfigError("--config and --preset are both given; leave one of them out")
        if self.config is not None:
            hp = hparams_class(stage).load(self.config)
            if stage_of(hp) != stage:
                raise ConfigError(f"{self.config}: is of {stage_of(hp)}, not of {stage}")
            return hp
        if self.preset is not None:
            return stage_preset(self.preset, stage)
        return preset("denoiser") if self.program == "denoise" else default_hparams(stage)

    def _refuse_strangers(self, training: bool) -> None:
        """Refuse options of another program."""
        own: dict[str, bool] = {
            "zero_stage": training,
            "deepspeed_config": training,
            "nfe": self.program == "enhance",
            "solver": self.program == "enhance",
        }
        for name, fits in own.items():
            if not fits and getattr(self, name) is not None:
                raise ConfigError(f"--{name.replace('_', '-')} is not of {self.program}; leave it out")

    def _deepspeed(self, hp: HParams) -> dict[str, Any]:
        from parivox.run_config import read_config

        given = hp.deepspeed_config if self.deepspeed_config is None else read_config(self.deepspeed_config)
        if not isinstance(given, dict):
            raise ConfigError(f"{self.deepspeed_config}: is no JSON object; give a DeepSpeed config")
        if self.batch is not None:
            given = {k: v for k, v in given.items() if k != "train_micro_batch_size_per_gpu"}
            given |= {"train_batch_size": self.batch}
            given.setdefault("gradient_accumulation_steps", 1)
        return given


def _asked(request: Request) -> dict[str, Any]:
    plain = json.loads(request.to_json())
    del plain["hp"]
    return plain


def _tell(line: str) -> None:
    print(f"parivox: {line}", file=sys.stderr, flush=True)
