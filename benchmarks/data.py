"""How fast training data are made: `python -m benchmarks.data [--json FILE] [--list 1000000]`.

On voices and noises made here, in files of several codings and prepared: items per second of the full distortion
chain, for each number of worker processes, crops of long recordings, and where the time goes. Times of one thread are
of the processor, so that other work on the machine counts little; what is told are ratios of one run. `--list` makes so
many empty files in a temporary folder and compares listing them with rglob.
"""

from __future__ import annotations

import argparse
import cProfile
import os
import pstats
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from benchmarks.machine import machine, write_results
from parivox.audio import read_audio, resample, write_audio
from parivox.data import make_demo_data, open_stream
from parivox.data.dataset import ItemMaker
from parivox.data.index import index_files
from parivox.data.prepare import prepare
from parivox.data.prepared import open_prepared
from parivox.hparams import DenoiserHParams, HParams
from parivox.listing import PathList, file_names
from parivox.presets import preset

CODINGS = {"flac": ("flac", 44_100), "mp3": ("mp3", 44_100), "flac at 48 kHz": ("flac", 48_000)}
PRESETS = ("denoiser", "enhancer_stage2")
LENGTH = 15  # seconds of a clip
LONG = 600  # seconds of a long recording
FILES_IN_FOLDER = 1000

PARTS = {
    "decode": (("audio.py", "read_audio"), ("prepared.py", "read")),
    "open and probe": (("audio.py", "probe"),),
    "resample": (("audio.py", "resample"),),
    "rooms and reverb": (("rooms.py", "convolve"),),
    "filters": (("filters.py", "apply"), ("filters.py", "overdrive")),
    "white noise": (("distort.py", "noise"),),
    "Praat": (("praat.py", "change_gender"),),
    "mix": (("mix.py", "mix"),),
}
"""Part -> (file, function) whose time, with all that it calls, is the part's; none calls another."""


def clips(root: Path) -> Iterator[tuple[str, np.ndarray]]:
    """Voices and noises of LENGTH seconds, with their folder: the demo's, one after another."""
    made = make_demo_data(root)
    for kind, count in (("fg", 16), ("bg", 5)):
        pieces = [
            resample(wav[0], rate, 44_100)
            for wav, rate in map(read_audio, sorted((made / kind).rglob("*.*")))
        ]
        for k in range(count):
            wav = np.concatenate(pieces[k % len(pieces) :] + pieces)
            yield f"{kind}/{k}", wav[: LENGTH * 44_100]


def data(root: Path) -> dict[str, dict[str, dict[str, Path]]]:
    """Coding -> `files` and `prepared` -> the fields of hyperparameters that name their folders."""
    found = {}
    source = list(clips(root / "demo"))
    for coding, (suffix, rate) in CODINGS.items():
        folder = root / coding.replace(" ", "-")
        for name, wav in source:
            write_audio(folder / f"{name}.{suffix}", resample(wav, 44_100, rate)[None].clip(-1, 1), rate)
        for kind in ("fg", "bg"):
            prepare(folder / kind, root / "prepared" / folder.name / kind, jobs=1)
        forms = {"files": folder, "prepared": root / "prepared" / folder.name}
        rooms = {"rir_dir": root / "demo" / "rir"}
        found[coding] = {
            form: {f"{kind}_dir": place / kind for kind in ("fg", "bg")} | rooms
            for form, place in forms.items()
        }
    return found


def item_seconds(hp: HParams, count: int) -> float:
    """Processor seconds of an item in one thread; the same items at every call."""
    files = index_files(hp)
    make = ItemMaker(hp, files)
    make(files.train.files[0], np.random.default_rng(count))  # opens and imports what is needed
    begin = time.process_time()
    for k in range(count):
        make(files.train.files[k % len(files.train.files)], np.random.default_rng(k))
    return (time.process_time() - begin) / count


def crop_all(read: Callable[[Path, int, int], object], path: Path, starts: np.ndarray) -> None:
    """Read 3 s at each start."""
    for start in starts:
        read(path, int(start), 132_300)


def long_crops(root: Path, count: int = 30) -> dict[str, dict[str, float]]:
    """Coding -> processor seconds of a crop of 3 s from a recording of LONG seconds, as a file and prepared."""
    found, draw = {}, np.random.default_rng(0)
    wav = 0.1 * draw.standard_normal((1, LONG * 44_100), np.float32).clip(-5, 5)
    for suffix in ("wav", "flac", "ogg", "mp3"):
        path = root / suffix / f"long.{suffix}"
        write_audio(path, wav, 44_100)
        prepare(path.parent, root / f"prepared-{suffix}", jobs=1)
        store = open_prepared(root / f"prepared-{suffix}")
        if store is None:
            raise FileNotFoundError(f"{root}: was not prepared")
        found[suffix] = {}
        for form, read in {"files": read_audio, "prepared": store.read}.items():
            starts = np.random.default_rng(1).integers((LONG - 3) * 44_100, size=count)
            took = processor(partial(crop_all, read, path, starts))
            found[suffix][form] = took / count
    return found


def profile(hp: HParams, count: int) -> dict[str, float]:
    """Part -> its share of the time of an item."""
    measured = cProfile.Profile(time.process_time)
    measured.runcall(item_seconds, hp, count)
    stats = pstats.Stats(measured).stats  # type: ignore[attr-defined]
    whole = next(row[3] for (_, _, name), row in stats.items() if name == "item_seconds")
    shares = {}
    for part, functions in PARTS.items():
        took = [row[3] for (path, _, name), row in stats.items() if (Path(path).name, name) in functions]
        shares[part] = sum(took) / whole
    return {**shares, "the rest": 1 - sum(shares.values())}


