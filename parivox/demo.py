"""`parivox demo`: everything once, small: train on both backends, clean a recording, compare, report."""

from __future__ import annotations

import importlib.util
import shlex
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import numpy as np

from parivox.audio import write_audio
from parivox.backend import BACKENDS, BackendName, installed
from parivox.commands.train import stage_preset
from parivox.data import make_demo_data, mix
from parivox.data.crop import random_crop
from parivox.data.index import CONTENTS, ClipPool, index_files
from parivox.demo_report import Curve, Outcome, assemble, losses, print_losses, print_sounds
from parivox.errors import AudioError, BackendError, ConfigError, DataError, ParivoxError
from parivox.hparams import WAV_RATE, DenoiserHParams

PRESET = "denoiser_demo"
SEED = 0

FOLDERS = ("fg", "bg", "rir")
TITLES: dict[BackendName, str] = {"jax": "JAX", "torch": "PyTorch with DeepSpeed"}

MARK = ".parivox-demo"
"""A file that says: this folder was made by the demo, and the demo may begin it anew."""

SECONDS = 4.0
"""Length of the recording that is cleaned, where the speech is that long."""

SPEECH_WEIGHT = 0.6
"""Of the mixture: the speech is 3.5 dB louder than the noise."""

PEAK = 0.7
"""Of the audio files, so that a cleaned one has room."""


@dataclass
class Demo:
    """One run of the demo.

    Attributes:
        out: the folder for everything it makes.
        data: the user's folder, or None.
        backends: those that can train here.
        missing: backend -> why it cannot, with the command that helps.
    """

    out: Path
    data: Path | None
    backends: list[BackendName] = field(default_factory=list)
    missing: dict[BackendName, str] = field(default_factory=dict)
    _step: int = 0

    def say(self, title: str) -> None:
        """Begin the next step."""
        self._step += 1
        print(f"\n[{self._step}/{len(self.backends) + 5}] {title}", flush=True)

    def call(self, *words: str) -> None:
        """Run `parivox` in a process of its own, and show the command.

        Raises:
            ParivoxError: it failed; it has said why.
        """
        print(f"$ {shlex.join(['parivox', *words])}", flush=True)
        done = subprocess.run([sys.executable, "-m", "parivox", *words], check=False)
        if done.returncode:
            raise ParivoxError(
                f"the demo stopped: the last command ended with status {done.returncode}; mend what it says"
                " above and start the demo again"
            )

    def run_dir(self, name: BackendName) -> Path:
        """The run folder of a backend."""
        return self.out / f"run-{name}"

    def audio(self, name: str) -> Path:
        """One of the audio files."""
        return self.out / "audio" / f"{name}.wav"


def run_demo(out: Path, data: Path | None = None) -> int:
    """Run the demo, telling each step on the standard output.

    Args:
        out: folder for everything it makes; an earlier demo in it is begun anew.
        data: folder with `fg`, `bg` and `rir`; None makes some in `out`.

    Returns:
        The exit status: 0 when every comparison lies inside its bound, else 1.

    Raises:
        ConfigError: `out` holds something else than a demo.
        DataError: `data` lacks a folder, or there is too little in it.
        BackendError: no backend can train here.
        ParivoxError: a step failed.
    """
    begun = time.monotonic()
    demo = Demo(out, data)
    for name in BACKENDS:
        reason = why_not(name)
        if reason:
            demo.missing[name] = reason
        else:
            demo.backends.append(name)
    if not demo.backends:
        raise BackendError(f"no backend can train here: {'; '.join(demo.missing.values())}")
    begin_anew(out)
    for reason in demo.missing.values():
        print(f"left out: {reason}", flush=True)
    hp = _data(demo)
    for name in demo.backends:
        _train(demo, name, hp)
    demo.say("Compare the losses, step by step")
    curves: dict[BackendName, Curve] = {name: losses(demo.run_dir(name)) for name in demo.backends}
    row = print_losses(curves)
    _clean(demo, hp)
    outcome = Outcome(row, curves, {name: demo.audio(name) for name in _sound_names(demo)}, demo.missing)
    return _finish(demo, outcome, begun)


def why_not(name: BackendName) -> str:
    """Why a backend cannot train here, with the command that helps; empty where it can."""
    if not installed(name):
        return f"backend '{name}' is not installed; run: pip install 'parivox[{name}]'"
    if name == "torch" and importlib.util.find_spec("deepspeed") is None:
        return "training on torch needs DeepSpeed; run: pip install 'parivox[deepspeed]'"
    return ""


def begin_anew(out: Path) -> None:
    """Make the demo's folder, without what an earlier demo left in it; its data stay.

    Raises:
        ConfigError: there is something else, or the folder cannot be written.
    """
    try:
        if out.exists() and not out.is_dir():
            raise ConfigError(f"{out}: is a file; name another folder with --out")
        if out.is_dir() and any(out.iterdir()) and not (out / MARK).exists():
            raise ConfigError(f"{out}: holds something else than a demo; name another folder with --out")
        out.mkdir(parents=True, exist_ok=True)
        (out / MARK).touch()
        for name in ("audio", *(f"run-{backend}" for backend in BACKENDS)):
            if (out / name).exists():
                shutil.rmtree(out / name)
        (out / "report.html").unlink(missing_ok=True)
    except OSError as error:
        raise ConfigError(f"{out}: cannot be written ({error.strerror}); name another folder") from error


