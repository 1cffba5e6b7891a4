"""Learning rates and betas by hand, and against DeepSpeed's own schedulers."""

from __future__ import annotations

import logging
import math
from types import SimpleNamespace

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from jax_impl.schedule import beta_schedule as jax_betas
from jax_impl.schedule import update_schedule as jax_schedule
from parity_tests import deepspeed_oracle, rungs_schedule
from parity_tests.ladder import Ladder, LadderOptions
from parity_tests.result import Row
from parivox.errors import ConfigError
from parivox.schedule import (
    from_deepspeed,
    lr_range_test,
    one_cycle,
    rates_from_deepspeed,
    update_rates,
    warmup_cosine_lr,
    warmup_decay_lr,
    warmup_lr,
)
from tests.train_folder import plain_hparams
from torch_impl.schedule import beta_schedule as torch_betas
from torch_impl.schedule import update_schedule as torch_schedule

CASES = [
    pytest.param(total, warmup, kind, id=f"{total}-{warmup}-{kind}")
    for total, warmup in [(300, 40), (300, 1), (300, 2), (40, 300), (300, 300), (300, 299)]
    for kind in ("linear", "log")
]


def engine_rates(params, count):
    """What DeepSpeed's scheduler says at iterations 0 to count - 1, and the rate before its first step."""
    import torch
    from deepspeed.runtime.lr_schedules import WarmupDecayLR

    optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    scheduler = WarmupDecayLR(optimizer, **params)
    first, rates = optimizer.param_groups[0]["lr"], []
    for _ in range(count):
        scheduler.step()
        rates.append(optimizer.param_groups[0]["lr"])
    return first, np.array(rates)


def params_of(total, warmup, kind):
    ends = {"warmup_min_lr": 1e-5, "warmup_max_lr": 3e-4}
    return {**ends, "total_num_steps": total, "warmup_num_steps": warmup, "warmup_type": kind}


@pytest.mark.parametrize(("total", "warmup", "kind"), CASES)
def test_equals_deepspeed_over_the_whole_length_and_past_the_end(total, warmup, kind):
    params = params_of(total, warmup, kind)
    count = max(total, warmup) + 100
    first, wanted = engine_rates(params, count)
    found = warmup_decay_lr(**params)(np.arange(count))
    assert found.dtype == np.float64
    np.testing.assert_array_equal(found.astype(np.float32), wanted.astype(np.float32))
    assert first == 1e-5
    if total > warmup:
        assert (found[total:] == 1e-5).all()
        assert found.max() == pytest.approx(3e-4)
        assert found.argmax() in (max(2, warmup) - 1, max(2, warmup))  # log(i + 1) is at 1 a step earlier


@pytest.mark.parametrize("update_schedule", [jax_schedule, torch_schedule])
def test_update_k_uses_the_iteration_before(update_schedule):
    """The engine steps the optimizer first, and begins at the minimum: the first two updates have one rate."""
    config = plain_hparams(max_steps=300, warmup_steps=40).deepspeed_config
    params = config["scheduler"]["params"]
    first, rates = engine_rates(params, 400)
    wanted = np.array([first, *rates[:-1]], np.float32)
    schedule = update_schedule(config)
    found = np.asarray(schedule(np.arange(400)))
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, wanted)
    np.testing.assert_array_equal(
        [float(schedule(k)) for k in (0, 1, 2, 41, 399)], wanted[[0, 1, 2, 41, 399]]
    )
    assert found[0] == found[1] < found[2]
    np.testing.assert_array_equal(found[1:], warmup_decay_lr(**params)(np.arange(399)).astype(np.float32))


def test_warmup_by_hand():
    log = warmup_decay_lr(total_num_steps=100, warmup_max_lr=1.0, warmup_num_steps=10, warmup_type="log")
    linear = warmup_decay_lr(
        total_num_steps=100, warmup_max_lr=1.0, warmup_num_steps=10, warmup_type="linear"
    )
    assert log(np.array(4)) == pytest.approx(math.log(5) / math.log(10))
    assert linear(np.array(4)) == pytest.approx(0.4)
    assert linear(np.array([[55, 100], [101, 10**9]])) == pytest.approx(np.array([[0.5, 0], [0, 0]]))


