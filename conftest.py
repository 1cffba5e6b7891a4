"""What every test in `tests/` and `parity_tests/` runs under; loaded before any of our packages.

Array annotations are checked at run time: jaxtyping's import hook wraps every function of the listed
packages, so it must be in place before the first of them is imported.
"""

from __future__ import annotations

import os

import pytest
from hypothesis import settings
from jaxtyping import install_import_hook

WORKERS = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
THREADS = max(1, (os.cpu_count() or 1) // WORKERS)

# Set before NumPy, torch or JAX start their thread pools; whoever runs the tests may choose otherwise.
for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"):
    os.environ.setdefault(variable, str(THREADS))
# OpenMP threads that spin while they wait make a torch step many times slower once the cores are shared.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("MPLBACKEND", "agg")

# A busy machine must not fail a property test.
settings.register_profile("parivox", deadline=None)
settings.load_profile("parivox")

LONGEST_FIRST = (
    "test_ladder.py",
    "test_train_kill.py",
    "test_cli_ranks.py",
    "test_train_config.py",
    "test_train_ranks.py",
    "test_isolation.py",
    "test_cli_train.py",
)
"""A file's tests stay in one process: a long file that begins last leaves the other processes idle."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the files that take minutes before the others."""
    items.sort(
        key=lambda item: (
            LONGEST_FIRST.index(item.path.name) if item.path.name in LONGEST_FIRST else len(LONGEST_FIRST)
        )
    )


install_import_hook(["parivox", "jax_impl", "torch_impl"], "beartype.beartype")
