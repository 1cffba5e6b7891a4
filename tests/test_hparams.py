"""Hyperparameters: the published values, the YAML form, and every refusal."""

from __future__ import annotations

import dataclasses
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from parivox import hparams_check
from parivox.data.draws import MIN_SAMPLES
from parivox.enhancer_tables import FRAME
from parivox.errors import ConfigError
from parivox.hparams import (
    VOCODER_HOP,
    DenoiserHParams,
    EnhancerHParams,
    HParams,
    check_same_run,
    differences,
)
from parivox.presets import PRESETS, default_hparams, describe_preset, preset
from parivox.stages import different_sizes, has_judge, is_judged, stage_of

CLASSES = (HParams, DenoiserHParams, EnhancerHParams)

BASE = {
    "fg_dir": Path("data/fg"),
    "bg_dir": Path("data/bg"),
    "rir_dir": Path("data/rir"),
    "load_fg_only": False,
    "praat_augment_prob": 0,
    "wav_rate": 44_100,
    "n_fft": 2048,
    "win_size": 2048,
    "hop_size": 420,
    "num_mels": 128,
    "stft_magnitude_min": 1e-4,
    "preemphasis": 0.97,
    "mix_alpha_range": (0.2, 0.8),
    "nj": 64,
    "training_seconds": 1.0,
    "batch_size_per_gpu": 16,
    "min_lr": 1e-5,
    "max_lr": 1e-4,
    "warmup_steps": 1000,
    "max_steps": 1_000_000,
    "gradient_clipping": 1.0,
}
DENOISER = BASE | {"batch_size_per_gpu": 128, "distort_prob": 0.5, "unet_hidden_dim": 16}
ENHANCER = BASE | {
    "cfm_solver_method": "midpoint",
    "cfm_solver_nfe": 64,
    "cfm_time_mapping_divisor": 4,
    "univnet_nc": 96,
    "lcfm_latent_dim": 64,
    "lcfm_training_mode": "ae",
    "lcfm_z_scale": 5,
    "vocoder_extra_dim": 32,
    "gan_training_start_step": 5_000,
    "enhancer_stage1_run_dir": None,
    "denoiser_run_dir": None,
    "force_gaussian_prior": False,
    "irmae_hidden_dim": 1024,
    "wn_hidden_dim": 512,
    "wn_layers": 30,
    "unet_hidden_dim": 16,
}


@pytest.mark.parametrize(("cls", "expected"), list(zip(CLASSES, (BASE, DENOISER, ENHANCER), strict=True)))
def test_fields_and_defaults(cls: type[HParams], expected: dict[str, Any]) -> None:
    made = cls()
    assert {field.name: getattr(made, field.name) for field in dataclasses.fields(made)} == expected
    with pytest.raises(dataclasses.FrozenInstanceError):
        made.nj = 1  # type: ignore[misc]


def test_stft_settings() -> None:
    found = [(c["n_fft"], c["hop_length"], c["win_length"]) for c in HParams().stft_cfgs]
    assert found == [(512, 100, 400), (1024, 256, 1024), (2048, 512, 2048)]


def test_other_rate_is_refused_by_name() -> None:
    other = HParams(wav_rate=16_000)
    with pytest.raises(AssertionError, match="16000"):
        _ = other.stft_cfgs
    with pytest.raises(ConfigError, match="16000"):
        HParams().replace(wav_rate=16_000)


