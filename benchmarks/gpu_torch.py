"""What PyTorch tells of its device: peak, memory, and the kernels of a call; the twin of `benchmarks.gpu_jax`."""

from __future__ import annotations

import time
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.bounds import told_of_kernels
from benchmarks.works import Work, repeat
from torch_impl.precision import arithmetic


class Tools:
    """See `benchmarks.gpu_cells.Bench`."""

    def __init__(self, device: str) -> None:
        self.cuda = device == "gpu"

    def peak(self, precision: Any, size: int) -> dict[str, float]:
        """GFLOP/s of a matrix product in this arithmetic, and GB/s of the memory."""
        where = torch.device("cuda" if self.cuda else "cpu")
        a, b = (torch.randn(size, size, device=where) for _ in range(2))

        def multiply(count: int = 10) -> None:
            with arithmetic(precision, where.type):
                for _ in range(count):
                    torch.matmul(a, b)
            self.wait()

        def copy(count: int = 10) -> None:
            for _ in range(count):
                b.copy_(a)
            self.wait()

        took, moved = repeat(multiply)["min"] / 10, repeat(copy)["min"] / 10
        return {"gflops": 2 * size**3 / took / 1e9, "gb_a_second": 2 * a.nbytes / moved / 1e9}

    def profile(self, bench: Any, task: str, precision: str) -> dict[str, Any]:
        """What bounds a call of a task."""
        work, _ = bench.work(bench.backend(precision), task, bench.rows(task), 8)
        work()
        begin = time.perf_counter()
        work()
        seconds = time.perf_counter() - begin
        kernels = self.kernels(work)
        longest = sorted(kernels.items(), key=lambda pair: -pair[1])[:30]
        return {"seconds": seconds, "kernels": dict(longest), "told": told_of_kernels(kernels, seconds)}

    def kernels(self, work: Work) -> dict[str, float]:
        """Name -> seconds of every kernel of a call; without a GPU, of every operation."""
        activities = [ProfilerActivity.CUDA] if self.cuda else [ProfilerActivity.CPU]
        with profile(activities=activities) as watched:
            work()
            self.wait()
        found: dict[str, float] = {}
        for event in watched.key_averages():
            # The operation that starts a kernel is an event too, with the same time.
            if self.cuda and event.device_type.name != "CUDA":
                continue
            took = event.self_device_time_total if self.cuda else event.self_cpu_time_total
            if took > 0:
                found[event.key] = found.get(event.key, 0.0) + took / 1e6
        return found

    def memory(self) -> dict[str, int]:
        """Bytes of the device at its fullest since `forget_peak`; nothing on a CPU."""
        return {"memory": torch.cuda.max_memory_allocated()} if self.cuda else {}

    def forget_peak(self) -> None:
        """Begin to watch the memory anew."""
        if self.cuda:
            torch.cuda.reset_peak_memory_stats()

    def free(self) -> None:
        """Give unused memory back."""
        if self.cuda:
            torch.cuda.empty_cache()

    def wait(self) -> None:
        """Until the device has done all."""
        if self.cuda:
            torch.cuda.synchronize()
