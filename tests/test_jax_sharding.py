"""One JAX training state on several devices and processes equals the same on one device."""

from __future__ import annotations

import json

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from jax_impl import sharding
from parivox.errors import ConfigError
from parivox.parallel import World
from tests import ranks_jax
from tests.rank_processes import DEATH_SECONDS, PATIENCE, finish, last_words, ranks, run_program
from tests.ranks_jax import first_state, tiny_params

PROGRAM = "tests.ranks_jax"
FLOAT32, FLOAT64 = 5e-6, 1e-11
"""Largest relative distance of a tensor or a metric after three updates; measured: 5e-7 and 9e-14."""


@pytest.fixture(scope="module")
def table() -> dict[tuple[int, int], dict]:
    """Devices and stage -> what came of the tiny model."""
    lines = [json.loads(line) for line in run_program(PROGRAM, "tiny", JAX_NUM_CPU_DEVICES="8").splitlines()]
    return {(line["devices"], line["stage"]): line for line in lines}


def test_devices_and_stages_change_nothing(table):
    assert table.keys() == {(devices, stage) for devices in (1, 2, 8) for stage in range(4)}
    for line in table.values():
        assert line["tensors"] < FLOAT32 and line["metrics"] < FLOAT32, line


def test_each_stage_divides_one_thing_more(table):
    params = tiny_params()
    whole = sum(array.nbytes for array in params.values())
    stays = params["bias"].nbytes
    for (devices, stage), line in table.items():
        part = (whole - stays) // devices + stays
        held = [part if stage >= first else whole for first in (3, 2)]
        moments = 2 * (part if stage >= 1 else whole) + np.int32().nbytes
        assert line["bytes"] == [*held, moments], (devices, stage)


def test_a_sum_in_place_of_the_mean_is_found(monkeypatch):
    """Adam and clipping both hide a factor on the gradient, so the metrics must show it."""
    plain = jax.value_and_grad(ranks_jax.tiny_loss, has_aux=True)

    def doubled(params, noisy, target):
        found, grads = plain(params, noisy, target)
        return found, {name: 2 * g for name, g in grads.items()}

    _, wanted = ranks_jax.plain_run(ranks_jax.tiny_loss, tiny_params(), 14)
    monkeypatch.setattr(ranks_jax.jax, "value_and_grad", lambda *_, **__: doubled)
    _, got = ranks_jax.plain_run(ranks_jax.tiny_loss, tiny_params(), 14)
    assert np.max(np.abs(np.array(got) / np.array(wanted) - 1)) > FLOAT32


@pytest.mark.slow
def test_the_denoiser_on_two_and_eight_devices():
    told = run_program(PROGRAM, "denoiser", "[2, 8]", "[0, 1, 2, 3]", JAX_NUM_CPU_DEVICES="8")
    lines = [json.loads(line) for line in told.splitlines()]
    assert len(lines) == 8
    for line in lines:
        print(line)
        assert line["tensors"] < FLOAT64 and line["metrics"] < FLOAT64, line


def test_two_processes_are_as_one(tmp_path):
    with ranks(PROGRAM, "process", tmp_path) as processes:
        finish(processes)
    wanted, told = ranks_jax.plain_run(ranks_jax.tiny_loss, tiny_params(), 14)
    for stage in (0, 3):
        got = [dict(np.load(tmp_path / f"{stage}-{rank}.npz")) for rank in range(2)]
        assert all(np.array_equal(got[0][name], got[1][name]) for name in got[0])
        assert np.max(np.abs(got[0].pop("told") / told - 1)) < FLOAT32
        held = got[0].pop("held")
        assert (held[0] < sum(array.nbytes for array in tiny_params().values())) == (stage == 3)
        assert ranks_jax.farthest(got[0], wanted) < FLOAT32


@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_process_ends_the_other(tmp_path, victim):
    said = last_words(PROGRAM, tmp_path, victim)
    # With rank 0 goes JAX's coordination service, and JAX's own lines about that may come before ours or after.
    lines = [line for line in said.splitlines() if line.startswith("parivox: ")]
    assert len(lines) == 1 and lines[0].startswith(f"parivox: rank {victim} of 2 has died"), said
    if victim != 0:
        assert said.rstrip().endswith(lines[0])


def test_an_error_of_one_process_ends_both_with_its_message(tmp_path):
    with ranks(PROGRAM, "fail", tmp_path) as processes:
        told = [process.communicate(timeout=PATIENCE + DEATH_SECONDS)[1] for process in processes]
    assert [process.returncode for process in processes] == [1, 1]
    mine = "speech: nothing here decodes; mend it\n"
    assert told == [f"parivox: rank 1 of 2 stopped: {mine}", f"parivox: {mine}"]


def test_the_longest_axis_that_fits_is_divided():
    mesh = sharding.make_mesh(jax.devices()[:1])
    assert sharding.divided_axis((3, 8, 16, 16), 8) == 2
    assert sharding.divided_axis((3, 5), 2) is None and sharding.divided_axis((), 1) is None
    state = first_state(tiny_params())
    placed = sharding.state_shardings(state, 3, mesh)
    assert placed.params["in"].spec == PartitionSpec(sharding.AXIS)
    assert placed.adam.count.spec == PartitionSpec()
    assert sharding.state_shardings(state, 1, mesh).params["in"].spec == PartitionSpec()
    with pytest.raises(ConfigError, match=r"zero_optimization\.stage is 4"):
        sharding.state_shardings(state, 4, mesh)


def test_one_process_stays_alone_and_shares_with_itself():
    assert sharding.initialize(World()) == World()
    assert sharding.share("a line \N{GREEK SMALL LETTER BETA}") == "a line \N{GREEK SMALL LETTER BETA}"
    with pytest.raises(ValueError, match="1021 bytes cannot be shared"):
        sharding.share("a" * 1021)


def test_what_is_placed_is_a_copy():
    mesh = sharding.make_mesh(jax.devices()[:1])
    host = {"w": np.ones((4, 2), np.float32)}
    placed = sharding.place(host, sharding.gradient_shardings(host, 2, mesh))
    host["w"][:] = 0
    assert np.all(sharding.full_arrays(placed)["w"] == 1) and sharding.bytes_per_device(placed) == 32
