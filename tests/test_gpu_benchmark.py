"""`benchmarks.gpu`: its table, its arithmetic, its time, and what it does without a GPU; no model is run."""

from __future__ import annotations

import itertools
import json
import time
from typing import Any

import pytest

from benchmarks import gpu
from benchmarks.bounds import kind_of, shares, told_of_kernels, told_of_roof
from benchmarks.cost import training_tasks
from benchmarks.gpu import Budget, cells, main, measure_backend, model_gflop, share_of_peak, tables
from benchmarks.gpu_cells import Bench, bench_cell, hparams, out_of_memory
from parivox.backend import installed
from parivox.errors import BackendError

REQUEST = {"backend": "torch", "device": "cpu", "quick": True, "seconds": 60.0}


class FakeWorker:
    """Tells prepared events, then ends; a number among them is a silence of so many seconds."""

    def __init__(self, events: list[Any]):
        self.events, self.killed = iter(events), False

    def next(self, seconds: float) -> Any:
        event = next(self.events, None)
        if isinstance(event, float):
            raise TimeoutError
        return event

    def last_words(self) -> str:
        return "the process ended with -9: no word"

    def close(self) -> None:
        self.killed = True


def play(*workers: list[Any], keys: list[str], seconds: float = 60.0) -> tuple[dict, list[dict], list[dict]]:
    """What is known after some processes told their events; also the requests, and what was saved."""
    side: dict = {"cells": {}}
    requests, saved, queue = [], [], iter(workers)

    def start(request: dict) -> FakeWorker:
        requests.append(request)
        return FakeWorker(next(queue))

    def save() -> None:
        saved.append(json.loads(json.dumps(side)))

    measure_backend(side, {**REQUEST, "cells": keys}, seconds, save, start)
    return side, requests, saved


def done(key: str, **found: Any) -> list[dict]:
    return [{"begin": key}, {"cell": key, "found": found}]


def test_every_cell_is_kept_at_once():
    side, requests, saved = play([{"device": "a"}, *done("one", x=1), *done("two", x=2)], keys=["one", "two"])
    assert side == {"device": "a", "cells": {"one": {"x": 1}, "two": {"x": 2}}, "left": []}
    assert len(requests) == 1
    assert {"one": {"x": 1}} in [state["cells"] for state in saved]


def test_a_process_that_dies_costs_its_cell_alone():
    first = [{"device": "a"}, *done("one", x=1), {"begin": "two"}]
    side, requests, _ = play(first, [{"device": "a"}, *done("three", x=3)], keys=["one", "two", "three"])
    assert side["cells"] == {
        "one": {"x": 1},
        "two": {"error": "the process ended with -9: no word"},
        "three": {"x": 3},
    }
    assert requests[1]["cells"] == ["three"]


def test_a_part_of_a_cell_that_was_cut_off_is_kept():
    part = {"cell": "rows", "found": {"sweep": [1]}, "partial": True}
    side, _, _ = play(
        [{"device": "a"}, {"begin": "rows"}, part, 1.0], [{"device": "a"}, *done("b")], keys=["rows", "b"]
    )
    assert side["cells"]["rows"] == {"sweep": [1], "error": "cut off: the time was over"}
    assert "b" in side["cells"]


def test_what_there_was_no_time_for_is_named():
    side, requests, _ = play(keys=["one"], seconds=0.0)
    assert (side["left"], requests) == (["one"], [])
    side, requests, _ = play([{"device": "a"}, *done("one")], keys=["one", "two"])
    assert (side["left"], len(requests)) == (["two"], 1)


def test_a_device_that_is_not_there_is_not_looked_for_again():
    side, requests, _ = play([{"none": "no device"}], keys=["one"])
    assert (side["none"], len(requests)) == ("no device", 1)
    side, requests, _ = play([], keys=["one"])
    assert (side["failed"], len(requests)) == ("the process ended with -9: no word", 1)


