"""The command line without any backend: options, help, errors, and what reaches the programs behind it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, get_args

import pytest

import parivox
from parity_tests import ladder
from parity_tests.result import Report, Row
from parivox import backend, doctor, hub
from parivox.cli import main
from parivox.commands import COMMANDS as TABLE
from parivox.commands import options
from parivox.doctor import Check
from parivox.errors import AudioError, ConfigError
from parivox.stages import STAGES

ROOT = Path(__file__).parent.parent
COMMANDS = (
    ("train", "denoiser"),
    ("train",),
    ("enhance",),
    ("convert",),
    ("parity",),
    ("plan",),
    ("doctor",),
    ("demo",),
)


def text_of_help(capsys, *words: str) -> str:
    with pytest.raises(SystemExit) as caught:
        main([*words, "--help"])
    assert caught.value.code == 0
    return capsys.readouterr().out


def command_line(*words: str, **options: Any) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, *words], env=environment, capture_output=True, text=True, check=False, **options
    )


def one_line(capsys) -> str:
    """The only line on the standard error."""
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("parivox: ")
    return line


@pytest.mark.parametrize("words", [(), *COMMANDS])
def test_every_command_explains_itself(capsys, words):
    text = text_of_help(capsys, *words)
    assert text.startswith("usage: parivox") and "(default: None)" not in text
    if not words:
        for command in COMMANDS:
            assert command[0] in text


def test_the_version_is_printed(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"parivox {parivox.__version__}\n"


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["train"],
        ["trane", "denoiser", "run"],
        ["train", "denoiser"],
        ["train", "denoiser", "run", "--max-steps", "many"],
        ["train", "denoiser", "run", "--backend", "numpy"],
        ["enhance", "in.wav", "--denoise-only"],
        ["parity", "--no-such-option"],
    ],
)
def test_wrong_usage_exits_with_2_and_says_so(capsys, words):
    with pytest.raises(SystemExit) as caught:
        main(words)
    assert caught.value.code == 2
    out, err = capsys.readouterr()
    assert out == "" and err


HEAVY = {
    *("numpy", "scipy", "soundfile", "soxr", "grain", "matplotlib", "tensorboardX", "jax", "torch", "rich"),
    *("huggingface_hub", "safetensors", "jaxtyping", "av", "deepspeed"),
}
"""What no answer about the command line needs; most take a tenth of a second or more to import."""


@pytest.mark.parametrize(
    ("words", "more"),
    [
        (["--version"], {"tyro", "yaml", "dataclasses"}),
        (["--help"], {"yaml", "parivox.hparams", "parivox.commands.train", "parivox.commands.enhance"}),
        (["enhance", "--help"], {"yaml", "parivox.hparams", "parivox.commands.train"}),
        (["train", "denoiser", "--help"], {"parivox.commands.enhance"}),
    ],
)
def test_the_process_starts_with_light_modules_alone(words, more):
    code = """
import sys
from parivox.cli import main
try:
    main(sys.argv[1:])
except SystemExit:
    pass
