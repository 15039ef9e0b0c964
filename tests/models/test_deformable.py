"""Deformable convolution against loops, hand-worked numbers and an independent sampler."""

import numpy as np
import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import map_coordinates

from retina_lab.models import UNet, build_model, count_parameters
from retina_lab.models.deformable import (
    ConvOffset2D,
    DeformableEncoderUNet,
    DeformConv2d,
    DUNet,
    DUNet9,
    OffsetConv,
    bilinear_sample,
    bilinear_sample_by_hand,
    bilinear_sample_vectorised,
    deform_conv2d,
    pixel_positions,
    sampling_grid,
)

EXAMPLE = torch.tensor([[1.0, 8], [4, 2]])  # the slides' x(0,0), x(1,0); x(0,1), x(1,1)
WIDTHS = (64, 128, 256, 512, 1024)
SMALL = (4, 6, 8, 10)


def points(*positions):
    """(y, x) pairs as the coordinates of one row, 1×2×1×P."""
    return torch.tensor(positions).T[None, :, None, :]


# ------------------------------------------------------------------- between the pixels

both_ways = pytest.mark.parametrize("sample", [bilinear_sample, bilinear_sample_vectorised])


@pytest.mark.parametrize(
    ("y", "x", "value"),
    [
        (0.3, 0.7, 4.91),  # .21·1 + .49·8 + .09·4 + .21·2
        (0.7, 0.3, 3.31),  # rows and columns exchanged: .21·1 + .09·8 + .49·4 + .21·2
        (0.0, 0.0, 1.0),
        (0.0, 1.0, 8.0),
        (1.0, 0.0, 4.0),
        (0.5, 0.5, 3.75),  # the mean of the four
        (0.0, 0.25, 2.75),
        (-2.0, 0.5, 4.5),  # outside: the nearest edge
        (9.0, 9.0, 2.0),
        (0.5, -0.1, 2.5),
    ],
)
@both_ways
def test_worked_numbers(sample, y, x, value):
    assert bilinear_sample_by_hand(EXAMPLE, y, x) == pytest.approx(value)
    sampled = sample(EXAMPLE[None, None], points((y, x)))
    assert sampled.item() == pytest.approx(value, abs=1e-5)


@both_ways
@settings(max_examples=40, deadline=None)
@given(
    size=st.tuples(st.integers(1, 6), st.integers(1, 6)),
    places=st.lists(st.tuples(*[st.floats(-3, 9)] * 2), min_size=1, max_size=5),
    seed=st.integers(0, 99),
)
def test_all_at_once_equals_one_by_one(sample, size, places, seed):
    images = torch.randn(2, *size, generator=torch.Generator().manual_seed(seed))
    found = sample(images[None], points(*places))[0, :, 0]  # 2×P
    expected = [[bilinear_sample_by_hand(im, y, x) for y, x in places] for im in images]
    torch.testing.assert_close(found, torch.tensor(expected), atol=1e-4, rtol=0)


@both_ways
def test_agrees_with_scipy(sample):
    rng = np.random.default_rng(0)
    image, where = rng.random((7, 11)), rng.uniform(-3, 13, (2, 5, 6))
    found = sample(torch.from_numpy(image)[None, None], torch.from_numpy(where)[None])
    expected = map_coordinates(image, where, order=1, mode="nearest")
    np.testing.assert_allclose(found[0, 0], expected, atol=1e-12)


@both_ways
def test_a_plane_is_reproduced_exactly_between_its_pixels(sample):
    """The weights sum to one and their centre of mass is the point itself."""
    rows, columns = pixel_positions(6, 9)
    plane = (2 * rows - 3 * columns + 1)[None, None].double()
    where = torch.rand(1, 2, 4, 4, dtype=torch.float64) * torch.tensor([5.0, 8]).view(1, 2, 1, 1)
    expected = 2 * where[:, :1] - 3 * where[:, 1:] + 1
    torch.testing.assert_close(sample(plane, where), expected)


