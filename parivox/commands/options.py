"""Types of options that several subcommands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import tyro

NO_HINT = tyro.conf.arg(help_behavior_hint="")
"""For an option whose help says what leaving it out means, where tyro would add "(default: None)"."""

# The same words as in parivox.backend, which imports NumPy; a test compares them.
BackendOption = Annotated[Literal["jax", "torch"] | None, NO_HINT]
DeviceOption = Literal["auto", "cpu", "gpu", "cuda", "tpu"]
PrecisionOption = Literal["highest", "tf32", "bf16"]
PUBLIC_MODEL = Path("hub:ResembleAI/resemble-enhance")  # parivox.hub.PUBLIC
DtypeOption = Literal["float32", "float64"]
SolverOption = Annotated[Literal["midpoint", "euler", "rk4"] | None, NO_HINT]

CountOption = Annotated[int | None, NO_HINT]
ShareOption = Annotated[float | None, NO_HINT]
FolderOption = Annotated[Path | None, tyro.conf.arg(metavar="DIR", help_behavior_hint="")]
FileOption = Annotated[Path | None, tyro.conf.arg(metavar="FILE", help_behavior_hint="")]
