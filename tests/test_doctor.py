from __future__ import annotations

import io
import subprocess
import sys

import pytest
from rich.console import Console

from parivox import caches, doctor
from parivox.doctor import Check


def named(checks: list[Check], name: str) -> Check:
    (check,) = [check for check in checks if check.name == name]
    return check


def printed(checks: list[Check], monkeypatch) -> tuple[int, str]:
    monkeypatch.setattr(doctor, "diagnose", lambda: checks)
    stream = io.StringIO()
    return doctor.print_doctor(Console(file=stream, width=100)), stream.getvalue()


def test_a_probe_answers_with_its_last_line():
    assert doctor.probe("print('noise'); print('{\"a\": 1}')") == {"a": 1}


@pytest.mark.parametrize(
    ("code", "answer"),
    [
        ("import not_there_at_all", "ModuleNotFoundError: No module named 'not_there_at_all'"),
        ("raise SystemExit(3)", "exit status 3"),
        ("import os; os.kill(os.getpid(), 9)", "the process was ended by signal 9"),
        ("print('hello')", "unexpected answer 'hello'"),
        ("print(3)", "unexpected answer '3'"),
        ("pass", "unexpected answer ''"),
    ],
)
def test_a_probe_that_fails_is_one_line(code, answer):
    assert doctor.probe(code) == answer


def test_a_probe_that_hangs_is_ended(monkeypatch):
    monkeypatch.setattr(doctor, "PROBE_SECONDS", 1)
    assert doctor.probe("import time; time.sleep(60)") == "no answer in 1 s"


def test_a_file_in_the_folder_does_not_hide_a_package(tmp_path, monkeypatch):
    (tmp_path / "json.py").write_text("raise ImportError('the wrong one')")
    monkeypatch.chdir(tmp_path)
    assert doctor.probe("import json; print(json.dumps({}))") == {}


def test_the_diagnosis_of_this_environment_imports_no_framework_here():
    code = """
import sys
from parivox.doctor import diagnose, working_backends
checks = diagnose()
print(*working_backends(checks))
print(*[name for name in ("jax", "torch", "deepspeed") if name in sys.modules])
print(*[check.name for check in checks if check.status == "broken"])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("\n") == ["jax torch", "", "", ""]


def test_broken_installations_are_lines_and_not_tracebacks(tmp_path, monkeypatch):
    for package in ("jax", "torch", "deepspeed"):
        (tmp_path / f"{package}.py").write_text(f"raise ImportError('lib{package}.so: cannot open')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))  # seen by the probes' processes alone
    checks = doctor.diagnose()
    for name in ("backend jax", "backend torch", "deepspeed"):
        check = named(checks, name)
        assert check.status == "broken"
        assert check.detail == f"ImportError: lib{name.split()[-1]}.so: cannot open"
        assert check.remedy.startswith("pip install")
    status, text = printed(checks, monkeypatch)
    assert status == 1
    assert "No backend works" in text
    assert "Traceback" not in text


def test_what_is_not_installed_is_not_probed(monkeypatch):
    def find_nothing(name):
        return None

    def never(code):
        raise AssertionError("nothing is installed, so nothing is to be tried")

    monkeypatch.setattr(doctor, "installed", lambda name: False)
    monkeypatch.setattr(doctor.importlib.util, "find_spec", find_nothing)
    monkeypatch.setattr(doctor, "probe", never)
    checks = doctor.diagnose()
    for name, extra in {
        "backend jax": "jax",
        "backend torch": "torch",
        "deepspeed": "deepspeed",
        "extra praat": "praat",
        "extra media": "media",
        "extra ui": "ui",
    }.items():
        assert named(checks, name).status == "missing"
        assert named(checks, name).remedy == f"pip install 'parivox[{extra}]'"
    assert printed(checks, monkeypatch)[0] == 1


def test_one_working_backend_is_enough(monkeypatch):
    checks = [
        Check("backend jax", "missing", "not installed", "pip install 'parivox[jax]'"),
        Check("backend torch", "ok", "torch 2; devices: cpu [bold]"),
    ]
    status, text = printed(checks, monkeypatch)
    assert status == 0
    assert "Ready, with: torch." in text
    assert "backend jax: pip install 'parivox[jax]'" in text
    assert "[bold]" in text


def test_an_unused_gpu_is_pointed_out(monkeypatch):
    answer = {"versions": {"torch": "2"}, "devices": ["cpu"], "accelerated": False}
    monkeypatch.setattr(doctor.shutil, "which", lambda name: "/usr/bin/nvidia-smi")
    check = doctor._backend("torch", answer)
    assert check.status == "ok"
    assert "not used" in check.detail
    assert check.remedy
    monkeypatch.setattr(doctor.shutil, "which", lambda name: None)
    assert doctor._backend("torch", answer).remedy == ""


def test_low_disk_and_shared_memory_are_warned_about(monkeypatch, tmp_path):
    assert doctor._disk(tmp_path).detail.endswith(str(tmp_path))
    monkeypatch.setattr(doctor, "LOW_DISK", float("inf"))
    monkeypatch.setattr(doctor, "LOW_SHARED_MEMORY", float("inf"))
    assert doctor._disk(tmp_path).status == "warning"
    (check,) = doctor._shared_memory(tmp_path)
    assert check.status == "warning"
    assert "--shm-size" in check.remedy
    assert doctor._shared_memory(tmp_path / "absent") == []


def test_core_libraries_that_are_absent_are_named(monkeypatch):
    monkeypatch.setattr(doctor, "CORE", ("numpy", "surely-not-installed"))
    check = doctor._core()
    assert check.status == "broken"
    assert check.remedy == "pip install surely-not-installed"


def test_mp3_can_be_read_here():
    check = doctor._audio()
    assert check.status == "ok"
    assert check.detail.endswith("wav, flac, ogg, mp3")


def test_the_extension_is_looked_for_where_torch_puts_it(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    monkeypatch.setenv("CXX", sys.executable)
    check = doctor.extension_check()
    assert (check.status, check.detail) == ("missing", "not compiled yet")
    assert "torch_impl.engine" in check.remedy
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert doctor.extension_check().status == "broken"
    (tmp_path / doctor.EXTENSION).mkdir()
    (tmp_path / doctor.EXTENSION / f"{doctor.EXTENSION}.so").write_bytes(b"")
    assert doctor.extension_check().status == "ok"


def test_each_environment_has_a_folder_of_extensions(tmp_path, monkeypatch):
    monkeypatch.delenv("TORCH_EXTENSIONS_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    here = caches.extensions_folder()
    assert here.parent == tmp_path / "parivox" / "deepspeed"
    assert here == caches.extensions_folder()
    monkeypatch.setattr(caches.importlib.metadata, "version", lambda name: "0.0")
    assert caches.extensions_folder() != here


@pytest.mark.parametrize(
    ("version", "status"),
    [("6.31.0", "ok"), ("6.100.1", "ok"), ("7.0", "ok"), ("6.4.0", "broken"), ("5.9", "broken")],
)
def test_a_gradio_that_is_too_old_for_the_page_is_named(version, status, monkeypatch):
    monkeypatch.setattr(doctor.importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(doctor, "_version", lambda name: version)
    check = doctor._extra("ui")
    assert check.status == status and "parivox serve" in check.detail
    assert ("gradio 6.31" in check.detail and "--upgrade" in check.remedy) or status == "ok"
