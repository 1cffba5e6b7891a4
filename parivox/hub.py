"""Models on the Hugging Face hub: `hub:OWNER/REPO[@REVISION]` stands for a folder of the hub's own cache.

What the cache holds is used without asking the network, so a branch stays where it was when it was fetched. What it
does not hold is downloaded by `huggingface_hub`: the three files of the published layout and nothing else, each
compared with the digest that the hub gives for it. A branch or tag is noted in the cache only after that.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from parivox.atomic import write_text
from parivox.errors import CheckpointError, ConfigError
from parivox.public_layout import HPARAMS, LATEST, states_path

PREFIX = "hub:"

PUBLIC = "hub:ResembleAI/resemble-enhance"
"""The public weights; what cleans where no model is named."""

ABOUT = {PUBLIC: "the public weights of Resemble Enhance, by Resemble AI, licence MIT; "}
"""What is said of a model when it is fetched."""

TIMEOUT = 10.0
"""Seconds that the hub has for its first answer."""

_NAME = re.compile(r"hub:([\w.-]+/[\w.-]+)(?:@(\w[\w./-]*))?")


@dataclass(frozen=True)
class HubName:
    """A model on the hub.

    Attributes:
        text: as the user wrote it.
        repo: owner and name of the repository.
        revision: branch, tag or commit.
    """

    text: str
    repo: str
    revision: str

    @property
    def store(self) -> Path:
        """Where the cache keeps everything of the repository."""
        return _cache() / f"models--{self.repo.replace('/', '--')}"


def is_hub_name(path: str | Path) -> bool:
    """Whether this names a model on the hub and no file."""
    return str(path).startswith(PREFIX)


def parse_name(text: str) -> HubName:
    """The parts of `hub:OWNER/REPO[@REVISION]`; without a revision it is `main`.

    Raises:
        ConfigError: it is not of this form.
    """
    found = _NAME.fullmatch(text)
    if not found or ".." in text or "//" in text:
        raise ConfigError(
            f"{text}: is no name on the hub; write {PREFIX}OWNER/REPO or {PREFIX}OWNER/REPO@REVISION"
        )
    return HubName(text, found[1], found[2] or "main")


def hub_folder(text: str, message: Callable[[str], object] = print) -> Path:
    """The folder of a model in the published layout, downloaded where the cache does not hold it.

    Args:
        text: `hub:OWNER/REPO[@REVISION]`.
        message: called with one line before a download.

    Raises:
        CheckpointError: the hub has no such repository or revision, or no model in it, or several; it cannot be reached
            and the model is not cached; the download is damaged.
        ConfigError: the name is not of this form.
    """
    name = parse_name(text)
    return cached_folder(name) or _download(name, message)


def cached_folder(name: HubName) -> Path | None:
    """The folder of a model that the cache holds whole, or None; asks no network."""
    ref = name.store / "refs" / name.revision
    commit = ref.read_text(encoding="utf-8").strip() if ref.is_file() else name.revision
    snapshot = name.store / "snapshots" / commit
    if not (snapshot / HPARAMS).is_file():
        folders = sorted(path.parent for path in snapshot.glob(f"*/{HPARAMS}"))
    else:
        folders = [snapshot]
    return folders[0] if len(folders) == 1 and _is_whole(folders[0]) else None


def _is_whole(folder: Path) -> bool:
    try:
        return states_path(folder).is_file()
    except CheckpointError:
        return False


def _cache() -> Path:
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


def _endpoint() -> str:
    from huggingface_hub import constants

    return str(constants.ENDPOINT)


def _download(name: HubName, message: Callable[[str], object]) -> Path:
    from huggingface_hub import HfApi

    with _one_line(name):
        info = HfApi().model_info(name.repo, revision=name.revision, files_metadata=True, timeout=TIMEOUT)
    files = {file.rfilename: file for file in info.siblings or ()}
    place, commit = _place(name, files), str(info.sha)
    for small in (HPARAMS, LATEST):
        _fetch(name, commit, place + small, files)
    folder = name.store / "snapshots" / commit / place
    states = place + states_path(folder).relative_to(folder).as_posix()
    size = getattr(files.get(states), "size", None)
    amount = f"{size / 1e6:.0f} MB" if size else "them"
    message(f"{name.text}: {ABOUT.get(PREFIX + name.repo, '')}fetching {amount} into {name.store}")
    _fetch(name, commit, states, files)
    if name.revision != commit:
        with _one_line(name):
            write_text(name.store / "refs" / name.revision, commit)
    return folder


def _place(name: HubName, files: Mapping[str, Any]) -> str:
    """Where in a repository the model lies: at its root, or in the only folder of the first level that has one."""
    if HPARAMS in files:
        return ""
    found = sorted(
        path.removesuffix(HPARAMS) for path in files if re.fullmatch(rf"[^/.][^/]*/{HPARAMS}", path)
    )
    if not found:
        raise CheckpointError(
            f"{name.text}: holds no model in the published layout (no {HPARAMS} at its root or one folder down); name"
            " another repository"
        )
    if len(found) > 1:
        raise CheckpointError(
            f"{name.text}: holds {len(found)} models ({', '.join(found)}); run: hf download {name.repo} --local-dir"
            " FOLDER, and give the folder of one"
        )
    return found[0]


def _fetch(name: HubName, commit: str, file: str, files: Mapping[str, Any]) -> None:
    """Bring one file into the cache, and throw it away where it is not what the hub says."""
    from huggingface_hub import hf_hub_download

    if file not in files:
        raise CheckpointError(f"{name.text}: has no {file}; name a repository with a whole published model")
    with _one_line(name):
        path = Path(hf_hub_download(name.repo, file, revision=commit, etag_timeout=TIMEOUT))
    expected, found = _digests(path, files[file])
    if found != expected:
        blob = path.resolve()
        path.unlink()
        blob.unlink(missing_ok=True)
        raise CheckpointError(
            f"{name.text}: {file} arrived damaged (its digest is {found[:12]}..., the hub says {expected[:12]}...) and"
            " was removed; run the command again"
        )


def _digests(path: Path, file: Any) -> tuple[str, str]:
    """The digest that the hub gives for a file, and that of the bytes here.

    Of a large file (LFS) this is SHA-256, of a small one the name of a git blob, which is SHA-1 after a header. Where a
    mirror gives none, both are empty.
    """
    if file.lfs is not None:
        with path.open("rb") as stream:
            return str(file.lfs.sha256), hashlib.file_digest(stream, "sha256").hexdigest()
    if not file.blob_id:
        return "", ""
    content = path.read_bytes()
    header = b"blob %d\0" % len(content)
    return str(file.blob_id), hashlib.sha1(header + content, usedforsecurity=False).hexdigest()


@contextmanager
def _one_line(name: HubName) -> Iterator[None]:
    """Make one line of whatever goes wrong in the hub's client."""
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    # The base of every error of the HTTP library below, which has changed over the client's versions.
    network: tuple[type[Exception], ...] = tuple(
        kind for kind in HfHubHTTPError.__mro__[1:] if kind.__module__ != "builtins"
    )
    try:
        yield
    except (OSError, RuntimeError, HFValidationError, *network) as error:
        raise CheckpointError(f"{name.text}: {_reason(name, error, network)}") from error


