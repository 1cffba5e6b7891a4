"""Metrics, TensorBoard, the summary and the progress lines."""

from __future__ import annotations

import io
import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from tensorboardX.proto.event_pb2 import Event

from parivox.errors import ConfigError
from parivox.progress import TrainProgress, track
from parivox.runlog import RunLog, read_metrics, write_summary


def board_events(run: Path) -> list[Event]:
    """Every TensorBoard event of a run; a record is length, checksum, bytes, checksum."""
    events = []
    for path in sorted((run / "tensorboard").iterdir()):
        data = path.read_bytes()
        while data:
            length = int.from_bytes(data[:8], "little")
            events.append(Event.FromString(data[12 : 12 + length]))
            data = data[16 + length :]
    return events


def steps(run: Path, event: str | None = None) -> list[int]:
    return [line["step"] for line in read_metrics(run, event)]


def test_a_line_a_step(tmp_path: Path) -> None:
    with RunLog(tmp_path / "run") as log:
        log.write(
            1, {"loss": 0.5, "lr": np.float32(0.25), "count": np.int64(3), "ok": True, "note": "f\u00fcr"}
        )
        log.write(1, {"loss": 0.25}, event="valid")
        # Readable before the log is closed: a kill loses nothing that was logged.
        assert steps(tmp_path / "run") == [1, 1]
        log.write(2, {"loss": math.nan, "up": math.inf, "down": -np.inf, "none": None})
    first, second = read_metrics(tmp_path / "run", "train")
    assert first == {
        "step": 1, "event": "train", "loss": 0.5, "lr": 0.25, "count": 3, "ok": True, "note": "f\u00fcr"
    }  # fmt: skip
    assert math.isnan(second["loss"]) and second["up"] == math.inf and second["down"] == -math.inf
    assert second["none"] is None
    for line in (tmp_path / "run" / "metrics.jsonl").read_text(encoding="utf-8").splitlines():
        json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))


def test_misuse_is_refused(tmp_path: Path) -> None:
    with RunLog(tmp_path) as log:
        log.write(5, {"loss": 1.0})
        for step in (5, 4):
            with pytest.raises(ValueError, match="after that of step 5"):
                log.write(step, {"loss": 1.0})
        with pytest.raises(TypeError, match="metric loss is a list"):
            log.write(6, {"loss": [1.0]})
        log.write(6, {"loss": 1.0})
    assert steps(tmp_path) == [5, 6]


@pytest.mark.parametrize("torn", ["", '{"step": 9, "ev', '{"step": 9, "event": "train"}', "\0\0\0"])
def test_resume_has_each_step_once(torn: str, tmp_path: Path) -> None:
    with RunLog(tmp_path) as log:
        for step in range(1, 9):
            log.write(step, {"loss": float(step)})
            if step % 2 == 0:
                log.write(step, {"gain": 1.0}, event="valid")
    with open(tmp_path / "metrics.jsonl", "a", encoding="utf-8") as file:
        file.write(torn)
    assert steps(tmp_path, "train") == list(range(1, 9))
    with RunLog(tmp_path, resume_step=5) as log:
        assert steps(tmp_path, "train") == [1, 2, 3, 4, 5] and steps(tmp_path, "valid") == [2, 4]
        with pytest.raises(ValueError, match="after that of step 5"):
            log.write(5, {"loss": 0.0})
        log.write(6, {"loss": -6.0})
    assert [line["loss"] for line in read_metrics(tmp_path, "train")] == [1, 2, 3, 4, 5, -6]
    with RunLog(tmp_path):
        assert read_metrics(tmp_path) == []


def test_a_killed_run_keeps_its_lines(tmp_path: Path) -> None:
    code = (
        "import os, sys; from parivox.runlog import RunLog\n"
        "log = RunLog(sys.argv[1]); log.write(1, {'loss': 1.0}); log.write(2, {'loss': 2.0}); os._exit(9)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], cwd=Path(__file__).parents[1], check=False
    )
    assert done.returncode == 9 and steps(tmp_path) == [1, 2]
    assert [event.step for event in board_events(tmp_path) if event.summary.value] == [1, 2]


def test_damaged_and_missing_logs(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        read_metrics(tmp_path)
    for bad in ("nonsense", '{"event": "train"}', '{"step": "one", "event": "train"}', "7"):
        (tmp_path / "metrics.jsonl").write_text('{"step": 1, "event": "train"}\n' + bad + "\n")
        with pytest.raises(ConfigError, match="line 2 is damaged"):
            read_metrics(tmp_path)
        with pytest.raises(ConfigError, match="line 2 is damaged"):
            RunLog(tmp_path, resume_step=1)
        assert bad in (tmp_path / "metrics.jsonl").read_text()
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="cannot be written"):
        RunLog(tmp_path / "file")


def test_tensorboard(tmp_path: Path) -> None:
    with RunLog(tmp_path) as log:
        log.write(1, {"loss": 0.5, "note": "text"})
        log.write(1, {"gain": 2}, event="valid")
        log.audio(1, "clean", np.linspace(-2, 2, 441, dtype=np.float32), 44_100)
        log.image(1, "mel", np.zeros((4, 6, 3), np.uint8))
        log.sync()
    scalars = {
        (value.tag, event.step): value.simple_value
        for event in board_events(tmp_path)
        for value in event.summary.value
        if value.HasField("simple_value")
    }
    assert scalars == {("train/loss", 1): 0.5, ("valid/gain", 1): 2.0}
    values = {value.tag: value for event in board_events(tmp_path) for value in event.summary.value}
    assert values["clean"].audio.sample_rate == 44_100 and values["clean"].audio.length_frames == 441
    assert (values["mel"].image.height, values["mel"].image.width) == (4, 6)


