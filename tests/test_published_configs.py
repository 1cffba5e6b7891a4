"""The published kinds of DeepSpeed configs, trained for some updates on both backends with small batches."""

from __future__ import annotations

import numpy as np
import pytest

from parity_tests.rungs_training import worst_loss
from parity_tests.tolerances import bound
from parivox.backend import first_arrays, get_backend
from parivox.deepspeed_config import resolve
from parivox.errors import BackendError
from parivox.weights import initial_denoiser
from tests.deepspeed_files import published
from tests.train_folder import HIDDEN, SAMPLES, plain_hparams

UPDATES, ROWS = 5, 4
HP = plain_hparams(max_steps=200)
NO_CPU_KERNEL = {"bert_lamb_fp16": "lamb", "bf16_lion_zero3": "lion"}
"""DeepSpeed has these optimizers for CUDA alone."""

BOUNDS = {"fp32": bound("training", "float32"), "bf16": bound("training", "bf16 master weights")}
SIZES = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps")

pytestmark = pytest.mark.slow


def config_of(name):
    given = published(name)
    steps = given.get("gradient_accumulation_steps", 1)
    small = {key: value for key, value in given.items() if key not in SIZES}
    passes = steps if steps in (1, 2) else 1
    return resolve({**small, "train_batch_size": ROWS, "gradient_accumulation_steps": passes}, hparams=HP)


def batch(seed):
    rng = np.random.default_rng(seed)
    target = rng.standard_normal((ROWS, SAMPLES)).astype(np.float32)
    return {"noisy": target + 0.5 * rng.standard_normal(target.shape).astype(np.float32), "target": target}


def trained(name, config):
    backend = get_backend(name, device="cpu")
    state = backend.create_state(HP, first_arrays(initial_denoiser(0, HIDDEN), config.optimizer), config)
    results = []
    for k in range(UPDATES):
        state, result = backend.step(state, batch(k))
        results.append(result)
    return results


@pytest.mark.parametrize("name", ["cifar_onecycle", "hf_zero2_auto", "old_form", "sgd_range_test"])
def test_both_backends_train_alike(name):
    pytest.importorskip("deepspeed")
    config = config_of(name)
    jax, torch = trained("jax", config), trained("torch", config)
    losses = [np.array([result.loss for result in results]) for results in (jax, torch)]
    assert worst_loss(*losses) < BOUNDS[config.precision]
    assert [np.float32(r.learning_rate) for r in jax] == [np.float32(r.learning_rate) for r in torch]
    assert len(set(losses[0])) == UPDATES


@pytest.mark.parametrize("name", ["bert_lamb_fp16", "bf16_lion_zero3", "megatron_gpt"])
def test_what_a_cpu_cannot_do_through_deepspeed_is_named_and_jax_does_it(name):
    pytest.importorskip("deepspeed")
    config = config_of(name)
    results = trained("jax", config)
    assert all(result.finite for result in results)
    if name in NO_CPU_KERNEL:
        with pytest.raises(BackendError, match=f"no CPU kernel of the optimizer '{NO_CPU_KERNEL[name]}'"):
            trained("torch", config)
    else:
        assert config.precision == "fp16"
