"""Rungs that ask for equality: settings and learning rate."""

from __future__ import annotations

import json
from collections.abc import Iterator

import numpy as np

from parity_tests import deepspeed_oracle
from parity_tests.ladder import BUNDLED_REFERENCE, Finding, Ladder
from parity_tests.result import Figure, Row, Skipped
from parity_tests.seeded import COMPUTED
from parity_tests.sides import Side
from parivox.hparams import DenoiserHParams, HParams
from parivox.weights import denoiser_specs

STFT_CONFIGS = ((512, 100, 400), (1024, 256, 1024), (2048, 512, 2048))
"""(n_fft, hop, window) of the multi-resolution STFT, written out."""

ENGINE_UPDATES = 1200
"""Updates driven through the real engine; the rest of the million through its scheduler class alone."""


def settings(ladder: Ladder) -> Iterator[Finding]:
    """Hyperparameters, STFT configurations, tensor names and the DeepSpeed config; errors count differences."""
    exact = ladder.bound("settings", "exact")
    configs = [(c["n_fft"], c["hop_length"], c["win_length"]) for c in HParams().stft_cfgs]
    wrong = sum(a != b for a, b in zip(configs, STFT_CONFIGS, strict=True))
    yield Row("settings", "STFT configurations", "written numbers", wrong, exact)
    public = public_shapes()
    for side in ladder.sides("float32"):
        yield Row(
            "settings",
            f"tensor names and shapes, {side.name}",
            "public checkpoint",
            name_faults(side, public),
            exact,
        )
    own = {name: spec.shape for name, spec in denoiser_specs().items()}
    yield Row(
        "settings",
        "tensor names and shapes, initial weights",
        "public checkpoint",
        _differing(own, public),
        exact,
    )
    if deepspeed_oracle.available():
        config = DenoiserHParams().deepspeed_config
        read = deepspeed_oracle.settings(config)
        wrong = sum(_plain(config[key]) != _plain(read[key]) for key in config)
        yield Row("settings", "DeepSpeed config", "DeepSpeed's own reader", wrong, exact)
    else:
        yield Skipped(
            "settings",
            "the config is not read by DeepSpeed: it is not installed (pip install 'parivox[deepspeed]')",
        )


def public_shapes() -> dict[str, tuple[int, ...]]:
    """Names and shapes of the denoiser's parameters in the public checkpoint."""
    manifest = json.loads((BUNDLED_REFERENCE / "denoiser.manifest.json").read_text(encoding="utf-8"))
    return {name: tuple(shape) for name, shape in manifest.items() if not name.endswith(COMPUTED)}


def name_faults(side: Side, public: dict[str, tuple[int, ...]]) -> int:
    """How many names or shapes of a backend's denoiser differ from the public ones."""
    return _differing(side.shapes(16), public)


def _differing(a: dict[str, tuple[int, ...]], b: dict[str, tuple[int, ...]]) -> int:
    return sum(a.get(name) != b.get(name) for name in a.keys() | b.keys())


def _plain(value: object) -> object:
    return {k.lower(): _plain(v) for k, v in value.items()} if isinstance(value, dict) else str(value).lower()


def learning_rate(ladder: Ladder) -> Iterator[Finding]:
    """The rate of every update, as float32; errors count the updates at which it differs."""
    config = HParams().deepspeed_config
    total = HParams().max_steps
    counts = np.arange(total)
    curves = {side.name: side.learning_rates(config, counts) for side in ladder.sides("float32")}
    exact = ladder.bound("learning rate", "exact")
    if deepspeed_oracle.available():
        real = deepspeed_oracle.scheduler_rates(config, total)
        curves["DeepSpeed"] = real.astype(np.float32)
        for side in ladder.sides("float32"):
            wrong = rate_faults(curves[side.name], real)
            yield Row(
                "learning rate",
                f"{total:,} updates, {side.name}",
                "DeepSpeed's scheduler",
                wrong,
                exact,
                "float32",
            )
    else:
        yield Skipped("learning rate", "DeepSpeed is not installed (pip install 'parivox[deepspeed]')")
    if len(ladder.backends) == 2:
        wrong = rate_faults(curves["jax"], curves["torch"])
        yield Row("learning rate", f"{total:,} updates, jax", "torch", wrong, exact, "float32")
    from parivox.plots import learning_rate_png

    caption = (
        "The rate of each of a million updates. Warm-up takes the first thousand, so it looks vertical here."
    )
    yield Figure("Learning rate", caption, learning_rate_png(curves))


def rate_faults(found: np.ndarray, wanted: np.ndarray) -> int:
    """How many rates differ as float32 numbers."""
    return int((np.asarray(found, np.float32) != np.asarray(wanted, np.float32)).sum())
