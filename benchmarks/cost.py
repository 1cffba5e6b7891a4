"""What large amounts of sound cost: `python -m benchmarks.cost [--share-of-peak 0.3] [--peak-tflops 50] [--write]`.

Nothing is measured here. Counted arithmetic (`benchmarks.flops`), the processor time of an item (docs/speed.md) and
assumptions about machines become hours, host cores and bytes a second; every assumption is an option. `--write` puts
the tables for the default assumptions into docs/scaling.md.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from parivox.enhance import chunk_sizes, full_row
from parivox.hparams import WAV_RATE

PAGE = Path(__file__).parent.parent / "docs" / "scaling.md"
BEGIN, END = "<!-- made by benchmarks.cost: begin -->", "<!-- made by benchmarks.cost: end -->"
ACCELERATORS = (1, 8, 256)
GRADIENT_BYTES = 4
"""Gradients are exchanged as float32."""


@dataclass(frozen=True)
class Task:
    """One way through an amount of sound; every figure is counted or measured, none assumed.

    Attributes:
        name: as the tables call it.
        hours: of sound.
        gflop: for a second of sound that goes through the network.
        item_seconds: sound that an item adds to what is done.
        item_cpu_ms: processor time of the host for an item.
        overhead: sound that goes through the network for each second that is done; more than 1 where items overlap.
        rows: items of an accelerator's batch; 0 where nothing is trained.
        weights: trained numbers, whose gradients the accelerators exchange.
        sources: crops that are read for an item; where nothing is trained, the item itself.
        writes: whether as much is written as was done.
    """

    name: str
    hours: float
    gflop: float
    item_seconds: float
    item_cpu_ms: float
    overhead: float = 1.0
    rows: int = 0
    weights: int = 0
    sources: int = 1
    writes: bool = False

    @property
    def items(self) -> float:
        """Of the whole amount."""
        return self.hours * 3600 / self.item_seconds

    @property
    def item_gflop(self) -> float:
        """Arithmetic of an item."""
        return self.gflop * self.item_seconds * self.overhead


def _assumed(default: float, about: str) -> Any:
    return field(default=default, metadata={"about": about})


@dataclass(frozen=True)
class Assumed:
    """What nobody has measured yet: of an accelerator, of its host and of what lies around them."""

    peak_tflops: float = _assumed(
        50.0, "an accelerator's fastest matrix product in the arithmetic that is used, TFLOP/s"
    )
    share_of_peak: float = _assumed(0.3, "share of that peak which the whole program keeps up")
    cores: float = _assumed(16.0, "host cores of each accelerator")
    feed_share: float = _assumed(1.0, "items a second of N worker processes, against N times those of one")
    interconnect_gb: float = _assumed(50.0, "GB/s that an accelerator sends while gradients are summed")
    storage_gb: float = _assumed(2.0, "GB/s that the storage gives and takes, for all accelerators together")
    hour_mb: float = _assumed(160.0, "MB of an hour of sound; 16-bit wav has 317.5, FLAC about half")
    piece_seconds: float = _assumed(
        5.9, "seconds of a piece, read whole where a crop touches it; plain wav has 0"
    )

    @property
    def gflops(self) -> float:
        """GFLOP/s that an accelerator keeps up."""
        return self.peak_tflops * self.share_of_peak * 1e3


@dataclass(frozen=True)
class Cost:
    """What a task costs on so many accelerators, in hours by the clock.

    Attributes:
        accelerators: how many share each batch, or the files.
        compute: for the arithmetic.
        exchange: for sums of gradients, none of it hidden behind the arithmetic.
        feed: for the host's cores to make the items.
        storage: for reading, and writing where sound comes out.
        cores: host cores that would keep up with arithmetic and exchange, all together.
        gb_a_second: storage that would keep up, likewise.
        updates: of the weights in one pass; 0 where nothing is trained.
    """

    accelerators: int
    compute: float
    exchange: float
    feed: float
    storage: float
    cores: float
    gb_a_second: float
    updates: float

    @property
    def hours(self) -> float:
        """By the clock: arithmetic and exchange follow each other, feeding and storage go on beside them."""
        return max(self.compute + self.exchange, self.feed, self.storage)

    @property
    def accelerator_hours(self) -> float:
        """Hours of one accelerator."""
        return self.hours * self.accelerators

    @property
    def bound(self) -> str:
        """What the time is spent waiting for."""
        if self.hours == self.compute + self.exchange:
            return "arithmetic" if self.compute >= self.exchange else "exchange"
        return "host cores" if self.hours == self.feed else "storage"


def cost(task: Task, assumed: Assumed, accelerators: int) -> Cost:
    """The arithmetic of this page for one task."""
    compute = task.items * task.item_gflop / (assumed.gflops * accelerators) / 3600
    updates = task.items / (task.rows * accelerators) if task.rows else 0.0
    # A ring sends every number twice, but for the share that an accelerator holds itself.
    sent = 2 * (accelerators - 1) / accelerators * task.weights * GRADIENT_BYTES
    exchange = updates * sent / (assumed.interconnect_gb * 1e9) / 3600
    cpu_hours = task.items * task.item_cpu_ms / 1e3 / assumed.feed_share / 3600
    # A crop touches one piece, and with its length's share of a piece the next one too.
    read = task.item_seconds + (assumed.piece_seconds if task.rows else 0.0)
    moved = task.sources * read + (task.item_seconds if task.writes else 0.0)
    gigabytes = task.items * moved / 3600 * assumed.hour_mb / 1e3
    busy = compute + exchange
    return Cost(
        accelerators=accelerators,
        compute=compute,
        exchange=exchange,
        feed=cpu_hours / (assumed.cores * accelerators),
        storage=gigabytes / assumed.storage_gb / 3600,
        cores=cpu_hours / busy,
        gb_a_second=gigabytes / busy / 3600,
        updates=updates,
    )


def training_tasks(hours: float = 10_000, item_seconds: float = 3.0) -> tuple[Task, ...]:
    """One pass of each stage, every second of the speech in one crop; batches of the published presets."""
    return (
        Task("denoiser", hours, 134.0, item_seconds, 23.0, rows=32, weights=10_617_235, sources=2),
        Task("stage 1, with discriminator", hours, 680.7, item_seconds, 3.0, rows=16, weights=294_269_330),
        Task("stage 2", hours, 196.7, item_seconds, 46.0, rows=32, weights=79_603_667, sources=2),
    )


def cleaning_tasks(hours: float = 1_000_000, chunk: float = 30.0, overlap: float = 1.0) -> tuple[Task, ...]:
    """Enhancement and denoising of long recordings, in overlapping chunks as the command makes them."""
    hop, shared = chunk_sizes(chunk, overlap)
    done, row = hop / WAV_RATE, full_row(hop, shared) / WAV_RATE
    works = {"enhance, nfe 64": 1015.1, "enhance, nfe 8": 274.4, "denoise": 44.0}
    return tuple(
        Task(name, hours, gflop, done, 3.0 * done, overhead=row / done, writes=True)
        for name, gflop in works.items()
    )


def number(value: float) -> str:
    """Three digits, and no more zeros than need be."""
    if value and abs(value) < 0.001:
        return f"{value:.1e}"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def duration(hours: float) -> str:
    """In the unit that reads best, of which there are two at least, from seconds to years."""
    units = {"years": 24 * 365.25, "days": 24.0, "h": 1.0, "min": 1 / 60}
    for unit, length in units.items():
        if hours >= 2 * length:
            return f"{number(hours / length)} {unit}"
    return f"{number(hours * 3600)} s"


def table(tasks: Sequence[Task], assumed: Assumed, counts: Sequence[int] = ACCELERATORS) -> list[str]:
    """Markdown: a row for each task and number of accelerators."""
    lines = [
        "| | accelerators | by the clock | accelerator-hours | bound by | arithmetic | exchange |"
        " host cores that keep up | storage that keeps up | updates |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for task in tasks:
        for found in (cost(task, assumed, many) for many in counts):
            cells = (
                f"{task.name}, {number(task.hours)} h",
                str(found.accelerators),
                duration(found.hours),
                number(found.accelerator_hours),
                found.bound,
                duration(found.compute),
                duration(found.exchange) if found.exchange else "",
                number(found.cores),
                f"{number(found.gb_a_second * 1e3)} MB/s",
                number(found.updates) if found.updates else "",
            )
            lines.append(f"| {' | '.join(cells)} |")
    return lines


def page(assumed: Assumed) -> list[str]:
    """What stands in docs/scaling.md between the marks."""
    told = ", ".join(
        f"`--{one.name.replace('_', '-')} {getattr(assumed, one.name):g}`" for one in fields(Assumed)
    )
    lines = [f"With {told}:", "", "**Training**, one pass in crops of 3 s:", ""]
    lines += [
        *table(training_tasks(), assumed),
        "",
        "**Cleaning**, in chunks of 30 s that overlap by 1 s:",
        "",
    ]
    return [*lines, *table(cleaning_tasks(), assumed)]


def write_page(lines: Sequence[str], path: Path) -> None:
    """Put the tables into the page, between its marks."""
    text, made = path.read_text(encoding="utf-8"), "\n".join([BEGIN, *lines, END])
    text = re.sub(f"{re.escape(BEGIN)}.*{re.escape(END)}", lambda _: made, text, flags=re.DOTALL)
    path.write_text(text, encoding="utf-8")


def positive(text: str) -> float:
    """A number above zero, from the command line."""
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
    return value


def not_negative(text: str) -> float:
    """A number from zero on, from the command line."""
    return 0.0 if text == "0" else positive(text)


def count(text: str) -> int:
    """A whole number from one on, from the command line."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not 1 or more")
    return value


def main(words: Sequence[str] | None = None) -> None:
    """Print the tables for the assumptions that were given."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for one in fields(Assumed):
        kind = not_negative if one.name == "piece_seconds" else positive
        about = f"{one.metadata['about']} (%(default)s)"
        parser.add_argument(f"--{one.name.replace('_', '-')}", type=kind, default=one.default, help=about)
    parser.add_argument(
        "--training-hours", type=positive, default=10_000, help="of speech to train on (%(default)s)"
    )
    parser.add_argument("--cleaning-hours", type=positive, default=1_000_000, help="to clean (%(default)s)")
    parser.add_argument(
        "--accelerators", type=count, nargs="+", default=ACCELERATORS, help="how many, one or more numbers"
    )
    parser.add_argument("--write", action="store_true", help="put the default tables into docs/scaling.md")
    given = parser.parse_args(words)
    assumed = Assumed(**{one.name: getattr(given, one.name) for one in fields(Assumed)})
    if given.write:
        write_page(page(Assumed()), PAGE)
        return
    tasks = (*training_tasks(given.training_hours), *cleaning_tasks(given.cleaning_hours))
    print("\n".join(table(tasks, assumed, given.accelerators)))


if __name__ == "__main__":
    main()
