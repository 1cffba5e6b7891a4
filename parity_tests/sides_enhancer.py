"""The enhancer of one backend as the ladder sees it: NumPy in, NumPy out. Arrays are (b, channels, n)."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np

from parity_tests.sides import Side
from parivox.backend import NamedArrays
from parivox.hparams import EnhancerHParams

Part = Literal["irmae", "time map", "velocity", "flow", "snake", "vocoder", "enhance"]
"""Parts of the enhancer that `EnhancerSide.run` computes, by name."""


class Step(NamedTuple):
    """A pass forward and back of one stage: losses by name, other results, gradient of the losses' sum."""

    losses: dict[str, float]
    results: dict[str, np.ndarray]
    grads: NamedArrays


class EnhancerSide(Protocol):
    """What `parity_tests.side_enhancer_jax` and `parity_tests.side_enhancer_torch` provide."""

    side: Side

    def tensors(self, hp: EnhancerHParams, folded: bool = False) -> dict[str, tuple[int, ...]]:
        """Names and shapes of parameters and buffers."""
        ...

    def run(
        self,
        weights: NamedArrays,
        hp: EnhancerHParams,
        part: Part,
        inputs: Mapping[str, np.ndarray],
        folded: bool = False,
        tile: int | None = None,
        **static: Any,
    ) -> dict[str, np.ndarray]:
        """What a part of the enhancer makes of its inputs, by name; `static` are options of that part."""
        ...

    def normalize(self, batches: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """Mean and variance after each batch (k, 2), and the last batch normalised."""
        ...

    def stage1(
        self,
        weights: NamedArrays,
        judge: NamedArrays,
        hp: EnhancerHParams,
        x: np.ndarray,
        noise: np.ndarray,
        gradients: bool = True,
    ) -> Step:
        """The first stage with a discriminator of these weights; gradients of what the generator trains."""
        ...

    def stage2(
        self,
        weights: NamedArrays,
        hp: EnhancerHParams,
        signals: Sequence[np.ndarray],
        draws: Mapping[str, np.ndarray],
        gradients: bool = True,
    ) -> Step:
        """The second stage on mixture, clean and distorted speech."""
        ...


def enhancer_side(side: Side) -> EnhancerSide:
    """The enhancer of a backend that is open."""
    return importlib.import_module(f"parity_tests.side_enhancer_{side.name}").open_enhancer(side)
