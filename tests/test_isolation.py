"""One backend never loads the other, and works where the other is not installed."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
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
TRAINING = ("grain", "matplotlib", "tensorboardX", "deepspeed", "huggingface_hub")
"""What cleaning a file with a model of this machine must not load."""

HIDE = """
import json, sys
hidden, arguments = json.loads(sys.argv[1]), json.loads(sys.argv[2])

asked = set()

class Finder:
    def __init__(self, finder):
        self.finder = finder

    def __getattr__(self, name):
        return getattr(self.finder, name)

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in hidden:
            asked.add(name)
            return None
        return self.finder.find_spec(name, path, target)

sys.meta_path[:] = [Finder(finder) for finder in sys.meta_path]
from parivox.cli import main
status = main(arguments)
loaded = sorted({name.partition(".")[0] for name in sys.modules if sys.modules[name] is not None})
print(json.dumps([loaded, sorted(asked)]))
raise SystemExit(status)
"""

needs = {
    name: pytest.mark.skipif(not installed(name), reason=f"{name} is not installed") for name in BACKENDS
}


def parivox(hidden: tuple[str, ...], *arguments: str) -> tuple[set[str], list[str], str]:
    """Run a command in a process that lacks some packages.

    Returns:
        The packages it loaded, the hidden modules it asked for, and its standard error.
    """
    environment = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", HIDE, json.dumps(hidden), json.dumps(arguments)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    loaded, asked = json.loads(done.stdout.splitlines()[-1])
    return set(loaded), asked, done.stderr


@pytest.mark.parametrize(
    ("backend", "other"),
    [pytest.param("jax", TORCH, marks=needs["jax"]), pytest.param("torch", JAX, marks=needs["torch"])],
)
def test_one_backend_cleans_a_file_and_asks_for_nothing_of_the_other(tmp_path, backend, other):
    source, run = recording(tmp_path / "in.flac", 48_000, 2), tiny_run(tmp_path / "run")
    target = tmp_path / "out.flac"
    words = ("enhance", str(source), str(target), "--denoise-only", "--run", str(run), "--backend", backend)
    loaded, asked, errors = parivox((*other, *TRAINING), *words)
    assert probe(target) == probe(source) and errors == ""
    assert f"{backend}_impl" in loaded and not loaded & {*other, *TRAINING}
    # A try around an import would hide it: where both are installed, the other would be loaded.
    assert not {name.partition(".")[0] for name in asked} & {*other} - {"deepspeed"}


def train(tmp_path: Path, backend: str) -> set[str]:
    """Train a run up to step 1 and evaluate; the packages this loaded."""
    hp = folders(tmp_path / "data").replace(unet_hidden_dim=1, batch_size_per_gpu=2, max_steps=2)
    run = tiny_run(tmp_path / "run", hp)
    loaded, _, _ = parivox((), "train", "denoiser", str(run), "--backend", backend, "--stop-at", "1")
    summary = json.loads((run / "summary.json").read_text())
    assert (summary["step"], summary["backend"]["backend"], summary["evaluation"]["items"]) == (
        1,
        backend,
        10,
    )
    return loaded


@needs["jax"]
@pytest.mark.slow
def test_training_on_jax_loads_nothing_of_torch(tmp_path):
    loaded = train(tmp_path, "jax")
    assert "jax_impl" in loaded and not loaded & {*TORCH}


@needs["torch"]
@pytest.mark.skipif(importlib.util.find_spec("deepspeed") is None, reason="DeepSpeed is not installed")
@pytest.mark.slow
def test_training_on_torch_loads_no_jax_backend(tmp_path):
    loaded = train(tmp_path, "torch")
    # grain itself imports jax where it is installed.
    assert "torch_impl" in loaded and not loaded & {"jax_impl", "flax", "optax"}


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
    target.mkdir()
    for name in names:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, target / name, ignore=shutil.ignore_patterns("__pycache__"))
        elif source.exists():
            shutil.copy(source, target / name)
