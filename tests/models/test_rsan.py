"""DropBlock as a distribution, the residual blocks, and RSAN with its ablation."""

import math

import numpy as np
import pytest
import torch
import torch.nn as nn
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import binary_opening

from retina_lab.models import (
    RSAB,
    RSAN,
    DropBlock2d,
    ResidualBlock,
    build_model,
    count_parameters,
)
from retina_lab.models.rsan import pre_activation

# --------------------------------------------------------------------------- DropBlock

CASES = [
    # keep, block, height, width
    (0.75, 2, 4, 4),  # the case of notebook 05
    (0.85, 7, 48, 48),  # the paper's, for DRIVE
    (0.78, 7, 12, 30),  # the paper's, for CHASE_DB1, on a small map
    (0.9, 1, 16, 9),  # plain dropout
    (0.5, 4, 7, 5),
    (0.6, 5, 5, 5),  # one block is all there is
    (0.6, 9, 5, 8),  # the block is larger than the map
]


def dropped(keep, block, height, width, maps=4000, seed=0):
    """Maps × height × width, true where something was dropped."""
    torch.manual_seed(seed)
    mask = DropBlock2d(keep, block).mask(torch.ones(1, maps, height, width))
    assert set(mask.unique().tolist()) <= {0.0, 1.0}
    return (mask[0] == 0).numpy()


def test_gamma_and_expectation_of_a_4x4_map_by_hand():
    layer = DropBlock2d(keep=0.75, block_size=2)
    # a quarter of 16 pixels is one block of 4, and there are 3 × 3 places for it
    assert layer.gamma(4, 4) == pytest.approx(1 / 9)
    # 4 corners lie in one block, 8 pixels of the rim in two, 4 in the middle in four
    stays = 8 / 9
    share = (4 * (1 - stays) + 8 * (1 - stays**2) + 4 * (1 - stays**4)) / 16
    assert layer.expected_share(4, 4) == pytest.approx(share)


@pytest.mark.parametrize(("keep", "block", "height", "width"), CASES)
def test_the_dropped_share_is_the_exact_expectation(keep, block, height, width):
    share = dropped(keep, block, height, width).mean((1, 2))  # independent, one a map
    error = share.std() / math.sqrt(len(share))
    expected = DropBlock2d(keep, block).expected_share(height, width)
    assert abs(share.mean() - expected) < 4 * error
    assert 4 * error < 0.1 * expected  # or the line above would prove little


@pytest.mark.parametrize(("keep", "block", "height", "width"), CASES)
def test_the_expectation_counted_place_by_place(keep, block, height, width):
    layer = DropBlock2d(keep, block)
    b, gamma = min(block, height, width), layer.gamma(height, width)
    reach = np.zeros((height, width), int)
    for top in range(height - b + 1):
        for left in range(width - b + 1):
            reach[top : top + b, left : left + b] += 1
    assert layer.expected_share(height, width) == pytest.approx((1 - (1 - gamma) ** reach).mean())
    # without overlaps the blocks would cover exactly what was asked for
    assert gamma * reach.sum() / reach.size == pytest.approx(1 - keep)


@pytest.mark.parametrize(("keep", "block", "height", "width"), CASES)
def test_every_place_is_dropped_as_often_as_it_should_be(keep, block, height, width):
    seen = dropped(keep, block, height, width, maps=8000).mean(0)
    b, gamma = min(block, height, width), DropBlock2d(keep, block).gamma(height, width)
    reach = np.zeros((height, width), int)
    for top in range(height - b + 1):
        for left in range(width - b + 1):
            reach[top : top + b, left : left + b] += 1
    expected = 1 - (1 - gamma) ** reach
    assert np.all(np.abs(seen - expected) < 5.5 * np.sqrt(expected * (1 - expected) / 8000))