@pytest.mark.parametrize("update", [0, 1, 10**6])
def test_plain_numbers(update):
    assert from_deepspeed(plain_hparams().deepspeed_config)(np.asarray(update)) == pytest.approx(1e-5)


def config(kind=None, params=None, optimizer="Adam", **own):
    made = {"optimizer": {"type": optimizer, "params": own}}
    return made if kind is None else {**made, "scheduler": {"type": kind, "params": params or {}}}


def test_every_scheduler_equals_the_class_and_the_engine():
    rows = list(rungs_schedule.schedulers(Ladder(LadderOptions(device="cpu"))))
    assert all(isinstance(row, Row) for row in rows)
    for kind in ("WarmupLR", "WarmupDecayLR", "WarmupCosineLR", "OneCycle", "LRRangeTest"):
        for against in ("DeepSpeed's scheduler", "DeepSpeed's engine"):
            assert any(row.case.startswith(kind) and row.against == against for row in rows)
    assert [row for row in rows if not row.passed] == []


lengths = st.one_of(st.integers(1, 60), st.floats(1, 60))
counts = st.one_of(st.integers(-1, 80), st.floats(0, 9))
rates = st.floats(0, 1)
CYCLES = st.fixed_dictionaries(
    {"cycle_min_lr": rates, "cycle_max_lr": rates, "cycle_first_step_size": lengths},
    optional={
        "cycle_second_step_size": st.one_of(st.none(), st.just(0), lengths),
        "cycle_first_stair_count": counts,
        "cycle_second_stair_count": st.one_of(st.none(), counts),
        "decay_step_size": st.one_of(st.just(0), lengths),
        "decay_lr_rate": rates,
        "decay_mom_rate": rates,
        "cycle_min_mom": st.floats(0, 0.999),
        "cycle_max_mom": st.floats(0, 0.999),
    },
)


@given(params=CYCLES)
@settings(max_examples=60)
def test_any_cycle_equals_deepspeed_bit_by_bit(params):
    scheduler = {"type": "OneCycle", "params": params}
    wanted = deepspeed_oracle.class_rates(scheduler, 200, 0.1)
    found = rates_from_deepspeed(config("OneCycle", params))
    np.testing.assert_array_equal(found.learning_rate(np.arange(200)), wanted.rates)
    np.testing.assert_array_equal(found.betas(np.arange(200)), wanted.betas)


def test_warmup_and_hold_by_hand():
    linear = warmup_lr(lr=5.0, warmup_min_lr=1.0, warmup_num_steps=4, warmup_type="linear")
    np.testing.assert_array_equal(linear(np.arange(-1, 7)), [1, 1, 2, 3, 4, 5, 5, 5])
    log = warmup_lr(warmup_max_lr=2.0, warmup_num_steps=16)
    np.testing.assert_allclose(log(np.array([-1, 0, 1, 3, 7, 15, 16, 10**9])), [0, 0, 0.5, 1, 1.5, 2, 2, 2])
    # DeepSpeed warms up for 2 iterations at least.
    np.testing.assert_array_equal(
        warmup_lr(lr=2.0, warmup_num_steps=1, warmup_type="linear")(np.arange(4)), [0, 1, 2, 2]
    )


def test_decay_to_the_optimizers_rate_where_the_maximum_is_null():
    schedule = from_deepspeed(
        config(
            "WarmupDecayLR",
            {"total_num_steps": 6, "warmup_max_lr": None, "warmup_num_steps": 2, "warmup_type": "linear"},
            lr=4.0,
        )
    )
    np.testing.assert_array_equal(schedule(np.arange(10)), [0, 0, 2, 4, 3, 2, 1, 0, 0, 0])


