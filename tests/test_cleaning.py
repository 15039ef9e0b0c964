"""Hysteresis and sweeping by hand, and the choice between them."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retina_lab import metrics
from retina_lab.cleaning import STEP, Cleaning, choose_cleaning
from retina_lab.datasets import FundusSample

ROW = [0.9, 0.5, 0.5, 0.2, 0.5, 0.0, 0.9]


@pytest.mark.parametrize(
    ("cleaning", "expected"),
    [
        (Cleaning(0.8, 0.8), [1, 0, 0, 0, 0, 0, 1]),
        (Cleaning(0.8, 0.5), [1, 1, 1, 0, 0, 0, 1]),  # joined to the sure one on the left
        (Cleaning(0.8, 0.2), [1, 1, 1, 1, 1, 0, 1]),
        (Cleaning(0.8, 0.5, 2), [1, 1, 1, 0, 0, 0, 0]),  # the crumb on the right goes
        (Cleaning(0.8, 0.8, 2), [0, 0, 0, 0, 0, 0, 0]),
    ],
)
def test_a_row_by_hand(cleaning, expected):
    probability = np.array([ROW])
    assert cleaning.vessels(probability).astype(int).tolist() == [expected]
    assert (metrics.binarise(cleaning.map(probability), 0.8) == cleaning.vessels(probability)).all()


def test_pieces_touch_at_corners():
    probability = np.eye(3) * 0.9
    assert Cleaning(0.5, 0.5, 3).vessels(probability).sum() == 3


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 10_000), st.floats(0.01, 1), st.floats(0.05, 1), st.integers(0, 12),
)  # fmt: skip
def test_laws(seed, threshold, share, smallest):
    probability = np.random.default_rng(seed).random((12, 14)) ** 2
    plain = Cleaning(threshold, threshold).vessels(probability)
    assert (plain == metrics.binarise(probability, threshold)).all()
    cleaning = Cleaning(threshold, max(1e-4, share * threshold), smallest)
    found, changed = cleaning.vessels(probability), cleaning.map(probability)
    assert (metrics.binarise(changed, threshold) == found).all()
    unswept = Cleaning(threshold, cleaning.faint).vessels(probability)
    assert (unswept >= plain).all()  # hysteresis adds
    assert (found <= unswept).all()  # sweeping takes away
    kept = found == plain
    np.testing.assert_allclose(changed[kept], probability[kept], atol=2 * STEP)


@pytest.mark.parametrize("bad", [(0.5, 0.6), (0.5, 0.0), (1.5, 0.5)])
def test_absurd_thresholds_are_named(bad):
    with pytest.raises(ValueError, match="faint ≤ threshold"):
        Cleaning(*bad)
    with pytest.raises(ValueError, match="smallest"):
        Cleaning(0.5, 0.5, -1)


def test_the_choice_mends_gaps_and_sweeps_crumbs_but_not_at_any_price():
    vessels = np.zeros((40, 60), bool)
    vessels[10] = vessels[30] = True
    probability = np.where(vessels, 0.9, 0.05)
    probability[10, 20:24] = 0.35  # a faint stretch
    probability[20, ::10] = 0.9  # crumbs of a single pixel
    fov = np.ones_like(vessels)
    image = np.zeros((40, 60, 3), np.uint8)
    sample = FundusSample("two", image, fov, vessels)
    chosen = choose_cleaning([sample], {"two": probability}, 0.5)
    assert (chosen.vessels(probability) == vessels).all()
    # here the sweep that would take the crumbs takes a true vessel too
    short = vessels & (np.arange(60) < 8)
    probability = np.where(short, 0.9, 0.05)
    probability[20, ::10] = 0.9
    sample = FundusSample("short", image, fov, short)
    chosen = choose_cleaning([sample], {"short": probability}, 0.5)
    assert chosen.vessels(probability)[short].all()
