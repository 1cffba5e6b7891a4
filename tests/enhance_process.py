"""Enhances a made-up second of sound in a process of its own, whose memory is given back when it ends.

`python -m tests.enhance_process MODEL BACKEND DTYPE FOLDER NFE,LAMBD...` writes FOLDER/BACKEND-DTYPE-NFE-LAMBD.npy.
"""

from __future__ import annotations

import resource
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from parity_tests import seeded
from parivox.backend import get_backend
from parivox.hparams import EnhancerHParams
from parivox.loading import load_for_cleaning
from parivox.rows import Place
from parivox.sampling import Sampler, Sampling
from parivox.weights_enhancer import buffer_names

LENGTH = 44_100


def main(model: Path, backend: Any, dtype: Any, folder: Path, *draws: tuple[int, float]) -> None:
    loaded = load_for_cleaning(model, denoise_only=False)
    hp, weights = loaded.hp, loaded.weights
    assert isinstance(hp, EnhancerHParams)
    del loaded
    if dtype == "float64":
        # The truth rounds nothing: windows and filters are computed anew.
        for name in buffer_names(hp):
            del weights[name]
    engine = get_backend(backend, device="cpu", dtype=dtype)
    call = partial(engine.enhance, engine.load_enhancer(hp, weights))
    del weights
    wav = seeded.signal(20, 1, LENGTH)
    for nfe, lambd in draws:
        begun = time.process_time()
        sound = Sampler(call, hp, Sampling(nfe=nfe, lambd=lambd))(wav, None, [Place(0, 0)])
        took, peak = time.process_time() - begun, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        print(
            f"{backend} {dtype}, nfe {nfe}, lambd {lambd}: {took:.0f} CPU seconds, peak {peak:.1f} GB",
            flush=True,
        )
        np.save(folder / f"{backend}-{dtype}-{nfe}-{lambd}.npy", sound)


if __name__ == "__main__":
    place, name, kind, out, *words = sys.argv[1:]
    pairs = [word.split(",") for word in words]
    main(Path(place), name, kind, Path(out), *((int(nfe), float(lambd)) for nfe, lambd in pairs))
