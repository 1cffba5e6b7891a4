"""The compiled step: traced once, its state donated, its dtypes kept."""

from __future__ import annotations

import chex
import jax
import numpy as np
import pytest

import jax_impl.backend
import jax_impl.train_step
from parity_tests.tolerances import bound
from parivox.backend import TrainArrays, get_backend
from tests.train_folder import GROUPS, SAMPLES, first_arrays, plain_hparams, random_batch, unequal

HP = plain_hparams()


@pytest.fixture(scope="module")
def backend():
    return get_backend("jax", device="cpu")


def leaves(state):
    return jax.tree.leaves(state.state)


def test_step_is_traced_once(backend, monkeypatch):
    # A program of its own, which no other test has traced or will meet.
    monkeypatch.setattr(jax_impl.backend, "_step_program", jax_impl.train_step.make_step)
    once = chex.assert_max_traces(jax_impl.objective.loss_and_output, n=1)
    monkeypatch.setattr(jax_impl.objective, "loss_and_output", once)
    state = backend.create_state(HP, first_arrays())
    for k in range(4):
        state, result = backend.step(state, random_batch(k))
        assert result.finite
    assert state.step._cache_size() == 1
    # Another length is another program: shows that the count above is a count.
    with pytest.raises(AssertionError, match="traced"):
        backend.step(state, random_batch(4, SAMPLES + 420))


def test_restored_state_runs_the_same_program(backend):
    state, _ = backend.step(backend.create_state(HP, first_arrays()), random_batch(0))
    arrays, programs = backend.export_state(state), state.step._cache_size()
    restored, _ = backend.step(backend.create_state(HP, arrays), random_batch(1))
    assert restored.step is state.step
    assert restored.step._cache_size() == programs


def test_state_is_donated(backend):
    state = backend.create_state(HP, first_arrays())
    before = leaves(state)
    state, _ = backend.step(state, random_batch(0))
    assert all(leaf.is_deleted() for leaf in before)
    assert not any(leaf.is_deleted() for leaf in leaves(state))


def aligned(array):
    """A copy that begins at a multiple of 64 bytes, as JAX wants memory that it borrows instead of copying."""
    room = np.empty(array.nbytes + 64, np.uint8)
    begin = -room.ctypes.data % 64
    copy = room[begin : begin + array.nbytes].view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy


def test_given_and_exported_arrays_are_not_shared(backend):
    plain = first_arrays()
    groups = ({k: aligned(v) for k, v in getattr(plain, group).items()} for group in GROUPS)
    arrays = TrainArrays(*groups, 0)
    state = backend.create_state(HP, arrays)
    for array in arrays.weights.values():
        array += 1
    assert unequal(backend.export_state(state), plain) == []
    kept = {name: array.copy() for name, array in arrays.weights.items()}
    state, _ = backend.step(state, random_batch(0))
    assert all((arrays.weights[name] == kept[name]).all() for name in kept)
    first = backend.export_state(state)
    copies = {name: array.copy() for name, array in first.weights.items()}
    backend.step(state, random_batch(1))
    for name, array in first.weights.items():
        np.testing.assert_array_equal(array, copies[name])


def test_shapes_and_dtypes_stay(backend):
    state = backend.create_state(HP, first_arrays())
    before = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), state.state)
    state, _ = backend.step(state, random_batch(0))
    chex.assert_trees_all_equal_shapes_and_dtypes(before, state.state)
    chex.assert_tree_all_finite(state.state)
    assert {leaf.dtype for leaf in leaves(state)} == {np.dtype("float32"), np.dtype("int32")}


def test_restart_changes_no_bit(backend):
    def updates(state, first, last):
        return [backend.step(state, random_batch(k))[1] for k in range(first, last)]

    state = backend.create_state(HP, first_arrays())
    updates(state, 0, 5)
    middle = backend.export_state(state)
    results = updates(state, 5, 10)
    end = backend.export_state(state)
    state = backend.create_state(HP, middle)
    assert updates(state, 5, 10) == results
    assert unequal(backend.export_state(state), end) == []
    assert end.step == 10


def test_evaluation_changes_nothing(backend):
    state = backend.create_state(HP, first_arrays())
    before = backend.export_state(state)
    held = backend.evaluate(state, random_batch(0))
    loss, output = held.losses["l1"], held.sounds["denoised"]
    assert unequal(backend.export_state(state), before) == []
    assert output.shape == random_batch(0)["noisy"].shape
    assert backend.step(state, random_batch(0))[1].loss == pytest.approx(loss, rel=1e-6)


@pytest.mark.slow
def test_float64_beside_float32(backend):
    """Both in one process, in turns; the float32 one computes what it does alone."""
    alone = backend.create_state(HP, first_arrays())
    wanted = [backend.step(alone, random_batch(k))[1] for k in range(3)]
    end = backend.export_state(alone)

    double = get_backend("jax", device="cpu", dtype="float64")
    wide, single = double.create_state(HP, first_arrays()), backend.create_state(HP, first_arrays())
    for k in range(3):
        wide, of_wide = double.step(wide, random_batch(k))
        single, of_single = backend.step(single, random_batch(k))
        assert of_single == wanted[k]
        assert of_wide.loss != of_single.loss
        assert of_wide.loss == pytest.approx(of_single.loss, rel=bound("training", "float32"))
    assert unequal(backend.export_state(single), end) == []
    assert {leaf.dtype for leaf in leaves(wide)} == {np.dtype("float64"), np.dtype("int32")}
    assert wide.state.adam.count.dtype == np.int32
    arrays = double.export_state(wide)
    for group in (arrays.weights, arrays.exp_avg, arrays.exp_avg_sq):
        assert {array.dtype for array in group.values()} == {np.dtype("float64")}
    assert any((array != array.astype(np.float32)).any() for array in arrays.weights.values())
    assert double.evaluate(wide, random_batch(3)).sounds["denoised"].dtype == np.float64
    assert not jax.config.jax_enable_x64