def test_cosine_by_hand():
    schedule = warmup_cosine_lr(
        lr=10.0,
        total_num_steps=8,
        warmup_min_ratio=0.2,
        warmup_num_steps=4,
        cos_min_ratio=0.5,
        warmup_type="linear",
    )
    # Up from 0.2 by fifths; then 0.75 + 0.25 cos(pi k / 4), which is at its end an iteration early.
    down = [7.5 + 2.5 * math.cos(math.pi * k / 4) for k in (1, 2, 3, 4)]
    np.testing.assert_allclose(schedule(np.arange(-1, 10)), [0, 2, 4, 6, 8, *down, 5, 5], rtol=1e-15)
    plain = warmup_cosine_lr(lr=1.0, total_num_steps=8, warmup_num_steps=4)
    np.testing.assert_allclose(plain(np.array([0, 1, 3, 7, 99])), [0, 0.5, 1, 1e-4, 1e-4], rtol=1e-12)


def test_the_first_update_under_a_cosine_runs_at_zero():
    params = {"total_num_steps": 9, "warmup_num_steps": 3, "warmup_min_ratio": 0.5}
    assert from_deepspeed(config("WarmupCosineLR", params, lr=0.25))(np.arange(2)).tolist() == [0, 0.125]


def test_range_test_by_hand():
    given = {"lr_range_test_min_lr": 2.0, "lr_range_test_step_size": 4, "lr_range_test_step_rate": 3.0}
    smooth, stairs = lr_range_test(**given), lr_range_test(**given, lr_range_test_staircase=True)
    np.testing.assert_array_equal(smooth(np.array([-1, 0, 1, 2, 3, 7])), [2, 3.5, 5, 6.5, 8, 14])
    np.testing.assert_array_equal(stairs(np.array([-1, 0, 1, 2, 3, 6, 7])), [2, 2, 2, 2, 8, 8, 14])


def test_cycle_by_hand():
    rates, betas = one_cycle(
        cycle_min_lr=1.0,
        cycle_max_lr=5.0,
        cycle_first_step_size=4,
        cycle_second_step_size=2,
        decay_step_size=2,
        decay_lr_rate=0.5,
        cycle_min_mom=0.5,
        cycle_max_mom=0.75,
        decay_mom_rate=1.0,
    )
    i = np.arange(-1, 9)
    np.testing.assert_allclose(
        rates(i), [1, 2, 3, 4, 5, 3, 1, 1 / 1.25, 1 / 1.5, 1 / 1.75], rtol=1e-15, atol=0
    )
    moved = betas(i)
    # The constructor leaves the lowest momentum beside the lowest rate; the decay lets it grow past 1.
    np.testing.assert_allclose(
        moved[:, 0],
        [0.5, 0.6875, 0.625, 0.5625, 0.5, 0.625, 0.75, 0.75 * 1.5, 0.75 * 2, 0.75 * 2.5],
        rtol=1e-15,
    )
    assert moved.dtype == np.float64 and (moved[:, 1] == 0.99).all()


def test_stairs_by_hand():
    rates, _ = one_cycle(
        cycle_min_lr=0.0, cycle_max_lr=4.0, cycle_first_step_size=4, cycle_first_stair_count=2
    )
    np.testing.assert_array_equal(rates(np.arange(-1, 9)), [0, 0, 2, 2, 4, 2, 2, 0, 0, 0])
    rates, betas = one_cycle(
        cycle_min_lr=0.0,
        cycle_max_lr=4.0,
        cycle_first_step_size=4,
        cycle_first_stair_count=-1,
        cycle_second_stair_count=1,
        cycle_momentum=False,
    )
    np.testing.assert_array_equal(rates(np.arange(-1, 9)), [0, 1, 2, 3, 4, 0, 0, 0, 0, 0])
    assert betas is None


def test_cycle_without_a_second_half_falls_at_once():
    rates, _ = one_cycle(
        cycle_min_lr=1.0, cycle_max_lr=2.0, cycle_first_step_size=4, cycle_second_step_size=0
    )
    np.testing.assert_array_equal(rates(np.arange(-1, 6)), [1, 1.25, 1.5, 1.75, 1, 1, 1])


