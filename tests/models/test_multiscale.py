"""MSCAF, PFF and CMP-UNet: taps and counts by hand, shapes, and what each part can see."""

from itertools import pairwise

import numpy as np
import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from retina_lab.models import MODELS, MSCAF, PFF, CMPUNet, build_model, count_parameters
from retina_lab.models.receptive_field import extent, receptive_field

WIDTHS = (8, 8, 16, 16, 16)


def small(**settings):
    torch.manual_seed(0)
    return CMPUNet(WIDTHS, **settings)


# ------------------------------------------------------------------------------------- MSCAF


def mscaf_by_hand(before, after):
    """Parameters: three branches without bias, their norms, the perceptron, the 1×1 mix."""
    hidden = max(1, after // 8)
    branches = 9 * before * (after // 2 + after // 4 + after // 4) + 2 * after
    perceptron = (after * hidden + hidden) + (hidden * after + after)
    return branches + perceptron + after * after + 2 * after


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [(16, 8, 1_273), (8, 8, 697), (64, 32, 19_876), (3, 4, None)],
)
def test_parameters_of_mscaf(before, after, expected):
    counted = count_parameters(MSCAF(before, after))
    assert counted == mscaf_by_hand(before, after)
    if expected is not None:
        assert counted == expected


def test_mscaf_shares_its_channels_by_scale():
    branches = MSCAF(6, 16).branches
    assert [branch[0].out_channels for branch in branches] == [8, 4, 4]
    assert [branch[0].dilation for branch in branches] == [(1, 1), (3, 3), (5, 5)]
    assert all(branch[0].bias is None for branch in branches)
    x = torch.randn(2, 6, 20, 13)
    assert [tuple(branch(x).shape) for branch in branches] == [
        (2, 8, 20, 13),
        (2, 4, 20, 13),
        (2, 4, 20, 13),
    ]


@pytest.mark.parametrize(("branch", "side"), [(0, 3), (1, 7), (2, 11)])
def test_each_branch_looks_at_nine_pixels_at_its_own_distance(branch, side):
    field = receptive_field(MSCAF(3, 4).branches[branch], 31)
    step = (side - 1) // 2
    places = [15 - step, 15, 15 + step]
    assert np.argwhere(field).tolist() == [[row, column] for row in places for column in places]


def test_a_branch_by_a_loop_over_its_taps():
    torch.manual_seed(0)
    conv = MSCAF(2, 4).branches[1][0]  # dilation 3, one channel
    x = torch.randn(1, 2, 9, 9)
    padded = F.pad(x, (3, 3, 3, 3))
    by_hand = torch.zeros(9, 9)
    for row in range(9):
        for column in range(9):
            window = padded[0, :, row : row + 7 : 3, column : column + 7 : 3]  # 2×3×3
            by_hand[row, column] = (window * conv.weight[0]).sum()
    assert torch.allclose(conv(x)[0, 0], by_hand, atol=1e-6)


def test_mscaf_by_its_parts():
    torch.manual_seed(0)
    layer = MSCAF(3, 8).eval()
    x = torch.randn(2, 3, 16, 16)
    scales = torch.cat([branch(x) for branch in layer.branches], dim=1)
    weighed = scales * layer.attention.weights(scales)
    assert torch.allclose(layer(x), layer.mix(weighed))


def test_without_attention_mscaf_sees_the_union_of_its_branches():
    layer = MSCAF(3, 4)
    assert receptive_field(layer, 31).all()  # the attention's mean is taken over the whole map
    layer.attention = nn.Identity()
    field = receptive_field(layer, 31)
    assert field.sum() == 9 + 8 + 8
    assert extent(field) == (11, 11)


def test_attention_can_silence_a_scale():
    """Weights near 0 for the last channels: the branch of dilation 5 no longer counts."""
    torch.manual_seed(0)
    layer = MSCAF(3, 8).eval()
    with torch.no_grad():
        layer.attention.perceptron[2].weight.zero_()
        layer.attention.perceptron[2].bias.copy_(torch.tensor([20.0] * 6 + [-20.0] * 2))
    x = torch.randn(1, 3, 24, 24)
    before = layer(x)
    nn.init.normal_(layer.branches[2][0].weight, std=5)
    assert torch.allclose(layer(x), before, atol=1e-5)
    nn.init.normal_(layer.branches[1][0].weight, std=5)
    assert not torch.allclose(layer(x), before, atol=1e-2)


@settings(max_examples=10, deadline=None)
@given(st.integers(1, 3), st.booleans())
def test_mscaf_turns_with_a_turned_kernel(turns, mirrored):
    """Dilated windows are symmetric: turning image and kernels turns the answer."""
    torch.manual_seed(0)
    layer = MSCAF(2, 4).eval()

    def turn(tensor):
        tensor = torch.rot90(tensor, turns, dims=(-2, -1))
        return tensor.flip(-1) if mirrored else tensor

    x = torch.randn(1, 2, 12, 12)
    expected = turn(layer(x))
    with torch.no_grad():
        for branch in layer.branches:
            branch[0].weight.copy_(turn(branch[0].weight))
    assert torch.allclose(layer(turn(x)), expected, atol=1e-5)


def test_gradients_of_mscaf_are_right():
    torch.manual_seed(0)
    layer = MSCAF(2, 4).double().eval()
    with torch.no_grad():  # away from the corners of ReLU, where no gradient is right
        for module in layer.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.bias.fill_(1.0)
    x = torch.rand(1, 2, 6, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(layer, x)


@pytest.mark.parametrize("channels", [0, -4, 2, 6])
def test_mscaf_refuses_channels_that_cannot_be_shared(channels):
    with pytest.raises(ValueError, match=f"multiple of 4 channels, not {channels}"):
        MSCAF(3, channels)


# --------------------------------------------------------------------------------------- PFF


def pff_by_hand(widths):
    channels = widths[-1]
    shares = (channels // 8, channels // 8, channels // 4, channels // 2)
    reduce = sum(width * share + 2 * share for width, share in zip(widths, shares, strict=True))
    return reduce + mscaf_by_hand(channels, channels)


@pytest.mark.parametrize(
    ("widths", "expected"), [((16, 16, 8, 8), 793), ((256, 128, 64, 32), 13_284)]
)
def test_parameters_of_pff(widths, expected):
    assert count_parameters(PFF(widths)) == pff_by_hand(widths) == expected


def maps_of(widths, height, width):
    return [
        torch.randn(2, channels, height // 2**i, width // 2**i)
        for i, channels in zip((3, 2, 1, 0), widths, strict=True)
    ]


def test_pff_by_its_parts():
    torch.manual_seed(0)
    layer = PFF((16, 16, 8, 8)).eval()
    maps = maps_of((16, 16, 8, 8), 16, 24)
    pyramid = [reduce(x) for reduce, x in zip(layer.reduce, maps, strict=True)]
    assert [x.shape[1] for x in pyramid] == [1, 1, 2, 4]
    enlarged = [
        nn.Upsample(scale_factor=scale, mode="bilinear")(x)
        for x, scale in zip(pyramid, (8, 4, 2, 1), strict=True)
    ]
    expected = layer.fuse(torch.cat(enlarged, dim=1)) + maps[-1]
    assert torch.allclose(layer(maps), expected, atol=1e-6)


def test_pff_adds_the_finest_map():
    """With its last BatchNorm at zero the fusion gives nothing, and the finest map remains."""
    layer = PFF((16, 16, 8, 8)).eval()
    nn.init.zeros_(layer.fuse.mix[0][1].weight)
    maps = maps_of((16, 16, 8, 8), 16, 16)
    assert torch.equal(layer(maps), maps[-1])


@pytest.mark.parametrize("level", range(4))
def test_pff_uses_all_four_maps(level):
    torch.manual_seed(0)
    layer = PFF((16, 16, 8, 8)).eval()
    for reduce in layer.reduce:
        nn.init.ones_(reduce[1].bias)  # every ReLU open
    maps = maps_of((16, 16, 8, 8), 16, 16)
    before = layer(maps)
    maps[level] = maps[level] + 1
    assert not torch.allclose(layer(maps), before)


@pytest.mark.parametrize(
    "widths", [(), (8, 8, 8), (8,) * 5, (8, 8, 8, 4), (8, 8, 8, 12), (8, 8, 8, 0)]
)
def test_pff_refuses_what_it_cannot_share(widths):
    with pytest.raises(ValueError, match="PFF fuses four maps"):
        PFF(widths)


# ---------------------------------------------------------------------------------- CMP-UNet


def cmp_by_hand(widths, channels=3):
    """Every layer of a CMP-UNet, written out."""

    def conv_norm(before, after, taps):  # with bias, then BatchNorm
        return taps * before * after + after + 2 * after

    def cffa(before, after):
        fine = conv_norm(before, after, 3) + conv_norm(after, after, 3)
        coarse = conv_norm(before, after, 49) + conv_norm(after, after, 1)
        return fine + coarse + conv_norm(2 * after, after, 1)

    levels = widths[:-1]
    total = conv_norm(channels, levels[0], 9) + conv_norm(levels[0], levels[0], 9)
    for before, after in pairwise(widths):
        total += cffa(before, after) + cffa(after, after)
    for below, width in zip(widths[:0:-1], levels[::-1], strict=True):
        total += 4 * below * width + width  # up
        total += mscaf_by_hand(2 * width, width) + conv_norm(width, width, 9)
    return total + pff_by_hand(levels[::-1]) + levels[0] + 1


@pytest.mark.parametrize(
    ("name", "expected"), [("cmp-unet", 34_546_369), ("small-cmp-unet", 114_512)]
)
def test_parameters_of_cmp_unet(name, expected):
    counted = count_parameters(build_model(name))
    assert counted == cmp_by_hand(MODELS[name].settings["widths"])
    assert counted == expected


def test_the_pyramid_gets_the_decoders_maps():
    model = small().eval()
    seen = []
    model.pyramid.register_forward_pre_hook(lambda layer, inputs: seen.append(inputs[0]))
    model(torch.randn(1, 3, 32, 48))
    assert [tuple(x.shape) for x in seen[0]] == [
        (1, 16, 4, 6),
        (1, 16, 8, 12),
        (1, 8, 16, 24),
        (1, 8, 32, 48),
    ]
    decoded = model.decoder_maps(torch.zeros(1, 3, 32, 48))
    assert [x.shape for x in decoded] == [x.shape for x in seen[0]]


@pytest.mark.parametrize("size", [(1, 1), (7, 9), (16, 16), (33, 50)])
def test_any_size_in_logits_of_the_same_size_out(size):
    assert small().eval()(torch.randn(2, 3, *size)).shape == (2, 1, *size)


def test_without_attention_the_field_is_that_of_its_convolutions():
    """By hand along the deepest path, in pixels of the image.

    Back from the output: MSCAF of the PFF and the finest decoder level (5 + 1 + 5 on either
    side), three coarser decoder levels (6 each, of 2, 4 and 8 pixels), the bridge (two 7×7
    convolutions: 6 of 16 pixels), three CFFA levels (6 of 8, 4 and 2 pixels) and two 3×3
    convolutions make 11 + 6·(2 + 4 + 8) + 6·(16 + 8 + 4 + 2) + 2 = 277 on either side.
    Halving and doubling the grid shifts and widens this by less than 2·16.
    """
    model = CMPUNet([8] * 5)
    for part in list(model.modules()):
        if isinstance(part, MSCAF):
            part.attention = nn.Identity()
    rows = receptive_field(model, (640, 16)).any(axis=1)
    assert 2 * 277 + 1 <= rows.sum() <= 2 * 277 + 1 + 32


def test_eval_mode_is_deterministic_and_independent_of_the_batch():
    model = small(dropout=0.5).eval()
    x = torch.randn(3, 3, 32, 32)
    alone = torch.cat([model(x[i : i + 1]) for i in range(3)])
    assert torch.equal(model(x), model(x))
    assert torch.allclose(model(x), alone, atol=1e-5)
    model.train()
    assert not torch.equal(model(x), model(x))


def test_every_weight_gets_a_gradient():
    model = small()
    for name, parameter in model.named_parameters():
        # with few channels the perceptron of an attention may start with its hidden units at zero
        if name.endswith("perceptron.0.bias"):
            nn.init.constant_(parameter, 10.0)
    model(torch.randn(2, 3, 32, 32)).square().sum().backward()
    for name, parameter in model.named_parameters():
        if "weight" in name:
            assert parameter.grad.abs().sum() > 0, name


def test_weights_survive_a_round_trip(tmp_path):
    from safetensors.torch import load_file, save_file

    model = small().eval()
    save_file(model.state_dict(), tmp_path / "weights.safetensors")
    other = CMPUNet(WIDTHS).eval()
    other.load_state_dict(load_file(tmp_path / "weights.safetensors"))
    x = torch.randn(1, 3, 32, 32)
    assert torch.equal(model(x), other(x))


@pytest.mark.parametrize("widths", [(8,) * 4, (8,) * 6, (8, 8, 8, 8, 12), (8, 8, 8, 8, 0), ()])
def test_absurd_widths_are_named(widths):
    with pytest.raises(ValueError, match="widths"):
        CMPUNet(widths)
