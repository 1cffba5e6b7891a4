"""Training by a resolved DeepSpeed config on both backends: accumulation, precision, optimizers, restarts."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from parity_tests.rungs_signal import distance
from parity_tests.tolerances import bound
from parivox.backend import TrainArrays, first_arrays, get_backend, moments_of
from parivox.checkpoint import Checkpoint, latest_checkpoint, save_checkpoint
from parivox.deepspeed_config import resolve
from parivox.errors import BackendError, CheckpointError
from parivox.run import meta_of
from parivox.weights import initial_denoiser
from tests.train_folder import HIDDEN, SAMPLES, plain_hparams, unequal

HP = plain_hparams(max_steps=40)
ROWS = 4
ADAMW = {"type": "AdamW", "params": {"lr": 1e-3, "weight_decay": 0.01}}
ONE_CYCLE = {
    "type": "OneCycle",
    "params": {"cycle_min_lr": 1e-4, "cycle_max_lr": 1e-3, "cycle_first_step_size": 4},
}


def config_of(steps=1, **entries):
    written = {"train_batch_size": ROWS, "gradient_accumulation_steps": steps, "optimizer": ADAMW, **entries}
    return resolve(written)


def fresh(config):
    return first_arrays(initial_denoiser(0, HIDDEN), config.optimizer)


def batch(seed, rows=ROWS):
    rng = np.random.default_rng(seed)
    target = rng.standard_normal((rows, SAMPLES)).astype(np.float32)
    return {"noisy": target + 0.5 * rng.standard_normal(target.shape).astype(np.float32), "target": target}


def updates(backend, state, first, last):
    results = []
    for k in range(first, last):
        state, result = backend.step(state, batch(k))
        results.append(result)
    return results


def run(backend, config, count, arrays=None):
    state = backend.create_state(HP, arrays or fresh(config), config)
    return updates(backend, state, 0, count), backend.export_state(state)


def apart(a: TrainArrays, b: TrainArrays) -> float:
    """Largest relative distance of a weight tensor."""
    return max(distance(a.weights[name], b.weights[name]) for name in b.weights)


def together(a: TrainArrays, b: TrainArrays) -> float:
    """Relative distance of all weights as one vector."""
    return distance(*(np.concatenate([x.weights[name].ravel() for name in b.weights]) for x in (a, b)))


@pytest.fixture(scope="module")
def jax():
    return get_backend("jax", device="cpu")


@pytest.fixture(scope="module")
def torch():
    return get_backend("torch", device="cpu")


@pytest.fixture(scope="module", params=["jax", "torch"])
def backend(request):
    return request.getfixturevalue(request.param)


LONG_IN_JAX = [pytest.param("jax", marks=pytest.mark.slow), "torch"]
"""For tests that compile programs which no other test runs."""


@pytest.mark.parametrize("backend", LONG_IN_JAX, indirect=True)
def test_accumulation_is_one_update_of_all_rows(backend):
    # Adam makes a full step of a gradient that is nearly all rounding (some biases are 1e-8 after three updates), so
    # in float32 single tensors say nothing of the order of the sums. Float64 tells a wrong mean from rounding.
    backend = get_backend(backend.name, device="cpu", dtype="float64")
    whole, end = run(backend, config_of(1), 3)
    found, reached = run(backend, config_of(4), 3)  # the ladder has two passes as well, in float32
    limit = bound("training", "float64")
    assert reached.step == 3
    assert apart(reached, end) < limit
    for one, other in zip(found, whole, strict=True):
        assert one.loss == pytest.approx(other.loss, rel=limit)
        assert one.grad_norm == pytest.approx(other.grad_norm, rel=bound("gradients", "float64"))
        assert one.energy_ratio == pytest.approx(other.energy_ratio, rel=limit)
        assert one.learning_rate == other.learning_rate


@pytest.mark.parametrize("backend", LONG_IN_JAX, indirect=True)
def test_one_bad_micro_batch_stops_the_whole_update(backend):
    config = config_of(4)
    state = backend.create_state(HP, fresh(config), config)
    updates(backend, state, 0, 1)
    before = backend.export_state(state)
    bad = batch(1)
    bad["noisy"][2, 100] = np.nan
    state, result = backend.step(state, bad)
    assert not result.finite and not result.skipped
    assert unequal(backend.export_state(state), before) == []
    # The next update is as if nothing had been: no gradient and no count of micro batches is left over.
    after = updates(backend, state, 1, 2)
    assert after == updates(backend, backend.create_state(HP, before, config), 1, 2)


@pytest.mark.parametrize("stage", [0, 1, 2])
@pytest.mark.parametrize("bf16", [False, True])
def test_a_batch_that_is_not_finite_never_reaches_the_weights_through_the_engine(torch, stage, bf16):
    config = config_of(zero_optimization={"stage": stage}, bf16={"enabled": bf16})
    state = torch.create_state(HP, fresh(config), config)
    updates(torch, state, 0, 1)
    before, bad = torch.export_state(state), batch(1)
    bad["noisy"][0, 5] = np.nan
    state, result = torch.step(state, bad)
    assert not result.finite and not result.skipped
    assert unequal(torch.export_state(state), before) == []


def test_rows_that_cannot_be_cut_are_refused(backend):
    config = config_of(4)
    with pytest.raises(BackendError, match="3 rows cannot be cut into 4"):
        backend.step(backend.create_state(HP, fresh(config), config), batch(0, 3))


KINDS = {
    "AdamW under OneCycle": {"scheduler": ONE_CYCLE},
    "no scheduler, no clipping, two passes": {"gradient_clipping": 0.0, "gradient_accumulation_steps": 2},
    "SGD": {"optimizer": {"type": "SGD", "params": {"lr": 0.05}}},
    "SGD, momentum": {
        "optimizer": {"type": "SGD", "params": {"lr": 0.05, "momentum": 0.9, "dampening": 0.3}}
    },
    "bf16": {"bf16": {"enabled": True}},
    "bf16, SGD, momentum": {
        "bf16": {"enabled": True},
        "optimizer": {"type": "SGD", "params": {"lr": 0.05, "momentum": 0.9}},
    },
    "ZeRO 1, two passes": {"zero_optimization": {"stage": 1}, "gradient_accumulation_steps": 2},
    "ZeRO 2, bf16": {"zero_optimization": {"stage": 2}, "bf16": {"enabled": True}},
}


LONG = (
    "no scheduler, no clipping, two passes",
    "SGD",
    "SGD, momentum",
    "bf16",
    "bf16, SGD, momentum",
    "ZeRO 1, two passes",
    "ZeRO 2, bf16",
)
"""Those whose parts the others have as well; each compiles a program of its own."""


@pytest.mark.parametrize(
    "entries",
    [
        pytest.param(entries, id=name, marks=[pytest.mark.slow] if name in LONG else [])
        for name, entries in KINDS.items()
    ],
)
def test_both_backends_agree_and_a_restart_changes_no_bit(jax, torch, entries, tmp_path):
    config, ends = config_of(**entries), {}
    for backend in (jax, torch):
        state = backend.create_state(HP, fresh(config), config)
        updates(backend, state, 0, 2)
        middle = backend.export_state(state)
        results = updates(backend, state, 2, 5)
        ends[backend.name] = results, backend.export_state(state)
        save_checkpoint(tmp_path, Checkpoint(middle, meta_of(HP, 2, 8, 0, config=config)))
        found = latest_checkpoint(tmp_path)
        assert found is not None and unequal(found.arrays, middle) == []
        again = backend.create_state(HP, found.arrays, config)
        assert unequal(backend.export_state(again), middle) == []
        assert updates(backend, again, 2, 5) == results
        assert unequal(backend.export_state(again), ends[backend.name][1]) == []
    kept = moments_of(config.optimizer)
    for _, arrays in ends.values():
        assert (bool(arrays.exp_avg), bool(arrays.exp_avg_sq)) == ("exp_avg" in kept, "exp_avg_sq" in kept)
    half = config.precision == "bf16"
    for one, other in zip(ends["jax"][0], ends["torch"][0], strict=True):
        assert one.loss == pytest.approx(other.loss, rel=2e-2 if half else 1e-4)
        assert one.learning_rate == np.float32(other.learning_rate)
    # In bfloat16 Adam follows the sign even of gradients that are nothing but rounding: no tensor by itself says much.
    assert (together if half else apart)(ends["jax"][1], ends["torch"][1]) < (3e-2 if half else 1e-3)


@pytest.mark.parametrize("backend", LONG_IN_JAX, indirect=True)
def test_bf16_keeps_float32_masters_and_rounds_the_network(backend):
    config = config_of(bf16={"enabled": True})
    results, end = run(backend, config, 2)
    plain, _ = run(backend, config_of(), 2)
    assert {array.dtype for array in end.weights.values()} == {np.dtype("float32")}
    # The masters hold digits that bfloat16 has not.
    assert any((array.view(np.uint32) & 0xFFFF).any() for array in end.weights.values())
    assert results[0].loss != plain[0].loss
    assert results[0].loss == pytest.approx(plain[0].loss, rel=2e-2)


@pytest.mark.parametrize("backend", LONG_IN_JAX, indirect=True)
def test_activation_checkpointing_changes_no_number(backend):
    plain, _ = run(backend, config_of(), 1)
    again, _ = run(backend, config_of(activation_checkpointing={}), 1)
    assert again[0].loss == pytest.approx(plain[0].loss, rel=1e-6)
    assert again[0].grad_norm == pytest.approx(plain[0].grad_norm, rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["jax", "torch"])
def test_activation_checkpointing_changes_no_weight_in_float64(name):
    # A block that is computed again is fused in another way, which float32 shows at 2e-5 after two updates.
    backend = get_backend(name, device="cpu", dtype="float64")
    results, end = run(backend, config_of(), 2)
    found, reached = run(backend, config_of(activation_checkpointing={}), 2)
    assert [r.loss for r in found] == pytest.approx([r.loss for r in results], rel=1e-12)
    assert apart(reached, end) < 1e-10


def test_activation_checkpointing_computes_blocks_again(monkeypatch):
    import jax
    from torch import tensor

    from jax_impl import objective
    from jax_impl.weights import abstract_denoiser
    from torch_impl.model import unet
    from torch_impl.objective import bind
    from torch_impl.weights import from_arrays

    graph, params = abstract_denoiser(HIDDEN)
    x = batch(0)["noisy"]
    for checkpointed in (False, True):
        traced = jax.make_jaxpr(lambda p, x, c=checkpointed: objective.loss_and_output(p, graph, x, x, c))(
            params, x
        )
        assert ("remat" in str(traced)) == checkpointed
    calls = []
    forward = unet.UNetBlock.forward
    monkeypatch.setattr(unet.UNetBlock, "forward", lambda self, *a: calls.append(1) or forward(self, *a))
    weights = from_arrays(initial_denoiser(0, HIDDEN), HIDDEN, tensor(0.0).dtype)
    counts = []
    for checkpointed in (False, True):
        calls.clear()
        bind(HIDDEN, weights, checkpointed)(tensor(x)).sum().backward()
        counts.append(len(calls))
    assert counts[1] == 2 * counts[0] > 0


@pytest.mark.slow
def test_fp16_finds_its_scale_in_jax(jax):
    """Real float16: a scale that is far too large overflows, and goes down until it fits."""
    scale = {"enabled": True, "initial_scale_power": 40, "hysteresis": 1, "loss_scale_window": 3}
    config = config_of(fp16=scale, scheduler=ONE_CYCLE)
    state = jax.create_state(HP, fresh(config), config)
    before = jax.export_state(state)
    results = [jax.step(state, batch(0))[1]]
    assert results[0].skipped and results[0].finite and results[0].loss_scale == 2.0**40
    assert results[0].learning_rate == np.float32(1e-4)
    assert unequal(jax.export_state(state), before) == []
    assert jax.export_state(state).scaler == {"scale": 2.0**39, "good": 0, "hysteresis": 1, "skipped": 1}
    results += updates(jax, state, 1, 45)
    skipped = [r.skipped for r in results]
    end = jax.export_state(state)
    assert end.step == 45 - sum(skipped) and end.skipped == sum(skipped) >= 15
    for one, later in pairwise(results):
        ratio = later.loss_scale / one.loss_scale
        assert ratio == 0.5 if one.skipped else ratio in (1, 2)
    # The schedule counts updates, not batches.
    rates = [r.learning_rate for r in results if not r.skipped]
    again, _ = run(jax, config_of(scheduler=ONE_CYCLE), len(rates))
    assert rates == [r.learning_rate for r in again]
    # And it trains: like float32, but for the scale's own roundings.
    assert results[-1].loss < results[0].loss


@pytest.mark.slow
def test_fp16_goes_on_from_a_checkpoint(jax, tmp_path):
    config = config_of(fp16={"enabled": True, "initial_scale_power": 24, "loss_scale_window": 2})
    state = jax.create_state(HP, fresh(config), config)
    updates(jax, state, 0, 10)
    middle = jax.export_state(state)
    assert 0 < middle.skipped < 10
    save_checkpoint(tmp_path, Checkpoint(middle, meta_of(HP, 10, 40, 0, config=config, updates=middle.step)))
    found = latest_checkpoint(tmp_path)
    assert found is not None and found.arrays.scaler == middle.scaler and found.arrays.step == middle.step
    results = updates(jax, state, 10, 15)
    again = jax.create_state(HP, found.arrays, config)
    assert updates(jax, again, 10, 15) == results
    assert unequal(jax.export_state(again), jax.export_state(state)) == []


@pytest.mark.parametrize(("kind", "said"), [("Lion", "lion"), ("Lamb", "lamb")])
def test_torch_names_an_optimizer_that_has_no_cpu_kernel(torch, kind, said):
    config = config_of(optimizer={"type": kind, "params": {"lr": 1e-3}})
    with pytest.raises(BackendError, match=f"no CPU kernel of the optimizer '{said}'.*--backend jax"):
        torch.create_state(HP, fresh(config), config)


def test_torch_names_a_cpu_without_float16(torch, monkeypatch):
    from torch_impl.engine import import_deepspeed

    accelerator = import_deepspeed("cpu").accelerator.get_accelerator()
    monkeypatch.setattr(type(accelerator), "is_fp16_supported", lambda self: None)
    config = config_of(fp16={"enabled": True})
    with pytest.raises(BackendError, match=r"no float16 on this CPU.*use bf16, a GPU, or --backend jax"):
        torch.create_state(HP, fresh(config), config)


@pytest.mark.slow  # the ladder follows both optimizers, on a few tensors
@pytest.mark.parametrize("kind", ["Lion", "Lamb"])
def test_jax_trains_with_them(jax, kind):
    config = config_of(optimizer={"type": kind, "params": {"lr": 1e-3}})
    results, end = run(jax, config, 2)
    assert all(result.finite for result in results)
    assert bool(end.exp_avg_sq) == (kind == "Lamb")


def test_moments_of_another_optimizer_are_refused(backend):
    adam, sgd = config_of(), config_of(optimizer={"type": "SGD", "params": {"lr": 0.1}})
    with pytest.raises(CheckpointError, match="holds exp_avg, which the optimizer 'sgd' does not keep"):
        backend.create_state(HP, fresh(adam), sgd)
    with pytest.raises(CheckpointError, match="holds no exp_avg, which the optimizer 'adamw' needs"):
        backend.create_state(HP, fresh(sgd), adam)


def test_float64_takes_every_optimizer_and_no_half_precision():
    for name in ("jax", "torch"):
        double = get_backend(name, device="cpu", dtype="float64")
        config = config_of(bf16={"enabled": True})
        with pytest.raises(BackendError, match="float64 does not go with bf16"):
            double.create_state(HP, fresh(config), config)
