"""`parivox train denoiser` in several processes: one run, one voice, and one end."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from parity_tests.tolerances import bound
from parivox.checkpoint import latest_checkpoint
from parivox.runlog import read_metrics
from tests.rank_processes import DEATH_SECONDS, PATIENCE, environment
from tests.train_folder import curve, small_hparams

pytest.importorskip("deepspeed")

STEPS, LONG = 4, 100_000
CONFIG = {
    "train_batch_size": 4,
    "gradient_accumulation_steps": 1,
    "optimizer": {"type": "Adam", "params": {"lr": 1e-3}},
    "zero_optimization": {"stage": 2},
}
"""The global batch is fixed: two processes do what one does."""


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """A folder with hyperparameters, a DeepSpeed config, and an uninterrupted run of one PyTorch process."""
    folder = tmp_path_factory.mktemp("data")
    small_hparams(folder / "sound", max_steps=LONG).save(folder / "hp.yaml")
    (folder / "ds.json").write_text(json.dumps(CONFIG))
    with launched("torch", 1, folder, folder / "whole", "--stop-at", str(STEPS)) as processes:
        finish(processes)
    return folder


def words(backend: str, data: Path, run: Path, *more: str) -> list[str]:
    given = ["--config", str(data / "hp.yaml"), "--deepspeed-config", str(data / "ds.json"), "--workers", "0"]
    given += ["--eval-every", "0", "--checkpoint-every", "2", "--device", "cpu", "--backend", backend]
    return ["-m", "parivox", "train", "denoiser", str(run), *given, *more]


def free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


@contextmanager
def launched(backend: str, size: int, data: Path, run: Path, *more: str) -> Iterator[list[subprocess.Popen]]:
    """The processes of one run, each told by hand what a launcher or a user tells it."""
    port, processes = free_port(), []
    try:
        for rank in range(size):
            told, flags = {"JAX_NUM_CPU_DEVICES": "1", "DS_ACCELERATOR": "cpu"}, []
            if size > 1 and backend == "torch":
                told |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size)}
                told |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
            elif size > 1:
                flags = ["--coordinator", f"127.0.0.1:{port}", "--num-processes", str(size)]
                flags += ["--process-id", str(rank)]
            processes.append(
                subprocess.Popen(
                    [sys.executable, *words(backend, data, run, *more, *flags)],
                    env=environment(**told),
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    text=True,
                )
            )
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.communicate()


def finish(processes: list[subprocess.Popen], status: int = 0) -> list[tuple[str, str]]:
    told = [process.communicate(timeout=PATIENCE) for process in processes]
    assert [process.returncode for process in processes] == [status] * len(processes), told
    return told


def wait_for_updates(run: Path, processes: list[subprocess.Popen], count: int = 3) -> None:
    deadline = time.monotonic() + PATIENCE
    while not (run / "metrics.jsonl").exists() or len(read_metrics(run)) < count:
        assert all(process.poll() is None for process in processes), processes[0].communicate()
        assert time.monotonic() < deadline
        time.sleep(0.1)


def assert_same_curve(run: Path, whole: Path) -> None:
    found, wanted = curve(run), curve(whole)
    assert [step for step, _ in found] == [step for step, _ in wanted] == list(range(1, STEPS + 1))
    worst = max(abs(a / b - 1) for (_, a), (_, b) in zip(found, wanted, strict=True))
    print(f"worst loss {worst:.1e}")
    assert worst <= bound("training", "float32")


@pytest.mark.slow
def test_torchrun_makes_one_run(tmp_path, data):
    run = tmp_path / "run"
    launcher = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", free_port()]
    done = subprocess.run(
        [sys.executable, *launcher, *words("torch", data, run, "--stop-at", str(STEPS))],
        env=environment(DS_ACCELERATOR="cpu"),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("training ") == done.stdout.count("done; the model is in") == 1
    assert "2 devices: batch of 4 = 2 in a pass x 1 passes x 2 devices; ZeRO stage 2\n" in done.stdout
    assert_same_curve(run, data / "whole")
    assert latest_checkpoint(run).meta.data_position == {"records": 4 * STEPS}


@pytest.mark.slow
def test_two_jax_processes_make_one_run(tmp_path, data):
    run = tmp_path / "run"
    with launched("jax", 2, data, run, "--stop-at", str(STEPS)) as processes:
        (first, _), (second, _) = finish(processes)
    assert first.count("training ") == 1 and second == ""
    assert_same_curve(run, data / "whole")


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
@pytest.mark.parametrize("backend", ["torch", "jax"])
def test_a_killed_rank_ends_the_run_which_goes_on(tmp_path, data, backend, victim):
    run = tmp_path / "run"
    with launched(backend, 2, data, run) as processes:
        wait_for_updates(run, processes)
        processes[victim].kill()
        other = processes[1 - victim]
        said = other.communicate(timeout=DEATH_SECONDS)[1]
    ours = [line for line in said.splitlines() if line.startswith("parivox: ")]
    assert other.returncode == 1 and len(ours) == 1, said
    assert ours[0].startswith(f"parivox: rank {victim} of 2 has died"), said
    reached = latest_checkpoint(run).meta.step
    with launched(backend, 2, data, run, "--stop-at", str(reached + 2)) as processes:
        finish(processes)
    assert latest_checkpoint(run).meta.step == reached + 2


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["torch", "jax"])
def test_a_signal_to_one_rank_ends_all_after_the_same_update(tmp_path, data, backend):
    run = tmp_path / "run"
    with launched(backend, 2, data, run) as processes:
        wait_for_updates(run, processes)
        processes[1].send_signal(signal.SIGTERM)
        finish(processes, 128 + signal.SIGTERM)
    found = latest_checkpoint(run)
    assert found.meta.step == read_metrics(run, "train")[-1]["step"] == found.arrays.step
    assert json.loads((run / "summary.json").read_text())["stopped_by"] == "SIGTERM"


@pytest.mark.slow
def test_torchrun_passes_a_signal_on(tmp_path, data):
    run = tmp_path / "run"
    launcher = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", free_port()]
    process = subprocess.Popen(
        [sys.executable, *launcher, *words("torch", data, run)],
        env=environment(DS_ACCELERATOR="cpu"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        wait_for_updates(run, [process])
        process.send_signal(signal.SIGTERM)
        told = process.communicate(timeout=PATIENCE)
    finally:
        process.kill()
    assert "stopped by SIGTERM at step" in told[0], told
    assert latest_checkpoint(run).meta.step == read_metrics(run, "train")[-1]["step"]


@pytest.mark.slow
@pytest.mark.parametrize("second", ["torch", "jax"])
def test_a_run_of_one_device_goes_on_with_two(tmp_path, data, second):
    run = tmp_path / "run"
    with launched("torch", 1, data, run, "--stop-at", "2") as processes:
        finish(processes)
    with launched(second, 2, data, run, "--stop-at", str(STEPS)) as processes:
        finish(processes)
    assert_same_curve(run, data / "whole")


@pytest.mark.slow
def test_an_error_of_rank_0_ends_both(tmp_path, data):
    run = tmp_path / "run"
    with launched("torch", 2, data, run, "--seed", "1", "--stop-at", "1") as processes:
        finish(processes)
    with launched("torch", 2, data, run, "--seed", "2") as processes:
        (_, first), (_, second) = finish(processes, 1)
    said = f"{run}: was begun with seed 1, given is 2; leave --seed out"
    assert first.strip().endswith(f"parivox: {said}")
    assert second.strip().endswith(f"parivox: rank 0 of 2 stopped: {said}")