@settings(max_examples=40, deadline=None)
@given(
    keep=st.floats(0.3, 1),
    block=st.integers(1, 9),
    height=st.integers(1, 24),
    width=st.integers(1, 24),
    seed=st.integers(0, 1000),
)
def test_what_is_dropped_is_a_union_of_blocks(keep, block, height, width, seed):
    b = min(block, height, width)
    for hole in dropped(keep, block, height, width, maps=4, seed=seed):
        # an opening keeps exactly the pixels that lie in a b×b square of the hole
        padded = np.pad(hole, b)
        assert np.array_equal(binary_opening(padded, np.ones((b, b))), padded)
    layer = DropBlock2d(keep, block)
    assert 0 <= layer.gamma(height, width) <= 1 - keep + 1e-12
    assert layer.expected_share(height, width) <= 1 - keep + 1e-12


def test_channels_and_images_are_dropped_independently():
    torch.manual_seed(0)
    mask = DropBlock2d(0.7, 3).mask(torch.ones(40, 50, 12, 12))
    middle = mask[:, :, 6, 6]  # images × channels
    assert 0.5 < middle.mean() < 0.9
    assert middle.std(dim=0).min() > 0  # one mask for all images would give 0
    assert middle.std(dim=1).min() > 0  # one mask for all channels, too


def test_what_is_left_is_enlarged_so_that_the_mean_stays():
    torch.manual_seed(0)
    layer = DropBlock2d(0.8, 5)
    ones = layer(torch.ones(2, 3, 40, 40))
    assert ones.mean().item() == pytest.approx(1, abs=1e-5)
    kept = ones[ones > 0]
    assert kept.min() == kept.max() > 1
    x = torch.rand(8, 64, 40, 40) + 1  # on average, whatever the map holds
    assert layer(x).mean().item() == pytest.approx(x.mean().item(), rel=5e-3)


def test_values_that_stay_are_all_enlarged_alike():
    torch.manual_seed(0)
    layer, x = DropBlock2d(0.8, 3), torch.randn(2, 3, 20, 20)
    ratio = (layer(x) / x).unique()
    assert len(ratio[ratio > 0.5].round(decimals=4).unique()) == 1
    assert (ratio == 0).any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_does_not_bend_the_scale(dtype):
    torch.manual_seed(0)
    layer, x = DropBlock2d(0.85, 7), torch.ones(2, 16, 100, 100)  # more than 65504 values
    torch.manual_seed(1)
    exact = layer(x)
    torch.manual_seed(1)
    half = layer(x.to(dtype))
    assert half.dtype == dtype
    torch.testing.assert_close(half.float(), exact, atol=0, rtol=2**-8)


def test_eval_mode_and_keep_1_change_nothing():
    x = torch.randn(2, 3, 20, 20)
    assert DropBlock2d(0.5, 7).eval()(x) is x
    assert DropBlock2d(1.0, 7)(x) is x
    assert not torch.equal(DropBlock2d(0.5, 7)(x), x)


def test_a_map_that_is_dropped_whole_is_zero_and_not_nan():
    torch.manual_seed(0)
    layer = DropBlock2d(0.01, 4)
    outputs = torch.stack([layer(torch.ones(1, 1, 4, 4)) for _ in range(50)])
    assert torch.isfinite(outputs).all()
    assert (outputs == 0).flatten(1).all(1).float().mean() > 0.9


def test_dropped_values_get_no_gradient():
    torch.manual_seed(0)
    x = torch.randn(1, 2, 12, 12, requires_grad=True)
    out = DropBlock2d(0.7, 3)(x)
    out.sum().backward()
    assert torch.equal(x.grad == 0, out == 0)


def test_the_seed_decides():
    x = torch.ones(1, 4, 24, 24)
    layer = DropBlock2d(0.8, 5)
    torch.manual_seed(3)
    first = layer(x)
    torch.manual_seed(3)
    assert torch.equal(layer(x), first)
    assert not torch.equal(layer(x), first)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0.0, 7), "keep must be in"),
        ((1.2, 7), "keep must be in"),
        ((-0.1, 7), "keep must be in"),
        ((0.85, 0), "block_size must be at least 1"),
    ],
)
def test_absurd_settings_of_dropblock(arguments, message):
    with pytest.raises(ValueError, match=message):
        DropBlock2d(*arguments)


# --------------------------------------------------------------------- residual blocks


