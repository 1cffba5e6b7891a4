"""The reader of DeepSpeed configs meets wrong values, excluded pairs, broken files and random changes."""

from __future__ import annotations

import copy
import json
import re

import numpy as np
import pytest

from parivox.deepspeed_config import TrainConfig, load, resolve
from parivox.deepspeed_recipes import SCHEDULERS
from parivox.errors import ConfigError
from tests.deepspeed_files import HP, MINIMAL, NAMES, RESOLVED, changed, own_reader, paths, published


@pytest.fixture(scope="module")
def deepspeed():
    pytest.importorskip("deepspeed")
    from torch_impl.engine import import_deepspeed

    return import_deepspeed("cpu")


# --- single faults --------------------------------------------------------------------------------------------

FAULTS = {
    "train_batch_size": [0, -8, True, "8", 2.5, 10**400, float("nan"), [], {}],
    "gradient_clipping": [-1, float("inf"), "1", True, None],
    "gradient_predivide_factor": [0, -2],
    "prescale_gradients": [1, "true", None],
    "communication_data_type": ["bf16", "int8", 3],
    "gradient_allreduce_op": ["sum", 1],
    "fp16": [True, None, "auto", [], 5],
    "fp16.enabled": [1, "yes"],
    "fp16.loss_scale": [-1, float("nan"), False],
    "fp16.initial_scale_power": [128, -1, 1.5],
    "fp16.loss_scale_window": [0],
    "fp16.hysteresis": [0],
    "fp16.min_loss_scale": [0, 0.5],
    "bf16.check_grad_overflow": [False],
    "bf16.bf16_optimizer_states": [True],
    "data_types.grad_accum_dtype": ["bf16"],
    "zero_optimization": [None, 2, "auto"],
    "zero_optimization.stage": [-1, 4, 1.5, True, "2"],
    "zero_optimization.reduce_bucket_size": [0, "5e8"],
    "zero_optimization.offload_param": [{"device": "cpu"}, True],
    "zero_optimization.zero_quantized_gradients": [True],
    "zero_optimization.compute_grad_norm": [False],
    "zero_optimization.mics_shard_size": [8],
    "optimizer": [None, "Adam", [], 3],
    "optimizer.type": [None, 5, "auto", "Muon", "sgd", "Adagrad", "RMSprop", ""],
    "optimizer.params": [5, "auto", [1]],
    "optimizer.params.lr": [-1, "1e-4", None, float("inf")],
    "optimizer.params.betas": [0.9, [0.9], [0.9, 1.0], [-0.1, 0.9], [0.9, "0.99"], "ab"],
    "optimizer.params.eps": [-1e-8],
    "optimizer.params.max_grad_norm": [0, 1.0],
    "optimizer.params.amsgrad": [True, 1],
    "optimizer.params.momentum": [0.9],
    "scheduler": [None, "auto", 5],
    "activation_checkpointing.cpu_checkpointing": [True],
    "activation_checkpointing.partitioned_activations": [True],
    "tensorboard.enabled": ["yes"],
    "checkpoint.load_universal": [True],
    "compile": [{"deepcompile": True}],
    "torch_autocast": [{"enabled": True}, {"enabeld": False}],
    "moe": [{"enabled": 0}],
    "steps_per_print": ["often"],
}


@pytest.mark.parametrize(
    ("path", "value"), [(path, value) for path, values in FAULTS.items() for value in values], ids=repr
)
def test_one_fault_is_named_once(path, value):
    with pytest.raises(ConfigError) as error:
        resolve(changed(MINIMAL, path, value))
    assert paths(error) == [path]


SCHEDULES = {
    "WarmupLR": {
        "warmup_num_steps": [0, 1.5, "10"],
        "warmup_type": ["cosine"],
        "warmup_max_lr": [[1e-3, 1e-4]],
    },
    "WarmupDecayLR": {"total_num_steps": [0, -5, float("nan")], "warmup_ratio": [0.1]},
    "WarmupCosineLR": {"cos_min_ratio": [-0.1, 2], "warmup_min_lr": [0]},
    "OneCycle": {"cycle_first_step_size": [0], "cycle_max_mom": [1.0], "cycle_min_lr": [None]},
    "LRRangeTest": {"lr_range_test_step_size": [0], "last_batch_iteration": [5]},
}
NEEDED = {"total_num_steps": 100, "cycle_min_lr": 1e-4, "cycle_max_lr": 1e-3}


def scheduled(kind, **params):
    needed = {name: value for name, value in NEEDED.items() if name in SCHEDULERS[kind]}
    return {**MINIMAL, "scheduler": {"type": kind, "params": {**needed, **params}}}