@both_ways
def test_the_slope_at_the_worked_point(sample):
    where = points((0.3, 0.7)).requires_grad_()
    image = EXAMPLE.clone().requires_grad_()
    sample(image[None, None], where).backward()
    down, right = where.grad.flatten().tolist()
    assert right == pytest.approx(0.7 * (8 - 1) + 0.3 * (2 - 4), abs=1e-4)  # 4.3
    assert down == pytest.approx(0.3 * (4 - 1) + 0.7 * (2 - 8), abs=1e-4)  # −3.3
    weights = torch.tensor([[0.21, 0.49], [0.09, 0.21]])
    torch.testing.assert_close(image.grad, weights, atol=1e-6, rtol=0)


def test_the_middle_of_a_pixel_is_addressed_for_every_size():
    for size in [(1, 1), (1, 4), (5, 1), (3, 4)]:
        image = torch.arange(float(np.prod(size))).view(1, 1, *size)
        torch.testing.assert_close(bilinear_sample(image, pixel_positions(*size)[None]), image)
        grid = sampling_grid(pixel_positions(*size)[None], size)
        assert grid.shape == (1, *size, 2)
        assert grid.abs().max() < 1


# ------------------------------------------------------------------------- ConvOffset2D


def made_layer(channels, deviation=0.4, seed=0):
    torch.manual_seed(seed)
    return ConvOffset2D(channels, deviation)


def constant_offsets(dy, dx):
    """A layer on two channels that moves channel 0 by (dy, dx), given ones in channel 1."""
    layer = ConvOffset2D(2)
    with torch.no_grad():
        layer.conv.weight.zero_()
        layer.conv.weight[0, 1, 1, 1] = dy  # offset channel 0 reads channel 1 at its own pixel
        layer.conv.weight[1, 1, 1, 1] = dx
    return layer


def with_ones(picture):
    """(H, W) → 1×2×H×W."""
    return torch.stack([picture, torch.ones_like(picture)])[None]


@torch.no_grad()
def test_conv_offset_equals_a_loop():
    layer, x = made_layer(3), torch.randn(2, 3, 5, 6)
    offsets = F.conv2d(x, layer.conv.weight, padding=1)  # 2×6×5×6
    expected = torch.empty_like(x)
    for n, c, row, column in np.ndindex(*x.shape):
        dy, dx = offsets[n, 2 * c, row, column].item(), offsets[n, 2 * c + 1, row, column].item()
        expected[n, c, row, column] = bilinear_sample_by_hand(x[n, c], row + dy, column + dx)
    assert offsets.abs().max() > 1.5  # the loop is no trivial one
    torch.testing.assert_close(layer(x), expected, atol=1e-4, rtol=0)


def test_without_offsets_it_is_the_plain_convolution():
    layer, x = OffsetConv(3, 4), torch.randn(2, 3, 6, 7)
    nn.init.zeros_(layer[0].conv.weight)
    torch.testing.assert_close(layer[0](x), x, atol=1e-5, rtol=0)
    torch.testing.assert_close(layer(x), layer[1](x), atol=1e-5, rtol=0)


@pytest.mark.parametrize(("dy", "dx"), [(0, 1), (1, 0), (-2, 0), (1, -3), (0, 9)])
def test_whole_offsets_are_a_shift(dy, dx):
    picture = torch.randn(6, 7)
    moved = constant_offsets(dy, dx)(with_ones(picture))[0, 0]
    rows = (torch.arange(6) + dy).clamp(0, 5)  # the edge repeats
    columns = (torch.arange(7) + dx).clamp(0, 6)
    torch.testing.assert_close(moved, picture[rows][:, columns], atol=1e-4, rtol=0)


class Given(nn.Module):
    """Stands in for the convolution of a layer and answers with known offsets."""

    def __init__(self, *channels):
        super().__init__()
        self.offsets = torch.tensor([channels], dtype=torch.float32)

    def forward(self, x):
        return self.offsets


