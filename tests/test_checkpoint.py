"""Checkpoints: exact round trips, damage of every kind, retention, and faults while writing."""

from __future__ import annotations

import dataclasses
import os
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

from parivox import checkpoint as module
from parivox.backend import NamedArrays, TrainArrays
from parivox.checkpoint import (
    Checkpoint,
    CheckpointMeta,
    CheckpointVersionError,
    checkpoint_path,
    latest_checkpoint,
    list_checkpoints,
    load_checkpoint,
    load_model,
    save_checkpoint,
)
from parivox.errors import CheckpointError, ConfigError
from parivox.presets import preset


def make(step: int, *, permanent: bool = False, size: int = 4, dtype: str = "float32") -> Checkpoint:
    """A small checkpoint whose numbers depend on the step; some are NaN, infinite, denormal or -0."""
    draw = np.random.default_rng(step)

    def arrays() -> NamedArrays:
        odd = np.array([np.nan, np.inf, -0.0, 1e-42, 1 + 2**-23], dtype)
        return {
            "net.weight": draw.standard_normal((3, size)).astype(dtype),
            "net.scalar": np.array(draw.standard_normal(), dtype),
            "": odd,
            "net/empty": np.zeros((0, 2), dtype),
        }

    meta = CheckpointMeta(
        model="denoiser",
        step=step,
        data_position={"next": step * 4, "epochs": [0, 1]},
        seed=7,
        hparams=preset("denoiser_demo").to_dict(),
        schedule={"type": "WarmupDecayLR", "last_step": step - 1},
        writer={"backend": "jax", "numpy": np.__version__},
        permanent=permanent,
        extra={"skipped": ['bad "name".wav', "sp\u00e4t.wav"], "bytes": 2**53 + 1, "none": None},
    )
    return Checkpoint(TrainArrays(arrays(), arrays(), arrays(), step), meta)


def assert_same(a: Checkpoint, b: Checkpoint) -> None:
    assert a.meta == b.meta and a.arrays.step == b.arrays.step
    for group in ("weights", "exp_avg", "exp_avg_sq"):
        assert_same_arrays(getattr(a.arrays, group), getattr(b.arrays, group))


def assert_same_arrays(a: NamedArrays, b: NamedArrays) -> None:
    assert sorted(a) == sorted(b)
    for name in a:
        assert a[name].dtype == b[name].dtype and a[name].shape == b[name].shape
        assert a[name].tobytes() == b[name].tobytes()


def steps(run: Path) -> list[int]:
    return [int(path.stem.removeprefix("step-")) for path in list_checkpoints(run)]


def quiet(text: str) -> None:
    raise AssertionError(f"unexpected message: {text}")


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
def test_round_trip_is_exact(dtype: str, tmp_path: Path) -> None:
    written = make(100, dtype=dtype)
    path = save_checkpoint(tmp_path / "new" / "run", written)
    assert path == tmp_path / "new" / "run" / "checkpoints" / "step-00000100.safetensors"
    assert_same(load_checkpoint(path), written)
    assert all(array.flags.writeable for array in load_checkpoint(path).arrays.weights.values())
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


def test_layouts_in_memory_do_not_matter(tmp_path: Path) -> None:
    plain = np.arange(12, dtype=np.float32).reshape(3, 4)
    layouts = {"t": plain.T, "big": plain.astype(">f4"), "step": plain[:, ::2], "f": np.asfortranarray(plain)}
    meta = dataclasses.replace(make(1).meta)
    path = save_checkpoint(tmp_path, Checkpoint(TrainArrays(layouts, {}, {}, 1), meta))
    back = load_checkpoint(path).arrays
    for name, array in layouts.items():
        np.testing.assert_array_equal(back.weights[name], array)
    assert back.exp_avg == {} and back.exp_avg_sq == {}


def test_other_tools_can_read_it(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path, make(3))
    with safe_open(path, framework="numpy") as file:
        assert "weights/net.weight" in file.keys() and "exp_avg_sq/net.weight" in file.keys()  # noqa: SIM118
        assert file.metadata()["step"] == "3" and file.metadata()["model"] == '"denoiser"'


@pytest.mark.skipif(os.name == "nt", reason="file modes are POSIX")
def test_other_users_may_read_it(tmp_path: Path) -> None:
    (tmp_path / "ordinary").touch()
    wanted = stat.S_IMODE((tmp_path / "ordinary").stat().st_mode)
    assert stat.S_IMODE(save_checkpoint(tmp_path, make(3)).stat().st_mode) == wanted


def test_steps_must_agree() -> None:
    with pytest.raises(ValueError, match="step 5"):
        Checkpoint(dataclasses.replace(make(1).arrays, step=5), make(1).meta)


