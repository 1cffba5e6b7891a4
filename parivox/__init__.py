"""Parivox: a speech denoiser and enhancer with two interchangeable backends, JAX and PyTorch.

`parivox.load` gives a model that cleans arrays and streams. This package is free of both frameworks;
`parivox.backend.get_backend` opens the door to either.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from parivox.cleaner import Cleaner, load

__all__ = ["Cleaner", "__version__", "load"]

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """Import what cleans when it is asked for: `import parivox` alone stays quick."""
    if name in ("Cleaner", "load"):
        from parivox import cleaner

        return getattr(cleaner, name)
    raise AttributeError(f"module 'parivox' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
