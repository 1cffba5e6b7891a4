"""What the second stage of an enhancer begins with: a first stage and a denoiser, each a run or a model in any form."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from parivox.backend import NamedArrays
from parivox.checkpoint import latest_checkpoint
from parivox.convert import convert
from parivox.errors import CheckpointError, ConfigError
from parivox.hparams import EnhancerHParams, HParams
from parivox.model_kinds import KINDS
from parivox.run_config import config_of
from parivox.run_start import FLOW, Beginning, first_checkpoint
from parivox.weights_enhancer import STATISTICS, buffer_names, initial_enhancer, trained_names
from tests.published import drawn, published, same
from tests.tiny_model import NARROW, enhancer_run, tiny_run

KIND = KINDS["enhancer"]
FIRST = NARROW.replace(lcfm_training_mode="ae")
FILTER = "vocoder.blocks.1.amp_block.2.1.upsample.filter"


def tensors_of(hp: HParams, dtype: str = "float16") -> NamedArrays:
    kind = KIND if isinstance(hp, EnhancerHParams) else KINDS["denoiser"]
    buffers = {name: array.astype(dtype) for name, array in kind.buffers(hp).items()}
    return drawn(kind.weights(hp), dtype) | buffers


def begin(hp: EnhancerHParams, message=pytest.fail) -> Beginning:
    return first_checkpoint(hp, 0, "identity", config_of(hp, None), message)


@pytest.mark.parametrize("form", ["public", "run", "one.safetensors"])
def test_every_form_of_the_first_stage_and_the_denoiser_serves(tmp_path, form):
    tensors = tensors_of(FIRST)
    tensors[FILTER] = (tensors[FILTER] * np.float16(1.5)).astype(np.float16)
    published(tmp_path / "public", FIRST, tensors)
    small = tiny_run(tmp_path / "small", KINDS["denoiser"].hparams(unet_hidden_dim=1))
    hp, place = NARROW.replace(enhancer_stage1_run_dir=tmp_path / form), tmp_path / form
    if form != "public":
        convert(tmp_path / "public", place, message=[].append)
    said: list[str] = []
    begun = begin(hp.replace(denoiser_run_dir=small), said.append)
    (line,) = said
    assert line.startswith(f"{place}: stored buffers differ from computed ones") and FILTER in line
    found = latest_checkpoint(small)
    assert found is not None
    fresh, cleaner = initial_enhancer(0, hp), found.arrays.weights
    assert begun.arrays.weights.keys() == fresh.keys() and begun.arrays.discriminator is None
    for name, array in begun.arrays.weights.items():
        wanted = fresh[name] if name.startswith(FLOW) else tensors[name].astype(np.float32)
        if name.startswith("denoiser."):
            wanted = cleaner[name.removeprefix("denoiser.")]
        assert array.dtype == np.float32 and array.tobytes() == wanted.tobytes(), name
    assert begun.arrays.exp_avg.keys() == {*trained_names(hp)}
    assert same(begun.buffers, {name: tensors[name] for name in buffer_names(hp)})
    origin = begun.origin["origin"]
    about = {"public": "the published layout", "one.safetensors": "one safetensors file"}
    assert origin["enhancer_stage1"] == {
        "folder": str(place),
        **({"form": about[form]} if form in about else {"step": 0}),
    }
    assert origin["denoiser"] == {"folder": str(small), "step": 0}


def test_a_published_denoiser_serves(tmp_path):
    other = KINDS["denoiser"].hparams(unet_hidden_dim=1)
    cleaner = tensors_of(other)
    published(tmp_path / "denoiser", other, cleaner)
    first = enhancer_run(tmp_path / "first", FIRST, step=7)
    begun = begin(NARROW.replace(enhancer_stage1_run_dir=first, denoiser_run_dir=tmp_path / "denoiser"))
    for name in KINDS["denoiser"].weights(other):
        assert (
            begun.arrays.weights[f"denoiser.{name}"].tobytes() == cleaner[name].astype(np.float32).tobytes()
        )
    assert begun.origin["origin"]["enhancer_stage1"] == {"folder": str(first), "step": 7}
    assert begun.buffers == {}, "a model that was trained here has none to hand on"


@pytest.mark.parametrize(
    ("said", "theirs", "changes", "error"),
    [
        ("of kind 'enhancer-stage2'; enhancer-stage1 is needed", NARROW, {}, ConfigError),
        ("of kind 'denoiser'; enhancer-stage1 is needed", KINDS["denoiser"].hparams(), {}, ConfigError),
        ("univnet_nc: it has 8, this run 4", FIRST.replace(univnet_nc=8), {}, ConfigError),
        (
            "has made no update yet",
            FIRST,
            {name: np.array(np.nan, np.float16) for name in STATISTICS},
            ConfigError,
        ),
        ("1 missing: dummy", FIRST, {"dummy": None}, CheckpointError),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(tmp_path: Path, said, theirs, changes, error):
    content = {**tensors_of(theirs), **changes}
    published(
        tmp_path / "model", theirs, {name: array for name, array in content.items() if array is not None}
    )
    with pytest.raises(error) as caught:
        begin(NARROW.replace(enhancer_stage1_run_dir=tmp_path / "model"))
    message = str(caught.value)
    assert said in message and str(tmp_path) in message and "\n" not in message


def test_there_must_be_a_first_stage():
    with pytest.raises(ConfigError, match="give --enhancer-stage1-run-dir"):
        begin(NARROW)
