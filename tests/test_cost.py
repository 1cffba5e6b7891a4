"""`benchmarks.cost`: cases computed by hand, and what its figures rest on."""

from __future__ import annotations

import math

import numpy as np
import pytest

from benchmarks import cost as module
from benchmarks.cost import (
    BEGIN,
    END,
    PAGE,
    Assumed,
    Task,
    cleaning_tasks,
    cost,
    duration,
    main,
    number,
    training_tasks,
)
from benchmarks.cost import page as made_page
from parivox.chunks import split_chunks
from parivox.enhance import chunk_sizes
from parivox.presets import preset
from parivox.weights import denoiser_specs
from parivox.weights_discriminator import discriminator_specs
from parivox.weights_enhancer import enhancer_shapes, trained_names

# 3,600 items of 1 s, each 10 GFLOP and 50 ms of a core; 1e9 weights, whose gradients are 4 GB.
TASK = Task("made up", 1.0, 10.0, 1.0, 50.0, rows=6, weights=10**9, sources=2)
# 10 GFLOP take 10 ms; an hour of sound is 3.6 MB, so a second is 1 kB, and a crop of 1 s reads 2 s.
ASSUMED = Assumed(
    peak_tflops=2.0,
    share_of_peak=0.5,
    cores=10,
    feed_share=0.5,
    interconnect_gb=8.0,
    storage_gb=0.001,
    hour_mb=3.6,
    piece_seconds=1.0,
)


def test_one_accelerator_by_hand():
    found = cost(TASK, ASSUMED, 1)
    assert found.compute == pytest.approx(3600 * 0.01 / 3600)
    assert found.exchange == 0
    # 50 ms are 100 ms at half the share; 10 cores make 100 items a second.
    assert found.feed == pytest.approx(36 / 3600)
    # 2 crops of 2 s are 4 kB an item, and 1 MB/s gives 250 items a second.
    assert found.storage == pytest.approx(14.4 / 3600)
    assert found.cores == pytest.approx(10)
    assert found.gb_a_second == pytest.approx(400e-6)
    assert found.updates == pytest.approx(600)


def test_four_accelerators_by_hand():
    found = cost(TASK, ASSUMED, 4)
    assert found.compute == pytest.approx(9 / 3600)
    # 150 updates; each sends 2 * 3/4 * 4 GB = 6 GB at 8 GB/s.
    assert found.updates == pytest.approx(150)
    assert found.exchange == pytest.approx(150 * 0.75 / 3600)
    assert found.feed == pytest.approx(9 / 3600)
    assert found.hours == pytest.approx((9 + 112.5) / 3600)
    assert found.accelerator_hours == pytest.approx(4 * found.hours)
    assert found.bound == "exchange"


@pytest.mark.parametrize(
    ("changed", "bound"),
    [
        ({"storage_gb": 1.0, "cores": 100}, "arithmetic"),
        ({"storage_gb": 1.0, "cores": 1}, "host cores"),
        ({"storage_gb": 0.0001}, "storage"),
    ],
)
def test_what_bounds_it(changed, bound):
    found = cost(TASK, Assumed(**{**vars(ASSUMED), **changed}), 1)
    assert found.bound == bound
    assert found.hours == max(found.compute, found.feed, found.storage)


def test_cleaning_reads_and_writes_and_updates_nothing():
    found = cost(Task("made up", 1.0, 10.0, 1.0, 50.0, overhead=1.5, writes=True), ASSUMED, 2)
    assert found.compute == pytest.approx(3600 * 0.015 / 2 / 3600)
    assert (found.exchange, found.updates) == (0, 0)
    assert found.storage == pytest.approx(3600 * 2e-6 / 0.001 / 3600)


def test_a_million_hours_of_enhancement_by_hand():
    task = cleaning_tasks()[0]
    # Chunks of 30 s, one every 29 s, each followed by 10 ms: 3.6e9 s of sound are 3.6e9 / 29 rows of 30.01 s.
    assert task.overhead == pytest.approx(30.01 / 29)
    found = cost(task, Assumed(peak_tflops=100, share_of_peak=0.5), 8)
    assert found.compute == pytest.approx(3.6e9 * 30.01 / 29 * 1.0151e12 / (8 * 50e12) / 3600)
    assert found.bound == "arithmetic"