@torch.no_grad()
def test_order_of_the_offset_channels():
    """Δy of channel 0, its Δx, Δy of channel 1, its Δx.

    Public code reads (2C, H, W) as (C, H, W, 2). Two neighbouring pixels of one map would
    then be a pair, and the first channel would come out as [[3, 2], [3, 3]].
    """
    layer = ConvOffset2D(2)
    layer.conv = Given(
        [[1, 0], [0, 0]],
        [[1, 0], [0, -1]],
        [[0, 1], [0, 0]],
        [[0, 0], [1, 0]],
    )
    picture = torch.tensor([[1.0, 2], [3, 4]])
    first, second = layer(picture.expand(1, 2, 2, 2))[0].round(decimals=4).tolist()
    assert first == [[4, 2], [3, 3]]  # upper left looks down and right, lower right looks left
    assert second == [[1, 4], [4, 4]]  # upper right looks down, lower left looks right
    mispaired = layer.conv(None).reshape(2, 2, 2, 2).permute(0, 3, 1, 2)  # as in public code
    wrong = bilinear_sample(picture.expand(2, 1, 2, 2), pixel_positions(2, 2) + mispaired)
    assert wrong[0, 0].round(decimals=4).tolist() == [[3, 2], [3, 3]]


def test_each_channel_has_offsets_of_its_own():
    layer, x = made_layer(3), torch.randn(1, 3, 6, 6)
    before = layer.offsets(x)
    with torch.no_grad():
        layer.conv.weight[2:4] *= -1  # those of channel 1
    after = layer.offsets(x)
    torch.testing.assert_close(after[:, 1], -before[:, 1])
    assert torch.equal(after[:, [0, 2]], before[:, [0, 2]])


@pytest.mark.parametrize("channels", [1, 3, 64])
def test_parameters_of_conv_offset(channels):
    layer = ConvOffset2D(channels)
    assert count_parameters(layer) == 18 * channels**2
    assert layer.conv.bias is None


def test_offsets_start_small_but_not_at_zero():
    weight = made_layer(64, deviation=0.01).conv.weight
    assert weight.std().item() == pytest.approx(0.01, rel=0.02)
    assert abs(weight.mean().item()) < 2e-4


def test_gradcheck_of_conv_offset():
    layer, x = made_layer(2).double(), torch.randn(1, 2, 4, 5, dtype=torch.float64)
    assert layer.offsets(x).dtype == torch.float64
    coordinates = pixel_positions(4, 5) + layer.offsets(x)
    assert (coordinates - coordinates.round()).abs().min() > 1e-4  # no point on a kink
    weight = layer.conv.weight

    def run(x, weight):
        return torch.func.functional_call(layer, {"conv.weight": weight}, (x,))

    assert torch.autograd.gradcheck(run, (x.requires_grad_(), weight))


# ------------------------------------------------------------------------- DeformConv2d


def deform_by_loop(x, offset, weight, bias):
    """Kernel times value at every moved tap, one number after another."""

    def value(image, y, x):  # zero outside: the bilinear sum over the image, not clipped
        height, width = image.shape
        return sum(
            max(0, 1 - abs(r - y)) * max(0, 1 - abs(c - x)) * image[r, c].item()
            for r, c in np.ndindex(height, width)
        )

    n, _, height, width = x.shape
    side = weight.shape[-1]
    out = torch.empty(n, len(weight), height, width)
    for i, o, row, column in np.ndindex(*out.shape):
        total = bias[o].item()
        for tap, (a, b) in enumerate(np.ndindex(side, side)):
            dy = offset[i, 2 * tap, row, column].item()
            dx = offset[i, 2 * tap + 1, row, column].item()
            for channel, image in enumerate(x[i]):
                place = row + a - side // 2 + dy, column + b - side // 2 + dx
                total += weight[o, channel, a, b].item() * value(image, *place)
        out[i, o, row, column] = total
    return out


