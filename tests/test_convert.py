"""`parivox convert`: there and back bit for bit, with torch as a witness, and every refusal in one line."""

from __future__ import annotations

import collections
import json
from pathlib import Path

import numpy as np
import pytest

from parity_tests.ladder import BUNDLED_REFERENCE
from parivox.checkpoint import load_checkpoint, load_model
from parivox.cli import main
from parivox.convert import convert, read_model
from parivox.errors import CheckpointError
from parivox.hparams import DenoiserHParams
from parivox.loading import load_for_cleaning
from parivox.model_kinds import KINDS, Kind
from parivox.public_layout import read_public
from parivox.run_start import start_arrays
from tests.published import STATES_PATH, denoiser, published, refused, rewritten, same
from tests.test_isolation import JAX, TORCH, TRAINING, parivox
from tests.tiny_model import tiny_run


@pytest.fixture
def public(tmp_path) -> Path:
    return published(tmp_path / "public", *denoiser())


# There and back


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize(
    "way", [("run",), ("one.safetensors",), ("run", "one.safetensors"), ("a.safetensors", "run")]
)
def test_there_and_back_is_bit_identical(tmp_path, dtype, way):
    hp, tensors = denoiser(dtype)
    place = published(tmp_path / "public", hp, tensors)
    for name in way:
        convert(place, tmp_path / name, message=pytest.fail)
        place = tmp_path / name
    convert(place, tmp_path / "back", "public", message=pytest.fail)
    kind, found, back = read_public(tmp_path / "back")
    assert (kind.name, found) == ("denoiser", hp)
    assert same(back, tensors)
    files = [(folder / STATES_PATH).read_bytes() for folder in (tmp_path / "public", tmp_path / "back")]
    assert files[0] == files[1]


def test_tensors_of_two_dtypes_keep_theirs(tmp_path):
    hp, tensors = denoiser("float32")
    mixed = {name: a.astype(np.float16) if k % 2 else a for k, (name, a) in enumerate(tensors.items())}
    place = published(tmp_path / "public", hp, mixed)
    for name in ("run", "one.safetensors", "back"):
        convert(place, tmp_path / name, "public" if name == "back" else None, message=pytest.fail)
        place = tmp_path / name
    assert same(read_model(place)[0].tensors, mixed)


def test_half_precision_is_asked_for_and_is_exact_on_the_way_up(tmp_path):
    hp, tensors = denoiser("float16")
    published(tmp_path / "half", hp, tensors)
    convert(tmp_path / "half", tmp_path / "full.safetensors", dtype="float32")
    full = read_model(tmp_path / "full.safetensors")[0].tensors
    assert {a.dtype.name for a in full.values()} == {"float32"}
    assert all(np.array_equal(full[name], a, equal_nan=True) for name, a in tensors.items())
    convert(tmp_path / "full.safetensors", tmp_path / "again", dtype="float16")
    assert same(read_model(tmp_path / "again")[0].tensors, tensors)


def test_what_half_precision_cannot_hold_is_named(tmp_path):
    hp, tensors = denoiser("float32")
    tensors["net.head.0.bias"][0] = 1e5
    source = published(tmp_path / "public", hp, tensors)
    with pytest.raises(CheckpointError, match=r"does not fit into float16.*net\.head\.0\.bias$"):
        convert(source, tmp_path / "out", dtype="float16")
    assert not (tmp_path / "out").exists()


def test_a_model_trained_here_gets_the_published_tensors(tmp_path):
    run = tiny_run(tmp_path / "run", DenoiserHParams(unet_hidden_dim=16))
    done = convert(run, tmp_path / "public", message=pytest.fail)
    assert (done.source, done.target) == ("run", "public")
    manifest = json.loads((BUNDLED_REFERENCE / "denoiser.manifest.json").read_text())
    tensors = read_public(tmp_path / "public")[2]
    assert {name: list(a.shape) for name, a in tensors.items()} == manifest
    weights, _, _ = load_model(run)
    assert same({name: tensors[name] for name in weights}, weights)
    # The published program knows no widths; where they differ from its own, ours must find them.
    assert "unet_hidden_dim" not in (tmp_path / "public/hparams.yaml").read_text()
    convert(tiny_run(tmp_path / "narrow"), tmp_path / "narrow_public")
    assert "unet_hidden_dim: 2" in (tmp_path / "narrow_public/hparams.yaml").read_text()


def test_a_converted_model_runs_and_trains(tmp_path):
    pytest.importorskip("jax")
    from parivox.backend import get_backend

    hp, _ = denoiser()
    tensors = {name: np.nan_to_num(a, posinf=1, neginf=1) / 100 for name, a in denoiser("float16")[1].items()}
    source = published(tmp_path / "public", hp, tensors)
    convert(source, tmp_path / "run")
    backend = get_backend("jax", device="cpu")
    loaded = load_for_cleaning(tmp_path / "run", denoise_only=True)
    assert (loaded.hp, loaded.about) == (hp, "step 0")
    weights = loaded.weights
    sound = backend.denoise(backend.load_denoiser(loaded.hp, weights), np.zeros((1, 2000), np.float32))
    assert np.isfinite(sound).all()
    first = load_checkpoint(next((tmp_path / "run/checkpoints").iterdir()))
    exported = backend.export_state(backend.create_state(hp, start_arrays(first))).weights
    assert all((exported[name] == weights[name].astype(np.float32)).all() for name in weights)


def test_one_checkpoint_of_a_run_converts_too(tmp_path):
    run = tiny_run(tmp_path / "run", step=3)
    convert(run, tmp_path / "a.safetensors")
    convert(next((run / "checkpoints").iterdir()), tmp_path / "b.safetensors")
    one, two = (read_model(tmp_path / f"{name}.safetensors")[0] for name in "ab")
    assert one.hp == two.hp and same(one.tensors, two.tensors)


