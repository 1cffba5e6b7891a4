"""`parivox plan`: what is asked, what is refused, what is said; and programs compiled for devices that are not here."""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from parivox import plan as planning
from parivox.cli import main, parse
from parivox.errors import BackendError, ConfigError
from parivox.hparams import DenoiserHParams
from parivox.plan import Plan, Request, chunk_samples, make_plan, remedies, with_stage
from parivox.plan_text import audio_seconds, describe, describe_attempts, step_seconds
from parivox.presets import preset
from parivox.topologies import CHIPS, parse_topology
from tests.plan_programs import WIDTH
from tests.rank_processes import ROOT, run_program

PROGRAM = "tests.plan_programs"
BESIDE = Path(sys.prefix, "plan")
"""Where `make setup` puts libtpu."""

needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None and not (BESIDE / "libtpu").is_dir(),
    reason="libtpu compiles for TPUs; make setup on Linux (x86-64), or pip install 'parivox[plan]'",
)
SMALL = ("denoise:denoiser_demo", "train:denoiser_demo")
LARGE = (
    *("train:denoiser", "train:enhancer_stage1", "train:enhancer_stage2"),
    *("denoise:denoiser", "enhance:enhancer_stage2"),
)
"""Task and preset of programs that are traced for a TPU."""


def request_of(*words: str) -> Request:
    return parse(["plan", *words]).request()


def fitting(peak: int = 2**30) -> Plan:
    memory = {"arguments": 2**20, "outputs": 0, "aliased": 0, "temporaries": peak, "code": 0, "peak": peak}
    return Plan(True, 4, {"parameters": 2**20}, memory, flops=1e12, accessed=1e9, seconds=0.5)


def too_large(needed: int, limit: int = 2**30) -> Plan:
    return Plan(False, 4, {"parameters": 2**20}, needed=needed, limit=limit)


def path_with_libtpu() -> str:
    return os.pathsep.join(filter(None, [str(ROOT), str(BESIDE), os.environ.get("PYTHONPATH")]))


def run_tpu(*words: str) -> list[dict]:
    told = run_program(PROGRAM, *words, **planning.DESCRIBED, PYTHONPATH=path_with_libtpu())
    return [json.loads(line) for line in told.splitlines()]


@pytest.mark.parametrize(
    ("name", "devices", "chips", "memory"),
    [
        ("v5e:4x4", 16, 16, 16),
        ("v6e:16x16", 256, 256, 32),
        ("v5p:8x8x4", 256, 256, 95),
        ("v4:2x2x1", 8, 4, 16),
    ],
)
def test_a_topology_has_devices_with_memory(name, devices, chips, memory):
    found = parse_topology(name)
    assert (found.devices, found.chips, found.memory) == (devices, chips, memory * 2**30)


def test_cpu_devices_have_no_memory_of_their_own():
    found = parse_topology("cpu:8")
    assert (found.devices, found.chips, found.memory, found.chip) == (8, 8, None, None)


@pytest.mark.parametrize("name", ["v5e", "v5e:3x3", "v9:2x2", "4x4", "cpu", "cpu:0", "cpu:x", "cpu:65"])
def test_an_unknown_topology_is_refused_with_those_that_are_known(name):
    with pytest.raises(ConfigError, match="--topology is") as caught:
        parse_topology(name)
    text = str(caught.value)
    assert "cpu:64" in text or all(f"{kind}:(" in text for kind in CHIPS)


def test_a_training_is_asked_for_as_the_command_has_it():
    words = ("train", "enhancer-stage2", "--topology", "v5e:4x4", "--batch", "2048", "--zero-stage", "3")
    request = request_of(*words, "--precision", "bf16")
    config = request.config()
    assert (request.task, request.hp, request.precision) == ("train", preset("enhancer_stage2"), "bf16")
    assert (config.train_batch_size, config.micro_batch_size, config.world_size) == (2048, 128, 16)
    assert config.zero_stage == 3 and audio_seconds(request) == 2048 * 3
    assert request_of("train", "denoiser", "--topology", "v5e:2x2").config().micro_batch_size == 128


