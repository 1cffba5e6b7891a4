from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from parivox.audio import peak_normalize, read_audio, write_audio
from parivox.data import dataset as dataset_module
from parivox.data import mix
from parivox.data.crop import join, other_file, random_crop
from parivox.data.dataset import ItemMaker
from parivox.data.draws import flow_draws
from parivox.data.index import ClipPool, index_files
from parivox.data.praat import change_gender, require_praat
from parivox.data.rooms import load_room
from parivox.errors import AudioError, ConfigError, DataError
from parivox.hparams import EnhancerHParams
from tests.data_folder import RATE, folders, tone


def generator(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    hp = folders(tmp_path_factory.mktemp("corpus"))
    return hp, index_files(hp)


def level(wav: np.ndarray, begin: float, end: float) -> float:
    return float(np.abs(wav[round(begin * RATE) : round(end * RATE)]).max())


def test_crop_is_a_piece_of_the_file(tmp_path):
    ramp = np.linspace(0.1, 0.9, RATE, dtype=np.float32)
    path = tone(tmp_path / "a.wav", 1.0)
    write_audio(path, ramp[None], RATE, subtype="FLOAT")
    starts = set()
    for seed in range(5):
        wav, source = random_crop(ClipPool("fg_dir", (path,)), None, 4410, RATE, generator(seed), {})
        assert source == path and wav.dtype == np.float32 and abs(wav.max() - 1) < 1e-6
        slope = np.diff(wav.astype(float)) / wav[-1]
        assert np.all(slope > 0)
        # A ramp's value says where the crop began.
        starts.add(round(float(wav[0] / wav[-1]), 3))
    assert len(starts) > 1


@pytest.mark.parametrize("rate", [8000, 16_000, 48_000, 96_000])
def test_crop_of_another_rate_has_the_length_and_the_pitch(tmp_path, rate):
    time = np.arange(rate) / rate
    path = tmp_path / "a.wav"
    write_audio(path, (0.5 * np.sin(2 * np.pi * 1000 * time)).astype(np.float32)[None], rate)
    wav, _ = random_crop(ClipPool("fg_dir", (path,)), None, RATE // 4, RATE, generator(), {})
    assert wav.shape == (RATE // 4,)
    spectrum = np.abs(np.fft.rfft(wav * np.hanning(wav.size)))
    assert abs(spectrum.argmax() * 4 - 1000) <= 4


def test_crop_averages_channels(tmp_path):
    path = tmp_path / "stereo.wav"
    left = tone(tmp_path / "l.wav", 0.2)
    one = read_audio(left)[0][0] / 2
    write_audio(path, np.stack([one, one[::-1]]), RATE, subtype="FLOAT")
    wav, _ = random_crop(ClipPool("fg_dir", (path,)), None, one.size, RATE, generator(), {})
    np.testing.assert_allclose(wav, peak_normalize((one + one[::-1]) / 2), atol=1e-6)


def test_short_clips_are_joined_with_others_of_the_pool(tmp_path):
    pool = ClipPool("bg_dir", tuple(tone(tmp_path / f"{k}.wav", 0.1) for k in range(3)))
    wav, source = random_crop(pool, pool.files[1], RATE, RATE, generator(), {})
    assert source == pool.files[1] and wav.shape == (RATE,)
    quietest = min(level(wav, k / 20, (k + 1) / 20) for k in range(20))
    assert quietest > 0.3, "no stretch of a joined crop is silent"


def test_silent_places_are_passed_over(tmp_path):
    padded = np.zeros((1, 2 * RATE), np.float32)
    padded[0, :RATE] = 0.5 * np.sin(np.arange(RATE) / 9)
    write_audio(tmp_path / "padded.wav", padded, RATE)
    pool = ClipPool("bg_dir", (tmp_path / "padded.wav",))
    peaks = [random_crop(pool, None, 4410, RATE, generator(k), {})[0].max() for k in range(20)]
    # Half of the file is silent: without a second try about ten of twenty would be.
    assert sum(peak < 0.5 for peak in peaks) <= 2


def test_a_silent_file_is_silence(tmp_path):
    write_audio(tmp_path / "silent.wav", np.zeros((1, RATE), np.float32), RATE)
    wav, _ = random_crop(ClipPool("fg_dir", (tmp_path / "silent.wav",)), None, 4410, RATE, generator(), {})
    assert not wav.any()


def test_a_single_short_clip_is_followed_by_silence(tmp_path):
    pool = ClipPool("bg_dir", (tone(tmp_path / "only.wav", 0.1),))
    wav, _ = random_crop(pool, None, RATE, RATE, generator(), {})
    assert level(wav, 0, 0.1) > 0.9 and level(wav, 0.11, 1.0) == 0


def test_joints_are_faded_and_the_pieces_are_equally_loud():
    pieces = [np.full(100, 0.1, np.float32), np.full(100, -0.9, np.float32)]
    wav = join(pieces, 10)
    assert wav.shape == (200,) and np.abs(np.diff(wav)).max() < 0.2
    assert wav[0] == pytest.approx(1, abs=1e-5) and wav[-1] == pytest.approx(-1, abs=1e-5)


@given(st.integers(1, 9), st.data())
def test_other_file_is_another_one(count, data):
    pool = ClipPool("fg_dir", tuple(Path(f"{k}") for k in range(count)))
    here = pool.files[data.draw(st.integers(0, count - 1))]
    found = {other_file(pool, here, generator(seed)) for seed in range(200)}
    assert found == (set(pool.files) - {here} or {here})


def test_a_file_that_does_not_decode_gives_way_to_another(tmp_path):
    good, bad = tone(tmp_path / "good.wav", 0.2), tmp_path / "bad.flac"
    bad.write_bytes(b"this is text")
    skips: dict[str, str] = {}
    wav, source = random_crop(ClipPool("fg_dir", (bad, good)), bad, 1000, RATE, generator(), skips)
    assert source == good and wav.max() > 0.9
    assert list(skips) == [str(bad)] and str(bad) not in skips[str(bad)]


def test_a_folder_where_nothing_decodes_stops_with_a_list(tmp_path):
    paths = tuple(tmp_path / f"{k}.wav" for k in range(4))
    for path in paths:
        path.write_bytes(b"")
    with pytest.raises(DataError) as error:
        random_crop(ClipPool("bg_dir", paths), None, 1000, RATE, generator(), {})
    assert str(error.value).startswith("bg_dir: ") and all(str(path) in str(error.value) for path in paths)


@given(st.floats(0.2, 0.8), st.sampled_from([np.float32, np.float64]), st.integers(0, 2**32 - 1))
def test_mix_has_the_ratio_that_alpha_says(alpha, dtype, seed):
    rng = generator(seed)
    fg, bg = (rng.standard_normal((2, 400)) * rng.uniform(0.01, 10, (2, 1)) for _ in range(2))
    out = mix(fg.astype(dtype), bg.astype(dtype), alpha)
    assert out.dtype == dtype and np.allclose(np.abs(out).max(axis=-1), 1, atol=1e-5)
    for row, one, two in zip(out, fg, bg, strict=True):
        weights = np.linalg.lstsq(np.stack([one, two], axis=1), row, rcond=None)[0]
        energy = [np.linalg.norm(w * part) for w, part in zip(weights, (one, two), strict=True)]
        assert energy[0] / energy[1] == pytest.approx(alpha / (1 - alpha), rel=1e-3)


def test_mix_of_silence_is_the_other_part():
    noise = generator().standard_normal((1, 100))
    out = mix(np.zeros((1, 100)), noise, np.array([0.5]))
    np.testing.assert_allclose(out, noise / np.abs(noise).max(), rtol=1e-5)
    assert not mix(np.zeros((1, 100)), np.zeros((1, 100)), 0.5).any()


def test_item_is_a_function_of_path_and_generator(corpus):
    hp, files = corpus
    make = ItemMaker(hp, files)
    one, two, other = (make(files.train.files[0], generator(seed)) for seed in (1, 1, 2))
    assert one.source == str(files.train.files[0])
    for name in ("noisy", "target"):
        assert one.arrays[name].shape == (4410,) and one.arrays[name].dtype == np.float32
        assert np.array_equal(one.arrays[name], two.arrays[name])
        assert not np.array_equal(one.arrays[name], other.arrays[name])


def test_items_are_finite_and_at_full_scale(corpus):
    hp, files = corpus
    make = ItemMaker(hp, files)
    for seed in range(60):
        arrays = make(files.train.files[seed % 4], generator(seed)).arrays
        assert np.isfinite(arrays["noisy"]).all() and np.abs(arrays["noisy"]).max() == pytest.approx(
            1, abs=1e-3
        )
        assert np.isfinite(arrays["target"]).all() and np.abs(arrays["target"]).max() <= 1


def test_target_is_clean_or_distorted_as_asked(corpus):
    hp, files = corpus
    path = files.train.files[0]
    always = [
        ItemMaker(hp.replace(distort_prob=1.0), files)(path, generator(k)).arrays["target"] for k in range(8)
    ]
    never = [
        ItemMaker(hp.replace(distort_prob=0.0), files)(path, generator(k)).arrays["target"] for k in range(8)
    ]
    crops = [random_crop(files.train, path, 4410, RATE, generator(k), {})[0] for k in range(8)]
    assert all(np.array_equal(a, b) for a, b in zip(never, crops, strict=True))
    assert sum(not np.array_equal(a, b) for a, b in zip(always, crops, strict=True)) >= 6


def enhancer(hp, **changes):
    shared = {name: getattr(hp, name) for name in ("fg_dir", "bg_dir", "rir_dir", "training_seconds")}
    return EnhancerHParams(**shared, lcfm_latent_dim=8, **changes)


def test_second_stage_learns_the_clean_and_the_distorted_speech(corpus):
    hp, files = corpus
    make = ItemMaker(enhancer(hp, lcfm_training_mode="cfm"), files)
    assert make.frames == 4200  # 4,410 samples are ten frames and a half
    crop = random_crop(files.train, files.train.files[0], 4200, RATE, generator(5), {})[0]
    made = [make(files.train.files[0], generator(seed)).arrays for seed in range(5, 9)]
    assert np.array_equal(made[0]["target"], crop) and not np.array_equal(made[0]["noisy"], crop)
    assert any(not np.array_equal(a["distorted"], a["target"]) for a in made)
    shapes = {name: array.shape for name, array in made[0].items()}
    assert shapes == {
        **dict.fromkeys(("noisy", "target", "distorted"), (4200,)),
        **dict.fromkeys(("prior", "sigma"), (8, 10)),
        **dict.fromkeys(("blend", "tau", "time"), ()),
        "vocoder_noise": (128, 20),
    }
    assert {array.dtype for arrays in made for array in arrays.values()} == {np.dtype(np.float32)}
    assert not np.array_equal(made[0]["prior"], made[1]["prior"])
    again = make(files.train.files[0], generator(5)).arrays
    assert all(np.array_equal(array, again[name]) for name, array in made[0].items())


def test_draws_have_the_distributions_of_the_design():
    """Mean and variance of Beta(0.2, 0.2) are 1/2 and 1/5.6, of a uniform draw 1/2 and 1/12."""
    rng, hp = generator(1), EnhancerHParams(lcfm_latent_dim=8)
    made = [flow_draws(hp, 4, rng) for _ in range(4000)]
    for name, variance in (("blend", 1 / 5.6), ("tau", 1 / 12), ("time", 1 / 12)):
        values = np.array([draws[name] for draws in made])
        assert values.min() >= 0 and values.max() <= 1
        error = 5 * np.sqrt(variance / len(values))
        assert abs(values.mean() - 0.5) < error and abs(values.var() - variance) < error
    for name in ("prior", "sigma"):
        values = np.stack([draws[name] for draws in made])
        assert abs(values.mean()) < 5 / np.sqrt(values.size) and abs(values.var() - 1) < 5 * np.sqrt(
            2 / values.size
        )


def test_first_stage_reads_clean_speech_alone(corpus):
    hp, _ = corpus
    hp = enhancer(hp).replace(bg_dir=hp.fg_dir / "absent", rir_dir=hp.fg_dir / "absent")
    files = index_files(hp)
    assert files.bg is None and files.rir is None
    arrays = ItemMaker(hp, files)(files.train.files[0], generator(5)).arrays
    crop = random_crop(files.train, files.train.files[0], 4200, RATE, generator(5), {})[0]
    assert set(arrays) == {"target", "vocoder_noise"} and np.array_equal(arrays["target"], crop)


def test_items_too_short_for_the_discriminator_are_refused(corpus):
    hp, files = corpus
    assert ItemMaker(enhancer(hp.replace(training_seconds=0.05)), files).frames == 2100
    with pytest.raises(ConfigError, match=r"training_seconds is 0\.047, 4 frames .* use 0\.05 or more"):
        ItemMaker(enhancer(hp.replace(training_seconds=0.047)), files)(files.train.files[0], generator())


def test_speech_alone_is_both_input_and_target(corpus):
    hp, _ = corpus
    hp = hp.replace(load_fg_only=True)
    files = index_files(hp)
    arrays = ItemMaker(hp, files)(files.train.files[0], generator()).arrays
    assert np.array_equal(arrays["noisy"], arrays["target"]) and arrays["target"].max() > 0


def test_silent_speech_leaves_the_noise(corpus, monkeypatch):
    hp, files = corpus
    monkeypatch.setattr(dataset_module, "SILENCE_PROB", 1.0)
    for seed in range(8):
        arrays = ItemMaker(hp.replace(distort_prob=1.0), files)(files.train.files[0], generator(seed)).arrays
        assert not arrays["target"].any() and np.abs(arrays["noisy"]).max() > 0.9


@pytest.mark.skipif(importlib.util.find_spec("parselmouth") is None, reason="needs the extra praat")
class TestPraat:
    def test_length_determinism_and_effect(self):
        time = np.arange(RATE // 2) / RATE
        voice = sum(np.sin(2 * np.pi * 120 * h * time) / h for h in range(1, 20)).astype(np.float32)
        one, two, other = (change_gender(voice, RATE, generator(seed)) for seed in (1, 1, 2))
        assert one.shape == voice.shape and one.dtype == voice.dtype and np.isfinite(one).all()
        assert np.array_equal(one, two) and not np.array_equal(one, other)
        assert not np.allclose(one, voice, atol=0.1)

    @pytest.mark.parametrize("samples", [10, 1764, 4410])
    def test_silence_and_very_short_sounds(self, samples):
        silence = np.zeros(samples, np.float32)
        assert not change_gender(silence, RATE, generator()).any()
        hiss = generator().standard_normal(samples).astype(np.float32)
        assert change_gender(hiss, RATE, generator()).shape == (samples,)

    def test_items_use_it(self, corpus):
        hp, files = corpus
        path = files.train.files[0]
        plain = ItemMaker(hp.replace(distort_prob=0), files)(path, generator(3)).arrays["target"]
        changed = ItemMaker(hp.replace(distort_prob=0, praat_augment_prob=1), files)(path, generator(3))
        assert not np.array_equal(plain, changed.arrays["target"])


def test_missing_praat_names_the_extra(monkeypatch):
    monkeypatch.setattr("parivox.data.praat.find_spec", lambda name: None)
    require_praat(0.0)
    with pytest.raises(ConfigError, match=r"pip install 'parivox\[praat\]'"):
        require_praat(0.2)


def test_audio_error_is_what_rooms_raise(tmp_path):
    cases = {
        "text.npy": b"not an array",
        "zip.npy": b"PK\x03\x04 torn",
        "empty.npy": b"",
    }
    for name, content in cases.items():
        (tmp_path / name).write_bytes(content)
    arrays = {
        "2d.npy": np.ones((2, 5), np.float32),
        "none.npy": np.zeros(0, np.float32),
        "silent.npy": np.zeros(9, np.float32),
        "nan.npy": np.array([1, np.nan], np.float32),
        "words.npy": np.array(["a", "b"]),
    }
    for name, array in arrays.items():
        np.save(tmp_path / name, array)
    for name in [*cases, *arrays]:
        with pytest.raises(AudioError, match=name):
            load_room(tmp_path / name, RATE)
