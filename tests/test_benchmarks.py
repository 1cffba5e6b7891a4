"""What the benchmarks compute beside times: order, arithmetic, plain layers, arguments. Never how fast anything is."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import __main__ as runner
from benchmarks.flops import denoiser_flops, enhancer_flops
from benchmarks.inference import told
from benchmarks.machine import in_process, in_turn, machine
from benchmarks.plain import PLAIN, plainly
from benchmarks.startup import programs
from benchmarks.training import AGAIN, CASES, batch_of, config_of
from parity_tests.rungs_signal import distance
from parity_tests.tolerances import bound
from parivox.enhancer_tables import TIME_WIDTH, kaiser_filter
from parivox.hparams import EnhancerHParams
from parivox.presets import preset
from parivox.stages import is_judged
from tests.tiny_model import NARROW


def test_contenders_take_turns_after_one_uncounted_run_of_each():
    calls: list[str] = []
    found = in_turn({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, repeats=3)
    assert calls == ["a", "b"] * 4
    assert set(found) == {"a", "b"}
    assert all(0 <= row["min"] <= row["median"] <= row["max"] for row in found.values())


def test_a_results_file_names_machine_versions_and_commit():
    assert {"cpu", "cpus", "platform", "python", "versions", "commit"} <= set(machine())
    json.dumps(machine())


def test_a_fresh_process_answers_on_its_last_line(tmp_path, monkeypatch):
    (tmp_path / "answering.py").write_text(
        "import json, os, sys\nprint('chatter')\nprint(json.dumps([sys.argv[1], os.environ['GIVEN']]))\n"
    )
    (tmp_path / "failing.py").write_text("raise SystemExit('no such thing')\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert in_process("answering", "word", environment={"GIVEN": "value"}) == ["word", "value"]
    with pytest.raises(SystemExit, match="no such thing"):
        in_process("failing")


def unet_flops(hidden: int, height: int, width: int) -> int:
    """By hand: twice the multiplications of each convolution, an image's size rounded up to multiples of 16."""
    height, width = -(-height // 16) * 16, -(-width // 16) * 16

    def conv(inputs: int, outputs: int, scale: int, taps: int = 9) -> int:
        return 2 * taps * inputs * outputs * (height // scale) * (width // scale)

    def block(inputs: int, outputs: int, scale: int) -> int:
        return conv(inputs, outputs, scale) + 4 * conv(outputs, outputs, scale)

    widths = [hidden * 2**i for i in range(5)]
    ends = conv(3, hidden, 1) + conv(hidden, hidden, 1) + conv(hidden, 3, 1, taps=1)
    down = sum(block(widths[i], widths[i + 1], 2**i) for i in range(4))
    up = sum(block(widths[i + 1], widths[i], 2**i) for i in range(4))
    return ends + down + 2 * block(widths[4], widths[4], 16) + up


@pytest.mark.parametrize("seconds", [0.5, 1])
def test_the_denoisers_arithmetic_is_that_of_its_convolutions(seconds):
    samples = int(seconds * 44_100)
    assert denoiser_flops(16, samples) == unet_flops(16, 841, samples // 420)


def flow_flops(hp: EnhancerHParams, frames: int, nfe: int) -> int:
    width, latent = hp.wn_hidden_dim, hp.lcfm_latent_dim
    layer = frames * (3 * width * 2 * width + width * 2 * width) + TIME_WIDTH * width
    net = hp.wn_layers * layer + frames * 2 * latent * width
    return 2 * (nfe * net + hp.wn_layers * frames * hp.num_mels * 2 * width)


@pytest.mark.parametrize("nfe", [2, 6])
def test_the_flows_arithmetic_grows_with_its_evaluations(nfe):
    found = enhancer_flops(NARROW, 20 * 420, nfe, "midpoint")
    assert found["flow"] == flow_flops(NARROW, 20, nfe)
    assert found["denoiser"] == denoiser_flops(NARROW.unet_hidden_dim, 20 * 420)


def test_shares_are_of_the_peak_and_of_the_published_share():
    row = told({"median": 2.0, "min": 1.0, "max": 3.0}, 4.0, 30e9, 100.0, "denoise")
    assert row["time_over_length"] == pytest.approx(0.5)
    assert row["share_of_peak"] == pytest.approx(0.15)
    assert row["over_published_share"] == pytest.approx(0.5)


def test_plain_layers_stand_in_and_go_again():
    from torch_impl.model import alias_free

    own = alias_free.twice
    with plainly("torch"):
        assert alias_free.twice is PLAIN["torch"]["torch_impl.model.alias_free", "twice"]
    assert alias_free.twice is own


def test_plain_layers_of_torch_compute_the_same_vocoder():
    from torch_impl.model.univnet import UnivNet

    torch.manual_seed(0)
    vocoder = UnivNet(8, 4).double()
    with torch.no_grad():
        for parameter in vocoder.parameters():
            parameter.normal_(0, 0.3)
        given = torch.randn(2, 8, 6).double(), torch.randn(2, 128, 16).double()
        own = vocoder(*given)
        with plainly("torch"):
            plain = vocoder(*given)
    assert distance(plain.numpy(), own.numpy()) <= bound("outputs", "float64")


def test_plain_layers_of_jax_compute_the_same():
    import jax
    import jax.numpy as jnp

    from jax_impl.model import alias_free, lvc

    draw = np.random.default_rng(0)
    with jax.enable_x64(True):
        x, taps = jnp.asarray(draw.standard_normal((2, 10, 3))), jnp.asarray(kaiser_filter())
        kernels = jnp.asarray(draw.standard_normal((2, 4, 3, 5, 3)))
        biases = jnp.asarray(draw.standard_normal((2, 4, 5)))
        for name, given in (("twice", (x, taps)), ("halve", (x, taps))):
            own, plain = getattr(alias_free, name), PLAIN["jax"]["jax_impl.model.alias_free", name]
            assert distance(np.asarray(plain(*given)), np.asarray(own(*given))) <= bound("outputs", "float64")
        plain = PLAIN["jax"]["jax_impl.model.lvc", "location_variable"]
        given = x, kernels, biases
        own = lvc.location_variable
        assert distance(np.asarray(plain(*given)), np.asarray(own(*given))) <= bound("outputs", "float64")


def test_cases_of_training_are_what_they_are_called():
    for name, case in CASES.items():
        hp = case.hparams(quick=True)
        assert is_judged(hp, 0) == ("GAN" in name)
        assert config_of(case, hp).checkpoint_activations == (case.config == AGAIN)
        batch = batch_of(hp, case.rows, 20)
        assert all(len(array) == case.rows for array in batch.values())
        assert batch["target"].shape == (case.rows, 20 * 420)
    assert case.hparams(quick=False).unet_hidden_dim == preset("enhancer_stage2").unet_hidden_dim


def test_programs_are_read_from_jaxs_log():
    log = """
    Finished tracing + transforming forward for pjit in 0.5 sec
    Finished XLA compilation of jit(forward) in 1.25 sec
    Finished XLA compilation of jit(broadcast_in_dim) in 2.5e-02 sec
    Finished XLA compilation of jit(forward) in 0.75 sec
    """
    assert programs(log) == {"forward": 2.0, "broadcast_in_dim": 0.025}


def test_the_runner_runs_each_part_in_a_process_of_its_own(tmp_path):
    found = runner.commands([], False, tmp_path)
    assert list(found) == runner.available()
    for part, command in found.items():
        assert command[:3] == [sys.executable, "-m", f"benchmarks.{part}"]
        assert command[-2:] == ["--json", str(tmp_path / f"{part}.json")]
    assert list(runner.commands(["startup"], False, tmp_path)) == ["startup"]
    assert "--quick" in runner.commands(["training"], True, tmp_path)["training"]
    assert "--quick" not in found["training"]


def test_the_runner_goes_on_after_a_part_that_fails(tmp_path, monkeypatch, capsys):
    ran: list[str] = []

    def run(command: list[str], check: bool) -> subprocess.CompletedProcess:
        ran.append(command[2].rpartition(".")[2])
        return subprocess.CompletedProcess(command, ran[-1] == "inference")

    monkeypatch.setattr(runner.subprocess, "run", run)
    asked = ["--only", "training", "--only", "inference", "--out", str(tmp_path)]
    assert runner.main(asked) == 1
    assert ran == ["inference", "training"]
    assert "failed: inference" in capsys.readouterr().err
    assert runner.main(["--only", "startup", "--out", str(tmp_path)]) == 0


def test_quick_figures_do_not_replace_measured_ones(monkeypatch):
    places: list[Path] = []
    monkeypatch.setattr(runner, "commands", lambda only, quick, folder: places.append(folder) or {})
    runner.main([])
    runner.main(["--quick"])
    assert places == [runner.RESULTS, runner.RESULTS / "quick"]


def test_the_runner_refuses_a_part_that_is_not_there(capsys):
    with pytest.raises(SystemExit, match="2"):
        runner.main(["--only", "nothing"])
    assert "invalid choice" in capsys.readouterr().err
