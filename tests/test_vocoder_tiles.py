"""The vocoder in tiles of time makes the sound that it makes in one piece."""

from __future__ import annotations

import itertools
from unittest.mock import patch

import numpy as np
import pytest

from parity_tests import seeded, tolerances
from parity_tests.rungs_signal import distance
from parity_tests.sides import open_side
from parity_tests.sides_enhancer import enhancer_side
from parivox.backend import BackendName
from parivox.enhancer_tables import FRAME, TAIL, tile_starts, tile_window, vocoder_reach
from parivox.hparams import EnhancerHParams
from parivox.weights_enhancer import enhancer_shapes

HP = EnhancerHParams(irmae_hidden_dim=32, wn_hidden_dim=4, wn_layers=1, unet_hidden_dim=16, univnet_nc=4)
TILE = 5
WINDOW = TILE + 2 * vocoder_reach()
FIRST, SEED = WINDOW - TAIL, 3
"""The largest number of frames that one window holds."""


@pytest.fixture(scope="module")
def weights() -> dict[str, np.ndarray]:
    return seeded.weights(enhancer_shapes(HP), SEED)


def sound(weights, name: BackendName, frames: int, tile: int | None, folded: bool = False) -> np.ndarray:
    channels = HP.num_mels + HP.vocoder_extra_dim
    inputs = {
        "condition": seeded.noise(SEED, "condition", (2, channels, frames)),
        "noise": seeded.noise(SEED, "noise", (2, 128, frames + TAIL)),
    }
    side = enhancer_side(open_side(name, "float64", "cpu"))
    return side.run(weights, HP, "vocoder", inputs, folded=folded, tile=tile)["output"]


@pytest.mark.parametrize("frames", [1, FIRST, FIRST + 1, FIRST + TILE, FIRST + TILE + 1, FIRST + 3 * TILE])
def test_tiles_make_the_same_sound(weights, frames: int) -> None:
    whole, tiled = (sound(weights, "torch", frames, tile) for tile in (None, TILE))
    assert tiled.shape == (2, FRAME * frames)
    assert distance(tiled, whole) <= tolerances.bound("outputs", "float64")


@pytest.mark.slow
def test_tiles_of_the_other_backend_make_the_same_sound(weights) -> None:
    frames = FIRST + TILE + 2
    found, wanted = sound(weights, "jax", frames, TILE), sound(weights, "torch", frames, None)
    assert distance(found, wanted) <= tolerances.bound("outputs", "float64")


@pytest.mark.slow
@pytest.mark.parametrize("frames", [1, FIRST, FIRST + 1, FIRST + 3 * TILE])
@pytest.mark.parametrize("folded", [False, True])
def test_tiles_make_the_same_sound_in_jax(weights, frames: int, folded: bool) -> None:
    whole, tiled = (sound(weights, "jax", frames, tile, folded) for tile in (None, TILE))
    assert distance(tiled, whole) <= tolerances.bound("outputs", "float64")


def test_a_shorter_reach_is_heard(weights) -> None:
    frames, short = FIRST + TILE, vocoder_reach() - 4
    with (
        patch("torch_impl.model.univnet.vocoder_reach", lambda: short),
        patch("parivox.enhancer_tables.vocoder_reach", lambda: short),
    ):
        tiled = sound(weights, "torch", frames, TILE)
    assert distance(tiled, sound(weights, "torch", frames, None)) > tolerances.bound("outputs", "float64")


def test_windows_follow_each_other_without_a_gap() -> None:
    reach = vocoder_reach()
    for frames in range(WINDOW + 1, WINDOW + 40):
        starts = tile_starts(frames, WINDOW)
        assert starts[0] == 0
        assert starts[-1] == frames - WINDOW
        for one, other in itertools.pairwise(starts):
            assert one < other
            assert other + reach <= one + WINDOW - reach


@pytest.mark.parametrize("tile", [1, 7, 256])
def test_windows_are_as_few_and_as_short_as_they_can_be(tile) -> None:
    around = 2 * vocoder_reach()
    for frames in (1, tile + around, tile + around + 1, around + 3 * tile, around + 3 * tile + 1, 3160):
        window = tile_window(frames, tile)
        fresh = [window, *[window - around] * (len(tile_starts(frames, window)) - 1)]
        assert window <= tile + around
        assert sum(fresh) >= frames
        assert len(fresh) == max(1, -(-(frames - around) // tile))
        assert window == frames or sum(fresh) - frames < len(fresh)
