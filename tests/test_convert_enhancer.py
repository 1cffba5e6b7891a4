"""`parivox convert` with the enhancer: every tensor accounted for, there and back, trained on, and what is refused."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path

import numpy as np
import pytest

from parity_tests.ladder import BUNDLED_REFERENCE
from parivox.backend import NamedArrays, get_backend
from parivox.checkpoint import latest_checkpoint, load_checkpoint
from parivox.convert import convert, read_model
from parivox.errors import ConfigError
from parivox.hparams import EnhancerHParams
from parivox.loading import load_for_cleaning
from parivox.model_kinds import KINDS
from parivox.public_layout import read_public
from parivox.run_config import config_of
from parivox.run_start import arrays_of, start_arrays
from parivox.weights_enhancer import STATISTICS, buffer_names, trained_names
from tests.enhancer_folder import stage2_hparams, train
from tests.published import STATES_PATH, drawn, published, refused, rewritten, same
from tests.test_convert_refusals import Bomb
from tests.tiny_model import NARROW, enhancer_run, enhancer_weights

KIND = KINDS["enhancer"]
MEL_WINDOW = "mel_fn.melspec.spectrogram.window"


def tensors_of(hp: EnhancerHParams, dtype: str = "float32") -> NamedArrays:
    """Odd numbers for weights, and the buffers."""
    buffers = {name: array.astype(dtype) for name, array in KIND.buffers(hp).items()}
    return drawn(KIND.weights(hp), dtype) | buffers


@pytest.fixture
def public(tmp_path) -> Path:
    return published(tmp_path / "public", NARROW, tensors_of(NARROW))


@pytest.mark.parametrize(
    ("size", "fields"),
    [
        ("full", {}),
        ("tiny", {"irmae_hidden_dim": 64, "wn_hidden_dim": 64, "wn_layers": 10, "univnet_nc": 16}),
    ],
)
def test_all_tensors_of_the_published_program_are_known(size, fields):
    manifest = json.loads((BUNDLED_REFERENCE / f"enhancer_{size}.manifest.json").read_text())
    shapes = KIND.shapes(EnhancerHParams(**fields))
    assert {name: list(shape) for name, shape in shapes.items()} == manifest
    assert len(shapes) == {"full": 909, "tiny": 749}[size]


@pytest.mark.parametrize(("dtype", "mode"), [("float16", "cfm"), ("float32", "ae")])
def test_there_and_back_is_bit_identical(tmp_path, dtype, mode):
    hp = NARROW.replace(lcfm_training_mode=mode)
    tensors = tensors_of(hp, dtype)
    place = published(tmp_path / "public", hp, tensors)
    for name in ("run", "one.safetensors", "back"):
        convert(place, tmp_path / name, "public" if name == "back" else None, message=pytest.fail)
        place = tmp_path / name
    kind, found, back = read_public(place)
    assert (kind.name, found) == ("enhancer", hp) and same(back, tensors)
    files = [(tmp_path / name / STATES_PATH).read_bytes() for name in ("public", "back")]
    assert files[0] == files[1]
    checkpoint = latest_checkpoint(tmp_path / "run")
    assert checkpoint is not None
    arrays, meta = checkpoint.arrays, checkpoint.meta
    assert (meta.model, meta.step) == ("enhancer-stage1" if mode == "ae" else "enhancer-stage2", 0)
    assert {*STATISTICS} <= arrays.weights.keys() and checkpoint.buffers.keys() == buffer_names(hp)
    for moments in (arrays.exp_avg, arrays.exp_avg_sq):
        assert moments.keys() == {*trained_names(hp)} and not any(array.any() for array in moments.values())


def test_a_model_trained_here_gets_the_published_tensors(tmp_path):
    convert(enhancer_run(tmp_path / "run", step=3), tmp_path / "public", message=pytest.fail)
    tensors = read_public(tmp_path / "public")[2]
    weights = enhancer_weights()
    assert same({name: tensors[name] for name in weights}, weights)
    assert tensors.keys() - weights.keys() == buffer_names(NARROW)


@pytest.mark.slow
def test_a_converted_model_trains_on(tmp_path):
    pytest.importorskip("torch")
    hp = stage2_hparams(tmp_path / "data", None, max_steps=2)
    weights = enhancer_weights(hp)
    buffers = {name: array.astype(np.float32) for name, array in KIND.buffers(hp).items()}
    buffers[MEL_WINDOW] = np.sqrt(buffers[MEL_WINDOW])
    told: list[str] = []
    convert(published(tmp_path / "public", hp, weights | buffers), tmp_path / "run", message=told.append)
    assert len(told) == 1 and f"beyond rounding: {MEL_WINDOW} (by " in told[0]
    train(tmp_path / "run", get_backend("torch", device="cpu", dtype="float64"), hp)
    trained = latest_checkpoint(tmp_path / "run")
    assert trained is not None and trained.meta.step == 2
    changed = {name for name, array in trained.arrays.weights.items() if (array != weights[name]).any()}
    assert changed == {*trained_names(hp)}
    assert same(trained.buffers, buffers)


def test_stored_buffers_are_heard_and_named_where_they_are_strange(tmp_path):
    pytest.importorskip("torch")
    backend, sounds, told = get_backend("torch", device="cpu"), [], []
    for name, window in (("usual", np.asarray), ("other", np.sqrt)):
        assert not told
        tensors = tensors_of(NARROW) | enhancer_weights()
        tensors[MEL_WINDOW] = window(tensors[MEL_WINDOW])
        place = published(tmp_path / name, NARROW, tensors)
        loaded = load_for_cleaning(place, denoise_only=False, message=told.append)
        assert isinstance(loaded.hp, EnhancerHParams)
        model = backend.load_enhancer(loaded.hp, loaded.weights)
        rng = np.random.default_rng(0)
        wav = rng.standard_normal((1, 4200))
        noise = [rng.standard_normal(shape) for shape in ((1, NARROW.lcfm_latent_dim, 10), (1, 128, 20))]
        sounds.append(backend.enhance(model, wav, *noise, np.full(1, 0.5), None, "euler", 1))
    assert np.linalg.norm(sounds[1] - sounds[0]) > 0.01 * np.linalg.norm(sounds[0])
    assert len(told) == 1 and f"beyond rounding: {MEL_WINDOW} (by " in told[0]


@pytest.mark.slow
def test_a_discriminator_is_left_out_and_begun_anew_in_one_line_each(tmp_path):
    hp = NARROW.replace(lcfm_training_mode="ae", gan_training_start_step=10)
    run = enhancer_run(tmp_path / "run", hp)
    told: list[str] = []
    convert(run, tmp_path / "public", message=told.append)
    assert told == [f"{run}: the run's discriminator is left out; it is no part of a model"]
    told.clear()
    convert(tmp_path / "public", tmp_path / "again", message=told.append)
    assert told == [f"{tmp_path / 'again'}: begins with a new discriminator; no model holds one"]
    checkpoint = load_checkpoint(next((tmp_path / "again/checkpoints").iterdir()))
    fresh = arrays_of(hp, enhancer_weights(hp), 0, config_of(hp, None).optimizer)
    judge = checkpoint.arrays.discriminator
    assert judge is not None and fresh.discriminator is not None
    assert same(judge.weights, fresh.discriminator.weights) and judge.exp_avg.keys() == judge.weights.keys()
    assert start_arrays(checkpoint).weights.keys() == KIND.shapes(hp).keys()


# What is refused


def test_missing_extra_and_misshapen_tensors_are_one_error(tmp_path):
    tensors = tensors_of(NARROW)
    tensors["vocoder.conv_pro.bias"] = tensors.pop("vocoder.conv_pre.bias")
    del tensors["normalizer.running_var_unsafe"], tensors["dummy"]
    tensors["lcfm.cfm.net.end.bias"] = np.zeros(7, np.float32)
    message = refused(published(tmp_path / "public", NARROW, tensors), tmp_path)
    assert "3 missing: vocoder.conv_pre.bias, normalizer.running_var_unsafe, dummy" in message
    assert "1 extra: vocoder.conv_pro.bias" in message
    assert "1 of another shape: lcfm.cfm.net.end.bias is (7,) but should be (4,)" in message


def test_a_checkpoint_of_another_width_is_refused(tmp_path, public):
    settings = public / "hparams.yaml"
    settings.write_text(settings.read_text().replace("univnet_nc: 4", "univnet_nc: 8"))
    message = refused(public, tmp_path)
    assert "does not fit this model; use the hyperparameters it was trained with" in message
    assert "of another shape: " in message and "vocoder.conv_pre.bias is (4,) but should be (8,)" in message


def test_a_wrong_hyperparameter_is_named(tmp_path, public):
    settings = public / "hparams.yaml"
    whole = settings.read_text()
    settings.write_text(whole + "lcfm_z_scales: 6\n")
    message = refused(public, tmp_path, ConfigError)
    assert "hparams.yaml: unknown hyperparameter 'lcfm_z_scales' (did you mean 'lcfm_z_scale'?)" in message
    settings.write_text(whole.replace("hop_size: 420", "hop_size: 441"))
    assert "hop_size is 441; it must be 420" in refused(public, tmp_path, ConfigError)
    settings.write_text(whole.replace("lcfm_training_mode: cfm", "lcfm_training_mode: both"))
    assert "lcfm_training_mode" in refused(public, tmp_path, ConfigError)


def test_a_truncated_file_is_refused(tmp_path, public):
    path = public / STATES_PATH
    path.write_bytes(path.read_bytes()[:-100])
    assert f"{path}: truncated, damaged or no torch file" in refused(public, tmp_path)


def test_a_pickle_that_tries_to_run_code_runs_nothing(tmp_path, public):
    marker = tmp_path / "marker"
    rewritten(public, {"data.pkl": pickle.dumps({"module": Bomb(os.mkdir, str(marker))}, 2)})
    message = refused(public, tmp_path)
    assert "posix.mkdir" in message and "nothing of it was run" in message and not marker.exists()


def test_a_run_of_another_kind_is_refused(tmp_path):
    run = enhancer_run(tmp_path / "run")
    checkpoint = next((run / "checkpoints").iterdir())
    data = checkpoint.read_bytes()
    checkpoint.write_bytes(data.replace(b"enhancer-stage2", b"enhancer-stage9"))
    assert "damaged" in refused(checkpoint, tmp_path)
    assert read_model(enhancer_run(tmp_path / "whole"))[0].kind.name == "enhancer"
