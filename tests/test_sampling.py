"""The enhancer's noise and options, without a backend."""

from __future__ import annotations

import numpy as np
import pytest

from parivox.enhance import PADDING, clean
from parivox.errors import ConfigError
from parivox.hparams import EnhancerHParams
from parivox.rows import MIN_SAMPLES, Place
from parivox.sampling import Sampler, Sampling, row_noise

LATENT, FRAMES = 3, 20


def noise(seed: int = 0, chunk: int = 0, channels: int = 2, frames: int = FRAMES) -> list[np.ndarray]:
    return list(row_noise(seed, [Place(chunk, channel) for channel in range(channels)], LATENT, frames))


def test_noise_is_normal_and_has_the_shapes_of_prior_and_vocoder():
    prior, vocoder = noise(channels=3, frames=5000)
    assert (prior.shape, vocoder.shape) == ((3, LATENT, 5000), (3, 128, 5010))
    for part in (prior, vocoder):
        assert part.dtype == np.float32
        assert abs(part.mean()) < 0.02 and abs(part.std() - 1) < 0.02


def test_noise_is_a_function_of_seed_chunk_and_channel_alone():
    first = noise()
    assert all(np.array_equal(a, b) for a, b in zip(first, noise(), strict=True))
    others = [noise(seed=1), noise(chunk=1), [part[::-1] for part in first]]
    for other in others:
        assert not any(np.isclose(a, b).any(axis=(1, 2)).any() for a, b in zip(first, other, strict=True))
    # One channel alone has what it has among others, and a longer chunk begins as a shorter one does.
    for a, b in zip(first, noise(channels=1), strict=True):
        assert np.array_equal(a[:1], b)
    for a, b in zip(first, noise(frames=2 * FRAMES), strict=True):
        assert np.array_equal(a, b[..., : a.shape[-1]])


class Recorder:
    """Stands for a backend's `enhance` and keeps what it was asked."""

    def __init__(self) -> None:
        self.asked = []

    def __call__(self, wav: np.ndarray, *inputs: object) -> np.ndarray:
        self.asked.append((wav, *inputs))
        return wav[:, : wav.shape[1] // 420 * 420]


def test_every_chunk_has_its_own_noise_and_whole_frames_lose_nothing():
    engine, hp = (
        Recorder(),
        EnhancerHParams(lcfm_latent_dim=LATENT, cfm_solver_method="rk4", cfm_solver_nfe=12),
    )
    wav = np.stack([np.sin(np.arange(100_000) / k) for k in (20, 30)]).astype(np.float32)
    wav[:, :44_100] = 0  # silence is not enhanced, and what follows is still the second chunk
    sampler = Sampler(engine, hp, Sampling(seed=7, tau=0.25), batch=2)
    out = clean(wav, 44_100, sampler, chunk_seconds=1.0, overlap_seconds=0.0)
    assert np.abs(out - wav).max() < 1e-6
    assert [call[0].shape[1] for call in engine.asked] == [44_100 + PADDING, 100_000 - 88_200 + PADDING]
    for number, (x, prior, vocoder, tau, blend, method, nfe, _) in enumerate(engine.asked, start=1):
        wanted = row_noise(7, [Place(number, 0), Place(number, 1)], LATENT, x.shape[1] // 420)
        assert np.array_equal(prior, wanted[0]) and np.array_equal(vocoder, wanted[1])
        assert tau.tolist() == [0.25, 0.25] and blend.tolist() == [1, 1]
        assert (method, nfe) == ("rk4", 12)


def test_options_come_before_those_of_the_run_and_no_share_skips_the_denoiser():
    engine = Recorder()
    asked = Sampling(nfe=3, solver="euler", lambd=0.0)
    lengths = np.array([MIN_SAMPLES])
    Sampler(engine, EnhancerHParams(), asked)(np.ones((1, 1260), np.float32), lengths, [Place(0, 0)])
    ((*_, blend, method, nfe, ends),) = engine.asked
    assert (blend, method, nfe) == (None, "euler", 3) and ends is lengths


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"nfe": 0}, "--nfe is 0; use 1 to 128"),
        ({"nfe": 129}, "--nfe is 129"),
        ({"lambd": -0.1}, "--lambd is -0.1; it is a share, use 0 to 1"),
        ({"lambd": float("nan")}, "--lambd is nan"),
        ({"tau": 1.01}, "--tau is 1.01"),
        ({"seed": -1}, "--seed is -1; use 0 or more"),
    ],
)
def test_options_out_of_range_are_named(options, said):
    with pytest.raises(ConfigError) as caught:
        Sampling(**options)
    assert said in str(caught.value)


def test_the_ends_of_the_ranges_are_in_them():
    for options in ({"nfe": 1, "lambd": 0.0, "tau": 0.0}, {"nfe": 128, "lambd": 1.0, "tau": 1.0}):
        Sampling(**options)
