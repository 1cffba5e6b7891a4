"""`parivox serve` in a process of its own, for tests with a client or a browser."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from parivox.serve.server import PREFIX

ROOT = Path(__file__).parent.parent
START_SECONDS = 120


@dataclass
class Served:
    """A server that answers: its address, its process, the folder of its temporary folder, and what it printed."""

    process: subprocess.Popen[str]
    temporary: Path
    lines: list[str] = field(default_factory=list)
    url: str = ""

    def files(self) -> list[Path]:
        """Everything it has written and not removed, but for its lock."""
        found = (path for folder in self.temporary.glob(f"{PREFIX}*") for path in folder.rglob("*"))
        return [path for path in found if path.is_file() and path.name != ".lock"]

    def wait_for_files(self, seconds: float = 30) -> list[Path]:
        """The files once there are none, or those that are left after so long."""
        deadline = time.monotonic() + seconds
        while (left := self.files()) and time.monotonic() < deadline:
            time.sleep(0.1)
        return left

    def end(self, sig: int = signal.SIGTERM) -> int:
        """Send a signal; returns the exit status."""
        self.process.send_signal(sig)
        return self.process.wait(60)


@contextmanager
def served(folder: Path, run: Path, *options: str, port: int = 0) -> Iterator[Served]:
    """Serve a model on the CPU with torch; temporary files lie below `folder`."""
    temporary = folder / "tmp"
    temporary.mkdir(exist_ok=True)
    words = [
        "serve",
        "--run",
        str(run),
        "--port",
        str(port),
        "--backend",
        "torch",
        "--device",
        "cpu",
        *options,
    ]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "TMPDIR": str(temporary), "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(
        [sys.executable, "-m", "parivox", *words],
        env=environment,
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    server = Served(process, temporary)
    reader = threading.Thread(target=_read, args=(server,), daemon=True)
    reader.start()
    try:
        deadline = time.monotonic() + START_SECONDS
        while not server.url and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
        assert server.url, "".join(server.lines)
        yield server
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()
        reader.join(10)
        if process.stdout is not None:
            process.stdout.close()


def _read(server: Served) -> None:
    assert server.process.stdout is not None
    for line in server.process.stdout:
        server.lines.append(line)
        found = re.search(r"the page is at (http\S+)", line)
        if found:
            server.url = found[1]