def test_budget_is_shared_by_the_backends_that_are_left():
    budget = Budget(600, 100.0)
    assert budget.share(100.0, 2) == 300
    # The first took 50 s of its 300; the second has all that is left.
    assert budget.share(150.0, 1) == 550
    assert budget.share(1000.0, 1) == 0


def test_share_of_peak():
    # 30 s at 50 GFLOP a second are 1,500 GFLOP; at 1,000 GFLOP/s they need 1.5 s, and it took 3.
    assert share_of_peak(50.0, 30.0, 3.0, 1000.0) == pytest.approx(0.5)
    assert model_gflop("denoise") == 44.0
    assert model_gflop("enhance") == 1015.1
    assert model_gflop("enhancer_stage2") == training_tasks()[2].gflop


@pytest.mark.parametrize("device", ["cpu", "gpu"])
def test_every_task_and_arithmetic_has_a_cell(device):
    found = cells(device)
    assert len(set(found)) == len(found)
    assert sorted(cells(device, quick=True)) == sorted(found)
    wanted = itertools.product((*gpu.CLEANING, *gpu.TRAINING), gpu.PRECISIONS)
    assert {f"speed/{task}/{precision}" for task, precision in wanted} <= set(found)
    assert all(f"peak/matrix/{precision}" in found[:3] for precision in gpu.PRECISIONS)
    main_precision = "highest" if device == "cpu" else "tf32"
    assert {f"rows/{task}/{main_precision}" for task in gpu.SWEPT} <= set(found)


def test_the_table():
    speed = {"seconds": 0.6, "audio": 120.0, "memory": 3 * 2**30}
    torch = {
        "peak/matrix/tf32": {"gflops": 44_000.0, "gb_a_second": 2000.0},
        "speed/denoise/tf32": speed,
        "speed/enhance/bf16": {"refused": "not on this device"},
        "profile/denoise/tf32": {"told": "bound by something"},
        "rows/denoise/tf32": {"sweep": [{"rows": 1, **speed}], "ended": "out of memory at 2 rows"},
        "rows/enhance/tf32": {"sweep": [], "error": "cut off: the time was over"},
    }
    side = {"device": "a card", "cells": torch, "left": ["speed/enhance/highest"]}
    lines = tables({"quick": False, "backends": {"torch": side}})
    # 120 s * 44 GFLOP in 0.6 s are 8,800 GFLOP/s.
    assert "| torch | denoise | tf32 | 600.0 ms | 200 x | 20% | 3.00 GiB |" in lines
    assert "| torch | enhance | bf16 | not on this device |  |  |  |" in lines
    assert "torch, peak/matrix/tf32: 44 TFLOP/s, memory 2,000 GB/s" in lines
    assert "torch, rows/denoise/tf32: 1 rows 200 x 3.0 GiB; out of memory at 2 rows" in lines
    assert "torch, rows/enhance/tf32: cut off: the time was over" in lines
    assert "torch: not begun for want of time: speed/enhance/highest" in lines
    widths = {line.count("|") for line in lines if line.startswith("|")}
    assert widths == {8}


class FakeTools:
    """A device whose memory holds two rows."""

    def __getattr__(self, name: str) -> Any:
        return lambda *arguments: {}


def test_rows_are_doubled_until_the_memory_is_full(monkeypatch):
    bench = Bench({**REQUEST, "quick": False}, FakeTools())
    tried, told = [], []

    def work(backend: Any, task: str, rows: int, nfe: int) -> Any:
        tried.append(rows)
        if rows > 2:
            raise RuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate")
        return lambda: None, float(rows)

    monkeypatch.setattr(bench, "work", work)
    monkeypatch.setattr(bench, "backend", lambda precision: None)
    monkeypatch.setattr("benchmarks.gpu_cells.repeat", lambda *a, **k: {"min": 1.0, "max": 1.0, "first": 1.0})
    found = bench_cell(bench, "rows/denoise/tf32", told.append)
    assert tried == [1, 2, 4]
    assert [one["rows"] for one in found["sweep"]] == [1, 2]
    assert found["ended"] == "out of memory at 4 rows"
    assert [event["partial"] for event in told] == [True, True]


