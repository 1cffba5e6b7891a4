"""Rows of several chunks, channels and files share calls of a model, and a compiled one meets few shapes."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import CancelledError, Future

import numpy as np
import pytest

from parivox.audio import read_audio, write_audio
from parivox.chunks import WAV_RATE
from parivox.enhance import clean
from parivox.enhance_files import FileOptions, enhance_path
from parivox.rows import FRAME, MIN_SAMPLES, PADDING, Place, RowModel, RowRunner, SharedRunner, bucket_lengths
from tests.test_enhance import tone

FULL = 30 * WAV_RATE + PADDING


class Halving:
    """A model for rows that notes what it is called with."""

    def __init__(self, batch: int = 1, compiles: bool = True) -> None:
        self.batch, self.compiles = batch, compiles
        self.calls: list[tuple[tuple[int, int], list[int] | None, list[Place]]] = []
        self.threads: set[int] = set()

    def __call__(self, wav: np.ndarray, lengths: np.ndarray | None, places: Sequence[Place]) -> np.ndarray:
        self.calls.append((wav.shape, None if lengths is None else lengths.tolist(), list(places)))
        self.threads.add(threading.get_ident())
        for row, length in zip(wav, wav.shape[1:] * len(wav) if lengths is None else lengths, strict=True):
            assert not row[length:].any()
        return wav / 2


def results(futures: Sequence[Future[np.ndarray]]) -> list[np.ndarray]:
    return [future.result(timeout=60) for future in futures]


def test_every_length_has_a_bucket_and_there_are_few():
    for full in (MIN_SAMPLES, 5000, WAV_RATE, FULL, 100 * WAV_RATE):
        buckets = bucket_lengths(full)
        assert list(buckets) == sorted(set(buckets)) and buckets[-1] - FRAME < full <= buckets[-1]
        assert all(length % FRAME == 0 for length in buckets)
    assert len(bucket_lengths(FULL)) == 19
    lengths = np.arange(1, FULL, 997)
    filled = [next(bucket for bucket in bucket_lengths(FULL) if bucket >= length) for length in lengths]
    assert sum(filled) / lengths.sum() < 1.07


def test_a_model_that_compiles_meets_only_the_buckets_shapes():
    model = Halving(batch=2)
    runner = RowRunner(model, FULL)
    for length in (MIN_SAMPLES, 5000, 44_000, 60_000, 500_000, FULL - 1, FULL):
        wavs = [np.ones(length, np.float32)] * 3
        found = results(runner.submit(wavs, [Place(0, c) for c in range(3)]))
        assert [out.shape for out in found] == [(length,)] * 3 and all((out == 0.5).all() for out in found)
    shapes = {(shape, lengths is None) for shape, lengths, _ in model.calls}
    assert {shape[0] for shape, _ in shapes} == {2} and len(shapes) == len(runner.shapes)
    assert len(shapes) <= len(bucket_lengths(FULL)) + 1
    assert [whole for shape, whole in shapes if shape[1] == FULL] == [True]
    assert model.calls[-1][2] == [Place(0, 2), Place(0, 0)]


def test_a_model_that_does_not_compile_sees_rows_as_long_as_they_are():
    model = Halving(compiles=False)
    results(RowRunner(model, FULL).submit([np.ones(4321, np.float32)] * 2, [Place(0, 0), Place(0, 1)]))
    assert [(shape, lengths) for shape, lengths, _ in model.calls] == [((1, 4321), None)] * 2


def test_rows_of_several_threads_share_calls():
    model = Halving(batch=4, compiles=False)
    with SharedRunner(model, FULL) as runner:
        runner.PATIENCE = 5.0  # until a call is full
        gate, found = threading.Barrier(4), [np.zeros(0)] * 4

        def work(number: int) -> None:
            wav = np.full(3000 + number, number + 1, np.float32)
            gate.wait(timeout=60)
            found[number] = results(runner.submit([wav], [Place(7, number)]))[0]

        threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(timeout=60)
    for number, out in enumerate(found):
        assert np.array_equal(out, np.full(3000 + number, (number + 1) / 2, np.float32))
    ((shape, lengths, places),) = model.calls
    assert shape == (4, 3360)  # whole frames
    assert sorted(zip(lengths or [], places, strict=True)) == [(3000 + n, Place(7, n)) for n in range(4)]


def test_an_error_of_the_model_reaches_whoever_waits():
    def broken(wav: np.ndarray) -> np.ndarray:
        raise MemoryError("no room")

    for kind in (RowRunner, SharedRunner):
        runner = kind(broken, FULL)
        if isinstance(runner, SharedRunner):
            runner.__enter__()
        (future,) = runner.submit([np.ones(900, np.float32)], [Place(0, 0)])
        with pytest.raises(MemoryError, match="no room"):
            future.result(timeout=60)
        if isinstance(runner, SharedRunner):
            runner.__exit__(None, None, None)


def test_rows_that_wait_are_cancelled_when_a_runner_is_left():
    entered, leave = threading.Event(), threading.Event()

    def slow(wav: np.ndarray) -> np.ndarray:
        entered.set()
        leave.wait(timeout=60)
        return wav

    runner = SharedRunner(slow, FULL)
    with runner:
        futures = [runner.submit([np.ones(900, np.float32)], [Place(k, 0)])[0] for k in range(3)]
        entered.wait(timeout=60)
        threading.Timer(0.1, leave.set).start()
    assert [future.cancelled() for future in futures] == [False, True, True]
    with pytest.raises(CancelledError):
        runner.submit([np.ones(900, np.float32)], [Place(0, 0)])


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("compiles", [True, False])
def test_a_folder_becomes_what_each_file_becomes_alone(tmp_path, batch, compiles):
    lengths = (1, 2000, 44_100, 70_001, 130_007, 44_099)
    for k, length in enumerate(lengths):
        write_audio(
            tmp_path / "in" / f"{k}.wav", tone(1 + k % 3, length, WAV_RATE) + 0.1, WAV_RATE, subtype="FLOAT"
        )
    model = Halving(batch, compiles)
    assert isinstance(model, RowModel)
    options = FileOptions(chunk_seconds=1.0, overlap_seconds=0.2)
    summary = enhance_path(tmp_path / "in", tmp_path / "out", model, options)
    assert [path.name for path in summary.done] == [f"{k}.wav" for k in range(len(lengths))]
    for path in summary.done:
        wav = read_audio(tmp_path / "in" / path.name)[0]
        alone = clean(wav, WAV_RATE, lambda x: x / 2, chunk_seconds=1.0, overlap_seconds=0.2)
        np.testing.assert_array_equal(read_audio(path)[0], alone)
    assert len(model.threads) == 1 and threading.get_ident() not in model.threads
    if compiles:
        assert len({(shape, n is None) for shape, n, _ in model.calls}) <= len(bucket_lengths(44_541)) + 1


def test_what_breaks_in_the_model_ends_the_run_and_leaves_nothing(tmp_path):
    for k in range(5):
        write_audio(tmp_path / "in" / f"{k}.wav", tone(1, 60_000, WAV_RATE), WAV_RATE)
    seen = []

    def breaks(wav: np.ndarray) -> np.ndarray:
        seen.append(wav)
        if len(seen) == 4:
            raise RuntimeError("out of memory")
        return wav

    options = FileOptions(chunk_seconds=0.5, overlap_seconds=0.1)
    with pytest.raises(RuntimeError, match="out of memory"):
        enhance_path(tmp_path / "in", tmp_path / "out", breaks, options)
    left = [path.name for path in (tmp_path / "out").iterdir()]
    assert all(name.endswith(".wav") and not name.startswith(".") for name in left) and len(left) <= 2
