"""What is installed here, what works, and what is missing: `parivox doctor`.

The backends are tried in processes of their own. So both frameworks never share one process, and an
installation that crashes on import becomes a line of the answer.
"""

from __future__ import annotations

import importlib.util
import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

from parivox.backend import BACKENDS, BackendName, installed
from parivox.caches import extensions_folder

Status = Literal["ok", "missing", "broken", "warning"]

PROBE_SECONDS = 180
"""A probe that takes longer is reported as broken."""

EXTENSION = "fused_adam"
"""DeepSpeed's C++ extension that training needs."""

LOW_DISK = 2e9
"""Bytes; a run with its checkpoints and logs wants about this."""

LOW_SHARED_MEMORY = 256e6
"""Bytes; the data workers hand their batches over in shared memory. Containers often have 64 MB."""

CORE = (
    *("numpy", "scipy", "soundfile", "soxr", "safetensors", "PyYAML", "tyro", "rich", "grain"),
    *("tensorboardX", "matplotlib", "jaxtyping", "huggingface_hub"),
)
"""Distributions that every installation has."""

EXTRAS: dict[str, tuple[tuple[str, str], ...]] = {
    "praat": (("praat-parselmouth", "parselmouth"),),
    "media": (("av", "av"),),
    "metrics": (
        *(("pesq", "pesq"), ("pystoi", "pystoi"), ("speechmos", "speechmos")),
        *(("onnxruntime", "onnxruntime"), ("librosa", "librosa"), ("requests", "requests")),
    ),
    "changed": (("pocketsphinx", "pocketsphinx"), ("jiwer", "jiwer"), ("Resemblyzer", "resemblyzer")),
    "ui": (("gradio", "gradio"),),
    "export": (("onnx", "onnx"), ("onnxruntime", "onnxruntime"), ("flatbuffers", "flatbuffers")),
    "plan": (("libtpu", "libtpu"),),
}
"""Extra -> (distribution, module) of each package it adds."""

OLDEST = {"gradio": (6, 31)}
"""Versions before which an extra does not work, where pip was not asked; as in pyproject.toml."""

PURPOSES = {
    "praat": "voice augmentation in training",
    "media": "reading m4a, mp4, webm, wma and more",
    "metrics": "PESQ, STOI and DNSMOS in `parivox evaluate`",
    "changed": "word error and speaker similarity in `parivox evaluate`",
    "ui": "the web page of `parivox serve`",
    "export": "`parivox export`",
    "plan": "`parivox plan` for TPUs",
}

_JAX_PROBE = """
import json, os
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
import flax.nnx, jax, optax
total = float(jax.jit(lambda x: x.sum())(jax.numpy.ones(8)))
assert total == 8.0, total
kinds = [(device.platform, device.device_kind) for device in jax.devices()]
devices = [platform if platform == kind else f"{platform} ({kind})" for platform, kind in kinds]
versions = {"jax": jax.__version__, "flax": flax.__version__, "optax": optax.__version__}
print(json.dumps({"versions": versions, "devices": devices, "accelerated": jax.default_backend() != "cpu"}))
"""

_TORCH_PROBE = """
import json, torch
cuda = torch.cuda.is_available()
total = torch.ones(8, device="cuda" if cuda else "cpu").sum().item()
assert total == 8.0, total
names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())] if cuda else []
devices = [f"cuda ({name})" for name in names] or ["cpu"]
print(json.dumps({"versions": {"torch": torch.__version__}, "devices": devices, "accelerated": cuda}))
"""

_DEEPSPEED_PROBE = """
import json, deepspeed
print(json.dumps({"versions": {"deepspeed": deepspeed.__version__}}))
"""


@dataclass(frozen=True)
class Check:
    """One line of the diagnosis.

    Attributes:
        name: what was looked at.
        status: `ok`, `missing` (not installed, which may be fine), `broken`, or `warning`.
        detail: what was found.
        remedy: the command or change that helps; empty when there is nothing to do.
    """

    name: str
    status: Status
    detail: str
    remedy: str = ""