def test_two_hours_are_as_many_chunks_as_the_command_makes():
    hop, overlap = chunk_sizes(30.0, 1.0)
    # A view of one sample, so that two hours take no memory.
    chunks = split_chunks(np.broadcast_to(np.float32(0), (1, 2 * 3600 * 44_100)), hop, overlap)
    task = cleaning_tasks(hours=2)[0]
    assert len(chunks) == math.ceil((2 * 3600 - 1) / task.item_seconds) == 249
    assert len(chunks) == pytest.approx(task.items, abs=1)


def test_the_weights_are_those_of_the_models():
    def size(shapes):
        return sum(math.prod(shape) for shape in shapes)

    one, two = preset("enhancer_stage1"), preset("enhancer_stage2")
    judge = size(spec.shape for spec in discriminator_specs().values())
    weights = [
        size(spec.shape for spec in denoiser_specs(16).values()),
        size(enhancer_shapes(one)[name] for name in trained_names(one)) + judge,
        size(enhancer_shapes(two)[name] for name in trained_names(two)),
    ]
    assert [task.weights for task in training_tasks()] == weights
    assert [task.rows for task in training_tasks()] == [
        preset(name).batch_size_per_gpu for name in ("denoiser", "enhancer_stage1", "enhancer_stage2")
    ]


def test_the_arithmetic_is_what_the_counter_counts():
    flops = pytest.importorskip("benchmarks.flops", reason="PyTorch counts")
    counted = flops.training(preset("denoiser").replace(training_seconds=3))
    assert training_tasks()[0].gflop == pytest.approx(counted.both, abs=0.1)
    assert counted.backward == pytest.approx(2 * counted.forward, rel=0.01)
    assert cleaning_tasks()[2].gflop == pytest.approx(flops.denoising(preset("denoiser"), 30), abs=0.1)


@pytest.mark.slow
def test_the_arithmetic_of_the_enhancer_is_what_the_counter_counts():
    flops = pytest.importorskip("benchmarks.flops", reason="PyTorch counts")
    for task, name in zip(training_tasks()[1:], ("enhancer_stage1", "enhancer_stage2"), strict=True):
        counted = flops.training(preset(name).replace(training_seconds=3))
        assert task.gflop == pytest.approx(counted.both, abs=0.1)
    for task, nfe in zip(cleaning_tasks(), (64, 8), strict=False):
        assert task.gflop == pytest.approx(flops.enhancing(preset("enhancer_stage2"), 30, nfe), abs=0.1)


@pytest.mark.parametrize(
    ("hours", "told"),
    [(0.0001, "0.36 s"), (0.01, "36 s"), (0.5, "30 min"), (47, "47 h"), (48, "2 days"), (17_532, "2 years")],
)
def test_durations(hours, told):
    assert duration(hours) == told


@pytest.mark.parametrize(
    ("value", "told"), [(0, "0"), (12_345.6, "12,346"), (1.2345, "1.23"), (1e-5, "1.0e-05")]
)
def test_numbers(value, told):
    assert number(value) == told


def test_the_page_has_the_tables_that_the_command_makes():
    text = PAGE.read_text(encoding="utf-8")
    kept = text[text.index(BEGIN) : text.index(END) + len(END)]
    assert kept == "\n".join([BEGIN, *made_page(Assumed()), END]), "python -m benchmarks.cost --write"


def test_write_replaces_what_is_between_the_marks(tmp_path, monkeypatch):
    page = tmp_path / "page.md"
    page.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n", encoding="utf-8")
    monkeypatch.setattr(module, "PAGE", page)
    main(["--write"])
    text = page.read_text(encoding="utf-8")
    assert text.startswith("before\n") and text.endswith("\nafter\n")
    assert "| denoiser, 10,000 h | 256 |" in text and "old" not in text


def test_options_change_the_table(capsys):
    main(["--peak-tflops", "100", "--share-of-peak", "0.5", "--accelerators", "4", "--training-hours", "100"])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 + len(training_tasks()) + len(cleaning_tasks())
    # 100 h * 3,600 s * 134 GFLOP / (4 * 50 TFLOP/s) = 241.2 s.
    assert lines[2].startswith("| denoiser, 100 h | 4 |") and "| 4.02 min |" in lines[2]


@pytest.mark.parametrize("words", [["--share-of-peak", "0"], ["--cores", "-1"], ["--accelerators", "0"]])
def test_nonsense_is_refused(words, capsys):
    with pytest.raises(SystemExit):
        main(words)
    assert "is not" in capsys.readouterr().err
