"""The painters and their discriminator."""

import pytest
import torch
import torch.nn as nn

from retina_lab.models.fundus import (
    FundusGenerator,
    PairDiscriminator,
    TreeDiscriminator,
    TreeRefiner,
)
from retina_lab.models.receptive_field import field_by_formula
from tests.conftest import assert_every_weight_learns

SMALL = {"size": 32, "widths": (4, 8, 8)}


def test_pix2pix_goes_down_to_one_pixel():
    generator = FundusGenerator(256, [4, 8, 8, 8, 8, 8, 8, 8]).eval()
    assert generator(torch.rand(1, 1, 256, 256)).shape == (1, 3, 256, 256)
    dropouts = [m for m in generator.modules() if isinstance(m, nn.Dropout)]
    assert [d.p for d in dropouts] == [0.5] * 3


def test_mi_gan_puts_the_noise_beside_the_coarsest_maps():
    """400 numbers → 8×8×256 beside 8×8×512 at 512×512 pixels; the first doubling sees 768."""
    generator = FundusGenerator(512, (64, 128, 256, 512, 512, 512), noise=400)
    assert generator.from_noise(torch.zeros(1, 400)).shape == (1, 256, 8, 8)
    first = generator.decoder[0][0]
    assert (first.in_channels, first.out_channels) == (768, 512)


@pytest.mark.parametrize("noise", [0, 7])
def test_shapes_and_range(noise):
    generator = FundusGenerator(**SMALL, in_channels=3, noise=noise).eval()
    painted = generator(torch.rand(2, 3, 32, 32), torch.randn(2, noise) if noise else None)
    assert painted.shape == (2, 3, 32, 32)
    assert painted.abs().max() <= 1


def test_noise_changes_the_painting_and_nothing_else_does():
    generator = FundusGenerator(**SMALL, noise=5).eval()
    tree, noise = torch.rand(1, 1, 32, 32), torch.randn(1, 5)
    assert torch.equal(generator(tree, noise), generator(tree, noise))
    assert not torch.equal(generator(tree, noise), generator(tree, 2 * noise))


@pytest.mark.parametrize(
    ("settings", "call", "message"),
    [
        ({"size": 36, "widths": (4, 8, 8)}, None, "3 halvings do not divide 36"),
        ({"size": 32, "widths": (4,)}, None, "widths"),
        (SMALL, (torch.zeros(1, 1, 16, 16),), "paints 32×32 pixels, not 16×16"),
        (SMALL, (torch.zeros(1, 1, 32, 32), torch.zeros(1, 5)), "takes no random numbers"),
        ({**SMALL, "noise": 5}, (torch.zeros(1, 1, 32, 32),), "takes 5 random numbers"),
    ],
)
def test_misuse_is_named(settings, call, message):
    with pytest.raises(ValueError, match=message):
        FundusGenerator(**settings)(*call)


@pytest.mark.parametrize(("size", "halvings", "field"), [(256, 4, 78), (512, 5, 158)])
def test_sixteen_by_sixteen_verdicts(size, halvings, field):
    judge = PairDiscriminator(1, width=2, halvings=halvings)
    (verdict,) = judge(torch.zeros(1, 1, size, size), torch.zeros(1, 3, size, size))
    assert verdict.shape == (1, 1, 16, 16)
    assert field_by_formula(judge.trunk) == (field, field)


def test_mi_gans_discriminator_has_its_widths():
    judge = PairDiscriminator(1, width=32, halvings=5)
    widths = [m.out_channels for m in judge.modules() if isinstance(m, nn.Conv2d)]
    assert widths == [32, 64, 128, 256, 512, 1]


def test_every_weight_learns():
    generator, judge = FundusGenerator(**SMALL, noise=4), PairDiscriminator(1, 4, 2)
    tree = torch.rand(2, 1, 32, 32)
    judge(tree, generator(tree, torch.randn(2, 4)))[0].square().mean().backward()
    for network in (generator, judge):
        assert_every_weight_learns(network)


def test_a_refiner_hears_the_code():
    refiner = TreeRefiner(32, latent=5, widths=(4, 8, 8)).eval()
    blurred, codes = torch.rand(1, 1, 32, 32).expand(2, -1, -1, -1), torch.randn(2, 5)
    one, other = refiner(blurred, codes)
    assert one.shape == (1, 32, 32)
    assert not torch.allclose(one, other)
    with torch.no_grad():
        for weights in refiner.parameters():
            weights.mul_(0)
        refiner.head.bias.fill_(-2)
    assert (refiner(blurred, codes) == -2).all()  # logits: no tanh at the end
    with pytest.raises(ValueError, match="5 random numbers"):
        refiner(blurred, None)


def test_every_weight_of_refiner_and_judge_learns():
    refiner, judge = TreeRefiner(32, 5, (4, 8, 8)), TreeDiscriminator(4, 3)
    tree = refiner(torch.rand(3, 1, 32, 32), torch.randn(3, 5)).sigmoid()
    (verdicts,) = judge(tree[:, :0], tree)
    assert verdicts.shape == (3, 1, 4, 4)
    verdicts.square().sum().backward()
    assert_every_weight_learns(refiner)
    assert_every_weight_learns(judge)


def test_the_judge_of_trees_is_told_how_much_they_differ():
    judge = TreeDiscriminator(2, 1).eval()
    with torch.no_grad():
        judge.trunk[0].weight.zero_()
        judge.trunk[0].weight[:, 0, 1, 1] = 1  # every map: one pixel of each square of 2×2
        judge.trunk[0].bias.zero_()
        judge.trunk[-1].weight.zero_()
        judge.trunk[-1].weight[0, -1, 1, 1] = 1  # hears the spread and nothing else
        judge.trunk[-1].bias.zero_()
    black, white = torch.zeros(1, 1, 8, 8), torch.ones(1, 1, 8, 8)
    for trees, spread in ((black, black), 0.0), ((black, white), 0.5), ((black, 0.4 * white), 0.2):
        trees = torch.cat(trees)
        (verdicts,) = judge(trees[:, :0], trees)
        torch.testing.assert_close(verdicts, torch.full_like(verdicts, spread), atol=2e-4, rtol=0)
