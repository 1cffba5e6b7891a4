"""Where compiled things are kept between processes: one folder of the user's cache."""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import os
from pathlib import Path


def cache_folder(name: str) -> Path:
    """Parivox's part of the user's cache (`XDG_CACHE_HOME`, else `~/.cache`); not made yet."""
    root = os.environ.get("XDG_CACHE_HOME")
    return (Path(root) if root else Path.home() / ".cache") / "parivox" / name


def extensions_folder() -> Path:
    """Where DeepSpeed's extensions are compiled: `TORCH_EXTENSIONS_DIR`, else a folder of this environment.

    In one folder for all, as is torch's custom, two environments compile in turn for ever: the paths of the
    headers are part of the recipe. Imports neither torch nor DeepSpeed.
    """
    chosen = os.environ.get("TORCH_EXTENSIONS_DIR")
    if chosen:
        return Path(chosen)
    facts = [importlib.metadata.version(name) for name in ("torch", "deepspeed")]
    facts += [str(getattr(importlib.util.find_spec(name), "origin", "")) for name in ("torch", "deepspeed")]
    return cache_folder("deepspeed") / hashlib.sha256("\n".join(facts).encode()).hexdigest()[:16]