print(*sys.modules)
"""
    done = command_line("-c", code, *words)
    assert done.returncode == 0, done.stderr
    loaded = set(done.stdout.splitlines()[-1].split())
    assert "parivox.commands" in loaded and not (HEAVY | more) & loaded


def test_the_list_of_commands_says_what_each_says_of_itself():
    for name, entry in TABLE.items():
        command = entry.load()
        assert command.__name__ == entry.name, name
        assert command.__doc__.partition("\n")[0] == entry.about, name
    assert [name.partition(" ")[2] for name in TABLE if name.startswith("train ")] == list(STAGES)


def test_help_is_the_same_as_where_every_command_is_there(capsys, monkeypatch):
    words = ([], ["train"], ["train", "enhancer-stage2"], ["evaluate"])
    alone = [text_of_help(capsys, *each) for each in words]
    monkeypatch.setattr("parivox.cli.HELP", set())
    assert [text_of_help(capsys, *each) for each in words] == alone


def test_a_misspelt_option_is_looked_for_in_every_command(capsys):
    with pytest.raises(SystemExit):
        main(["enhance", "in.wav", "out.wav", "--max-stps", "3"])
    err = capsys.readouterr().err
    assert "--max-steps" in err and "parivox train denoiser --help" in err


def test_python_m_parivox_is_the_command():
    done = command_line("-m", "parivox", "--version")
    assert (done.returncode, done.stdout) == (0, f"parivox {parivox.__version__}\n")


def test_the_words_of_the_options_are_those_of_the_backends():
    assert get_args(get_args(options.BackendOption)[0])[0] == backend.BackendName
    assert options.PrecisionOption == backend.Precision
    assert options.DtypeOption == backend.Dtype
    assert str(options.PUBLIC_MODEL) == hub.PUBLIC


# Errors


@pytest.mark.parametrize(
    ("error", "status", "printed"),
    [
        (AudioError("in.wav: is empty; give another"), 1, "parivox: in.wav: is empty; give another\n"),
        (ConfigError("first\nsecond"), 1, "parivox: first second\n"),
        (KeyboardInterrupt(), 130, "parivox: interrupted\n"),
    ],
)
def test_what_a_user_did_is_one_line(monkeypatch, capsys, error, status, printed):
    def fail():
        raise error

    monkeypatch.setattr(doctor, "print_doctor", fail)
    assert main(["doctor"]) == status
    assert capsys.readouterr().err == printed


def test_a_defect_keeps_its_traceback(monkeypatch):
    def fail():
        raise ZeroDivisionError("a defect")

    monkeypatch.setattr(doctor, "print_doctor", fail)
    with pytest.raises(ZeroDivisionError):
        main(["doctor"])


@pytest.mark.parametrize("words", [["--version"], ["train", "denoiser", "--help"]])
def test_a_reader_that_has_gone_is_no_error(words):
    read, write = os.pipe()
    os.close(read)
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "parivox", *words]
    done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, env=environment, check=False)
    os.close(write)
    assert (done.returncode, done.stderr) == (1, b"")


# Doctor and parity


def test_doctor_exits_with_1_where_nothing_works(monkeypatch, capsys):
    monkeypatch.setattr(doctor, "diagnose", lambda: [Check("backend jax", "missing", "not installed")])
    assert main(["doctor"]) == 1
    monkeypatch.setattr(doctor, "diagnose", lambda: [Check("backend jax", "ok", "jax 1.2")])
    assert main(["doctor"]) == 0
    assert "jax 1.2" in capsys.readouterr().out


@pytest.fixture
def climbed(monkeypatch) -> list[ladder.LadderOptions]:
    """The options of each climb of a ladder that has one good rung, and one bad one for the seed 13."""
    seen = []

    def run_ladder(options, say):
        seen.append(options)
        say("training")
        return Report([Row("training", "a case", "torch", 2.0 if options.seed == 13 else 0.5, 1.0)])

    monkeypatch.setattr(ladder, "run_ladder", run_ladder)
    return seen


def test_parity_prints_a_table_and_writes_both_files(climbed, tmp_path, capsys):
    page, table = tmp_path / "new" / "report.html", tmp_path / "report.json"
    assert main(["parity", "--report", str(page), "--json", str(table)]) == 0
    out = capsys.readouterr().out
    assert "a case" in out and "PASS" in out and str(page) in out
    assert "a case" in page.read_text("utf-8") and json.loads(table.read_text())["passed"] is True
    assert climbed == [ladder.LadderOptions(jobs=None)]


def test_parity_hands_on_every_option(climbed, tmp_path):
    words = [
        "--backend",
        "both",
        "--device",
        "cpu",
        "--precision",
        "bf16",
        "--seed",
        "4",
        "--quick",
        "--jobs",
        "3",
    ]
    assert main(["parity", *words, "--reference", str(tmp_path)]) == 0
    wanted = ladder.LadderOptions(("jax", "torch"), "cpu", "bf16", tmp_path, 4, faults=False, jobs=3)
    assert climbed == [wanted]
    assert main(["parity", "--backend", "jax"]) == 0
    assert climbed[1].backends == ("jax",)


def test_parity_exits_with_1_when_a_rung_fails(climbed, capsys):
    assert main(["parity", "--seed", "13"]) == 1
    assert "FAIL" in capsys.readouterr().out


def test_parity_refuses_a_file_it_could_not_write_before_it_climbs(climbed, tmp_path, capsys):
    (tmp_path / "file").touch()
    for path in (tmp_path, tmp_path / "file" / "report.html"):
        assert main(["parity", "--report", str(path)]) == 1
        assert str(path) in one_line(capsys)
    assert climbed == []