def test_truncation_anywhere_is_noticed(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path, make(1))
    whole = path.read_bytes()
    header = 8 + int.from_bytes(whole[:8], "little")
    offsets = {0, 1, 7, 8, 9, header - 1, header, header + 1, *range(0, len(whole), 37), len(whole) - 1}
    for offset in sorted(offsets):
        path.write_bytes(whole[:offset])
        with pytest.raises(CheckpointError, match=r"step-00000001\.safetensors: damaged"):
            load_checkpoint(path)
    path.write_bytes(whole + b"\0")
    with pytest.raises(CheckpointError, match="damaged"):
        load_checkpoint(path)


@pytest.mark.parametrize("buffers", [{}, {"mel.window": np.arange(3, dtype=np.float16)}])
def test_a_flipped_bit_anywhere_is_noticed(tmp_path: Path, buffers: NamedArrays) -> None:
    path = save_checkpoint(tmp_path, dataclasses.replace(make(1), buffers=buffers))
    whole = path.read_bytes()
    for place in range(len(whole)):
        flipped = bytearray(whole)
        flipped[place] ^= 1 << (place % 8)
        path.write_bytes(flipped)
        with pytest.raises(CheckpointError) as caught:
            load_checkpoint(path)
        assert path.name in str(caught.value) and "\n" not in str(caught.value), place
    path.write_bytes(whole)
    found = load_checkpoint(path)
    assert_same(found, make(1))
    assert found.buffers.keys() == buffers.keys()
    assert all((found.buffers[name] == array).all() for name, array in buffers.items())


def test_swapped_tensors_are_noticed(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path, make(1))
    with safe_open(path, framework="numpy") as file:
        metadata = file.metadata()
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    first, second = "exp_avg/net.weight", "exp_avg_sq/net.weight"
    tensors[first], tensors[second] = tensors[second], tensors[first]
    save_file(tensors, path, metadata=metadata)
    with pytest.raises(CheckpointError, match="digest of exp_avg"):
        load_checkpoint(path)
    save_file(tensors | {"stray/x": np.zeros(1)}, path, metadata=metadata)
    with pytest.raises(CheckpointError, match="stray/x"):
        load_checkpoint(path)


