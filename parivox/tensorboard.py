"""TensorBoard event files, written at once, so that a kill loses nothing that was logged."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8


def _import_tensorboardx() -> tuple[Any, Any, Any]:
    """The parts of tensorboardX used here, imported without torch.

    tensorboardX imports torch where it is installed, only to name a type. Parivox works without it, and a
    run on the other backend must not load it, so it is hidden for the moment.
    """
    hide = "torch" not in sys.modules
    if hide:
        sys.modules["torch"] = None  # type: ignore[assignment]
    try:
        from tensorboardX import summary
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto import event_pb2
    finally:
        if hide:
            del sys.modules["torch"]
    return summary, EventsWriter, event_pb2


_summary, _EventsWriter, _protos = _import_tensorboardx()


class Board:
    """One event file in a folder. Not tensorboardX's SummaryWriter: its queue is lost when a run is killed.

    Args:
        folder: where the event files of a run are; made when needed.
        purge_step: TensorBoard forgets what earlier files hold from this step on.

    Raises:
        OSError: the folder cannot be written.
    """

    def __init__(self, folder: Path, purge_step: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        # The writer's own name is by the second, and it overwrites; TensorBoard reads files in name order.
        unique = f".{time.time_ns()}.{os.getpid()}"
        self._writer = _EventsWriter(os.path.join(folder, "events"), unique)
        start = _protos.SessionLog(status=_protos.SessionLog.START)
        self._write(purge_step, file_version="brain.Event:2")
        self._write(purge_step, session_log=start)
        self._writer.flush()

    def scalars(self, step: int, values: dict[str, float]) -> None:
        """Put numbers, by tag, at a step."""
        for tag, value in values.items():
            self._write(step, summary=_summary.scalar(tag, value))
        self._writer.flush()

    def audio(self, step: int, tag: str, wav: Float[np.ndarray, " t"], rate: int) -> None:
        """Put a sound, (t,) float in [-1, 1] at `rate` Hz; louder samples are clipped."""
        self._write(step, summary=_summary.audio(tag, np.clip(wav, -1, 1).astype(np.float32), rate))
        self._writer.flush()

    def image(self, step: int, tag: str, pixels: UInt8[np.ndarray, "h w 3"]) -> None:
        """Put a picture, (h, w, 3) in RGB."""
        self._write(step, summary=_summary.image(tag, pixels, dataformats="HWC"))
        self._writer.flush()

    def close(self) -> None:
        """Close the file."""
        self._writer.close()

    def _write(self, step: int, **content: Any) -> None:
        self._writer.write_event(_protos.Event(wall_time=time.time(), step=step, **content))
