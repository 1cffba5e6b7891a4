"""The optimizers of both backends: against torch's own in float64, and what the engine does beside the formula."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import jax_impl.optim
import torch_impl.optim
from parity_tests import optimizer_oracle
from parity_tests.rungs_optimizers import worst
from parity_tests.sides import AdamTrace, Side, UpdatePlan, open_side
from parity_tests.tolerances import bound
from parivox.backend import NamedArrays
from parivox.deepspeed_config import OptimizerConfig

SHAPES = {"conv": (4, 3, 2, 2), "bias": (4,), "matrix": (5, 7)}
UPDATES = 12
RATES = np.linspace(1e-3, 2e-2, UPDATES)
EXACT = bound("optimizer", "float64")

ADAM = {
    "betas": (0.9, 0.999),
    "eps": 1e-8,
    "weight_decay": 0.0,
    "adam_w_mode": True,
    "bias_correction": True,
}
SGD = {"momentum": 0.0, "dampening": 0.0, "weight_decay": 0.0, "nesterov": False}
LION = {"betas": (0.9, 0.99), "weight_decay": 0.0}
LAMB = {
    "betas": (0.9, 0.999),
    "eps": 1e-8,
    "weight_decay": 0.3,
    "bias_correction": True,
    "max_coeff": 10.0,
    "min_coeff": 0.01,
    "eps_inside_sqrt": False,
}
KINDS = {"adam": ADAM, "adamw": {**ADAM, "weight_decay": 0.1}, "sgd": {**SGD, "momentum": 0.9}}
KINDS |= {"lion": {**LION, "weight_decay": 0.1}, "lamb": LAMB}


@pytest.fixture(scope="module", params=["jax", "torch"])
def side(request) -> Side:
    return open_side(request.param, "float64", "cpu")


@pytest.fixture(params=[jax_impl.optim, torch_impl.optim], ids=["jax", "torch"])
def library(request):
    return request.param


def arrays(generator: np.random.Generator, scale: float = 1.0) -> NamedArrays:
    return {name: scale * generator.standard_normal(shape) for name, shape in SHAPES.items()}


def problem() -> tuple[NamedArrays, list[NamedArrays]]:
    generator = np.random.default_rng()
    return arrays(generator), [arrays(generator, 10.0 ** (k % 3 - 2)) for k in range(UPDATES)]


def run(
    side: Side, start: NamedArrays, grads: list[NamedArrays], kind: str, cycle=None, **changes
) -> AdamTrace:
    config = OptimizerConfig(kind, {**KINDS[kind], **changes})
    pairs = None if cycle is None else {"all": np.array([cycle] * len(grads))}
    groups = dict.fromkeys(SHAPES, "all")
    return side.optimize(start, grads, UpdatePlan({"all": config}, groups, 0.0, {"all": RATES}, pairs))


def torch_s_own(
    make: type[torch.optim.Optimizer], start: NamedArrays, grads: list[NamedArrays], **params
) -> NamedArrays:
    weights = {name: torch.nn.Parameter(torch.tensor(array)) for name, array in start.items()}
    optimizer = make(weights.values(), lr=0.0, **params)
    for rate, grad in zip(RATES, grads, strict=True):
        optimizer.param_groups[0]["lr"] = float(rate)
        for name, weight in weights.items():
            weight.grad = torch.tensor(grad[name])
        optimizer.step()
    return {name: weight.detach().numpy() for name, weight in weights.items()}


def distance(found: NamedArrays, wanted: NamedArrays) -> float:
    return worst(AdamTrace(found, {}, {}), AdamTrace(wanted, {}, {}))


@pytest.mark.parametrize(
    "params",
    [
        {},
        {"weight_decay": 0.1},
        {"momentum": 0.9},
        {"momentum": 0.9, "dampening": 0.3, "weight_decay": 0.1},
        {"momentum": 0.8, "weight_decay": 0.1, "nesterov": True},
    ],
)
def test_sgd_is_torch_s(side, params):
    start, grads = problem()
    found = run(side, start, grads, "sgd", **{**SGD, **params}).weights
    assert distance(found, torch_s_own(torch.optim.SGD, start, grads, **params)) < EXACT


@pytest.mark.parametrize("decay", [0.0, 0.1])
@pytest.mark.parametrize("decoupled", [True, False])
def test_adam_is_torch_s(side, decoupled, decay):
    start, grads = problem()
    params = {"betas": (0.8, 0.95), "eps": 1e-6, "weight_decay": decay}
    found = run(side, start, grads, "adam", adam_w_mode=decoupled, **params).weights
    make = torch.optim.AdamW if decoupled else torch.optim.Adam
    assert distance(found, torch_s_own(make, start, grads, **params)) < EXACT


def test_adam_without_bias_correction_moves_less_at_first(side):
    start, grads = problem()
    first = {name: np.abs(grads[0][name]) for name in SHAPES}
    moved = {}
    for correct in (True, False):
        weights = run(side, start, grads[:1], "adam", bias_correction=correct).weights
        moved[correct] = {name: np.abs(weights[name] - start[name]) for name in SHAPES}
    for name, g in first.items():
        # m = 0.1 g and v = 0.001 g^2; corrected both are g and g^2.
        np.testing.assert_allclose(moved[True][name], RATES[0] * g / (g + 1e-8), rtol=1e-9)
        np.testing.assert_allclose(
            moved[False][name], RATES[0] * 0.1 * g / (0.001**0.5 * g + 1e-8), rtol=1e-9
        )


@pytest.mark.parametrize("changes", [{}, {"weight_decay": 0.0}, {"max_coeff": 0.05}, {"min_coeff": 3.0}])
@pytest.mark.parametrize("inside", [True, False])
def test_lamb_is_its_kernel_s(side, changes, inside):
    start, grads = problem()
    base = {**LAMB, "eps_inside_sqrt": inside}
    wanted, plain = (
        optimizer_oracle.lamb(start, grads, np.inf, list(RATES), **params)
        for params in (base | changes, base)
    )
    assert worst(run(side, start, grads, "lamb", **base | changes), wanted) < EXACT
    if changes:
        assert worst(wanted, plain) > 1e-6


def test_lamb_moves_weights_that_are_zero(side):
    start, grads = problem()
    start = {name: np.zeros_like(array) for name, array in start.items()}
    found = run(side, start, grads, "lamb")
    assert worst(found, optimizer_oracle.lamb(start, grads, np.inf, list(RATES), **LAMB)) < EXACT
    assert all(np.isfinite(array).all() and array.any() for array in found.weights.values())


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_lion_is_its_kernel_s(side, decay):
    start, grads = problem()
    params = {**LION, "weight_decay": decay}
    wanted = optimizer_oracle.lion(start, grads, np.inf, list(RATES), **params)
    assert worst(run(side, start, grads, "lion", **params), wanted) < EXACT


def test_lion_counts_zero_as_negative(side):
    start, grads = problem()
    still = [{name: np.zeros_like(g) for name, g in grads[0].items()}]
    found = run(side, start, still, "lion", weight_decay=0.0).weights
    for name, array in start.items():
        np.testing.assert_allclose(found[name], array + RATES[0], rtol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_a_frozen_parameter_keeps_weight_and_moments(side, kind):
    start, grads = problem()
    whole = run(side, start, grads, kind)
    frozen = run(side, start, [{k: g for k, g in grad.items() if k != "matrix"} for grad in grads], kind)
    np.testing.assert_array_equal(frozen.weights["matrix"], start["matrix"])
    for moments in (frozen.exp_avg, frozen.exp_avg_sq):
        assert "matrix" not in moments or not moments["matrix"].any()
    for name in ("conv", "bias"):
        np.testing.assert_array_equal(frozen.weights[name], whole.weights[name])


@pytest.mark.parametrize("kind", KINDS)
def test_a_frozen_parameter_is_not_in_the_norm(side, kind):
    start, grads = problem()
    small = [{k: g for k, g in grad.items() if k != "matrix"} for grad in grads]
    config = {"all": OptimizerConfig(kind, KINDS[kind])}
    plan = UpdatePlan(config, dict.fromkeys(SHAPES, "all"), 0.1, {"all": RATES})
    frozen = side.optimize(start, small, plan).weights
    alone = side.optimize({k: a for k, a in start.items() if k != "matrix"}, small, plan).weights
    for name, array in alone.items():
        np.testing.assert_array_equal(frozen[name], array)


def test_groups_are_optimizers_of_their_own(side):
    start, grads = problem()
    configs = {
        "one": OptimizerConfig("adamw", KINDS["adamw"]),
        "two": OptimizerConfig("sgd", {**SGD, "momentum": 0.5}),
    }
    group_of = {"conv": "one", "bias": "two", "matrix": "one"}
    rates = {"one": RATES, "two": RATES[::-1]}
    found = side.optimize(start, grads, UpdatePlan(configs, group_of, 0.0, rates))
    for group, config in configs.items():
        names = [name for name in SHAPES if group_of[name] == group]
        own = [{name: grad[name] for name in names} for grad in grads]
        plan = UpdatePlan({group: config}, group_of, 0.0, {group: rates[group]})
        alone = side.optimize({name: start[name] for name in names}, own, plan)
        assert worst(found, alone) == 0.0
    assert set(found.exp_avg_sq) == {"conv", "matrix"}


@pytest.mark.parametrize("kind", ["adam", "lion", "lamb"])
def test_betas_of_an_update_replace_the_optimizer_s(side, kind):
    start, grads = problem()
    cycled = run(side, start, grads, kind, cycle=(0.7, 0.9))
    direct = run(side, start, grads, kind, betas=(0.7, 0.9))
    constant = run(side, start, grads, kind)
    assert worst(cycled, direct) < EXACT
    assert worst(cycled, constant) > 1e-6


@pytest.mark.parametrize("kind", ["adamw", "lion", "lamb"])
def test_decay_without_the_weights_is_refused(library, kind):
    config = OptimizerConfig(kind, KINDS[kind])
    ones = {"w": jnp.ones(3) if library is jax_impl.optim else torch.ones(3)}
    optimizer = library.make_optimizer(config)
    with pytest.raises(ValueError, match="params"):
        optimizer.update(ones, optimizer.init(ones), learning_rate=1e-3)


def test_sgd_without_momentum_keeps_nothing(library):
    ones = {"w": jnp.ones(3) if library is jax_impl.optim else torch.ones(3)}
    state = library.sgd().init(ones)
    assert state.exp_avg == {} and state.exp_avg_sq == {}


@pytest.mark.parametrize("kind", KINDS)
def test_an_update_keeps_dtypes_and_is_traced_once(kind):
    optimizer = jax_impl.optim.make_optimizer(OptimizerConfig(kind, KINDS[kind]))
    params = {name: jnp.ones(shape, jnp.float32) for name, shape in SHAPES.items()}
    update = jax.jit(lambda g, s, p, r: optimizer.update(g, s, p, learning_rate=r))
    state = optimizer.init(params)
    for rate in RATES[:3]:
        updates, state = update(params, state, params, jnp.float32(rate))
    assert update._cache_size() == 1
    assert {leaf.dtype for leaf in jax.tree.leaves((updates, state.exp_avg, state.exp_avg_sq))} == {
        jnp.dtype("float32")
    }
    assert int(state.count) == 3