def test_the_order_of_pre_activation():
    body = pre_activation(3, 5, lambda: DropBlock2d(0.9))
    kinds = [type(layer) for layer in body]
    assert kinds == [nn.BatchNorm2d, nn.ReLU, nn.Conv2d, DropBlock2d] * 2
    assert (body[0].num_features, body[4].num_features) == (3, 5)


def test_a_residual_block_that_has_learned_nothing_hands_its_input_on():
    block = ResidualBlock(4, 4)
    nn.init.zeros_(block.body[-2].weight)
    nn.init.zeros_(block.body[-2].bias)
    x = torch.randn(2, 4, 6, 6)
    assert torch.equal(block(x), x)  # negative values too: no ReLU after the sum
    assert count_parameters(block) == 2 * (9 * 4 * 4 + 4 + 2 * 4)


def test_a_convolution_carries_the_input_where_the_width_changes():
    block = ResidualBlock(3, 5)
    nn.init.zeros_(block.body[-2].weight)
    nn.init.zeros_(block.body[-2].bias)
    x = torch.randn(2, 3, 6, 6)
    expected = torch.einsum("oi,nihw->nohw", block.shortcut.weight[:, :, 0, 0], x)
    torch.testing.assert_close(block(x), expected + block.shortcut.bias[None, :, None, None])


def test_rsab_written_out():
    torch.manual_seed(0)
    block, x = RSAB(4).eval(), torch.randn(2, 4, 9, 9)
    residual = block.body(x)
    planes = torch.stack([residual.max(dim=1).values, residual.mean(dim=1)], dim=1)
    weight = torch.sigmoid(nn.functional.conv2d(planes, block.attention.conv.weight, padding=3))
    normalised = nn.functional.batch_norm(x + weight * residual, torch.zeros(4), torch.ones(4))
    torch.testing.assert_close(block(x), normalised.relu())


def test_attention_turns_the_residual_down_and_never_the_input():
    block, x = RSAB(2).eval(), torch.rand(1, 2, 9, 9) + 1
    with torch.no_grad():
        block.body[-2].weight.zero_()
        block.body[-2].bias.fill_(1.0)  # the residual is 1 everywhere
        block.attention.conv.weight.fill_(-100.0)  # and its attention 0
    normalise = 1 / math.sqrt(1 + block.activation[0].eps)
    torch.testing.assert_close(block(x), normalise * x)


