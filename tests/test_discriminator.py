"""The enhancer's discriminator, STFT losses and weight norm on small inputs; the ladder has the recorded ones."""

from __future__ import annotations

import importlib
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

from jax_impl.model import discriminator as jax_discriminator
from jax_impl.model import mrstft as jax_mrstft
from jax_impl.model.weight_norm import weight_norm as jax_weight_norm
from parity_tests import seeded
from parity_tests.ladder import BUNDLED_REFERENCE
from parity_tests.side_jax import module_of
from parity_tests.sides import Side, open_side
from parity_tests.tolerances import bound
from parivox.features import hann_window, padded_window
from parivox.hparams import HParams
from parivox.weights_discriminator import DIRECTION, GAIN, discriminator_specs, initial_discriminator
from torch_impl.model import discriminator as torch_discriminator
from torch_impl.model import mrstft as torch_mrstft
from torch_impl.model.weight_norm import weight_norm as torch_weight_norm

CFGS = HParams().stft_cfgs
EXACT = bound("outputs", "float64")


@pytest.fixture(params=["jax", "torch"])
def side(request) -> Side:
    return open_side(request.param, "float64", "cpu")


def close(found, wanted) -> bool:
    return float(np.linalg.norm(found - wanted)) <= EXACT * float(np.linalg.norm(wanted))


def tensors_of(module: nnx.Module | torch.nn.Module) -> dict[str, tuple[int, ...]]:
    if isinstance(module, torch.nn.Module):
        return {name: tuple(leaf.shape) for name, leaf in module.named_parameters()}
    flat = nnx.to_flat_state(nnx.split(module, nnx.Param)[1])
    return {".".join(map(str, path)): leaf.get_value().shape for path, leaf in flat}


def test_names_and_shapes_are_the_published_ones():
    manifest = json.loads((BUNDLED_REFERENCE / "discriminator.manifest.json").read_text())
    published = {name: tuple(shape) for name, shape in manifest.items()}
    assert {name: spec.shape for name, spec in discriminator_specs().items()} == published
    with torch.device("meta"):
        assert tensors_of(torch_discriminator.Discriminator(CFGS)) == published
    assert tensors_of(nnx.eval_shape(lambda: jax_discriminator.Discriminator(CFGS))) == published


def test_initial_weights_are_their_directions():
    weights = initial_discriminator(3)
    specs = discriminator_specs()
    assert weights.keys() == specs.keys()
    for name, spec in specs.items():
        assert (weights[name].shape, weights[name].dtype) == (spec.shape, np.float32)
        if name.endswith(DIRECTION):
            direction, gain = weights[name], weights[name.replace(DIRECTION, GAIN)]
            norms = np.linalg.norm(direction.reshape(len(direction), -1).astype(np.float64), axis=1)
            np.testing.assert_array_equal(gain.ravel(), norms.astype(np.float32))
            limit = 1 / np.sqrt(np.prod(spec.shape[1:]))
            assert 0.9 * limit < np.abs(direction).max() <= np.float32(limit)
    assert any((initial_discriminator(4)[name] != weights[name]).any() for name in weights)


@pytest.mark.parametrize("shape", [(4, 3), (5, 2, 3), (6, 2, 3, 1)])
def test_weight_norm_is_over_all_axes_but_the_first(shape):
    rng = np.random.default_rng(0)
    direction = rng.standard_normal(shape)
    gain = rng.uniform(0.5, 2, (shape[0],) + (1,) * (len(shape) - 1))
    norms = np.linalg.norm(direction.reshape(shape[0], -1), axis=1).reshape(gain.shape)
    assert close(
        torch_weight_norm(torch.tensor(gain), torch.tensor(direction)).numpy(), gain * direction / norms
    )
    with jax.enable_x64(True):
        assert close(
            np.asarray(jax_weight_norm(jnp.asarray(gain), jnp.asarray(direction))), gain * direction / norms
        )


def test_a_window_stands_in_the_middle():
    np.testing.assert_array_equal(padded_window(np.ones(3), 8), [0, 0, 1, 1, 1, 0, 0, 0])
    np.testing.assert_array_equal(padded_window(hann_window(8), 8), hann_window(8))


def test_stft_losses_by_the_formula(side):
    x, y = seeded.signal(1, 2, 3000), seeded.signal(2, 2, 3000)
    convergence, distance = [], []
    for cfg in CFGS:
        half, window = cfg["n_fft"] // 2, np.zeros(cfg["n_fft"])
        left = half - cfg["win_length"] // 2
        window[left : left + cfg["win_length"]] = hann_window(cfg["win_length"])
        spectra = []
        for wav in (x, y):
            padded = np.pad(wav.astype(np.float64), ((0, 0), (half, half)), mode="reflect")
            frames = np.lib.stride_tricks.sliding_window_view(padded, len(window), axis=1)
            spectra.append(np.abs(np.fft.rfft(frames[:, :: cfg["hop_length"]] * window)))
        one, two = spectra
        convergence.append(np.linalg.norm(one - two) / np.linalg.norm(two))
        distance.append(np.abs(np.log1p(one) - np.log1p(two)).mean())
    assert close(side.stft_losses(x, y), np.array([np.mean(convergence), np.mean(distance)]))


