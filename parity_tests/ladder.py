"""The ladder: every rung on this machine, as one report."""

from __future__ import annotations

import json
import platform
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from parity_tests import seeded
from parity_tests.result import Figure, Report, Row, Skipped
from parity_tests.sides import Judgement, Pass, Side, open_side
from parity_tests.tolerances import bound
from parivox.backend import BACKENDS, BackendName, Precision, installed
from parivox.errors import BackendError, ConfigError

BUNDLED_REFERENCE = Path(__file__).parent / "reference"
"""The small recorded set that comes with the project."""

SHORT = 10
"""Updates of the rungs that `LadderOptions.long` is about, without it."""

Finding = Row | Skipped | Figure

if TYPE_CHECKING:
    from parity_tests.rungs_training import Course


@dataclass(frozen=True)
class LadderOptions:
    """What to climb.

    Attributes:
        backends: backends to compare; None takes the installed ones.
        device: device of the float32 rungs; the float64 ones run on the CPU.
        precision: arithmetic of the float32 rungs.
        reference: folder of recorded outputs, `float32/` and `float64/` in it; None takes the bundled set.
        seed: the one that the recorded outputs were made with.
        faults: whether to plant faults as well.
        deepspeed: whether to compare all that a DeepSpeed config may ask for: every scheduler and optimizer,
            accumulation, half precision, several devices.
        enhancer: whether to compare the enhancer and its discriminator.
        float64_training: whether the trainings and checkpoint exchanges are made in float64 as well.
        long: whether bfloat16 and devices are followed for all their updates, or for ten, half precision through all
            its cases, or three, accumulation at all, and the enhancer through float32, its training stages and
            all of its planted faults.
        jobs: processes that share the work; None takes one for each CPU where all is computed on CPUs, else 1.
    """

    backends: tuple[BackendName, ...] | None = None
    device: str = "auto"
    precision: Precision = "highest"
    reference: Path | None = None
    seed: int = 20
    faults: bool = True
    deepspeed: bool = True
    enhancer: bool = True
    float64_training: bool = True
    long: bool = True
    jobs: int | None = 1


@dataclass
class Reference:
    """Recorded outputs and the seed that rebuilds their inputs."""

    folder: Path
    seed: int
    _cache: dict[str, Any] = field(default_factory=dict)

    def arrays(self, dtype: str, name: str) -> dict[str, np.ndarray] | None:
        """The arrays of one recorded file, or None where it is absent."""
        path = self.folder / dtype / f"{name}.npz"
        if not path.exists():
            return None
        with np.load(path, allow_pickle=False) as file:
            return dict(file)

    def norms(self, dtype: str, name: str) -> dict[str, float] | None:
        """Recorded gradient norms, or None where they are absent."""
        path = self.folder / dtype / f"{name}.grads.json"
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None

    def weights(self, name: str) -> dict[str, np.ndarray] | None:
        """Seeded weights of a manifest, or None where it is absent."""
        path = self.folder / f"{name}.manifest.json"
        if not path.exists():
            return None
        if name not in self._cache:
            self._cache[name] = seeded.weights(json.loads(path.read_text(encoding="utf-8")), self.seed)
        return dict(self._cache[name])

    def signal(self, offset: int, batch: int, length: int) -> np.ndarray:
        """The seeded signal with this offset to the seed."""
        key = f"{offset}:{batch}:{length}"
        if key not in self._cache:
            self._cache[key] = seeded.signal(self.seed + offset, batch, length)
        return self._cache[key]


class Ladder:
    """What the rungs share: opened backends, recorded outputs, options."""

    def __init__(self, options: LadderOptions):
        self.options = options
        wanted = options.backends or tuple(name for name in BACKENDS if installed(name))
        if not wanted:
            raise BackendError("no backend is installed; run: pip install 'parivox[jax]' or 'parivox[torch]'")
        if options.reference is not None and not options.reference.is_dir():
            raise ConfigError(
                f"--reference {options.reference}: no such folder; give one that holds float32/ and float64/"
            )
        self.backends: tuple[BackendName, ...] = wanted
        self.reference = Reference(options.reference or BUNDLED_REFERENCE, options.seed)
        self._sides: dict[tuple[str, str], Side] = {}
        self.passes: dict[tuple[str, str, str], Pass] = {}
        self.judgements: dict[tuple[str, str], Judgement] = {}
        self.courses: dict[tuple[str, str], Course] = {}

    def side(self, name: BackendName, dtype: str) -> Side:
        """A backend in one dtype, opened once."""
        key = (name, dtype)
        if key not in self._sides:
            if dtype == "float64":
                self._sides[key] = open_side(name, "float64", "cpu")
            else:
                self._sides[key] = open_side(name, "float32", self.options.device, self.options.precision)
        return self._sides[key]

    def sides(self, dtype: str) -> list[Side]:
        """All backends in one dtype."""
        return [self.side(name, dtype) for name in self.backends]

    def label(self, dtype: str) -> str:
        """The arithmetic that a row names: `float64`, `float32`, or the lower precision asked for."""
        return self.options.precision if dtype == "float32" and self.options.precision != "highest" else dtype

    def updates(self, all_of_them: int) -> int:
        """How many updates of a rung are made: all, or ten where little time is to be spent."""
        return all_of_them if self.options.long else min(SHORT, all_of_them)

    def bound(self, rung: str, dtype: str) -> float:
        """The bound of a rung in this arithmetic."""
        return bound(rung, self.label(dtype))

    @cached_property
    def machine(self) -> dict[str, str]:
        """Where this runs."""
        found = {"system": platform.platform(), "processor": platform.processor() or platform.machine()}
        found |= {"numpy": np.__version__, "python": platform.python_version()}
        for name in self.backends:
            about = self.side(name, "float32").backend.describe()
            found |= {
                f"{name} {key}" if key != name else key: text
                for key, text in about.items()
                if key != "backend"
            }
        return found


