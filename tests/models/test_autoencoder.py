"""Autoencoders of vessel trees: the table of the DR-synthesis report, and the code's distance."""

import math

import pytest
import torch
import torch.nn as nn
from torch.distributions import Normal
from torch.distributions import kl_divergence as exact_divergence

from retina_lab.models import count_parameters
from retina_lab.models.autoencoder import (
    CodeDiscriminator,
    TreeAutoencoder,
    TreeDecoder,
    TreeEncoder,
    kl_divergence,
)
from tests.conftest import assert_every_weight_learns


def channels(module, kind):
    return [layer.out_channels for layer in module.modules() if isinstance(layer, kind)]


def test_the_encoder_is_the_reports():
    """D64 C64 D128 C128 D256 C256 D512 C512 D512 C512 D512 C512 D512 C512 D512, μ and σ."""
    encoder = TreeEncoder(256, 32)
    widths = [64, 128, 256, 512, 512, 512, 512]
    assert channels(encoder, nn.Conv2d) == [c for c in widths for _ in range(2)] + [512]
    strides = [m.stride[0] for m in encoder.modules() if isinstance(m, nn.Conv2d)]
    assert strides == [2, 1] * 7 + [2]
    assert encoder.body(torch.zeros(1, 1, 256, 256)).shape == (1, 512, 1, 1)
    assert (encoder.mean.in_features, encoder.mean.out_features) == (512, 32)


def test_the_decoder_is_the_reports():
    """F512 U512 U512 U512 U512 U256 C256 U128 C128 U64 C64 U64 C64 C1."""
    decoder = TreeDecoder(256, 32)
    assert decoder.start[0].out_features == 512
    expected = [512] * 4 + [256, 256, 128, 128, 64, 64, 64, 64, 1]
    assert channels(decoder, nn.Conv2d) == expected
    assert sum(isinstance(m, nn.Upsample) for m in decoder.modules()) == 8


@pytest.mark.parametrize("size", [16, 32, 64, 128])
def test_every_size_goes_down_to_a_pixel_and_back(size):
    model = TreeAutoencoder(size, latent=5, width=4).eval()
    tree = torch.rand(2, 1, size, size)
    logits, code, mean, log_variance = model(tree)
    assert logits.shape == tree.shape
    assert code.shape == mean.shape == log_variance.shape == (2, 5)


@pytest.mark.parametrize("size", [0, 8, 48, 100, 2048])
def test_other_sizes_are_named(size):
    with pytest.raises(ValueError, match=f"power of two from 16 to 1024 pixels, not {size}"):
        TreeAutoencoder(size)


@pytest.mark.parametrize("settings", [{"latent": 0}, {"width": 0}])
def test_absurd_settings_are_named(settings):
    with pytest.raises(ValueError, match="at least 1"):
        TreeAutoencoder(32, **settings)


def test_codes_have_the_mean_and_the_variance_asked_for():
    torch.manual_seed(0)
    mean, log_variance = torch.tensor([[1.0, -2.0]]), torch.tensor([[math.log(4.0), -2.0]])
    codes = TreeAutoencoder.sample(mean.expand(20000, 2), log_variance.expand(20000, 2))
    assert codes.mean(0).tolist() == pytest.approx([1, -2], abs=0.05)
    assert codes.var(0).tolist() == pytest.approx([4, math.exp(-2)], rel=0.05)


@pytest.mark.parametrize(
    ("mean", "variance", "expected"),
    [
        ([0.0, 0.0], [1.0, 1.0], 0.0),
        ([1.0, 0.0], [1.0, 1.0], 0.5),
        ([0.0], [math.e], (math.e - 2) / 2),
    ],
)
def test_divergence_by_hand(mean, variance, expected):
    found = kl_divergence(torch.tensor([mean]), torch.tensor([variance]).log())
    assert found.item() == pytest.approx(expected, abs=1e-6)


def test_divergence_agrees_with_torch():
    mean, log_variance = torch.randn(4, 6), torch.randn(4, 6)
    exact = exact_divergence(Normal(mean, (0.5 * log_variance).exp()), Normal(0.0, 1.0))
    torch.testing.assert_close(kl_divergence(mean, log_variance), exact.sum(1).mean())


@pytest.mark.parametrize(
    ("hidden", "expected"), [((), 33), ((256, 256), 33 * 256 + 257 * 256 + 257)]
)
def test_parameters_of_the_codes_discriminator(hidden, expected):
    judge = CodeDiscriminator(32, hidden)
    assert count_parameters(judge) == expected
    assert judge(torch.zeros(5, 32)).shape == (5, 1)


def test_a_dense_layer_does_not_see_a_wrong_spread():
    """Its verdicts on codes of any symmetric spread have the same mean; only their own spread
    differs, and the threshold cannot tell (the report's discriminator)."""
    torch.manual_seed(0)
    judge, wide = CodeDiscriminator(4, ()).eval(), 3 * torch.randn(50000, 4)
    narrow = wide / 3
    means = [judge(c).mean().item() for c in (wide, narrow)]
    assert means[0] == pytest.approx(means[1], abs=0.05)


def test_every_weight_learns():
    model = TreeAutoencoder(32, 4, 8)
    logits, _, mean, log_variance = model(torch.rand(3, 1, 32, 32))
    (logits.square().mean() + kl_divergence(mean, log_variance)).backward()
    assert_every_weight_learns(model)
