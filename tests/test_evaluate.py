"""`parivox evaluate`: files and folders, what it writes, and what it says of files that cannot be scored."""

from __future__ import annotations

import base64
import csv
import io
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from matplotlib.image import imread
from rich.console import Console

from parivox import scores
from parivox.audio import resample
from parivox.cli import main
from parivox.commands.evaluate import MetricOption
from parivox.evaluate_files import FileScores, Pair, Scores, evaluate_path
from parivox.evaluate_page import MEANINGS, RANKING, ranked, render_page
from parivox.evaluate_report import print_table, write_csv, write_json
from parivox.metrics import limited_si_sdr, log_spectral_distance
from parivox.scores import METRICS, choose
from tests.voices import RATE, WOMAN, noisy, save, voice

FAST = ("si_sdr", "lsd", "mcd")
"""Metrics that need no package."""

ROOT = Path(__file__).parent.parent


def evaluate(*words: object, metrics: tuple[str, ...] = FAST) -> int:
    return main(["evaluate", *map(str, words), *(("--metrics", *metrics) if metrics else ())])


def score(reference: Path | None, estimate: Path, *names: str) -> Scores:
    return evaluate_path(reference, estimate, choose(names or FAST, reference is not None)[0])


def only(found: Scores) -> FileScores:
    (file,) = found.files
    return file


def one_line(capsys) -> str:
    out, err = capsys.readouterr()
    (line,) = err.splitlines()
    assert line.startswith("parivox: ") and "scored" not in out
    return line


def table(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.read_text().splitlines()))


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> tuple[Path, Path]:
    """Three recordings, one of them below a folder, and noisy ones beside them in other formats."""
    root = tmp_path_factory.mktemp("evaluate")
    for name, suffix, level in (("a", "flac", 0.01), ("sub/b", "wav", 0.05), ("sub/c", "ogg", 0.2)):
        wav = voice(1.0, seed=len(name) + int(100 * level))
        save(root / "clean" / f"{name}.wav", wav)
        save(root / "dirty" / f"{name}.{suffix}", noisy(0.5 * wav, level).clip(-1, 1))
    return root / "clean", root / "dirty"


def test_two_files_are_a_line_for_each_score(tmp_path, capsys):
    wav = voice(1.0)
    clean, dirty = save(tmp_path / "clean.wav", wav), save(tmp_path / "dirty.wav", noisy(wav))
    assert evaluate(clean, dirty) == 0
    out, err = capsys.readouterr()
    assert err == "" and out.splitlines()[-1] == "1 file scored"
    values = only(score(clean, dirty)).values
    assert values == {
        "si_sdr": float(limited_si_sdr(noisy(wav), wav)),
        "lsd": float(log_spectral_distance(noisy(wav), wav)),
        "mcd": pytest.approx(values["mcd"]),
    }
    rows = {cells[0]: cells[1:] for cells in (line.split() for line in out.splitlines()) if cells}
    assert rows["SI-SDR"] == ["dB", "higher", f"{values['si_sdr']:.1f}"]
    assert rows["LSD"] == ["dB", "lower", f"{values['lsd']:.2f}"]


def test_folders_are_matched_by_path_without_suffix(folders, capsys):
    assert evaluate(*folders) == 0
    out, err = capsys.readouterr()
    assert err == "" and out.splitlines()[-1] == "3 files scored"
    found = score(*folders)
    assert [file.pair.name for file in found.files] == ["a.flac", "sub/b.wav", "sub/c.ogg"]
    levels = [file.values["si_sdr"] for file in found.files]
    assert levels == sorted(levels, reverse=True) and levels[0] > levels[2] + 10
    for file in found.files:
        assert f"{file.values['mcd']:.2f}" in next(
            line for line in out.splitlines() if file.pair.name in line
        )
    means = next(line for line in out.splitlines() if "mean of 3" in line)
    assert f"{np.mean(levels):.1f}" in means


def test_csv_and_json_hold_every_number_and_the_means(folders, tmp_path):
    assert evaluate(*folders, "--csv", tmp_path / "new" / "s.csv", "--json", tmp_path / "s.json") == 0
    found = score(*folders)
    rows = table(tmp_path / "new" / "s.csv")
    assert [row["file"] for row in rows] == ["a.flac", "sub/b.wav", "sub/c.ogg", "mean"]
    for row, file in zip(rows, found.files, strict=False):
        assert {name: float(row[name]) for name in FAST} == file.values
        assert float(row["seconds"]) == 1 and row["reference"] == str(file.pair.reference)
    content = json.loads((tmp_path / "s.json").read_text())
    assert [entry["scores"] for entry in content["files"]] == [file.values for file in found.files]
    assert content["mean"] == found.means() == {name: float(rows[-1][name]) for name in FAST}
    assert content["mean"]["lsd"] == pytest.approx(np.mean([file.values["lsd"] for file in found.files]))
    assert [column["better"] for column in content["columns"]] == ["higher", "lower", "lower"]
    assert content["counted"] == {"si_sdr": 3, "lsd": 3, "mcd": 3} and content["failed"] == []