def _reason(name: HubName, error: Exception, network: tuple[type[Exception], ...]) -> str:
    from huggingface_hub import errors

    words = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, errors.HFValidationError):
        return f"can be no repository ({words}); check the name"
    if isinstance(error, errors.GatedRepoError):
        return f"its owner asks who you are; accept the terms on {_endpoint()}/{name.repo} and run: hf auth login"
    if isinstance(error, errors.RevisionNotFoundError):
        return f"{_endpoint()} has no revision '{name.revision}' of it; leave out @{name.revision} or name another"
    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, errors.RepositoryNotFoundError) or status in (401, 403, 404):
        return (
            f"{_endpoint()} has no such repository, or it is private; check the name, or set HF_TOKEN to an access"
            " token"
        )
    if isinstance(error, errors.HfHubHTTPError):
        return f"{_endpoint()} answers {status or words}; try again later"
    away = (ConnectionError, TimeoutError, errors.LocalEntryNotFoundError, *network)
    if isinstance(error, away):
        return _offline(
            name, "HF_HUB_OFFLINE is set" if isinstance(error, errors.OfflineModeIsEnabled) else words
        )
    if isinstance(error, OSError) and error.errno is not None:
        return f"cannot be kept in {name.store} ({error.strerror}); make room, or name another folder with HF_HUB_CACHE"
    return f"did not arrive whole ({words}); run the command again"


def _offline(name: HubName, why: str) -> str:
    at = "" if name.revision == "main" else f" --revision {name.revision}"
    return (
        f"is not on this machine, and {_endpoint()} cannot be reached ({why}); where there is a network, run: hf"
        f" download {name.repo}{at} --local-dir FOLDER, copy FOLDER here and give, with --run, the folder in it that"
        f" holds {HPARAMS}; or copy the folder {name.store.name} of the cache there into {name.store.parent}"
        " (HF_HUB_CACHE names another)"
    )
