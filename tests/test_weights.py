"""Names, shapes and first values of the weights."""

from __future__ import annotations

import json

import numpy as np
import pytest

from jax_impl import weights as jax_weights
from parivox.errors import CheckpointError
from parivox.weights import HEAD, check_arrays, denoiser_specs, initial_denoiser, initial_tensor
from tests.train_folder import ROOT, first_arrays, plain_hparams
from torch_impl import weights as torch_weights

MANIFEST = ROOT / "parity_tests/reference/denoiser.manifest.json"


def shapes_of(hidden):
    return {name: spec.shape for name, spec in denoiser_specs(hidden).items()}


@pytest.mark.parametrize("hidden", [1, 2, 4, 16, 32])
@pytest.mark.parametrize("module", [jax_weights, torch_weights])
def test_modules_have_the_specified_tensors(module, hidden):
    assert module.named_shapes(hidden) == shapes_of(hidden)


def test_names_and_shapes_of_the_public_checkpoint():
    manifest = json.loads(MANIFEST.read_text())
    published = {name: tuple(shape) for name, shape in manifest.items() if name.startswith("net.")}
    assert len(published) == 186
    hidden = published["net.input_proj.weight"][0]
    assert shapes_of(hidden) == published


def test_first_weights_of_an_untouched_model():
    weights = initial_denoiser(0, 4, "published")
    for name, spec in denoiser_specs(4).items():
        tensor = weights[name]
        assert (tensor.dtype, tensor.shape) == (np.float32, spec.shape)
        if spec.fan_in:
            bound = np.float32(1 / np.sqrt(spec.fan_in))
            assert np.abs(tensor).max() <= bound
            if tensor.size >= 500:  # reaches both ends and has the spread of a uniform draw
                assert tensor.min() < -0.98 * bound
                assert tensor.max() > 0.98 * bound
                assert tensor.std() == pytest.approx(bound / np.sqrt(3), rel=0.1)
        else:
            assert (tensor == (1 if name.endswith("weight") else 0)).all()


def test_fan_in_is_what_one_output_sees():
    specs = denoiser_specs(4)
    for name, spec in specs.items():
        if len(spec.shape) == 4:
            assert spec.fan_in == np.prod(spec.shape[1:])
            assert specs[name.replace(".weight", ".bias")].fan_in == spec.fan_in


def test_each_tensor_has_its_own_draw():
    specs = denoiser_specs(2)
    weights = initial_denoiser(7, 2, "published")
    for name in reversed(specs):
        np.testing.assert_array_equal(initial_tensor(7, name, specs[name]), weights[name])
    drawn = [name for name, spec in specs.items() if spec.fan_in]
    assert len({weights[name].tobytes() for name in drawn}) == len(drawn)
    other = initial_denoiser(8, 2, "published")
    assert all((weights[name] != other[name]).any() for name in drawn)


def test_identity_start_differs_in_the_head_alone():
    identity, published = (initial_denoiser(3, 2, init) for init in ("identity", "published"))
    differing = [name for name in identity if (identity[name] != published[name]).any()]
    assert differing == [f"{HEAD}.weight", f"{HEAD}.bias"]
    np.testing.assert_array_equal(identity[f"{HEAD}.bias"], [2, 1, 0])
    np.testing.assert_array_equal(identity[f"{HEAD}.weight"], published[f"{HEAD}.weight"] * np.float32(0.1))


@pytest.mark.parametrize("init", ["identity", "published"])
def test_both_backends_take_and_give_the_same_numbers(init):
    import jax.numpy as jnp
    import torch

    weights = initial_denoiser(5, 2, init)
    back = [
        jax_weights.to_arrays(jax_weights.from_arrays(weights, 2, jnp.dtype("float32"))),
        torch_weights.to_arrays(torch_weights.from_arrays(weights, 2, torch.float32)),
    ]
    for arrays in back:
        assert arrays.keys() == weights.keys()
        for name, wanted in weights.items():
            np.testing.assert_array_equal(arrays[name], wanted)
            assert not np.shares_memory(arrays[name], wanted)


def test_check_lists_everything_at_once():
    arrays = initial_denoiser(0, 2)
    del arrays["net.head.0.bias"], arrays["net.input_proj.weight"]
    arrays["net.head.9.bias"] = np.zeros(3)
    arrays["net.head.2.bias"] = np.zeros(4)
    with pytest.raises(CheckpointError) as error:
        check_arrays(shapes_of(2), arrays, "the checkpoint")
    message = str(error.value)
    assert "\n" not in message
    assert message.startswith("the checkpoint does not fit this model")
    assert "2 missing: net.input_proj.weight, net.head.0.bias" in message
    assert "1 extra: net.head.9.bias" in message
    assert "1 of another shape: net.head.2.bias is (4,) but should be (3,)" in message


def test_check_accepts_any_order():
    arrays = initial_denoiser(0, 2)
    check_arrays(shapes_of(2), dict(reversed(arrays.items())), "the checkpoint")


@pytest.mark.parametrize("name", ["jax", "torch"])
@pytest.mark.parametrize("group", ["weights", "exp_avg", "exp_avg_sq"])
def test_backends_check_what_they_are_given(name, group):
    from parivox.backend import get_backend

    arrays = first_arrays()
    del getattr(arrays, group)["net.head.0.bias"]
    what = "the checkpoint" if group == "weights" else f"the checkpoint's {group}"
    with pytest.raises(CheckpointError, match=f"{what} does not fit this model.*1 missing: net.head.0.bias"):
        get_backend(name, device="cpu").create_state(plain_hparams(), arrays)
