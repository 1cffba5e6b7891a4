"""Runs the page until it is told to end, and leaves nothing behind.

Everything that Gradio and this program write lies in one temporary folder. It is removed when the server ends, and
what a killed server left is removed by the next one.
"""

from __future__ import annotations

import logging
import os
import shutil
import signal
import socket
import tempfile
import threading
import webbrowser
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from parivox.cleaner import Cleaner
from parivox.errors import BackendError
from parivox.serve.access import address_of
from parivox.serve.limits import Limits
from parivox.serve.sessions import Sessions

PREFIX = "parivox-serve-"
LOCK = ".lock"
SWEEP_SECONDS = 60.0
GOODBYE_SECONDS = 3
"""How long open connections may take to end."""

POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; media-src 'self' data: blob:; font-src 'self' data:; connect-src 'self' data: blob:; "
    "worker-src 'self' blob:; object-src 'none'; base-uri 'self'; form-action 'self'"
)
"""What the browser may load: nothing from anywhere else. Gradio's own scripts need the word `unsafe`."""

FETCHING = ("/gradio_api/proxy=", "/gradio_api/file=http:", "/gradio_api/file=https:")
"""Routes with which Gradio would fetch something from elsewhere on a visitor's behalf."""


def require_gradio() -> None:
    """Import Gradio, without its reports to its makers.

    Raises:
        BackendError: it is not installed.
    """
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    try:
        import gradio  # noqa: F401
    except ImportError as error:
        raise BackendError(
            "parivox serve needs Gradio, which is not here; pip install 'parivox[ui]'"
        ) from error


@contextmanager
def workspace() -> Iterator[Path]:
    """A temporary folder for all that is written, removed at the end; Gradio and `tempfile` use it meanwhile."""
    remove_left_behind()
    folder = Path(tempfile.mkdtemp(prefix=PREFIX))
    lock = _locked(folder / LOCK)
    before = os.environ.get("GRADIO_TEMP_DIR"), tempfile.tempdir
    os.environ["GRADIO_TEMP_DIR"], tempfile.tempdir = str(folder), str(folder)
    try:
        yield folder
    finally:
        tempfile.tempdir = before[1]
        if before[0] is None:
            os.environ.pop("GRADIO_TEMP_DIR", None)
        else:
            os.environ["GRADIO_TEMP_DIR"] = before[0]
        shutil.rmtree(folder, ignore_errors=True)
        if lock is not None:
            os.close(lock)


def remove_left_behind() -> None:
    """Remove folders of servers that were killed; those of servers that run are locked."""
    for folder in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        if not (folder / LOCK).is_file() or folder.is_symlink():
            continue
        lock = _locked(folder / LOCK)
        if lock is not None:
            shutil.rmtree(folder, ignore_errors=True)
            os.close(lock)


def _locked(path: Path) -> int | None:
    """A descriptor that holds the lock as long as this process lives; None where another one, or no system, has it."""
    try:
        import fcntl
    except ImportError:
        return None
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return descriptor
    except OSError:
        os.close(descriptor)
        return None


def make_app(
    cleaner: Cleaner, limits: Limits, sessions: Sessions, auth: tuple[str, str] | None = None
) -> Guarded:
    """The page as an ASGI application.

    Args:
        cleaner: the model.
        limits: of recordings and of the queue.
        sessions: in the folder that `workspace` gives.
        auth: user and password, or None for everyone.
    """
    import gradio as gr
    from fastapi import FastAPI
    from gradio.routes import App

    from parivox.serve.page import CSS, build, theme

    outer = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    app = gr.mount_gradio_app(
        outer,
        build(cleaner, limits, sessions),
        path="/",
        auth=auth,
        max_file_size=limits.bytes,
        footer_links=[],
        run_history=False,
        ssr_mode=False,
        enable_monitoring=False,
        theme=theme(),
        css_paths=CSS,
    )
    mounted = (getattr(route, "app", None) for route in app.routes)
    (pages,) = (found for found in mounted if isinstance(found, App))
    if pages.stop_event is None:
        raise RuntimeError("Gradio made no event to stop by")
    return Guarded(app, pages.stop_event.set)


class Guarded:
    """An ASGI application that lets the browser load nothing from elsewhere, and fetches nothing itself.

    Attributes:
        stop: ends the connections that Gradio keeps open while a page is.
    """

    def __init__(self, app: Callable[..., Awaitable[None]], stop: Callable[[], None]) -> None:
        self._app, self.stop = app, stop

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        """Answer a request."""
        if scope["type"] == "http" and scope["path"].startswith(FETCHING):
            await send({"type": "http.response.start", "status": 403, "headers": []})
            await send({"type": "http.response.body", "body": b"Nothing is fetched from elsewhere."})
            return

        async def guarded(message: dict[str, Any]) -> None:
            if message["type"] == "http.response.start":
                added = {"content-security-policy": POLICY, "referrer-policy": "no-referrer"}
                headers = [(name.encode(), value.encode()) for name, value in added.items()]
                message = {**message, "headers": [*message.get("headers", []), *headers]}
            await send(message)

        await self._app(scope, receive, guarded)


def serve(app: Guarded, bound: socket.socket, sessions: Sessions, open_browser: bool = False) -> None:
    """Serve until SIGINT or SIGTERM; all files of sessions are gone when this begins to end.

    Args:
        app: of `make_app`.
        bound: of `parivox.serve.access.bind`.
        sessions: closed at the end.
        open_browser: whether the page is opened in the user's browser.

    Raises:
        KeyboardInterrupt: after SIGINT.
    """
    import uvicorn

    class Server(uvicorn.Server):
        def handle_exit(self, sig: int, frame: FrameType | None) -> None:
            sessions.close()  # at once: a chunk that is computed may hold up the rest of the end
            app.stop()
            super().handle_exit(sig, frame)

    bound.listen(128)
    address = address_of(bound)
    print(f"the page is at {address}  (Ctrl-C ends it)", flush=True)
    sweeper = threading.Thread(target=_sweep, args=(sessions,), daemon=True)
    sweeper.start()
    if open_browser:
        webbrowser.open(address)
    # What is cut off at the end is no news.
    logging.getLogger("uvicorn.error").addFilter(lambda record: not sessions.closing.is_set())
    config = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=GOODBYE_SECONDS)
    try:
        Server(config).run(sockets=[bound])
    finally:
        sessions.close()


def _sweep(sessions: Sessions) -> None:
    while not sessions.closing.wait(SWEEP_SECONDS):
        sessions.sweep()


@contextmanager
def ended_by_sigterm() -> Iterator[None]:
    """SIGTERM ends the block as an exception would, so that it cleans up."""

    def end(sig: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + sig)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
