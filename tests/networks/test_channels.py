"""The axes that layers read and write, checked against what the layers do."""

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from hf_lottery.networks.channels import norm_channels, read_channels, written_channels

# Layer -> the axis and the input's dimension that it reads, the axis and the output's dimension that it writes.
LAYERS = {
    "Linear": (nn.Linear(3, 5), (1, -1), (0, -1)),
    "GPT-2 Conv1D": (Conv1D(5, 3), (0, -1), (1, -1)),
    "Conv1d": (nn.Conv1d(3, 5, 2), (1, -2), (0, -2)),
    "Conv2d": (nn.Conv2d(3, 5, 2), (1, -3), (0, -3)),
    "Conv3d": (nn.Conv3d(3, 5, 2), (1, -4), (0, -4)),
    "ConvTranspose1d": (nn.ConvTranspose1d(3, 5, 2), (0, -2), (1, -2)),
    "ConvTranspose2d": (nn.ConvTranspose2d(3, 5, 2), (0, -3), (1, -3)),
    "ConvTranspose3d": (nn.ConvTranspose3d(3, 5, 2), (0, -4), (1, -4)),
}


@pytest.mark.parametrize(("layer", "read", "written"), LAYERS.values(), ids=LAYERS)
def test_axes_of_layers(layer, read, written):
    assert (read_channels(layer), written_channels(layer)) == (read, written)


@pytest.mark.parametrize("name", LAYERS)
def test_a_permuted_axis_permutes_the_output_or_undoes_a_permuted_input(name):
    layer, (read, taken), (written, made) = LAYERS[name]
    x = torch.randn(2, *[3 if axis == taken else 4 for axis in range(-max(-taken, 2), 0)])
    inputs, outputs = torch.tensor([2, 0, 1]), torch.tensor([4, 1, 0, 3, 2])
    weight = layer.weight.index_select(read, inputs).index_select(written, outputs)
    with torch.no_grad():
        expected = layer(x).index_select(made, outputs)
        found = torch.func.functional_call(
            layer, {"weight": weight, "bias": layer.bias[outputs]}, x.index_select(taken, inputs)
        )
    torch.testing.assert_close(found, expected)


def test_groups_have_no_axis_of_all_channels():
    for layer in (nn.Conv2d(4, 6, 3, groups=2), nn.Conv1d(4, 4, 3, groups=4)):
        assert read_channels(layer) is None and written_channels(layer) == (0, 1 - layer.weight.ndim)
    transposed = nn.ConvTranspose2d(4, 6, 3, groups=2)
    assert read_channels(transposed) is written_channels(transposed) is None


def test_other_modules():
    assert written_channels(nn.Embedding(7, 3)) == (1, -1) and read_channels(nn.Embedding(7, 3)) is None
    for module in (nn.ReLU(), nn.LayerNorm(3), type("Conv1D", (nn.Module,), {})()):
        assert read_channels(module) is written_channels(module) is None


@pytest.mark.parametrize(
    ("norm", "channels"),
    [
        (nn.BatchNorm1d(3), (0, 1)),
        (nn.BatchNorm2d(3), (0, 1)),
        (nn.InstanceNorm2d(3, affine=True), (0, 1)),
        (nn.GroupNorm(1, 3), (0, 1)),
        (nn.LayerNorm(3), (0, -1)),
        (nn.RMSNorm(3), (0, -1)),
        (nn.Linear(3, 3), None),
    ],
)
def test_axes_of_norms(norm, channels):
    assert norm_channels(norm) == channels
