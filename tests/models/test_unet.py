import pytest
import torch
import torch.nn as nn

from retina_lab.models import MODELS, UNet, build_model, count_parameters, list_models
from retina_lab.models.unet import DoubleConv, VGANGenerator, pad_to_multiple


def by_hand(widths, channels=3, bridge_norm=False):
    """Weights and biases of every layer, written out."""

    def conv(before, after, side):
        return before * after * side * side + after

    total, before = 0, channels
    for width in widths[:-1]:
        total += conv(before, width, 3) + conv(width, width, 3) + 4 * width
        before = width
    bridge = widths[-1]
    total += conv(before, bridge, 3) + conv(bridge, bridge, 3) + 4 * bridge * bridge_norm
    below = bridge
    for width in widths[-2::-1]:
        total += conv(below, width, 2)
        total += conv(2 * width, width, 3) + conv(width, width, 3) + 4 * width
        below = width
    return total + conv(widths[0], 1, 1)


@pytest.mark.parametrize(
    ("widths", "bridge_norm", "expected"),
    [
        ((64, 128, 256, 512, 1024), False, 31_039_425),
        ((64, 128, 256, 512, 1024), True, 31_043_521),
        ((8, 16, 32, 64), True, None),
        ((4, 8), False, None),
    ],
)
def test_parameter_count(widths, bridge_norm, expected):
    counted = count_parameters(UNet(widths, bridge_norm=bridge_norm))
    assert counted == by_hand(widths, bridge_norm=bridge_norm)
    if expected is not None:
        assert counted == expected


def test_total_count_adds_running_statistics():
    # One BatchNorm of 4 channels after each of two convolutions: 2 × (4 + 4) numbers.
    block = DoubleConv(3, 4)
    assert count_parameters(block, trainable=False) - count_parameters(block) == 16


COUNTS = {  # from the sources where they tell, else by hand elsewhere in these tests
    "unet": 31_039_425,
    "deformable-encoder-unet": 32_886_721,
    "du-net": 34_729_921,
    "cmp-unet": 34_546_369,
    "rsan": 997_269,
    "rsan-chase": 997_269,
    "rsan-dropblock-chase": 995_879,
    "rsan-no-attention": 997_269 - 7 * 98,
    "w-net": 68_482,
    "small-unet": 121_529,
}


def test_every_model_is_listed_with_its_count():
    chance = torch.random.get_rng_state()
    rows = {row["name"]: row for row in list_models()}
    assert torch.equal(torch.random.get_rng_state(), chance)
    assert list(rows) == list(MODELS)
    assert all(row["source"] for row in rows.values())
    assert {name: rows[name]["trainable_parameters"] for name in COUNTS} == COUNTS


def test_v_gans_generator_repeats_pixels():
    """As a network with transposed convolutions, but for them and for its decoder's inputs."""
    narrow = (4, 6, 10)
    model = VGANGenerator(narrow)
    assert [m for m in model.up if not isinstance(m, nn.Upsample)] == []
    double = [(3, 4), (4, 6), (6, 10), (10 + 6, 6), (6 + 4, 4)]
    by_layers = sum(9 * a * b + b + 9 * b * b + b + 4 * b for a, b in double)
    assert count_parameters(model) == by_layers + 4 + 1
    assert model(torch.randn(2, 3, 13, 22)).shape == (2, 1, 13, 22)
    low = torch.arange(4.0).view(1, 1, 2, 2)
    assert model.up[0](low)[0, 0].tolist() == [[0, 0, 1, 1]] * 2 + [[2, 2, 3, 3]] * 2


@pytest.mark.parametrize("size", [(1, 1), (7, 9), (16, 16), (33, 50), (61, 17)])
def test_any_size_in_logits_of_the_same_size_out(size):
    model = build_model("tiny-unet").eval()
    out = model(torch.randn(2, 3, *size))
    assert out.shape == (2, 1, *size)


def test_there_is_no_sigmoid():
    assert not any(isinstance(m, nn.Sigmoid) for m in build_model("tiny-unet").modules())
    model = UNet((4, 8))
    nn.init.constant_(model.head.bias, 5.0)
    nn.init.zeros_(model.head.weight)
    assert torch.all(model(torch.zeros(1, 3, 8, 8)) == 5)


def test_padding_keeps_the_image_at_the_top_left():
    x = torch.arange(6.0).view(1, 1, 2, 3)
    padded = pad_to_multiple(x, 4)
    assert padded[0, 0].tolist() == [[0, 1, 2, 2], [3, 4, 5, 5], [3, 4, 5, 5], [3, 4, 5, 5]]
    assert pad_to_multiple(padded, 4).shape == padded.shape


def test_every_parameter_gets_a_gradient():
    model = UNet((4, 8, 16))
    model(torch.randn(2, 3, 16, 16)).square().sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        # A bias before BatchNorm cannot change the output; everything else can.
        if "weight" in name:
            assert parameter.grad.abs().sum() > 0, name


def test_eval_mode_is_deterministic_and_independent_of_the_batch():
    model = build_model("tiny-unet").eval()
    x = torch.randn(3, 3, 24, 24)
    alone = torch.cat([model(x[i : i + 1]) for i in range(3)])
    assert torch.allclose(model(x), alone, atol=1e-5)
    assert torch.equal(model(x), model(x))


def test_skip_connections_carry_the_finest_map():
    """Cutting the first skip changes the output; a plain autoencoder would not notice."""
    torch.manual_seed(0)
    model = UNet((4, 8, 16)).eval()
    x = torch.randn(1, 3, 16, 16)
    before = model(x)
    with torch.no_grad():
        model.decoder[-1][0].weight[:, :4] = 0  # the skip's channels come first
    assert not torch.allclose(before, model(x))


def test_weights_survive_a_round_trip(tmp_path):
    from safetensors.torch import load_file, save_file

    model = build_model("tiny-unet").eval()
    save_file(model.state_dict(), tmp_path / "weights.safetensors")
    other = build_model("tiny-unet").eval()
    other.load_state_dict(load_file(tmp_path / "weights.safetensors"))
    x = torch.randn(1, 3, 16, 16)
    assert torch.equal(model(x), other(x))


def test_agrees_with_monai_on_what_a_double_convolution_is():
    blocks = pytest.importorskip("monai.networks.nets.basic_unet")
    theirs = blocks.TwoConv(
        2, 3, 4, act=("relu", {"inplace": True}), norm="batch", bias=True, dropout=0.0
    ).eval()
    ours = DoubleConv(3, 4).eval()
    ours.load_state_dict(dict(zip(ours.state_dict(), theirs.state_dict().values(), strict=True)))
    x = torch.randn(1, 3, 9, 9)
    assert torch.allclose(ours(x), theirs(x), atol=1e-6)


@pytest.mark.parametrize("widths", [(8,), (), (8, 0), (8, -4)])
def test_absurd_widths_are_named(widths):
    with pytest.raises(ValueError, match="at least 2 widths, all positive"):
        UNet(widths)


def test_a_misspelt_name_gets_a_hint():
    with pytest.raises(ValueError, match="did you mean 'small-unet'"):
        build_model("smal-unet")
