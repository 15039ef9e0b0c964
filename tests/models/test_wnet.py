"""The W-Net: its published counts, its two outputs, and the loss of both."""

import pytest
import torch
import torch.nn as nn

from retina_lab.losses import bce_loss, build_loss, deeply_supervised
from retina_lab.models import WNet, build_model, count_parameters
from retina_lab.models.wnet import BridgedSkip, LittleUNet, ShortcutBlock


def conv(before, after, side, bias=True):
    return before * after * side * side + after * bias


def shortcut_block(before, after):
    body = conv(before, after, 3) + conv(after, after, 3) + 2 * 2 * after
    return body + conv(before, after, 1, bias=False) + 2 * after


def little_unet(widths, channels=3):
    *levels, bridge = widths
    total, before = 0, channels
    for width in levels:
        total += shortcut_block(before, width)
        before = width
    total += shortcut_block(before, bridge)
    below = bridge
    for width in levels[::-1]:
        total += 4 * below * width + width  # up
        total += conv(width, width, 3) + 2 * width  # the convolution on the skip
        total += shortcut_block(2 * width, width)
        below = width
    return total + levels[0] + 1


def test_the_published_counts():
    assert little_unet((8, 16, 32)) == 34_201
    assert count_parameters(LittleUNet()) == 34_201
    # the second half sees one plane more: 8 kernels of 3×3 in the body, of 1×1 in the shortcut
    assert 2 * 34_201 + 8 * 9 + 8 == 68_482
    assert count_parameters(WNet()) == count_parameters(build_model("w-net")) == 68_482


@pytest.mark.parametrize(("widths", "channels"), [((4, 8), 3), ((8, 16, 32, 64), 1)])
def test_counts_of_other_widths(widths, channels):
    assert count_parameters(LittleUNet(widths, channels)) == little_unet(widths, channels)
    both = little_unet(widths, channels) + little_unet(widths, channels + 1)
    assert count_parameters(WNet(widths, channels)) == both


def test_in_training_a_pair_final_first_and_one_afterwards():
    torch.manual_seed(0)
    model, x = WNet((4, 8)), torch.randn(2, 3, 16, 16)
    outputs = model(x)
    assert isinstance(outputs, tuple)
    assert [tuple(o.shape) for o in outputs] == [(2, 1, 16, 16)] * 2

    model.eval()
    draft = model.first(x)
    final = model.second(torch.cat([x, draft], dim=1))
    assert torch.equal(model(x), final)
    assert not torch.allclose(final, draft)

    with torch.no_grad():  # the heads tell which is which, whatever BatchNorm does
        for half, value in ((model.first, 1.0), (model.second, 2.0)):
            half.head.weight.zero_()
            half.head.bias.fill_(value)
    final, draft = model.train()(x)
    assert torch.all(final == 2)
    assert torch.all(draft == 1)


def test_the_loss_is_taken_of_both():
    torch.manual_seed(0)
    model, x = WNet((4, 8)), torch.randn(2, 3, 16, 16)
    target = (torch.rand(2, 1, 16, 16) < 0.2).float()
    fov = (torch.rand(2, 1, 16, 16) < 0.9).float()
    final, draft = outputs = model(x)
    loss = deeply_supervised(bce_loss, outputs, target, fov)
    expected = bce_loss(final, target, fov) + bce_loss(draft, target, fov)
    torch.testing.assert_close(loss, expected)
    assert deeply_supervised(bce_loss, final, target, fov) == bce_loss(final, target, fov)


def test_the_first_half_learns_from_both_outputs():
    torch.manual_seed(0)
    model, x = WNet((4, 8)), torch.randn(2, 3, 16, 16)
    final, draft = model(x)
    weight = model.first.encoder[0].body[0].weight
    for output in (final, draft):
        (gradient,) = torch.autograd.grad(output.square().sum(), weight, retain_graph=True)
        assert gradient.abs().sum() > 0
    own = model.second.encoder[0].body[0].weight
    (gradient,) = torch.autograd.grad(draft.square().sum(), own, allow_unused=True)
    assert gradient is None


def test_every_weight_gets_a_gradient():
    torch.manual_seed(0)
    model = WNet((4, 8, 16))
    target = (torch.rand(2, 1, 16, 16) < 0.2).float()
    deeply_supervised(build_loss("bce + dice"), model(torch.randn(2, 3, 16, 16)), target).backward()
    for name, parameter in model.named_parameters():
        if "weight" in name:
            assert parameter.grad.abs().sum() > 0, name


def test_the_shortcut_adds():
    torch.manual_seed(0)
    block, x = ShortcutBlock(3, 4).eval(), torch.randn(1, 3, 8, 8)
    torch.testing.assert_close(block(x), block.body(x) + block.shortcut(x))
    kinds = [type(layer) for layer in block.body]
    assert kinds == [nn.Conv2d, nn.LeakyReLU, nn.BatchNorm2d] * 2


def test_only_the_skip_goes_through_the_convolution():
    torch.manual_seed(0)
    block = BridgedSkip(4).eval()
    skip, up = torch.randn(2, 1, 4, 8, 8).unbind()
    expected = block.block(torch.cat([up, block.bridge(skip)], dim=1))
    torch.testing.assert_close(block(torch.cat([skip, up], dim=1)), expected)


@pytest.mark.parametrize("size", [(1, 1), (7, 9), (16, 16), (33, 50)])
def test_any_size_in_logits_of_the_same_size_out(size):
    model = build_model("w-net").eval()
    assert model(torch.randn(2, 3, *size)).shape == (2, 1, *size)
    if min(size) > 4:  # BatchNorm wants more than one value in training
        assert [tuple(o.shape) for o in model.train()(torch.randn(2, 3, *size))] == [
            (2, 1, *size)
        ] * 2


def test_eval_mode_is_deterministic_and_independent_of_the_batch():
    model = build_model("w-net").eval()
    x = torch.randn(3, 3, 24, 16)
    alone = torch.cat([model(x[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(model(x), alone, atol=1e-5, rtol=1e-5)
    assert torch.equal(model(x), model(x))


def test_weights_survive_a_round_trip(tmp_path):
    from safetensors.torch import load_file, save_file

    model, other = build_model("w-net").eval(), build_model("w-net").eval()
    save_file(model.state_dict(), tmp_path / "weights.safetensors")
    other.load_state_dict(load_file(tmp_path / "weights.safetensors"))
    x = torch.randn(1, 3, 16, 16)
    assert torch.equal(model(x), other(x))


def test_it_trains_through_fit(made_samples):
    from retina_lab.train import fit

    run = fit(
        "w-net", made_samples[:3], made_samples[3:], epochs=2, crop=32, progress=False,
        threshold=False, device="cpu",
    )  # fmt: skip
    assert run.settings["parameters"] == 68_482
    assert run.history.val_dice.notna().any()
    assert isinstance(run.model(torch.randn(1, 3, 16, 16)), torch.Tensor)


@pytest.mark.parametrize("widths", [(8,), (), (8, 0)])
def test_absurd_widths_are_named(widths):
    with pytest.raises(ValueError, match="at least 2 widths"):
        WNet(widths)
