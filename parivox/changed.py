"""How much of a recording was changed: what a recogniser hears, and whose voice it is, before and after.

A model that makes speech anew can alter words and voices while every measure of quality rises. Both
measures here compare two sounds with each other; neither knows what was truly said, or who spoke.
"""

from __future__ import annotations

import importlib.metadata
import sys
import warnings
from functools import lru_cache
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
from jaxtyping import Float

from parivox.scores import SPEECH_RATE, UndefinedError, pieces

VOICE_SECONDS = 1.0
"""Least voiced sound that says whose voice it is; the encoder hears 1.6 s at a time."""


def word_error(after: Float[np.ndarray, " t"], before: Float[np.ndarray, " t2"]) -> float:
    """Word error rate in percent of what pocketsphinx hears after, against what it hears before.

    (S + D + I) / N: substituted, deleted and inserted words over the words heard before, by jiwer. It can exceed 100.

    Args:
        after: the sound to judge, at 16,000 Hz.
        before: what it was or should be.

    Raises:
        UndefinedError: no word is heard before.
    """
    from jiwer import wer

    heard = [recognise(wav) for wav in (before, after)]
    if not heard[0]:
        raise UndefinedError("the recogniser hears no word in the reference")
    return 100 * float(wer(reference=heard[0], hypothesis=heard[1]))


def recognise(wav: Float[np.ndarray, " t"]) -> str:
    """The English words that pocketsphinx hears at 16,000 Hz; none in digital silence.

    Each piece is normalised by its own mean alone, and the words do not depend on what was heard before.
    """
    if not wav.any():
        return ""
    decoder, words = _decoder(), []
    for (piece,) in pieces(wav, rate=SPEECH_RATE):
        decoder.reinit_feat()  # else what it has learned about noise stays
        decoder.start_utt()
        decoder.process_raw(_pcm(piece), no_search=False, full_utt=True)
        decoder.end_utt()
        found = decoder.hyp()
        words += found.hypstr.split() if found else []
    return " ".join(words)


def speaker_similarity(after: Float[np.ndarray, " t"], before: Float[np.ndarray, " t2"]) -> float:
    """Cosine of the voice embeddings of two sounds at 16,000 Hz, by Resemblyzer: 1 for the same voice.

    L. Wan et al., "Generalized end-to-end loss for speaker verification", 2018.

    Args:
        after: the sound to judge.
        before: what it was or should be.

    Raises:
        UndefinedError: one of them has too little voiced sound.
    """
    return float(np.dot(_embedding(after, "the sound"), _embedding(before, "the reference")))


def _embedding(wav: np.ndarray, name: str) -> np.ndarray:
    """The unit vector of a voice."""
    if not wav.any():
        raise UndefinedError(f"{name} is silent")
    encoder, preprocess = _encoder()
    voiced = preprocess(np.clip(wav, -1, 1))
    if len(voiced) < VOICE_SECONDS * SPEECH_RATE:
        raise UndefinedError(f"{name} has less than {VOICE_SECONDS:g} s of voice")
    return encoder.embed_utterance(voiced)


def _pcm(wav: np.ndarray) -> bytes:
    """Samples as 16-bit integers, which the recogniser takes."""
    return np.rint(np.clip(wav, -1, 1) * 32_767).astype("<i2").tobytes()


@lru_cache(maxsize=1)
def _decoder() -> Any:
    from pocketsphinx import Decoder

    return Decoder(samprate=SPEECH_RATE, cmn="batch", loglevel="FATAL")


@lru_cache(maxsize=1)
def _encoder() -> tuple[Any, Any]:
    """Resemblyzer's encoder on the CPU, and what prepares a sound for it."""
    name = "pkg_resources"
    held = sys.modules.get(name)
    # webrtcvad, on which Resemblyzer depends, asks this module for its own version and for nothing else; setuptools
    # has none any more since 81.
    stand_in = ModuleType(name)
    stand_in.get_distribution = lambda dist: SimpleNamespace(version=importlib.metadata.version(dist))  # type: ignore[attr-defined]
    sys.modules[name] = stand_in
    try:
        with warnings.catch_warnings():
            # It imports from a place that SciPy has renamed.
            warnings.filterwarnings("ignore", category=DeprecationWarning)
            from resemblyzer import VoiceEncoder, preprocess_wav
    finally:
        if held is None:
            del sys.modules[name]
        else:
            sys.modules[name] = held
    return VoiceEncoder("cpu", verbose=False), preprocess_wav
