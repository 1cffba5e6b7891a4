"""The UNet of the PyTorch backend for inference on a CPU: images with channels last, memory written over."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")

from parity_tests.rungs_signal import distance  # noqa: E402 (after the check for torch)
from torch_impl.model import layers  # noqa: E402
from torch_impl.model.layers import GroupNorm  # noqa: E402
from torch_impl.model.unet import UNet  # noqa: E402


def filled(module, seed=0):
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
    return module


def image(*shape, mean=0.0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(1)
    centre = mean * torch.rand(shape[1], 1, 1, generator=generator, dtype=dtype)
    return torch.randn(shape, generator=generator, dtype=dtype) + centre


@pytest.mark.parametrize("mean", [0.0, 5.0])
@pytest.mark.parametrize("chain", [1, 7, 64, 2048])
@pytest.mark.parametrize("shape", [(1, 32, 53, 7), (3, 16, 12, 10), (2, 48, 1, 1), (1, 2, 5, 5)])
def test_a_norm_of_channels_last_is_the_norm(shape, chain, mean, monkeypatch):
    monkeypatch.setattr(layers, "CHAIN", chain)
    norm, x = filled(GroupNorm(max(1, shape[1] // 16), shape[1]).double()), image(*shape, mean=mean)
    last = x.contiguous(memory_format=torch.channels_last)
    wanted = norm(x).detach()
    with torch.no_grad():
        found = norm(last)
        assert found.data_ptr() != last.data_ptr()
        written_over = norm(last.clone(memory_format=torch.preserve_format), spare=True)
    assert torch.equal(last, x)
    assert distance(found.numpy(), wanted.numpy()) < 1e-13
    assert distance(written_over.numpy(), wanted.numpy()) < 1e-13


def test_a_norm_of_channels_last_keeps_its_digits():
    norm = filled(GroupNorm(2, 32))
    x = image(1, 32, 424, 320, mean=5.0, dtype=torch.float32)
    with torch.no_grad():
        found = norm(x.contiguous(memory_format=torch.channels_last))
        plain = norm(x)
        wanted = norm.double()(x.double()).numpy()
    # torch's own kernel for channels last is fifty times as far off.
    assert distance(found.double().numpy(), wanted) < 3 * distance(plain.double().numpy(), wanted)


@pytest.mark.parametrize("size", [(33, 20), (16, 48)])
@pytest.mark.parametrize("hidden", [1, 16])
def test_inference_is_what_training_sees(size, hidden):
    net, x = filled(UNet(3, 2, hidden).double()), image(2, 3, *size)
    before, seen = x.clone(), []
    net.encoder_blocks[0].pre_conv.register_forward_hook(
        lambda module, given, out: seen.append(out.is_contiguous())
    )
    wanted = net(x).detach()
    with torch.no_grad():
        found = net(x)
    assert seen == [True, False]
    assert torch.equal(x, before)
    assert distance(found.numpy(), wanted.numpy()) < 1e-11