def test_buffers_within_rounding_are_not_mentioned_and_others_are(tmp_path):
    hp, tensors = denoiser("float16")
    published(tmp_path / "public", hp, tensors)
    convert(tmp_path / "public", tmp_path / "run", message=pytest.fail)
    with np.load(BUNDLED_REFERENCE / "float32/features.npz") as recorded:
        bank = recorded["mel_filterbank"]  # the published program's own
    assert (bank != tensors["mel_fn.melspec.mel_scale.fb"]).any()
    tensors["mel_fn.melspec.mel_scale.fb"] = bank
    convert(published(tmp_path / "float32", hp, tensors), tmp_path / "run1", message=pytest.fail)
    tensors["mel_fn.melspec.spectrogram.window"] = np.ones(2048, np.float16)
    told = []
    convert(published(tmp_path / "other", hp, tensors), tmp_path / "run2", message=told.append)
    assert len(told) == 1 and "mel_fn.melspec.spectrogram.window (by 1.0e+00" in told[0]


# torch as a witness


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_torch_reads_what_is_written(tmp_path, dtype):
    torch = pytest.importorskip("torch")
    hp, tensors = denoiser(dtype)
    tensors |= {
        "scalar": np.array(2.5, dtype),
        "empty": np.zeros((0, 3), dtype),
        "n\u00e4me": np.ones(1, dtype),
    }
    path = published(tmp_path / "public", hp, tensors) / STATES_PATH
    for mmap in (False, True):
        found = torch.load(path, weights_only=True, mmap=mmap)
        assert list(found) == ["module"] and isinstance(found["module"], collections.OrderedDict)
        assert same({name: t.numpy() for name, t in found["module"].items()}, tensors)
        assert all(t.is_contiguous() for t in found["module"].values())


def test_what_torch_writes_is_read(tmp_path, monkeypatch):
    torch = pytest.importorskip("torch")
    hp = DenoiserHParams()
    layers = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.LayerNorm(2))
    state = layers.state_dict()  # an OrderedDict with _metadata
    base = torch.arange(24.0).reshape(4, 6)
    state |= {"turned": base.t()[1:, ::2], "shared": base[1], "repeated": torch.ones(1).expand(3, 2)}
    state |= {"half": torch.arange(3.0).half(), "scalar": torch.tensor(1.5), "empty": torch.zeros(0, 2)}
    state["parameter"] = torch.nn.Parameter(torch.ones(2))
    shapes = {name: tuple(t.shape) for name, t in state.items()}
    kind = Kind("denoiser", DenoiserHParams, lambda hp: shapes, lambda hp: {})
    monkeypatch.setitem(KINDS, "denoiser", kind)
    folder = published(tmp_path / "public", hp, {})
    # What DeepSpeed's engine saves beside the model.
    beside = {
        "param_shapes": [collections.OrderedDict(a=torch.Size([2, 3]))],
        "optimizer": None,
        "lr_scheduler": {"last_batch_iteration": -1, "rates": (1e-5, 2**40, -3)},
        "rng": torch.zeros(3, dtype=torch.uint8),
        "global_steps": 100_000,
        "ds_config": {"fp16": {"enabled": True}, "note": "x"},
    }
    torch.save({"module": state, **beside}, folder / STATES_PATH)
    found = read_public(folder)[2]
    assert same(
        found, {name: np.ascontiguousarray(t.detach().numpy()).reshape(t.shape) for name, t in state.items()}
    )
    assert all(a.flags.c_contiguous and a.flags.writeable for a in found.values())
    torch.save(
        {"module": {"a": torch.zeros(2, dtype=torch.bfloat16), "b": torch.zeros(1)}}, folder / STATES_PATH
    )
    assert "1 tensors are neither float16 nor float32; convert them first: a (bfloat16)" in refused(
        folder, tmp_path
    )
    torch.save({"module": state}, folder / STATES_PATH, _use_new_zipfile_serialization=False)
    assert "no torch file" in refused(folder, tmp_path)


def test_other_byte_order(tmp_path, public):
    wanted = read_public(public)[2]
    data = {f"data/{k}": a.astype(a.dtype.newbyteorder(">")).tobytes() for k, a in enumerate(wanted.values())}
    rewritten(public, {**data, "byteorder": b"big"})
    assert same(read_public(public)[2], wanted)
    rewritten(public, {"byteorder": b"middle"})
    assert "byte order is unknown" in refused(public, tmp_path)


def test_neither_framework_is_needed(tmp_path, public):
    for source, target in (("public", "run"), ("run", "one.safetensors"), ("run", "back")):
        hidden = (*JAX, *TORCH, *TRAINING)
        loaded, _, errors = parivox(hidden, "convert", str(tmp_path / source), str(tmp_path / target))
        assert not loaded & set(hidden) and not errors
    assert same(read_public(tmp_path / "back")[2], read_public(public)[2])


# The command


def test_the_command(tmp_path, public, capsys):
    run, other = tmp_path / "run", tmp_path / "other"
    assert main(["convert", str(public), str(run)]) == 0
    about = "a Parivox run, denoiser, 189 tensors, float32, from the published layout"
    assert capsys.readouterr().out == f"{run}: {about}\n"
    assert main(["convert", str(run), str(other), "--dtype", "float16", "--to", "run"]) == 0
    assert "189 tensors, float16, from a Parivox run" in capsys.readouterr().out
    assert main(["convert", str(public), str(run)]) == 1
    (error,) = capsys.readouterr().err.splitlines()
    assert error.startswith("parivox: ") and "exists already" in error
