"""`benchmarks.scaling`: what it fits, what it leaves out for want of time, and its table; no model is run."""

from __future__ import annotations

import pytest

from benchmarks import scaling
from benchmarks.scaling import Axis, chunks_of, fit, table, walk


def test_a_line_is_found():
    found = fit([1, 3, 10, 30], [0.5 + 0.2 * x for x in (1, 3, 10, 30)])
    assert found is not None and found.kind == "linear"
    assert (found.a, found.b) == pytest.approx((0.5, 0.2))
    assert found.worst == pytest.approx(0, abs=1e-9)
    assert found.at(100) == pytest.approx(20.5)
    assert found.describe("s").startswith("0.5 s + 0.2 s for each s, 0% off at most")


def test_a_power_is_found():
    found = fit([4, 8, 16, 32], [3 * x**1.8 for x in (4, 8, 16, 32)])
    assert found is not None and found.kind == "power"
    assert (found.c, found.p) == pytest.approx((3, 1.8))
    assert found.at(64) == pytest.approx(3 * 64**1.8)
    assert "x^1.80" in found.describe("channel")


def test_the_worst_residual_is_told():
    # Off the line 1 s for each by a tenth at one end: no line or power is exact.
    found = fit([1, 2, 4, 8], [1.1, 2, 4, 8])
    assert found is not None and 0.01 < found.worst < 0.1


def test_two_points_are_no_fit():
    assert fit([1, 2], [1, 2]) is None


def test_what_there_is_no_time_for_is_left_out(monkeypatch):
    monkeypatch.setattr(scaling, "repeat", lambda work: {"first": 0.0, "min": work(), "max": 1.0})
    axis = Axis("a", "s", (1, 2, 1000), lambda value: lambda: float(value))
    assert list(walk(axis, 100.0)) == [1, 2]
    lines = table("a", "s", {"jax": walk(axis, 100.0), "torch": walk(axis, 1e6)})
    assert "| 1000 | no time | 1000.000 s |" in lines
    assert "\njax: too few values for a fit" in lines


def test_the_first_value_is_always_measured():
    axis = Axis("a", "s", (1, 2), lambda value: lambda: None)
    assert list(walk(axis, 0.0)) == [1]


def test_chunks_of_two_hours():
    assert chunks_of(7200, 30.0, 1.0) == 249
    assert chunks_of(30, 30.0, 1.0) == 1
    assert chunks_of(31, 30.0, 1.0) == 2
