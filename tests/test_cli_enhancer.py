"""`parivox enhance` with an enhancer, on the real backends and with a narrow model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from parity_tests.tolerances import bound
from parivox.audio import probe, read_audio, write_audio
from parivox.backend import BACKENDS, installed
from parivox.cli import main
from parivox.convert import convert
from parivox.hparams import DenoiserHParams
from parivox.weights import initial_denoiser
from tests.test_cli_enhance import one_line
from tests.test_isolation import JAX, TORCH, TRAINING, parivox
from tests.tiny_model import NARROW, SECONDS, enhancer_run, enhancer_weights, recording, tiny_run

HERE = [name for name in BACKENDS if installed(name)]
OTHER = {"jax": TORCH, "torch": JAX}
ON_TORCH = ("--backend", "torch")
SKIP = ("--lambd", "0")
"""Without the denoiser JAX compiles in half the time."""

needs_torch = pytest.mark.skipif("torch" not in HERE, reason="torch is quick, and not installed")


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    return enhancer_run(tmp_path_factory.mktemp("model") / "run", step=12)


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    return recording(tmp_path_factory.mktemp("in") / "in.wav", channels=2, subtype="FLOAT")


@pytest.fixture(scope="module")
def alone(run, source, tmp_path_factory) -> dict[str, tuple[Path, set[str], set[str]]]:
    """Backend -> its output, and the packages it loaded and asked for in a process without the other backend."""
    found = {}
    for backend in HERE:
        target = tmp_path_factory.mktemp(backend) / "out.wav"
        hidden = (*OTHER[backend], *TRAINING)
        words = ("enhance", str(source), str(target), "--run", str(run), "--backend", backend)
        loaded, asked, errors = parivox(hidden, *words, *SKIP)
        assert errors == ""
        found[backend] = target, loaded, {name.partition(".")[0] for name in asked}
    return found


def enhance(source: Path, target: Path, run: Path, *more: str) -> int:
    return main(["enhance", str(source), str(target), "--run", str(run), *more])


def sound(source: Path, target: Path, run: Path, *more: str) -> np.ndarray:
    assert enhance(source, target, run, *more, *ON_TORCH) == 0
    return read_audio(target)[0]


def distance(one: np.ndarray, two: np.ndarray) -> float:
    return float(np.linalg.norm(one - two) / np.linalg.norm(two))


@pytest.mark.parametrize("backend", HERE)
def test_one_backend_enhances_and_asks_for_nothing_of_the_other(alone, source, backend):
    target, loaded, asked = alone[backend]
    assert probe(target) == probe(source)
    assert f"{backend}_impl" in loaded and not loaded & {*OTHER[backend], *TRAINING}
    assert not asked & {*OTHER[backend]} - {"deepspeed"}
    before, after = read_audio(source)[0], read_audio(target)[0]
    assert all(distance(a, b) > 0.2 for a, b in zip(after, before, strict=True))
    # A channel comes back at its own peak, and the net's sound lies within 1.
    assert (np.abs(after).max(axis=1) <= np.abs(before).max(axis=1)).all()
    assert np.abs(after).max() > 0.05


@pytest.mark.skipif(len(HERE) < 2, reason="compares two backends")
def test_both_backends_make_the_same_sound(alone):
    jax, torch = (read_audio(alone[name][0])[0] for name in BACKENDS)
    assert distance(jax, torch) <= bound("enhanced narrow", "float32")


@needs_torch
def test_a_seed_is_a_sound(alone, run, source, tmp_path):
    one, two = (sound(source, tmp_path / f"{k}.wav", run, "--seed", k, *SKIP) for k in "01")
    assert np.array_equal(one, read_audio(alone["torch"][0])[0])
    assert distance(two, one) > 0.01
    # Channels that are alike differ in their noise alone, and one alone sounds as it does beside another.
    wav = read_audio(source)[0][:1]
    for name, rows in (("mono", wav), ("twice", np.concatenate([wav, wav]))):
        write_audio(tmp_path / f"{name}.wav", rows, 44_100, subtype="FLOAT")
    mono, twice = (
        sound(tmp_path / f"{n}.wav", tmp_path / f"{n}-out.wav", run, *SKIP) for n in ("mono", "twice")
    )
    assert distance(twice[:1], mono) <= bound("enhanced narrow", "float32") < distance(twice[1:], mono)


@needs_torch
def test_every_option_is_heard(run, source, tmp_path):
    options = [
        (),
        ("--nfe", "16"),
        ("--solver", "euler"),
        SKIP,
        ("--tau", "1"),
        ("--chunk-seconds", "0.2", "--overlap-seconds", "0.05"),
    ]
    sounds = [sound(source, tmp_path / f"{k}.wav", run, *words) for k, words in enumerate(options)]
    for k, one in enumerate(sounds):
        assert one.shape == (2, round(SECONDS * 44_100)) and np.isfinite(one).all()
        assert all(distance(other, one) > bound("enhanced narrow", "float32") for other in sounds[:k]), k


@needs_torch
def test_a_model_may_come_in_any_form(alone, run, source, tmp_path, capsys):
    convert(run, tmp_path / "public")
    convert(run, tmp_path / "one.safetensors")
    (checkpoint,) = (run / "checkpoints").iterdir()
    forms = {
        checkpoint: "(step 12)",
        tmp_path / "public": "(the published layout)",
        tmp_path / "one.safetensors": "(one safetensors file)",
    }
    for place, about in forms.items():
        assert np.array_equal(
            sound(source, tmp_path / "out.wav", place, *SKIP), read_audio(alone["torch"][0])[0]
        )
        assert f"cleaning with {place} {about}, torch on cpu" in capsys.readouterr().out


@needs_torch
def test_denoise_only_takes_the_enhancers_own_denoiser(run, source, tmp_path, monkeypatch):
    own = {n.removeprefix("denoiser."): a for n, a in enhancer_weights().items() if n.startswith("denoiser.")}
    hp = DenoiserHParams(unet_hidden_dim=NARROW.unet_hidden_dim)
    assert own.keys() == initial_denoiser(0, hp.unet_hidden_dim).keys()
    monkeypatch.setattr("tests.tiny_model.initial_denoiser", lambda *_: own)
    denoiser = tiny_run(tmp_path / "denoiser", hp)
    one, two = (
        sound(source, tmp_path / f"{k}.wav", place, "--denoise-only")
        for k, place in enumerate((run, denoiser))
    )
    assert np.array_equal(one, two)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--nfe", "0"), "--nfe is 0; use 1 to 128"),
        (("--nfe", "200"), "--nfe is 200; use 1 to 128"),
        (("--lambd", "1.5"), "--lambd is 1.5; it is a share, use 0 to 1"),
        (("--tau", "-1"), "--tau is -1.0; it is a share, use 0 to 1"),
        (("--seed", "-3"), "--seed is -3; use 0 or more"),
        (("--denoise-only", "--nfe", "8"), "--nfe is of the enhancer; leave out that or --denoise-only"),
    ],
)
def test_options_out_of_range_are_one_line(run, source, tmp_path, words, said, capsys):
    assert enhance(source, tmp_path / "out.wav", run, *words) == 1
    assert said in one_line(capsys)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("words", [(), ("--denoise-only",)])
def test_a_first_stage_is_refused_with_the_remedy(source, tmp_path, words, capsys):
    first = enhancer_run(tmp_path / "first", NARROW.replace(lcfm_training_mode="ae"))
    assert enhance(source, tmp_path / "out.wav", first, *words) == 1
    line = one_line(capsys)
    assert str(first) in line and f"train enhancer-stage2 NEW_RUN --enhancer-stage1-run-dir {first}" in line
    assert not (tmp_path / "out.wav").exists()


def test_a_denoiser_does_not_enhance(source, tmp_path, capsys):
    denoiser = tiny_run(tmp_path / "denoiser")
    assert enhance(source, tmp_path / "out.wav", denoiser) == 1
    assert f"{denoiser}: holds a denoiser; use --denoise-only, or give an enhancer" in one_line(capsys)
