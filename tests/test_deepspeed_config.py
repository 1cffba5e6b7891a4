"""The reader of DeepSpeed configs: ten of the published kinds, and DeepSpeed's own reader beside it."""

from __future__ import annotations

import inspect
import itertools
import json

import pytest

from parivox.deepspeed_config import load, remarks, resolve
from parivox.deepspeed_keys import ACTIVATION, BF16, FP16, TOP, ZERO, ZERO_ALIASES
from parivox.deepspeed_recipes import OPTIMIZERS, SCHEDULERS
from parivox.errors import ConfigError
from parivox.hparams import DenoiserHParams, EnhancerHParams, HParams
from tests.deepspeed_files import (
    FOLDER,
    HP,
    MINIMAL,
    NAMES,
    REFUSED,
    RESOLVED,
    changed,
    own_reader,
    paths,
    published,
)


def loaded(name, world_size=1):
    return load(FOLDER / f"{name}.json", world_size=world_size, hparams=HP)


@pytest.fixture(scope="module")
def deepspeed():
    pytest.importorskip("deepspeed")
    from torch_impl.engine import import_deepspeed

    return import_deepspeed("cpu")


# --- ten configs of the kinds that people publish -------------------------------------------------------------


def test_ten_configs():
    assert len(NAMES) == 10
    assert set(REFUSED) < set(NAMES)


@pytest.mark.parametrize("name", REFUSED)
def test_refused_with_a_complete_list(name):
    with pytest.raises(ConfigError) as error:
        loaded(name)
    assert paths(error) == REFUSED[name]


def test_bert_lamb():
    config = loaded("bert_lamb_fp16", world_size=64)
    assert (config.train_batch_size, config.micro_batch_size, config.accumulation_steps) == (65536, 64, 16)
    assert config.optimizer.kind == "lamb"
    assert config.optimizer.params == {
        "lr": 11e-3,
        "weight_decay": 0.01,
        "betas": (0.9, 0.999),
        "eps": 1e-8,
        "bias_correction": False,
        "max_coeff": 0.3,
        "min_coeff": 0.01,
        "eps_inside_sqrt": False,
    }
    assert config.precision == "fp16"
    assert config.loss_scale is not None
    assert (config.loss_scale.static, config.loss_scale.initial_scale_power) == (0.0, 16)


def test_autos_from_hyperparameters():
    config = loaded("hf_zero2_auto", world_size=2)
    assert (config.train_batch_size, config.micro_batch_size, config.accumulation_steps) == (24, 12, 1)
    assert config.optimizer.kind == "adamw"
    assert config.optimizer.params["lr"] == 3e-4
    assert config.scheduler is not None
    assert config.scheduler.params == {
        "warmup_min_lr": 2e-5,
        "warmup_max_lr": 3e-4,
        "warmup_num_steps": 50,
        "total_num_steps": 900,
    }
    assert (config.gradient_clipping, config.precision, config.zero_stage) == (0.7, "fp32", 2)
    assert "auto" not in json.dumps(config.deepspeed)


def test_autos_without_hyperparameters_say_what_to_write():
    with pytest.raises(ConfigError) as error:
        resolve(published("hf_zero2_auto"))
    assert paths(error) == ["train_micro_batch_size_per_gpu", "scheduler.params.total_num_steps"]
    assert "write a number" in str(error.value)
    mended = changed(published("hf_zero2_auto"), "scheduler.params.total_num_steps", 100)
    config = resolve(changed(mended, "train_batch_size", 32))
    assert (config.micro_batch_size, config.accumulation_steps, config.gradient_clipping) == (32, 1, 1.0)
    assert config.optimizer.params["lr"] == 1e-3  # DeepSpeed's default
    assert config.scheduler is not None
    assert config.scheduler.params == {"total_num_steps": 100}


def test_an_auto_micro_batch_gives_way_to_the_other_two():
    given = {**MINIMAL, "train_micro_batch_size_per_gpu": "auto", "gradient_accumulation_steps": 2}
    assert resolve(given, hparams=HP).micro_batch_size == 4
    given = {**MINIMAL, "train_batch_size": 48, "train_micro_batch_size_per_gpu": "auto"}
    assert resolve(given, hparams=HP, world_size=2).accumulation_steps == 2


