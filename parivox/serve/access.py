"""Where the page is served and who may open it: settled before a model is loaded."""

from __future__ import annotations

import errno
import ipaddress
import os
import socket
from pathlib import Path

from parivox.errors import ConfigError

AUTH_VARIABLE = "PARIVOX_SERVE_AUTH"
"""Environment variable with USER:PASSWORD; unlike an option it does not stand in the list of processes."""


def is_loopback(host: str) -> bool:
    """Whether an address is reached from this machine alone; a name other than `localhost` is not trusted to be."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def credentials(auth: str | None, auth_file: Path | None, host: str) -> tuple[str, str] | None:
    """User and password that open the page; None where none are asked for and only this machine reaches it.

    Args:
        auth: USER:PASSWORD as it was given.
        auth_file: a file whose first line is USER:PASSWORD.
        host: the address to listen on.

    Raises:
        ConfigError: both are given, one is malformed or cannot be read, or the host needs a password and has none.
    """
    if auth is not None and auth_file is not None:
        raise ConfigError("--auth and --auth-file exclude each other; leave out one")
    if auth_file is not None:
        return _split(_first_line(auth_file), str(auth_file))
    if auth is not None:
        return _split(auth, "--auth")
    if os.environ.get(AUTH_VARIABLE):
        return _split(os.environ[AUTH_VARIABLE], AUTH_VARIABLE)
    if is_loopback(host):
        return None
    raise ConfigError(
        f"--host {host} opens the page to other machines; protect it with --auth-file FILE, --auth USER:PASSWORD or"
        f" {AUTH_VARIABLE}"
    )


def _first_line(path: Path) -> str:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        raise ConfigError(f"{path}: cannot be read ({reason}); give a file with USER:PASSWORD") from error
    return lines[0].strip() if lines else ""


def _split(text: str, source: str) -> tuple[str, str]:
    """The message does not repeat what may be a password."""
    user, _, password = text.partition(":")
    if not user.strip() or not password:
        raise ConfigError(f"{source}: is not of the form USER:PASSWORD; neither part may be empty")
    return user.strip(), password


def bind(host: str, port: int) -> socket.socket:
    """A socket that is bound but does not listen yet; port 0 takes any free one.

    Raises:
        ConfigError: the port is taken, not allowed or out of range, or the host is no address of this machine.
    """
    if not 0 <= port <= 65_535:
        raise ConfigError(f"--port is {port}; use 1 to 65535, or 0 for any free one")
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        found = socket.socket(family, socket.SOCK_STREAM)
    except OSError as error:
        raise ConfigError(
            f"--host {host}: is no address of this machine; use 127.0.0.1 or 0.0.0.0"
        ) from error
    try:
        if os.name == "posix":  # a port that was just left may be taken again
            found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind(address)
        return found
    except OSError as error:
        found.close()
        if error.errno == errno.EADDRINUSE:
            reason = f"port {port} on {host} is taken; name another with --port, or 0 for any free one"
        elif error.errno == errno.EACCES:
            reason = f"port {port} is not allowed to this user; use --port with 1024 or more"
        else:
            reason = f"--host {host}: is no address of this machine; use 127.0.0.1 or 0.0.0.0"
        raise ConfigError(reason) from error


def address_of(bound: socket.socket) -> str:
    """The page's address, for a browser on this machine where it listens on every address."""
    host, port = bound.getsockname()[:2]
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, str(host))
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