@pytest.mark.parametrize("made", [config(lr=0.5), {**config(lr=0.5), "scheduler": None}])
def test_no_scheduler_is_a_constant(made):
    found = rates_from_deepspeed(made)
    assert found.betas is None
    np.testing.assert_array_equal(found.learning_rate(np.arange(6).reshape(2, 3)), np.full((2, 3), 0.5))
    assert found.learning_rate(7) == 0.5


def test_default_rate():
    assert from_deepspeed(config())(0) == 1e-3
    with pytest.raises(ConfigError, match=r"a run without a scheduler needs .*optimizer\.params\.lr"):
        from_deepspeed(config(optimizer="Muon"))
    with pytest.raises(ConfigError, match="WarmupCosineLR needs the optimizer's learning rate"):
        from_deepspeed({"scheduler": {"type": "WarmupCosineLR", "params": {"total_num_steps": 9}}})
    with pytest.raises(ConfigError, match="warmup_max_lr is None and the optimizer has no learning rate"):
        warmup_lr()


@pytest.mark.parametrize("case", sorted(rungs_schedule.CASES))
def test_counts_of_any_shape_give_the_same_numbers(case):
    found = rates_from_deepspeed(rungs_schedule.config_of(case, 60))
    for schedule, tail in ((found.learning_rate, ()), (found.betas, (2,))):
        if schedule is None:
            continue
        whole = schedule(np.arange(80))
        assert whole.dtype == np.float64 and whole.shape == (80, *tail)
        np.testing.assert_array_equal(schedule(np.arange(80).reshape(4, 20)), whole.reshape(4, 20, *tail))
        np.testing.assert_array_equal([schedule(k) for k in (0, 1, 30, 79)], whole[[0, 1, 30, 79]])
        # A count without a sign, as a step counter may be, has an iteration -1 as well.
        np.testing.assert_array_equal(schedule(np.arange(80, dtype=np.uint32)), whole)
        assert schedule(np.arange(0)).shape == (0, *tail)


@pytest.mark.parametrize("beta_schedule", [jax_betas, torch_betas])
def test_betas_of_both_backends(beta_schedule):
    made = config("OneCycle", {"cycle_min_lr": 0, "cycle_max_lr": 1, "cycle_first_step_size": 2}, "AdamW")
    found = np.asarray(beta_schedule(made)(np.arange(5)))
    assert found.dtype == np.float32
    wanted = np.array([[m, 0.99] for m in (0.8, 0.85, 0.8, 0.85, 0.9)])
    np.testing.assert_allclose(found, wanted, rtol=1e-7)
    assert np.asarray(beta_schedule(made)(3)).shape == (2,)
    assert beta_schedule(config("WarmupLR")) is None
    assert beta_schedule(config()) is None


@pytest.mark.parametrize("optimizer", ["sgd", "muon"])
def test_the_momentum_of_an_optimizer_without_betas_is_left_alone(optimizer, caplog):
    scheduler = SimpleNamespace(kind="OneCycle", params={"cycle_min_lr": 0.0, "cycle_max_lr": 1.0})
    with caplog.at_level(logging.WARNING, "parivox.schedule"):
        found = update_rates(SimpleNamespace(kind=optimizer, params={"lr": 0.1}), scheduler)
    assert found.betas is None
    assert found.learning_rate(2000) == 1.0
    assert caplog.messages == [f"OneCycle leaves the momentum alone: optimizer '{optimizer}' has no betas"]


def test_update_rates_takes_the_resolved_config():
    adam = SimpleNamespace(kind="adam", params={"lr": 0.5, "betas": (0.9, 0.999)})
    assert update_rates(adam, None).learning_rate(3) == 0.5
    warm = SimpleNamespace(kind="WarmupLR", params={"warmup_num_steps": 4, "warmup_type": "linear"})
    assert update_rates(adam, warm).learning_rate(np.arange(7)).tolist() == [
        0,
        0,
        0.125,
        0.25,
        0.375,
        0.5,
        0.5,
    ]
    cycle = SimpleNamespace(kind="OneCycle", params={"cycle_min_lr": 0.0, "cycle_max_lr": 1.0})
    assert update_rates(adam, cycle).betas(0).tolist() == [0.8, 0.99]