def made_case(side=3, size=(4, 5), n=1, before=2, after=3, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def randn(*shape):
        return torch.randn(shape, generator=generator)

    return (
        randn(n, before, *size),
        1.2 * randn(n, 2 * side**2, *size),
        randn(after, before, side, side),
        randn(after),
    )


@pytest.mark.parametrize(
    ("side", "size"), [(1, (3, 4)), (3, (4, 5)), (3, (1, 6)), (3, (4, 1)), (3, (1, 1)), (5, (3, 3))]
)
def test_deform_conv_equals_a_loop(side, size):
    case = made_case(side, size)
    torch.testing.assert_close(deform_conv2d(*case), deform_by_loop(*case), atol=1e-4, rtol=0)


@pytest.mark.parametrize("side", [1, 3, 5])
def test_deform_conv_agrees_with_torchvision(side):
    ops = pytest.importorskip("torchvision.ops", reason="torchvision is not installed")
    case = [t.requires_grad_() for t in made_case(side, (9, 8), n=2, before=3, after=4)]
    theirs = ops.deform_conv2d(*case, padding=side // 2)
    torch.testing.assert_close(deform_conv2d(*case), theirs, atol=1e-4, rtol=1e-4)
    probe = torch.randn_like(theirs)
    for one, other in zip(
        torch.autograd.grad((deform_conv2d(*case) * probe).sum(), case),
        torch.autograd.grad((theirs * probe).sum(), case),
        strict=True,
    ):
        torch.testing.assert_close(one, other, atol=1e-3, rtol=1e-3)


def test_it_starts_as_the_plain_convolution():
    layer, x = DeformConv2d(3, 4), torch.randn(2, 3, 6, 7)
    plain = F.conv2d(x, layer.weight, layer.bias, padding=1)
    torch.testing.assert_close(layer(x), plain, atol=1e-5, rtol=0)


def test_weights_start_as_those_of_a_plain_convolution():
    torch.manual_seed(0)
    layer, plain = DeformConv2d(16, 64), nn.Conv2d(16, 64, 3)
    for mine, its in ((layer.weight, plain.weight), (layer.bias, plain.bias)):
        assert mine.std().item() == pytest.approx(its.std().item(), rel=0.3)
        assert mine.abs().max() <= 1 / 12 + 1e-6  # 1/√(9·16)


def test_moving_all_taps_alike_is_a_shift_with_zeros_beyond():
    x, _, weight, bias = made_case(size=(6, 7))
    offset = torch.zeros(1, 9, 2, 6, 7)
    offset[:, :, 0], offset[:, :, 1] = 1, -2  # one down, two left
    found = deform_conv2d(x, offset.flatten(1, 2), weight, bias)
    padded = F.pad(x, (3, 1, 1, 2))  # two more on the left, one more below
    expected = F.conv2d(padded, weight, bias)[:, :, 1:, :7]
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize(("channel", "expected"), [(8, 4), (10, 7), (11, 5), (12, 4)])
def test_order_of_the_tap_offsets(channel, expected):
    """Channels 10 and 11 are Δy and Δx of the sixth tap, the one right of the middle."""
    x = torch.arange(9.0).view(1, 1, 3, 3)
    weight, offset = torch.zeros(1, 1, 3, 3), torch.zeros(1, 18, 3, 3)
    weight[0, 0, 1, 2] = 1  # so the output at row 1, column 0 is the input at column 1: 4
    offset[0, channel, 1, 0] = 1
    found = deform_conv2d(x, offset, weight, torch.zeros(1))
    assert found[0, 0, 1, 0].item() == pytest.approx(expected, abs=1e-4)


def test_all_channels_share_the_offsets():
    x, offset, weight, bias = made_case(before=1)
    twice = deform_conv2d(x.repeat(1, 2, 1, 1), offset, weight.repeat(1, 2, 1, 1), bias)
    once = deform_conv2d(x, offset, 2 * weight, bias)
    torch.testing.assert_close(twice, once, atol=1e-4, rtol=0)


def test_memory_format_does_not_matter():
    case = made_case(size=(6, 5), n=2, before=3)
    last = [t.to(memory_format=torch.channels_last) if t.dim() == 4 else t for t in case]
    torch.testing.assert_close(deform_conv2d(*last), deform_conv2d(*case), atol=1e-5, rtol=0)
    layer, x = made_layer(3), case[0]
    expected = layer(x)
    found = layer.to(memory_format=torch.channels_last)(x.to(memory_format=torch.channels_last))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("before", "after", "side"), [(3, 4, 3), (16, 8, 5), (2, 2, 1)])
def test_parameters_of_deform_conv(before, after, side):
    taps = side**2
    expected = taps * before * 2 * taps + 2 * taps + taps * before * after + after
    assert count_parameters(DeformConv2d(before, after, side)) == expected


@pytest.mark.parametrize("side", [0, 2, -1])
def test_a_kernel_needs_a_middle(side):
    with pytest.raises(ValueError, match=f"odd and positive, not {side}"):
        DeformConv2d(1, 1, side)


def test_gradcheck_of_deform_conv():
    case = [t.double().requires_grad_() for t in made_case(size=(3, 4))]
    assert torch.autograd.gradcheck(deform_conv2d, case)


# ---------------------------------------------------------------------- mixed precision


def test_coordinates_stay_in_float32_under_autocast():
    """bfloat16 has no number between 500 and 502, so a ramp would be read at 500, not 500.4."""
    ramp = torch.arange(600.0).expand(3, 600)
    layer = constant_offsets(0, 0.4)
    with torch.autocast("cpu", torch.bfloat16):
        moved = layer(with_ones(ramp))[0, 0]
        assert layer.conv(with_ones(ramp)).dtype == torch.bfloat16
        assert layer.offsets(with_ones(ramp)).dtype == torch.float32
    assert moved.dtype == torch.float32
    torch.testing.assert_close(moved[1, :599], ramp[1, :599] + 0.4, atol=2e-3, rtol=0)
    assert torch.tensor(500.4, dtype=torch.bfloat16).item() == 500


@pytest.mark.parametrize("make", [lambda: made_layer(8, 0.05), lambda: DeformConv2d(8, 8)])
def test_autocast_gives_nearly_the_same(make):
    layer, x = make(), torch.randn(2, 8, 12, 13)
    if isinstance(layer, DeformConv2d):
        nn.init.normal_(layer.offset.weight, std=0.05)
    expected = layer(x)
    with torch.autocast("cpu", torch.bfloat16):
        found = layer(x)
    assert (found - expected).abs().mean() < 0.01 * expected.abs().mean() + 0.003


def test_half_precision_in_half_precision_out():
    for layer in (made_layer(4), DeformConv2d(4, 4)):
        x = torch.randn(1, 4, 6, 6).bfloat16()
        assert layer.bfloat16()(x).dtype == torch.bfloat16


# ------------------------------------------------------------------------- the networks


def full_norm_unet(widths):
    """Parameters of the U-Net with BatchNorm everywhere, and of its running statistics."""
    total, normed, before = 0, 0, 3
    for width in widths:
        total += 9 * before * width + width + 9 * width * width + width
        before, normed = width, normed + 2 * width
    for width, below in zip(widths[-2::-1], widths[:0:-1], strict=True):
        total += 4 * below * width + width + 9 * 2 * width * width + width + 9 * width**2 + width
        normed += 2 * width
    return total + 2 * normed + widths[0] + 1, 2 * normed


@pytest.mark.parametrize(
    ("name", "trainable", "total"),
    [
        ("deformable-encoder-unet", 32_886_721, 32_898_497),
        ("du-net", 34_729_921, 34_741_697),
    ],
)
def test_counts_of_the_slides(name, trainable, total):
    with torch.device("meta"):
        model = build_model(name)
    assert count_parameters(model) == trainable
    assert count_parameters(model, trainable=False) == total
    plain, statistics = full_norm_unet(WIDTHS)
    sides = {"deformable-encoder-unet": 1, "du-net": 2}[name]
    assert trainable == plain + sides * 18 * (64**2 + 128**2 + 128**2 + 256**2)
    assert total - trainable == statistics == 11_776


def test_count_of_the_nine_point_network():
    with torch.device("meta"):
        counted = count_parameters(build_model("du-net-9"))
    convolved = [64, 128, 128, 256, 256, 128, 128, 64]  # inputs of its eight deformable layers
    assert counted == full_norm_unet(WIDTHS)[0] + sum(9 * 18 * c + 18 for c in convolved)


PLACES = {
    DeformableEncoderUNet: {"encoder.1.0.0": 6, "encoder.1.3.0": 7, "encoder.2.0.0": 7}
    | {"encoder.2.3.0": 8},
    DUNet: {"encoder.1.0.0": 6, "encoder.1.3.0": 7, "encoder.2.0.0": 7, "encoder.2.3.0": 8}
    | {"decoder.2.0.0": 14, "decoder.2.3.0": 7, "decoder.3.0.0": 12, "decoder.3.3.0": 6},
    DUNet9: {},
}


@pytest.mark.parametrize("kind", PLACES)
def test_places_of_the_offsets(kind):
    """The encoder's levels two and three, the decoder's two finest; each on its channels."""
    model = kind((6, 7, 8, 9, 10))
    found = {n: m.conv.in_channels for n, m in model.named_modules() if isinstance(m, ConvOffset2D)}
    assert found == PLACES[kind]
    nine = [n for n, m in model.named_modules() if isinstance(m, DeformConv2d)]
    levels = ["encoder.1", "encoder.2", "decoder.2", "decoder.3"]
    expected = [f"{level}.{place}" for level in levels for place in (0, 3)]
    assert nine == (expected if kind is DUNet9 else [])


@pytest.mark.parametrize("kind", PLACES)
def test_without_offsets_every_network_is_a_unet(kind):
    torch.manual_seed(0)
    model, plain = kind(SMALL).eval(), UNet(SMALL, bridge_norm=True).eval()
    for module in model.modules():
        if isinstance(module, ConvOffset2D):
            nn.init.zeros_(module.conv.weight)
    values = [
        value
        for name, value in model.state_dict().items()
        if not (".offset." in name or name.endswith((".0.conv.weight", ".1.conv.weight")))
    ]
    plain.load_state_dict(dict(zip(plain.state_dict(), values, strict=True)))
    x = torch.randn(1, 3, 16, 24)
    torch.testing.assert_close(model(x), plain(x), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", PLACES)
@pytest.mark.parametrize("size", [(1, 1), (8, 8), (17, 30)])
def test_any_size_in_logits_of_the_same_size_out(kind, size):
    model = kind(SMALL).eval()
    x = torch.randn(3, 3, *size)
    out = model(x)
    assert out.shape == (3, 1, *size)
    assert torch.equal(out, model(x))
    alone = torch.cat([model(x[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(out, alone, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", PLACES)
def test_offsets_learn(kind):
    torch.manual_seed(0)
    model = kind(SMALL)
    model(torch.randn(2, 3, 32, 32)).square().sum().backward()
    for name, parameter in model.named_parameters():
        if "weight" in name:
            assert parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize("kind", PLACES)
def test_weights_survive_a_round_trip(kind, tmp_path):
    from safetensors.torch import load_file, save_file

    one, other = kind(SMALL).eval(), kind(SMALL).eval()
    save_file(one.state_dict(), tmp_path / "weights.safetensors")
    other.load_state_dict(load_file(tmp_path / "weights.safetensors"))
    x = torch.randn(1, 3, 16, 16)
    assert torch.equal(one(x), other(x))


@pytest.mark.parametrize("kind", PLACES)
def test_too_few_levels_are_named(kind):
    with pytest.raises(ValueError, match="at least 4 widths, all positive"):
        kind((4, 8, 16))
