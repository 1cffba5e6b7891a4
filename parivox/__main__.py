"""`python -m parivox` is the command `parivox`."""

from __future__ import annotations

from parivox.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
