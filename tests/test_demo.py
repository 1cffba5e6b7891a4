"""The demo, with its long steps replaced by quick ones; the real one is a slow test."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from parity_tests import ladder
from parity_tests.result import Report, Row
from parivox import demo, demo_report
from parivox.audio import read_audio, write_audio
from parivox.backend import BACKENDS, installed
from parivox.cli import main
from parivox.commands.train import stage_preset
from parivox.data import make_demo_data
from parivox.data.index import index_files
from parivox.demo_report import Curve, Outcome
from parivox.errors import ConfigError, ParivoxError
from parivox.metrics import si_sdr
from parivox.runlog import RunLog

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return make_demo_data(tmp_path_factory.mktemp("data"))


def curve(losses: list[float]) -> Curve:
    count = len(losses)
    return Curve(np.arange(1.0, count + 1), np.array(losses), np.full(count, 1e-4))


class Quick:
    """Stands for the processes that the demo starts: training writes a log, cleaning lowers the sound."""

    def __init__(self, spoil: float = 0.0) -> None:
        self.commands: list[list[str]] = []
        self.spoil = spoil

    def __call__(self, this: demo.Demo, *words: str) -> None:
        self.commands.append(list(words))
        if words[0] == "train":
            scale = 1 + self.spoil * (words[words.index("--backend") + 1] == "torch")
            with RunLog(Path(words[2])) as log:
                for step in range(1, 8):
                    log.write(step, {"loss": scale / step, "lr": 1e-4 * step})
        else:
            wav, rate = read_audio(words[1])
            write_audio(words[2], 0.5 * wav, rate)


@pytest.fixture
def no_pictures(monkeypatch) -> None:
    """Pictures take seconds, and one test draws them."""
    monkeypatch.setattr(demo_report, "_figures", lambda outcome: [])


@pytest.fixture
def quick(monkeypatch) -> Quick:
    found = Quick()
    monkeypatch.setattr(demo.Demo, "call", lambda this, *words: found(this, *words))
    monkeypatch.setattr(demo, "why_not", lambda name: "")
    rows = [
        Row("training", "first", "torch", 0.0, 1.0),
        Row("checkpoint exchange", "last", "torch", 0.0, 1.0),
    ]
    monkeypatch.setattr(ladder, "run_ladder", lambda options, say: Report(list(rows)))
    return found


def test_the_demo_trains_compares_cleans_and_reports(quick, data, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(["demo", "--out", str(out), "--data", str(data)]) == 0
    trained, cleaned = quick.commands[:2], quick.commands[2:]
    for name, command in zip(BACKENDS, trained, strict=True):
        assert command[:3] == ["train", "denoiser", str(out / f"run-{name}")]
        assert command[3:9] == ["--backend", name, "--preset", "denoiser_demo", "--seed", "0"]
        assert command[9:] == [w for n in ("fg", "bg", "rir") for w in (f"--{n}-dir", str(data / n))]
    for name, command in zip(BACKENDS, cleaned, strict=True):
        assert command[1:3] == [str(out / "audio" / f"{n}.wav") for n in ("noisy", f"denoised-{name}")]
        assert command[3:] == ["--denoise-only", "--run", str(out / f"run-{name}"), "--backend", name]
    files = {path.name for path in (out / "audio").iterdir()}
    assert files == {"noisy.wav", "clean.wav", "denoised-jax.wav", "denoised-torch.wav"}
    page = (out / "report.html").read_text("utf-8")
    assert page.count("data:audio/wav") == 4 and page.count("data:image/png") == 4
    assert "demo run, worst loss of 7 updates" in page
    printed = capsys.readouterr().out
    assert "[7/7]" in printed and "largest relative difference of all 7 steps: 0.0e+00, inside" in printed
    assert printed.splitlines()[-1].startswith("Done in ") and "everything agrees" in printed


@pytest.mark.usefixtures("no_pictures")
def test_losses_that_differ_fail_the_demo(quick, data, tmp_path, capsys):
    quick.spoil = 1e-3
    assert main(["demo", "--out", str(tmp_path / "out"), "--data", str(data)]) == 1
    printed = capsys.readouterr().out
    assert "1.0e-03, OUTSIDE the bound" in printed and "FAILED" in printed.splitlines()[-1]
    assert "FAIL" in (tmp_path / "out" / "report.html").read_text("utf-8")


@pytest.mark.usefixtures("no_pictures")
def test_with_one_backend_the_demo_says_what_is_missing(quick, data, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(demo, "why_not", lambda name: "run: pip install torch" if name == "torch" else "")
    assert main(["demo", "--out", str(tmp_path / "out"), "--data", str(data)]) == 0
    assert "left out: run: pip install torch" in capsys.readouterr().out
    assert [command[0] for command in quick.commands] == ["train", "enhance"]
    page = (tmp_path / "out" / "report.html").read_text("utf-8")
    assert page.count("data:audio/wav") == 3 and "demo run: run: pip install torch" in page


def test_without_any_backend_there_is_no_demo(quick, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(demo, "why_not", lambda name: f"install {name}")
    assert main(["demo", "--out", str(tmp_path / "out")]) == 1
    assert capsys.readouterr().err == "parivox: no backend can train here: install jax; install torch\n"
    assert not (tmp_path / "out").exists()


def test_data_without_a_folder_is_one_line(quick, data, tmp_path, capsys):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "fg").symlink_to(data / "fg")
    assert main(["demo", "--out", str(tmp_path / "out"), "--data", str(tmp_path / "data")]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert (
        str(tmp_path / "data") in line and "bg (noise)" in line and "rir (room" in line and "fg (" not in line
    )


def test_a_command_that_fails_ends_the_demo(tmp_path, capfd):
    with pytest.raises(ParivoxError, match="status 2"):
        demo.Demo(tmp_path, None).call("no-such-command")
    assert capfd.readouterr().out.splitlines()[0] == "$ parivox no-such-command"


def test_an_earlier_demo_is_begun_anew_but_keeps_its_data(tmp_path):
    out = tmp_path / "out"
    demo.begin_anew(out)
    for name in ("run-jax", "run-torch", "audio", "data"):
        (out / name).mkdir()
        (out / name / "file").touch()
    (out / "report.html").touch()
    (out / "mine.txt").touch()
    demo.begin_anew(out)
    assert sorted(path.name for path in out.iterdir()) == [demo.MARK, "data", "mine.txt"]


def test_other_folders_and_files_are_left_alone(tmp_path):
    (tmp_path / "file").touch()
    for out in (tmp_path, tmp_path / "file", tmp_path / "file" / "sub"):
        with pytest.raises(ConfigError, match="another folder"):
            demo.begin_anew(out)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("name", BACKENDS)
def test_why_a_backend_cannot_train(name, monkeypatch):
    monkeypatch.setattr(demo, "installed", lambda name: False)
    assert f"parivox[{name}]" in demo.why_not(name)
    monkeypatch.setattr(demo, "installed", lambda name: True)
    monkeypatch.setattr(demo.importlib.util, "find_spec", lambda name: None)
    assert ("parivox[deepspeed]" in demo.why_not(name)) == (name == "torch")


def test_the_mixture_is_held_out_speech_with_noise(data):
    hp = stage_preset(demo.PRESET, "denoiser").replace(**{f"{n}_dir": data / n for n in demo.FOLDERS})
    clean, noisy = demo.mixture(hp)
    assert clean.shape == noisy.shape and 3 * 44_100 <= clean.size <= demo.SECONDS * 44_100
    assert np.abs(clean).max() > 0.99 and 0.99 < np.abs(noisy).max() <= 1
    assert 0 < si_sdr(noisy, clean) < 10
    again, _ = demo.mixture(hp)
    assert np.array_equal(clean, again)
    files = index_files(hp)
    found = {path: _holds(path, clean) for path in (*files.train.files, *files.held_out.files)}
    assert [path in files.held_out.files for path, holds in found.items() if holds] == [True]


def _holds(path: Path, wav: np.ndarray) -> bool:
    """Whether a file holds this sound: the highest correlation at any shift."""
    whole, rate = read_audio(path)
    if rate != 44_100:
        return False
    size = 1 << (whole.shape[1] + wav.size).bit_length()
    product = np.fft.irfft(np.fft.rfft(whole[0], size) * np.fft.rfft(wav, size).conj(), size)
    return bool(product.max() > 0.9 * np.linalg.norm(whole) * np.linalg.norm(wav))


def test_the_comparison_of_losses():
    row = demo_report.compare(curve([1.0, 0.5, 0.25]), curve([1.0, 0.4, 0.25]))
    assert row.error == pytest.approx(0.25) and not row.passed
    assert demo_report.compare(curve([1.0, 0.5]), curve([1.0, 0.5])).passed
    assert not demo_report.compare(curve([1.0, 0.5]), curve([1.0, 0.5, 0.25])).passed
    assert not demo_report.compare(curve([1.0, float("nan")]), curve([1.0, 0.5])).passed


@pytest.mark.usefixtures("no_pictures")
def test_the_demo_s_row_stands_beside_the_others_of_its_rung(tmp_path):
    write_audio(tmp_path / "clean.wav", np.full((1, 4410), 0.1, np.float32), 44_100)
    row = demo_report.compare(curve([1.0]), curve([1.0]))
    for rungs, place in ((["training", "training", "devices"], 2), (["settings"], 1), ([], 0)):
        report = Report([Row(rung, "case", "torch", 0.0, 1.0) for rung in rungs])
        outcome = Outcome(row, {"jax": curve([1.0])}, {"clean": tmp_path / "clean.wav"}, {})
        demo_report.assemble(report, outcome)
        assert report.rows.index(row) == place and len(report.rows) == len(rungs) + 1


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(not all(installed(name) for name in BACKENDS), reason="needs both backends")
def test_the_whole_demo(tmp_path):
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "parivox", "demo", "--out", "out"]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "out" / "report.html").exists()
    assert len(list((tmp_path / "out" / "audio").iterdir())) == 4