def _data(demo: Demo) -> DenoiserHParams:
    """Make or find the data; returns the demo's hyperparameters with these folders."""
    if demo.data is None:
        demo.say(f"Make demo data in {demo.out / 'data'}: voices, noises and rooms")
        root = make_demo_data(demo.out / "data")
    else:
        demo.say(f"Look at the data in {demo.data}")
        root = demo.data
        missing = [f"{name} ({CONTENTS[f'{name}_dir']})" for name in FOLDERS if not (root / name).is_dir()]
        if missing:
            raise DataError(
                f"{root}: has no folder {', '.join(missing)}; the demo needs fg, bg and rir there"
            )
    places = {f"{name}_dir": root / name for name in FOLDERS}
    hp = cast(DenoiserHParams, stage_preset(PRESET, "denoiser").replace(**places))
    files = index_files(hp)
    noises, rooms = (len(pool.files) if pool else 0 for pool in (files.bg, files.rir))
    print(
        f"{len(files.train.files)} speech files to learn from, {len(files.held_out.files)} held out,", end=" "
    )
    print(f"{noises} noises, {rooms} rooms", flush=True)
    return hp


def _train(demo: Demo, name: BackendName, hp: DenoiserHParams) -> None:
    demo.say(f"Train a small denoiser for {hp.max_steps} steps on {TITLES[name]}")
    if name == "torch":
        print("(once on each machine DeepSpeed compiles an extension: a minute or two)", flush=True)
    folders = [word for n in FOLDERS for word in (f"--{n}-dir", str(getattr(hp, f"{n}_dir")))]
    words = ("--backend", name, "--preset", PRESET, "--seed", str(SEED))
    demo.call("train", "denoiser", str(demo.run_dir(name)), *words, *folders)


def _clean(demo: Demo, hp: DenoiserHParams) -> None:
    demo.say("Clean a noisy recording of a voice that no training has heard")
    clean, noisy = mixture(hp)
    for name, wav in (("clean", clean), ("noisy", noisy)):
        write_audio(demo.audio(name), PEAK * wav[None], WAV_RATE)
    for name in demo.backends:
        files = (str(demo.audio("noisy")), str(demo.audio(f"denoised-{name}")))
        demo.call("enhance", *files, "--denoise-only", "--run", str(demo.run_dir(name)), "--backend", name)
    print_sounds({name: demo.audio(name) for name in _sound_names(demo)})


def mixture(hp: DenoiserHParams) -> tuple[np.ndarray, np.ndarray]:
    """A held-out voice, and the same with noise: each (t,) float32 at 44,100 Hz with a peak of 1.

    Raises:
        DataError: nothing decodes.
    """
    files, rng = index_files(hp), np.random.default_rng(SEED)
    if files.bg is None:
        raise DataError("the demo needs noise; its preset reads speech alone")
    lengths = {path: _seconds(files.held_out, path) for path in files.held_out.files}
    longest = max(lengths, key=lambda path: lengths[path])
    frames = round(min(SECONDS, max(lengths[longest], 1.0)) * WAV_RATE)
    clean, _ = random_crop(files.held_out, longest, frames, WAV_RATE, rng, {})
    noise, _ = random_crop(files.bg, None, frames, WAV_RATE, rng, {})
    return clean, mix(clean, noise, SPEECH_WEIGHT)


def _seconds(pool: ClipPool, path: Path) -> float:
    try:
        info = pool.info(path)
    except AudioError:
        return 0.0  # not the longest; training has named it
    return info.frames / info.rate


def _sound_names(demo: Demo) -> list[str]:
    return ["noisy", *(f"denoised-{name}" for name in demo.backends), "clean"]


def _finish(demo: Demo, outcome: Outcome, begun: float) -> int:
    from parity_tests.ladder import LadderOptions, run_ladder
    from parity_tests.report import print_table, write_html

    demo.say("Run the parity ladder: both backends against independent references and each other")
    # The planted faults prove the ladder, not the machine, and the rest is of what this demo does not use.
    options = LadderOptions(faults=False, deepspeed=False, enhancer=False, float64_training=False, jobs=None)
    print("(the whole ladder takes longer: parivox parity)", flush=True)
    report = run_ladder(options, lambda rung: print(f"  {rung} ...", flush=True))
    assemble(report, outcome)
    print_table(report)
    demo.say("Write the report")
    page = demo.out / "report.html"
    write_html(report, page)
    print(f"{page}: open it in a browser: tables, curves, spectrograms and sound")
    for name in _sound_names(demo):
        print(f"{demo.audio(name)}: listen")
    for name in demo.backends:
        print(
            f"{demo.run_dir(name)}: the run on {TITLES[name]}: checkpoints, metrics.jsonl, TensorBoard, eval"
        )
    print(
        f"\nDone in {time.monotonic() - begun:.0f} s: {'everything agrees' if report.passed else 'FAILED'}."
    )
    return 0 if report.passed else 1
