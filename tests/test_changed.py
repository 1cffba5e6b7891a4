"""How much was changed: words and voices, before and after."""

from __future__ import annotations

import importlib.util
import sys

import numpy as np
import pytest

from parivox import changed
from parivox.changed import recognise, speaker_similarity, word_error
from parivox.scores import SPEECH_RATE, UndefinedError
from tests.voices import MAN, WOMAN, noisy, voice

SILENCE = np.zeros(SPEECH_RATE, np.float32)


@pytest.mark.parametrize(
    ("before", "after", "percent"),
    [
        ("a clean cup of tea", "a clean cup of tea", 0),
        ("a clean cup of tea", "a mean cup of the tea", 40),
        ("a clean cup of tea", "", 100),
        ("tea", "a cup of tea", 300),
    ],
)
def test_word_error_counts_changed_lost_and_new_words(monkeypatch, before, after, percent):
    pytest.importorskip("jiwer")
    heard = iter((before, after))
    monkeypatch.setattr(changed, "recognise", lambda wav: next(heard))
    assert word_error(SILENCE, SILENCE) == pytest.approx(percent)


def test_no_words_before_have_no_word_error(monkeypatch):
    pytest.importorskip("jiwer")
    monkeypatch.setattr(changed, "recognise", lambda wav: "")
    with pytest.raises(UndefinedError, match="hears no word in the reference"):
        word_error(SILENCE, SILENCE)


def test_what_is_heard_does_not_depend_on_what_was_heard_before():
    pytest.importorskip("pocketsphinx")
    wav = voice(1.2, SPEECH_RATE)
    first = recognise(wav)
    assert first
    recognise(noisy(voice(0.6, SPEECH_RATE, WOMAN), 0.3))
    assert recognise(wav) == first
    assert recognise(SILENCE) == ""


def test_the_recogniser_gets_whole_numbers_within_their_range():
    given = np.array([0, 1, -1, 1.5, -1.5, 1 / 32_767], np.float32)
    assert np.frombuffer(changed._pcm(given), "<i2").tolist() == [0, 32_767, -32_767, 32_767, -32_767, 1]


def test_similarity_is_that_of_resemblyzer():
    if importlib.util.find_spec("resemblyzer") is None:  # importing it needs what `changed` puts in place
        pytest.skip("resemblyzer is not installed; pip install 'parivox[changed]'")
    held, one = sys.modules.get("pkg_resources"), voice(3.0, SPEECH_RATE, MAN)
    assert speaker_similarity(one, one) == pytest.approx(1, abs=1e-5)
    assert sys.modules.get("pkg_resources") is held
    same, other = voice(3.0, SPEECH_RATE, MAN, seed=5), voice(3.0, SPEECH_RATE, WOMAN)
    assert speaker_similarity(other, one) < speaker_similarity(same, one) < 1
    from resemblyzer import VoiceEncoder, preprocess_wav

    encoder = VoiceEncoder("cpu", verbose=False)
    vectors = [encoder.embed_utterance(preprocess_wav(wav)) for wav in (other, one)]
    assert speaker_similarity(other, one) == pytest.approx(float(vectors[0] @ vectors[1]))
    with pytest.raises(UndefinedError, match="the sound is silent"):
        speaker_similarity(SILENCE, one)
    with pytest.raises(UndefinedError, match="the reference has less than 1 s of voice"):
        speaker_similarity(one, one[:16_000])
