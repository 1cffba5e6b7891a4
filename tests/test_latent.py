"""The advice at the end of the first stage."""

import numpy as np
import pytest

from parivox.latent import VARIANCE, latent_advice, suggested_z_scale, two_digits
from parivox.weights_enhancer import STATISTICS


def test_the_suggestion_gives_the_latent_unit_variance():
    latent = np.random.default_rng(0).standard_normal(10_000) * 0.17
    weights = {VARIANCE: np.array(latent.var(), np.float32)}
    scale = suggested_z_scale(weights)
    assert scale is not None and (latent * scale).var() == pytest.approx(1, rel=1e-6)
    assert f"--lcfm-z-scale {two_digits(scale)} gives" in latent_advice(weights)
    assert VARIANCE in STATISTICS


@pytest.mark.parametrize("variance", [np.nan, 0.0])
def test_nothing_is_suggested_where_nothing_was_learned(variance):
    weights = {VARIANCE: np.array(variance, np.float32)}
    assert suggested_z_scale(weights) is None
    assert "train on" in latent_advice(weights)


def test_the_suggestion_is_a_number_as_people_write_it():
    written = {0.1234: "0.12", 1.0: "1", 8.46: "8.5", 9.96: "10", 123.4: "120", 98_765.0: "99000"}
    assert {number: two_digits(number) for number in written} == written
    for std, scale in ((0.008, "130"), (0.12, "8.3"), (1.0, "1")):
        weights = {VARIANCE: np.array(std**2, np.float32)}
        assert f"--lcfm-z-scale {scale} gives" in latent_advice(weights)
