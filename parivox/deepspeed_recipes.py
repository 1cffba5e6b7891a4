"""Optimizers and schedulers of a DeepSpeed configuration and what becomes of each of their parameters here.

After `runtime/engine.py` (`_configure_basic_optimizer`), the constructors in `ops/adam`, `ops/lamb` and
`ops/lion`, `torch.optim.SGD`, and `runtime/lr_schedules.py` of DeepSpeed 0.19.
"""

from __future__ import annotations

from parivox.deepspeed_values import (
    BETA,
    COUNT,
    NATURAL,
    RATE,
    Key,
    betas,
    boolean,
    number,
    one_group,
    refused,
    silenced,
    used,
    word,
)

_MAX_GRAD_NORM = refused(
    "DeepSpeed clips by the key 'gradient_clipping' beside 'optimizer'; move the number there"
)
_AMSGRAD = refused("DeepSpeed's kernels have no AMSGrad; remove it or set it to false", False)
_GRAD_NONE = silenced("how gradients are cleared changes no result", set_grad_none=boolean)
_NO_TORCH_ADAM = (
    "torch's own Adam rounds otherwise and has other defaults; remove it and DeepSpeed's kernel is used"
)
_TORCH_FORM = "it chooses another kernel of torch.optim.SGD, which rounds otherwise; remove it"
_RATES = {"lr": used(RATE, 1e-3), "weight_decay": used(RATE, 0.0)}
_ADAM = {
    **_RATES,
    "betas": used(betas, (0.9, 0.999)),
    "eps": used(RATE, 1e-8),
    "bias_correction": used(boolean, True),
    "amsgrad": _AMSGRAD,
    "max_grad_norm": _MAX_GRAD_NORM,
}
_ADAM_W = {
    **_ADAM,
    "adam_w_mode": used(boolean, True),
    "torch_adam": refused(_NO_TORCH_ADAM, False),
    "foreach": refused("it belongs to torch_adam, which is not supported; remove it"),
    "fp32_optimizer_states": refused("moments are float32 here; remove it or set it to true", True),
    **_GRAD_NONE,
}

OPTIMIZERS: dict[str, dict[str, Key]] = {
    "adam": _ADAM_W,
    "adamw": _ADAM_W,
    "lamb": {
        **_ADAM,
        "max_coeff": used(RATE, 10.0),
        "min_coeff": used(RATE, 0.01),
        "eps_inside_sqrt": used(boolean, False),
    },
    "lion": {**_RATES, "betas": _ADAM["betas"], "max_grad_norm": _MAX_GRAD_NORM, **_GRAD_NONE},
    "sgd": {
        **_RATES,
        "momentum": used(RATE, 0.0),
        "dampening": used(RATE, 0.0),
        "nesterov": used(boolean, False),
        "maximize": refused("training here minimises; remove it or set it to false", False),
        "foreach": refused(_TORCH_FORM),
        "fused": refused(_TORCH_FORM, False),
        "differentiable": refused("no step is differentiated here; remove it or set it to false", False),
        "max_grad_norm": _MAX_GRAD_NORM,
    },
}
"""Parameters of each optimizer, by its kind."""

OPTIMIZER_NAMES = {"adam": "Adam", "adamw": "AdamW", "lamb": "Lamb", "lion": "Lion", "sgd": "SGD"}
"""How DeepSpeed knows them; it takes its own in any case, and torch's SGD in this one only."""

REFUSED_OPTIMIZERS = {
    "muon": "DeepSpeed's Muon of this version fails on 4-D convolution kernels, which the denoiser has; use AdamW",
    "onebitadam": "compressed communication has no equal in JAX; use Adam",
    "zerooneadam": "compressed communication has no equal in JAX; use Adam",
    "onebitlamb": "compressed communication has no equal in JAX; use Lamb",
    "adagrad": "the JAX backend has no Adagrad; use Adam",
    "muadam": "the JAX backend has no muP; use Adam",
    "muadamw": "the JAX backend has no muP; use AdamW",
    "musgd": "the JAX backend has no muP; use SGD",
    "cpuadam": "it is part of offload, which has no equal here; use Adam",
    "deepspeedcpuadam": "it is part of offload, which has no equal here; use Adam",
    "fusedadam": "DeepSpeed does not know its kernel by this name; write Adam",
    "fusedlamb": "DeepSpeed does not know its kernel by this name; write Lamb",
}


_RATES_OF, _MOMENTUM = one_group(RATE), one_group(BETA)
_LAST = refused("where a run goes on is the checkpoint's part; remove it", -1)
_WARMUP = {
    "warmup_num_steps": used(COUNT),
    "warmup_type": used(word("log", "linear")),
    "last_batch_iteration": _LAST,
}
_WARMUP_LR = {"warmup_min_lr": used(_RATES_OF), "warmup_max_lr": used(_RATES_OF, nullable=True), **_WARMUP}
_TOTAL = {"total_num_steps": used(COUNT)}

SCHEDULERS: dict[str, dict[str, Key]] = {
    "WarmupLR": _WARMUP_LR,
    "WarmupDecayLR": {**_WARMUP_LR, **_TOTAL},
    "WarmupCosineLR": {
        **_WARMUP,
        **_TOTAL,
        "warmup_min_ratio": used(number(0.0, 1.0)),
        "cos_min_ratio": used(number(0.0, 1.0)),
    },
    "OneCycle": {
        **dict.fromkeys(("cycle_min_lr", "cycle_max_lr"), used(_RATES_OF)),
        **dict.fromkeys(("cycle_min_mom", "cycle_max_mom"), used(_MOMENTUM)),
        **dict.fromkeys(("decay_lr_rate", "decay_mom_rate"), used(RATE)),
        "cycle_first_step_size": used(COUNT),
        **dict.fromkeys(("cycle_second_step_size", "cycle_second_stair_count"), used(NATURAL, nullable=True)),
        **dict.fromkeys(("cycle_first_stair_count", "decay_step_size"), used(NATURAL)),
        "cycle_momentum": used(boolean),
        "last_batch_iteration": _LAST,
    },
    "LRRangeTest": {
        "lr_range_test_min_lr": used(_RATES_OF),
        "lr_range_test_step_size": used(COUNT),
        "lr_range_test_step_rate": used(RATE),
        "lr_range_test_staircase": used(boolean),
        "last_batch_iteration": _LAST,
    },
}
"""Parameters of each scheduler, by its name; DeepSpeed's classes fill in their own defaults."""

REQUIRED = {
    "WarmupDecayLR": ("total_num_steps",),
    "WarmupCosineLR": ("total_num_steps",),
    "OneCycle": ("cycle_min_lr", "cycle_max_lr"),
}
"""Parameters without a default."""
