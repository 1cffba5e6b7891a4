"""Ten DeepSpeed configs of the kinds that people publish, and what tests of their reader share."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path

from parivox.hparams import HParams

FOLDER = Path(__file__).parent / "deepspeed_configs"
HP = HParams(
    batch_size_per_gpu=12, min_lr=2e-5, max_lr=3e-4, warmup_steps=50, max_steps=900, gradient_clipping=0.7
)
MINIMAL = {"train_batch_size": 8, "optimizer": {"type": "Adam", "params": {"lr": 1e-4}}}

REFUSED = {
    "hf_zero3_offload": [
        "zero_optimization.offload_optimizer",
        "zero_optimization.offload_param",
        "optimizer.params.torch_adam",
    ],
    "onebit_adam": ["elasticity", "optimizer.type"],
    "moe_curriculum": [
        "fp16.auto_cast",
        "amp",
        "zero_optimization.stage",
        "zero_optimization.cpu_offload",
        "zero_optimization.reduce_bucket_sise",
        "communication_data_type",
        "curriculum_learning",
        "sparse_attention",
        "quantize_training",
        "pipeline",
        "moe",
        "train_micro_batch",
        "train_batch_size",
        "optimizer.params.max_grad_norm",
        "optimizer.params.amsgrad",
        "optimizer.params.warmup",
        "scheduler.params.warmup_type",
        "scheduler.params.total_num_steps",
        "fp16.enabled",
    ],
}
NAMES = sorted(path.stem for path in FOLDER.glob("*.json"))
RESOLVED = [name for name in NAMES if name not in REFUSED]


def published(name):
    return json.loads((FOLDER / f"{name}.json").read_text())


def paths(error):
    """The paths that a message names, in order."""
    heading, *lines = str(error.value).split("\n")
    found = [re.match(r"- ([^ ]+): ", line) for line in lines]
    assert all(found), str(error.value)
    assert f": {len(lines)} thing" in heading
    return [match[1] for match in found if match]


def changed(config, path, value):
    """A copy with the value at a path set; objects on the way are made where they are missing."""
    new = copy.deepcopy(config)
    *before, last = path.split(".")
    inner = new
    for name in before:
        inner = inner.setdefault(name, {})
    inner[last] = value
    return new


def own_reader(deepspeed, config):
    from torch_impl.engine import single_process_world

    with single_process_world():
        return deepspeed.DeepSpeedConfig(copy.deepcopy(dict(config)))
