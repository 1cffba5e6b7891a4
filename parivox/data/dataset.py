"""One training item from one speech file and one random generator."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float

from parivox.audio import peak_normalize
from parivox.data.crop import Skips, random_crop
from parivox.data.distort import Distorter
from parivox.data.draws import flow_draws, item_samples, vocoder_noise
from parivox.data.index import ClipPool, DataFiles
from parivox.data.mix import mix
from parivox.data.praat import change_gender
from parivox.hparams import DenoiserHParams, EnhancerHParams, HParams

SILENCE_PROB = 0.01
"""Share of training items whose speech is silence."""

ENHANCER_DISTORT_PROB = 0.8
"""The enhancer leaves 20 % of its speech clean."""


@dataclass(frozen=True)
class Record:
    """One item as it leaves a worker.

    To grain a dataclass is one leaf, so it comes through a pipe and not through shared memory, which is
    small in many containers and which a killed program would leave filled.

    Attributes:
        arrays: name -> array of this item, without a batch axis.
        source: the speech file it begins with.
        skipped: (path, reason) of files that did not decode on the way.
    """

    arrays: dict[str, np.ndarray]
    source: str
    skipped: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class ItemMaker:
    """Makes records; a pure function of the files, the path and the generator.

    Attributes:
        hp: what to make. The denoiser learns the distorted or clean speech that its mixture is made of; with
            `load_fg_only` both arrays are the clean speech. The enhancer's first stage reads clean speech alone,
            whatever `load_fg_only` says; its second mixes distorted speech and learns the clean and the distorted one.
        files: the run's files.
        validation: crops from held-out clips, one fixed room and reverb, no silence, no Praat.
    """

    hp: HParams
    files: DataFiles
    validation: bool = False

    def __call__(self, path: Path, rng: np.random.Generator) -> Record:
        """The record that begins with the speech file `path`.

        Raises:
            DataError: nothing in a folder decodes.
        """
        skips: Skips = {}
        clean, source = self._speech(path, rng, skips)
        arrays = {"noisy": clean, "target": clean}
        if self.files.bg is not None and self.files.rir is not None:
            arrays = self._mixture(clean, self.files.bg, self.files.rir, rng, skips)
        if isinstance(self.hp, EnhancerHParams):
            # Last, so that the sound is drawn as for any other model.
            arrays = self._with_draws(self.hp, arrays, rng)
        return Record(arrays, str(source), tuple(skips.items()))

    @property
    def frames(self) -> int:
        """Samples of an item.

        Raises:
            ConfigError: too few for the enhancer.
        """
        if isinstance(self.hp, EnhancerHParams):
            return item_samples(self.hp)
        return round(self.hp.training_seconds * self.hp.wav_rate)

    def _with_draws(
        self, hp: EnhancerHParams, arrays: dict[str, np.ndarray], rng: np.random.Generator
    ) -> dict[str, np.ndarray]:
        frames = self.frames // hp.hop_size
        sounds = {name: sound.astype(np.float32, copy=False) for name, sound in arrays.items()}
        noise = {"vocoder_noise": vocoder_noise(frames, rng)}
        if hp.lcfm_training_mode == "ae":
            return {"target": sounds["target"], **noise}
        return {"distorted": sounds["noisy"], **sounds, **noise, **flow_draws(hp, frames, rng)}

    def _speech(
        self, path: Path, rng: np.random.Generator, skips: Skips
    ) -> tuple[Float[np.ndarray, " t"], Path]:
        pool = self.files.held_out if self.validation else self.files.train
        wav, source = random_crop(pool, path, self.frames, self.hp.wav_rate, rng, skips)
        if not self.validation:
            if rng.random() < SILENCE_PROB:
                wav = np.zeros_like(wav)
            if rng.random() < self.hp.praat_augment_prob:
                wav = peak_normalize(change_gender(wav, self.hp.wav_rate, rng))
        return wav, source

    def _mixture(
        self,
        clean: Float[np.ndarray, " t"],
        bg: ClipPool,
        rir: ClipPool,
        rng: np.random.Generator,
        skips: Skips,
    ) -> dict[str, np.ndarray]:
        distort = Distorter(self.hp.wav_rate, rir, fixed=self.validation)
        denoiser = isinstance(self.hp, DenoiserHParams)
        prob = self.hp.distort_prob if isinstance(self.hp, DenoiserHParams) else ENHANCER_DISTORT_PROB
        speech = distort(clean, rng, skips) if rng.random() < prob else clean
        noise, _ = random_crop(bg, None, self.frames, self.hp.wav_rate, rng, skips)
        noise = distort(noise, rng, skips)
        noisy = mix(speech, noise, rng.uniform(*self.hp.mix_alpha_range))
        if denoiser:
            return {"noisy": noisy, "target": speech}
        return {"noisy": noisy, "target": clean, "distorted": speech}
