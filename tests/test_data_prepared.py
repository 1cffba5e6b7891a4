from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from parivox.audio import read_audio, resample, write_audio
from parivox.cli import main
from parivox.data import open_stream, prepare, validation_batches
from parivox.data.index import index_files
from parivox.data.prepared import BLOCK, FULL_SCALE, STATE, TABLE, Prepared, open_prepared
from parivox.errors import ConfigError, DataError
from parivox.hparams import DenoiserHParams, EnhancerHParams
from tests.data_folder import RATE, folders, room, tone

ROOT = Path(__file__).resolve().parent.parent


def make(source: Path, folder: Path, **options) -> Prepared:
    prepare.prepare(source, folder, **{"jobs": 1, "message": lambda line: None} | options)
    found = open_prepared(folder)
    assert found is not None
    return found


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    """Speech of many codings, a recording longer than two records, a file that does not decode; noise and a room."""
    root = tmp_path_factory.mktemp("corpus")
    for k in range(17):
        tone(root / "fg" / f"reader{k % 3}" / f"{k:02}.{'wav' if k % 2 else 'flac'}", 0.3, RATE, 1 + k % 2)
    draw = np.random.default_rng(0)
    long = 0.2 * draw.standard_normal((2, 2 * BLOCK + 999), np.float32)
    write_audio(root / "fg" / "long.wav", long.clip(-1, 1), RATE, subtype="FLOAT")
    for name, subtype in (("deep.flac", "PCM_24"), ("vorbis.ogg", None)):
        write_audio(root / "fg" / name, long[:1, :20_000].clip(-1, 1), RATE, subtype=subtype)
    (root / "fg" / "bad.wav").write_bytes(b"RIFF and nothing else")
    for k in range(3):
        tone(root / "bg" / f"{k}.wav", 0.4)
    room(root / "rir" / "a.npy")
    return root


@pytest.fixture(scope="module")
def ready(corpus) -> dict[str, Prepared]:
    return {name: make(corpus / name, corpus / "prepared" / name) for name in ("fg", "bg")}


def hparams(corpus: Path, kind=DenoiserHParams, **fields):
    places = {f"{name}_dir": corpus / name for name in ("fg", "bg", "rir")}
    return kind(**places, training_seconds=0.25, batch_size_per_gpu=4, nj=0, **fields)


@pytest.mark.parametrize(
    ("kind", "fields"),
    [(DenoiserHParams, {}), (EnhancerHParams, {"lcfm_training_mode": "ae"})],
    ids=["denoiser", "enhancer"],
)
def test_batches_are_those_of_the_files_to_the_last_bit(corpus, ready, kind, fields):
    files = hparams(corpus, kind, **fields)
    prepared = files.replace(**{f"{name}_dir": store.folder for name, store in ready.items()})
    told: list[list[str]] = [[], []]
    batches = []
    for hp, said in zip((files, prepared), told, strict=True):
        with open_stream(hp, seed=5, workers=0, message=said.append) as stream:
            made = [next(stream) for _ in range(8)]
        batches.append(made + validation_batches(hp, seed=5, batch_size=4, message=said.append))
    assert told[0] == told[1] and "bad.wav" in "".join(told[0])
    for one, other in zip(*batches, strict=True):
        assert (one.records, one.skipped, one.position) == (other.records, other.skipped, other.position)
        assert one.arrays.keys() == other.arrays.keys()
        assert all(np.array_equal(one.arrays[name], other.arrays[name]) for name in one.arrays)


def test_a_worker_reads_a_prepared_folder(corpus, ready):
    hp = hparams(corpus).replace(fg_dir=ready["fg"].folder, bg_dir=ready["bg"].folder)
    both = []
    for count in (0, 1):
        with open_stream(hp, seed=5, workers=count, message=lambda line: None) as stream:
            both.append(next(stream).arrays["noisy"])
    assert np.array_equal(*both)


def test_every_place_of_a_clip_reads_as_in_its_file(corpus, ready):
    path = corpus / "fg" / "long.wav"
    whole = read_audio(path)[0].mean(axis=0)
    assert ready["fg"].info(path).frames == whole.size == 2 * BLOCK + 999
    for start, frames in ((0, 10), (BLOCK - 5, 10), (BLOCK, 10), (BLOCK - 5, BLOCK + 10), (2 * BLOCK, 5000)):
        wav, rate = ready["fg"].read(path, start, frames)
        assert rate == RATE and np.array_equal(wav[0], whole[start : start + frames])
    assert np.array_equal(ready["fg"].read(path)[0][0], whole)


