"""Linear attention against ordinary loops, and the generator of M-CAM-GAN."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from retina_lab.models import LinearAttention, MCAMGenerator, build_model, count_parameters
from tests.conftest import assert_every_weight_learns


def attention(channels=6, heads=2, features=3):
    torch.manual_seed(0)
    layer = LinearAttention(channels, heads, features).double().eval()
    with torch.no_grad():  # running averages that are not those of a fresh layer
        layer.norm.running_mean.normal_()
        layer.norm.running_var.uniform_(0.5, 2)
    return layer


def test_linear_attention_equals_explicit_attention():
    """Pixel by pixel: softmax over features of Q, over pixels of K, then weigh the values."""
    layer, x = attention(), torch.randn(2, 6, 4, 5, dtype=torch.float64)
    qkv = layer.to_qkv(layer.norm(x)).flatten(2)  # N×18×20
    expected = torch.zeros(2, 6, 20, dtype=torch.float64)
    for n in range(2):
        for head in range(2):
            q, k, v = (qkv[n, part * 6 + head * 3 : part * 6 + head * 3 + 3] for part in range(3))
            for pixel in range(20):
                weights = [
                    sum(q[:, pixel].softmax(0)[d] * k[d].softmax(0)[other] for d in range(3))
                    for other in range(20)
                ]
                assert sum(weights).item() == pytest.approx(1)  # a weighted mean of the values
                for d in range(3):
                    expected[n, head * 3 + d, pixel] = sum(
                        w * v[d, other] for other, w in enumerate(weights)
                    )
    expected = x + layer.to_out(expected.reshape(2, 6, 4, 5))
    torch.testing.assert_close(layer(x), expected)


def test_the_order_of_the_pixels_does_not_matter():
    layer, x = attention(), torch.randn(1, 6, 4, 5, dtype=torch.float64)
    order = torch.randperm(20)

    def shuffle(maps):
        return maps.flatten(2)[:, :, order].reshape(maps.shape)

    torch.testing.assert_close(layer(shuffle(x)), shuffle(layer(x)))


def test_the_cost_is_linear_in_the_pixels():
    layer = LinearAttention(8)

    def multiply_adds(side):
        with FlopCounterMode(display=False) as counter:
            layer(torch.randn(1, 8, side, side))
        return counter.get_total_flops()

    assert multiply_adds(32) == 4 * multiply_adds(16) == 16 * multiply_adds(8) > 0


def test_gradients_of_linear_attention():
    layer = attention(channels=2, heads=1, features=2)
    x = torch.randn(1, 2, 2, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(layer, x)


@pytest.mark.parametrize(("height", "width"), [(16, 16), (17, 23), (1, 5)])
def test_any_size(height, width):
    model = MCAMGenerator((4, 6, 8)).eval()
    assert model(torch.randn(2, 3, height, width)).shape == (2, 1, height, width)


def test_parameters_by_hand():
    def block(before, after):
        shortcut = 0 if before == after else before * after + after
        return 2 * before + 9 * before * after + after + 2 * after + 9 * after**2 + after + shortcut

    def attended(before, after):
        inner = 2 * 5  # heads × features
        return block(before, after) + 2 * after + 3 * inner * after + inner * after + after

    up = 4 * 6 * 4 + 4
    expected = attended(3, 4) + attended(4, 6) + up + block(8, 4) + 2 * 4 + 4 + 1
    assert count_parameters(MCAMGenerator((4, 6), heads=2, features=5)) == expected


def test_the_small_one_is_as_large_as_the_others():
    small = count_parameters(build_model("small-m-cam-gan"))
    assert abs(small / count_parameters(build_model("small-unet")) - 1) < 0.05


def test_every_weight_learns_and_evaluation_is_deterministic():
    model = MCAMGenerator((4, 6, 8))
    model(torch.randn(2, 3, 16, 16)).square().mean().backward()
    assert_every_weight_learns(model)
    other = MCAMGenerator((4, 6, 8)).eval()
    other.load_state_dict(model.eval().state_dict())
    x = torch.randn(1, 3, 20, 12)
    assert torch.equal(model(x), other(x))


def test_widths_are_checked():
    with pytest.raises(ValueError, match="widths"):
        MCAMGenerator((8,))
