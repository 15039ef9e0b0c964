"""Receptive fields: by hand, by formula, by gradient; the three must agree."""

import numpy as np
import pytest
import torch
import torch.nn as nn
from hypothesis import given, settings
from hypothesis import strategies as st

from retina_lab.models import CMPUNet, UNet
from retina_lab.models.receptive_field import (
    extent,
    field_by_formula,
    input_gradient,
    receptive_field,
    view_by_formula,
)


def chain(*layers, channels=3, normalised=False):
    """Convolutions (kernel, stride, dilation) that keep the size but for their strides."""
    modules = []
    for kernel, stride, dilation in layers:
        reach = dilation * (kernel - 1) // 2
        modules.append(
            nn.Conv2d(channels, 2, kernel, stride=stride, padding=reach, dilation=dilation)
        )
        modules += [nn.BatchNorm2d(2), nn.ReLU()] if normalised else []
        channels = 2
    return nn.Sequential(*modules)


# layers as (kernel, stride, dilation), and the side of the field worked out by hand
CHAINS = {
    "one pixel": ([(1, 1, 1)], 1),
    "one 3×3": ([(3, 1, 1)], 3),
    "two 3×3": ([(3, 1, 1)] * 2, 5),
    "six 3×3": ([(3, 1, 1)] * 6, 13),  # 2n + 1
    "7×7": ([(7, 1, 1)], 7),
    "dilated by 3": ([(3, 1, 3)], 7),
    "dilated by 5": ([(3, 1, 5)], 11),
    "dilations 1, 2, 4": ([(3, 1, 1), (3, 1, 2), (3, 1, 4)], 15),  # 1 + 2 + 4 + 8
    "stride 2, then 3×3": ([(3, 2, 1), (3, 1, 1)], 7),  # 3 + 2·2
    "five of stride 2": ([(3, 2, 1)] * 5, 63),  # 1 + 2·(1 + 2 + 4 + 8 + 16)
    "patch discriminator of pix2pix": ([(4, 2, 1)] * 3 + [(4, 1, 1)] * 2, 70),
}


@pytest.mark.parametrize("name", CHAINS)
@pytest.mark.parametrize("normalised", [False, True])
def test_chains_by_hand_by_formula_and_by_gradient(name, normalised):
    layers, side = CHAINS[name]
    network = chain(*layers, normalised=normalised)
    assert field_by_formula(network) == (side, side)
    assert extent(receptive_field(network, 96)) == (side, side)


@pytest.mark.parametrize("name", CHAINS)
def test_where_the_fields_lie_by_formula_and_by_gradient(name):
    layers, side = CHAINS[name]
    network = chain(*layers)
    view = view_by_formula(network)
    place = network(torch.zeros(1, 3, 192, 160)).shape[-1] // 2
    seen = receptive_field(network, (192, 160), at=(place, place))
    for axis in range(2):
        first = view.start[axis] + place * view.step[axis]
        rows = np.flatnonzero(seen.any(axis=1 - axis))
        assert (rows[0], rows[-1]) == (first, first + side - 1)


@pytest.mark.parametrize(("padding", "start"), [("valid", 0), ("same", -4), (3, -3), ((1, 2), -1)])
def test_padding_in_words_and_numbers(padding, start):
    view = view_by_formula(nn.Conv2d(1, 1, 5, padding=padding, dilation=2))
    assert (view.extent, view.step, view.start[0]) == ((9, 9), (1, 1), start)


@settings(max_examples=25, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from([1, 3, 5]), st.sampled_from([1, 2]), st.integers(1, 3)),
        min_size=1,
        max_size=3,
    )
)
def test_formula_and_gradient_agree_on_any_chain(layers):
    network = chain(*layers, channels=1)
    measured = extent(receptive_field(network, (128, 128), channels=1))
    assert measured == field_by_formula(network)


def test_oblong_kernels_and_nested_chains():
    network = nn.Sequential(
        nn.Sequential(nn.Conv2d(3, 2, (3, 1), padding="same"), nn.Tanh()),
        nn.Conv2d(2, 1, (1, 5), padding="same", dilation=2),
    )
    assert field_by_formula(network) == (3, 9)
    assert extent(receptive_field(network, 32)) == (3, 9)


@pytest.mark.parametrize("pool", [nn.MaxPool2d(2), nn.AvgPool2d(2), nn.MaxPool2d(3, 2, padding=1)])
def test_any_pixel_of_a_pooling_window_is_seen(pool):
    """A maximum passes on one of its pixels; that is no reason to miss the others."""
    side = field_by_formula(pool)[0]
    assert receptive_field(pool, 16).sum() == side**2
    network = nn.Sequential(nn.Conv2d(3, 2, 3, padding=1), pool, nn.Conv2d(2, 1, 3, padding=1))
    expected = 3 + (side - 1) + 2 * 2
    assert field_by_formula(network) == (expected, expected)
    assert extent(receptive_field(network, 32)) == (expected, expected)


def test_a_transposed_convolution_sees_what_painted_the_pixel():
    up = nn.ConvTranspose2d(3, 2, 2, stride=2)  # each input pixel paints its own 2×2 block
    field = receptive_field(up, 8, at=(5, 4))
    assert np.argwhere(field).tolist() == [[2, 2]]


