"""`parivox train denoiser` up to the training loop: hyperparameters, options, errors."""

from __future__ import annotations

import dataclasses
import typing
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import pytest

from parivox import backend, train
from parivox.cli import main, parse
from parivox.commands.train import ABOUT, MEANINGS
from parivox.errors import ConfigError
from parivox.hparams import DenoiserHParams
from parivox.parallel import World
from parivox.presets import preset
from parivox.stages import STAGES, hparams_class, stage_of
from parivox.train import TrainOptions
from tests.test_cli import one_line, text_of_help

CHANGED: dict[str, list[str]] = {
    "load_fg_only": ["--load-fg-only"],
    "mix_alpha_range": ["--mix-alpha-range", "0.3", "0.6"],
    "praat_augment_prob": ["--praat-augment-prob", "0.25"],
    "unet_hidden_dim": ["--unet-hidden-dim", "32"],
    "win_size": ["--win-size", "1024"],
}
"""Hyperparameter -> an option that changes it, where "one more" is not a legal value."""


def asked(*words: str) -> DenoiserHParams | None:
    """What a training command asks for."""
    return parse(["train", "denoiser", *words]).hparams()


def option(field: dataclasses.Field[Any]) -> list[str]:
    """An option that gives a hyperparameter another value than its default."""
    flag = f"--{field.name.replace('_', '-')}"
    if field.name in CHANGED:
        return CHANGED[field.name]
    value = "elsewhere" if isinstance(field.default, Path) else str(field.default / 2)
    return [flag, str(field.default + 1) if type(field.default) is int else value]


@pytest.mark.parametrize("stage", STAGES)
def test_every_hyperparameter_is_explained_and_an_option(capsys, stage):
    names = {field.name for field in dataclasses.fields(hparams_class(stage))} - {"lcfm_training_mode"}
    assert names <= set(MEANINGS)
    text = text_of_help(capsys, "train", stage)
    assert all(f"--{name.replace('_', '-')}" in text for name in names)
    assert ABOUT[stage] in text


def test_stages_take_their_own_presets_and_options(tmp_path):
    words = ["train", "enhancer-stage2", str(tmp_path / "run"), "--lcfm-z-scale", "3.5", "--wn-layers", "7"]
    hp = parse([*words, "--preset", "enhancer_stage2_small"]).hparams()
    assert (hp.lcfm_training_mode, hp.lcfm_z_scale, hp.wn_layers) == ("cfm", 3.5, 7)
    assert parse(words[:3]).hparams() == preset("enhancer_stage2")
    with pytest.raises(
        ConfigError, match="'enhancer_stage1' trains enhancer-stage1, not enhancer-stage2; use one"
    ):
        parse([*words, "--preset", "enhancer_stage1"]).hparams()
    preset("enhancer_stage1_small").save(tmp_path / "one.yaml")
    with pytest.raises(ConfigError, match=r"one\.yaml: is of enhancer-stage1, not of enhancer-stage2"):
        parse([*words, "--config", str(tmp_path / "one.yaml")]).hparams()


def test_none_is_a_value_where_there_may_be_none(tmp_path, capsys):
    words = ["train", "enhancer-stage1", str(tmp_path / "run"), "--gan-training-start-step"]
    assert parse([*words, "None"]).hparams().gan_training_start_step is None
    assert parse([*words, "7"]).hparams().gan_training_start_step == 7
    words[1], words[3] = "enhancer-stage2", "--denoiser-run-dir"
    preset("enhancer_stage2").replace(denoiser_run_dir="runs/one").save(tmp_path / "two.yaml")
    config = ["--config", str(tmp_path / "two.yaml")]
    assert parse([*words[:3], *config]).hparams().denoiser_run_dir == Path("runs/one")
    assert parse([*words, "None", *config]).hparams().denoiser_run_dir is None
    with pytest.raises(SystemExit):
        parse([*words[:1], "enhancer-stage1", words[2], "--gan-training-start-step", "never"])
    capsys.readouterr()


@pytest.mark.parametrize("field", dataclasses.fields(DenoiserHParams), ids=lambda field: field.name)
def test_an_option_changes_its_hyperparameter_alone(tmp_path, field):
    run = str(tmp_path / "run")
    if field.name == "wav_rate":
        with pytest.raises(ConfigError, match="wav_rate is 44101"):
            asked(run, *option(field))
        return
    changed, plain = asked(run, *option(field)), asked(run)
    assert changed is not None and plain == DenoiserHParams()
    differing = [
        f.name for f in dataclasses.fields(plain) if getattr(plain, f.name) != getattr(changed, f.name)
    ]
    assert differing == [field.name]