def test_other_rate_is_refused_without_assert_statements() -> None:
    code = (
        "from parivox.hparams import HParams\n"
        "try: HParams(wav_rate=16_000).stft_cfgs\n"
        "except AssertionError as error: print('refused', error)\n"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    done = subprocess.run(
        [sys.executable, "-O", "-c", code], capture_output=True, text=True, check=True, env=environment
    )
    assert done.stdout.startswith("refused") and "16000" in done.stdout


def test_deepspeed_config() -> None:
    made = HParams(min_lr=0, max_lr=1, warmup_steps=3, max_steps=7, batch_size_per_gpu=5, gradient_clipping=2)
    assert made.deepspeed_config == {
        "train_micro_batch_size_per_gpu": 5,
        "optimizer": {"type": "Adam", "params": {"lr": 0.0}},
        "scheduler": {
            "type": "WarmupDecayLR",
            "params": {
                "warmup_min_lr": 0.0,
                "warmup_max_lr": 1.0,
                "warmup_num_steps": 3,
                "total_num_steps": 7,
                "warmup_type": "linear",
            },
        },
        "gradient_clipping": 2.0,
    }
    assert isinstance(made.deepspeed_config["optimizer"]["params"]["lr"], float)


@pytest.mark.parametrize("cls", CLASSES)
def test_every_number_has_a_range(cls: type[HParams]) -> None:
    for field in dataclasses.fields(cls):
        if isinstance(field.default, (int, float, tuple)) and not isinstance(field.default, bool):
            assert field.name in hparams_check.RANGES, field.name


@pytest.mark.parametrize("name", PRESETS)
def test_yaml_round_trip(name: str, tmp_path: Path) -> None:
    made = preset(name).replace(
        fg_dir="/some/speech folder", max_lr=3e-4, min_lr=1e-7, mix_alpha_range=[0, 1]
    )
    made.save(tmp_path / "new" / "hparams.yaml")
    back = type(made).load(tmp_path / "new" / "hparams.yaml")
    assert back == made and back.to_dict() == made.to_dict()
    assert [entry.name for entry in (tmp_path / "new").iterdir()] == ["hparams.yaml"]
    plain = yaml.safe_load((tmp_path / "new" / "hparams.yaml").read_text())
    assert plain["fg_dir"] == "/some/speech folder" and plain["mix_alpha_range"] == [0.0, 1.0]
    assert list(plain) == [field.name for field in dataclasses.fields(made)]


def test_none_is_null(tmp_path: Path) -> None:
    made = EnhancerHParams(gan_training_start_step=None)
    made.save(tmp_path / "h.yaml")
    assert "gan_training_start_step: null" in (tmp_path / "h.yaml").read_text()
    assert EnhancerHParams.load(tmp_path / "h.yaml").gan_training_start_step is None


@pytest.mark.parametrize("text", ["1e-4", "1E-4", "1e-04", "+1e-4", ".1e-3", "1.e-4", "0.0001", "1.0e-04"])
def test_numbers_as_people_write_them(text: str, tmp_path: Path) -> None:
    path = tmp_path / "h.yaml"
    path.write_text(f"max_lr: {text}\nmax_steps: 1e3\nwav_rate: 44_100\n")
    made = HParams.load(path)
    assert made.max_lr == 1e-4 and made.max_steps == 1000 and isinstance(made.max_steps, int)


def test_published_path_form_is_read_without_calling_python(tmp_path: Path) -> None:
    path = tmp_path / "h.yaml"
    path.write_text("fg_dir: !!python/object/apply:pathlib.PosixPath\n- /\n- speech\n- clean\n")
    assert HParams.load(path).fg_dir == Path("/speech/clean")
    path.write_text(f"fg_dir: !!python/object/apply:os.mkdir\n- {tmp_path / 'planted'}\n")
    with pytest.raises(ConfigError, match=r"os\.mkdir"):
        HParams.load(path)
    assert not (tmp_path / "planted").exists()


BAD_VALUES = [
    ("batch_size_per_gpu", -1, "1 or more"),
    ("batch_size_per_gpu", 2.5, "whole number"),
    ("batch_size_per_gpu", True, "whole number"),
    ("nj", "many", "whole number"),
    ("nj", None, "whole number"),
    ("min_lr", 1.0, "at most max_lr"),
    ("max_lr", math.nan, "a number"),
    ("max_lr", math.inf, "a number"),
    ("training_seconds", 0, "above 0"),
    ("mix_alpha_range", [0.8, 0.2], "low not above high"),
    ("mix_alpha_range", [0.2, 1.2], "from 0 to 1"),
    ("mix_alpha_range", [0.2], "two numbers"),
    ("mix_alpha_range", 0.5, "two numbers"),
    ("praat_augment_prob", 1.5, "from 0 to 1"),
    ("distort_prob", -0.1, "from 0 to 1"),
    ("load_fg_only", 1, "true or false"),
    ("fg_dir", 7, "a folder"),
    ("fg_dir", "", "a folder"),
    ("win_size", 4096, "at most n_fft"),
    ("unet_hidden_dim", 24, "multiple of 16"),
]


@pytest.mark.parametrize(("name", "value", "allowed"), BAD_VALUES)
def test_nonsense_is_refused(name: str, value: object, allowed: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=name) as caught:
        DenoiserHParams(**{name: value})  # type: ignore[arg-type]
    assert allowed in str(caught.value) and str(value) in str(caught.value)
    path = tmp_path / "h.yaml"
    path.write_text(yaml.safe_dump({name: value}))
    with pytest.raises(ConfigError, match=name) as caught:
        DenoiserHParams.load(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


BAD_ENHANCER_VALUES = [
    *((name, 0, "1 or more") for name in ("cfm_solver_nfe", "univnet_nc", "lcfm_latent_dim", "wn_layers")),
    *((name, 0, "1 or more") for name in ("vocoder_extra_dim", "irmae_hidden_dim", "wn_hidden_dim")),
    *(("lcfm_z_scale", value, "above 0") for value in (0, -1, math.inf)),
    ("cfm_time_mapping_divisor", 2, "above 2"),
    ("gan_training_start_step", -1, "0 or more"),
    ("irmae_hidden_dim", 48, "a multiple of 32"),
    ("unet_hidden_dim", 24, "multiple of 16"),
    ("hop_size", 256, "420, what the vocoder makes"),
    ("win_size", 1024, "n_fft, which is 2048"),
    ("enhancer_stage1_run_dir", "runs/one", "left out in the first stage"),
]


@pytest.mark.parametrize(("name", "value", "allowed"), BAD_ENHANCER_VALUES)
def test_nonsense_of_the_enhancer_is_refused(name: str, value: object, allowed: str) -> None:
    with pytest.raises(ConfigError, match=rf"{name} is .*{allowed}") as caught:
        EnhancerHParams.from_dict({name: value}, "file.yaml")
    assert str(caught.value).startswith("file.yaml: ") and str(value) in str(caught.value)


def test_a_frame_is_what_the_vocoder_makes_of_it() -> None:
    assert FRAME == VOCODER_HOP == EnhancerHParams().hop_size


@pytest.mark.parametrize("name", ["cfm_solver_method", "lcfm_training_mode"])
def test_words_are_from_a_list(name: str) -> None:
    with pytest.raises(ConfigError, match=f"{name} is 'heun'.*one of '"):
        EnhancerHParams(**{name: "heun"})  # type: ignore[arg-type]


def test_unknown_keys_are_all_listed(tmp_path: Path) -> None:
    path = tmp_path / "h.yaml"
    path.write_text("batch_size_per_gpus: 2\nzzzz: 1\nmax_lr: 1e-4\n")
    with pytest.raises(ConfigError) as caught:
        DenoiserHParams.load(path)
    assert "'batch_size_per_gpus' (did you mean 'batch_size_per_gpu'?), 'zzzz';" in str(caught.value)
    with pytest.raises(ConfigError, match="did you mean 'max_steps'"):
        HParams().replace(max_step=3)


@pytest.mark.parametrize(
    "content",
    [b"", b"# nothing\n", b"- a\n- b\n", b"max_lr: [", b"nj: 1\nnj: 2\n", b"\xff\xfe\x00", b"? [a]\n: 1\n"],
)
def test_files_that_are_no_hyperparameters(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "h.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"h\.yaml") as caught:
        HParams.load(path)
    assert "\n" not in str(caught.value)


def test_missing_file_and_unwritable_folder(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"absent\.yaml"):
        HParams.load(tmp_path / "absent.yaml")
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ConfigError, match="cannot be written"):
        HParams().save(tmp_path / "file" / "hparams.yaml")


def test_a_run_keeps_its_hyperparameters() -> None:
    begun = preset("denoiser")
    check_same_run(begun, DenoiserHParams(**begun.to_dict()), "RUN")
    given = begun.replace(max_lr=2e-4, nj=3)
    assert differences(begun, given) == [("nj", 64, 3), ("max_lr", 1e-4, 2e-4)]
    with pytest.raises(ConfigError) as caught:
        check_same_run(begun, given, "RUN")
    for word in ("hparams.yaml", "nj: run has 64, given is 3", "max_lr: run has 0.0001", "new run folder"):
        assert word in str(caught.value)
    assert ("cfm_solver_nfe", "(absent)", 64) in differences(begun, EnhancerHParams())


def test_presets() -> None:
    denoiser, stage1, stage2 = (preset(name) for name in ("denoiser", "enhancer_stage1", "enhancer_stage2"))
    assert differences(DenoiserHParams(), denoiser) == [
        ("training_seconds", 1.0, 3.0),
        ("batch_size_per_gpu", 128, 32),
    ]
    assert differences(EnhancerHParams(), stage1) == [("load_fg_only", False, True)]
    assert {name: new for name, _, new in differences(EnhancerHParams(), stage2)} == {
        "lcfm_training_mode": "cfm",
        "batch_size_per_gpu": 32,
        "training_seconds": 3.0,
        "gan_training_start_step": None,
        "lcfm_z_scale": 6.0,
        "praat_augment_prob": 0.2,
    }
    assert all(describe_preset(name) for name in PRESETS)
    assert default_hparams("enhancer-stage1") == stage1 and default_hparams("enhancer-stage2") == stage2
    with pytest.raises(ConfigError, match="denoiser_cpu"):
        preset("denoisr")


def test_small_presets_fit_each_other() -> None:
    """The second stage reads the first one's weights, and those of the narrow denoiser."""
    one, two = (preset(f"enhancer_stage{k}_small") for k in (1, 2))
    assert (stage_of(one), stage_of(two)) == ("enhancer-stage1", "enhancer-stage2")
    assert not different_sizes(one, two) and not different_sizes(two, preset("denoiser_demo"))
    assert one.wav_rate * one.training_seconds > 2 * MIN_SAMPLES
    assert has_judge(one) and not has_judge(two)
    assert not is_judged(one, one.warmup_steps) and is_judged(one, one.max_steps - 1)
