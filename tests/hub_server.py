"""A small stand-in for the Hugging Face hub on this machine: its API of models, and its files with their headers."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

LARGE = 10_000
"""Bytes; a file of this size and more is stored with LFS, as is done with a `.pt` file of any size."""


@dataclass
class Hub:
    """What a server has, and what was asked of it.

    Attributes:
        endpoint: for HF_ENDPOINT.
        repos: name of a repository -> path -> content, of all its revisions.
        revisions: branches and tags, of all repositories.
        bodies: path -> what is sent in place of the content, while the hub's metadata stay true.
        status: where set, the answer to everything.
        gated: whether files are only for those who are known.
        asked: method and path of each request.
    """

    endpoint: str = ""
    repos: dict[str, Mapping[str, bytes]] = field(default_factory=dict)
    revisions: tuple[str, ...] = ("main",)
    bodies: dict[str, bytes] = field(default_factory=dict)
    status: int | None = None
    gated: bool = False
    asked: list[str] = field(default_factory=list)

    def downloads(self) -> list[str]:
        """Files whose content was asked for, in order; a large one where it lies, not where it is looked for."""
        words = [line.split("/") for line in self.asked if line.startswith("GET")]
        return [
            "/".join(w[4:] if w[1] == "lfs" else w[5:])
            for w in words
            if w[1] == "lfs" or (w[3:4] == ["resolve"] and not w[-1].endswith(".pt"))
        ]

    def commit(self, repo: str) -> str:
        text = json.dumps(
            {path: _sha256(content) for path, content in self.repos[repo].items()}, sort_keys=True
        )
        return hashlib.sha1(text.encode()).hexdigest()


def files_of(folder: Path, prefix: str = "") -> dict[str, bytes]:
    """The content of a folder as a repository has it."""
    paths = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {prefix + path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


@contextmanager
def hub_server() -> Iterator[Hub]:
    """Serve a hub until the block ends."""
    hub = Hub()
    handler = type("Handler", (_Handler,), {"hub": hub})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        hub.endpoint = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield hub
        finally:
            server.shutdown()
            thread.join()


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _blob(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _is_lfs(path: str, content: bytes) -> bool:
    return path.endswith(".pt") or len(content) >= LARGE


def _tree_entry(sibling: dict[str, Any]) -> dict[str, Any]:
    """The same file as the list of a whole repository has it."""
    entry = {"type": "file", "path": sibling["rfilename"], "size": sibling["size"], "oid": sibling["blobId"]}
    lfs = sibling.get("lfs")
    return entry | ({"lfs": {**lfs, "oid": lfs["sha256"]}} if lfs else {})


class _Handler(BaseHTTPRequestHandler):
    hub: Hub

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def log_message(self, format: str, *args: object) -> None:
        """Keep the standard error for what is tested."""

    def _answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.asked.append(f"{self.command} {path}")
        words = path.strip("/").split("/")
        if self.hub.status is not None:
            self._refuse(self.hub.status, "")
        elif words[:2] == ["api", "models"]:
            self._model("/".join(words[2:4]), words[5] if len(words) > 5 else "main", words[4:5] == ["tree"])
        elif words[0] == "lfs":
            self._file("/".join(words[1:3]), "/".join(words[3:]))
        elif words[2:3] == ["resolve"]:
            self._resolve("/".join(words[:2]), words[3], "/".join(words[4:]))
        else:
            self._refuse(404, "")

    def _commit(self, repo: str, revision: str) -> str | None:
        """The commit of a revision; answers where there is none."""
        if repo not in self.hub.repos:
            # To somebody unknown the hub does not say whether a repository is there.
            self._refuse(401, "RepoNotFound")
            return None
        commit = self.hub.commit(repo)
        if revision not in (*self.hub.revisions, commit):
            self._refuse(404, "RevisionNotFound")
            return None
        return commit

    def _model(self, repo: str, revision: str, tree: bool) -> None:
        commit = self._commit(repo, revision)
        if commit is None:
            return
        siblings = []
        for path, content in self.hub.repos[repo].items():
            entry = {"rfilename": path, "size": len(content), "blobId": _blob(content)}
            if _is_lfs(path, content):
                entry["lfs"] = {"sha256": _sha256(content), "size": len(content), "pointerSize": 134}
            siblings.append(entry)
        if tree:
            self._send_json([_tree_entry(sibling) for sibling in siblings])
            return
        model = {
            "id": repo,
            "modelId": repo,
            "sha": commit,
            "private": False,
            "tags": [],
            "siblings": siblings,
        }
        self._send_json(model)

    def _resolve(self, repo: str, revision: str, path: str) -> None:
        commit = self._commit(repo, revision)
        if commit is None:
            return
        content = self.hub.repos[repo].get(path)
        if self.hub.gated:
            self._refuse(401, "GatedRepo")
        elif content is None:
            self._refuse(404, "EntryNotFound", {"X-Repo-Commit": commit})
        elif _is_lfs(path, content):
            linked = {"X-Linked-Etag": f'"{_sha256(content)}"', "X-Linked-Size": str(len(content))}
            # Large files lie on another host than the hub, whose redirects the client does not follow for a HEAD.
            elsewhere = self.hub.endpoint.replace("127.0.0.1", "localhost")
            place = {"Location": f"{elsewhere}/lfs/{repo}/{path}"}
            self._send(302, b"", {"X-Repo-Commit": commit, **linked, **place})
        else:
            self._send(
                200, self._body(path, content), {"X-Repo-Commit": commit, "ETag": f'"{_blob(content)}"'}
            )

    def _file(self, repo: str, path: str) -> None:
        body = self._body(path, self.hub.repos[repo][path])
        begin = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        if begin is None:
            self._send(200, body, {})
        else:  # an older client goes on where a download broke off
            rest = body[int(begin[1]) :]
            self._send(206, rest, {"Content-Range": f"bytes {begin[1]}-{len(body) - 1}/{len(body)}"})

    def _body(self, path: str, content: bytes) -> bytes:
        return self.hub.bodies.get(path, content)

    def _refuse(self, status: int, code: str, headers: Mapping[str, str] | None = None) -> None:
        known = {"X-Error-Code": code, "X-Error-Message": code} if code else {}
        self._send(status, b"", {**known, **(headers or {})})

    def _send_json(self, value: object) -> None:
        self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _send(self, status: int, body: bytes, headers: Mapping[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)
