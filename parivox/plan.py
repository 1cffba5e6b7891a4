"""What the compiler makes of a command for devices that are not here: memory, work, and what they exchange.

The program is compiled in a process of its own (`python -m jax_impl.plan`), which may need gigabytes and minutes. It is
the command's own program, on shapes: no weights are made and nothing is run. PyTorch compiles no such thing.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from parivox.backend import Precision, Solver, TrainArrays, check_stage
from parivox.data.draws import item_samples
from parivox.deepspeed_config import TrainConfig, resolve
from parivox.enhance import chunk_sizes, full_row
from parivox.enhancer_tables import TAIL, VOCODER_NOISE
from parivox.errors import BackendError
from parivox.hparams import EnhancerHParams, HParams
from parivox.stages import hparams_class, stage_of
from parivox.topologies import Topology, parse_topology

Task = Literal["train", "denoise", "enhance"]
Shape = tuple[int, ...]

DESCRIBED = {
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
    "TPU_ACCELERATOR_TYPE": "v5litepod-16",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TF_CPP_MIN_LOG_LEVEL": "3",
}
"""Environment in which libtpu describes chips instead of looking for them, in several processes at once."""


@dataclass(frozen=True)
class Request:
    """One program for one topology.

    Attributes:
        task: which of the three.
        hp: of the model, and when it is trained of the data.
        topology: where.
        precision: arithmetic of convolutions and matrix products.
        deepspeed: training: the DeepSpeed config, as it is written.
        rows: inference: chunks computed at once.
        samples: inference: length of each.
        nfe: enhancing: evaluations of the flow's velocity.
        solver: enhancing: which.
    """

    task: Task
    hp: HParams
    topology: Topology
    precision: Precision = "highest"
    deepspeed: Mapping[str, Any] = field(default_factory=dict)
    rows: int = 0
    samples: int = 0
    nfe: int = 0
    solver: Solver = "midpoint"

    def config(self) -> TrainConfig:
        """How it trains.

        Raises:
            ConfigError: listing everything that is wrong with the config.
        """
        return resolve(self.deepspeed, world_size=self.topology.devices, hparams=self.hp)

    def to_json(self) -> str:
        """The request as text, for another process."""
        plain = {name: value for name, value in vars(self).items() if name not in ("hp", "topology")}
        plain |= {"stage": stage_of(self.hp), "hp": self.hp.to_dict(), "topology": self.topology.name}
        return json.dumps(plain)

    @classmethod
    def from_json(cls, text: str) -> Request:
        """The inverse of `to_json`."""
        plain = json.loads(text)
        hp = hparams_class(plain.pop("stage")).from_dict(plain.pop("hp"))
        return cls(hp=hp, topology=parse_topology(plain.pop("topology")), **plain)


@dataclass(frozen=True)
class Plan:
    """What one compilation told; all bytes and operations are of one device and one step.

    Attributes:
        fits: whether it compiled. The compiler refuses a program that needs more memory than a device has.
        devices: how many work.
        held: bytes by what they are, from shapes and placements: `parameters`, `gradients`, `optimizer`, `fixed`
            (weights that are not trained), `rows`.
        memory: bytes by the executable's own account, with the padding of its layouts: `arguments`, `outputs`,
            `aliased` (outputs in the place of arguments), `temporaries` (activations and gradients), `code`, `peak`.
        needed: bytes that the compiler says it needs where it does not fit.
        limit: bytes that the compiler may use, where it has said so.
        flops: operations, loops counted once.
        accessed: bytes read and written, likewise.
        seconds: the compiler's estimate, likewise; None where it has none.
        cycles: its estimates of single instructions, added up, those in loops as often as they run; 0 without.
        loops: times that each loop runs; None where it is not known.
        collectives: kind -> [count, bytes], as `parivox.hlo.Collective`.
        float64: lines of the program in double precision.
        host: lines that wait for the host.
        compile_seconds: how long the compiler took.
        versions: of what compiled.
    """

    fits: bool
    devices: int
    held: dict[str, int]
    memory: dict[str, int] = field(default_factory=dict)
    needed: int | None = None
    limit: int | None = None
    flops: float = 0.0
    accessed: float = 0.0
    seconds: float | None = None
    cycles: int = 0
    loops: list[int | None] = field(default_factory=list)
    collectives: dict[str, list[int]] = field(default_factory=dict)
    float64: list[str] = field(default_factory=list)
    host: list[str] = field(default_factory=list)
    compile_seconds: float = 0.0
    versions: dict[str, str] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


def row_shapes(hp: HParams, rows: int) -> dict[str, Shape]:
    """Name -> shape of every array of a training batch, as `parivox.data` makes them."""
    if not isinstance(hp, EnhancerHParams):
        sound = (rows, round(hp.training_seconds * hp.wav_rate))
        return {"noisy": sound, "target": sound}
    samples = item_samples(hp)
    frames = samples // hp.hop_size
    sound, latent = (rows, samples), (rows, hp.lcfm_latent_dim, frames)
    return {
        **dict.fromkeys(("noisy", "target", "distorted"), sound),
        "vocoder_noise": (rows, VOCODER_NOISE, frames + TAIL),
        **dict.fromkeys(("blend", "tau", "time"), (rows,)),
        **dict.fromkeys(("prior", "sigma"), latent),
    }


def check_trainable(request: Request) -> None:
    """Refuse a training that the command would refuse too.

    Raises:
        ConfigError: listing everything that is wrong with the config.
        BackendError: the model is not trained with it.
    """
    nothing = TrainArrays({}, {}, {})
    check_stage(request.hp, request.config(), replace(nothing, discriminator=nothing))


def check_planner(topology: Topology, backend: str) -> None:
    """Refuse what cannot be planned here.

    Raises:
        BackendError: PyTorch was asked for, JAX or libtpu is not installed; with the command that helps.
    """
    if backend != "jax":
        raise BackendError(
            "PyTorch compiles nothing for devices that are not here; plan with --backend jax (and see parivox train"
            " --dry-run, which counts weights on either backend)"
        )
    if topology.chip is None or importlib.util.find_spec("libtpu") is not None:
        return
    if not sys.platform.startswith("linux"):
        raise BackendError(
            f"{topology.name} needs libtpu, which there is for Linux alone; plan cpu:N here, or on a Linux machine"
        )
    raise BackendError(f"{topology.name} needs libtpu; run: pip install 'parivox[plan]'")


def make_plan(request: Request) -> Plan:
    """Compile, in a process of its own.

    Raises:
        BackendError: the process failed for another reason than memory; with its last line.
    """
    environment = os.environ | DESCRIBED
    if request.topology.chip is None:
        environment |= {"JAX_NUM_CPU_DEVICES": str(request.topology.devices)}
    done = subprocess.run(
        [sys.executable, "-m", "jax_impl.plan"],
        input=request.to_json(),
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        last = (done.stderr.strip() or f"it ended with status {done.returncode}").splitlines()[-1]
        raise BackendError(f"{request.topology.name}: the compiler failed: {last}")
    return Plan(**json.loads(done.stdout.splitlines()[-1]))


@dataclass(frozen=True)
class Attempt:
    """A change that might make a program fit, and what came of it."""

    change: str
    request: Request
    plan: Plan


def remedies(
    request: Request, plan: Plan, most: int = 3, tell: Callable[[str], None] = lambda line: None
) -> list[Attempt]:
    """Try what makes a program smaller until it fits; at most so many compilations.

    Training: activations computed again (the denoiser), then more passes of fewer records, which change no result of
    the denoiser or the second stage, then the next stage of ZeRO. Inference: fewer chunks at once, then shorter ones.

    Args:
        request: what does not fit.
        plan: what came of it.
        most: compilations.
        tell: told before each.

    Raises:
        BackendError: as `make_plan`.
    """
    tried: list[Attempt] = []
    while not plan.fits and len(tried) < most:
        found = _smaller(request, plan)
        if found is None:
            break
        change, request = found
        tell(f"{change}: compiling")
        plan = make_plan(request)
        tried.append(Attempt(change, request, plan))
    return tried


def _smaller(request: Request, plan: Plan) -> tuple[str, Request] | None:
    """The next change to try; None when there is none left."""
    times = 2
    while plan.needed and plan.limit and plan.needed > times * plan.limit:
        times *= 2
    if request.task != "train":
        if request.rows > 1:
            rows = max(1, request.rows // times)
            return f"--batch {rows}", replace(request, rows=rows)
        seconds = request.samples // times // request.hp.wav_rate
        if seconds < 1:
            return None
        return f"--chunk-seconds {seconds}", replace(request, samples=chunk_samples(float(seconds)))
    config, given = request.config(), request.deepspeed
    if not config.checkpoint_activations and stage_of(request.hp) == "denoiser":
        changed = {**given, "activation_checkpointing": {}}
        return "activation_checkpointing", replace(request, deepspeed=changed)
    if config.micro_batch_size > 1:
        micro = max(1, config.micro_batch_size // times)
        while config.micro_batch_size % micro:
            micro -= 1
        steps = config.accumulation_steps * config.micro_batch_size // micro
        sizes = {"train_micro_batch_size_per_gpu": micro, "gradient_accumulation_steps": steps}
        kept = {key: value for key, value in given.items() if key != "train_batch_size"}
        change = f"train_micro_batch_size_per_gpu {micro}, gradient_accumulation_steps {steps}"
        return change, replace(request, deepspeed={**kept, **sizes})
    if config.zero_stage < 3 and request.topology.devices > 1:
        return f"--zero-stage {config.zero_stage + 1}", with_stage(request, config.zero_stage + 1)
    return None


def with_stage(request: Request, stage: int) -> Request:
    """The same at another stage of ZeRO."""
    zero = request.deepspeed.get("zero_optimization")
    changed = {**(zero if isinstance(zero, Mapping) else {}), "stage": stage}
    return replace(request, deepspeed={**request.deepspeed, "zero_optimization": changed})


def chunk_samples(seconds: float, overlap: float = 0.0) -> int:
    """Samples of the row that a whole chunk becomes."""
    return full_row(*chunk_sizes(seconds, overlap))
