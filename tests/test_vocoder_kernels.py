"""The vocoder's fast kernels in PyTorch against plain ones, in float64."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from benchmarks.plain import torch_halve, torch_twice
from parivox.enhancer_tables import FILTER_TAPS, LVC_TAPS, kaiser_filter
from torch_impl.model.alias_free import BLOCK, halve, twice
from torch_impl.model.lvc import LayerPredictor, location_variable, predict


def noise(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64)


@pytest.mark.parametrize("n", [1, 2, 7, BLOCK - 1, BLOCK, BLOCK + 1, 1000])
def test_filters_in_blocks_are_convolutions(n):
    # The second is symmetric, which could hide an error.
    taps = torch.linspace(0.5, 1.7, FILTER_TAPS, dtype=torch.float64)
    x, wide = noise(2, 3, n), noise(2, 3, 2 * n)
    for values in (taps, torch.tensor(kaiser_filter(), dtype=torch.float64)):
        torch.testing.assert_close(twice(x, values), torch_twice(x, values), rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(halve(wide, values), torch_halve(wide, values), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("rows", [1, 3])
def test_each_frame_is_convolved_with_kernels_predicted_for_it(rows):
    frames, samples, inputs, outputs, width = 5, 4, 3, 6, 7
    hidden, x = noise(rows, width, frames + 2), noise(rows, inputs, frames * samples + 2)
    layer = LayerPredictor(
        noise(inputs * outputs * LVC_TAPS, width, 3),
        noise(inputs * outputs * LVC_TAPS),
        noise(outputs, width, 3),
        noise(outputs),
    )
    found = location_variable(x, *predict(hidden, layer))

    kernels = F.conv1d(hidden, layer.kernel_weight, layer.kernel_bias)
    biases = F.conv1d(hidden, layer.bias_weight, layer.bias_bias)
    for row in range(rows):
        for frame in range(frames):
            kernel = kernels[row, :, frame].reshape(inputs, outputs, LVC_TAPS).transpose(0, 1)
            own = x[row : row + 1, :, frame * samples : (frame + 1) * samples + 2]
            plain = F.conv1d(own, kernel, biases[row, :, frame])[0]
            torch.testing.assert_close(found[row, frame], plain, rtol=1e-12, atol=1e-12)