def test_files_that_are_no_checkpoints(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such checkpoint"):
        load_checkpoint(tmp_path / "absent.safetensors")
    with pytest.raises(CheckpointError, match="no such checkpoint"):
        load_model(tmp_path / "absent")
    with pytest.raises(CheckpointError, match="holds no checkpoint"):
        load_model(tmp_path)
    save_file({"x": np.zeros(3)}, tmp_path / "other.safetensors")
    with pytest.raises(CheckpointError, match="not a Parivox checkpoint"):
        load_checkpoint(tmp_path / "other.safetensors")
    (tmp_path / "text.safetensors").write_text("hello, this is no tensor file")
    with pytest.raises(CheckpointError, match="damaged"):
        load_model(tmp_path / "text.safetensors")


def test_the_one_before_a_damaged_one_is_used(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        save_checkpoint(tmp_path, make(step))
    data = checkpoint_path(tmp_path, 3).read_bytes()
    checkpoint_path(tmp_path, 3).write_bytes(data[:-5])
    (tmp_path / "checkpoints" / ".step-00000004.safetensors.77.tmp").write_bytes(data[:100])
    said: list[str] = []
    found = latest_checkpoint(tmp_path, said.append)
    assert found is not None
    assert_same(found, make(2))
    assert len(said) == 1 and "step-00000003.safetensors: damaged" in said[0]
    weights, _, meta = load_model(tmp_path, said.append)
    assert meta == make(2).meta and len(said) == 2
    assert_same_arrays(weights, make(2).arrays.weights)
    for step in (1, 2):
        checkpoint_path(tmp_path, step).write_bytes(b"")
    with pytest.raises(CheckpointError, match="none of the 3"):
        latest_checkpoint(tmp_path, said.append)
    assert sum("step-00000001" in line for line in said) == 1


def test_no_checkpoint_at_all(tmp_path: Path) -> None:
    assert latest_checkpoint(tmp_path / "absent", quiet) is None
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / ".step-00000004.safetensors.77.tmp").write_bytes(b"torn")
    (tmp_path / "checkpoints" / "step-00000004.safetensors.bak").write_bytes(b"somebody's copy")
    assert latest_checkpoint(tmp_path, quiet) is None


def test_weights_are_read_without_the_moments(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path, make(5))
    whole = bytearray(path.read_bytes())
    moment = make(5).arrays.exp_avg["net.weight"].tobytes()
    whole[bytes(whole).index(moment)] ^= 1
    path.write_bytes(whole)
    weights, _, meta = load_model(path, quiet)
    assert_same_arrays(weights, make(5).arrays.weights)
    assert meta.step == 5
    with pytest.raises(CheckpointError, match="digest of exp_avg "):
        load_checkpoint(path)


def test_newer_form_is_not_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_checkpoint(tmp_path, make(1))
    monkeypatch.setattr(module, "FORMAT_VERSION", 2)
    save_checkpoint(tmp_path, make(2))
    monkeypatch.undo()
    for read in (load_checkpoint, load_model):
        with pytest.raises(CheckpointVersionError, match="form 2, this program reads 1"):
            read(checkpoint_path(tmp_path, 2))
    with pytest.raises(CheckpointVersionError):
        latest_checkpoint(tmp_path, quiet)


def test_newest_are_kept_and_permanent_ones(tmp_path: Path) -> None:
    for step in range(1, 9):
        save_checkpoint(tmp_path, make(step, permanent=step in (2, 6)), keep=2)
    assert steps(tmp_path) == [8, 7, 6, 2]
    save_checkpoint(tmp_path, make(9), keep=1)
    assert steps(tmp_path) == [9, 6, 2]
    with pytest.raises(ConfigError, match="keep is 0"):
        save_checkpoint(tmp_path, make(10), keep=0)


def test_a_long_run_is_sorted_by_number(tmp_path: Path) -> None:
    for step in (99_999_999, 100_000_000, 100_000_001):
        save_checkpoint(tmp_path, make(step), keep=2)
    assert steps(tmp_path) == [100_000_001, 100_000_000]


def test_going_on_before_a_damaged_one_keeps_the_new_ones(tmp_path: Path) -> None:
    for step in (10, 20):
        save_checkpoint(tmp_path, make(step), keep=3)
    checkpoint_path(tmp_path, 20).write_bytes(checkpoint_path(tmp_path, 20).read_bytes()[:-1])
    save_checkpoint(tmp_path, make(15), keep=1)
    assert steps(tmp_path) == [20, 15]
    assert_same(load_checkpoint(checkpoint_path(tmp_path, 15)), make(15))
    save_checkpoint(tmp_path, make(20), keep=1)
    assert steps(tmp_path) == [20]


def test_leftovers_are_removed_at_the_next_save(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    for name in (".step-00000001.safetensors.77.tmp", ".tmpAb12Cd", "notes.txt"):
        (folder / name).write_bytes(b"torn")
    save_checkpoint(tmp_path, make(2))
    assert sorted(entry.name for entry in folder.iterdir()) == ["notes.txt", "step-00000002.safetensors"]


def test_failure_between_writing_and_renaming(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_checkpoint(tmp_path, make(1), keep=1)

    def fail(*_: object) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(CheckpointError, match=r"step-00000002.*Input/output error"):
        save_checkpoint(tmp_path, make(2), keep=1)
    monkeypatch.undo()
    assert [entry.name for entry in (tmp_path / "checkpoints").iterdir()] == ["step-00000001.safetensors"]
    found = latest_checkpoint(tmp_path, quiet)
    assert found is not None and found.meta.step == 1


FULL_DISK = """
import resource, signal, sys
import test_checkpoint
from parivox.checkpoint import save_checkpoint
from parivox.errors import CheckpointError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
try:
    save_checkpoint(sys.argv[1], test_checkpoint.make(2, size=100_000), keep=1)
except CheckpointError as error:
    print("refused", error)
"""


@pytest.mark.skipif(os.name == "nt", reason="limits on file size are POSIX")
def test_a_full_disk_leaves_the_older_one(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, make(1), keep=1)
    folder = Path(__file__).parent
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(folder.parent), str(folder)])}
    command = [sys.executable, "-c", FULL_DISK, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.startswith("refused") and "step-00000002.safetensors" in done.stdout
    assert [entry.name for entry in (tmp_path / "checkpoints").iterdir()] == ["step-00000001.safetensors"]
    assert_same(load_checkpoint(checkpoint_path(tmp_path, 1)), make(1))


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("a file in the way")
    with pytest.raises(CheckpointError, match="cannot be written"):
        save_checkpoint(tmp_path / "run", make(1))


KILLED = """
import sys
import test_checkpoint
from parivox.checkpoint import save_checkpoint
for step in range(2, 10_000):
    save_checkpoint(sys.argv[1], test_checkpoint.make(step, size=20_000), keep=2)
    print(step, flush=True)
"""


def test_kill_while_saving_leaves_whole_checkpoints(tmp_path: Path) -> None:
    folder = Path(__file__).parent
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(folder.parent), str(folder)])}
    save_checkpoint(tmp_path, make(1))
    command = [sys.executable, "-c", KILLED, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        for _ in range(5):
            last = int(process.stdout.readline())
        process.kill()
    found = latest_checkpoint(tmp_path, quiet)
    assert found is not None and found.meta.step >= last
    assert_same(found, make(found.meta.step, size=20_000))
