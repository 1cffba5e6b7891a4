"""Damaged inputs: each gives a sound file or one clear line, whatever is done to it."""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest

from parivox.audio import probe, write_audio
from parivox.enhance_files import enhance_path
from parivox.errors import AudioError

ROOT = Path(__file__).parent.parent
BATCH = 200
SECONDS = 2
"""Time for each file, on average; most take milliseconds."""


def clean_batch(folder: Path, seed: int, last: int, first: int) -> list[str]:
    """The answers of one process for some numbers; a crash or a hang is an answer too, and the next goes on."""
    answers: list[str] = []
    end = min(first + BATCH, last)
    while first < end:
        words = ["-m", "tests.damage_process", str(folder), str(seed), str(first), str(end)]
        # Not a pipe: the process looks at how much its standard error has grown.
        with (folder / f"errors-{first}").open("w") as errors:
            process = subprocess.Popen(
                [sys.executable, *words], cwd=ROOT, stdout=subprocess.PIPE, stderr=errors, text=True
            )
            try:
                out = process.communicate(timeout=30 + SECONDS * (end - first))[0]
            except subprocess.TimeoutExpired:
                process.kill()
                out = process.communicate()[0]
        lines = out.splitlines()
        answers += lines
        first += len(lines)
        if first < end:
            answers[-1:] = [f"{answers[-1] if answers else first} ended by {process.returncode}"]
            first += not lines
    return answers


def check(folder: Path, count: int) -> dict[str, int]:
    """Clean that many damaged files; returns how many were cleaned and refused."""
    seed = secrets.randbits(32)
    batches = (clean_batch(folder, seed, count, first) for first in range(0, count, BATCH))
    answers = [answer for batch in batches for answer in batch]
    kinds = [answer.split(" ", 2)[1] for answer in answers]
    wrong = [answer for answer, kind in zip(answers, kinds, strict=True) if kind not in ("done", "refused")]
    assert not wrong, f"seed {seed}: {wrong}"
    assert [int(answer.split(" ", 1)[0]) for answer in answers] == list(range(count)), f"seed {seed}"
    errors = [path.read_text() for path in folder.glob("errors-*") if path.stat().st_size]
    assert not errors, f"seed {seed}: {errors}"
    return {kind: kinds.count(kind) for kind in ("done", "refused")}


def test_120_damaged_files_give_a_result_or_one_line(tmp_path):
    # Bits flipped in samples do no harm, so a part is cleaned; a check that refused all would prove nothing.
    assert min(check(tmp_path, 120).values()) > 20


@pytest.mark.slow
def test_2000_damaged_files_give_a_result_or_one_line(tmp_path):
    counts = check(tmp_path, 2000)
    print(counts)
    assert min(counts.values()) > 400


def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path):
    resource = pytest.importorskip("resource")
    source, target = tmp_path / "in.wav", tmp_path / "out" / "x.wav"
    write_audio(source, np.full((1, 100_000), 0.1, np.float32), 44_100)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))
    try:
        summary = enhance_path(source, target, lambda wav: wav)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    ((path, reason),) = summary.failed
    assert (path, summary.done) == (source, []) and "cannot be written" in reason and "\n" not in reason
    assert list(target.parent.iterdir()) == []


UNPRIVILEGED = """
import os, sys
from pathlib import Path
import numpy as np
from parivox.audio import write_audio
from parivox.enhance_files import enhance_path
from parivox.errors import AudioError
folder = Path(sys.argv[1])
for name in ("closed/in.wav", "in.wav", "unreadable.wav"):
    write_audio(folder / name, np.full((1, 1000), 0.1, np.float32), 44_100)
(folder / "out").mkdir()
(folder / "free").mkdir()
(folder / "free").chmod(0o777)
(folder / "out").chmod(0o555)
(folder / "closed").chmod(0)
(folder / "unreadable.wav").chmod(0)
if os.geteuid() == 0:
    os.setuid(65_534)  # permissions do not bind root
for source, target in [("in.wav", "out"), ("closed/in.wav", "free"), ("unreadable.wav", "free")]:
    try:
        print(*[reason for _, reason in enhance_path(folder / source, folder / target, lambda wav: wav).failed])
    except AudioError as error:
        print(error)
"""


def test_what_permissions_forbid_is_one_line():
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)  # the test runner's own folders are closed to others
        words = [sys.executable, "-c", UNPRIVILEGED, name]
        done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False, timeout=60)
        (folder / "closed").chmod(0o700)
        left = list((folder / "out").iterdir())
    assert (done.returncode, done.stderr, left) == (0, "", [])
    lines = done.stdout.splitlines()
    expected = ("out: is not writable", "in.wav: cannot be looked up", "unreadable.wav: cannot be opened")
    assert len(lines) == 3
    for line, words in zip(lines, expected, strict=True):
        assert words in line


def test_a_pipe_is_refused_without_waiting_for_its_writer(tmp_path):
    os.mkfifo(tmp_path / "x.wav")
    with pytest.raises(AudioError, match="pipe or device"):
        probe(tmp_path / "x.wav")
