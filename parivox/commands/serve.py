"""`parivox serve`: a web page that cleans recordings."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from parivox.commands.options import (
    NO_HINT,
    PUBLIC_MODEL,
    BackendOption,
    DeviceOption,
    FileOption,
    PrecisionOption,
)


@dataclass(frozen=True)
class ServeCommand:
    """Serve a web page on which recordings are cleaned, heard and seen.

    The page is for this machine alone, unless --host names another address; then it asks for a password. Recordings and
    results lie in a temporary folder until their page is closed, or the server ends.

    Attributes:
        model: A run folder, one of its checkpoints, a published folder, one safetensors file, or a model on the
            Hugging Face hub, hub:OWNER/REPO[@REVISION], which is downloaded once; by default the public weights.
        host: Address to listen on; 0.0.0.0 is every one of this machine.
        port: Port to listen on; 0 takes any free one.
        auth: USER:PASSWORD that opens the page. Others on this machine can see it in the list of processes;
            --auth-file or the environment variable PARIVOX_SERVE_AUTH hides it.
        auth_file: File whose first line is USER:PASSWORD.
        backend: What computes; by default what is installed, JAX first, or PARIVOX_BACKEND.
        device: Where it computes.
        precision: Arithmetic of convolutions and matrix products; highest is true float32.
        max_megabytes: Largest file that is taken, in millions of bytes.
        max_seconds: Longest recording that is taken.
        max_queue: Most recordings that wait for their turn.
        open_browser: Open the page in the browser.
    """

    model: Annotated[Path, tyro.conf.arg(name="run", metavar="RUN")] = PUBLIC_MODEL
    host: Annotated[str, tyro.conf.arg(metavar="ADDRESS")] = "127.0.0.1"
    port: int = 7860
    auth: Annotated[str | None, tyro.conf.arg(metavar="USER:PASSWORD", help_behavior_hint="")] = None
    auth_file: FileOption = None
    backend: BackendOption = None
    device: DeviceOption = "auto"
    precision: PrecisionOption = "highest"
    max_megabytes: float = 120.0
    max_seconds: float = 600.0
    max_queue: int = 8
    open_browser: Annotated[bool, tyro.conf.FlagCreatePairsOff, NO_HINT] = False

    def run(self) -> int:
        """Serve until SIGINT or SIGTERM; returns the exit status."""
        from parivox.cleaner import load
        from parivox.heap import return_large_blocks
        from parivox.serve.access import bind, credentials
        from parivox.serve.limits import Limits
        from parivox.serve.server import ended_by_sigterm, make_app, require_gradio, serve, workspace
        from parivox.serve.sessions import Sessions

        return_large_blocks()
        limits = Limits(self.max_megabytes, self.max_seconds, self.max_queue)
        auth = credentials(self.auth, self.auth_file, self.host)
        with ended_by_sigterm(), bind(self.host, self.port) as bound, workspace() as folder:
            require_gradio()
            cleaner = load(self.model, self.backend, self.device, self.precision)
            print(f"cleaning with {cleaner}", flush=True)
            sessions = Sessions(folder)
            serve(make_app(cleaner, limits, sessions, auth), bound, sessions, self.open_browser)
        return 0