def test_the_page_needs_nothing_else_and_escapes_names(tmp_path):
    for name, level in (("<b>good & </b>", 0.001), ("bad$_$", 0.3)):
        save(tmp_path / "clean" / f"{name}.wav".replace("/", "-"), voice(1.0))
        save(tmp_path / "dirty" / f"{name}.wav".replace("/", "-"), noisy(voice(1.0), level))
    (tmp_path / "clean" / "lost.wav").write_text("not sound")
    (tmp_path / "dirty" / "lost.wav").write_text("not sound")
    page = tmp_path / "s.html"
    assert evaluate(tmp_path / "clean", tmp_path / "dirty", "--page", page, metrics=FAST[:1]) == 1
    text = page.read_text()
    assert not re.search(r'(src|href)="(?!data:)', text) and "http" not in text and "<script" not in text
    assert "<b>" not in text and "Worst by SI-SDR: bad$_$.wav" in text
    assert "Best by SI-SDR: &lt;b&gt;good &amp; &lt;-b&gt;.wav" in text
    assert "1 could not be scored" in text and "lost.wav: cannot be decoded" in text
    pictures = re.findall(r'src="data:image/png;base64,([^"]+)"', text)
    assert len(pictures) == 3
    for picture in pictures:
        assert imread(io.BytesIO(base64.b64decode(picture))).std() > 0.01


def test_the_page_of_many_files_draws_distributions(folders):
    pair = Pair("a.wav", folders[1] / "a.flac", folders[0] / "a.wav")
    columns = METRICS[5].columns[:2]
    files = [FileScores(pair, 1.0, {column.name: k / 7 for column in columns}, ()) for k in range(60)]
    assert render_page(Scores(columns, files)).count("<img") == 2 + len(columns)


def test_a_page_without_any_number(folders):
    pair = Pair("a.wav", folders[1] / "a.flac", None)
    found = Scores(METRICS[0].columns, [FileScores(pair, 1.0, {}, ("si_sdr undefined: silence",))])
    text = render_page(found)
    assert ranked(found) is None and "<img" not in text and "si_sdr undefined: silence" in text


def test_every_column_has_a_meaning_and_a_rank():
    names = [column.name for metric in METRICS for column in metric.columns]
    assert sorted(MEANINGS) == sorted(names) and set(RANKING) <= set(names)
    assert get_args(MetricOption) == tuple(metric.name for metric in METRICS)


def test_channels_are_scored_one_by_one(tmp_path):
    left, right = voice(1.0), voice(1.0, speaker=WOMAN)
    clean = save(tmp_path / "clean.wav", np.stack([left, right]))
    dirty = save(tmp_path / "dirty.wav", np.stack([noisy(left), noisy(right, 0.1)]))
    singly = []
    for name, one, other in (("l", left, noisy(left)), ("r", right, noisy(right, 0.1))):
        pair = save(tmp_path / f"{name}1.wav", one), save(tmp_path / f"{name}2.wav", other)
        singly.append(only(score(*pair)).values)
    both = only(score(clean, dirty))
    assert both.notes == ()
    assert both.values == pytest.approx({name: np.mean([one[name] for one in singly]) for name in FAST})


def test_a_silent_channel_is_told_and_left_out(tmp_path):
    wav = voice(1.0)
    clean = save(tmp_path / "clean.wav", np.stack([wav, 0 * wav]))
    dirty = save(tmp_path / "dirty.wav", np.stack([noisy(wav), noisy(0 * wav)]))
    file = only(score(clean, dirty))
    alone = only(score(save(tmp_path / "a.wav", wav), save(tmp_path / "b.wav", noisy(wav))))
    assert file.values == alone.values
    assert file.notes == ("si_sdr, lsd, mcd only of the other channels: channel 2: the reference is silent",)