def test_cifar_one_cycle():
    config = loaded("cifar_onecycle")
    assert config.optimizer.params["adam_w_mode"] is False
    assert config.optimizer.params["betas"] == (0.8, 0.999)
    assert config.scheduler is not None
    assert config.scheduler.kind == "OneCycle"
    assert config.scheduler.params["cycle_max_mom"] == 0.99
    assert config.scheduler.params["cycle_second_stair_count"] == 500
    assert (config.precision, config.loss_scale, config.train_batch_size) == ("fp32", None, 16)


def test_megatron():
    config = loaded("megatron_gpt", world_size=4)
    assert (config.train_batch_size, config.micro_batch_size, config.accumulation_steps) == (512, 8, 16)
    assert config.loss_scale is not None
    assert (config.loss_scale.initial_scale_power, config.loss_scale.window) == (32, 500)
    assert config.prescale_gradients
    assert config.checkpoint_activations
    assert config.zero_stage == 1
    with pytest.raises(ConfigError, match=r"train_batch_size: is 512, but .* is 8 x 16 x 2 = 256"):
        loaded("megatron_gpt", world_size=2)


def test_the_rest():
    sgd, lion, old = (loaded(name) for name in ("sgd_range_test", "bf16_lion_zero3", "old_form"))
    assert sgd.optimizer.params == {
        "lr": 0.1,
        "weight_decay": 5e-4,
        "momentum": 0.9,
        "dampening": 0.0,
        "nesterov": True,
    }
    assert (sgd.micro_batch_size, sgd.gradient_clipping, sgd.gradient_predivide_factor) == (64, 0.0, 2.0)
    assert lion.optimizer.params == {"lr": 1e-5, "betas": (0.95, 0.98), "weight_decay": 0.1}
    assert (lion.precision, lion.zero_stage, lion.train_batch_size) == ("bf16", 3, 32)
    assert lion.deepspeed["zero_optimization"]["stage3_prefetch_bucket_size"] == 50_000_000
    assert (old.precision, old.zero_stage, old.gradient_clipping) == ("bf16", 1, 0.5)
    assert old.optimizer.kind == "adam"


@pytest.mark.parametrize("cls", [HParams, DenoiserHParams, EnhancerHParams])
def test_the_hyperparameters_own_config(cls):
    hp = cls()
    config = resolve(hp.deepspeed_config)
    assert config.train_batch_size == hp.batch_size_per_gpu
    assert config.optimizer.params["lr"] == hp.min_lr
    assert config.deepspeed["scheduler"] == hp.deepspeed_config["scheduler"]
    assert remarks(hp.deepspeed_config) == []


def test_remarks_name_every_key_that_changes_nothing():
    said = remarks(published("bf16_lion_zero3"))
    assert [line.split(": ")[0] for line in said] == [
        "bf16.immediate_grad_update",
        "zero_optimization.overlap_comm",
        "zero_optimization.stage3_prefetch_bucket_size",
        "zero_optimization.stage3_param_persistence_threshold",
        "flops_profiler",
        "checkpoint",
        "timers",
    ]


# --- against DeepSpeed itself ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", RESOLVED)
def test_deepspeed_reads_the_same(deepspeed, name):
    ours = load(FOLDER / f"{name}.json", hparams=HP) if name != "megatron_gpt" else None
    config = changed(published(name), "gradient_accumulation_steps", 64) if ours is None else published(name)
    ours = ours or resolve(config)
    theirs = [own_reader(deepspeed, ours.deepspeed)]
    if "auto" not in json.dumps(config) and name not in ("old_form", "cifar_onecycle"):
        theirs.append(own_reader(deepspeed, without_the_old(config)))
    for found in theirs:
        assert (
            found.train_batch_size,
            found.train_micro_batch_size_per_gpu,
            found.gradient_accumulation_steps,
        ) == (ours.train_batch_size, ours.micro_batch_size, ours.accumulation_steps)
        assert found.optimizer_name == {"sgd": "SGD"}.get(ours.optimizer.kind, ours.optimizer.kind)
        assert found.gradient_clipping == ours.gradient_clipping
        assert found.zero_optimization_stage == ours.zero_stage
        assert found.float16_config.enabled == (ours.precision == "fp16")
        assert found.bfloat16_config.enabled == (ours.precision == "bf16")
        assert found.prescale_gradients == ours.prescale_gradients
        assert found.scheduler_name == (ours.scheduler.kind if ours.scheduler else None)


def without_the_old(config):
    """Without what DeepSpeed once took and now refuses, off or on."""
    return {name: value for name, value in config.items() if name not in ("sparse_gradients", "amp")}


