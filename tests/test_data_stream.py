from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from parivox.data import TrainBatch, open_stream, validation_batches, workers
from parivox.data.index import index_files
from parivox.errors import ConfigError, DataError
from parivox.hparams import EnhancerHParams
from tests.data_folder import folders, tone

ROOT = Path(__file__).resolve().parent.parent


def take(hp, count: int, **options) -> list[TrainBatch]:
    with open_stream(hp, **{"seed": 5, "workers": 0} | options) as stream:
        return [next(stream) for _ in range(count)]


def assert_same(one: list[TrainBatch], two: list[TrainBatch]) -> None:
    assert len(one) == len(two)
    for a, b in zip(one, two, strict=True):
        assert (a.records, a.position, a.skipped) == (b.records, b.position, b.skipped)
        assert a.arrays.keys() == b.arrays.keys()
        assert all(np.array_equal(a.arrays[name], b.arrays[name]) for name in a.arrays)


@pytest.fixture(scope="module")
def hp(tmp_path_factory):
    return folders(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module")
def reference(hp):
    return take(hp, 6)


def test_batches_are_what_a_step_takes(hp, reference):
    train = {str(path) for path in index_files(hp).train.files}
    for k, batch in enumerate(reference):
        assert set(batch.arrays) == {"noisy", "target"}
        assert all(a.shape == (4, 4410) and a.dtype == np.float32 for a in batch.arrays.values())
        assert batch.position == 4 * (k + 1) and len(batch.records) == 4 and set(batch.records) <= train


def test_a_worker_changes_nothing_and_ends_with_the_stream(hp, reference):
    before = set(multiprocessing.active_children())
    with open_stream(hp, seed=5, workers=1) as stream:
        batches = [next(stream) for _ in range(6)]
        started = set(multiprocessing.active_children()) - before
    assert_same(batches, reference)
    assert len(started) == 1 and not any(process.is_alive() for process in started)


def send_until(stop, records) -> None:
    while not stop.is_set():
        records.put(bytes(2**20))  # larger than a pipe


def test_a_worker_that_waits_for_room_in_its_pipe_is_let_go():
    context = multiprocessing.get_context("spawn")
    stop, records = context.Event(), context.Queue(2)
    worker = context.Process(target=send_until, args=(stop, records), daemon=True)
    worker.start()
    records.get()
    stop.set()
    inner = SimpleNamespace(_prefetch_process=worker, _buffer=records)
    workers.drain(SimpleNamespace(_iterators_in_use=[SimpleNamespace(_maybe_nonnative_parent=inner)]))
    worker.join(60)
    assert worker.exitcode == 0


def test_the_workers_of_a_stream_are_found(hp, monkeypatch):
    drained, before = [], set(multiprocessing.active_children())
    monkeypatch.setattr(workers, "_discard", lambda process, buffer: drained.append(process))
    with open_stream(hp, seed=5, workers=1) as stream:
        next(stream)
        started = set(multiprocessing.active_children()) - before
    assert set(drained) == started


def test_two_workers_smaller_batches_and_a_resume_change_nothing(hp, reference):
    rows = take(hp, 8, workers=2, batch_size=1, start=4)
    assert [row.position for row in rows] == list(range(5, 13))
    for name in ("noisy", "target"):
        got = np.concatenate([row.arrays[name] for row in rows])
        assert np.array_equal(got, np.concatenate([batch.arrays[name] for batch in reference[1:3]]))


def test_resume_from_any_position(hp, reference):
    for k, batch in enumerate(reference[:-1]):
        assert_same(take(hp, 2, start=batch.position)[: 5 - k], reference[k + 1 : k + 3])
    (odd,) = take(hp, 1, start=3, batch_size=2)
    assert odd.position == 5
    expected = np.concatenate([batch.arrays["noisy"] for batch in reference[:2]])[3:5]
    assert np.array_equal(odd.arrays["noisy"], expected)


def joined(hp, ranks: int, count: int, **options) -> list[TrainBatch]:
    """The global batches that several ranks read together, each rank in a stream of its own."""
    shares = [take(hp, count, rank=rank, ranks=ranks, **options) for rank in range(ranks)]
    whole = []
    for parts in zip(*shares, strict=True):
        assert len({part.position for part in parts}) == 1
        names = parts[0].arrays
        arrays = {name: np.concatenate([part.arrays[name] for part in parts]) for name in names}
        records = sum((part.records for part in parts), ())
        whole.append(TrainBatch(arrays, records, (), parts[0].position))
    return whole


@pytest.mark.parametrize(("ranks", "workers"), [(1, 0), (2, 0), (4, 0), (2, 1)])
def test_ranks_read_the_batches_of_one_rank_together(hp, reference, ranks, workers):
    assert_same(joined(hp, ranks, 3, batch_size=4 // ranks, workers=workers), reference[:3])


@pytest.mark.parametrize("mode", ["ae", "cfm"])
def test_workers_ranks_and_rows_change_nothing_for_the_enhancer(hp, mode):
    """Its draws come with the records."""
    shared = {name: getattr(hp, name) for name in ("fg_dir", "bg_dir", "rir_dir", "training_seconds")}
    hp = EnhancerHParams(**shared, lcfm_training_mode=mode, lcfm_latent_dim=8, batch_size_per_gpu=2)
    whole = take(hp, 3)
    assert {array.dtype for batch in whole for array in batch.arrays.values()} == {np.dtype(np.float32)}
    assert {array.shape[0] for batch in whole for array in batch.arrays.values()} == {2}
    noises = {row.tobytes() for batch in whole for row in batch.arrays["vocoder_noise"]}
    assert len(noises) == 6
    assert_same(joined(hp, 2, 3, batch_size=1), whole)
    assert_same(take(hp, 2, start=whole[0].position, workers=1 if mode == "cfm" else 0), whole[1:])
    held, again = (validation_batches(hp, seed=5, batch_size=rows) for rows in (10, 3))
    for name, array in held[0].arrays.items():
        assert np.array_equal(array, np.concatenate([batch.arrays[name] for batch in again])), name


def test_a_resume_at_another_number_of_ranks_changes_nothing(hp, reference):
    begun = joined(hp, 2, 2, batch_size=2)
    assert_same(begun + joined(hp, 4, 2, batch_size=1, start=begun[-1].position), reference[:4])


def test_ranks_read_nothing_twice(hp):
    train = len(index_files(hp).train.files)
    shares = [take(hp, train, rank=rank, ranks=2, batch_size=1) for rank in range(2)]
    rows = {batch.arrays["noisy"].tobytes() for share in shares for batch in share}
    assert len(rows) == 2 * train


def test_position_far_along_needs_no_replay(hp):
    (batch,) = take(hp, 1, start=10**12)
    assert batch.position == 10**12 + 4


def test_every_epoch_has_all_files_in_another_order_with_other_draws(hp):
    train = [str(path) for path in index_files(hp).train.files]
    epochs = take(hp, 5, batch_size=len(train))
    assert all(sorted(epoch.records) == train for epoch in epochs)
    assert len({epoch.records for epoch in epochs}) > 1
    crops = {epoch.arrays["noisy"][epoch.records.index(train[0])].tobytes() for epoch in epochs}
    assert len(crops) == 5


def test_seed_decides(hp, reference):
    other = take(hp, 2, seed=6)
    assert not np.array_equal(other[0].arrays["noisy"], reference[0].arrays["noisy"])


def test_one_training_file_is_enough(tmp_path):
    batches = take(folders(tmp_path, speech=11), 2)
    assert len({record for batch in batches for record in batch.records}) == 1
    assert len({row.tobytes() for batch in batches for row in batch.arrays["noisy"]}) == 8


def test_long_crops_never_join_held_out_speech(tmp_path):
    hp = folders(tmp_path, load_fg_only=True, training_seconds=1.2)
    for path in index_files(hp).held_out.files:
        path.write_bytes(b"reading this would be reported")
    assert all(not batch.skipped for batch in take(hp, 6))


def test_validation_items_are_the_held_out_files_and_stay_the_same(hp):
    one, two = (validation_batches(hp, seed=5, batch_size=4) for _ in range(2))
    assert_same(one, two)
    held_out = tuple(str(path) for path in index_files(hp).held_out.files)
    assert sum((batch.records for batch in one), ()) == held_out
    assert [len(batch.records) for batch in one] == [4, 4, 2] and [b.position for b in one] == [4, 8, 10]
    whole = validation_batches(hp, seed=5, batch_size=10)[0].arrays["noisy"]
    assert np.array_equal(whole, np.concatenate([batch.arrays["noisy"] for batch in one]))


def spoil(hp, count: int) -> list[Path]:
    bad = list(index_files(hp).train.files[:count])
    for path in bad:
        path.write_bytes(b"RIFF and nothing else")
    return bad


def test_a_bad_file_is_named_once_and_replaced_the_same_way_everywhere(tmp_path):
    hp = folders(tmp_path, speech=24)
    (bad,) = spoil(hp, 1)
    runs = []
    for count in (0, 1):
        said: list[str] = []
        with open_stream(hp, seed=5, workers=count, message=said.append) as stream:
            runs.append([next(stream) for _ in range(10)])
            assert list(stream.skipped) == [str(bad)] and stream.skipped[str(bad)]
        assert len(said) == 1 and said[0].startswith(f"skipped {bad}: ") and "\n" not in said[0]
    assert_same(*runs)
    named = [batch.skipped for batch in runs[0] if batch.skipped]
    assert len(named) >= 2 and all(pairs[0][0] == str(bad) for pairs in named)
    assert all(str(bad) not in batch.records for batch in runs[0])


def test_more_than_five_percent_bad_stops_with_a_list(tmp_path):
    hp = folders(tmp_path, speech=24)
    bad = spoil(hp, 2)
    said: list[str] = []
    with pytest.raises(DataError) as error:
        take(hp, 20, message=said.append)
    text = str(error.value)
    assert text.startswith("fg_dir: 2 of 24 files do not decode") and "\n" not in text
    assert all(str(path) in text for path in bad) and len(said) == 2


def test_an_error_in_a_worker_keeps_its_class_and_its_line(tmp_path):
    hp = folders(tmp_path, noise=2)
    for path in (tmp_path / "bg").iterdir():
        path.write_bytes(b"")
    with pytest.raises(DataError, match=r"^bg_dir: 2 files drawn and none decoded") as error:
        take(hp, 1, workers=1)
    assert "\n" not in str(error.value)


def test_bad_noise_counts_against_its_own_folder(tmp_path):
    hp = folders(tmp_path, noise=2)
    (tmp_path / "bg" / "0.wav").write_bytes(b"")
    with pytest.raises(DataError, match=r"^bg_dir: 1 of 2 files"):
        take(hp, 10, message=lambda line: None)


def test_validation_skips_and_stops_too(tmp_path):
    hp = folders(tmp_path, speech=24)
    held_out = index_files(hp).held_out.files
    held_out[3].write_bytes(b"")
    said: list[str] = []
    (batch,) = validation_batches(hp, seed=0, batch_size=10, message=said.append)
    assert len(said) == 1 and batch.skipped[0][0] == str(held_out[3])
    assert batch.records[3] in {str(path) for path in held_out} - {str(held_out[3])}
    held_out[4].write_bytes(b"")
    with pytest.raises(DataError, match="2 of 24"):
        validation_batches(hp, seed=0, batch_size=10, message=said.append)


@pytest.mark.parametrize(
    "options",
    [
        {"seed": -1},
        {"seed": 2**32},
        {"start": -1},
        {"workers": -1},
        {"batch_size": 0},
        {"rank": 2, "ranks": 2},
        {"ranks": 0},
        {"rank": -1},
    ],
    ids=str,
)
def test_bad_arguments(hp, options):
    with pytest.raises(ConfigError, match=next(iter(options))):
        open_stream(hp, **{"seed": 0} | options)


def test_nj_caps_and_batch_size_default(hp):
    said: list[str] = []
    with open_stream(hp.replace(nj=0), seed=0, message=said.append) as stream:
        assert next(stream).arrays["noisy"].shape[0] == hp.batch_size_per_gpu
    assert not said


def test_a_closed_stream_says_so(hp):
    stream = open_stream(hp, seed=0, workers=0)
    next(stream)
    stream.close()
    stream.close()
    with pytest.raises(ValueError, match="closed"):
        next(stream)


SCRIPT = """
import json, multiprocessing, sys, time
from pathlib import Path
sys.path.insert(0, {root!r})
with open({log!r}, "a") as log:
    log.write("main\\n")
from parivox.data import open_stream
from parivox.hparams import DenoiserHParams
# No "if __name__" guard: a worker must not run this file again.
stream = open_stream(DenoiserHParams.from_dict(json.loads({hp!r})), seed=5, workers={workers})
batch = next(stream)
assert __file__ and "__main__" in sys.modules
pids = [process.pid for process in multiprocessing.active_children()]
print(json.dumps([pids, float(batch.arrays["noisy"].sum())]), flush=True)
{ending}
"""


def start_program(tmp_path: Path, hp, workers: int, ending: str) -> subprocess.Popen[str]:
    script = tmp_path / "program.py"
    values = {
        "root": str(ROOT),
        "log": str(tmp_path / "log"),
        "hp": json.dumps(hp.to_dict()),
        "workers": workers,
        "ending": ending,
    }
    script.write_text(SCRIPT.format(**values))
    return subprocess.Popen(
        [sys.executable, str(script)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def running(pid: int) -> bool:
    """Whether a process is alive; one that ended and was not yet waited for is not."""
    stat = Path(f"/proc/{pid}/stat")
    if Path("/proc/self/stat").exists():
        return stat.exists() and stat.read_text().rpartition(")")[2].split()[0] not in "ZX"
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def wait_until_gone(pids: list[int]) -> list[int]:
    deadline = time.monotonic() + 30
    while any(map(running, pids)) and time.monotonic() < deadline:
        time.sleep(0.05)
    return [pid for pid in pids if running(pid)]


@pytest.mark.skipif(os.name == "nt", reason="kill -9 is a POSIX word")
def test_workers_end_when_the_parent_is_killed(tmp_path, hp, reference):
    program = start_program(tmp_path, hp, 2, "time.sleep(600)")
    assert program.stdout is not None and program.stderr is not None
    line = program.stdout.readline()
    assert line, program.stderr.read()
    pids, total = json.loads(line)
    assert len(pids) == 2 and all(map(running, pids))
    assert total == pytest.approx(float(reference[0].arrays["noisy"].sum()))
    program.send_signal(signal.SIGKILL)
    program.wait()
    assert wait_until_gone(pids) == []
    program.stdout.close()
    program.stderr.close()
    assert (tmp_path / "log").read_text() == "main\n"


def test_a_program_that_forgets_to_close_ends_quietly(tmp_path, hp):
    program = start_program(tmp_path, hp, 1, "")
    out, err = program.communicate(timeout=120)
    assert program.returncode == 0 and err == ""
    assert wait_until_gone(json.loads(out)[0]) == []


def test_folder_errors_come_at_once(tmp_path):
    hp = folders(tmp_path).replace(bg_dir=tmp_path / "nowhere")
    with pytest.raises(DataError, match="bg_dir"):
        open_stream(hp, seed=0)
    tone(tmp_path / "nowhere" / "a.wav", 0.2)
    open_stream(hp, seed=0, workers=0).close()
