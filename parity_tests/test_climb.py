"""The ladder in several processes."""

from __future__ import annotations

import pytest

from parity_tests.climb import climb, job_count
from parity_tests.ladder import Ladder, LadderOptions, rungs_of
from parivox.errors import BackendError, ConfigError

ALONE = LadderOptions(backends=("torch",), device="cpu", faults=False, deepspeed=False)


@pytest.mark.slow
def test_processes_find_what_one_finds():
    names = ("settings", "features")
    rungs = [rung for rung in rungs_of(ALONE) if rung.unit in ("signals", "devices")]
    said: list[str] = []
    machine, found = climb(ALONE, rungs, 2, said.append)
    assert sorted(said) == sorted(rung.name for rung in rungs)
    ladder = Ladder(ALONE)
    assert machine == ladder.machine
    for rung, findings in zip(rungs, found, strict=True):
        if rung.name in names:
            alone = list(rung.climb(ladder))
            assert [describe(part) for part in findings] == [describe(part) for part in alone]


def describe(finding):
    return type(finding), [
        getattr(finding, name, "") for name in ("rung", "case", "against", "reason", "title")
    ]


def test_an_error_of_a_process_is_that_of_the_climb():
    absent = LadderOptions(backends=("torch",), device="tpu", faults=False, deepspeed=False)
    with pytest.raises(BackendError, match="does not run on TPUs"):
        climb(absent, [rung for rung in rungs_of(absent) if rung.unit == "signals"], 2, lambda name: None)


def test_no_more_processes_than_work_and_never_none():
    assert job_count(LadderOptions(jobs=5), 3) == 3
    assert job_count(LadderOptions(jobs=1), 3) == 1
    assert 1 <= job_count(LadderOptions(device="cpu", jobs=None), 2) <= 2
    with pytest.raises(ConfigError, match="0 jobs"):
        job_count(LadderOptions(jobs=0), 3)
