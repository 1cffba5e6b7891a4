from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

import pytest

from parivox.audio_formats import AUDIO_SUFFIXES
from parivox.data.index import AUDIO_WORDS, index_files, split_held_out
from parivox.data.workers import available_cpus, worker_count
from parivox.errors import ConfigError, DataError
from parivox.listing import PathList
from tests.data_folder import folders, room, tone

NAMES = tuple(f"speaker{k // 15}/{k:04}.flac" for k in range(60))
RECORDED = [
    "speaker1/0017.flac",
    "speaker1/0020.flac",
    "speaker1/0021.flac",
    "speaker1/0023.flac",
    "speaker2/0033.flac",
    "speaker2/0039.flac",
    "speaker3/0049.flac",
    "speaker3/0052.flac",
    "speaker3/0054.flac",
    "speaker3/0055.flac",
]
"""The ten of these that the first version held out."""


def test_lists_every_folder_sorted_and_without_hidden_files(tmp_path):
    hp = folders(tmp_path)
    tone(tmp_path / "fg" / "deeper" / "still" / "X.FLAC", 0.2)
    tone(tmp_path / "rir" / "hall.wav", 0.1)
    room(tmp_path / "rir" / ".hidden" / "no.npy")
    (tmp_path / "fg" / "notes.txt").write_text("not audio")
    files = index_files(hp)
    speech = [*files.train.files, *files.held_out.files]
    assert len(speech) == 15 and (tmp_path / "fg/deeper/still/X.FLAC") in speech
    assert list(files.train.files) == sorted(files.train.files)
    assert files.bg is not None and len(files.bg.files) == 3
    assert files.rir is not None and [p.name for p in files.rir.files] == ["0.npy", "1.npy", "hall.wav"]


def test_what_only_an_extra_or_cleaning_reads_is_no_training_data(tmp_path):
    hp = folders(tmp_path)
    before = index_files(hp)
    for name in ("a.m4a", "b.aiff", "c.webm", "d.opus"):
        for folder in ("fg", "bg", "rir"):
            (tmp_path / folder / name).write_bytes(b"something")
    assert index_files(hp) == before
    assert [f".{word}" for word in AUDIO_WORDS.replace(" or", ",").split(", ")] == list(AUDIO_SUFFIXES)


def corpus(folder="/corpus", names=NAMES) -> PathList:
    return PathList(Path(folder), names)


def test_split_holds_out_ten_and_leaks_none():
    train, held_out = split_held_out(corpus())
    assert len(held_out) == 10 and not set(train) & set(held_out)
    assert sorted([*train, *held_out]) == list(corpus())
    assert list(train) == sorted(train) and list(held_out) == sorted(held_out)


def test_split_depends_on_names_below_the_folder_alone():
    held_out, there = (split_held_out(corpus(folder))[1] for folder in ("/corpus", "/elsewhere"))
    assert list(held_out.names()) == list(there.names())


def test_the_ten_are_those_of_the_smallest_digests():
    """Whoever trains again with a later version must not train on what was held out."""
    held_out = [name.decode() for name in split_held_out(corpus())[1].names()]
    assert held_out == sorted(sorted(NAMES, key=lambda name: hashlib.blake2b(name.encode()).digest())[:10])
    assert held_out == RECORDED


def test_removing_training_files_keeps_the_held_out_ones():
    train, held_out = split_held_out(corpus())
    rest = sorted([*held_out.names(), *(train.name(k) for k in range(0, len(train), 3))])
    assert split_held_out(PathList(Path("/corpus"), rest))[1] == held_out


def test_fewer_than_eleven_speech_files(tmp_path):
    with pytest.raises(DataError, match=r"fg_dir.*10 speech files, too little data for a validation split"):
        index_files(folders(tmp_path, speech=10))
    assert len(index_files(folders(tmp_path, speech=11)).train.files) == 1


@pytest.mark.parametrize("field", ["fg_dir", "bg_dir", "rir_dir"])
@pytest.mark.parametrize("state", ["missing", "empty", "file"])
def test_bad_folder_names_field_path_and_remedy(tmp_path, field, state):
    bad = tmp_path / "nothing-here"
    if state == "empty":
        bad.mkdir()
    if state == "file":
        bad.write_text("x")
    hp = folders(tmp_path).replace(**{field: bad})
    with pytest.raises(DataError) as error:
        index_files(hp)
    text = str(error.value)
    assert text.startswith(f"{field}: {bad}") and "\n" not in text and ("set " in text or "put " in text)


def test_speech_alone_needs_no_other_folder(tmp_path):
    hp = folders(tmp_path, load_fg_only=True).replace(bg_dir=tmp_path / "no", rir_dir=tmp_path / "no")
    files = index_files(hp)
    assert files.bg is None and files.rir is None
    assert files.kind(files.train.files[0]) == ("fg_dir", 14)


def test_a_file_counts_in_the_folder_that_it_was_listed_in(tmp_path):
    hp = folders(tmp_path)
    files = index_files(hp)
    assert files.bg is not None and files.rir is not None
    named = {pool.field: files.kind(pool.files[-1]) for pool in (files.train, files.bg, files.rir)}
    assert named == {"fg_dir": ("fg_dir", 14), "bg_dir": ("bg_dir", 3), "rir_dir": ("rir_dir", 2)}
    assert files.kind(files.held_out.files[0]) == ("fg_dir", 14)
    shared = index_files(hp.replace(bg_dir=tmp_path / "fg"))
    assert shared.kind(shared.train.files[0]) == ("bg_dir", 14)


def test_nj_is_an_upper_bound_and_says_so_once():
    said: list[str] = []
    cpus = available_cpus()
    expected = cpus if cpus > 1 else 0
    assert worker_count(10_000, said.append) == expected
    assert len(said) == 1 and "nj=10000" in said[0] and str(cpus) in said[0]
    assert worker_count(0, said.append) == 0 and len(said) == 1
    with pytest.raises(ConfigError, match="nj is -1"):
        worker_count(-1, said.append)


def test_a_single_cpu_gets_no_worker_process(monkeypatch):
    monkeypatch.setattr("parivox.data.workers.available_cpus", lambda: 1)
    said: list[str] = []
    assert worker_count(64, said.append) == 0 and len(said) == 1


def test_import_brings_no_backend_and_no_grain():
    names = ("jax", "torch", "jax_impl", "torch_impl", "grain", "parselmouth")
    code = f"import sys, parivox.data; print([name for name in {names} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
