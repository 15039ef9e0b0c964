import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from retina_lab.losses import (
    LOSSES,
    bce_loss,
    build_loss,
    dice_loss,
    focal_loss,
    soft_cldice_loss,
    soft_skeleton,
)


def logit(p):
    return math.log(p / (1 - p))


def maps(rows):
    """Nested lists (H, W) → (1, 1, H, W) doubles."""
    return torch.tensor([[rows]], dtype=torch.float64)


# logits (2, 2), target (2, 2), expected
BCE = [
    ([[0, 0], [0, 0]], [[1, 0], [1, 0]], math.log(2)),
    ([[logit(0.9), logit(0.2)], [0, 0]], [[1, 0], [1, 0]],
     (-math.log(0.9) - math.log(0.8) + 2 * math.log(2)) / 4),
    ([[200, -200], [200, -200]], [[1, 0], [1, 0]], 0.0),
    ([[-200, 0], [0, 0]], [[1, 0], [1, 0]], (200 + 3 * math.log(2)) / 4),
]  # fmt: skip


@pytest.mark.parametrize(("logits", "target", "expected"), BCE)
def test_bce_by_hand(logits, target, expected):
    assert bce_loss(maps(logits), maps(target)).item() == pytest.approx(expected, abs=1e-9)


# p = ½ everywhere: overlap = ½ · 2, total = ½ · 4 + 2; smooth 1.
DICE = [
    ([[0, 0], [0, 0]], [[1, 0], [1, 0]], 1 - (2 * 1 + 1) / (4 + 1)),
    ([[99, -99], [99, -99]], [[1, 0], [1, 0]], 0.0),
    ([[-99, 99], [-99, 99]], [[1, 0], [1, 0]], 1 - 1 / (4 + 1)),
    ([[-99, -99], [-99, -99]], [[0, 0], [0, 0]], 0.0),
]


@pytest.mark.parametrize(("logits", "target", "expected"), DICE)
def test_dice_by_hand(logits, target, expected):
    assert dice_loss(maps(logits), maps(target)).item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    ("p", "y", "alpha", "gamma", "expected"),
    [
        (0.9, 1, 0.75, 2, -0.75 * 0.1**2 * math.log(0.9)),
        (0.9, 0, 0.75, 2, -0.25 * 0.9**2 * math.log(0.1)),
        (0.3, 1, 0.5, 0, -0.5 * math.log(0.3)),
        (0.5, 1, 1.0, 1, 0.5 * math.log(2)),
    ],
)
def test_focal_by_hand(p, y, alpha, gamma, expected):
    value = focal_loss(maps([[logit(p)]]), maps([[y]]), alpha=alpha, gamma=gamma)
    assert value.item() == pytest.approx(expected)


@pytest.mark.parametrize("gamma", [0.5, 1.0, 2.0])
def test_focal_has_a_gradient_where_the_network_is_sure(gamma):
    logits = torch.tensor([[[[-200.0, 200.0, 0.0]]]], requires_grad=True)
    focal_loss(logits, torch.tensor([[[[0.0, 1.0, 1.0]]]]), gamma=gamma).backward()
    assert logits.grad.isfinite().all()
    assert logits.grad[..., 2].item() < 0


def test_focal_agrees_with_monai():
    monai = pytest.importorskip("monai.losses")
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 1, 6, 7, generator=generator)
    target = (torch.rand(2, 1, 6, 7, generator=generator) < 0.3).float()
    theirs = monai.FocalLoss(gamma=2.0, alpha=0.75, use_softmax=False)(logits, target)
    assert focal_loss(logits, target).item() == pytest.approx(theirs.item(), rel=1e-5)


def test_dice_agrees_with_monai():
    monai = pytest.importorskip("monai.losses")
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(3, 1, 8, 9, generator=generator)
    target = (torch.rand(3, 1, 8, 9, generator=generator) < 0.2).float()
    theirs = monai.DiceLoss(sigmoid=True, smooth_nr=1.0, smooth_dr=1.0)(logits, target)
    assert dice_loss(logits, target).item() == pytest.approx(theirs.item(), rel=1e-5)


def test_skeleton_of_a_bar_is_its_middle_row():
    bar = torch.zeros(1, 1, 11, 21)
    bar[..., 4:7, 2:19] = 1
    skeleton = soft_skeleton(bar)[0, 0]
    assert skeleton[5, 4:17].tolist() == [1.0] * 13
    assert skeleton[:, 10].sum() == 1


