"""`parivox train`: begin a run of the denoiser or of a stage of the enhancer, or go on with it."""

from __future__ import annotations

import dataclasses
import signal
import typing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import tyro

from parivox.commands.options import (
    NO_HINT,
    BackendOption,
    CountOption,
    DeviceOption,
    DtypeOption,
    FileOption,
    PrecisionOption,
)
from parivox.errors import ConfigError
from parivox.hparams import HParams, check_same_run
from parivox.presets import PRESETS, default_hparams, describe_preset, preset
from parivox.stages import Stage, hparams_class, stage_of

if TYPE_CHECKING:
    from parivox.train import TrainOptions


def presets_of(stage: Stage) -> list[str]:
    """Names of the presets of a stage."""
    return [name for name in PRESETS if stage_of(preset(name)) == stage]


def _preset_option(stage: Stage) -> Any:
    listing = "; ".join(f"{name} ({describe_preset(name)})" for name in presets_of(stage))
    about = tyro.conf.arg(
        metavar="NAME", help_behavior_hint="", help=f"Hyperparameters of a new run: {listing}."
    )
    return Annotated[str | None, about]


MEANINGS: dict[str, str] = {
    "fg_dir": "Folder of speech, at least 11 files.",
    "bg_dir": "Folder of noise.",
    "rir_dir": "Folder of room impulse responses, audio or .npy.",
    "load_fg_only": "Read speech alone: nothing is mixed.",
    "praat_augment_prob": "Share of voices changed with Praat.",
    "wav_rate": "Samples a second.",
    "n_fft": "Length of the mel spectrogram's FFT, samples.",
    "win_size": "Length of its window, samples.",
    "hop_size": "Step between its frames, samples.",
    "num_mels": "Its bands.",
    "stft_magnitude_min": "Its smallest magnitude.",
    "preemphasis": "Its pre-emphasis.",
    "mix_alpha_range": "Weight of the speech in a mixture, lowest and highest.",
    "nj": "Most processes that make the data.",
    "training_seconds": "Length of a training item, seconds.",
    "batch_size_per_gpu": "Items a step.",
    "min_lr": "Learning rate at the start and at the end.",
    "max_lr": "Learning rate after the warm-up.",
    "warmup_steps": "Steps from the lowest to the highest rate.",
    "max_steps": "Steps of the whole schedule.",
    "gradient_clipping": "Largest norm of the gradient.",
    "distort_prob": "Share of items that learn the distorted speech.",
    "unet_hidden_dim": "Width of the denoiser.",
    "cfm_solver_method": "Solver of the flow.",
    "cfm_solver_nfe": "Evaluations of the flow's velocity for a sample.",
    "cfm_time_mapping_divisor": "The flow's time map reaches a half at one over this.",
    "univnet_nc": "Width of the vocoder.",
    "lcfm_latent_dim": "Width of the latent.",
    "lcfm_z_scale": "Factor on the latent in the flow; the end of the first stage suggests one.",
    "vocoder_extra_dim": "Channels that the decoder gives the vocoder beside the mel bands.",
    "gan_training_start_step": "Update at which the discriminator joins; None for never.",
    "enhancer_stage1_run_dir": "First stage that the second one begins with: a run, or a model in any form.",
    "denoiser_run_dir": "Denoiser that the enhancer begins with: a run, or a model in any form.",
    "force_gaussian_prior": "Let the flow begin with noise alone.",
    "irmae_hidden_dim": "Width of the auto-encoder.",
    "wn_hidden_dim": "Width of the flow's network.",
    "wn_layers": "Its layers.",
}
"""Hyperparameter -> what its option says in the help."""


NOTHING = "None"
"""What an option is given to say that there is none, where that is a value."""


ABOUT: dict[Stage, str] = {
    "denoiser": "Train the denoiser.",
    "enhancer-stage1": "Train the enhancer's auto-encoder and vocoder on clean speech.",
    "enhancer-stage2": "Train the enhancer's flow, and its denoiser, on distorted speech after the first stage.",
}
"""The first line of each stage's help."""