@pytest.mark.parametrize("block", [ResidualBlock(3, 2), ResidualBlock(2, 2), RSAB(2)])
def test_gradients_of_the_blocks(block):
    torch.manual_seed(0)
    block = block.double().eval()
    channels = block.body[0].num_features
    x = torch.randn(1, channels, 4, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(block, (x,))


# -------------------------------------------------------------------------------- RSAN


def residual(before, after):
    body = 2 * before + 9 * before * after + after + 2 * after + 9 * after * after + after
    return body + (before * after + after) * (before != after)


EXTRA = {"rsab": (98, 1), "rsab without attention": (0, 1), "residual": (0, 0)}


def rsan_by_hand(widths, second, channels=3):
    *levels, bridge = widths
    attention, ending = EXTRA[second]

    def level(before, width):
        second = residual(width, width) + attention + 2 * width * ending
        return residual(before, width) + second

    total, before = 0, channels
    for width in widths:
        total += level(before, width)
        before = width
    below = bridge
    for width in levels[::-1]:
        total += 4 * below * width + width + level(2 * width, width)
        below = width
    return total + levels[0] + 1


@pytest.mark.parametrize("second", EXTRA)
@pytest.mark.parametrize("widths", [(16, 32, 64, 128), (6, 11, 22, 44), (4, 8)])
def test_parameters_of_rsan(widths, second):
    assert count_parameters(RSAN(widths, second=second)) == rsan_by_hand(widths, second)


def test_an_unknown_second_block_is_named():
    with pytest.raises(ValueError, match="not 'cbam'"):
        RSAN((4, 8), second="cbam")


def test_the_control_lacks_attention_alone_and_begins_with_the_same_weights():
    models = []
    for name in ("small-rsan", "small-rsan-no-attention"):
        torch.manual_seed(3)
        models.append(build_model(name).eval())
    rsan, control = models
    weights = {k: v for k, v in rsan.state_dict().items() if ".attention." not in k}
    assert len(rsan.state_dict()) - len(weights) == 7
    assert list(weights) == list(control.state_dict())
    assert all(torch.equal(weights[k], v) for k, v in control.state_dict().items())
    # attention that lets everything through makes the one the other
    for module in rsan.modules():
        if isinstance(module, RSAB):
            module.attention = nn.Identity()
    x = torch.randn(1, 3, 16, 16)
    assert torch.equal(rsan(x), control(x))


@pytest.mark.parametrize("size", ["", "small-"])
def test_the_three_steps_of_the_ablation(size):
    steps = [build_model(f"{size}rsan{step}") for step in ("-backbone", "-dropblock", "")]
    backbone, dropblock, rsan = steps
    drops = [[m.keep for m in model.modules() if isinstance(m, DropBlock2d)] for model in steps]
    # four convolutions in each of seven levels; the backbone's DropBlocks do nothing
    assert drops == [[1.0] * 28, [0.85] * 28, [0.85] * 28]
    assert list(backbone.state_dict()) == list(dropblock.state_dict())
    assert count_parameters(backbone) == count_parameters(dropblock)

    blocks = [m for m in rsan.modules() if isinstance(m, RSAB)]
    assert len(blocks) == 7
    assert not any(isinstance(m, RSAB) for m in dropblock.modules())
    extra = sum(98 + count_parameters(block.activation) for block in blocks)
    assert count_parameters(rsan) - count_parameters(dropblock) == extra
    convolutions = [sum(isinstance(m, nn.Conv2d) for m in model.modules()) for model in steps]
    assert convolutions == [convolutions[0], convolutions[0], convolutions[0] + 7]


def test_the_small_ones_are_about_as_large_as_the_small_unet():
    reference = count_parameters(build_model("small-unet"))
    for step in ("-backbone", "-dropblock", ""):
        assert abs(count_parameters(build_model(f"small-rsan{step}")) / reference - 1) < 0.05


@pytest.mark.parametrize("size", [(1, 1), (7, 9), (16, 16), (33, 50)])
def test_any_size_goes_through_rsan(size):
    model = build_model("small-rsan").eval()
    assert model(torch.randn(2, 3, *size)).shape == (2, 1, *size)
    if min(size) > 6:
        assert model.train()(torch.randn(2, 3, *size)).shape == (2, 1, *size)


def test_rsan_is_random_in_training_only():
    torch.manual_seed(0)
    model, x = build_model("small-rsan"), torch.randn(2, 3, 32, 32)
    assert not torch.equal(model(x), model(x))
    model.eval()
    assert torch.equal(model(x), model(x))
    alone = torch.cat([model(x[i : i + 1]) for i in range(2)])
    torch.testing.assert_close(model(x), alone, atol=1e-5, rtol=1e-5)
    calm = build_model("small-rsan-backbone").train()
    assert torch.equal(calm(x), calm(x))


def test_every_weight_of_rsan_gets_a_gradient():
    torch.manual_seed(0)
    model = RSAN((4, 8, 16))
    model(torch.randn(2, 3, 32, 32)).square().sum().backward()
    for name, parameter in model.named_parameters():
        if "weight" in name:
            assert parameter.grad.abs().sum() > 0, name


def test_weights_of_rsan_survive_a_round_trip(tmp_path):
    from safetensors.torch import load_file, save_file

    model, other = build_model("small-rsan").eval(), build_model("small-rsan").eval()
    save_file(model.state_dict(), tmp_path / "weights.safetensors")
    other.load_state_dict(load_file(tmp_path / "weights.safetensors"))
    x = torch.randn(1, 3, 16, 16)
    assert torch.equal(model(x), other(x))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"widths": (8,)}, "at least 2 widths"),
        ({"widths": (8, 0)}, "at least 2 widths"),
        ({"widths": (4, 8), "keep": 0}, "keep must be in"),
    ],
)
def test_absurd_settings_of_rsan(arguments, message):
    with pytest.raises(ValueError, match=message):
        RSAN(**arguments)
