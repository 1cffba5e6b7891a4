"""Lion and LAMB in NumPy, after DeepSpeed's CUDA kernels: the engine has no CPU version of them to compare with.

Everything is computed in the dtype of the arrays, with constants rounded to it first. Written from the kernels
(`multi_tensor_lion.cu`, `fused_lamb_cuda_kernel.cu`), element by element as a thread sees it, and shares no code
with either backend.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from parity_tests.sides import AdamTrace
from parivox.backend import NamedArrays


def clip(grads: NamedArrays, max_norm: float) -> NamedArrays:
    """DeepSpeed's clipping, in the arrays' dtype."""
    dtype = next(iter(grads.values())).dtype
    total = np.sqrt(sum((g.ravel() @ g.ravel() for g in grads.values()), dtype.type(0)))
    factor = min(dtype.type(1), dtype.type(max_norm) / (total + dtype.type(1e-6)))
    return {name: g * factor for name, g in grads.items()}


def lion(
    start: NamedArrays,
    grads: Sequence[NamedArrays],
    max_norm: float,
    rates: Iterable[float],
    **constants: Any,
) -> AdamTrace:
    """One Lion update for each gradient; `constants` are `betas` and `weight_decay`."""
    real = next(iter(start.values())).dtype.type
    beta1, beta2 = map(real, constants["betas"])
    p, m = dict(start), {name: np.zeros_like(array) for name, array in start.items()}
    for rate, given in zip(map(real, rates), grads, strict=True):
        after_decay = real(1) - rate * real(constants["weight_decay"])
        for name, g in clip(given, max_norm).items():
            positive = beta1 * m[name] + (real(1) - beta1) * g > 0
            # The compiler joins product and sum to one rounding, which 200 updates show.
            exact = p[name].astype(np.longdouble) * after_decay + np.where(positive, -rate, rate)
            p[name] = exact.astype(real)
            m[name] = beta2 * m[name] + (real(1) - beta2) * g
    return AdamTrace(p, m, {})


def lamb(
    start: NamedArrays,
    grads: Sequence[NamedArrays],
    max_norm: float,
    rates: Iterable[float],
    **constants: Any,
) -> AdamTrace:
    """One LAMB update for each gradient; `constants` are the parameters of DeepSpeed's FusedLamb."""
    real = next(iter(start.values())).dtype.type
    beta1, beta2 = map(real, constants["betas"])
    eps, decay = real(constants["eps"]), real(constants["weight_decay"])
    p = dict(start)
    m, v = ({name: np.zeros_like(array) for name, array in start.items()} for _ in range(2))
    for step, (rate, given) in enumerate(zip(map(real, rates), grads, strict=True), start=1):
        step_size = rate
        if constants["bias_correction"]:
            # The power is taken of the rounded beta, in double precision.
            corrections = [real(1 - float(beta) ** step) for beta in (beta1, beta2)]
            step_size = rate * np.sqrt(corrections[1]) / corrections[0]
        for name, g in clip(given, max_norm).items():
            m[name] = beta1 * m[name] + (real(1) - beta1) * g
            v[name] = beta2 * v[name] + (real(1) - beta2) * g * g
            denominator = np.sqrt(v[name] + eps) if constants["eps_inside_sqrt"] else np.sqrt(v[name]) + eps
            update = m[name] / denominator + decay * p[name]
            weight_norm, update_norm = (np.sqrt(np.sum(x * x)) for x in (p[name], update))
            coefficient = real(1)
            if weight_norm != 0 and update_norm != 0:
                highest, lowest = real(constants["max_coeff"]), real(constants["min_coeff"])
                coefficient = max(min(weight_norm / update_norm, highest), lowest)
            p[name] = p[name] - step_size * coefficient * update
    return AdamTrace(p, m, v)
