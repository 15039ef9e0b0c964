"""Vessel widths on bars and discs whose width is known."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retina_lab.metrics import skeleton
from retina_lab.vessels import busiest_window, found_by_width, vessel_widths, width_map


def bar(width, length=60, transpose=False):
    plane = np.zeros((width + 20, length), bool)
    plane[10 : 10 + width] = True
    return plane.T if transpose else plane


@pytest.mark.parametrize("width", range(1, 13))
@pytest.mark.parametrize("transpose", [False, True])
def test_bars_of_every_width(width, transpose):
    widths = vessel_widths(bar(width, transpose=transpose))
    assert np.median(widths) == width
    assert len(widths) > 30


@pytest.mark.parametrize("angle", [15, 30, 45, 60, 80])
@pytest.mark.parametrize("width", [3, 6, 9])
def test_slanted_bars(angle, width):
    y, x = np.mgrid[-40:41, -40:41]
    across = x * np.sin(np.deg2rad(angle)) - y * np.cos(np.deg2rad(angle))
    assert np.median(vessel_widths(np.abs(across) < width / 2)) == pytest.approx(width, abs=1)


def test_two_bars_are_weighted_by_length():
    plane = np.zeros((60, 200), bool)
    plane[10:13] = True  # 200 long
    plane[30:39, :100] = True  # 100 long
    widths = vessel_widths(plane)
    thin, thick = (np.abs(widths - 3) < 1).sum(), (np.abs(widths - 9) < 1).sum()
    assert thin == pytest.approx(200, abs=10)
    assert thick == pytest.approx(95, abs=10)


def test_only_inside_the_fov():
    plane = np.zeros((30, 60), bool)
    plane[5:8] = plane[20:27] = True
    fov = np.zeros_like(plane)
    fov[:15] = True
    assert vessel_widths(plane).max() == 7
    assert vessel_widths(plane, fov).max() == 3


def test_a_vessel_cut_by_the_frame_is_not_infinitely_wide():
    assert vessel_widths(np.ones((5, 5), bool)).max() <= 5


def test_nothing_gives_nothing():
    assert vessel_widths(np.zeros((9, 9), bool)).shape == (0,)


@pytest.mark.parametrize("width", range(1, 13))
def test_every_pixel_of_a_bar_has_its_width(width):
    plane = bar(width)
    widths = width_map(plane)
    assert (widths[~plane] == 0).all()
    middle = widths[10 : 10 + width, 20:40]  # away from the ends, where the centre line forks
    np.testing.assert_array_equal(middle, width)


def test_width_map_tells_thin_vessels_from_thick_ones():
    plane = np.zeros((60, 200), bool)
    plane[10:13] = True
    plane[30:39] = True
    widths = width_map(plane)[:, 20:-20]
    assert set(np.unique(widths[10:13])) == {3}
    assert set(np.unique(widths[30:39])) == {9}


def test_width_map_agrees_with_the_widths_of_the_centre_lines():
    plane = bar(4) | bar(7, 24).T.repeat(3, axis=1)[:24, :60]
    plane[:, 30:35] = True
    np.testing.assert_array_equal(width_map(plane)[skeleton(plane)], vessel_widths(plane))


def test_found_by_width_counts_thin_and_thick_apart():
    truth = np.zeros((60, 100), bool)
    truth[10:12] = True  # 2 wide, not found
    truth[30:39] = True  # 9 wide, upper five rows found
    prediction = np.zeros_like(truth)
    prediction[28:35] = True
    middle = np.zeros_like(truth)
    middle[:, 20:80] = True
    there, found = found_by_width(prediction, truth, middle)
    assert there[2] == 2 * 60
    assert found[2] == 0
    assert there[9] == 9 * 60
    assert found[9] == 5 * 60
    assert there.sum() == truth[middle].sum()
    assert found.sum() == (truth & prediction)[middle].sum()


def test_wider_than_the_widest_is_counted_with_it():
    truth = np.zeros((40, 100), bool)
    truth[10:30] = True
    there, found = found_by_width(truth, truth, widest=5)
    assert there.shape == (6,)
    assert there[5] == truth.sum() == found[5]


def test_found_by_width_refuses_maps_that_do_not_fit():
    plane = np.zeros((5, 6), bool)
    with pytest.raises(ValueError, match=r"prediction is \(6, 5\) but truth is \(5, 6\)"):
        found_by_width(plane.T, plane)
    with pytest.raises(ValueError, match=r"where is \(6, 5\)"):
        found_by_width(plane, plane, plane.T)
    with pytest.raises(ValueError, match="bool"):
        found_by_width(plane.astype(float), plane)


def test_no_vessels_have_no_width():
    assert not width_map(np.zeros((5, 6), bool)).any()


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 3))
def test_enlarging_a_map_enlarges_the_widths(seed, factor):
    rng = np.random.default_rng(seed)
    width = rng.integers(2, 6)
    small = bar(int(width))
    large = small.repeat(factor, 0).repeat(factor, 1)
    assert np.median(vessel_widths(large)) == factor * np.median(vessel_widths(small))


@pytest.mark.parametrize("bad", [np.zeros((3, 3)), np.zeros((3, 3, 3), bool), np.zeros(3, bool)])
def test_refuses_what_is_not_a_mask(bad):
    with pytest.raises(ValueError, match="vessels must be an H×W bool array"):
        vessel_widths(bad)
    with pytest.raises(ValueError, match="vessels must be an H×W bool array"):
        width_map(bad)


def test_refuses_a_fov_of_another_size():
    with pytest.raises(ValueError, match="fov"):
        vessel_widths(np.zeros((3, 3), bool), np.zeros((3, 4), bool))


def test_the_busiest_window_of_a_small_map():
    plane = np.zeros((5, 6), bool)
    plane[[1, 2, 3, 0], [4, 4, 5, 0]] = True
    assert busiest_window(plane, 3) == (slice(1, 4), slice(3, 6))
    assert busiest_window(plane, 1) == (slice(0, 1), slice(0, 1))  # the first of several
    assert busiest_window(plane, 99) == (slice(0, 5), slice(0, 5))


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 8))
def test_no_window_is_busier(seed, side):
    plane = np.random.default_rng(seed).random((9, 12)) < 0.2
    found = plane[busiest_window(plane, side)]
    windows = np.lib.stride_tricks.sliding_window_view(plane, (side, side))
    assert found.shape == (side, side)
    assert found.sum() == windows.sum((2, 3)).max()
