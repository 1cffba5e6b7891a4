"""Files of tensors cut short or with bytes changed: a clear error or the same tensors, and never a traceback."""

from __future__ import annotations

import contextlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from parivox.convert import convert, read_model
from parivox.errors import CheckpointError, ConfigError, ParivoxError
from parivox.hparams import DenoiserHParams
from parivox.model_kinds import KINDS, Kind
from parivox.torch_pickle import RefusedError, run_pickle
from tests.published import STATES_PATH, pickle_in, published, rewritten, same

SHAPES = {"net.weight": (2, 3), "net.bias": (3,), "net.scale": ()}
TENSORS = {
    "net.weight": np.arange(6, dtype=np.float32).reshape(2, 3),
    "net.bias": np.array([1, -0.0, np.nan], np.float16),
    "net.scale": np.array(0.5, np.float32),
}
MANY = settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture
def small(monkeypatch) -> None:
    """A model of three tensors."""
    monkeypatch.setitem(
        KINDS, "denoiser", Kind("denoiser", DenoiserHParams, lambda hp: SHAPES, lambda hp: {})
    )


@pytest.fixture
def public(tmp_path, small) -> Path:
    return published(tmp_path / "public", DenoiserHParams(), TENSORS)


@pytest.fixture(params=["public", "safetensors"])
def model(request, tmp_path, public) -> tuple[Path, Path, bytes]:
    """What is read, the file in it that is damaged, and its bytes."""
    if request.param == "public":
        return public, public / STATES_PATH, (public / STATES_PATH).read_bytes()
    convert(public, tmp_path / "one.safetensors")
    path = tmp_path / "one.safetensors"
    return path, path, path.read_bytes()


def check(source: Path) -> None:
    """Either the tensors are the same, or there is one clear line that names the file."""
    try:
        found = read_model(source)[0].tensors
    except ParivoxError as error:
        assert "\n" not in str(error) and str(source) in str(error)
    else:
        assert same(found, TENSORS)


@MANY
@given(st.data())
def test_a_file_cut_short(model, data):
    source, path, whole = model
    path.write_bytes(whole[: data.draw(st.integers(0, len(whole) - 1))])
    with pytest.raises((CheckpointError, ConfigError)) as caught:
        read_model(source)
    assert "\n" not in str(caught.value) and str(source) in str(caught.value)


@MANY
@given(st.data())
def test_bytes_changed(model, data):
    source, path, whole = model
    damaged = bytearray(whole)
    for at in data.draw(st.lists(st.integers(0, len(whole) - 1), min_size=1, max_size=3)):
        damaged[at] = data.draw(st.integers(0, 255))
    path.write_bytes(damaged)
    check(source)


@MANY
@given(st.data())
def test_bytes_of_the_pickle_changed_behind_a_right_checksum(public, data):
    # The archive is whole, so that the stack machine itself meets the damage; other numbers may well come of it.
    pickled = bytearray(pickle_in(public))
    for at in data.draw(st.lists(st.integers(0, len(pickled) - 1), min_size=1, max_size=4)):
        pickled[at] = data.draw(st.integers(0, 255))
    before = (public / STATES_PATH).read_bytes()
    try:
        rewritten(public, {"data.pkl": bytes(pickled)})
        found = read_model(public)[0].tensors
    except ParivoxError as error:
        assert "\n" not in str(error)
    else:
        assert {name: a.shape for name, a in found.items()} == SHAPES
    finally:
        (public / STATES_PATH).write_bytes(before)


@MANY
@given(st.binary(max_size=60))
def test_any_bytes_as_a_pickle(data):
    with contextlib.suppress(RefusedError, ValueError, LookupError, TypeError):
        run_pickle(data)


def test_nesting_beyond_any_stack():
    deep = b"}" + b")" + b"\x85" * 100_000
    with pytest.raises(ValueError, match="a key is no plain value"):
        run_pickle(deep + b"Ns.")
    with pytest.raises(RefusedError, match="of type tuple"):
        run_pickle(deep + b")R.")