def test_a_cleaning_is_asked_for_as_the_command_has_it():
    request = request_of("enhance", "--topology", "v6e:1x1", "--solver", "euler")
    assert (request.task, request.rows, request.samples) == ("enhance", 4, 30 * 44_100 + 441)
    assert (request.nfe, request.solver) == (64, "euler")
    assert request_of("denoise", "--topology", "cpu:1", "--chunk-seconds", "2").rows == 1
    again = Request.from_json(request.to_json())
    assert again == request


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["train", "denoiser", "--topology", "v5e:2x2", "--batch", "6"], "is 6, but"),
        (["train", "denoiser", "--topology", "v5e:2x2", "--batch", "0"], "--batch is 0"),
        (
            ["train", "denoiser", "--topology", "v5e:2x2", "--zero-stage", "4"],
            "zero_optimization.stage: is 4",
        ),
        (["train", "denoiser", "--topology", "cpu:2", "--preset", "enhancer_stage2"], "not denoiser"),
        (["denoise", "--topology", "cpu:2", "--zero-stage", "1"], "--zero-stage is not of denoise"),
        (["denoise", "--topology", "cpu:2", "--nfe", "8"], "--nfe is not of denoise"),
        (["enhance", "--topology", "cpu:2", "--nfe", "0"], "--nfe is 0"),
        (["train", "denoiser", "--topology", "cpu:2", "--backend", "torch"], "PyTorch compiles nothing"),
    ],
)
def test_what_cannot_be_planned_is_refused_in_one_line(capsys, words, told):
    assert main(["plan", *words]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("parivox: ") and told in line


def test_half_precision_of_the_enhancer_is_refused_as_in_training(tmp_path):
    path = tmp_path / "ds.json"
    given = {**preset("enhancer_stage2").deepspeed_config, "bf16": {"enabled": True}}
    path.write_text(json.dumps(given))
    with pytest.raises(BackendError, match="trained in float32"):
        request_of("train", "enhancer-stage2", "--topology", "cpu:2", "--deepspeed-config", str(path))


@pytest.mark.parametrize(
    ("platform", "told"), [("linux", r"pip install 'parivox\[plan\]'"), ("darwin", "for Linux alone")]
)
def test_a_missing_libtpu_is_named_with_its_remedy(monkeypatch, platform, told):
    monkeypatch.setattr(planning.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(planning.sys, "platform", platform)
    with pytest.raises(BackendError, match=told):
        planning.check_planner(parse_topology("v5e:2x2"), "jax")
    planning.check_planner(parse_topology("cpu:2"), "jax")


def test_a_failing_compiler_is_told_with_its_last_line(monkeypatch):
    ended = type("Ended", (), {"returncode": 1, "stderr": "a trace\nlibtpu is too old\n", "stdout": ""})
    monkeypatch.setattr(planning.subprocess, "run", lambda *_, **__: ended)
    with pytest.raises(BackendError, match="v5e:2x2: the compiler failed: libtpu is too old"):
        make_plan(request_of("denoise", "--topology", "v5e:2x2"))


def test_a_training_that_does_not_fit_is_made_smaller_until_it_does(monkeypatch):
    seen: list[Request] = []

    def compiled(request: Request) -> Plan:
        seen.append(request)
        config = request.config()
        return too_large(5 * 2**30) if config.micro_batch_size > 8 else fitting()

    monkeypatch.setattr(planning, "make_plan", compiled)
    request = request_of("train", "denoiser", "--topology", "v5e:2x2", "--preset", "denoiser")
    tried = remedies(request, too_large(5 * 2**30))
    assert [one.change for one in tried] == [
        "activation_checkpointing",
        "train_micro_batch_size_per_gpu 4, gradient_accumulation_steps 8",
    ]
    assert tried[-1].plan.fits and seen[-1].config().train_batch_size == request.config().train_batch_size
    text = describe_attempts(request, tried)
    assert "activation_checkpointing: needs 5.0 GiB of 1.0 GiB, does not fit" in text


def test_no_more_is_tried_than_asked_and_nothing_after_the_last_remedy(monkeypatch):
    monkeypatch.setattr(planning, "make_plan", lambda request: too_large(2**31))
    request = request_of("train", "enhancer-stage2", "--topology", "v5e:2x2", "--batch", "4")
    tried = remedies(request, too_large(2**31), most=5)
    assert [one.change for one in tried] == ["--zero-stage 1", "--zero-stage 2", "--zero-stage 3"]
    assert "more chips" in describe_attempts(request, tried)
    asked = request_of("denoise", "--topology", "v5e:1x1", "--chunk-seconds", "2")
    changes = [one.change for one in remedies(asked, too_large(2**31), most=9)]
    assert changes == ["--batch 2", "--batch 1", "--chunk-seconds 1"]


def test_a_plan_is_told_in_words_with_what_follows_from_it():
    request = request_of("train", "denoiser", "--topology", "v5e:2x2", "--batch", "128")
    text = describe(request, fitting())
    assert "128 records = 32 in a pass x 1 passes x 4 devices" in text
    assert "6%: fits" in text and "ESTIMATE" in text
    # 128 crops of 1 s in half a second, a million times, on four chips
    assert "256 s of sound a second" in text and "138.9 h, 555.6 chip-hours" in text
    plan = replace(fitting(), cycles=int(CHIPS["v5e"].clock or 0), loops=[32])
    assert step_seconds(request, plan) == pytest.approx(1.0)
    assert "loops that run 32 times" in describe(request, plan)
    assert "DOES NOT FIT" in describe(request, too_large(2**35, 2**34))
    assert "no estimate" in describe(request, replace(fitting(), seconds=None))


def test_figures_are_written_as_json(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(planning, "make_plan", lambda request: fitting())
    path = tmp_path / "plan.json"
    words = ["plan", "train", "denoiser", "--topology", "cpu:4", "--zero-stage", "2", "--json", str(path)]
    assert main(words) == 0
    found = json.loads(path.read_text())
    assert found["topology"] == "cpu:4" and found["memory"]["peak"] == 2**30 and found["tried"] == []
    assert found["deepspeed"]["zero_optimization"] == {"stage": 2}
    assert "ZeRO         stage 2" in capsys.readouterr().out


def seen(line: dict) -> set[str]:
    """Kinds of what chips exchange in a step of the small model, none of it in double precision."""
    kinds = line["kinds"]
    summed = sum(kinds.get(kind, [0, 0])[1] for kind in ("all-reduce", "reduce-scatter"))
    assert summed >= 22 * WIDTH * 4 and line["faults"] == [] and line["cycles"] > 0, line
    return set(kinds)


@needs_libtpu
def test_each_stage_is_seen_in_what_four_chips_exchange():
    lines = run_tpu("stages", "v5e:2x2")
    assert [line["stage"] for line in lines] == [0, 1, 2, 3]
    divided = {"all-reduce", "all-gather", "reduce-scatter"}
    assert [seen(line) for line in lines] == [{"all-reduce"}, {"all-reduce", "all-gather"}, divided, divided]
    # The third stage gathers before the pass what the second gathers after the update.
    assert lines[3]["kinds"]["all-gather"][0] > lines[2]["kinds"]["all-gather"][0]


@needs_libtpu
@pytest.mark.slow
def test_each_stage_is_seen_in_what_sixteen_and_256_chips_exchange():
    """Where a part is small the compiler does without scattering, at 256 chips also without gathering: it sums."""
    sixteen, many = (run_tpu("stages", name) for name in ("v5e:4x4", "v5e:16x16"))
    assert ["all-gather" in seen(line) for line in sixteen] == [False, True, True, True]
    assert sixteen[3]["kinds"]["all-gather"][0] > sixteen[2]["kinds"]["all-gather"][0]
    whole = [sum(size for _, size in line["kinds"].values()) for line in many if seen(line)]
    assert whole[0] < whole[1] <= whole[2]


@needs_libtpu
def test_no_program_for_a_tpu_has_double_precision_or_waits_for_the_host():
    lines = run_tpu("texts", *SMALL)
    assert [line["program"] for line in lines] == list(SMALL)
    assert all(line["faults"] == [] and line["lines"] > 1000 for line in lines)


@needs_libtpu
@pytest.mark.slow
def test_no_program_of_public_size_has_double_precision_or_waits_for_the_host():
    lines = run_tpu("texts", *LARGE)
    assert [line["program"] for line in lines] == list(LARGE)
    assert all(line["faults"] == [] and line["lines"] > 1000 for line in lines)


def test_a_cleaning_is_compiled_for_a_simulated_device():
    hp = DenoiserHParams(unet_hidden_dim=1)
    request = Request("denoise", hp, parse_topology("cpu:2"), rows=2, samples=chunk_samples(0.05))
    plan = make_plan(request)
    assert plan.fits and plan.devices == 1 and plan.host == [] and plan.collectives == {}
    assert plan.held["rows"] == 2 * request.samples * 4 and plan.flops > 0
    assert plan.memory["arguments"] == sum(plan.held.values())
    assert plan.float64  # of a CPU's Fourier transform, see jax_impl.features.spectra


@pytest.mark.slow
@pytest.mark.parametrize("stage", range(4))
def test_a_training_is_compiled_for_simulated_devices(stage):
    hp = DenoiserHParams(unet_hidden_dim=1, batch_size_per_gpu=1, training_seconds=0.05)
    request = Request("train", hp, parse_topology("cpu:4"), deepspeed=hp.deepspeed_config)
    plan = make_plan(with_stage(request, stage))
    kinds = set(plan.collectives)
    wanted = [{"all-reduce"}, {"all-reduce", "all-gather"}]
    assert kinds == (wanted[stage] if stage < 2 else {"all-reduce", "all-gather", "reduce-scatter"})
    whole = plan.held["parameters"] if stage < 3 else 0
    assert (plan.held["optimizer"] < whole) == (0 < stage < 3) and plan.host == []
    assert plan.memory["aliased"] >= plan.held["parameters"]


@needs_libtpu
@pytest.mark.slow
def test_a_cleaning_is_compiled_for_a_tpu(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", path_with_libtpu())
    hp = DenoiserHParams(unet_hidden_dim=1)
    request = Request("denoise", hp, parse_topology("v5e:1x1"), "bf16", rows=1, samples=chunk_samples(0.1))
    plan = make_plan(request)
    assert plan.fits and plan.float64 == [] and plan.host == [] and plan.cycles > 0
    assert step_seconds(request, plan)