@pytest.mark.parametrize("kind", SCHEDULES)
def test_faults_of_schedulers(kind):
    assert resolve(scheduled(kind)).scheduler
    for name, values in SCHEDULES[kind].items():
        for value in values:
            with pytest.raises(ConfigError) as error:
                resolve(scheduled(kind, **{name: value}))
            assert paths(error) == [f"scheduler.params.{name}"]


def test_values_in_other_forms():
    decay = resolve(
        scheduled("WarmupDecayLR", warmup_num_steps=1e1, warmup_max_lr=None, last_batch_iteration=-1)
    )
    assert decay.scheduler is not None
    assert decay.scheduler.params == {"total_num_steps": 100, "warmup_num_steps": 10, "warmup_max_lr": 1e-4}
    assert type(decay.scheduler.params["warmup_num_steps"]) is int
    one = resolve(scheduled("WarmupLR", warmup_max_lr=[2e-3]))
    assert one.scheduler is not None
    assert one.scheduler.params == {"warmup_max_lr": 2e-3}
    assert (
        resolve({**MINIMAL, "communication_data_type": "FP32"}).deepspeed["communication_data_type"] == "fp32"
    )
    both_ways = changed(
        {**MINIMAL, "optimizer": {"type": "AdamW"}}, "optimizer.params", {"adam_w_mode": False}
    )
    assert resolve(both_ways).optimizer.params["adam_w_mode"] is True  # DeepSpeed: the type decides


@pytest.mark.parametrize(
    ("change", "path"),
    [
        ({"optimizer": {"type": "Lamb"}, "zero_optimization": {"stage": 1}}, "zero_optimization.stage"),
        ({"optimizer": {"type": "Lamb"}, "fp16": {"enabled": True, "loss_scale": 128}}, "fp16.loss_scale"),
        ({"optimizer": {"type": "SGD"}, "zero_optimization": {"stage": 1}}, "zero_allow_untested_optimizer"),
        ({"optimizer": {"type": "SGD", "params": {"nesterov": True}}}, "optimizer.params.nesterov"),
        ({"prescale_gradients": True, "zero_optimization": {"stage": 2}}, "prescale_gradients"),
        ({"gradient_predivide_factor": 2, "zero_optimization": {"stage": 3}}, "gradient_predivide_factor"),
        ({"fp16": {"enabled": True}, "bf16": {"enabled": True}}, "fp16.enabled"),
        (
            {"bf16": {"enabled": True}, "data_types": {"grad_accum_dtype": "fp32"}},
            "data_types.grad_accum_dtype",
        ),
        ({"bf16": {}, "bfloat16": {}}, "bfloat16"),
        (
            {"zero_optimization": {"max_live_parameters": 5, "stage3_max_live_parameters": 5}},
            "zero_optimization.max_live_parameters",
        ),
    ],
)
def test_what_excludes_what(change, path):
    with pytest.raises(ConfigError) as error:
        resolve({**MINIMAL, **change})
    assert paths(error) == [path]


def test_sgd_has_no_momentum_to_cycle():
    plain = {**scheduled("OneCycle"), "optimizer": {"type": "SGD"}}
    assert resolve(plain).scheduler
    with pytest.raises(ConfigError) as error:
        resolve(changed(plain, "scheduler.params.cycle_min_mom", 0.8))
    assert paths(error) == ["scheduler.params.cycle_min_mom"]
    still = resolve(changed(plain, "scheduler.params.cycle_momentum", False)).scheduler
    assert still is not None
    assert still.params["cycle_momentum"] is False


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("gradient_cliping", "did you mean 'gradient_clipping'?"),
        ("zero_optimization.stag", "did you mean 'stage'?"),
        ("stage", "move it to 'zero_optimization'"),
        ("lr", "move it to 'optimizer.params'"),
        ("fp16.gradient_clipping", "move it to the top level"),
        ("optimizer.params.warmup_num_steps", "move it to 'scheduler.params'"),
        ("qqqq", "is not a key of DeepSpeed; remove it"),
    ],
)
def test_unknown_keys_say_where_to_go(path, says):
    with pytest.raises(ConfigError) as error:
        resolve(changed(MINIMAL, path, 1))
    assert paths(error) == [path]
    assert says in str(error.value)


@pytest.mark.parametrize("name", ["amp", "torch_autocast", "elasticity", "data_efficiency", "autotuning"])
def test_what_is_off_is_no_problem_and_is_left_out(name):
    for off in ({}, {"enabled": False}, {"enabled": "auto"}, None):
        assert name not in resolve({**MINIMAL, name: off}).deepspeed