def test_cldice_is_zero_for_the_truth_and_sees_a_gap():
    truth = torch.zeros(1, 1, 15, 40)
    truth[..., 6:9, 2:38] = 1
    sure = torch.where(truth > 0, 40.0, -40.0)
    assert soft_cldice_loss(sure, truth).item() == pytest.approx(0, abs=1e-6)
    gap = sure.clone()
    gap[..., 18:24] = -40
    # 6 of about 36 columns of the true centre line are lost, nothing is claimed falsely.
    sensitivity = (36 - 6 + 1) / (36 + 1)
    expected = 1 - 2 * sensitivity / (1 + sensitivity)
    assert soft_cldice_loss(gap, truth).item() == pytest.approx(expected, abs=0.02)


def test_cldice_counts_a_thin_vessel_like_a_thick_one():
    """Losing the thin of two vessels costs Dice little and clDice as much as the thick one."""
    truth = torch.zeros(1, 1, 40, 40)
    truth[..., 5, 2:38] = 1
    truth[..., 20:29, 2:38] = 1
    thin_lost = torch.where(truth > 0, 40.0, -40.0)
    thin_lost[..., 5, :] = -40
    thick_lost = torch.where(truth > 0, 40.0, -40.0)
    thick_lost[..., 20:29, :] = -40
    assert dice_loss(thick_lost, truth) > 10 * dice_loss(thin_lost, truth)
    assert soft_cldice_loss(thick_lost, truth) < 2 * soft_cldice_loss(thin_lost, truth)


@pytest.mark.parametrize("name", LOSSES)
def test_gradient_is_the_derivative(name):
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(2, 1, 5, 6, generator=generator, dtype=torch.float64, requires_grad=True)
    target = (torch.rand(2, 1, 5, 6, generator=generator) < 0.4).double()
    fov = (torch.rand(2, 1, 5, 6, generator=generator) < 0.8).double()
    assert torch.autograd.gradcheck(lambda x: LOSSES[name](x, target, fov), (logits,))


@pytest.mark.parametrize("name", LOSSES)
def test_outside_the_field_nothing_counts(name):
    generator = torch.Generator().manual_seed(4)
    logits = torch.randn(1, 1, 12, 12, generator=generator)
    target = (torch.rand(1, 1, 12, 12, generator=generator) < 0.4).float()
    fov = torch.zeros(1, 1, 12, 12)
    fov[..., 2:10, 2:10] = 1
    changed = torch.where(fov > 0, logits, torch.randn(1, 1, 12, 12, generator=generator))
    assert LOSSES[name](logits, target, fov) == LOSSES[name](changed, target, fov)
    assert LOSSES[name](logits, target, torch.zeros_like(fov)).item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("name", LOSSES)
@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000), split=st.integers(1, 3))
def test_a_batch_may_be_split_over_processes(name, seed, split):
    """The mean of the parts' losses, weighted by their size, is the loss of the whole."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(4, 1, 8, 8, generator=generator)
    target = (torch.rand(4, 1, 8, 8, generator=generator) < 0.3).float()
    whole = LOSSES[name](logits, target)
    parts = split * LOSSES[name](logits[:split], target[:split]) + (4 - split) * LOSSES[name](
        logits[split:], target[split:]
    )
    assert whole.item() == pytest.approx(parts.item() / 4, rel=1e-4, abs=1e-6)


def test_recipes():
    logits, target = torch.randn(1, 1, 4, 4), torch.ones(1, 1, 4, 4)
    expected = bce_loss(logits, target) + 0.5 * dice_loss(logits, target)
    assert build_loss("bce + 0.5 dice")(logits, target) == expected


@pytest.mark.parametrize(
    "recipe", ["", "bce +", "mse", "two dice", "-1 dice", "inf bce", "1 2 dice"]
)
def test_unreadable_recipes(recipe):
    with pytest.raises(ValueError):
        build_loss(recipe)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x, y: focal_loss(x, y, alpha=1.5), "alpha"),
        (lambda x, y: focal_loss(x, y, gamma=-1), "gamma"),
        (lambda x, y: dice_loss(x, y, smooth=0), "smooth"),
        (lambda x, y: soft_cldice_loss(x, y, iterations=0), "iterations"),
        (lambda x, y: bce_loss(x, y[0]), "both"),
        (lambda x, y: bce_loss(x, y, y[..., :2]), "fov"),
    ],
)
def test_absurd_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call(torch.zeros(1, 1, 4, 4), torch.zeros(1, 1, 4, 4))