def batches(hp: HParams, workers: int, count: int) -> float:
    """Items a second of a stream, by the clock, after those that were made while it began."""
    with open_stream(hp.replace(batch_size_per_gpu=4), seed=0, workers=workers) as stream:
        for _ in range(4):
            next(stream)
        begin = time.perf_counter()
        for _ in range(count // 4):
            next(stream)
        return count // 4 * 4 / (time.perf_counter() - begin)


def processor(work: Callable[[], object], who: int = resource.RUSAGE_SELF) -> float:
    """Processor seconds of some work."""
    before = resource.getrusage(who)
    work()
    after = resource.getrusage(who)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def listing(count: int) -> dict[str, float]:
    """Processor seconds of listing empty files, as a run does and with rglob, and bytes held for a file."""
    with tempfile.TemporaryDirectory() as root:
        for k in range(count):
            folder = Path(root, f"speaker{k // FILES_IN_FOLDER:04}")
            if k % FILES_IN_FOLDER == 0:
                folder.mkdir()
            os.close(os.open(folder / f"utterance_{k:07}.flac", os.O_CREAT))
        found: list[PathList] = []
        index = processor(lambda: index_files(DenoiserHParams(fg_dir=Path(root), load_fg_only=True)))
        listed = processor(lambda: found.append(PathList(Path(root), file_names(root, (".flac",)))))
        plain = processor(lambda: sorted(path for path in Path(root).rglob("*") if path.is_file()))
        held = sum(map(len, found[0].names())) + 8 * count
    return {"files": count, "index": index, "list": listed, "rglob": plain, "bytes_a_file": held / count}


def start_up(repeats: int = 9) -> dict[str, float]:
    """Processor seconds of short commands, the median of several, and of Python alone."""
    commands = {
        "python": ("-c", "pass"),
        "import tyro": ("-c", "import tyro"),
        "parivox --version": ("-m", "parivox", "--version"),
        "parivox --help": ("-m", "parivox", "--help"),
        "parivox train denoiser --help": ("-m", "parivox", "train", "denoiser", "--help"),
    }

    def took(words: tuple[str, ...]) -> float:
        command = [sys.executable, *words]
        return processor(
            lambda: subprocess.run(command, stdout=subprocess.DEVNULL, check=True), resource.RUSAGE_CHILDREN
        )

    return {name: statistics.median(took(words) for _ in range(repeats)) for name, words in commands.items()}


def measure(items: int, files: int, counts: list[int]) -> dict:
    """Everything, with the machine it was measured on."""
    found: dict = {"machine": machine(), "start_up": start_up(), "items": items, "presets": {}}
    for name, seconds in found["start_up"].items():
        print(f"{name:30} {seconds:.2f} s of processor time", flush=True)
    with tempfile.TemporaryDirectory() as root:
        found["long_crop_seconds"] = long_crops(Path(root, "long"))
        for coding, took in found["long_crop_seconds"].items():
            print(
                f"a crop of 3 s from {LONG} s, {coding}: {1e3 * took['files']:.2f} ms, prepared"
                f" {1e3 * took['prepared']:.2f} ms: {took['files'] / took['prepared']:.1f} times",
                flush=True,
            )
        places = data(Path(root))
        for name in PRESETS:
            base = preset(name) if find_spec("parselmouth") else preset(name).replace(praat_augment_prob=0)
            rows = found["presets"][name] = {"item_seconds": {}, "profile": {}, "items_per_second": {}}
            for coding, forms in places.items():
                took = {form: item_seconds(base.replace(**forms[form]), items) for form in forms}
                rows["item_seconds"][coding] = took
                print(
                    f"{name:16} {coding:15} {1e3 * took['files']:.0f} ms an item, prepared"
                    f" {1e3 * took['prepared']:.0f} ms: {took['files'] / took['prepared']:.2f} times",
                    flush=True,
                )
            for form, fields in places["mp3"].items():
                shares = rows["profile"][form] = profile(base.replace(**fields), items)
                told = ", ".join(f"{part} {share:.0%}" for part, share in shares.items())
                print(f"{name:16} mp3, {form}: {told}", flush=True)
            for workers in counts:
                speed = {
                    form: batches(base.replace(**places["mp3"][form]), workers, items)
                    for form in places["mp3"]
                }
                rows["items_per_second"][workers] = speed
                told = ", ".join(f"{form} {value:.1f}" for form, value in speed.items())
                print(f"{name:16} mp3, {workers} workers: items a second by the clock: {told}", flush=True)
    if files:
        row = found["listing"] = listing(files)
        print(
            f"listing {files} files: {row['list']:.1f} s, with the split {row['index']:.1f} s,"
            f" rglob {row['rglob']:.1f} s; {row['bytes_a_file']:.0f} bytes a file"
        )
    return found


def main() -> None:
    """Measure, print, and write the figures where asked."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--items", type=int, default=64, help="training items of each measurement")
    parser.add_argument("--list", type=int, default=0, metavar="N", help="list so many empty files too")
    parser.add_argument(
        "--workers", type=int, nargs="*", default=[0, 1, 2], help="worker processes to compare"
    )
    given = parser.parse_args()
    found = measure(given.items, given.list, given.workers)
    if given.json:
        write_results(given.json, found)


if __name__ == "__main__":
    main()
