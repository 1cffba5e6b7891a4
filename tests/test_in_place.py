"""Results that take the place of what they are computed from: the same values, and nothing else is written over."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")

from parity_tests.rungs_signal import distance  # noqa: E402 (after the check for torch)
from torch_impl.in_place import added, gated  # noqa: E402
from torch_impl.model.alias_free import AMPBlock, SnakeBeta  # noqa: E402
from torch_impl.model.conv import LeakyReLU  # noqa: E402
from torch_impl.model.lvc import LVCBlock  # noqa: E402
from torch_impl.model.wn import WN  # noqa: E402


def values(*shape, dtype=torch.float64, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@pytest.mark.parametrize("wanted", [False, True])
def test_only_what_has_no_gradient_is_written_over(wanted):
    with torch.set_grad_enabled(wanted):
        for function in (added, gated):
            x, y = values(2, 3, 4), values(2, 3, 4, seed=1)
            before = x.clone()
            found = function(x, y)
            assert (found.data_ptr() == x.data_ptr()) is not wanted
            assert torch.equal(x, before) is wanted
        assert (LeakyReLU(spare=True)(x).data_ptr() == x.data_ptr()) is not wanted
        assert LeakyReLU()(x).data_ptr() != x.data_ptr()
        snake = SnakeBeta(3).double()
        assert (snake(x, spare=True).data_ptr() == x.data_ptr()) is not wanted
        assert snake(x).data_ptr() != x.data_ptr()


def test_a_wider_sum_keeps_its_dtype():
    half, whole = values(4, dtype=torch.bfloat16), values(4, dtype=torch.float32)
    with torch.no_grad():
        assert added(half, whole).dtype == torch.float32
        assert gated(half, whole).dtype == torch.float32


@pytest.mark.parametrize(
    ("module", "shapes"),
    [
        (AMPBlock(4), [(2, 4, 40)]),
        (LVCBlock(6, 4, 3), [(2, 4, 10), (2, 6, 10)]),
        (WN(3, 5, 4, 3), [(2, 3, 9), (2, 128)]),
    ],
    ids=["amp", "lvc", "flow"],
)
def test_inference_is_what_training_sees(module, shapes):
    module = module.double()
    for k, parameter in enumerate(module.parameters()):
        parameter.data = 0.3 * values(*parameter.shape, seed=k)
    arguments = [values(*shape, seed=k) for k, shape in enumerate(shapes)]
    if isinstance(module, WN):
        arguments.append(module.conditions(values(2, 5, 9, seed=7)))
    before = [part.clone() for part in arguments if isinstance(part, torch.Tensor)]
    wanted = module(*arguments).detach()
    with torch.no_grad():
        found = [module(*arguments) for _ in range(2)]  # twice, for what the first may have spoilt
    for one in found:
        assert distance(one.numpy(), wanted.numpy()) < 1e-13
    assert all(torch.equal(part, old) for part, old in zip(arguments, before, strict=False))