@dataclass(frozen=True)
class _Train:
    """Begin a run, or go on with it where its newest checkpoint stands.

    A run begun on one backend continues on the other. Ctrl-C ends a run after the step at hand and keeps it.
    An option that names a hyperparameter goes before the preset or YAML file. An existing run has its own
    hyperparameters; what is given must agree with them.

    Attributes:
        run_dir: The run folder: checkpoints, logs, sound and pictures.
        backend: What computes; by default what is installed, JAX first, or PARIVOX_BACKEND.
        device: Where it computes.
        precision: Arithmetic of convolutions and matrix products; highest is true float32.
        dtype: What numbers are kept in. float64 is for comparing backends: CPU, slow, without DeepSpeed's engine.
        config: YAML file of hyperparameters for a new run.
        preset: Named hyperparameters for a new run.
        seed: Of initial weights and data; by default the run's own, or 0.
        init: Initial weights of a new run: near passing the input through, or as in the published program.
        stop_at: Stop after this step although the schedule goes on.
        workers: Processes that make the data, 0 for none; by default nj, at most one for each CPU.
        checkpoint_every: Steps between checkpoints.
        keep: Checkpoints to keep.
        permanent_every: Steps between checkpoints that are kept for good; 0 for none.
        eval_every: Steps between evaluations on held-out speech; 0 for one at the end.
        deepspeed_config: DeepSpeed config (JSON) of a new run: optimizer, schedule, batch, precision, ZeRO; either
            backend trains by it.
        dry_run: Print what would be done, with the schedule and the memory of each device, and do nothing.
        coordinator: JAX in several processes: host:port of process 0, any free port; the same for all.
        num_processes: JAX in several processes: how many.
        process_id: JAX in several processes: the number of this one, from 0.
        distributed: JAX in several processes: take these three from the cluster, such as SLURM.
    """

    STAGE: ClassVar[Stage]

    run_dir: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RUN")]
    backend: BackendOption = None
    device: DeviceOption = "auto"
    precision: PrecisionOption = "highest"
    dtype: DtypeOption = "float32"
    config: FileOption = None
    preset: str | None = None
    seed: CountOption = None
    init: Literal["identity", "published"] = "identity"
    stop_at: CountOption = None
    workers: CountOption = None
    checkpoint_every: int = 500
    keep: int = 3
    permanent_every: int = 0
    eval_every: int = 500
    deepspeed_config: FileOption = None
    dry_run: Annotated[bool, tyro.conf.FlagCreatePairsOff, NO_HINT] = False
    coordinator: Annotated[str | None, tyro.conf.arg(metavar="HOST:PORT", help_behavior_hint="")] = None
    num_processes: CountOption = None
    process_id: CountOption = None
    distributed: Annotated[bool, tyro.conf.FlagCreatePairsOff, NO_HINT] = False

    def run(self) -> int:
        """Train; returns the exit status."""
        hp = self.hparams()
        options = self._options()
        from parivox.backend import default_backend, get_backend
        from parivox.parallel import launched_world

        name = self.backend or default_backend()
        # Before the backend: JAX must not be in use when its processes meet.
        world = launched_world(
            name,
            coordinator=self.coordinator,
            num_processes=self.num_processes,
            process_id=self.process_id,
            distributed=self.distributed,
        )
        if self.dry_run:
            if world.is_main:
                print(self._plan(hp, world.size), flush=True)
            return 0
        from parivox.train import train

        backend = get_backend(
            name, device=self.device, precision=self.precision, dtype=self.dtype, world=world
        )
        summary = train(self.run_dir, backend, hp, options, self.STAGE)
        if summary["stopped_by"]:
            return 128 + signal.Signals[summary["stopped_by"]].value
        if backend.world.is_main:
            print(f"done; the model is in {self.run_dir}. {self._next()}", flush=True)
        return 0

    def hparams(self) -> HParams | None:
        """What was asked for; None where nothing was and the run has its own.

        Raises:
            ConfigError: both a preset and a file are given, an unknown preset, or a value makes no sense.
        """
        asked = {name: value for name in MEANINGS if (value := getattr(self, name, None)) is not None}
        given = {name: None if value == NOTHING else value for name, value in asked.items()}
        kind = hparams_class(self.STAGE)
        own = self.run_dir / "hparams.yaml"
        if self.config is not None and self.preset is not None:
            raise ConfigError("--config and --preset are both given; leave one of them out")
        if self.config is not None:
            base = kind.load(self.config)
            if stage_of(base) != self.STAGE:
                raise ConfigError(f"{self.config}: is of {stage_of(base)}, not of {self.STAGE}")
        elif self.preset is not None:
            base = stage_preset(self.preset, self.STAGE)
        elif own.exists():
            if not given:
                return None
            base = kind.load(own)
        else:
            base = default_hparams(self.STAGE)
        return base.replace(**given)

    def _options(self) -> TrainOptions:
        from parivox.train import TrainOptions

        names = (field.name for field in dataclasses.fields(TrainOptions))
        return TrainOptions(**{name: getattr(self, name) for name in names})

    def _plan(self, hp: HParams | None, processes: int) -> str:
        """What a dry run prints; each process counts as one device, for nothing is started that could count them."""
        from parivox import deepspeed_config
        from parivox.dry_run import describe
        from parivox.run_config import CONFIG_FILE, config_of, own_config, read_config

        path, kept = self.deepspeed_config, self.run_dir / "hparams.yaml"
        if kept.exists():
            own = hparams_class(self.STAGE).load(kept)
            if hp is not None:
                check_same_run(own, hp, self.run_dir)
            hp = own
            begun = own_config(self.run_dir, None, path, restore=False)
            path = None if begun is None else self.run_dir / CONFIG_FILE
        hp = hp or default_hparams(self.STAGE)
        config = config_of(hp, path, processes)
        given = hp.deepspeed_config if path is None else read_config(path)
        return describe(hp, config, deepspeed_config.remarks(given, hparams=hp))

    def _next(self) -> str:
        return {
            "denoiser": f"Clean a file with it: parivox enhance IN OUT --denoise-only --run {self.run_dir}",
            "enhancer-stage1": "Go on with the second stage: parivox train enhancer-stage2 RUN"
            f" --enhancer-stage1-run-dir {self.run_dir}",
            "enhancer-stage2": f"Enhance a file with it: parivox enhance IN OUT --run {self.run_dir}",
        }[self.STAGE]