def test_another_rate_is_resampled_once_and_whole(tmp_path):
    path = tone(tmp_path / "in" / "slow.wav", 13.3, 22_050, 2)
    wav, rate = make(tmp_path / "in", tmp_path / "out").read(path)
    expected = resample(read_audio(path)[0].mean(axis=0), 22_050, RATE)
    assert rate == RATE and wav.shape[1] > 2 * BLOCK and np.array_equal(wav[0], expected)


def test_an_mp3_is_read_as_from_its_beginning(tmp_path):
    """After a seek its decoder rounds the last bit of some samples differently, so crops of the file do too."""
    path, noise = tmp_path / "in" / "a.mp3", np.random.default_rng(0).standard_normal((1, 60_000), np.float32)
    write_audio(path, (0.2 * noise).clip(-1, 1), RATE)
    ready = make(tmp_path / "in", tmp_path / "out")
    assert np.array_equal(ready.read(path)[0], read_audio(path)[0])
    crop, sought = ready.read(path, 4985, 9000)[0], read_audio(path, 4985, 9000)[0]
    assert np.abs(crop - sought).max() <= 2.0**-22


def test_16_bits_are_kept_where_they_hold_everything_and_made_where_asked_for(corpus, ready, tmp_path):
    def room_of(folder: Path) -> int:
        return sum(path.stat().st_size for path in folder.glob("*.array_record"))

    tone(tmp_path / "in" / "a.flac", 10.0)  # of 16 bits
    assert room_of(make(tmp_path / "in", tmp_path / "same").folder) < 2.5 * 10 * RATE
    path = corpus / "fg" / "long.wav"
    rounded = make(corpus / "fg", tmp_path / "out", samples="int16")
    assert room_of(rounded.folder) < 0.6 * room_of(ready["fg"].folder)
    wav, exact = rounded.read(path)[0][0], ready["fg"].read(path)[0][0]
    assert np.abs(wav - exact).max() * FULL_SCALE <= 0.5
    assert np.array_equal(wav * FULL_SCALE, np.rint(wav * FULL_SCALE))


def small_shards(monkeypatch) -> list[str]:
    """One file in a shard; the names of the files that are decoded from now on."""
    monkeypatch.setattr(prepare, "SHARD_BYTES", 1)
    decoded: list[str] = []
    make_shard = prepare.make_shard

    def noted(shard) -> None:
        make_shard(shard)
        decoded.extend(shard.names)

    monkeypatch.setattr(prepare, "make_shard", noted)
    return decoded


KILLED = """
import os, signal, sys
from pathlib import Path
from parivox.data import prepare
prepare.SHARD_BYTES, pack, packed = 1, prepare._packed, []
def killed(block, samples):
    packed.append(1)
    if len(packed) == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return pack(block, samples)
prepare._packed = killed
prepare.prepare(Path(sys.argv[1]), Path(sys.argv[2]), jobs=1)
"""


def test_a_killed_call_leaves_nothing_half_and_the_next_goes_on(tmp_path, monkeypatch):
    source, folder = tmp_path / "in", tmp_path / "out"
    for k in range(4):
        tone(source / f"{k}.wav", 0.1)
    done = subprocess.run([sys.executable, "-c", KILLED, source, folder], cwd=ROOT, check=False)
    assert done.returncode == -9
    assert len(list(folder.glob("*.array_record"))) == 2 and list(folder.glob(".*.tmp"))
    with pytest.raises(DataError, match="is not complete; run: parivox prepare"):
        open_prepared(folder)
    decoded = small_shards(monkeypatch)
    ready = make(source, folder)
    assert decoded == ["2.wav", "3.wav"] and not list(folder.glob(".*.tmp"))
    for path in sorted(source.iterdir()):
        assert np.array_equal(ready.read(path)[0], read_audio(path)[0])


def test_files_that_changed_came_or_went_are_followed(tmp_path, monkeypatch):
    source, folder = tmp_path / "in", tmp_path / "out"
    for k in range(4):
        tone(source / f"{k}.wav", 0.1)
    make(source, folder, jobs=2)
    decoded = small_shards(monkeypatch)
    for path in folder.glob("shard-*"):
        path.unlink()  # all were in one shard
    make(source, folder)
    assert len(decoded) == 4
    decoded.clear()
    tone(source / "1.wav", 0.2)
    (source / "2.wav").unlink()
    tone(source / "a" / "new.wav", 0.1)
    ready = make(source, folder)
    assert sorted(decoded) == ["1.wav", "a/new.wav"]
    assert [path.name for path in ready.table.files] == ["0.wav", "1.wav", "3.wav", "new.wav"]
    for path in ready.table.files:
        assert np.array_equal(ready.read(path)[0], read_audio(path)[0])
    decoded.clear()
    make(source, folder)
    assert decoded == []


