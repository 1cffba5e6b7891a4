"""Sums over whole images: as exact with one thread as with many, and with the gradient of a plain sum."""

from __future__ import annotations

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_impl.model.layers import GroupNorm
from jax_impl.precision import spread, total
from parity_tests.tolerances import bound

ONE_CPU = """
import os
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})  # before XLA counts the processors
from parity_tests.faults import output_probe
from parity_tests.ladder import Ladder, LadderOptions

ladder = Ladder(LadderOptions(backends=("jax",)))
(row,) = output_probe(ladder, ladder.side("jax", "float32"))
print(row.error, row.bound)
"""


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system cannot bind a process to a CPU")
def test_one_thread_loses_no_digits() -> None:
    """The recorded full-size output; with plain sums one thread is twice as far away as is allowed."""
    command = [sys.executable, "-c", ONE_CPU]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=600)
    error, limit = map(float, done.stdout.split())
    assert error <= limit


def test_a_norm_of_several_groups_is_as_exact_as_of_one() -> None:
    x = np.random.default_rng(0).gamma(2.0, size=(2, 424, 32, 64)).astype(np.float32)
    grouped = x.astype(np.float64).reshape(2, 424, 32, 4, 16)
    mean, variance = (f((1, 2, 4), keepdims=True) for f in (grouped.mean, grouped.var))
    wanted = ((grouped - mean) / np.sqrt(variance + 1e-5)).reshape(x.shape)
    norm = GroupNorm(4, 64)
    norm.weight[...] += 1
    # Summed in one chain it is 1.7e-6.
    assert np.linalg.norm(np.asarray(jax.jit(norm.__call__)(x)) - wanted) < bound(
        "sums", "float32"
    ) * np.linalg.norm(wanted)


@pytest.mark.parametrize("axes", [None, (0, 2), (1,)])
def test_total_is_a_sum_that_keeps_its_axes(axes: tuple[int, ...] | None) -> None:
    x = np.random.default_rng(0).standard_normal((3, 4, 5))
    with jax.enable_x64(True):
        found = total(jnp.asarray(x), axes)
    np.testing.assert_allclose(found, x.sum(axes, keepdims=True), rtol=bound("sums", "float64"))


@pytest.mark.parametrize("own", [(4,), (1, 4), (3, 1, 4), (3, 5, 4), (1, 1, 1), ()])
def test_spread_is_broadcasting_with_its_gradient(own: tuple[int, ...]) -> None:
    shape = (3, 5, 4)
    rng = np.random.default_rng(1)
    with jax.enable_x64(True):
        x, weight = jnp.asarray(rng.standard_normal(own)), jnp.asarray(rng.standard_normal(shape))
        ours = jax.value_and_grad(lambda x: (spread(x, shape) * weight).sum())(x)
        plain = jax.value_and_grad(lambda x: (jnp.broadcast_to(x, shape) * weight).sum())(x)
    np.testing.assert_allclose(ours[0], plain[0], rtol=bound("sums", "float64"))
    np.testing.assert_allclose(ours[1], plain[1], rtol=bound("sums", "float64"))