def stage_preset(name: str, stage: Stage) -> HParams:
    """A preset of a stage.

    Raises:
        ConfigError: no such preset, or one of another stage.
    """
    found = preset(name)
    if stage_of(found) != stage:
        raise ConfigError(
            f"preset '{name}' trains {stage_of(found)}, not {stage}; use one of {', '.join(presets_of(stage))}"
        )
    return found


def _option(field: dataclasses.Field[Any], kind: Any) -> tuple[str, Any, Any]:
    """An option for one hyperparameter, None where it is not given."""
    default = field.default
    shown = " ".join(map(str, default)) if isinstance(default, tuple) else default
    about = tyro.conf.arg(help=MEANINGS[field.name], help_behavior_hint=f"(default without preset: {shown})")
    if type(None) in typing.get_args(kind):
        kind = Literal["None"] | kind  # first, so that the word is told from an option that is not given
    return field.name, Annotated[kind | None, about], dataclasses.field(default=None)


def _command(name: str, stage: Stage) -> type:
    """The options above, and one for each hyperparameter of the stage's model."""
    hparams = hparams_class(stage)
    kinds = typing.get_type_hints(hparams)
    options: list[Any] = [
        _option(field, kinds[field.name]) for field in dataclasses.fields(hparams) if field.name in MEANINGS
    ]
    options.append(("preset", _preset_option(stage), dataclasses.field(default=None)))
    made = dataclasses.make_dataclass(name, options, bases=(_Train,), frozen=True)
    made.__doc__ = f"{ABOUT[stage]}\n\n{_Train.__doc__}"
    made.__module__ = __name__
    made.STAGE = stage
    return made


TrainDenoiserCommand = _command("TrainDenoiserCommand", "denoiser")
"""`parivox train denoiser`."""

TrainStage1Command = _command("TrainStage1Command", "enhancer-stage1")
"""`parivox train enhancer-stage1`."""

TrainStage2Command = _command("TrainStage2Command", "enhancer-stage2")
"""`parivox train enhancer-stage2`."""