@dataclass(frozen=True)
class Rung:
    """A part of the ladder.

    Attributes:
        name: what is said when it begins.
        climb: yields what it finds.
        unit: rungs of one unit use each other's results, and are climbed in one process.
    """

    name: str
    climb: Callable[[Ladder], Iterator[Finding]]
    unit: str


def rungs_of(options: LadderOptions) -> list[Rung]:
    """The rungs in the order of the report."""
    from parity_tests import (
        faults,
        rungs_devices,
        rungs_discriminator,
        rungs_enhancer,
        rungs_exact,
        rungs_model,
        rungs_optimizer,
        rungs_optimizers,
        rungs_precision,
        rungs_schedule,
        rungs_signal,
        rungs_training,
    )

    double = [
        Rung("training in float64", rungs_training.training_float64, "training in float64"),
        Rung("checkpoint exchange in float64", rungs_training.exchange_float64, "training in float64"),
    ]
    parts = [
        Rung("discriminator", rungs_discriminator.discriminator, "discriminator"),
        Rung("enhancer", rungs_enhancer.enhancer, "enhancer"),
        *([Rung("training stages", rungs_enhancer.stages, "training stages")] if options.long else []),
    ]
    rungs = [
        Rung("settings", rungs_exact.settings, "signals"),
        Rung("learning rate", rungs_exact.learning_rate, "signals"),
        Rung("features", rungs_signal.features, "signals"),
        Rung("optimizer", rungs_optimizer.optimizer, "signals"),
        Rung("outputs", rungs_model.outputs, "model"),
        Rung("gradients", rungs_model.gradients, "model"),
        *(parts if options.enhancer else []),
        Rung("training", rungs_training.training, "training"),
        Rung("checkpoint exchange", rungs_training.exchange, "training"),
        *(double if options.float64_training else []),
    ]
    if options.deepspeed:
        rungs += [
            Rung("learning rate schedulers", rungs_schedule.schedulers, "schedulers"),
            Rung("all optimizers", rungs_optimizers.optimizers, "optimizers"),
            Rung("loss scale", rungs_precision.loss_scales, "optimizers"),
            Rung("half precision", rungs_precision.half, "optimizers"),
            *([Rung("accumulation", rungs_precision.accumulation, "precision")] if options.long else []),
            Rung("bfloat16", rungs_precision.bfloat16, "precision"),
            Rung("devices", rungs_devices.devices, "devices"),
        ]
    if options.faults:
        rungs.append(Rung("planted faults", faults.faults, "model"))
    return rungs


def run_ladder(options: LadderOptions | None = None, say: Callable[[str], object] | None = None) -> Report:
    """Climb the ladder.

    Args:
        options: what to compare.
        say: called with the name of each rung as it begins.

    Raises:
        BackendError: a backend, device or precision that was asked for is missing.
        ConfigError: the reference folder does not exist.
    """
    from parity_tests.climb import climb, job_count

    options, say = options or LadderOptions(), say or (lambda name: None)
    rungs = rungs_of(options)
    ladder = Ladder(options)
    jobs = job_count(options, len({rung.unit for rung in rungs}))
    if jobs > 1:
        machine, found = climb(options, rungs, jobs, say)
    else:
        machine, found = ladder.machine, [list(_announced(rung, ladder, say)) for rung in rungs]
    report = Report(machine=machine)
    for findings in found:
        _collect(report, findings)
    return report


def _announced(rung: Rung, ladder: Ladder, say: Callable[[str], object]) -> Iterator[Finding]:
    say(rung.name)
    yield from rung.climb(ladder)


def _collect(report: Report, findings: Iterable[Finding]) -> None:
    kinds: dict[type, list] = {Row: report.rows, Skipped: report.skipped, Figure: report.figures}
    for finding in findings:
        kinds[type(finding)].append(finding)
