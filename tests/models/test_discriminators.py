"""V-GAN's four discriminators and M-CAM-GAN's: what a verdict sees, and what it costs."""

import pytest
import torch
import torch.nn as nn

from retina_lab.models import count_parameters
from retina_lab.models.discriminators import (
    DISCRIMINATORS,
    CAMAttention,
    MultiScaleCAMDiscriminator,
    build_discriminator,
)
from retina_lab.models.receptive_field import (
    extent,
    field_by_formula,
    receptive_field,
    view_by_formula,
)
from tests.conftest import assert_every_weight_learns


def pair(height, width, count=1):
    return torch.randn(count, 3, height, width), torch.rand(count, 1, height, width)


class Verdict(nn.Module):
    """One of a discriminator's outputs as a function of the stacked pair."""

    def __init__(self, discriminator, which=0):
        super().__init__()
        self.discriminator, self.which = discriminator, which

    def forward(self, x):
        return self.discriminator(x[:, :3], x[:, 3:])[self.which]


FIELDS = [
    # name, receptive field, verdicts on 640×640 as in V-GAN, on 512×512 as in MI-GAN
    ("pixel", 7, (640, 640), (512, 512)),
    ("patch-2", 61, (80, 80), (64, 64)),
    ("patch-1", 537, (10, 10), (8, 8)),
]


@pytest.mark.parametrize(("name", "side", "v_gan", "mi_gan"), FIELDS)
def test_fields_and_grids(name, side, v_gan, mi_gan):
    discriminator = build_discriminator(name, width=2).eval()
    assert field_by_formula(discriminator.trunk) == (side, side)
    for size, grid in ((640, v_gan), (512, mi_gan)):
        (verdict,) = discriminator(*pair(size, size))
        assert verdict.shape == (1, 1, *grid)


@pytest.mark.parametrize(
    ("name", "step", "start"), [("pixel", 1, -3), ("patch-2", 8, -27), ("patch-1", 64, -239)]
)
def test_where_the_fields_lie(name, step, start):
    view = view_by_formula(build_discriminator(name, width=1).trunk)
    assert (view.step, view.start) == ((step, step), (start, start))


@pytest.mark.parametrize(("name", "side"), [("pixel", 7), ("patch-2", 61)])
def test_the_formula_agrees_with_the_gradient(name, side):
    seen = receptive_field(Verdict(build_discriminator(name, width=1)), 160, channels=4)
    assert extent(seen) == (side, side)


def test_patch_1_agrees_with_the_gradient_along_a_strip():
    strip = receptive_field(Verdict(build_discriminator("patch-1", 1)), (768, 64), channels=4)
    rows = strip.any(axis=1).nonzero()[0]
    assert rows[-1] - rows[0] + 1 == 537


def test_the_image_discriminator_gives_one_verdict_and_sees_everything():
    discriminator = build_discriminator("image", width=1)
    (verdict,) = discriminator(*pair(128, 192, count=2))
    assert verdict.shape == (2, 1, 1, 1)
    assert receptive_field(Verdict(discriminator), (128, 192), at=(0, 0), channels=4).all()


@pytest.mark.parametrize(("which", "side"), [(1, 5), (3, 126), (5, 254)])
def test_the_fields_of_the_three_scales(which, side):
    verdict = Verdict(MultiScaleCAMDiscriminator(width=1), which)
    assert extent(receptive_field(verdict, 448 if side > 5 else 128, channels=4)) == (side, side)


def convolution(before, after, side):
    return before * after * side * side + after


@pytest.mark.parametrize("width", [4, 32])
def test_parameters_by_hand(width):
    stages = [(4, width)] + [(width * 2**i, width * 2 ** (i + 1)) for i in range(4)]

    def trunk(count):
        return sum(
            convolution(before, after, 3) + convolution(after, after, 3) + 4 * after
            for before, after in stages[:count]
        )

    expected = {
        "pixel": sum(convolution(b, a, 3) for b, a in stages[:3]) + 4 * width + 1,
        "patch-2": trunk(3) + 4 * width + 1,
        "patch-1": trunk(5) + 16 * width + 1,
        "image": trunk(5) + 16 * width + 1,
    }
    for name, count in expected.items():
        assert count_parameters(build_discriminator(name, width)) == count


