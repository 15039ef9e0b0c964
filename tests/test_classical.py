"""Detectors that learn nothing: kernels by hand, lines found in any direction."""

from dataclasses import replace

import numpy as np
import pytest

from retina_lab.classical import (
    CLASSICAL,
    as_map,
    inverted_green,
    line_kernel,
    matched_kernels,
    vesselness,
)
from retina_lab.datasets import FundusSample, open_split
from retina_lab.evaluate import choose_threshold, evaluate_maps


def striped(angle, side=270, width=4, level=120, dark=80):
    """A dark bar through the middle of an even field."""
    rows, columns = np.mgrid[:side, :side] - side // 2
    distance = rows * np.cos(angle) + columns * np.sin(angle)
    vessels = np.abs(distance) <= width / 2
    fov = np.hypot(rows, columns) < side * 0.47
    image = np.where(vessels, dark, level)[..., None].repeat(3, 2).astype(np.uint8)
    image[~fov] = 0
    return FundusSample("bar", image, fov, vessels & fov)


@pytest.mark.parametrize("name", CLASSICAL)
@pytest.mark.parametrize("angle", [0.0, 0.5, np.pi / 2, 2.0])
def test_a_bar_is_found_in_every_direction(name, angle):
    sample = striped(angle)
    found = CLASSICAL[name](sample)
    assert found.shape == sample.size
    assert found.dtype == np.float32
    assert found.min() >= 0
    assert found.max() <= 1
    assert (found[~sample.fov] == 0).all()
    rows, columns = np.mgrid[:270, :270] - 135
    middle = np.hypot(rows, columns) < 90  # away from the rim
    away = middle & (np.abs(rows * np.cos(angle) + columns * np.sin(angle)) > 12)
    on = middle & (np.abs(rows * np.cos(angle) + columns * np.sin(angle)) <= 1)
    assert found[on].min() > found[away].max()


@pytest.mark.parametrize("width", [2, 5, 8])
def test_a_vessel_of_any_width_is_seen_by_its_axis(width):
    """A filter in which the smallest scale always wins would see the two edges of a wide one."""
    sample = striped(0.0, width=width, side=240)
    found = vesselness(inverted_green(sample), sample.fov, [1, 1.5, 2, 3, 4])
    across = found[120 - width : 121 + width, 120]
    assert across[width] == pytest.approx(across.max())
    assert across[width] > 0.5


def test_the_black_border_is_continued_from_inside():
    sample = striped(0.3, dark=120)  # no bar: one even field
    assert np.ptp(inverted_green(sample)) == 0
    blind = replace(sample, fov=np.zeros_like(sample.fov))
    with pytest.raises(ValueError, match="bar: the field of view is empty"):
        inverted_green(blind)


def test_an_even_field_has_no_vessels():
    for detect in CLASSICAL.values():
        found = detect(striped(0.3, dark=120))
        assert np.ptp(found[striped(0.3).fov]) < 1e-3


@pytest.mark.parametrize("angles", [1, 12])
def test_matched_kernels_sum_to_zero_and_turn(angles):
    kernels = matched_kernels(2, 9, angles)
    assert len(kernels) == angles
    for kernel in kernels:
        assert kernel.sum() == pytest.approx(0, abs=1e-9)
        middle = kernel.shape[0] // 2
        assert kernel[middle, middle] == kernel.max() > 0
    first = kernels[0]  # along the row: the profile runs down the column
    middle = first.shape[0] // 2
    profile = first[:, middle]
    expected = np.exp(-(np.arange(-6, 7) ** 2) / 8)
    found = profile[middle - 6 : middle + 7]
    np.testing.assert_allclose(found - found[6], expected - expected[6], atol=1e-12)
    assert (profile[: middle - 6] == 0).all()


@pytest.mark.parametrize(
    ("length", "angle", "expected"),
    [
        (1, 0.7, [[1]]),
        (3, 0.0, [[0, 0, 0], [1, 1, 1], [0, 0, 0]]),
        (3, np.pi / 2, [[0, 1, 0], [0, 1, 0], [0, 1, 0]]),
        (3, np.pi / 4, [[0, 0, 1], [0, 1, 0], [1, 0, 0]]),
    ],
)
def test_line_kernels_by_hand(length, angle, expected):
    expected = np.array(expected, float)
    np.testing.assert_allclose(line_kernel(length, angle), expected / expected.sum())


def test_maps_are_standardised_in_the_field():
    fov = np.array([[True, True, False]])
    found = as_map(np.array([[1.0, 3.0, 100.0]]), fov)
    np.testing.assert_allclose(found, [[1 / (1 + np.e), 1 / (1 + np.exp(-1)), 0]], rtol=1e-6)
    assert (as_map(np.ones((1, 3)), fov) == [[0.5, 0.5, 0]]).all()


def test_they_beat_chance_on_phantoms_and_keep_their_order():
    split = open_split("phantom")
    train, test = list(split.train[:3]), list(split.test[:3])
    scores = {}
    for name, detect in CLASSICAL.items():
        maps = {s.name: detect(s) for s in [*train, *test]}
        threshold = choose_threshold(train, {s.name: maps[s.name] for s in train})
        report = evaluate_maps(
            test, {s.name: maps[s.name] for s in test}, threshold=threshold,
            threshold_from="training", bootstrap=0,
        ).fov  # fmt: skip
        scores[name] = report["dice"]["pooled"]
        assert report["auc_roc"]["pooled"] > 0.75, name
    assert min(scores.values()) > 0.35, scores
