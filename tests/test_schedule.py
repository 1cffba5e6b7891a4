"""Learning rates against DeepSpeed's own scheduler."""

from __future__ import annotations

import math

import numpy as np
import pytest

from jax_impl.schedule import update_schedule as jax_schedule
from parivox.errors import ConfigError
from parivox.schedule import from_deepspeed, warmup_decay_lr
from tests.train_folder import plain_hparams
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


def test_unknown_words():
    with pytest.raises(ConfigError, match="warmup_type is 'cosine'; DeepSpeed knows 'linear' and 'log'"):
        warmup_decay_lr(total_num_steps=10, warmup_type="cosine")
    config = plain_hparams().deepspeed_config
    config["scheduler"]["type"] = "OneCycle"
    with pytest.raises(ConfigError, match="scheduler 'OneCycle' is not supported"):
        from_deepspeed(config)