def gradient_of_stft_losses(name: str, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    if name == "jax":
        loss = jax.grad(lambda x, y: sum(jax_mrstft.mrstft_loss(x, y, CFGS), jnp.zeros(())))
        return np.asarray(jax.jit(loss)(jnp.asarray(x), jnp.asarray(y)))
    sound = torch.tensor(x, requires_grad=True)
    sum(torch_mrstft.mrstft_loss(sound, torch.tensor(y), CFGS)).backward()
    return sound.grad.numpy()


@pytest.mark.parametrize("name", ["jax", "torch"])
def test_gradients_at_silence_and_at_the_target(name):
    y = seeded.signal(2, 2, 3000)
    silent = gradient_of_stft_losses(name, np.zeros_like(y), y)
    assert (silent == 0).all()  # every magnitude is 0
    there = gradient_of_stft_losses(name, y, y)
    assert (there == 0).all()
    half = y.copy()
    half[:, :1500] = 0
    found = gradient_of_stft_losses(name, half, y)
    assert np.isfinite(found).all() and found.any()


def test_float32_gradients_of_both_backends():
    x, y = seeded.signal(1, 2, 3000), seeded.signal(2, 2, 3000)
    one, two = (gradient_of_stft_losses(name, x, y) for name in ("jax", "torch"))
    assert np.linalg.norm(one - two) <= bound("gradients", "float32") * np.linalg.norm(two)


def hinge(fake, real, name):
    module = {"jax": jax_discriminator, "torch": torch_discriminator}[name]
    make = {"jax": jnp.asarray, "torch": torch.tensor}[name]
    scores = [{"mpd": [make(a) for a in parts]} for parts in (fake, real)]
    losses = module.discriminator_losses(*scores) | module.generator_losses(scores[0])
    return {key: float(value) for key, value in losses.items()}


@pytest.mark.parametrize("name", ["jax", "torch"])
def test_hinge_losses_by_hand(name):
    fake = [np.float32([[-2, 0, 1]]), np.float32([[1]])]  # 1 + s: 0, 1, 2 -> 1; 2
    real = [np.float32([[-2, 0, 1]]), np.float32([[4]])]  # 1 - s: 3, 1, 0 -> 4/3; 0
    losses = hinge(fake, real, name)
    assert losses["d_mpd_fake"] == 1.5
    assert losses["d_mpd_real"] == float(np.float32(np.float32(4 / 3) / 2))
    assert losses["g_mpd"] == -float(np.float32((np.float32(-1 / 3) + np.float32(1)) / 2))


def scores_of(name: str, x: np.ndarray) -> dict[str, list[np.ndarray]]:
    weights = initial_discriminator(0)
    if name == "torch":
        module = torch_discriminator.Discriminator(CFGS)
        module.load_state_dict({key: torch.tensor(array) for key, array in weights.items()})
        with torch.no_grad():
            scores = module(torch.tensor(x))
        return {key: [part.numpy() for part in parts] for key, parts in scores.items()}
    graph = nnx.split(nnx.eval_shape(lambda: jax_discriminator.Discriminator(CFGS)), nnx.Param)[0]
    params = {key: jnp.asarray(array) for key, array in weights.items()}
    scores = jax.jit(lambda params, x: module_of(graph, params)(x))(params, jnp.asarray(x))
    return {key: [np.asarray(part) for part in parts] for key, parts in scores.items()}


def test_scores_of_both_backends_and_that_rows_are_alone():
    x = seeded.signal(1, 2, 2300)
    jax_scores, torch_scores = (scores_of(name, x) for name in ("jax", "torch"))
    alone = scores_of("torch", x[1:])
    for group in ("mpd", "mrd"):
        for one, two, three in zip(jax_scores[group], torch_scores[group], alone[group], strict=True):
            assert one.shape == two.shape
            assert np.linalg.norm(one - two) <= bound("outputs", "float32") * np.linalg.norm(two)
            assert np.linalg.norm(two[1:] - three) <= bound("outputs", "float32") * np.linalg.norm(three)
    assert [part.shape[:2] for part in torch_scores["mpd"]] == [(2, p) for p in (2, 3, 7, 13, 17)]


@pytest.mark.parametrize("name", ["jax", "torch"])
def test_too_short_signals_are_refused(name):
    module = importlib.import_module(f"{name}_impl.model.discriminator")
    losses = importlib.import_module(f"{name}_impl.model.mrstft")
    make = {"jax": jnp.asarray, "torch": torch.tensor}[name]
    short = make(np.zeros((1, 1000), np.float32))
    with pytest.raises(ValueError, match="needs 2048 samples, got 1000"):
        module.SpectrogramDiscriminator(CFGS[2])(short)
    with pytest.raises(ValueError, match="more than 1024 samples, got 1000"):
        losses.mrstft_loss(short, short, CFGS)
    with pytest.raises(ValueError, match="too few to reflect"):
        module.PeriodDiscriminator(17)(short[:, :5])