def test_batch_sizes_equal_deepspeeds(deepspeed):
    from deepspeed.runtime.config import DeepSpeedConfig

    names = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps")
    outcomes = set()
    sizes = (None, 1, 2, 3, 4, 12)
    for *triple, world_size in itertools.product(sizes, sizes, sizes, (1, 2, 3, 4)):
        theirs = DeepSpeedConfig.__new__(DeepSpeedConfig)
        theirs.world_size = world_size
        for name, size in zip(names, triple, strict=True):
            setattr(theirs, name, size)
        try:
            theirs._configure_train_batch_size()
            wanted = tuple(getattr(theirs, name) for name in names)
        except AssertionError:
            wanted = None
        given = {name: size for name, size in zip(names, triple, strict=True) if size is not None}
        try:
            config = resolve({"optimizer": {"type": "Adam"}, **given}, world_size=world_size)
            found = (config.train_batch_size, config.micro_batch_size, config.accumulation_steps)
        except ConfigError:
            found = None
        assert found == wanted, (triple, world_size)
        outcomes.add(wanted is None)
    assert outcomes == {True, False}


def parameters(cls, *without):
    given = inspect.signature(cls.__init__).parameters
    return {name: p.default for name, p in given.items() if name not in ("self", "args", "kwargs", *without)}


def test_every_scheduler_parameter_is_known(deepspeed):
    from deepspeed.runtime import lr_schedules

    assert set(SCHEDULERS) == set(lr_schedules.VALID_LR_SCHEDULES)
    for name, table in SCHEDULERS.items():
        assert set(table) == set(parameters(getattr(lr_schedules, name), "optimizer")), name


def test_every_optimizer_parameter_is_known_with_its_default(deepspeed):
    import torch
    from deepspeed.ops.adam import FusedAdam
    from deepspeed.ops.lamb import FusedLamb
    from deepspeed.ops.lion import FusedLion

    classes = {"adam": FusedAdam, "lamb": FusedLamb, "lion": FusedLion, "sgd": torch.optim.SGD}
    for kind, cls in classes.items():
        wanted = parameters(cls, "params")
        assert set(wanted) <= set(OPTIMIZERS[kind]), kind
        mine = {name: key.default for name, key in OPTIMIZERS[kind].items() if key.role == "used"}
        assert mine == {name: wanted[name] for name in mine}, kind


def test_every_key_of_a_section_is_known_with_its_default(deepspeed):
    from deepspeed.runtime import precision_config
    from deepspeed.runtime.activation_checkpointing.config import ACT_CHKPT_DEFAULT
    from deepspeed.runtime.config import _REMOVED_TOP_LEVEL_CONFIG_KEYS, _REMOVED_ZERO_CONFIG_KEYS
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

    models = [
        (precision_config.DeepSpeedFP16Config, FP16),
        (precision_config.DeepSpeedBF16Config, BF16),
        (DeepSpeedZeroConfig, ZERO),
    ]
    for model, table in models:
        fields = {field.alias or name: field for name, field in model.model_fields.items()}
        assert set(fields) <= set(table)
        for name, key in table.items():
            if key.role == "used":
                assert key.default == fields[name].default, name
    aliases = {field.alias: name for name, field in DeepSpeedZeroConfig.model_fields.items() if field.alias}
    assert aliases == {long: short for short, long in ZERO_ALIASES.items()}
    assert set(ACT_CHKPT_DEFAULT) == set(ACTIVATION)
    assert set(_REMOVED_TOP_LEVEL_CONFIG_KEYS) <= {n for n, key in TOP.items() if key.role == "refused"}
    assert set(_REMOVED_ZERO_CONFIG_KEYS) <= {n for n, key in ZERO.items() if key.role == "refused"}


def test_every_key_at_the_top_is_known_with_its_default(deepspeed):
    """Every name that DeepSpeed's reader looks up in a config, caught by a dict that listens."""
    asked = set()

    class Listening(dict):
        def get(self, key, default=None):
            asked.add(key)
            return super().get(key, default)

        def __contains__(self, key):
            asked.add(key)
            return super().__contains__(key)

        def keys(self):
            return self

        def __copy__(self):
            return self

    from torch_impl.engine import single_process_world

    with single_process_world():
        parsed = deepspeed.DeepSpeedConfig(Listening(MINIMAL))
    assert len(asked) > 50
    assert asked - set(TOP) == {"bfloat16"}
    for name in ("gradient_clipping", "prescale_gradients", "gradient_predivide_factor"):
        assert TOP[name].default == getattr(parsed, name)