def test_a_silent_reference_leaves_cells_empty_and_says_so(tmp_path, capsys):
    wav = voice(1.0)
    for name, level in (("silent", 0), ("sounding", 1)):
        save(tmp_path / "clean" / f"{name}.wav", level * wav)
        save(tmp_path / "dirty" / f"{name}.wav", noisy(wav))
    outputs = ("--csv", tmp_path / "s.csv", "--json", tmp_path / "s.json")
    assert evaluate(tmp_path / "clean", tmp_path / "dirty", *outputs) == 0
    out, err = capsys.readouterr()
    path = tmp_path / "dirty" / "silent.wav"
    assert err == f"parivox: {path}: si_sdr, lsd, mcd undefined: the reference is silent\n"
    assert next(line for line in out.splitlines() if " silent.wav" in line).split() == ["silent.wav", *"---"]
    rows = table(tmp_path / "s.csv")
    assert [rows[0][name] for name in FAST] == ["", "", ""] and rows[1]["si_sdr"] == rows[2]["si_sdr"] != ""
    content = json.loads((tmp_path / "s.json").read_text())
    assert content["files"][0]["scores"] == {"si_sdr": None, "lsd": None, "mcd": None}
    assert content["counted"]["si_sdr"] == 1
    assert "NaN" not in (tmp_path / "s.json").read_text() + out


def test_rates_of_the_two_may_differ(tmp_path):
    wav = voice(1.0, 16_000)
    clean = save(tmp_path / "clean.wav", wav, 16_000)
    dirty = save(tmp_path / "dirty.wav", resample(wav, 16_000, 48_000), 48_000)
    assert only(score(clean, dirty)).values["si_sdr"] > 30


@pytest.mark.parametrize(("shift", "status"), [(0.009, 0), (-0.009, 0), (0.012, 1), (-0.012, 1)])
def test_lengths_may_differ_by_ten_milliseconds(tmp_path, capsys, shift, status):
    wav = voice(1.2)
    clean = save(tmp_path / "clean.wav", wav[:RATE])
    dirty = save(tmp_path / "dirty.wav", noisy(wav[: round(RATE * (1 + shift))]))
    assert evaluate(clean, dirty) == status
    if status:
        line = one_line_of_a_failed_file(capsys)
        assert str(clean) in line and str(dirty) in line and "10 ms" in line


def one_line_of_a_failed_file(capsys) -> str:
    out, err = capsys.readouterr()
    assert out.splitlines()[-1].startswith("0 files scored, 1 failed")
    (line,) = err.splitlines()
    return line


def test_files_that_cannot_be_scored_are_a_line_each_and_the_others_are_done(tmp_path, capsys):
    clean, dirty, wav = tmp_path / "clean", tmp_path / "dirty", voice(1.0)
    for folder in (clean, dirty):
        save(folder / "good.wav", noisy(wav, 0.01, seed=len(folder.name) + ord(folder.name[0])))
        save(folder / "text.wav", wav).write_text("These are words.\n" * 40)
        save(folder / "twice.wav", wav)
    save(dirty / "twice.flac", wav)
    save(clean / "wide.wav", wav)
    save(dirty / "wide.wav", np.stack([wav, wav]))
    save(clean / "longer.wav", wav)
    save(dirty / "longer.wav", wav[:-4410])
    save(clean / "alone.wav", wav)
    save(dirty / "only.wav", wav)
    assert evaluate(clean, dirty, "--json", tmp_path / "s.json") == 1
    out, err = capsys.readouterr()
    lines = err.splitlines()
    for name, words in {
        "text.wav": "cannot be decoded",
        "twice.flac": "differ in their suffix alone",
        "wide.wav": "2 channels and",
        "longer.wav": "lasts 0.900 s",
        "alone.wav": "has no file for it",
        "only.wav": "has no file for it",
    }.items():
        (line,) = [line for line in lines if name in line]
        assert line.startswith("parivox: ") and words in line
    assert len(lines) == 6 and out.splitlines()[-1] == "1 file scored, 6 failed"
    content = json.loads((tmp_path / "s.json").read_text())
    assert [entry["file"] for entry in content["files"]] == ["good.wav"]
    assert sorted(f"parivox: {entry['reason']}" for entry in content["failed"]) == sorted(lines)


def test_wrong_paths_are_one_line(folders, tmp_path, capsys):
    clean, dirty = folders
    file, empty = clean / "a.wav", tmp_path / "empty"
    empty.mkdir()
    other = save(tmp_path / "other" / "z.wav", voice(1.0)).parent
    for words, expected in (
        ((clean, tmp_path / "none"), "no such file or folder"),
        ((tmp_path / "none", dirty), "no such file or folder"),
        ((clean, file), "two files or two folders"),
        ((file, dirty), "two files or two folders"),
        ((clean, empty), "holds no audio"),
        ((other, dirty), "share no file"),
        ((clean,), "name both, or score one with --no-reference"),
        (("--no-reference", clean, dirty), "name one path"),
    ):
        assert evaluate(*words) == 1
        assert expected in one_line(capsys)