def test_multi_scale_cam_gives_two_verdicts_a_scale():
    shapes = [tuple(v.shape) for v in build_discriminator("multi-scale-cam", 2)(*pair(256, 192, 2))]
    assert shapes == [
        (2, 1, 1, 1), (2, 1, 256, 192),
        (2, 1, 1, 1), (2, 1, 13, 9),
        (2, 1, 1, 1), (2, 1, 5, 3),
    ]  # fmt: skip


def test_the_mean_of_the_class_activation_map_is_the_verdict():
    attention, x = CAMAttention(6), torch.randn(2, 6, 5, 7)
    _, verdict = attention(x)
    mean = attention.activation_map(x).mean((2, 3), keepdim=True)
    torch.testing.assert_close(mean, verdict)


def test_class_activation_by_hand():
    """Two maps, one speaks for real and one against; each is multiplied by its weight."""
    attention = CAMAttention(2)
    with torch.no_grad():
        attention.classifier.weight.copy_(torch.tensor([[2.0, -1.0]]))
        attention.mix[0].weight.copy_(torch.eye(2)[:, :, None, None])
        attention.mix[0].bias.zero_()
    x = torch.tensor([[[[1.0, 3.0]], [[4.0, 0.0]]]])  # 1×2×1×2
    attended, verdict = attention(x)
    assert verdict.item() == 2 * 2 - 1 * 2
    assert attention.activation_map(x).flatten().tolist() == [2 - 4, 6]
    torch.testing.assert_close(attended[0, :, 0], torch.tensor([[2.0, 6.0], [-0.8, 0.0]]))


def test_activation_maps_are_those_of_the_verdicts():
    discriminator = build_discriminator("multi-scale-cam", 2).eval()
    image, vessels = pair(128, 160)
    maps = discriminator.activation_maps(image, vessels)
    verdicts = discriminator(image, vessels)[::2]
    assert [tuple(m.shape[2:]) for m in maps] == [(128, 160), (8, 10), (4, 5)]
    for activation, verdict in zip(maps, verdicts, strict=True):
        torch.testing.assert_close(activation.mean((2, 3), keepdim=True), verdict)


@pytest.mark.parametrize("name", DISCRIMINATORS)
def test_the_gradient_reaches_the_map_and_every_weight(name):
    discriminator = build_discriminator(name, 2)
    image, vessels = pair(128, 128, count=2)
    vessels.requires_grad_()
    sum(v.square().mean() for v in discriminator(image, vessels)).backward()
    assert vessels.grad.abs().sum() > 0
    assert_every_weight_learns(discriminator)


@pytest.mark.parametrize("name", DISCRIMINATORS)
def test_evaluation_is_deterministic_and_weights_reload(name):
    one, other = build_discriminator(name, 2).eval(), build_discriminator(name, 2).eval()
    x = pair(130, 150)
    other.load_state_dict(one.state_dict())
    for a, b, c in zip(one(*x), one(*x), other(*x), strict=True):
        assert torch.equal(a, b)
        assert torch.equal(a, c)


@pytest.mark.parametrize(
    ("name", "smallest"), [("patch-2", 8), ("patch-1", 64), ("image", 64), ("multi-scale-cam", 128)]
)
def test_the_smallest_image(name, smallest):
    discriminator = build_discriminator(name, 1).eval()
    discriminator(*pair(smallest, smallest))
    with pytest.raises(ValueError, match=f"at least {smallest}×{smallest} pixels"):
        discriminator(*pair(smallest - 1, smallest))


def test_what_is_not_a_pair_is_named():
    with pytest.raises(ValueError, match="do not make a pair"):
        build_discriminator("pixel", 1)(torch.zeros(1, 3, 8, 8), torch.zeros(1, 1, 8, 9))


def test_an_unknown_name_is_named():
    with pytest.raises(ValueError, match=r"unknown discriminator 'patch'.*patch-1"):
        build_discriminator("patch")