def test_options_go_before_a_preset_and_before_a_file(tmp_path):
    hp = asked(
        str(tmp_path / "run"), "--preset", "denoiser_cpu", "--max-steps", "7", "--mix-alpha-range", "0", "1"
    )
    assert hp == preset("denoiser_cpu").replace(max_steps=7, mix_alpha_range=(0, 1))
    (tmp_path / "hp.yaml").write_text("nj: 3\nmax_lr: 0.002\n")
    hp = asked(str(tmp_path / "run"), "--config", str(tmp_path / "hp.yaml"), "--nj", "0", "--no-load-fg-only")
    assert hp == DenoiserHParams(nj=0, max_lr=0.002)


def test_a_run_with_hyperparameters_of_its_own_keeps_them(tmp_path):
    own = DenoiserHParams(max_steps=9, nj=1)
    own.save(tmp_path / "hparams.yaml")
    assert asked(str(tmp_path)) is None
    assert asked(str(tmp_path), "--nj", "1") == own
    assert asked(str(tmp_path), "--nj", "2") == own.replace(nj=2)
    assert asked(str(tmp_path), "--preset", "denoiser") == preset("denoiser")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--preset", "denoiser", "--config", "x.yaml"], "--config and --preset"),
        (["--preset", "enhancer_stage1"], "'enhancer_stage1' trains enhancer-stage1, not denoiser"),
        (["--preset", "denoizer"], "denoizer"),
        (["--config", "absent.yaml"], "absent.yaml"),
        (["--max-steps", "0"], "max_steps is 0"),
        (["--mix-alpha-range", "0.8", "0.2"], "mix_alpha_range"),
        (["--checkpoint-every", "0"], "checkpoint_every is 0"),
        (["--stop-at", "0"], "stop_at is 0"),
        (["--eval-every", "-1"], "eval_every is -1"),
        (["--seed", "-1"], "seed is -1"),
        (["--seed", "4294967296"], "seed is 4294967296"),
        (["--keep", "0"], "keep is 0"),
    ],
)
def test_a_bad_option_is_one_line_and_leaves_nothing_behind(tmp_path, monkeypatch, capsys, words, said):
    monkeypatch.chdir(tmp_path)
    assert main(["train", "denoiser", "run", *words]) == 1
    assert said in one_line(capsys)
    assert list(tmp_path.iterdir()) == []


class NoBackend:
    """Stands where a backend is opened and must not be used."""

    name = "jax"
    world, data_parallel, compiles = World(), 1, False

    def _refuse(self, *arguments: Any) -> Any:
        raise AssertionError("the backend was used")

    describe = create_state = step = export_state = evaluate = load_denoiser = denoise = _refuse
    gather = load_enhancer = enhance = _refuse

    def share(self, text: str) -> str:
        return text

    def agree(self, flag: int) -> int:
        return flag


@pytest.fixture
def no_backend(monkeypatch) -> NoBackend:
    found = NoBackend()
    monkeypatch.setattr(backend, "get_backend", lambda name, **options: found)
    return found


def test_a_mistyped_data_folder_leaves_no_run_behind(tmp_path, no_backend, capsys):
    run = tmp_path / "run"
    assert main(["train", "denoiser", str(run), "--fg-dir", str(tmp_path / "absent")]) == 1
    assert str(tmp_path / "absent") in one_line(capsys)
    assert not run.exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["enhancer-stage1", "--training-seconds", "0.04"], "training_seconds is 0.04"),
        (["enhancer-stage2", "--hop-size", "256"], "hop_size is 256; it must be 420"),
        (["enhancer-stage1", "--enhancer-stage1-run-dir", "x"], "enhancer_stage1_run_dir is x"),
    ],
)
def test_what_the_enhancer_cannot_train_leaves_no_run_behind(tmp_path, no_backend, capsys, words, said):
    run = tmp_path / "run"
    assert main(["train", words[0], str(run), *words[1:]]) == 1
    assert said in one_line(capsys)
    assert not run.exists()


def test_going_on_with_other_hyperparameters_lists_every_difference(tmp_path, no_backend, capsys):
    DenoiserHParams().save(tmp_path / "hparams.yaml")
    assert main(["train", "denoiser", str(tmp_path), "--n-fft", "4096", "--max-lr", "0.5", "--nj", "64"]) == 1
    line = one_line(capsys)
    assert "n_fft: run has 2048, given is 4096" in line and "max_lr: run has 0.0001, given is 0.5" in line
    assert "nj" not in line


