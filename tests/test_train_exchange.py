"""Runs of the loop on real backends: batches that are not finite, and runs that change backend on the way."""

from __future__ import annotations

import numpy as np
import pytest

import parivox.evaluation
from parity_tests.tolerances import bound
from parivox.backend import get_backend
from parivox.runlog import read_metrics
from tests.train_folder import (
    curve,
    first_arrays,
    newest,
    plain_hparams,
    random_batch,
    small_hparams,
    train,
    unequal,
)

NAMES = ("jax", "torch")
LEGS = (4, 8, 12)
"""Where a run stops and changes backend."""


@pytest.fixture(scope="module", params=NAMES)
def backend(request):
    return get_backend(request.param, device="cpu")


@pytest.mark.parametrize("value", [np.nan, np.inf], ids=["nan", "inf"])
@pytest.mark.parametrize("name", ["noisy", "target"])
def test_batch_that_is_not_finite_changes_no_bit(backend, session, name, value):
    state, arrays, wanted = session
    bad = random_batch(0)
    bad[name][1, 100] = value
    state, result = backend.step(state, bad)
    assert not result.finite
    assert not np.isfinite(result.loss + result.grad_norm)
    assert result.learning_rate == wanted.learning_rate
    assert unequal(backend.export_state(state), arrays) == []


def test_next_update_is_as_if_nothing_had_been(backend, session):
    state, _, wanted = session
    bad = random_batch(0)
    bad["noisy"][0, 0] = np.nan
    backend.step(state, bad)
    state, result = backend.step(state, random_batch(3))
    assert result == wanted


@pytest.fixture(scope="module")
def session(backend):
    """A state after three updates, its arrays, and what its fourth update gives."""
    hp = plain_hparams()
    state = backend.create_state(hp, first_arrays())
    for k in range(3):
        state, _ = backend.step(state, random_batch(k))
    arrays = backend.export_state(state)
    _, wanted = backend.step(backend.create_state(hp, arrays), random_batch(3))
    return state, arrays, wanted


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A whole run on each backend, and one that begins there and changes backend twice."""
    root = tmp_path_factory.mktemp("exchange")
    hp = small_hparams(root / "data", max_steps=LEGS[-1])
    backends = {name: get_backend(name, device="cpu") for name in NAMES}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parivox.evaluation, "spectrogram_png", lambda panels, rate, path: None)
        for name, other in (NAMES, NAMES[::-1]):
            train(root / f"{name}-whole", backends[name], hp)
            for stop, turn in zip(LEGS, (name, other, name), strict=True):
                train(root / f"{name}-mixed", backends[turn], hp, stop_at=stop)
    return root


@pytest.mark.parametrize("name", NAMES)
def test_changing_backend_twice(runs, name):
    mixed, whole = runs / f"{name}-mixed", runs / f"{name}-whole"
    other = NAMES[1 - NAMES.index(name)]
    assert [line["backend"] for line in read_metrics(mixed, "train")] == [name] * 4 + [other] * 4 + [name] * 4
    assert [step for step, _ in curve(mixed)] == [step for step, _ in curve(whole)] == list(range(1, 13))
    # Up to the change the two are one run.
    assert curve(mixed)[: LEGS[0]] == curve(whole)[: LEGS[0]]
    losses, wanted = (np.array([loss for _, loss in curve(run)]) for run in (mixed, whole))
    limit = bound("checkpoint exchange", "float32")
    np.testing.assert_allclose(losses, wanted, rtol=limit)
    assert distance(newest(mixed).weights, newest(whole).weights) < limit
    assert distance(newest(mixed).exp_avg, newest(whole).exp_avg) < limit
    assert distance(newest(mixed).exp_avg_sq, newest(whole).exp_avg_sq) < limit


def test_training_moves_further_than_the_bound(runs):
    """Else the comparison above would say nothing."""
    moved = distance(newest(runs / "jax-whole").weights, first_arrays().weights)
    assert moved > 10 * bound("checkpoint exchange", "float32")


def test_whole_runs_agree(runs):
    losses = [np.array([loss for _, loss in curve(runs / f"{name}-whole")]) for name in NAMES]
    np.testing.assert_allclose(losses[0], losses[1], rtol=bound("training", "float32"))
    evaluations = [read_metrics(runs / f"{name}-whole", "valid")[-1] for name in NAMES]
    assert evaluations[0]["loss"] == pytest.approx(evaluations[1]["loss"], rel=bound("training", "float32"))


def distance(found, wanted):
    """Relative L2 distance over all tensors."""
    assert found.keys() == wanted.keys()
    error = sum(float(np.sum((found[k].astype(float) - wanted[k]) ** 2)) for k in wanted)
    return np.sqrt(error / sum(float(np.sum(wanted[k].astype(float) ** 2)) for k in wanted))
