"""Training data: folders of files to batches of NumPy arrays, the same for both backends."""

from __future__ import annotations

from parivox.data.batch import TrainBatch
from parivox.data.demo import make_demo_data
from parivox.data.mix import mix
from parivox.data.stream import BatchStream, open_stream, validation_batches

__all__ = ["BatchStream", "TrainBatch", "make_demo_data", "mix", "open_stream", "validation_batches"]
