"""Programs for described TPUs that the tests start in a process of their own: `python -m tests.plan_programs WHAT`.

Prints a line of JSON for each: what `parivox.hlo` reads in it.
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from jax_impl import sharding
from jax_impl.plan import described_devices, lower
from parivox.hlo import read_program
from parivox.plan import Request, chunk_samples
from parivox.presets import preset
from parivox.topologies import parse_topology
from tests import ranks_jax

FAULTS = ("f64", "callback", "infeed", "outfeed", "stablehlo.send", "stablehlo.recv")
LEFT_OVER = ("stablehlo.constant", "sdy.manual_computation")
WIDTH, ROWS = 2**14, 256
"""Wide enough that the compiler scatters a sum; of a small one it keeps the whole."""


def wide_params() -> dict[str, np.ndarray]:
    shapes = {"in": (WIDTH, 8), "out": (14, WIDTH), "bias": (3, 1)}
    return {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}


def stages(*slices: str) -> None:
    """The step of a small model at each stage, for some slices."""
    host = ranks_jax.first_state(wide_params())
    plain = jax.value_and_grad(ranks_jax.tiny_loss, has_aux=True)
    for name in slices:
        mesh = sharding.make_mesh(described_devices(parse_topology(name)))
        rows = NamedSharding(mesh, PartitionSpec(sharding.AXIS))
        sound = jax.ShapeDtypeStruct((ROWS, 14), np.float32, sharding=rows)
        for stage in range(4):
            gradient = sharding.data_parallel(plain, host.params, stage, mesh)
            step = sharding.make_sharded_step(ranks_jax.step_of(gradient), host, stage, mesh)
            state = jax.tree.map(
                lambda leaf, where: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where),
                host,
                sharding.state_shardings(host, stage, mesh),
            )
            compiled = step.lower(state, sound, sound, ranks_jax.RATE).compile()
            found = read_program(compiled.as_text())
            kinds = {one.kind: [one.count, one.bytes] for one in found.collectives}
            faults = [*found.float64, *found.host]
            line = {"topology": name, "stage": stage, "kinds": kinds, "faults": faults}
            line["cycles"] = found.cycles
            print(json.dumps(line), flush=True)


def texts(*presets: str) -> None:
    """The programs of some presets as they are handed to the compiler: whether they hold what they should not."""
    for words in presets:
        task, _, name = words.partition(":")
        hp, topology = preset(name), parse_topology("v5e:2x2")
        request = Request(task, hp, topology, deepspeed=hp.deepspeed_config if task == "train" else {})
        if task != "train":
            request = replace(request, rows=2, samples=chunk_samples(1.0), nfe=4)
        lowered, held = lower(request, described_devices(topology))
        # A constant of the branch for CPUs is left over and handed in, and nothing uses it: what did would have
        # its type.
        lines = [one.strip() for one in lowered.as_text().splitlines()]
        used = [one for one in lines if not any(word in one for word in LEFT_OVER) and one[:3] != "} :"]
        faults = [one[:200] for one in used if any(word in one for word in FAULTS)]
        print(json.dumps({"program": words, "faults": faults, "lines": len(lines), "held": held}), flush=True)


if __name__ == "__main__":
    {"stages": stages, "texts": texts}[sys.argv[1]](*sys.argv[2:])
