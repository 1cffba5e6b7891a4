"""`parivox.load`: arrays and streams of any rate, from several threads, on the real backends and without any."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
import tracemalloc
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

import parivox
from parivox.audio import read_audio
from parivox.backend import BACKENDS, Backend, installed
from parivox.cleaner import Cleaner
from parivox.cli import main
from parivox.enhance import clean
from parivox.errors import AudioError, ConfigError
from parivox.hparams import DenoiserHParams
from parivox.loading import Loaded
from parivox.parallel import World
from parivox.rows import Place
from parivox.samples import checked_rate, checked_wav
from parivox.stream import clean_stream
from parivox.weights import initial_denoiser
from tests.tiny_model import enhancer_run, recording, tiny_run

ROOT = Path(__file__).parent.parent
HERE = [name for name in BACKENDS if installed(name)]
RATES = (8000, 16_000, 22_050, 44_100, 48_000, 96_000)
CHUNKS = {"chunk_seconds": 0.1, "overlap_seconds": 0.02}

needs_torch = pytest.mark.skipif("torch" not in HERE, reason="torch is quick, and not installed")


def noise(channels: int, length: int, seed: int = 0) -> np.ndarray:
    return 0.1 * np.random.default_rng(seed).standard_normal((channels, length), np.float32)


def blocks_of(wav: np.ndarray, seed: int = 1, longest: int = 3000) -> Iterator[np.ndarray]:
    """Cut into blocks of any length, some of them empty."""
    rng, begin = np.random.default_rng(seed), 0
    while begin < wav.shape[-1]:
        size = int(rng.integers(0, longest))
        yield wav[..., begin : begin + size]
        begin += size


class Numbered:
    """A model that is another one for every chunk, and hears what lies far before a sample."""

    batch, compiles = 1, False

    def __call__(self, wav: np.ndarray, lengths: np.ndarray | None, places: Sequence[Place]) -> np.ndarray:
        gains = np.float32([[0.5 + 0.1 * (place.chunk % 3)] for place in places])
        return gains * wav + np.float32(0.3) * np.roll(wav, 1000, axis=1)


@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("length", [1, 2, 441, 4410, 7938, 7939, 30_000])
def test_a_stream_gives_the_samples_of_the_whole(rate, length):
    wav = noise(2, length)
    whole = clean(wav, rate, Numbered(), **CHUNKS)
    for longest in (50 if length < 8000 else 3000, 10 * length):
        parts = list(clean_stream(blocks_of(wav, length, longest), rate, Numbered(), **CHUNKS))
        assert all(part.dtype == np.float32 and part.size for part in parts)
        # At every rate to the last bit: soxr gives of a stream what it gives of the whole.
        assert np.array_equal(np.concatenate(parts, axis=1), whole)


@pytest.mark.parametrize("overlap", [0.0, 0.05])
def test_a_stream_without_and_with_the_largest_overlap(overlap):
    wav, sizes = noise(1, 3 * 4410), {"chunk_seconds": 0.1, "overlap_seconds": overlap}
    parts = list(clean_stream(blocks_of(wav), 44_100, Numbered(), **sizes))
    assert np.array_equal(np.concatenate(parts, axis=1), clean(wav, 44_100, Numbered(), **sizes))
    assert len(parts) > 2


@pytest.mark.parametrize("rate", [16_000, 44_100])
def test_a_block_may_be_filled_anew_when_it_was_taken(rate):
    wav, block = noise(1, 30_000), np.empty((1, 1000), np.float32)

    def blocks() -> Iterator[np.ndarray]:
        for begin in range(0, 30_000, 1000):
            block[:] = wav[:, begin : begin + 1000]
            yield block

    out = np.concatenate(list(clean_stream(blocks(), rate, Numbered(), **CHUNKS)), axis=1)
    assert np.array_equal(out, clean(wav, rate, Numbered(), **CHUNKS))


def test_rows_without_channels_stay_so_and_nothing_gives_nothing():
    wav = noise(1, 9000)
    parts = list(clean_stream(blocks_of(wav[0]), 16_000, Numbered(), **CHUNKS))
    assert np.array_equal(np.concatenate(parts), clean(wav, 16_000, Numbered(), **CHUNKS)[0])
    assert list(clean_stream([], 16_000, Numbered())) == []
    assert list(clean_stream([wav[:, :0], wav[:, :0]], 16_000, Numbered())) == []


def peak_memory(chunks: int, rate: int) -> int:
    """Bytes that a stream of so many chunks needs at most."""
    block = noise(2, rate // 10)
    tracemalloc.start()
    count = sum(
        part.shape[1]
        for part in clean_stream(
            (block for _ in range(10 * chunks)), rate, lambda wav: wav, chunk_seconds=1.0, overlap_seconds=0.1
        )
    )
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 10 * chunks * block.shape[1]
    return peak


@pytest.mark.parametrize("rate", [16_000, 44_100])
def test_the_memory_of_a_stream_does_not_grow(rate):
    peak_memory(2, rate)  # tables that are made once
    assert peak_memory(25, rate) < 1.1 * peak_memory(5, rate)


def test_what_comes_out_comes_as_soon_as_a_chunk_is_full():
    taken = []

    def blocks() -> Iterator[np.ndarray]:
        for number in range(50):
            taken.append(number)
            yield noise(1, 441)

    next(clean_stream(blocks(), 44_100, Numbered(), **CHUNKS))
    assert len(taken) == 10  # of 10 ms each, and a chunk has 100


@pytest.mark.parametrize(
    ("wav", "said"),
    [
        (
            np.zeros(9, np.int16),
            "of int16; give floats with full scale -1 to 1: wav.astype('float32') / 2**15",
        ),
        (np.zeros(9, np.uint8), "of uint8; give floats"),
        (np.zeros(9, np.complex64), "of complex64"),
        (np.array(["a"]), "give floats"),
        (np.array(1.0), "the shape ()"),
        (np.zeros((1, 2, 9)), "the shape (1, 2, 9); give (t,) or (channels, t)"),
        (np.zeros((0, 9)), "the shape (0, 9)"),
        (np.zeros((44_100, 2)), "44100 channels of 2 samples; give (channels, t), such as wav.T"),
        (np.array([[0, 0, 0], [0, np.nan, 0]]), "NaN or infinite at sample 1 of channel 1"),
        (np.array([0, 1e300]), "NaN or infinite at sample 1 of channel 0"),
    ],
)
def test_samples_that_make_no_sense_are_one_line(wav, said):
    with pytest.raises(AudioError) as caught:
        checked_wav(wav)
    assert said in str(caught.value) and "\n" not in str(caught.value)
    with pytest.raises(AudioError, match=r"^block 1 "):
        list(clean_stream([noise(1, 9)[0], wav], 44_100, Numbered()))


@pytest.mark.parametrize("rate", [0, -1, 768_001, 44_100.0, True, "44100", None, float("nan")])
def test_a_rate_that_makes_no_sense_is_one_line(rate):
    with pytest.raises(AudioError, match="give a whole number of Hz, 1 to 768000"):
        checked_rate(rate)
    assert checked_rate(np.int64(8000)) == 8000


def test_blocks_of_other_shapes_are_named():
    for other in (noise(1, 9), noise(2, 9)[0]):
        with pytest.raises(AudioError, match=r"block 1 has the shape \(.*, unlike block 0"):
            list(clean_stream([noise(2, 9), other], 44_100, Numbered()))


def test_options_of_a_stream_are_checked_before_its_first_block():
    with pytest.raises(ConfigError, match="overlap"):
        clean_stream([], 44_100, Numbered(), chunk_seconds=1.0, overlap_seconds=0.6)
    with pytest.raises(AudioError, match="sample rate is 0"):
        clean_stream([], 0, Numbered())


class Alone(Backend):
    """A backend that notices when two threads are in it, or load the same model twice."""

    name, world, data_parallel, compiles = "torch", World(), 1, False

    def __init__(self) -> None:
        self.inside, self.most, self.loaded, self.calls = 0, 0, 0, 0

    def describe(self) -> dict[str, str]:
        return {"backend": "torch", "device": "cpu"}

    def load_denoiser(self, hp, weights) -> float:
        self.loaded += 1
        return 0.5

    def denoise(self, model, wav, lengths=None):
        self.inside += 1
        self.most = max(self.most, self.inside)
        time.sleep(0.002)
        self.inside -= 1
        self.calls += 1
        return model * wav


def test_threads_take_turns():
    hp, engine = DenoiserHParams(unet_hidden_dim=1), Alone()
    cleaner = Cleaner(Loaded(hp, initial_denoiser(0, 1), "made up"), engine, "a model")
    gate = threading.Barrier(8)

    def work(seed: int) -> bool:
        wav = noise(1, 30_000, seed)
        gate.wait(timeout=60)
        return np.allclose(cleaner.denoise(wav, 44_100, **CHUNKS), 0.5 * wav, rtol=1e-6)

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(work, range(8)))
    assert (engine.loaded, engine.most, engine.calls) == (1, 1, 8 * 9)
    assert repr(cleaner) == "<parivox.Cleaner: denoiser a model (made up), torch on cpu>"


# With real models


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    return enhancer_run(tmp_path_factory.mktemp("model") / "run", step=3)


@pytest.fixture(scope="module")
def cleaner(run) -> Cleaner:
    return parivox.load(run, "torch", message=pytest.fail)


@needs_torch
def test_arrays_sound_as_files_do(run, cleaner, tmp_path):
    source = recording(tmp_path / "in.wav", 16_000, 2, "FLOAT")
    wav, rate = read_audio(source)
    for words, out in (
        (("--denoise-only",), cleaner.denoise(wav, rate)),
        (("--nfe", "2", "--seed", "5", "--tau", "1"), cleaner.enhance(wav, rate, nfe=2, seed=5, tau=1.0)),
    ):
        more = (*words, "--run", str(run), "--backend", "torch")
        assert main(["enhance", str(source), str(tmp_path / "out.wav"), *more]) == 0
        assert np.array_equal(read_audio(tmp_path / "out.wav")[0], out)
        assert (out.shape, out.dtype) == (wav.shape, np.float32) and not np.array_equal(out, wav)


@needs_torch
def test_shapes_dtypes_and_rates_are_kept(cleaner):
    wav = noise(1, 3000)
    mono = cleaner.denoise(wav, 8000)
    assert np.array_equal(cleaner.denoise(wav[0], 8000), mono[0])
    assert np.array_equal(cleaner.denoise(wav[0].astype(np.float64), 8000), mono[0])
    assert cleaner.enhance(wav[0].astype(np.float16), 8000, nfe=1).dtype == np.float32
    assert wav.flags.writeable and np.array_equal(wav, noise(1, 3000))


@needs_torch
def test_streams_sound_as_arrays_do(cleaner):
    wav, sizes = noise(2, 12_000), {"chunk_seconds": 0.15, "overlap_seconds": 0.02}
    for rate in (44_100, 32_000):
        out = np.concatenate(list(cleaner.denoise_stream(blocks_of(wav), rate, **sizes)), axis=1)
        assert np.array_equal(out, cleaner.denoise(wav, rate, **sizes))
    options = {"nfe": 1, "solver": "euler", "lambd": 0.5, "tau": 0.2, "seed": 7, **sizes}
    out = np.concatenate(list(cleaner.enhance_stream(blocks_of(wav), 44_100, **options)), axis=1)
    assert np.array_equal(out, cleaner.enhance(wav, 44_100, **options))
    assert not np.array_equal(out, cleaner.enhance(wav, 44_100, **{**options, "seed": 8}))


@needs_torch
def test_threads_get_what_one_alone_gets(run):
    shared, wav = parivox.load(run, "torch", message=pytest.fail), noise(1, 6000)
    gate = threading.Barrier(4)

    def work(model: Cleaner, number: int) -> np.ndarray:
        if number % 2:
            return model.denoise(wav * number, 22_050, **CHUNKS)
        return model.enhance(wav, 44_100, nfe=1, seed=number, **CHUNKS)

    def together(number: int) -> np.ndarray:
        gate.wait(timeout=60)
        return work(shared, number)

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(together, range(4)))
    alone = parivox.load(run, "torch", message=pytest.fail)
    assert all(np.array_equal(sound, work(alone, number)) for number, sound in enumerate(found))


@pytest.mark.slow
@pytest.mark.skipif("jax" not in HERE, reason="jax is not installed")
def test_threads_share_a_model_of_jax(tmp_path):
    model, wav = parivox.load(tiny_run(tmp_path / "run"), "jax", "cpu"), noise(1, 8000)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: model.denoise(wav, 44_100), range(4)))
    assert all(np.array_equal(sound, found[0]) for sound in found) and np.abs(found[0]).max() > 0


@needs_torch
def test_a_denoiser_denoises_and_does_not_enhance(run, tmp_path):
    place = tiny_run(tmp_path / "denoiser")
    model = parivox.load(str(place), "torch")
    assert model.denoise(noise(1, 2000), 44_100).shape == (1, 2000)
    for call in (model.enhance, model.enhance_stream):
        with pytest.raises(ConfigError, match=f"{place}: holds a denoiser, which cannot enhance"):
            call(noise(1, 2000), 44_100)
    with pytest.raises(ConfigError, match="holds a denoiser"):
        parivox.load(place, "torch", denoise_only=False)
    half = parivox.load(run, "torch", denoise_only=True)
    assert repr(half).startswith("<parivox.Cleaner: denoiser ")


@needs_torch
def test_mistakes_are_one_line_each(cleaner):
    for call in (cleaner.denoise, cleaner.enhance):
        with pytest.raises(AudioError, match="int16"):
            call(np.zeros(9, np.int16), 44_100)
        with pytest.raises(AudioError, match="no samples"):
            call(np.zeros((2, 0)), 44_100)
        with pytest.raises(AudioError, match="sample rate is 0"):
            call(noise(1, 9), 0)
    with pytest.raises(ConfigError, match="nfe is 0"):
        cleaner.enhance_stream([], 44_100, nfe=0)


def run_python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_importing_parivox_is_light():
    code = "import sys, parivox; print('load' in dir(parivox), *{n.partition('.')[0] for n in sys.modules})"
    there, *loaded = run_python(code).split()
    assert there == "True"
    assert not {"numpy", "scipy", "soundfile", "soxr", "jax", "torch", "huggingface_hub"} & set(loaded)


def test_an_unknown_solver_is_one_line():
    code = """
from parivox.errors import ConfigError
from parivox.sampling import Sampling
try:
    Sampling(solver="heun")
except ConfigError as error:
    print(error)
"""
    assert run_python(code) == "--solver is 'heun'; use one of midpoint, euler, rk4\n"
