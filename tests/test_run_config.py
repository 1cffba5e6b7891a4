"""A run by a DeepSpeed config file: what the folder keeps, what is refused, what a dry run shows."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

from parivox.backend import first_arrays
from parivox.checkpoint import Checkpoint, digest_header, latest_checkpoint, load_checkpoint, save_checkpoint
from parivox.cli import main
from parivox.deepspeed_config import resolve
from parivox.dry_run import bytes_per_device, describe, parameter_count, sparkplot
from parivox.errors import ConfigError
from parivox.presets import preset
from parivox.run import meta_of
from parivox.run_config import differences
from parivox.runlog import read_metrics
from parivox.weights import initial_denoiser
from parivox.weights_discriminator import discriminator_specs
from parivox.weights_enhancer import enhancer_specs
from tests.test_cli import one_line
from tests.train_folder import HIDDEN, ToyBackend, plain_hparams, small_hparams, train, unequal

CONFIG = {
    "train_batch_size": 4,
    "gradient_accumulation_steps": 2,
    "optimizer": {"type": "AdamW", "params": {"lr": 3e-4, "weight_decay": 0.01}},
}


class SeeingBackend(ToyBackend):
    """Keeps the configs and the rows of the batches that it was given."""

    def __init__(self):
        super().__init__()
        self.configs, self.rows = [], set()

    def create_state(self, hp, arrays, config=None):
        self.configs.append(config)
        return super().create_state(hp, arrays, config)

    def step(self, state, batch):
        self.rows.add(len(batch["noisy"]))
        return super().step(state, batch)


@pytest.fixture
def hp(tmp_path):
    return small_hparams(tmp_path / "data", max_steps=4)


def written(path, config):
    path.write_text(json.dumps(config), encoding="utf-8")
    return path


def test_a_run_is_trained_by_its_config_and_keeps_it(tmp_path, hp):
    file, run, backend = written(tmp_path / "ds.json", CONFIG), tmp_path / "run", SeeingBackend()
    train(run, backend, hp, stop_at=2, deepspeed_config=file)
    file.unlink()
    assert json.loads((run / "deepspeed.json").read_text()) == CONFIG
    (run / "deepspeed.json").unlink()  # the checkpoint holds it too
    train(run, backend, hp)
    assert json.loads((run / "deepspeed.json").read_text()) == CONFIG
    first, second = backend.configs
    assert first == second == resolve(CONFIG)
    assert backend.rows == {4}
    found = latest_checkpoint(run)
    assert found is not None
    assert found.meta.data_position == {"records": 16}
    assert found.meta.schedule == {"type": None, "last_batch_iteration": 3}
    assert [line["step"] for line in read_metrics(run, "train")] == [1, 2, 3, 4]


def test_going_on_with_another_config_lists_every_difference(tmp_path, hp):
    file, run = written(tmp_path / "ds.json", CONFIG), tmp_path / "run"
    train(run, ToyBackend(), hp, stop_at=1, deepspeed_config=file)
    train(run, ToyBackend(), hp, stop_at=2, deepspeed_config=file)
    other = {**CONFIG, "train_batch_size": 8, "optimizer": {"type": "Adam", "params": {"lr": 3e-4}}}
    with pytest.raises(ConfigError) as error:
        train(run, ToyBackend(), hp, deepspeed_config=written(tmp_path / "other.json", other))
    for part in (
        "train_batch_size: run has 4, given is 8",
        'optimizer.type: run has "AdamW", given is "Adam"',
        "optimizer.params.weight_decay: run has 0.01, given is (absent)",
    ):
        assert part in str(error.value)
    assert "optimizer.params.lr" not in str(error.value)


def test_a_run_begun_without_takes_none_later(tmp_path, hp):
    run = tmp_path / "run"
    train(run, ToyBackend(), hp, stop_at=1)
    assert not (run / "deepspeed.json").exists()
    with pytest.raises(ConfigError, match="was begun without a DeepSpeed config"):
        train(run, ToyBackend(), hp, deepspeed_config=written(tmp_path / "ds.json", CONFIG))


def test_a_wrong_config_leaves_no_run_behind(tmp_path, hp):
    file, run = written(tmp_path / "ds.json", {**CONFIG, "gradient_cliping": 1.0}), tmp_path / "run"
    with pytest.raises(ConfigError, match="did you mean 'gradient_clipping'"):
        train(run, ToyBackend(), hp, deepspeed_config=file)
    assert not run.exists()


def test_numbers_are_compared_as_json_has_them():
    assert differences({"a": 1, "b": [1]}, {"a": 1.0, "b": [1]}) == []
    assert differences({"a": {"b": 1}}, {"a": {"b": True}}) == [("a.b", 1, True)]


def test_a_dry_run_shows_everything_and_does_nothing(tmp_path, capsys):
    cycle = {"cycle_min_lr": 1e-5, "cycle_max_lr": 1e-3, "cycle_first_step_size": 40}
    config = {
        **CONFIG,
        "scheduler": {"type": "OneCycle", "params": cycle},
        "bf16": {"enabled": True},
        "zero_optimization": {"stage": 2},
        "wall_clock_breakdown": False,
    }
    file, run = written(tmp_path / "ds.json", config), tmp_path / "run"
    words = [
        "train",
        "denoiser",
        str(run),
        "--deepspeed-config",
        str(file),
        "--dry-run",
        "--max-steps",
        "100",
    ]
    assert main(words) == 0
    text = capsys.readouterr().out
    assert not run.exists()
    for part in (
        "4 records = 2 in a pass x 2 passes x 1 devices",
        "adamw: lr 0.0003, weight_decay 0.01, betas (0.9, 0.999)",
        "bf16, float32 master weights",
        "stage 2: optimizer, gradients",
        "OneCycle",
        "10,617,235",
        "wall_clock_breakdown:",
    ):
        assert part in text
    assert sum(line.startswith("    |") for line in text.splitlines()) == 8


def test_a_dry_run_of_a_wrong_config_is_an_error(tmp_path, capsys):
    file = written(tmp_path / "ds.json", {"optimizer": {"type": "Muon"}, "train_batch_size": 4})
    assert (
        main(["train", "denoiser", str(tmp_path / "run"), "--deepspeed-config", str(file), "--dry-run"]) == 1
    )
    assert "4-D convolution kernels" in capsys.readouterr().err


def test_an_absent_config_is_one_line(tmp_path, capsys):
    words = ["train", "denoiser", str(tmp_path / "run"), "--deepspeed-config", str(tmp_path / "absent.json")]
    assert main(words) == 1
    assert "absent.json: cannot be read" in one_line(capsys)
    assert not (tmp_path / "run").exists()


def test_memory_of_a_device_is_as_zero_s_stages_say():
    hp = plain_hparams(unet_hidden_dim=16)
    count = parameter_count(hp)
    for stage, half in ((0, False), (1, False), (2, True), (3, True)):
        entries = {"zero_optimization": {"stage": stage}, "bf16": {"enabled": half}}
        found = bytes_per_device(hp, resolve({**CONFIG, **entries}), 8)
        width, words, eighth = (2, 3, -(-count // 8)) if half else (4, 2, -(-count // 8))
        assert found["optimizer"] == 4 * words * (eighth if stage >= 1 else count)
        assert found["gradients"] == width * (eighth if stage >= 2 else count)
        assert found["parameters"] == width * (eighth if stage >= 3 else count)


def test_a_plot_rises_with_its_values():
    lines = sparkplot([0.0, 1.0, 2.0, 4.0], rows=2)
    assert lines == ["   █", " ▄██"]
    assert sparkplot([0.0, 0.0], rows=1) == ["  "]


@pytest.mark.parametrize(("momentum", "kept"), [(0.0, ()), (0.9, ("exp_avg",))])
def test_a_checkpoint_holds_the_moments_that_there_are(tmp_path, momentum, kept):
    optimizer = resolve(
        {"train_batch_size": 4, "optimizer": {"type": "SGD", "params": {"momentum": momentum}}}
    ).optimizer
    arrays = first_arrays(initial_denoiser(0, HIDDEN), optimizer)
    save_checkpoint(tmp_path, Checkpoint(arrays, meta_of(plain_hparams(), 0, 0, 0)))
    found = latest_checkpoint(tmp_path)
    assert found is not None and unequal(found.arrays, arrays) == []
    assert (bool(found.arrays.exp_avg), bool(found.arrays.exp_avg_sq)) == ("exp_avg" in kept, False)


def test_a_checkpoint_from_before_there_was_a_loss_scale_still_loads(tmp_path):
    optimizer = resolve(CONFIG).optimizer
    arrays = first_arrays(initial_denoiser(0, HIDDEN), optimizer)
    path = save_checkpoint(tmp_path, Checkpoint(arrays, meta_of(plain_hparams(), 0, 0, 0)))
    with safe_open(path, framework="numpy") as file:
        header = dict(file.metadata())
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
    digests = json.loads(header.pop("digests"))
    del header["scaler"]
    header["digests"] = json.dumps({**digests, "header": digest_header(header)})
    save_file(tensors, path, metadata=header)
    found = load_checkpoint(path)
    assert found.arrays.scaler == {} and unequal(found.arrays, arrays) == []
    assert np.array_equal(found.arrays.weights["net.head.2.bias"], arrays.weights["net.head.2.bias"])


@pytest.mark.parametrize("stage", [1, 2])
def test_a_stage_of_the_enhancer_holds_weights_that_it_does_not_train(stage):
    hp = preset(f"enhancer_stage{stage}_small")
    config = resolve(hp.deepspeed_config, hparams=hp)
    one, eight = (bytes_per_device(hp, config, devices) for devices in (1, 8))
    every = 4 * sum(math.prod(spec.shape) for spec in enhancer_specs(hp).values())
    judge = 4 * sum(math.prod(spec.shape) for spec in discriminator_specs().values()) if stage == 1 else 0
    assert one["parameters"] + one["fixed"] == every + judge
    assert one["fixed"] == eight["fixed"] > 0
    assert describe(hp, config).count("fixed") == 1
