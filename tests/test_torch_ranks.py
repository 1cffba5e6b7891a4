"""A DeepSpeed engine on two processes equals the same on one, at every ZeRO stage; and its state goes in and out."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from parivox.errors import BackendError
from parivox.parallel import World
from tests.rank_processes import finish, last_words, ranks
from tests.ranks_torch import BF16, STAGES, Tiny
from torch_impl import engine, sharding

pytest.importorskip("deepspeed")

PROGRAM = "tests.ranks_torch"
BOUND = 2e-6
"""Largest relative distance of a tensor after five updates in float32; measured: 2e-7."""

TRAINED = sum(p.numel() for p in Tiny().parameters() if p.requires_grad)
FROZEN = Tiny().frozen.numel()
FLOAT = 4


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What one process and two processes have left."""
    folder = tmp_path_factory.mktemp("ranks")
    for size in (1, 2):
        with ranks(PROGRAM, "stages", folder, size) as processes:
            finish(processes)
    return folder


def load(folder, name: str) -> dict[str, np.ndarray]:
    return dict(np.load(folder / f"{name}.npz"))


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("how", ["whole", "resumed"])
def test_two_ranks_are_as_one(folder, how, stage):
    wanted = load(folder, "whole-1-0-0")
    for rank in range(2):
        got = load(folder, f"{how}-2-{stage}-{rank}")
        assert got.keys() == wanted.keys() and len(got) == 3 * 4 + 1
        for name, array in wanted.items():
            away = np.linalg.norm(got[name] - array) / np.linalg.norm(array)
            assert got[name].shape == array.shape and away < BOUND, (name, away)


@pytest.mark.parametrize("stage", BF16)
def test_a_restart_in_bfloat16_changes_no_bit(folder, stage):
    for rank in range(2):
        whole, resumed = (load(folder, f"{how}-2-{stage}-{rank}-bf16") for how in ("whole", "resumed"))
        assert len(whole) == 3 * 4 + 1
        assert all(np.array_equal(whole[name], resumed[name]) for name in whole)
        assert json.loads((folder / f"2-{stage}-{rank}-bf16.json").read_text())["same"]


def test_training_has_moved_what_it_should(folder):
    """Else the comparison would be one of initial weights."""
    trained, start = load(folder, "whole-1-0-0"), Tiny().state_dict()
    moved = {name for name, tensor in start.items() if np.any(trained[f"weights.{name}"] != tensor.numpy())}
    assert moved == {name for name in start if name != "frozen"}


@pytest.mark.parametrize("stage", STAGES)
def test_each_stage_divides_one_thing_more(folder, stage):
    for rank in range(2):
        told = json.loads((folder / f"2-{stage}-{rank}.json").read_text())
        assert told["same"]
        half, filling = TRAINED * FLOAT / 2, 64
        near = {
            "parameters": (TRAINED + FROZEN) * FLOAT / (2 if stage == 3 else 1),
            # The engine keeps its own part alone once it has summed, at stage 1 as well.
            "gradients": half if stage else 2 * half,
            # Two moments; ZeRO updates a copy of its part of the weights beside them.
            "optimizer": 3 * half if stage else 4 * half,
        }
        for name, size in near.items():
            assert size <= told[name] <= size + filling, (name, told[name], size)


@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_process_ends_the_other(tmp_path, victim):
    said = last_words(PROGRAM, tmp_path, victim)
    assert said.startswith(f"parivox: rank {victim} of 2 has died") and said.count("\n") == 1, said


def test_one_process_stays_alone():
    assert sharding.initialize(World()) == World()


def test_processes_that_do_not_meet(monkeypatch):
    class Deaf:
        def init_distributed(self, **_: object) -> None:
            raise RuntimeError("timed out\nand more")

    monkeypatch.setattr(engine, "import_deepspeed", lambda device: Deaf())
    with pytest.raises(
        BackendError, match=r"did not meet \(timed out\); check that rank 0 runs and that a:1 is"
    ) as e:
        sharding.initialize(World(1, 2, 0, "a:1"))
    assert "\n" not in str(e.value)


def test_shared_memory_counts_once():
    tensor = torch.zeros(10)
    assert sharding.bytes_per_device([tensor, tensor[:5], torch.zeros(2)]) == 12 * FLOAT