def test_the_config_is_left_as_it_was():
    given = published("bf16_lion_zero3")
    resolve(given)
    assert given == published("bf16_lion_zero3")


# --- files ----------------------------------------------------------------------------------------------------

BAD_FILES = {
    "empty": "",
    "comment": '{"train_batch_size": 8} // eight',
    "list": "[1, 2]",
    "null": "null",
    "twice": '{"optimizer": {"type": "Adam", "type": "AdamW"}, "train_batch_size": 8}',
    "nan": '{"train_batch_size": NaN, "optimizer": {"type": "Adam"}}',
    "deep": "[" * 100_000,
    "digits": '{"train_batch_size": ' + "9" * 10_000 + "}",
    "latin": b'{"train_batch_size": "\xe9"}',
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_bad_files_are_named(tmp_path, name):
    path, text = tmp_path / f"{name}.json", BAD_FILES[name]
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ConfigError, match=re.escape(str(path))) as error:
        load(path)
    assert len(str(error.value)) < 400


def test_files_that_are_none(tmp_path):
    for path in (tmp_path, tmp_path / "absent.json", "a\0b"):
        with pytest.raises(ConfigError, match="cannot be read"):
            load(path)


def test_a_byte_order_mark_is_no_fault(tmp_path):
    (tmp_path / "bom.json").write_text(json.dumps(MINIMAL), encoding="utf-8-sig")
    assert load(tmp_path / "bom.json").train_batch_size == 8


# --- mutations ------------------------------------------------------------------------------------------------

JUNK = [
    None,
    True,
    False,
    0,
    -1,
    1,
    3,
    10**30,
    10**5000,
    -0.0,
    1e308,
    float("nan"),
    float("-inf"),
    "",
    "auto",
    "x" * 5000,
    "line\nbreak",
    [],
    [[[[[[[[1]]]]]]]],
    {},
    {"type": {}},
    {"enabled": {"enabled": True}},
    {3: 4, None: 5, (1, 2): 6},
    b"bytes",
    np.array([1, 2]),
    np.float32("nan"),
    object(),
    {1, 2},
    1j,
]


def objects(config):
    """Every object within a config, itself first."""
    yield config
    for value in config.values():
        if isinstance(value, dict):
            yield from objects(value)


def mutated(rng, config):
    """A copy with one to four changes: deleted, renamed, moved, swapped and replaced entries."""
    new = copy.deepcopy(config)
    for _ in range(rng.integers(1, 5)):
        places = list(objects(new))
        place = places[rng.integers(len(places))]
        names = list(place)
        name = names[rng.integers(len(names))] if names else "optimizer"
        match rng.integers(7):
            case 0:
                place.pop(name, None)
            case 1:
                place[str(name)[::-1]] = place.pop(name, None)
            case 2:
                place[str(name)[:-1]] = place.pop(name, None)
            case 3:
                place[name] = JUNK[rng.integers(len(JUNK))]
            case 4:
                place["".join(map(chr, rng.integers(1, 1000, rng.integers(0, 9))))] = copy.deepcopy(config)
            case 5:
                value = place.get(name)
                number = isinstance(value, int | float) and not isinstance(value, bool)
                place[name] = value * 10.0 ** rng.integers(-30, 30) if number else [value]
            case 6:
                place[[5, None, 2.5, (1,)][rng.integers(4)]] = 1
    return new


@pytest.mark.parametrize("name", NAMES)
def test_mutations_give_a_config_or_one_error(deepspeed, name):
    rng = np.random.default_rng(len(name))
    refused = 0
    for _ in range(60):
        given = mutated(rng, published(name))
        world_size = int(rng.integers(1, 4))
        hp = HP if rng.integers(2) else None
        try:
            config = resolve(given, world_size=world_size, hparams=hp)
        except ConfigError as error:
            refused += 1
            lines = str(error).splitlines()
            assert len(lines) > 1
            assert all(len(line) < 400 for line in lines)
            continue
        assert isinstance(config, TrainConfig)
        assert config.train_batch_size == config.micro_batch_size * config.accumulation_steps * world_size
        again = resolve(json.loads(json.dumps(config.deepspeed)), world_size=world_size)
        assert again == config
        if world_size == 1:
            own_reader(deepspeed, config.deepspeed)
    assert refused


def test_some_mutations_are_harmless():
    rng = np.random.default_rng(0)
    resolved = 0
    for name in RESOLVED * 10:
        try:
            resolve(mutated(rng, published(name)), hparams=HP)
            resolved += 1
        except ConfigError:
            pass
    assert resolved
