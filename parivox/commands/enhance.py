"""`parivox enhance`: clean a file or a folder."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from parivox.commands.lines import Lines
from parivox.commands.options import (
    NO_HINT,
    PUBLIC_MODEL,
    BackendOption,
    CountOption,
    DeviceOption,
    PrecisionOption,
    ShareOption,
    SolverOption,
)
from parivox.errors import ConfigError, printable

if TYPE_CHECKING:
    from parivox.enhance_files import FileOptions, Summary
    from parivox.pipes import Ends
    from parivox.sampling import Sampling


@dataclass(frozen=True)
class EnhanceCommand:
    """Clean a recording, or every recording below a folder, with a trained model.

    An enhancer makes speech anew, full-band and without noise; a denoiser, or an enhancer with --denoise-only, takes
    noise away. Channels, length, sample rate and coding are kept. A file that cannot be cleaned is named on a line of
    its own and does not stop the others; the exit status is 0 when all were cleaned.

    Attributes:
        source: File or folder: wav, flac, ogg, mp3, aiff, opus; with parivox[media] also m4a, mp4, webm and more.
            A dash is a file from the standard input.
        target: Output file or folder. A dash is the standard output, a wav unless --format says otherwise; all else
            is printed to the standard error then.
        model: A run folder, one of its checkpoints, a published folder, one safetensors file, or a model on the
            Hugging Face hub, hub:OWNER/REPO[@REVISION], which is downloaded once; by default the public weights.
        denoise_only: Remove noise only, with a denoiser or that of an enhancer.
        nfe: Evaluations of the enhancer's flow, 1 to 128; by default the run's. More take longer.
        solver: Solver of the flow; by default the run's.
        lambd: How much the enhancer listens to the denoised sound, 0 to 1 (1 by default); 0 skips its denoiser.
        tau: Share of noise in what the flow begins with, 0 to 1 (0.5 by default).
        seed: Of the enhancer's noise (0 by default); the same seed gives the same sound.
        backend: What computes; by default what is installed, JAX first, or PARIVOX_BACKEND.
        device: Where it computes.
        precision: Arithmetic of convolutions and matrix products; highest is true float32.
        rate: Sample rate of the outputs; by default each file's own.
        format: Format of the outputs; by default each file's own (wav where that can only be read), or what the
            output's name says.
        chunk_seconds: How much the model hears at once; a longer chunk takes more memory.
        overlap_seconds: How much neighbouring chunks share.
        batch: How many chunks are computed at once; by default 1 on a CPU, else 4. More take more memory.
        mono: Clean the mean of the channels instead of each.
        mix: How much of the original is kept, 0 to 1.
        skip_existing: Pass over files whose output is there already.
        keep_going: Clean the others when a file fails; so it is by default.
        fail_fast: End when a file fails.
    """

    source: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="IN")]
    target: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="OUT")]
    model: Annotated[Path, tyro.conf.arg(name="run", metavar="RUN")] = PUBLIC_MODEL
    denoise_only: Annotated[bool, tyro.conf.FlagCreatePairsOff, NO_HINT] = False
    nfe: CountOption = None
    solver: SolverOption = None
    lambd: ShareOption = None
    tau: ShareOption = None
    seed: CountOption = None
    backend: BackendOption = None
    device: DeviceOption = "auto"
    precision: PrecisionOption = "highest"
    rate: Annotated[int | None, tyro.conf.arg(metavar="HZ", help_behavior_hint="")] = None
    format: Annotated[Literal["wav", "flac", "ogg", "mp3"] | None, NO_HINT] = None
    chunk_seconds: float = 30.0
    overlap_seconds: float = 1.0
    batch: CountOption = None
    mono: Annotated[bool, tyro.conf.FlagCreatePairsOff, NO_HINT] = False
    mix: float = 0.0
    skip_existing: Annotated[bool, tyro.conf.FlagCreatePairsOff, NO_HINT] = False
    keep_going: Annotated[bool, tyro.conf.FlagCreatePairsOff, NO_HINT] = False
    fail_fast: Annotated[bool, tyro.conf.FlagCreatePairsOff, NO_HINT] = False

    def run(self) -> int:
        """Clean; returns the exit status."""
        from parivox.audio import probe
        from parivox.enhance_files import FileOptions
        from parivox.enhance_plan import check_source
        from parivox.pipes import DASH, standard_ends

        sampling = self._sampling()
        options = FileOptions(
            rate=self.rate,
            format=self.format,
            chunk_seconds=self.chunk_seconds,
            overlap_seconds=self.overlap_seconds,
            mono=self.mono,
            mix=self.mix,
            skip_existing=self.skip_existing,
            keep_going=not self.fail_fast,
        )
        if self.batch is not None and self.batch < 1:
            raise ConfigError(f"--batch is {self.batch}; use 1 or more")
        if self.keep_going and self.fail_fast:
            raise ConfigError("--keep-going and --fail-fast exclude each other; leave out one")
        if self.source != DASH:
            check_source(self.source)
        with standard_ends(self.source, self.target, self.format) as ends:
            if self.source == DASH:  # before a model is loaded
                probe(ends.source)
            return self._clean(ends, sampling, options)

    def _clean(self, ends: Ends, sampling: Sampling, options: FileOptions) -> int:
        """Load the model and clean; returns the exit status."""
        from parivox.cleaner import load
        from parivox.enhance_files import enhance_path
        from parivox.heap import return_large_blocks
        from parivox.progress import EnhanceProgress

        return_large_blocks()
        tell = Lines(ends.named)
        cleaner = load(
            self.model,
            self.backend,
            self.device,
            self.precision,
            denoise_only=self.denoise_only,
            message=tell,
        )
        model = cleaner.denoiser(self.batch) if self.denoise_only else cleaner.enhancer(sampling, self.batch)
        print(f"cleaning with {cleaner}", flush=True)
        begun = time.monotonic()
        with EnhanceProgress() as progress:
            summary = enhance_path(
                ends.source,
                ends.target,
                model,
                options,
                message=tell,
                progress=progress.update,
            )
        took = time.monotonic() - begun
        ends.deliver()
        line = _summary_line(summary, ends.target, progress.audio_seconds, took)
        print(ends.named(line), flush=True)
        return 1 if summary.failed else 0

    def _sampling(self) -> Sampling:
        """The enhancer's options."""
        from parivox.sampling import Sampling

        options = {name: getattr(self, name) for name in ("nfe", "solver", "lambd", "tau", "seed")}
        given = {name: value for name, value in options.items() if value is not None}
        if self.denoise_only and given:
            raise ConfigError(f"--{next(iter(given))} is of the enhancer; leave out that or --denoise-only")
        return Sampling(**given)


def _summary_line(summary: Summary, target: Path, audio: float, seconds: float) -> str:
    count = len(summary.done)
    files = f"{count} file{'' if count == 1 else 's'} cleaned"
    for paths, word in (
        (summary.failed, "failed"),
        (summary.skipped, "there already"),
        (summary.left, "not begun"),
    ):
        files += f", {len(paths)} {word}" if paths else ""
    if not count:
        return files
    place = summary.done[0] if count == 1 else target
    return f"{files}: {printable(place)}; {audio:.1f} s of audio in {seconds:.1f} s, {audio / seconds:.2g} x real time"
