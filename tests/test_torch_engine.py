"""Training through the DeepSpeed engine: where it stands after a restart, and what it leaves alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from parity_tests.tolerances import bound
from parivox.backend import get_backend
from parivox.errors import BackendError
from tests.train_folder import first_arrays, plain_hparams, random_batch, unequal
from torch_impl.engine import DeepSpeedPlayer
from torch_impl.train_step import PlainPlayer

HP = plain_hparams(max_steps=40)
SPLIT, END = 2, 6
"""Where a run is taken up again, and its end. Of the third update on, 0.999^t as a float32 product and as a
power are not the same number, so that a restart there shows."""


@pytest.fixture(scope="module")
def backend():
    return get_backend("torch", device="cpu")


def updates(backend, state, first, last):
    """Updates `first` to `last - 1`, each with the batch of its number; the results."""
    results = []
    for k in range(first, last):
        state, result = backend.step(state, random_batch(k))
        results.append(result)
    return results


def restarted(backend, state):
    return backend.create_state(HP, backend.export_state(state))


@pytest.fixture(scope="module")
def whole(backend):
    """States at SPLIT and END of a run that nothing interrupted, and the results between."""
    state = backend.create_state(HP, first_arrays())
    updates(backend, state, 0, SPLIT)
    middle = backend.export_state(state)
    results = updates(backend, state, SPLIT, END)
    return middle, backend.export_state(state), results


def test_trains_through_deepspeed(backend):
    state = backend.create_state(HP, first_arrays())
    assert isinstance(state.model, DeepSpeedPlayer)
    assert type(state.model.engine).__name__ == "DeepSpeedEngine"
    updates(backend, state, 0, 1)
    assert state.model.engine.global_steps == 1
    assert len(unequal(backend.export_state(state), first_arrays())) > 3 * 150


def test_restart_changes_no_bit(backend, whole):
    middle, end, results = whole
    state = backend.create_state(HP, middle)
    assert unequal(backend.export_state(state), middle) == []
    assert updates(backend, state, SPLIT, END) == results
    assert unequal(backend.export_state(state), end) == []


def test_restart_without_the_replay_differs(backend, whole, monkeypatch):
    """Else the replay would be needless, and the tests beside this one blind."""
    middle, end, _ = whole
    monkeypatch.setattr(DeepSpeedPlayer, "_replay_bias_correction", lambda self, count: None)
    state = backend.create_state(HP, middle)
    updates(backend, state, SPLIT, END)
    assert unequal(backend.export_state(state), end) != []


def test_two_states_in_turns_are_as_if_alone(backend, whole):
    """The engine's CPU kernel has one memory for all states of a process."""
    middle, end, _ = whole
    one, other = backend.create_state(HP, middle), backend.create_state(HP, first_arrays())
    for k in range(END):
        updates(backend, other, k, k + 1)
        updates(backend, one, SPLIT + k, min(SPLIT + k + 1, END))
    assert unequal(backend.export_state(one), end) == []
    assert unequal(backend.export_state(other), end) == []


def test_exported_arrays_stay_as_they_were(backend):
    state = backend.create_state(HP, first_arrays())
    updates(backend, state, 0, 2)
    before, again = backend.export_state(state), backend.export_state(state)
    updates(backend, state, 2, 4)
    assert unequal(before, again) == []


def test_given_arrays_are_not_changed(backend):
    arrays = first_arrays()
    updates(backend, backend.create_state(HP, arrays), 0, 2)
    assert unequal(arrays, first_arrays()) == []


def test_evaluation_changes_nothing(backend):
    state = backend.create_state(HP, first_arrays())
    updates(backend, state, 0, 2)
    before = backend.export_state(state)
    held = backend.evaluate(state, random_batch(2))
    loss, output = held.losses["l1"], held.sounds["denoised"]
    assert unequal(backend.export_state(state), before) == []
    assert output.shape == random_batch(2)["noisy"].shape
    assert updates(backend, state, 2, 3)[0].loss == loss


def test_plain_optimizer_follows_the_engine(whole):
    """In float64, where the engine's kernels do not run; the ladder bounds the difference of each update."""
    double = get_backend("torch", device="cpu", dtype="float64")
    state = double.create_state(HP, first_arrays())
    assert isinstance(state.model, PlainPlayer)
    updates(double, state, 0, SPLIT)
    results = updates(double, state, SPLIT, END)
    for found, wanted in zip(results, whole[2], strict=True):
        assert found.learning_rate == np.float32(wanted.learning_rate)
        assert found.loss == pytest.approx(wanted.loss, rel=bound("training", "float32"))
    arrays = double.export_state(state)
    assert {array.dtype for array in arrays.weights.values()} == {np.dtype("float64")}


def test_float64_is_float64_throughout():
    double = get_backend("torch", device="cpu", dtype="float64")
    state = double.create_state(HP, first_arrays())
    updates(double, state, 0, 1)
    tensors = [
        *state.module.parameters(),
        *state.model.adam.exp_avg.values(),
        *state.model.adam.exp_avg_sq.values(),
    ]
    assert {tensor.dtype for tensor in tensors} == {torch.float64}
    assert double.evaluate(state, random_batch(1)).sounds["denoised"].dtype == np.float64


def test_training_without_deepspeed_is_refused_in_one_line(backend, monkeypatch):
    import torch_impl.backend

    monkeypatch.setattr(torch_impl.backend.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(BackendError) as error:
        backend.create_state(HP, first_arrays())
    assert str(error.value) == "training on torch needs DeepSpeed; run: pip install 'parivox[deepspeed]'"
