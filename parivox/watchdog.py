"""Ends a run of several processes when one of them has died, instead of leaving the others to wait.

A process whose peer is gone waits in a collective operation until that operation times out, and such a time limit
must be long: rank 0 alone evaluates and writes checkpoints, and the others wait for it in good health. So each
process keeps one TCP connection to rank 0 that says nothing but that it lives. The system closes the connection of
a killed process at once; a machine that is gone shows by its silence.
"""

from __future__ import annotations

import hmac
import json
import os
import secrets
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import wait
from types import TracebackType
from typing import Any

from parivox.errors import BackendError, ParivoxError
from parivox.parallel import World

SILENCE_SECONDS = 40.0
"""A process that says nothing for so long is taken for dead."""

BEAT_SECONDS = 2.0
"""Time between two signs of life."""

SETTLE_SECONDS = 5.0
"""How long an error waits for the news that another process caused it."""

CONNECT_SECONDS = 30.0
LINE_BYTES = 4096

EXIT_STATUS = 1


class _Peer:
    """The process at the other end of a connection; `rank` is -1 until it has said who it is."""

    def __init__(self, connection: socket.socket, rank: int):
        connection.settimeout(1.0)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.connection, self.rank = connection, rank
        self.heard = time.monotonic()
        self._buffer = b""

    def send(self, **message: Any) -> None:
        # An error shows when it is read from, too, and there it is dealt with.
        with suppress(OSError):
            self.connection.sendall(json.dumps(message).encode() + b"\n")

    def receive(self) -> list[dict[str, Any]] | None:
        """The messages that have come; None when the connection has ended."""
        try:
            data = self.connection.recv(LINE_BYTES)
        except OSError:
            return None
        if not data:
            return None
        self.heard = time.monotonic()
        *lines, self._buffer = (self._buffer + data).split(b"\n")
        try:
            return [dict(json.loads(line)) for line in lines]
        except (ValueError, TypeError):
            return None  # Not one of ours.