def test_outputs_that_cannot_be_written_are_refused_before_anything_is_scored(folders, tmp_path, capsys):
    for option in ("--csv", "--json", "--page"):
        assert evaluate(*folders, option, tmp_path) == 1
        assert "is a folder; name a file" in one_line(capsys)


def test_metrics_that_cannot_be_had(folders, capsys, monkeypatch):
    with pytest.raises(SystemExit, match="2"):
        evaluate(*folders, metrics=("loudness",))
    capsys.readouterr()
    find = scores.importlib.util.find_spec
    absent = ("pesq", "pystoi", "speechmos", "pocketsphinx", "resemblyzer")
    monkeypatch.setattr(
        scores.importlib.util, "find_spec", lambda name: None if name in absent else find(name)
    )
    assert evaluate(*folders, metrics=("si_sdr", "pesq")) == 1
    assert "--metrics pesq: not installed; pip install 'parivox[metrics]'" in one_line(capsys)
    assert evaluate("--no-reference", folders[1], metrics=()) == 1
    assert "nothing can be scored without a reference" in one_line(capsys)
    assert evaluate("--no-reference", folders[1]) == 1
    assert "--metrics si_sdr: compares with a reference" in one_line(capsys)
    assert evaluate(*folders, metrics=()) == 0
    out, err = capsys.readouterr()
    assert err.splitlines() == [
        "parivox: pesq, stoi, dnsmos: left out, not installed; pip install 'parivox[metrics]'",
        "parivox: wer, speaker: left out, not installed; pip install 'parivox[changed]'",
    ]
    assert "SI-SDR" in out and "PESQ" not in out


@pytest.mark.skipif(not METRICS[5].installed, reason=f"DNSMOS is not installed; {METRICS[5].remedy}")
def test_a_sound_by_itself(tmp_path, capsys):
    path = save(tmp_path / "in.wav", noisy(voice(4.6, 16_000)), 16_000)
    assert evaluate("--no-reference", path, "--csv", tmp_path / "s.csv", metrics=()) == 0
    row, mean = table(tmp_path / "s.csv")
    assert [name for name in row if name.startswith("dnsmos")] == [c.name for c in METRICS[5].columns]
    assert row["reference"] == "" and mean["dnsmos_sig"] == row["dnsmos_sig"]
    assert evaluate("--no-reference", save(tmp_path / "short.wav", voice(0.5)), metrics=()) == 0
    assert "dnsmos undefined: DNSMOS needs 1 s of sound" in capsys.readouterr().err


def test_numbers_that_do_not_fit_beside_each_other_are_in_a_second_table():
    columns = tuple(column for metric in METRICS for column in metric.columns)
    pair = Pair("a folder/with/a/long/name/of [bold]speech[/bold].wav", Path("x"), None)
    values = {column.name: 1000.0 for column in columns}
    stream = io.StringIO()
    console = Console(file=stream, width=80, force_terminal=True, no_color=True)
    print_table(Scores(columns, [FileScores(pair, 1.0, values, ())] * 2), console)
    text = stream.getvalue()
    assert text.count("mean of 2") > 1 and "…" not in text and "[bold]" in text.replace("\n", "")
    assert all(column.title in text for column in columns)


def test_nothing_scored_is_no_table(tmp_path):
    stream = io.StringIO()
    empty = Scores(METRICS[0].columns, [], [(Path("x"), "x: why")])
    print_table(empty, Console(file=stream))
    assert stream.getvalue() == ""
    write_csv(empty, tmp_path / "s.csv")
    assert (tmp_path / "s.csv").read_text() == "file,reference,seconds,si_sdr\n"
    write_json(empty, tmp_path / "s.json")
    assert json.loads((tmp_path / "s.json").read_text())["mean"] == {"si_sdr": None}


def test_only_what_is_measured_is_imported(folders):
    code = """
import sys
from parivox.cli import main
status = main(sys.argv[1:])
slow = ("pesq", "pystoi", "speechmos", "onnxruntime", "librosa", "pocketsphinx", "jiwer", "resemblyzer")
print(status, *[name for name in (*slow, "torch", "jax", "matplotlib", "grain") if name in sys.modules])
"""
    words = ["evaluate", *map(str, folders), "--metrics", *FAST]
    done = subprocess.run(
        [sys.executable, "-c", code, *words], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert done.stdout.splitlines()[-1] == "0"
