"""Channel and spatial attention on numbers worked by hand, CFFA, and the CBAM-UNet."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from retina_lab.models import (
    CBAM,
    CFFA,
    CBAMUNet,
    ChannelAttention,
    SpatialAttention,
    build_model,
    count_parameters,
)

# The maps that notebook 05 works by hand: a vessel and some grain, both of mean 1.
VESSEL = [[0.0, 4, 0, 0], [0, 4, 0, 0], [0, 0, 4, 0], [0, 0, 4, 0]]
GRAIN = [[2.0, 0, 2, 0], [0, 2, 0, 2], [2, 0, 2, 0], [0, 2, 0, 2]]
MAPS = torch.tensor([[VESSEL, GRAIN]])  # 1×2×4×4


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def channel_attention_by_hand():
    """One hidden unit, the difference of the two channels."""
    layer = ChannelAttention(2)
    first, second = layer.perceptron[0], layer.perceptron[2]
    with torch.no_grad():
        first.weight.copy_(torch.tensor([[1.0, -1.0]]))
        second.weight.copy_(torch.tensor([[1.0], [-1.0]]))
    return layer


def spatial_attention_by_hand():
    """A line of maxima, less the means on its left and right."""
    layer = SpatialAttention(kernel_size=3)
    with torch.no_grad():
        layer.conv.weight.zero_()
        layer.conv.weight[0, 0, :, 1] = 0.25  # of the maximum
        layer.conv.weight[0, 1, 1, [0, 2]] = -0.5  # of the mean
    return layer


# ------------------------------------------------------------------------ channel attention


def test_channel_attention_worked_by_hand():
    # means (1, 1): hidden 1 − 1 = 0; maxima (4, 2): hidden 4 − 2 = 2; outputs (2, −2)
    layer = channel_attention_by_hand()
    weights = layer.weights(MAPS)
    assert weights.shape == (1, 2, 1, 1)
    expected = [sigmoid(2), sigmoid(-2)]
    assert weights.flatten().tolist() == pytest.approx(expected, abs=1e-6)
    assert layer(MAPS)[0, 0, 0, 1].item() == pytest.approx(4 * sigmoid(2), abs=1e-5)
    assert layer(MAPS)[0, 1, 0, 0].item() == pytest.approx(2 * sigmoid(-2), abs=1e-5)


def test_the_shared_bias_counts_twice():
    layer = channel_attention_by_hand()
    with torch.no_grad():
        layer.perceptron[2].bias.fill_(0.5)
    expected = [sigmoid(2 + 1), sigmoid(-2 + 1)]
    assert layer.weights(MAPS).flatten().tolist() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(("channels", "ratio", "hidden"), [(48, 8, 6), (128, 8, 16), (6, 8, 1)])
def test_parameters_of_channel_attention(channels, ratio, hidden):
    layer = ChannelAttention(channels, ratio)
    assert count_parameters(layer) == 2 * channels * hidden + hidden + channels


def test_channel_attention_agrees_with_pooling_layers_and_1x1_convolutions():
    torch.manual_seed(0)
    layer, x = ChannelAttention(12, ratio=3), torch.randn(3, 12, 5, 7)
    first, second = layer.perceptron[0], layer.perceptron[2]

    def shared(pooled):  # N×C×1×1
        hidden = F.relu(F.conv2d(pooled, first.weight[:, :, None, None], first.bias))
        return F.conv2d(hidden, second.weight[:, :, None, None], second.bias)

    pooled = shared(F.adaptive_avg_pool2d(x, 1)) + shared(F.adaptive_max_pool2d(x, 1))
    torch.testing.assert_close(layer(x), x * pooled.sigmoid())


def test_channel_attention_does_not_care_where():
    torch.manual_seed(0)
    layer, x = ChannelAttention(4), torch.randn(2, 4, 6, 5)
    shuffled = x.flatten(2)[:, :, torch.randperm(30)].view_as(x)
    torch.testing.assert_close(layer.weights(shuffled), layer.weights(x))


# ------------------------------------------------------------------------ spatial attention


def test_spatial_attention_worked_by_hand():
    # maxima  2 4 2 0   means  1 2 1 0
    #         0 4 0 2          0 3 0 1
    #         2 0 4 0          1 0 3 0
    #         0 2 4 2          0 1 2 1
    answers = {
        (1, 1): (4 + 4 + 0) / 4 - (0 + 0) / 2,  # on the vessel: 2
        (1, 2): (2 + 0 + 4) / 4 - (3 + 1) / 2,  # beside it: −½
        (0, 0): (0 + 2 + 0) / 4 - (0 + 2) / 2,  # in the corner zeros lie outside: −½
        (3, 2): (4 + 4 + 0) / 4 - (1 + 1) / 2,  # 1
    }
    layer = spatial_attention_by_hand()
    weights = layer.weights(MAPS)
    assert weights.shape == (1, 1, 4, 4)
    for place, answer in answers.items():
        assert weights[0, 0][place].item() == pytest.approx(sigmoid(answer), abs=1e-6)
    torch.testing.assert_close(layer(MAPS), MAPS * weights)


def test_spatial_attention_agrees_with_a_double_loop():
    torch.manual_seed(0)
    layer, x = SpatialAttention(), torch.randn(1, 3, 6, 8)
    values, kernel = x[0].numpy(), layer.conv.weight[0].detach().numpy()
    planes = np.pad(np.stack([values.max(0), values.mean(0)]), ((0, 0), (3, 3), (3, 3)))
    expected = np.empty((6, 8))
    for i in range(6):
        for j in range(8):
            expected[i, j] = (planes[:, i : i + 7, j : j + 7] * kernel).sum()
    expected = 1 / (1 + np.exp(-expected))
    assert np.allclose(layer.weights(x)[0, 0].detach().numpy(), expected, atol=1e-6)


@pytest.mark.parametrize("channels", [1, 16, 512])
def test_98_parameters_however_many_channels(channels):
    layer = SpatialAttention()
    assert count_parameters(layer) == 98
    assert layer(torch.randn(1, channels, 9, 9)).shape == (1, channels, 9, 9)


def test_spatial_attention_does_not_care_which_channel():
    torch.manual_seed(0)
    layer, x = SpatialAttention(), torch.randn(2, 6, 9, 9)
    torch.testing.assert_close(layer.weights(x[:, torch.randperm(6)]), layer.weights(x))


def test_spatial_attention_moves_with_the_map():
    torch.manual_seed(0)
    layer, x = SpatialAttention(), torch.randn(1, 2, 20, 20)
    moved = layer.weights(x.roll((3, 2), dims=(2, 3)))
    inner = slice(7, 13)  # away from the border, and from what was rolled around
    torch.testing.assert_close(
        moved[..., inner, inner], layer.weights(x)[..., 4:10, 5:11], atol=1e-6, rtol=0
    )


@pytest.mark.parametrize("kernel_size", [0, 2, 8, -3])
def test_an_even_kernel_has_no_middle(kernel_size):
    with pytest.raises(ValueError, match=f"odd and positive, not {kernel_size}"):
        SpatialAttention(kernel_size)


# ------------------------------------------------------------------------------- both


@pytest.mark.parametrize(
    "layer", [ChannelAttention(4, ratio=2), SpatialAttention(3), CBAM(4, ratio=2)]
)
def test_gradients_of_attention(layer):
    torch.manual_seed(0)
    layer = layer.double()
    x = torch.randn(2, 4, 5, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(layer, (x,))


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**31), scale=st.floats(0.01, 100))
def test_attention_only_turns_down(seed, scale):
    torch.manual_seed(seed)
    x = scale * torch.randn(1, 8, 6, 6)
    out = CBAM(8)(x)
    assert (out.abs() <= x.abs()).all()
    assert (out * x >= 0).all()  # and never turns a sign round


def test_cbam_asks_what_before_where():
    block = CBAM(2)
    block[0].load_state_dict(channel_attention_by_hand().state_dict())
    kernel = spatial_attention_by_hand().conv.weight
    block[1] = SpatialAttention(3)
    block[1].conv.weight = kernel
    channel, spatial = block
    torch.testing.assert_close(block(MAPS), spatial(channel(MAPS)))
    assert not torch.allclose(block(MAPS), channel(spatial(MAPS)))


# ------------------------------------------------------------------------------- CFFA


def conv(before, after, *kernel):
    """Weights and bias of a convolution, scale and shift of the BatchNorm after it."""
    return before * after * math.prod(kernel) + after + 2 * after


def cffa_by_hand(before, after):
    fine = conv(before, after, 3, 1) + conv(after, after, 1, 3)
    coarse = conv(before, after, 7, 7) + conv(after, after, 1, 1)
    return fine + coarse + conv(2 * after, after, 1, 1)


@pytest.mark.parametrize(("before", "after"), [(3, 16), (16, 32), (5, 1)])
def test_parameters_of_cffa(before, after):
    assert count_parameters(CFFA(before, after)) == cffa_by_hand(before, after)


def reached(branch, side=15):
    """Height and width of the window of input pixels that change the middle of the output."""
    for layer in branch.modules():
        if isinstance(layer, nn.Conv2d):  # positive weights: ReLU lets everything through
            nn.init.uniform_(layer.weight, 0.1, 1)
            nn.init.constant_(layer.bias, 1)
    x = torch.ones(1, 2, side, side, requires_grad=True)
    branch.eval()(x)[0, :, side // 2, side // 2].sum().backward()
    rows, columns = torch.nonzero(x.grad[0].abs().sum(0), as_tuple=True)
    # a full rectangle, not a cross
    assert len(rows) == (rows.max() - rows.min() + 1) * (columns.max() - columns.min() + 1)
    return (rows.max() - rows.min() + 1).item(), (columns.max() - columns.min() + 1).item()


def test_what_the_branches_of_cffa_see():
    block = CFFA(2, 3)
    assert reached(block.fine[0]) == (3, 1)
    assert reached(block.fine) == (3, 3)
    assert reached(block.coarse) == (7, 7)


def test_both_branches_of_cffa_reach_the_result():
    torch.manual_seed(0)
    block, x = CFFA(3, 4).eval(), torch.randn(1, 3, 9, 9)
    with torch.no_grad():
        whole = block(x)
        for half in (slice(0, 4), slice(4, 8)):
            kept = block.mix[0].weight.clone()
            block.mix[0].weight[:, half] = 0
            assert not torch.allclose(block(x), whole)
            block.mix[0].weight.copy_(kept)
    assert whole.shape == (1, 4, 9, 9)


# -------------------------------------------------------------------------- CBAM-UNet


def cbam_unet_by_hand(widths, channels=3, ratio=8):
    *levels, bridge = widths
    total = conv(channels, levels[0], 3, 3) + conv(levels[0], levels[0], 3, 3)
    for before, width in pairwise(levels):
        total += cffa_by_hand(before, width) + cffa_by_hand(width, width)
    total += conv(levels[-1], bridge, 3, 3) + conv(bridge, bridge, 3, 3)
    hidden = max(1, bridge // ratio)
    total += 2 * bridge * hidden + hidden + bridge + 98
    below = bridge
    for width in levels[::-1]:
        total += 4 * below * width + width
        total += conv(2 * width, width, 3, 3) + conv(width, width, 3, 3)
        below = width
    return total + levels[0] + 1


@pytest.mark.parametrize("widths", [(16, 32, 64, 128), (6, 12, 24, 48), (4, 8)])
def test_parameters_of_the_cbam_unet(widths):
    assert count_parameters(CBAMUNet(widths)) == cbam_unet_by_hand(widths)


def test_the_names_build_these_networks():
    assert count_parameters(build_model("cbam-unet")) == cbam_unet_by_hand((16, 32, 64, 128))
    small = count_parameters(build_model("small-cbam-unet"))
    assert small == cbam_unet_by_hand((6, 12, 24, 48))
    assert abs(small / count_parameters(build_model("small-unet")) - 1) < 0.05


@pytest.mark.parametrize("size", [(1, 1), (7, 9), (16, 16), (33, 50)])
def test_any_size_goes_through_the_cbam_unet(size):
    model = build_model("small-cbam-unet").eval()
    assert model(torch.randn(2, 3, *size)).shape == (2, 1, *size)


def test_the_cbam_unet_in_eval_mode():
    model = build_model("small-cbam-unet").eval()
    x = torch.randn(3, 3, 24, 16)
    alone = torch.cat([model(x[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(model(x), alone, atol=1e-5, rtol=1e-5)
    assert torch.equal(model(x), model(x))
    channels_last = model(x.contiguous(memory_format=torch.channels_last))
    torch.testing.assert_close(channels_last, model(x), atol=1e-5, rtol=1e-5)


def test_every_weight_of_the_cbam_unet_gets_a_gradient():
    torch.manual_seed(0)
    model = CBAMUNet((4, 8, 16))
    model(torch.randn(2, 3, 16, 16)).square().sum().backward()
    for name, parameter in model.named_parameters():
        if "weight" in name:
            assert parameter.grad.abs().sum() > 0, name


def test_the_attention_of_the_bridge_matters():
    torch.manual_seed(0)
    model, x = CBAMUNet((4, 8, 16)).eval(), torch.randn(1, 3, 16, 16)
    before = model(x)
    model.bridge[1] = nn.Identity()
    assert not torch.allclose(before, model(x))


def test_weights_of_the_cbam_unet_survive_a_round_trip(tmp_path):
    from safetensors.torch import load_file, save_file

    model, other = build_model("small-cbam-unet").eval(), build_model("small-cbam-unet").eval()
    save_file(model.state_dict(), tmp_path / "weights.safetensors")
    other.load_state_dict(load_file(tmp_path / "weights.safetensors"))
    x = torch.randn(1, 3, 16, 16)
    assert torch.equal(model(x), other(x))


@pytest.mark.parametrize("widths", [(8,), (), (8, 0), (8, -4)])
def test_absurd_widths_of_the_cbam_unet(widths):
    with pytest.raises(ValueError, match="at least 2 widths"):
        CBAMUNet(widths)