def diagnose() -> list[Check]:
    """Look at this machine and at everything Parivox can use.

    Takes some seconds: each framework is imported in a process of its own.

    Returns:
        One check for the system's parts, each backend (`backend jax`, `backend torch`) and each extra.
    """
    probes = {"jax": _JAX_PROBE, "torch": _TORCH_PROBE}
    wanted = {name: probes[name] for name in BACKENDS if installed(name)}
    if importlib.util.find_spec("deepspeed") is not None:
        wanted["deepspeed"] = _DEEPSPEED_PROBE
    with ThreadPoolExecutor(max_workers=max(1, len(wanted))) as pool:
        answers = dict(zip(wanted, pool.map(probe, wanted.values()), strict=True))
    backends = [_backend(name, answers.get(name)) for name in BACKENDS]
    extras = [_extra(name) for name in EXTRAS]
    return [*_system(), _core(), _audio(), *backends, *_deepspeed(answers), *extras]


def print_doctor(console: Any = None) -> int:
    """Print the diagnosis, and the commands that install what is missing.

    Args:
        console: a `rich.console.Console`; None prints to the standard output.

    Returns:
        The exit status: 0 when at least one backend works, else 1.
    """
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = console or Console()
    with console.status("Trying each backend in a process of its own ..."):
        checks = diagnose()
    colours = {"ok": "green", "missing": "dim", "broken": "bold red", "warning": "yellow"}
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for check in checks:
        table.add_row(Text(check.status, colours[check.status]), Text(check.name), Text(check.detail))
    console.print(table)
    remedies = [check for check in checks if check.remedy]
    if remedies:
        console.print(Text("\nWhat you can do, where you want it", "bold"))
    for check in remedies:
        console.print(Text(f"  {check.name}: {check.remedy}"), soft_wrap=True)
    working = working_backends(checks)
    verdict = f"Ready, with: {', '.join(working)}." if working else "No backend works yet."
    console.print(Text(f"\n{verdict}", "bold green" if working else "bold red"))
    return 0 if working else 1


def working_backends(checks: Sequence[Check]) -> list[str]:
    """Names of the backends that computed something in their probe."""
    return [
        name for name in BACKENDS if any(c.name == f"backend {name}" and c.status == "ok" for c in checks)
    ]


def probe(code: str) -> dict[str, Any] | str:
    """Run Python code in a process of its own.

    Args:
        code: prints one JSON object as its last line.

    Returns:
        The object; or, when the process failed, one line that says how.
    """
    command = [sys.executable, "-P", "-c", code]  # -P: a torch.py in the current folder must not be imported
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=PROBE_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        return f"no answer in {PROBE_SECONDS} s"
    if done.returncode < 0:
        return f"the process was ended by signal {-done.returncode}"
    output = done.stdout if done.returncode == 0 else done.stderr
    last = output.strip().rpartition("\n")[2].strip()
    if done.returncode != 0:
        return last or f"exit status {done.returncode}"
    try:
        answer = json.loads(last)
    except json.JSONDecodeError:
        answer = None
    return answer if isinstance(answer, dict) else f"unexpected answer '{last[:100]}'"


def _system() -> list[Check]:
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    machine = f"{platform.system()} {platform.machine()}, {usable} of {os.cpu_count()} CPUs, {_memory()}"
    python = Check("python", "ok", f"{platform.python_version()} in {sys.prefix}")
    return [python, Check("machine", "ok", machine), _disk(Path.cwd()), *_shared_memory()]


def _memory() -> str:
    if "SC_PHYS_PAGES" not in getattr(os, "sysconf_names", {}):
        return "memory unknown"
    return f"{os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') / 1e9:.0f} GB memory"


def _disk(folder: Path) -> Check:
    free = shutil.disk_usage(folder).free
    detail = f"{free / 1e9:.1f} GB free in {folder}"
    if free < LOW_DISK:
        return Check("disk", "warning", detail, "make room, or put the run folder on another disk")
    return Check("disk", "ok", detail)


def _shared_memory(folder: Path = Path("/dev/shm")) -> list[Check]:
    """Nothing where the system keeps shared memory elsewhere than in a folder."""
    if not folder.is_dir():
        return []
    free = shutil.disk_usage(folder).free
    detail = f"{free / 1e9:.2f} GB free in {folder}"
    if free < LOW_SHARED_MEMORY:
        remedy = "start the container with more (--shm-size=1g), or train with nj: 0"
        return [Check("shared memory", "warning", f"{detail}; data workers may fail", remedy)]
    return [Check("shared memory", "ok", detail)]


def _version(distribution: str) -> str | None:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


