"""Parivox: a speech denoiser and enhancer with two interchangeable backends, JAX and PyTorch.

This package is free of both frameworks; `parivox.backend.get_backend` opens the door to either.
"""

from __future__ import annotations

__version__ = "0.1.0"
