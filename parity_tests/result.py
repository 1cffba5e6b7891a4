"""What the ladder yields: one row for each comparison, and all of them as a report."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

RUNGS: dict[str, str] = {
    "settings": "Hyperparameters, STFT configurations and the DeepSpeed configuration, as plain values.",
    "learning rate": "The rate of every update against the real DeepSpeed scheduler, as float32 numbers.",
    "features": "STFT, inverse STFT and mel spectrogram against a slow, plain float64 evaluation in NumPy, "
    "against librosa, and against recorded numbers.",
    "optimizer": "Gradient clipping and Adam over many updates against the real DeepSpeed engine.",
    "outputs": "What each module and the whole model compute, against recorded numbers and each other.",
    "gradients": "The derivative of the loss by every weight, against recorded norms and leaf by leaf.",
    "training": "The loss of every update of a short training on the same batches from the same start.",
    "checkpoint exchange": "A run saved by one backend and continued by the other, against one "
    "that never changed.",
    "devices": "The same training over several devices or processes against one device.",
    "planted faults": "Each fault is put into a backend on purpose; its rung must notice it.",
}
"""Name of each rung, in order, and what it compares; shown in the report."""

FEATURES: dict[str, str] = {
    "optimizer: Adam, AdamW": "An optax transformation that repeats the arithmetic of FusedAdam.",
    "optimizer: SGD": "An optax transformation that repeats torch.optim.SGD.",
    "optimizer: Lion": "An optax transformation; DeepSpeed's CUDA kernel is repeated in NumPy to compare with.",
    "optimizer: LAMB": "An optax transformation; DeepSpeed's CUDA kernel is repeated in NumPy to compare with.",
    "gradient_clipping": "By the global norm, with the engine's margin of 1e-6.",
    "scheduler: WarmupLR": "A function of the number of updates; the scheduler class is not used.",
    "scheduler: WarmupDecayLR": "The same.",
    "scheduler: WarmupCosineLR": "The same.",
    "scheduler: OneCycle": "The same, for the learning rate and for Adam's first beta.",
    "scheduler: LRRangeTest": "The same.",
    "gradient_accumulation_steps": "A scan over the micro batches inside the compiled step.",
    "bf16": "Weights rounded to bfloat16 for each pass; float32 weights, moments and updates.",
    "fp16": "The same in float16, with the loss scale moved on the host as the engine moves it.",
    "zero_optimization": "Placements on a mesh of devices: stage 1 divides the optimizer's memory, 2 also the "
    "gradients, 3 also the weights.",
}
"""Entry of a DeepSpeed config -> what does the same in JAX; rows name the entry that they are about."""


@dataclass(frozen=True)
class Row:
    """One comparison.

    Attributes:
        rung: name of the rung, a key of `RUNGS`.
        case: what was computed, for instance "denoiser output, jax".
        against: what it was compared with.
        error: the distance found, in the unit of the bound; 0 where both are equal.
        bound: the largest distance that passes; 0 asks for equality.
        dtype: arithmetic of the comparison, empty where there is none.
        note: anything a reader should know about this row.
        feature: the entry of a DeepSpeed config that it is about, a key of `FEATURES`; empty where there is none.
    """

    rung: str
    case: str
    against: str
    error: float
    bound: float
    dtype: str = ""
    note: str = ""
    feature: str = ""

    @property
    def passed(self) -> bool:
        """Whether the error lies inside its bound. NaN, infinite and negative errors do not."""
        return 0 <= self.error <= self.bound and math.isfinite(self.error)

    @property
    def margin(self) -> float:
        """How many times the error fits into the bound; infinite for an error of 0, NaN for NaN."""
        return math.inf if self.error == 0 else self.bound / self.error


@dataclass(frozen=True)
class Skipped:
    """A rung, or a part of one, that could not run here.

    Attributes:
        rung: name of the rung.
        reason: what is missing and how to get it.
    """

    rung: str
    reason: str


@dataclass(frozen=True)
class Figure:
    """A picture of the report.

    Attributes:
        title: a few words.
        caption: what there is to see.
        png: the file's bytes.
    """

    title: str
    caption: str
    png: bytes


@dataclass(frozen=True)
class Sound:
    """A recording to listen to in the report.

    Attributes:
        title: a few words.
        data: the file's bytes.
        media_type: of `data`, for instance `audio/wav` or `audio/flac`.
    """

    title: str
    data: bytes
    media_type: str = "audio/wav"


@dataclass
class Report:
    """Everything one run of the ladder found.

    Attributes:
        rows: the comparisons, in the order of the ladder.
        skipped: what did not run, and why.
        figures: pictures.
        machine: what it ran on: devices, precision, versions.
        sounds: recordings to listen to.
    """

    rows: list[Row] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)
    figures: list[Figure] = field(default_factory=list)
    machine: dict[str, str] = field(default_factory=dict)
    sounds: list[Sound] = field(default_factory=list)

    @property
    def failures(self) -> list[Row]:
        """The rows outside their bounds."""
        return [row for row in self.rows if not row.passed]

    @property
    def passed(self) -> bool:
        """Whether something was compared and all of it lies inside its bounds."""
        return bool(self.rows) and not self.failures