def _core() -> Check:
    versions = {name: _version(name) for name in CORE}
    missing = [name for name, found in versions.items() if found is None]
    if missing:
        remedy = f"pip install {' '.join(missing)}"
        return Check("libraries", "broken", f"not installed: {', '.join(missing)}", remedy)
    return Check("libraries", "ok", ", ".join(f"{name} {found}" for name, found in versions.items()))


def _audio() -> Check:
    try:
        import soundfile
    except (ImportError, OSError) as error:
        return Check("audio files", "broken", str(error), "pip install --force-reinstall soundfile")
    known = soundfile.available_formats()
    formats = {name: name in known for name in ("WAV", "FLAC", "OGG", "MP3")}
    detail = f"libsndfile {soundfile.__libsndfile_version__}: " + ", ".join(
        name.lower() if there else f"no {name.lower()}" for name, there in formats.items()
    )
    if not all(formats.values()):
        return Check("audio files", "warning", detail, "install libsndfile 1.1 or newer")
    return Check("audio files", "ok", detail)


def _backend(name: BackendName, answer: dict[str, Any] | str | None) -> Check:
    title, package = f"backend {name}", f"'parivox[{name}]'"
    if answer is None:
        return Check(title, "missing", "not installed", f"pip install {package}")
    if isinstance(answer, str):
        return Check(title, "broken", answer, f"pip install --force-reinstall {package}")
    detail = f"{_join(answer['versions'])}; devices: {', '.join(answer['devices'])}"
    if answer["accelerated"] or shutil.which("nvidia-smi") is None:
        return Check(title, "ok", detail)
    remedy = {"jax": "pip install 'jax[cuda13]'", "torch": "install a torch build with CUDA"}[name]
    return Check(title, "ok", f"{detail}; an NVIDIA driver is here, but not used", remedy)


def _join(versions: dict[str, str]) -> str:
    return ", ".join(f"{name} {found}" for name, found in versions.items())


def _deepspeed(answers: dict[str, dict[str, Any] | str]) -> list[Check]:
    """DeepSpeed itself, and whether the extension it compiles at its first use is there."""
    answer, torch = answers.get("deepspeed"), answers.get("torch")
    install = "pip install 'parivox[deepspeed]'"
    if answer is None:
        return [Check("deepspeed", "missing", "not installed; only training with torch needs it", install)]
    if isinstance(answer, str):
        return [Check("deepspeed", "broken", answer, f"{install} --force-reinstall")]
    found = Check("deepspeed", "ok", _join(answer["versions"]))
    return [found] if torch is None or isinstance(torch, str) else [found, extension_check()]


def extension_check() -> Check:
    """Whether DeepSpeed's extension is compiled, or can be compiled here."""
    name, folder = "deepspeed extension", extensions_folder()
    if (folder / EXTENSION / f"{EXTENSION}.so").is_file():
        return Check(name, "ok", f"compiled, in {folder}")
    detail = "not compiled yet"
    if shutil.which(os.environ.get("CXX", "c++")) is None:
        remedy = "install a C++ compiler, for instance: apt-get install g++"
        return Check(name, "broken", f"{detail}; no C++ compiler", remedy)
    remedy = "python -m torch_impl.engine (a minute or two, once; training does it by itself)"
    return Check(name, "missing", detail, remedy)


def _extra(name: str) -> Check:
    versions = {dist: _version(dist) for dist, module in EXTRAS[name] if importlib.util.find_spec(module)}
    if len(versions) < len(EXTRAS[name]):
        detail = f"not installed; for {PURPOSES[name]}"
        return Check(f"extra {name}", "missing", detail, f"pip install 'parivox[{name}]'")
    detail = ", ".join(f"{dist} {found or '(version unknown)'}" for dist, found in versions.items())
    if any(_too_old(dist, found) for dist, found in versions.items()):
        wanted = ", ".join(
            f"{dist} {'.'.join(map(str, OLDEST[dist]))}" for dist in versions if dist in OLDEST
        )
        remedy = f"pip install --upgrade 'parivox[{name}]'"
        return Check(
            f"extra {name}", "broken", f"{detail} is too old for {PURPOSES[name]}, use {wanted}", remedy
        )
    return Check(f"extra {name}", "ok", f"{detail}; for {PURPOSES[name]}")


def _too_old(distribution: str, found: str | None) -> bool:
    numbers = [int(part) for part in (found or "").split(".")[:2] if part.isdigit()]
    return bool(numbers) and tuple(numbers) < OLDEST.get(distribution, (0,))
