"""Exported denoisers: what they compute, without Parivox too, and what is refused."""

from __future__ import annotations

import contextlib
import importlib
import io
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import jaxtyping
import numpy as np
import pytest

from parity_tests import seeded
from parivox import exported
from parivox.backend import get_backend
from parivox.cli import main
from parivox.errors import BackendError, CheckpointError, ConfigError
from parivox.hparams import DenoiserHParams
from parivox.loading import Loaded, load_for_cleaning
from parivox.weights import denoiser_specs
from tests.tiny_model import enhancer_run, tiny_run

for module in ("onnx", "onnxruntime", "flatbuffers"):
    pytest.importorskip(module, reason="needs the extra export")

PAGE = Path(__file__).parent.parent / "docs/export.md"
# onnxruntime and the exporters warn of their own ways.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


@contextlib.contextmanager
def unchecked() -> Iterator[None]:
    """Sizes are symbols while a program is traced, and a check of annotations at run time wants numbers."""
    before = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", before)


@pytest.fixture(autouse=True)
def unchecked_annotations() -> Iterator[None]:
    with unchecked():
        yield


def model(hidden: int) -> Loaded:
    return Loaded(
        DenoiserHParams(unet_hidden_dim=hidden),
        seeded.weights({name: spec.shape for name, spec in denoiser_specs(hidden).items()}, 3),
        "seeded",
    )


def sounds(rows: int, samples: int) -> np.ndarray:
    rng = np.random.default_rng(samples)
    t = np.arange(samples) / 44_100
    tones = np.stack([np.sin(2 * np.pi * (150 + 70 * row + 500 * t) * t) for row in range(rows)])
    return (0.3 * tones + 0.05 * rng.standard_normal((rows, samples))).astype(np.float32)


def decibels(wanted: np.ndarray, made: np.ndarray) -> float:
    assert wanted.shape == made.shape
    wanted, made = wanted.astype(np.float64), made.astype(np.float64)
    return float(10 * np.log10((wanted**2).sum() / ((wanted - made) ** 2).sum()))


def check_both(folder: Path, form: exported.ExportFormat, hidden: int, shapes: list[tuple[int, int]]) -> None:
    path, one = folder / f"d.{form}", model(hidden)
    exported.export_model(one, path, form, check=False)
    program = importlib.import_module(f"{exported.MAKERS[form]}_impl.export").load_program(path.read_bytes())
    for name in ("jax", "torch"):
        backend = get_backend(name, device="cpu")
        denoiser = backend.load_denoiser(one.hp, one.weights)
        for shape in shapes:
            x = sounds(*shape)
            distance = decibels(backend.denoise(denoiser, x), program(x))
            assert distance >= exported.LEAST_DB, (name, shape, distance)


# JAX compiles a program for every shape, which takes most of the time of these.
@pytest.mark.slow
@pytest.mark.parametrize("form", ["onnx", "stablehlo"])
def test_any_shape_is_both_backends(tmp_path, form):
    check_both(tmp_path, form, 2, [(1, 841), (1, 1261), (1, 6721), (3, 8403), (2, 13_440)])


@pytest.mark.slow
@pytest.mark.parametrize("form", ["onnx", "stablehlo"])
def test_public_width(tmp_path, form):
    check_both(tmp_path, form, 16, [(1, 841), (2, 9999), (1, 44_100), (3, 20_160)])


@pytest.fixture(scope="module")
def onnx(tmp_path_factory) -> Iterator[tuple[Path, str]]:
    """The denoiser of an enhancer, exported by the command, and what the command said; it takes a while."""
    folder = tmp_path_factory.mktemp("onnx")
    run, path, said = enhancer_run(folder / "run"), folder / "denoiser.onnx", io.StringIO()
    with unchecked(), contextlib.redirect_stdout(said):
        assert main(["export", str(run), str(path)]) == 0
    assert load_for_cleaning(run, True).hp.unet_hidden_dim == 1
    yield path, said.getvalue()


def test_the_command_takes_the_denoiser_of_an_enhancer(onnx):
    path, said = onnx
    assert path.stat().st_size > 10_000
    assert "dB from the backend" in said


@pytest.mark.parametrize(("title", "name"), [("ONNX", "onnx"), ("StableHLO", "stablehlo")])
def test_the_page_runs_without_parivox(tmp_path, title, name, request):
    (code,) = re.findall(rf"## {title}\n\n```python\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL)
    if name == "onnx":
        shutil.copy(request.getfixturevalue("onnx")[0], tmp_path)
    else:
        exported.export_model(model(1), tmp_path / "denoiser.stablehlo", "stablehlo", check=False)
    code += "import sys\nassert 'parivox' not in sys.modules\nassert np.isfinite(denoised).all() and denoised.any()"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[0] == "44100"


def test_a_program_that_computes_something_else_is_not_written(tmp_path, monkeypatch, onnx):
    maker = importlib.import_module("torch_impl.export")
    run, honest = onnx[0].parent / "run", maker.load_program
    monkeypatch.setattr(maker, "export_denoiser", lambda *arguments: onnx[0].read_bytes())
    exported.export_model(load_for_cleaning(run, True), tmp_path / "honest.onnx", "onnx")
    monkeypatch.setattr(maker, "load_program", lambda data: lambda x: 1.001 * honest(data)(x))
    with pytest.raises(BackendError, match="60 dB from the backend"):
        exported.export_model(load_for_cleaning(run, True), tmp_path / "d.onnx", "onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["honest.onnx"]


def test_refusals(tmp_path, monkeypatch, capsys):
    with pytest.raises(ConfigError, match=r"end it in \.onnx"):
        exported.format_of(tmp_path / "d.bin", None)
    assert exported.format_of(tmp_path / "d.bin", "onnx") == "onnx"
    (tmp_path / "there.onnx").touch()
    with pytest.raises(CheckpointError, match="exists already"):
        exported.export_model(model(1), tmp_path / "there.onnx", "onnx")
    with pytest.raises(CheckpointError, match="cannot be written"):
        exported.export_model(model(1), tmp_path / "there.onnx/d.onnx", "onnx", check=False)
    assert main(["export", str(tiny_run(tmp_path / "run")), str(tmp_path / "d.txt")]) == 1
    assert capsys.readouterr().err.count("\n") == 1
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnx" else object())
    with pytest.raises(BackendError, match=r"pip install 'parivox\[export\]'"):
        exported.export_model(model(1), tmp_path / "d.onnx", "onnx")
