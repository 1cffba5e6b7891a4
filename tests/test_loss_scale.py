"""The loss scale of float16 against DeepSpeed's own classes, and against its engine."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from parivox.deepspeed_config import LossScaleConfig
from parivox.errors import CheckpointError
from parivox.loss_scale import LossScale, after_overflow, after_update, first_scale, restored_scale
from torch_impl.engine import QUIET, import_deepspeed, single_process_world, talk_to_log

DYNAMIC = LossScaleConfig(0.0, 4, 2, 2, False, 1.0)
CASES = {
    "hysteresis 1": replace(DYNAMIC, hysteresis=1),
    "hysteresis 2": DYNAMIC,
    "hysteresis 3, window 5": replace(DYNAMIC, hysteresis=3, window=5),
    "consecutive hysteresis": replace(DYNAMIC, hysteresis=3, consecutive_hysteresis=True),
    "window 1": replace(DYNAMIC, window=1),
    "high minimum": replace(DYNAMIC, min_scale=8.0),
}


def overflows(seed: int, count: int) -> np.ndarray:
    """Runs of overflows and of good updates."""
    rng = np.random.default_rng(seed)
    return np.repeat(rng.random(count) < 0.4, rng.integers(1, 6, count))[:count]


def sequence(config: LossScaleConfig, stage: int, pattern: np.ndarray) -> list[float]:
    """The scale before each update, and at the end; shorter where training ends."""
    state, found = first_scale(config), []
    for overflow in pattern:
        found.append(state.scale)
        after = after_overflow(state, config, stage) if overflow else after_update(state, config)
        if after is None:
            return found
        state = after
    return [*found, state.scale]


@pytest.fixture(scope="module")
def deepspeed():
    found = import_deepspeed("cpu")
    with single_process_world(), talk_to_log():
        found.init_distributed(dist_backend="gloo", verbose=False)
    return found


@pytest.mark.parametrize("config", CASES.values(), ids=CASES.keys())
@pytest.mark.parametrize("seed", range(5))
def test_stages_1_to_3_follow_the_class(deepspeed, config, seed):
    from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler

    real = DynamicLossScaler(
        2.0**config.initial_scale_power,
        config.window,
        config.min_scale,
        config.hysteresis,
        config.consecutive_hysteresis,
    )
    pattern, wanted = overflows(seed, 120), []
    for overflow in pattern:
        wanted.append(real.cur_scale)
        try:
            real.update_scale(bool(overflow))
        except Exception as error:
            assert "loss scale already at minimum" in str(error)
            break
    else:
        wanted.append(real.cur_scale)
    for stage in (1, 2, 3):
        assert sequence(config, stage, pattern) == wanted
    assert len(set(wanted)) > 1


@pytest.mark.parametrize("config", CASES.values(), ids=CASES.keys())
@pytest.mark.parametrize("seed", range(5))
def test_stage_0_follows_the_wrapper(deepspeed, config, seed):
    from deepspeed.runtime.fp16.fused_optimizer import FP16_Optimizer
    from deepspeed.runtime.fp16.loss_scaler import LossScaleConfig as Real

    arguments = {
        "init_scale": 2.0**config.initial_scale_power,
        "scale_window": config.window,
        "min_scale": config.min_scale,
    }
    # The wrapper's own method, on an object that has nothing but the loss scale.
    wrapper = FP16_Optimizer.__new__(FP16_Optimizer)
    wrapper.verbose = False
    wrapper.loss_scale_config = Real(torch.float16, True, 0.0, arguments)
    pattern, wanted = overflows(seed, 120), []
    for overflow in pattern:
        wanted.append(wrapper.loss_scale_config.cur_scale)
        wrapper._update_scale(bool(overflow))
    assert sequence(config, 0, pattern) == [*wanted, wrapper.loss_scale_config.cur_scale]


# ZeRO's own imports warn.
@pytest.mark.filterwarnings(r"ignore:`torch\.jit\.:DeprecationWarning")
@pytest.mark.parametrize("stage", [0, 1, 2])
def test_the_engine_itself_has_this_sequence(deepspeed, monkeypatch, stage):
    """Float16 through the real engine, which this CPU can do in plain operations though it says that it cannot."""
    accelerator = deepspeed.accelerator.get_accelerator()
    monkeypatch.setattr(type(accelerator), "is_fp16_supported", lambda self: True)
    pattern = [False, True, True, False, False, False, False, True, False, False, False, False]
    weight = torch.nn.Linear(3, 1, bias=False)
    scale = {"enabled": True, "initial_scale_power": 4, "loss_scale_window": 2, "hysteresis": 2}
    with single_process_world(), talk_to_log():
        engine, optimizer, _, _ = deepspeed.initialize(
            model=weight,
            model_parameters=list(weight.parameters()),
            config={
                "train_micro_batch_size_per_gpu": 1,
                "steps_per_print": QUIET,
                "gradient_clipping": 0.0,
                "optimizer": {"type": "SGD", "params": {"lr": 0.125}},
                "zero_allow_untested_optimizer": True,
                "zero_optimization": {"stage": stage},
                "fp16": scale,
            },
        )
    scaler = optimizer.loss_scaler if stage else optimizer.loss_scale_config
    config, scales, moved = LossScaleConfig(0.0, 4, 2, 2, False, 1.0), [], []
    for overflow in pattern:
        scales.append(scaler.cur_scale)
        before = weight.weight.detach().clone()
        loss = engine(torch.full((1, 3), torch.inf if overflow else 0.5, dtype=torch.float16)).float().sum()
        # At stage 0 the engine divides by the scale and does not multiply by it; `torch_impl.engine` makes up for it.
        engine.backward(loss if stage else loss * scaler.cur_scale)
        engine.step()
        moved.append(float((before - weight.weight.detach()).abs().max()))
    assert [*scales, scaler.cur_scale] == sequence(config, stage, np.array(pattern))
    assert [step == 0 for step in moved] == pattern
    # Where the scale doubles, the gradient of that very update is divided by the new scale.
    grows = [after > before for before, after in zip(scales, [*scales[1:], scaler.cur_scale], strict=True)]
    assert any(grows)
    for step, overflow, grew in zip(moved, pattern, grows, strict=True):
        if not overflow:
            assert step == pytest.approx(0.5 * 0.125 * (0.5 if grew else 1), rel=2e-2)
    engine.destroy()


def test_a_fixed_scale_stays():
    config = replace(DYNAMIC, static=128.0)
    pattern = overflows(0, 50)
    assert set(sequence(config, 0, pattern)) == set(sequence(config, 2, pattern)) == {128.0}


def test_the_state_survives_a_checkpoint():
    state = first_scale(DYNAMIC)
    for overflow in overflows(3, 20):
        state = (after_overflow(state, DYNAMIC, 0) if overflow else after_update(state, DYNAMIC)) or state
    assert restored_scale(DYNAMIC, state.to_dict()) == state
    assert restored_scale(DYNAMIC, {}) == LossScale(16.0, 0, 2, 0)
    assert restored_scale(replace(DYNAMIC, static=2.0), state.to_dict()).scale == 2.0


@pytest.mark.parametrize("broken", [{"scale": 2.0}, {"scale": 0.0, "good": 0, "hysteresis": 1, "skipped": 0}])
def test_a_broken_state_is_refused(broken):
    with pytest.raises(CheckpointError, match="loss scale"):
        restored_scale(DYNAMIC, broken)
