"""What JAX tells of its device: peak, memory, and the roofline of a program; the twin of `benchmarks.gpu_torch`."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.bounds import told_of_roof
from benchmarks.works import repeat
from jax_impl.plan import lower
from jax_impl.precision import arithmetic, operands
from parivox.hparams import WAV_RATE, EnhancerHParams
from parivox.plan import Request
from parivox.topologies import parse_topology

LOOPS = "the compiler counts the body of a loop once, so steps of the flow and tiles of the vocoder but one are missing"


class Tools:
    """See `benchmarks.gpu_cells.Bench`."""

    def __init__(self, device: str) -> None:
        self.device = jax.devices(device)[0]

    def peak(self, precision: Any, size: int) -> dict[str, float]:
        """GFLOP/s of a matrix product in this arithmetic, and GB/s of the memory."""
        with jax.default_device(self.device):
            a, b = (jax.random.normal(jax.random.key(k), (size, size)) for k in range(2))

            @jax.jit
            def product(a: jax.Array, b: jax.Array) -> jax.Array:
                with arithmetic(precision, self.device.platform):
                    return jnp.matmul(*operands(a, b), preferred_element_type=jnp.float32)

            more = jax.jit(lambda x: x + 1)

            def multiply(count: int = 10) -> None:
                jax.block_until_ready([product(a, b) for _ in range(count)])

            def copy(count: int = 10) -> None:
                jax.block_until_ready([more(a) for _ in range(count)])

            took, moved = repeat(multiply)["min"] / 10, repeat(copy)["min"] / 10
        return {"gflops": 2 * size**3 / took / 1e9, "gb_a_second": 2 * a.nbytes / moved / 1e9}

    def profile(self, bench: Any, task: str, precision: Any) -> dict[str, Any]:
        """Operations and bytes that the compiler counts in a task's program, and where that stands under the roof."""
        request = self.request(bench, task, precision)
        lowered, _ = lower(request, [self.device])
        program = lowered.compile()
        cost, stats = program.cost_analysis(), program.memory_analysis()
        gflop, gigabytes = cost.get("flops", 0.0) / 1e9, cost.get("bytes accessed", 0.0) / 1e9
        peak = self.peak(precision, 512 if bench.quick else 8192)
        seconds = None
        if task != "enhance":
            seconds = repeat(bench.work(bench.backend(precision), task, bench.rows(task), 8)[0])["min"]
        told = told_of_roof(gflop, gigabytes, peak["gflops"], peak["gb_a_second"], seconds)
        taken = (
            stats.argument_size_in_bytes
            + stats.output_size_in_bytes
            - stats.alias_size_in_bytes
            + stats.temp_size_in_bytes
        )
        note = f" ({LOOPS})" if task == "enhance" else ""
        return {
            "gflop": gflop,
            "gigabytes": gigabytes,
            "program_bytes": taken,
            "told": f"{told}{note}; the program takes {taken / 2**30:.2f} GiB",
        }

    def request(self, bench: Any, task: str, precision: Any) -> Request:
        """The program of a task, as `bench` calls it."""
        from benchmarks.gpu_cells import NFE, QUICK_SECONDS, SECONDS, hparams

        hp, here = hparams(task, bench.quick), parse_topology("cpu:1")
        if task not in ("denoise", "enhance"):
            return Request("train", hp, here, precision, deepspeed=hp.deepspeed_config)
        solver = hp.cfm_solver_method if isinstance(hp, EnhancerHParams) else "midpoint"
        return Request(
            *(task, hp, here, precision),
            rows=bench.rows(task),
            samples=round((QUICK_SECONDS if bench.quick else SECONDS) * WAV_RATE),
            nfe=2 if bench.quick else NFE,
            solver=solver,
        )

    def memory(self) -> dict[str, int]:
        """Bytes of the device at its fullest since the process began: JAX has no way to forget; nothing on a CPU."""
        found = self.device.memory_stats()
        return {"memory": found["peak_bytes_in_use"], "since_start": True} if found else {}

    def forget_peak(self) -> None:
        """Nothing: see `memory`."""

    def free(self) -> None:
        """Nothing: JAX's pool is one."""