def test_what_is_no_prepared_folder_says_so(corpus, ready, tmp_path):
    fg = corpus / "fg"
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").touch()
    refused = {
        "holds something else": (fg, tmp_path / "mine"),
        "was prepared from": (corpus / "bg", ready["fg"].folder),
        "lies in the other": (fg, fg / "out"),
    }
    for text, (source, target) in refused.items():
        with pytest.raises(ConfigError, match=text):
            prepare.prepare(source, target, jobs=1)
    with pytest.raises(ConfigError, match="--dtype float32"):
        prepare.prepare(fg, ready["fg"].folder, "int16", jobs=1)
    with pytest.raises(ConfigError, match="--jobs is 0"):
        prepare.prepare(fg, tmp_path / "out", jobs=0)
    for text, source in {"is not a folder": tmp_path / "gone", "holds no audio": tmp_path / "mine"}.items():
        with pytest.raises(DataError, match=text):
            prepare.prepare(source, tmp_path / "out", jobs=1)
    with pytest.raises(DataError, match=r"rir_dir: .* is a prepared folder"):
        index_files(hparams(corpus).replace(rir_dir=ready["bg"].folder))
    assert open_prepared(fg) is None


@pytest.mark.parametrize("changed", [{"format": 0}, {"rate": 16_000}])
def test_another_version_or_rate_is_refused_by_name(tmp_path, changed):
    tone(tmp_path / "in" / "a.wav", 0.1)
    make(tmp_path / "in", tmp_path / "out")
    state = tmp_path / "out" / STATE
    state.write_text(json.dumps(json.loads(state.read_text()) | changed))
    with pytest.raises(
        DataError, match=r"was prepared in format .* Hz; remove it and run parivox prepare again"
    ):
        open_prepared(tmp_path / "out")


def test_damage_names_the_file_and_the_remedy(tmp_path):
    path = tone(tmp_path / "in" / "a.wav", 3.0)
    ready = make(tmp_path / "in", tmp_path / "out")
    (shard,) = ready.folder.glob("*.array_record")
    held = bytearray(shard.read_bytes())
    held[len(held) // 2 - 8000 : len(held) // 2] = bytes(8000)
    shard.write_bytes(held)
    with pytest.raises(
        DataError, match=rf"{shard.name}: is missing or damaged .* run parivox prepare again"
    ) as error:
        ready.read(path)
    assert "\n" not in str(error.value)
    (ready.folder / TABLE).write_bytes(b"PK and nothing else")
    with pytest.raises(DataError, match=f"{TABLE}: is missing or damaged"):
        open_prepared(ready.folder)


def test_more_than_five_percent_bad_stops(tmp_path):
    for k in range(19):
        tone(tmp_path / "in" / f"{k}.wav", 0.05)
    (tmp_path / "in" / "bad.wav").write_bytes(b"nothing")
    said: list[str] = []
    ready = make(tmp_path / "in", tmp_path / "out", message=said.append)
    assert len(said) == 1 and said[0].startswith(f"skipped {tmp_path / 'in' / 'bad.wav'}: ")
    assert len(ready.table.files) == 20 and len(ready.table.reasons) == 1
    (tmp_path / "in" / "worse.wav").write_bytes(b"")
    with pytest.raises(DataError, match=r"2 of 21 files do not decode, more than 5%"):
        make(tmp_path / "in", tmp_path / "out")
    with pytest.raises(DataError, match="not complete"):
        open_prepared(tmp_path / "out")


def test_the_command_says_what_it_made(tmp_path, capsys):
    folders(tmp_path, speech=3)
    for made in (3, 0):
        assert main(["prepare", str(tmp_path / "fg"), str(tmp_path / "out"), "--jobs", "1"]) == 0
        assert f"3 clips, 0.00 hours, {made} decoded now\n" in capsys.readouterr().out
    assert main(["prepare", str(tmp_path / "gone"), str(tmp_path / "out")]) == 1
    assert "is not a folder" in capsys.readouterr().err
