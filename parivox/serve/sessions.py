"""What the server holds for each browser session, and when it is removed.

Gradio puts uploads below one folder, by their content: two sessions that send the same file share it. So a file goes
when the last session that has it ends, and results lie in a folder of their own for each job.
"""

from __future__ import annotations

import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from parivox.errors import AudioError, ParivoxError

IDLE_SECONDS = 2 * 3600.0
"""A session that was silent for so long is ended, though its page may still be open."""

STRAY_SECONDS = 600.0
"""A file that no session has is removed when it is so old: an upload that was broken off, for instance."""


class StoppedError(ParivoxError):
    """A job was stopped, by its user or since its session ended."""


@dataclass
class Job:
    """One recording that is worked on: where its results go, and whether it is to stop."""

    folder: Path
    stopped: threading.Event = field(default_factory=threading.Event)
    working: bool = True

    def check(self) -> None:
        """Raise StoppedError where the job was stopped."""
        if self.stopped.is_set():
            raise StoppedError("Stopped.")


@dataclass
class _Session:
    used: float
    files: set[Path] = field(default_factory=set)
    job: Job | None = None


class Sessions:
    """Files and jobs by session; safe from several threads, and in a signal handler.

    Args:
        root: the folder that holds everything; `close` removes it.
        clock: seconds since the epoch, as the times of files.

    Attributes:
        closing: set when `close` begins.
    """

    def __init__(self, root: Path, clock: Callable[[], float] = time.time) -> None:
        self.root, self.closing = root.resolve(), threading.Event()
        self._clock, self._sessions = clock, dict[str, _Session]()
        self._lock = threading.RLock()  # a signal may come while this thread holds it

    def keep(self, name: str, path: Path) -> Path:
        """Take an upload for a session, instead of the one it had.

        Raises:
            AudioError: it is not below the root, or no longer there.
        """
        path = path.resolve()
        if not path.is_relative_to(self.root) or not path.is_file():
            raise AudioError("the recording is no longer on the server; send it again")
        with self._lock:
            session = self._session(name)
            before, session.files = session.files, {path}
            self._remove(before)
        return path

    def clear(self, name: str) -> None:
        """Remove a session's upload, that its user took away."""
        with self._lock:
            session = self._session(name)
            before, session.files = session.files, set()
            self._remove(before)

    @contextmanager
    def job(self, name: str) -> Iterator[Job]:
        """A new job in a new folder; results of the session's job before are removed."""
        with self._lock:
            session = self._session(name)
            self._end_job(session)
            job = Job(Path(tempfile.mkdtemp(dir=self.root)))
            session.job = job
        try:
            yield job
        finally:
            with self._lock:
                job.working, session.used = False, self._clock()
                if self._sessions.get(name) is not session or session.job is not job:
                    self._erase(job.folder)  # again: what removed it may have come before its last file
                if self.closing.is_set():
                    self._erase(self.root)

    def stop(self, name: str) -> bool:
        """Stop what a session has running; its results so far stay. Returns whether anything was running."""
        with self._lock:
            session = self._sessions.get(name)
            if session is None or session.job is None or not session.job.working:
                return False
            session.job.stopped.set()
            return True

    def end(self, name: str) -> None:
        """Stop a session's job and remove all that it has."""
        with self._lock:
            session = self._sessions.pop(name, None)
            if session is not None:
                self._end_job(session)
                self._remove(session.files)

    def sweep(self) -> None:
        """End sessions that were silent for long, and remove old files that no session has."""
        now = self._clock()
        with self._lock:
            idle = [name for name, session in self._sessions.items() if now - session.used > IDLE_SECONDS]
            for name in idle:
                if (job := self._sessions[name].job) and job.working:
                    continue
                self.end(name)
            jobs = {session.job.folder for session in self._sessions.values() if session.job}
            held = {path for session in self._sessions.values() for path in session.files}
            for path in [path for path in self.root.rglob("*") if path.is_file()]:
                if path in held or jobs & {*path.parents} or now - _changed(path, now) < STRAY_SECONDS:
                    continue
                self._erase(path)

    def close(self) -> None:
        """End every session and remove the root with all that is in it."""
        with self._lock:
            self.closing.set()
            for name in list(self._sessions):
                self.end(name)
            self._erase(self.root)

    def _session(self, name: str) -> _Session:
        session = self._sessions.setdefault(name, _Session(self._clock()))
        session.used = self._clock()
        return session

    def _end_job(self, session: _Session) -> None:
        if session.job is not None:
            session.job.stopped.set()
            self._erase(session.job.folder)

    def _remove(self, files: set[Path]) -> None:
        """Remove files that no session has any more."""
        held = {path for session in self._sessions.values() for path in session.files}
        for path in files - held:
            self._erase(path)

    def _erase(self, path: Path) -> None:
        """Remove a file with the folder that it was alone in, or a folder; it may be gone already."""
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
        if path != self.root and path.parent != self.root and path.parent.is_dir():
            try:
                path.parent.rmdir()
            except OSError:
                return  # something else is in it


def _changed(path: Path, default: float) -> float:
    """When a file was written; the default where it is gone."""
    try:
        return path.stat().st_mtime
    except OSError:
        return default