class Watchdog:
    """Watches the other processes while a `with` block runs; does nothing in a run of one process.

    When a process has died the others print one line on standard error and exit with status 1, wherever they are.
    An error that leaves the block is told to the others, and ends all processes in the same way, this one with its
    own message. So enter it first: what is entered later is closed before.
    """

    def __init__(
        self,
        world: World,
        share: Callable[[str], str],
        *,
        silence: float = SILENCE_SECONDS,
        settle: float = SETTLE_SECONDS,
        end: Callable[[str], None] | None = None,
    ):
        """Connect; every process must make one, after the processes have met.

        Args:
            world: this process.
            share: gives the text that rank 0 hands in to every rank; called once by each rank.
            silence: seconds without a sign of life after which a process is taken for dead.
            settle: seconds that an error waits for the news that another process caused it.
            end: what to do with the line that says who died; None prints it and ends the process.

        Raises:
            BackendError: rank 0 cannot be reached.
        """
        self.world = world
        self._silence, self._settle, self._end = silence, settle, end or end_process
        self._peers: list[_Peer] = []
        self._left: set[int] = set()
        self._parting: dict[str, Any] | None = None
        self._listener: socket.socket | None = None
        self._thread: threading.Thread | None = None
        if world.size == 1:
            return
        self._meet(share)
        self._wake, self._woken = socket.socketpair()
        self._begun = time.monotonic()
        self._thread = threading.Thread(target=self._watch, daemon=True, name="parivox-watchdog")
        self._thread.start()

    def _meet(self, share: Callable[[str], str]) -> None:
        place = ""
        if self.world.is_main:
            host = (self.world.coordinator or "").rpartition(":")[0].strip("[]") or socket.gethostname()
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            self._listener = socket.create_server(("", 0), family=family, backlog=self.world.size)
            place = json.dumps([host, self._listener.getsockname()[1], secrets.token_hex(16)])
        host, port, self._token = json.loads(share(place))
        if self.world.is_main:
            return
        try:
            connection = socket.create_connection((host, port), timeout=CONNECT_SECONDS)
        except OSError as error:
            raise BackendError(
                f"rank {self.world.rank} cannot reach rank 0 at {host}:{port} ({error}); the machines of a run must"
                " be able to connect to each other on any port"
            ) from None
        hub = _Peer(connection, 0)
        hub.send(rank=self.world.rank, token=self._token)
        self._peers.append(hub)

    def __enter__(self) -> Watchdog:
        """The watchdog itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Take leave of the others, or tell them what went wrong."""
        if self._thread is None:
            return
        if error is not None and isinstance(error, Exception) and not isinstance(error, ParivoxError):
            # A broken connection to a dead peer shows as an error here as well; the watch then ends this process.
            self._thread.join(self._settle)
        text = ""
        if error is not None:
            text = str(error) if isinstance(error, ParivoxError) else f"{type(error).__name__}: {error}"
        text = " ".join(text.split())[: LINE_BYTES // 4]
        self._parting = {"done": True} if error is None else {"failed": text}
        with suppress(OSError):  # the watch may have ended by itself, where `end` returns
            self._wake.send(b"!")
        self._thread.join(self._settle)
        if isinstance(error, Exception):
            # At its end the interpreter would wait for the other processes, which have gone.
            if not isinstance(error, ParivoxError):
                traceback.print_exception(error)
            self._end(text)

    def _watch(self) -> None:
        lost = None
        beaten = 0.0
        while lost is None and self._parting is None:
            if time.monotonic() - beaten >= BEAT_SECONDS:
                beaten = time.monotonic()
                for peer in self._peers:
                    peer.send(alive=True)
            lost = self._hear() or self._silent()
        parting = self._parting if lost is None else {"lost": lost} if self.world.is_main else {}
        for peer in self._peers:
            peer.send(**(parting or {}))
        self._close()
        if lost is not None:
            self._end(lost)

    def _hear(self) -> str | None:
        """Wait for news, at most a beat; returns what is to be said when a process has died."""
        sources: list[Any] = [self._woken, *(peer.connection for peer in self._peers)]
        if self._listener is not None:
            sources.append(self._listener)
        ready = wait(sources, BEAT_SECONDS)
        if self._listener is not None and self._listener in ready:
            self._peers.append(_Peer(self._listener.accept()[0], -1))
        for peer in [peer for peer in self._peers if peer.connection in ready]:
            messages = peer.receive()
            lost = self._ended(peer) if messages is None else self._read(peer, messages)
            if lost is not None:
                return lost
        return None

    def _read(self, peer: _Peer, messages: list[dict[str, Any]]) -> str | None:
        for message in messages:
            if peer.rank < 0:
                if not hmac.compare_digest(str(message.get("token")), self._token):
                    return self._drop(peer)
                peer.rank = int(message["rank"])
            if "lost" in message:
                return str(message["lost"])
            if "failed" in message:
                return f"rank {peer.rank} of {self.world.size} stopped: {message['failed']}"
            if "done" in message:
                self._left.add(peer.rank)
                return self._drop(peer)
        return None

    def _ended(self, peer: _Peer) -> str | None:
        self._drop(peer)
        return self._died(peer.rank, "its connection broke") if peer.rank >= 0 else None

    def _drop(self, peer: _Peer) -> None:
        self._peers.remove(peer)
        peer.connection.close()

    def _silent(self) -> str | None:
        """What is to be said when a process has been silent for too long, or never came."""
        now = time.monotonic()
        heard = {peer.rank: peer.heard for peer in self._peers if peer.rank >= 0}
        for rank in range(1, self.world.size) if self.world.is_main else (0,):
            if rank not in self._left and now - heard.get(rank, self._begun) > self._silence:
                return self._died(rank, f"no sign of life for {self._silence:.0f} s")
        return None

    def _died(self, rank: int, why: str) -> str:
        return (
            f"rank {rank} of {self.world.size} has died ({why}); the run ends here, the same command goes on from the"
            " last checkpoint"
        )

    def _close(self) -> None:
        # What is unread on this side when the process ends would make the system throw away what the others have
        # not read yet: so say that there is no more to come, and wait until they have gone or a moment has passed.
        deadline = time.monotonic() + 1.0
        for peer in self._peers:
            with suppress(OSError):  # it may have gone before
                peer.connection.shutdown(socket.SHUT_WR)
                peer.connection.settimeout(max(0.01, deadline - time.monotonic()))
                while peer.connection.recv(LINE_BYTES):
                    pass
            peer.connection.close()
        for one in (self._listener, self._wake, self._woken):
            if one is not None:
                one.close()


def end_process(line: str) -> None:
    """Print a line on standard error and end this process at once, whatever its other threads wait for."""
    show_cursor = "\x1b[?25h" if sys.stderr.isatty() else ""
    # Flushing needs a lock that a thread which waits for ever may hold.
    flush = threading.Thread(target=sys.stdout.flush, daemon=True)
    flush.start()
    flush.join(1.0)
    os.write(2, f"{show_cursor}parivox: {line}\n".encode())
    os._exit(EXIT_STATUS)
