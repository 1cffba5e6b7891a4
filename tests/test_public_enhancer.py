"""A checkpoint of the public size in the public layout, from seeded weights: converted, and heard on both backends."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from parity_tests import seeded
from parity_tests.ladder import BUNDLED_REFERENCE
from parity_tests.tolerances import FACTOR_OF_PUBLISHED, bound
from parivox.backend import BackendName, Dtype, NamedArrays, installed
from parivox.convert import convert, read_model
from parivox.hparams import EnhancerHParams
from parivox.model_kinds import KINDS
from parivox.presets import preset
from parivox.public_layout import read_public
from tests.enhance_process import LENGTH
from tests.published import published, same
from tests.train_folder import ROOT, process_environment

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(7200),
    pytest.mark.skipif(not (installed("jax") and installed("torch")), reason="compares two backends"),
]

MANIFEST: dict[str, list[int]] = json.loads((BUNDLED_REFERENCE / "enhancer_full.manifest.json").read_text())
Draw = tuple[int, float]
"""Evaluations of the flow, and the share of denoised sound in its condition."""

FEW, HALF, MANY = (8, 1.0), (8, 0.5), (64, 1.0)
DRAWS: tuple[Draw, ...] = (FEW, HALF, MANY)

Made = dict[tuple[BackendName, Dtype, Draw], np.ndarray]


def public_hparams() -> EnhancerHParams:
    hp = preset("enhancer_stage2")
    assert isinstance(hp, EnhancerHParams)
    return hp


def seeded_tensors(dtype: str) -> NamedArrays:
    """All 909 tensors of a public checkpoint."""
    kind, hp = KINDS["enhancer"], public_hparams()
    drawn = seeded.weights({name: shape for name, shape in MANIFEST.items()}, 20)
    tensors = {**drawn, **kind.buffers(hp)}
    assert {name: list(array.shape) for name, array in tensors.items()} == MANIFEST and len(MANIFEST) == 909
    return {name: tensors[name].astype(dtype) for name in kind.shapes(hp)}


@pytest.fixture(scope="module")
def public(tmp_path_factory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("full")
    yield published(folder / "enhancer_stage2", public_hparams(), seeded_tensors("float32"))
    shutil.rmtree(folder)  # gigabytes, which pytest would keep


@pytest.fixture(scope="module")
def run(public) -> Path:
    """The same as a run."""
    convert(public, public.parent / "run", message=pytest.fail)
    return public.parent / "run"


@pytest.fixture(scope="module")
def made(public, run, tmp_path_factory) -> Made:
    """Every sound; one backend reads the run, the other the public folder."""
    folder = tmp_path_factory.mktemp("sounds")
    plan: list[tuple[Path, BackendName, Dtype, tuple[Draw, ...]]] = [
        (run, "torch", "float32", DRAWS),
        (public, "jax", "float32", DRAWS),
        (run, "torch", "float64", DRAWS),
        (run, "jax", "float64", (FEW,)),
    ]
    for place, backend, dtype, draws in plan:
        words = [str(place), backend, dtype, str(folder), *(f"{nfe},{lambd}" for nfe, lambd in draws)]
        command = [sys.executable, "-W", "error", "-m", "tests.enhance_process", *words]
        subprocess.run(command, cwd=ROOT, env=process_environment(), check=True)
    return {
        (backend, dtype, draw): np.load(folder / f"{backend}-{dtype}-{draw[0]}-{draw[1]}.npy")
        for _, backend, dtype, draws in plan
        for draw in draws
    }


def apart(one: np.ndarray, two: np.ndarray) -> float:
    """Relative distance, printed in decibels too."""
    error = float(np.linalg.norm(one - two) / np.linalg.norm(two))
    print(f"relative distance {error:.2e}, {-20 * np.log10(max(error, 1e-300)):.1f} dB", flush=True)
    return error


def test_the_sound_is_one(made):
    for sound in made.values():
        assert sound.shape == (1, LENGTH) and np.isfinite(sound).all()
        assert np.abs(sound[:, : LENGTH // 2]).max() > 0.05


def test_both_backends_are_the_same_algorithm(made):
    assert apart(made["jax", "float64", FEW], made["torch", "float64", FEW]) <= bound("enhanced", "float64")


@pytest.mark.parametrize("draw", DRAWS)
@pytest.mark.parametrize("backend", ["jax", "torch"])
def test_float32_is_as_close_to_float64_as_the_published_program(made, backend, draw):
    assert apart(made[backend, "float32", draw], made["torch", "float64", draw]) <= bound(
        "enhanced", "float32"
    )


@pytest.mark.parametrize("draw", DRAWS)
def test_jax_rounds_no_worse_than_the_operations_that_the_published_program_is_made_of(made, draw):
    own, published = (
        apart(made[name, "float32", draw], made["torch", "float64", draw]) for name in ("jax", "torch")
    )
    assert own <= FACTOR_OF_PUBLISHED * published


def test_the_denoised_share_is_heard(made):
    assert apart(made["torch", "float64", HALF], made["torch", "float64", FEW]) > bound("enhanced", "float32")


@pytest.mark.parametrize("draw", DRAWS)
def test_the_backends_are_close_to_each_other(made, draw):
    # Each may be that far from the truth.
    error = apart(made["jax", "float32", draw], made["torch", "float32", draw])
    assert error <= 2 * bound("enhanced", "float32")


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_all_909_tensors_go_there_and_back(run, tmp_path, dtype):
    tensors = seeded_tensors(dtype)
    if dtype == "float16":
        place = published(tmp_path / "public", public_hparams(), tensors)
        run = tmp_path / "run"
        convert(place, run, message=pytest.fail)
    assert read_model(run)[0].step == 0
    convert(run, tmp_path / "one.safetensors", message=pytest.fail)
    convert(tmp_path / "one.safetensors", tmp_path / "back", "public", message=pytest.fail)
    assert same(read_public(tmp_path / "back")[2], tensors)
    shutil.rmtree(tmp_path)