@pytest.mark.parametrize(
    ("error", "found"),
    [
        (BackendError("not here"), {"refused": "not here"}),
        (ValueError("odd\nmore"), {"error": "ValueError: odd"}),
        (RuntimeError("CUDA out of memory."), {"error": "out of memory: RuntimeError: CUDA out of memory."}),
    ],
)
def test_what_goes_wrong_ends_its_cell_alone(error, found, monkeypatch):
    bench = Bench(REQUEST, FakeTools())

    def fail(precision: str) -> None:
        raise error

    monkeypatch.setattr(bench, "backend", fail)
    assert bench_cell(bench, "speed/denoise/tf32", print) == found


def test_time_that_is_over_ends_a_sweep(monkeypatch):
    bench = Bench({**REQUEST, "seconds": -1.0}, FakeTools())
    assert time.monotonic() > bench.end
    monkeypatch.setattr(bench, "backend", lambda precision: None)
    assert bench_cell(bench, "rows/denoise/tf32", print)["ended"] == "1 rows not tried, the time was over"


def test_out_of_memory_is_known():
    assert out_of_memory(RuntimeError("RESOURCE_EXHAUSTED: 3 GiB"))
    assert out_of_memory(type("OutOfMemoryError", (RuntimeError,), {})("CUDA"))
    assert not out_of_memory(ValueError("shapes"))


def test_quick_models_are_tiny_and_others_published():
    assert hparams("denoiser", False).batch_size_per_gpu == 32
    assert hparams("enhance", False).to_dict()["univnet_nc"] == 96
    assert hparams("enhance", True).to_dict()["univnet_nc"] == 4
    assert hparams("enhancer_stage1", True).training_seconds == 0.1


@pytest.mark.parametrize(
    ("kernel", "kind"),
    [
        ("sm90_xmma_fprop_implicit_gemm_tf32f32_nhwckrsc_nchw", "copies and layouts"),
        ("sm80_xmma_fprop_implicit_gemm_tf32f32_tilesize128", "convolutions and matrix products"),
        ("void cutlass::Kernel2<cutlass_80_tensorop_s1688gemm>", "convolutions and matrix products"),
        ("void regular_fft<2048u>", "Fourier transforms"),
        ("vectorized_elementwise_kernel<4, silu_kernel>", "element by element"),
        ("void at::native::reduce_kernel<512, 1>", "sums and norms"),
        ("Memcpy HtoD (Pageable -> Device)", "copies and layouts"),
    ],
)
def test_kinds_of_kernels(kernel, kind):
    assert kind_of(kernel) == kind


def test_what_bounds_a_call():
    kernels = {"a_gemm": 0.06, "silu": 0.03, "a_conv": 0.01}
    assert shares(kernels) == pytest.approx(
        {"convolutions and matrix products": 0.7, "element by element": 0.3}
    )
    told = told_of_kernels(kernels, 0.11)
    assert told.startswith("bound by convolutions and matrix products; kernels run for 91% of the time")
    assert told_of_kernels(kernels, 1.0).startswith("bound by the host")
    assert told_of_kernels({}, 1.0) == "no kernel was seen"


def test_the_roof():
    # 100 GFLOP at 1,000 GFLOP/s need 0.1 s, 100 GB at 2,000 GB/s half of that.
    assert "bound by arithmetic; the call reaches 50%" in told_of_roof(100, 100, 1000, 2000, 0.2)
    assert told_of_roof(100, 400, 1000, 2000).endswith("bound by memory")


@pytest.mark.skipif(not installed("torch"), reason="torch looks for the GPU")
def test_without_a_gpu_it_says_so(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    path = tmp_path / "found.json"
    assert main(["--backend", "torch", "--json", str(path)]) == 2
    told = capsys.readouterr().err
    assert "no GPU found; " in told
    assert "Traceback" not in told and not path.exists()