def test_tensorboard_forgets_what_is_trained_again(tmp_path: Path) -> None:
    with RunLog(tmp_path) as log:
        log.write(5, {"loss": 1.0})
    with RunLog(tmp_path, resume_step=5):
        pass
    starts = [event.step for event in board_events(tmp_path) if event.HasField("session_log")]
    # TensorBoard drops older events from this step on.
    assert starts == [1, 6]
    assert sum(len(event.summary.value) for event in board_events(tmp_path)) == 1


def test_summary(tmp_path: Path) -> None:
    path = write_summary(tmp_path, {"steps": 3, "loss": math.nan, "skipped": ["a.wav"]})
    assert path == tmp_path / "summary.json"
    assert json.loads(path.read_text()) == {"steps": 3, "loss": "NaN", "skipped": ["a.wav"]}
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="cannot be written"):
        write_summary(tmp_path / "file", {})


class Clock:
    """A clock that is moved by hand."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


class Terminal(io.StringIO):
    """Text that claims to be a terminal."""

    def isatty(self) -> bool:
        return True


def run_progress(console: Console, clock: Clock, count: int, seconds: float, start: int = 0) -> None:
    with TrainProgress(start + count, start, console=console, clock=clock) as progress:
        for step in range(start + 1, start + count + 1):
            clock.now += seconds
            progress.update(
                step,
                loss=0.125,
                learning_rate=1e-4,
                grad_norm=0.5,
                audio_seconds=4.0,
                wait_seconds=seconds / 4,
            )
            if step == start + 2:
                progress.message("a [bold] file was skipped")


def test_plain_lines_where_there_is_no_terminal() -> None:
    text = io.StringIO()
    run_progress(Console(file=text), Clock(), count=12, seconds=2.0, start=30)
    lines = text.getvalue().splitlines()
    expected = "step 31/42  loss 0.125  lr 0.0001  grad 0.5  2.0 audio s/s  wait 25%  left 0:00:22"
    assert lines[0] == expected
    assert lines[1] == "a [bold] file was skipped"
    assert [line.split()[1] for line in lines if line.startswith("step")] == [
        "31/42",
        "34/42",
        "37/42",
        "40/42",
        "42/42",
    ]
    assert lines[-1].endswith("left 0:00:00")


def test_colour_settings_put_no_live_line_into_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    text = io.StringIO()
    run_progress(Console(file=text), Clock(), count=3, seconds=2.0)
    assert "\x1b" not in text.getvalue() and len(text.getvalue().splitlines()) == 3


def test_long_work_is_reported_once_a_minute() -> None:
    text = io.StringIO()
    run_progress(Console(file=text), Clock(), count=6_000, seconds=1.0)
    lines = [line for line in text.getvalue().splitlines() if line.startswith("step")]
    assert 100 <= len(lines) < 170
    numbers = [int(line.split()[1].split("/")[0]) for line in lines]
    assert numbers[1] - numbers[0] == 5 and numbers[-2] - numbers[-3] == 60


def test_rates_forget_the_slow_first_step() -> None:
    text, clock = io.StringIO(), Clock()
    with TrainProgress(100, console=Console(file=text), clock=clock) as progress:
        for step in range(1, 101):
            clock.now += 60.0 if step == 1 else 1.0
            progress.update(
                step, loss=math.nan, learning_rate=0.0, grad_norm=1.0, audio_seconds=2.0, wait_seconds=0.0
            )
    last = text.getvalue().splitlines()[-1]
    assert "2.0 audio s/s" in last and "loss nan" in last and "wait 0%" in last


@pytest.mark.parametrize("width", [80, 160])
def test_live_line_on_a_terminal(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    text = Terminal()
    run_progress(Console(file=text, force_terminal=True, width=width), Clock(), count=4, seconds=1.0)
    shown = text.getvalue()
    assert "\x1b[" in shown and "a [bold] file was skipped" in shown
    assert ("4/4 loss 0.125 lr" if width == 80 else "step 4/4  loss 0.125") in shown
    assert "left 0:00:00" in shown and ("━" in shown) == (width == 160)


def test_track() -> None:
    text, clock = io.StringIO(), Clock()
    for _ in track(["a", "b", "c"], "cleaning", console=Console(file=text), clock=clock):
        clock.now += 3.0
    assert text.getvalue().splitlines() == [
        "cleaning  1/3  0.333/s  left 0:00:06",
        "cleaning  3/3  0.333/s  left 0:00:00",
    ]
    text = io.StringIO()
    assert list(track(iter([1, 2]), "counting", console=Console(file=text), clock=clock)) == [1, 2]
    assert text.getvalue().startswith("counting  1  ")
    assert list(track([], "nothing", console=Console(file=text), clock=clock)) == []


def test_no_framework_is_imported() -> None:
    code = (
        "import sys; import parivox.runlog, parivox.progress, parivox.checkpoint, parivox.presets\n"
        "print([name for name in ('jax', 'torch', 'tensorflow', 'flax') if name in sys.modules])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "[]"