def test_unknown_words():
    with pytest.raises(ConfigError, match="warmup_type is 'cosine'; DeepSpeed knows 'linear' and 'log'"):
        warmup_decay_lr(total_num_steps=10, warmup_type="cosine")
    with pytest.raises(ConfigError, match=r"'StepLR' is not supported; use one of WarmupLR, .*LRRangeTest"):
        from_deepspeed(config("StepLR"))
    with pytest.raises(ConfigError, match="is not supported"):
        from_deepspeed(config(["WarmupLR"]))


@pytest.mark.parametrize(
    ("kind", "params", "message"),
    [
        (
            "WarmupLR",
            {"warm_up": 3},
            r"unknown parameter 'warm_up' \(it takes warmup_min_lr, .*warmup_type\)$",
        ),
        ("WarmupLR", {"lr": 0.1}, "unknown parameter 'lr'"),
        ("WarmupDecayLR", {}, "'total_num_steps' is missing"),
        ("WarmupCosineLR", {}, "'total_num_steps' is missing"),
        ("OneCycle", {}, "'cycle_min_lr' is missing; 'cycle_max_lr' is missing"),
        ("WarmupLR", {"last_batch_iteration": 7}, "last_batch_iteration is 7; leave it out"),
        (
            "WarmupLR",
            {"warmup_type": "cosine", "warmup_num_steps": 0},
            "warmup_type .*; warmup_num_steps is 0",
        ),
        ("WarmupLR", {"warmup_num_steps": 10.0}, "warmup_num_steps is 10.0; give a whole number above 0"),
        ("WarmupLR", {"warmup_min_lr": "1e-5"}, "warmup_min_lr is '1e-5'; give a number"),
        ("WarmupLR", {"warmup_max_lr": [1, 2]}, "give one number: there is one parameter group"),
        ("WarmupLR", {"warmup_min_lr": None}, "warmup_min_lr is None; give a number"),
        ("WarmupLR", {"warmup_min_lr": math.nan}, "warmup_min_lr is nan; give a finite number"),
        ("WarmupDecayLR", {"total_num_steps": 10**400}, "give a finite number"),
        ("WarmupDecayLR", {"total_num_steps": True}, "total_num_steps is True; give a number"),
        ("WarmupCosineLR", {"total_num_steps": 9, "cos_min_ratio": -0.1}, "number that is not negative"),
        ("LRRangeTest", {"lr_range_test_step_size": 0}, "lr_range_test_step_size is 0; give a whole number"),
        ("LRRangeTest", {"lr_range_test_staircase": "false"}, "is 'false'; give true or false"),
        ("OneCycle", {"cycle_first_step_size": 0}, "cycle_first_step_size is 0; give a number of 1 or more"),
        (
            "OneCycle",
            {"cycle_second_step_size": -1},
            "cycle_second_step_size is -1; give a number that is not",
        ),
        ("OneCycle", {"cycle_max_mom": 1.0}, "cycle_max_mom is 1.0; give a number from 0 to below 1"),
        ("OneCycle", {"decay_step_size": 0.5}, "decay_step_size is 0.5; give 0 for no decay"),
    ],
)
def test_refused_parameters(kind, params, message):
    ends = {"cycle_min_lr": 0.0, "cycle_max_lr": 1.0}
    given = {**ends, **params} if kind == "OneCycle" and params else params
    with pytest.raises(ConfigError, match=rf"^scheduler {kind}: .*{message}"):
        from_deepspeed(config(kind, given, lr=0.1))
    if "lr" in params:
        return
    with pytest.raises(ConfigError, match="optimizer: lr is 'auto'; give a number"):
        from_deepspeed(config(kind, given, lr="auto"))


def test_a_list_with_one_number_is_a_number_and_minus_one_starts_anew():
    made = config("WarmupLR", {"warmup_max_lr": [2.0], "last_batch_iteration": -1})
    assert from_deepspeed(made)(10**6) == 2.0