@pytest.fixture
def trained(monkeypatch) -> list[tuple]:
    """The arguments of each training; none is done. The run named `stopped` is stopped by SIGTERM."""
    seen = []

    def get_backend(name, **options):
        return SimpleNamespace(world=World(), asked=(name, options))

    def train_run(folder, backend, hp, options, stage):
        seen.append((folder, backend.asked, hp, options, stage))
        return {"stopped_by": "SIGTERM" if folder.name == "stopped" else None}

    monkeypatch.setattr(backend, "get_backend", get_backend)
    monkeypatch.setattr(train, "train", train_run)
    return seen


def test_training_gets_every_option(tmp_path, trained, capsys):
    words = [
        "--backend",
        "torch",
        "--device",
        "gpu",
        "--precision",
        "tf32",
        "--seed",
        "5",
        "--init",
        "published",
        "--stop-at",
        "6",
        "--workers",
        "2",
        "--checkpoint-every",
        "7",
        "--keep",
        "8",
        "--permanent-every",
        "9",
        "--eval-every",
        "10",
    ]
    run = tmp_path / "run"
    assert main(["train", "denoiser", str(run), *words]) == 0
    wanted = TrainOptions(6, 5, "published", 2, 7, 8, 9, 10)
    assert {field.name for field in dataclasses.fields(TrainOptions)} == wanted.__dict__.keys()
    asked = {"device": "gpu", "precision": "tf32", "dtype": "float32", "world": World()}
    assert trained == [(run, ("torch", asked), DenoiserHParams(), wanted, "denoiser")]
    assert f"--run {run}" in capsys.readouterr().out


def test_training_without_options_takes_the_loop_s_own(tmp_path, trained):
    assert main(["train", "denoiser", str(tmp_path / "run")]) == 0
    (call,) = trained
    name, asked = call[1]
    assert name == backend.default_backend()
    assert asked == {"device": "auto", "precision": "highest", "dtype": "float32", "world": World()}
    assert call[3] == TrainOptions() and call[4] == "denoiser"


@pytest.mark.parametrize("stage", STAGES)
def test_each_stage_is_trained_by_its_own_command(tmp_path, trained, capsys, stage):
    assert main(["train", stage, str(tmp_path / "run")]) == 0
    assert trained[0][4] == stage and stage_of(trained[0][2]) == stage
    assert {"denoiser": "--denoise-only", "enhancer-stage1": "enhancer-stage2"}.get(
        stage, "parivox enhance"
    ) in (capsys.readouterr().out)


def test_flags_say_which_process_this_is(tmp_path, trained, capsys):
    words = ["--coordinator", "node0:1234", "--num-processes", "2", "--process-id", "1"]
    assert main(["train", "denoiser", str(tmp_path / "run"), "--backend", "jax", *words]) == 0
    assert trained[0][1][1]["world"] == World(1, 2, 0, "node0:1234")
    assert main(["train", "denoiser", str(tmp_path / "run"), "--backend", "jax", "--distributed"]) == 0
    assert trained[1][1][1]["world"] == World(detect=True)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["jax", "--coordinator", "node0:1234"], "--coordinator given without --num-processes, --process-id"),
        (["torch", "--distributed"], "--distributed: belong to JAX"),
        (
            ["jax", "--distributed", "--process-id", "0"],
            "--distributed finds out what --process-id would say",
        ),
        (
            ["jax", "--coordinator", "node0", "--num-processes", "2", "--process-id", "1"],
            "--coordinator is 'node0'",
        ),
    ],
)
def test_half_a_world_is_refused_before_anything_is_done(tmp_path, trained, capsys, words, said):
    assert main(["train", "denoiser", str(tmp_path / "run"), "--backend", *words]) == 1
    assert said in one_line(capsys)
    assert trained == [] and not (tmp_path / "run").exists()


def test_a_run_that_a_signal_stopped_is_not_a_success(tmp_path, trained):
    assert main(["train", "denoiser", str(tmp_path / "stopped")]) == 128 + 15


def test_the_parser_gives_each_option_the_type_of_its_hyperparameter():
    made = parse(["train", "denoiser", "run"])
    kinds = typing.get_type_hints(type(made))
    for name, kind in typing.get_type_hints(DenoiserHParams).items():
        assert kinds[name] == kind | None and getattr(made, name) is None
    assert kinds["init"] == Literal["identity", "published"]