def test_two_dilations_of_two_leave_holes():
    row = receptive_field(chain((3, 1, 2), (3, 1, 2)), 31)[15]
    assert np.flatnonzero(row).tolist() == [11, 13, 15, 17, 19]  # every other of 9


def test_branches_side_by_side_see_the_union():
    class Side(nn.Module):
        def __init__(self):
            super().__init__()
            self.branches = nn.ModuleList(
                nn.Conv2d(3, 2, 3, padding=d, dilation=d) for d in (1, 3, 5)
            )

        def forward(self, x):
            return torch.cat([branch(x) for branch in self.branches], dim=1)

    field = receptive_field(Side(), 31)
    assert field.sum() == 9 + 8 + 8  # the middle is shared
    assert extent(field) == (11, 11)


def interval(position, depth, convolutions=2):
    """What a U-Net's output pixel sees, by arithmetic on intervals along one axis.

    Back through a 3×3 convolution an interval grows by one on either side, back through a
    2×2 up-convolution its ends are halved, back through 2×2 pooling they are doubled.
    """
    low = high = position
    for _ in range(depth):
        low, high = (low - convolutions) // 2, (high + convolutions) // 2
    low, high = low - convolutions, high + convolutions
    for _ in range(depth):
        low, high = 2 * low - convolutions, 2 * high + 1 + convolutions
    return low, high


@pytest.mark.parametrize("depth", [1, 2, 3])
@pytest.mark.parametrize("row", [64, 65, 67, 70])
def test_unets_by_arithmetic_on_intervals(depth, row):
    field = receptive_field(UNet([1] * (depth + 1)), 128, at=(row, 64))
    rows, columns = np.flatnonzero(field.any(1)), np.flatnonzero(field.any(0))
    assert (rows[0], rows[-1]) == interval(row, depth)
    assert (columns[0], columns[-1]) == interval(64, depth)
    assert extent(field)[0] == interval(row, depth)[1] - interval(row, depth)[0] + 1


def test_a_deeper_unet_sees_about_twice_as_far():
    sides = [extent(receptive_field(UNet([1] * (d + 1)), 224))[0] for d in (1, 2, 3, 4)]
    assert sides == [18, 44, 92, 188]


def test_a_strip_measures_one_direction():
    network = UNet([1, 1, 1, 1])
    rows = receptive_field(network, (128, 16)).any(axis=1).sum()
    assert rows == extent(receptive_field(network, 128))[0]


def test_channel_attention_sees_the_whole_image():
    assert receptive_field(CMPUNet([8] * 5), 32).all()


def test_normalisation_over_the_map_is_not_counted():
    convolution = nn.Conv2d(3, 4, 3, padding=1)
    for norm in (nn.InstanceNorm2d(4), nn.GroupNorm(2, 4), nn.BatchNorm2d(4)):
        assert receptive_field(nn.Sequential(convolution, norm), 12).sum() == 9


def test_dropout_hides_nothing():
    network = nn.Sequential(nn.Conv2d(3, 4, 5, padding=2), nn.Dropout(0.9), nn.Dropout2d(0.9))
    assert receptive_field(network.train(), 12).sum() == 25


def test_the_model_is_left_as_it_was():
    network = chain((3, 1, 1), (3, 1, 1), normalised=True).train()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    receptive_field(network, 16)
    input_gradient(network, torch.randn(1, 3, 16, 16))
    assert network.training
    assert network[1].training
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, before[name]), name


def test_the_extent_refuses_to_guess():
    network = chain((7, 1, 1))
    with pytest.raises(ValueError, match=r"touches the frame of the 7×7 test image"):
        extent(receptive_field(network, 7))
    assert extent(receptive_field(network, 9)) == (7, 7)
    with pytest.raises(ValueError, match="depends on no pixel"):
        extent(np.zeros((4, 4), bool))


def test_the_formula_names_what_it_does_not_know():
    with pytest.raises(ValueError, match="no formula for Upsample in a chain; measure"):
        field_by_formula(nn.Sequential(nn.Conv2d(3, 3, 3), nn.Upsample(scale_factor=2)))
    with pytest.raises(ValueError, match="no formula for UNet"):
        field_by_formula(UNet([1, 1]))


def test_the_input_gradient_of_one_convolution_is_its_kernel():
    layer = nn.Conv2d(1, 1, 3, padding=1)
    image = torch.randn(1, 1, 9, 9)
    strength = input_gradient(layer, image, at=(4, 5))
    assert np.allclose(strength[3:6, 4:7], layer.weight[0, 0].detach().abs())
    assert strength.sum() == pytest.approx(layer.weight.abs().sum().item())
    assert input_gradient(layer, image).argmax() == input_gradient(layer, image, (4, 4)).argmax()


def test_a_trained_network_reaches_no_farther_than_its_plan():
    torch.manual_seed(0)
    network = UNet([4, 8, 16]).eval()
    strength = input_gradient(network, torch.rand(1, 3, 64, 64))
    assert not strength[~receptive_field(network, 64)].any()
    assert strength[30:35, 30:35].sum() > 0.05 * strength.sum()
