"""One backend never loads the other, and works where the other is not installed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from parivox.audio import probe
from parivox.backend import BACKENDS, installed
from tests.data_folder import folders
from tests.tiny_model import recording, tiny_run

ROOT = Path(__file__).parent.parent
JAX = ("jax", "jaxlib", "flax", "optax", "orbax", "chex", "jax_impl")
TORCH = ("torch", "deepspeed", "torch_impl")
TRAINING = ("grain", "matplotlib", "tensorboardX", "deepspeed")
"""What cleaning a file must not load."""

HIDE = """
import importlib.abc, json, sys
hidden, arguments = json.loads(sys.argv[1]), json.loads(sys.argv[2])

class Hidden(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name.partition(".")[0] in hidden:
            raise ModuleNotFoundError(f"No module named {name!r} (hidden by the test)", name=name)

sys.meta_path.insert(0, Hidden())
from parivox.cli import main
status = main(arguments)
print(json.dumps(sorted({name.partition(".")[0] for name in sys.modules})))
raise SystemExit(status)
"""

needs = {
    name: pytest.mark.skipif(not installed(name), reason=f"{name} is not installed") for name in BACKENDS
}


def parivox(hidden: tuple[str, ...], *arguments: str) -> tuple[set[str], str]:
    """Run a command in a process that lacks some packages; the packages it loaded, and its standard error."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", HIDE, json.dumps(hidden), json.dumps(arguments)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    return set(json.loads(done.stdout.splitlines()[-1])), done.stderr


def enhance(tmp_path: Path, backend: str, hidden: tuple[str, ...]) -> set[str]:
    """Clean a file end to end; the packages that this loaded."""
    source, run = recording(tmp_path / "in.flac", 48_000, 2), tiny_run(tmp_path / "run")
    target = tmp_path / "out.flac"
    words = ("enhance", str(source), str(target), "--denoise-only", "--run", str(run), "--backend", backend)
    loaded, errors = parivox(hidden, *words)
    assert probe(target) == probe(source)
    assert errors == ""
    return loaded


@needs["jax"]
def test_jax_cleans_a_file_where_torch_and_deepspeed_are_absent(tmp_path):
    loaded = enhance(tmp_path, "jax", ("torch", "deepspeed", *TRAINING))
    assert "jax_impl" in loaded and not loaded & {*TORCH, *TRAINING}


@needs["torch"]
def test_torch_cleans_a_file_where_jax_and_deepspeed_are_absent(tmp_path):
    loaded = enhance(tmp_path, "torch", ("jax", "jaxlib", "flax", "optax", *TRAINING))
    assert "torch_impl" in loaded and not loaded & {*JAX, *TRAINING}


@pytest.mark.parametrize(
    ("backend", "other"),
    [pytest.param("jax", TORCH, marks=needs["jax"]), pytest.param("torch", JAX, marks=needs["torch"])],
)
def test_cleaning_loads_nothing_of_the_other_backend_where_both_are_there(tmp_path, backend, other):
    assert not enhance(tmp_path, backend, ()) & {*other, *TRAINING}


def train(tmp_path: Path, backend: str) -> set[str]:
    """One update and one evaluation; the packages that this loaded."""
    hp = folders(tmp_path / "data").replace(unet_hidden_dim=1, batch_size_per_gpu=2, max_steps=2)
    hp.save(tmp_path / "hparams.yaml")
    run = tmp_path / "run"
    words = ("--backend", backend, "--config", str(tmp_path / "hparams.yaml"), "--stop-at", "1")
    loaded, _ = parivox((), "train", "denoiser", str(run), *words)
    assert (run / "checkpoints" / "step-00000001.safetensors").exists()
    assert json.loads((run / "summary.json").read_text())["step"] == 1
    return loaded


@needs["jax"]
def test_training_on_jax_loads_nothing_of_torch(tmp_path):
    assert not train(tmp_path, "jax") & {*TORCH}


@needs["torch"]
def test_training_on_torch_loads_no_jax_backend(tmp_path):
    # grain itself imports jax where it is installed.
    assert "jax_impl" not in train(tmp_path, "torch")


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    ("backend", "absent"), [("jax", ("torch", "deepspeed")), ("torch", ("jax", "deepspeed"))]
)
def test_cleaning_in_an_environment_with_one_backend_alone(tmp_path, backend, absent):
    python = tmp_path / "venv" / "bin" / "python"
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "venv")], check=True)
    pip = [str(python), "-m", "pip", "install", "-q", "--disable-pip-version-check", "--no-compile"]
    # A copy: building in place would leave files in the working tree.
    source = tmp_path / "source"
    names = ("parivox", "jax_impl", "torch_impl", "parity_tests")
    copy_tree(source, (*names, "pyproject.toml", "constraints.txt", "LICENSE", "README.md"))
    constraints = source / "constraints.txt"
    subprocess.run([*pip, "-c", str(constraints), f"{source}[{backend}]"], check=True, cwd=tmp_path)
    listed = "import importlib.util as u, sys; print([n for n in sys.argv[1:] if u.find_spec(n)])"
    found = subprocess.run([str(python), "-c", listed, *absent], check=True, capture_output=True, text=True)
    assert found.stdout.strip() == "[]"
    audio, run = recording(tmp_path / "in.wav", 16_000, 2), tiny_run(tmp_path / "run")
    target = tmp_path / "out.wav"
    words = ("enhance", str(audio), str(target), "--denoise-only", "--run", str(run))
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    command = [str(python.with_name("parivox")), *words]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert f"{backend} on" in done.stdout and probe(target) == probe(audio)


def copy_tree(target: Path, names: tuple[str, ...]) -> None:
    """Copy these folders and files of the project, as far as they are there."""
    import shutil

    target.mkdir()
    for name in names:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, target / name, ignore=shutil.ignore_patterns("__pycache__"))
        elif source.exists():
            shutil.copy(source, target / name)
