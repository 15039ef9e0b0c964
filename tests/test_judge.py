"""Judging synthesis: statistics by hand, distances with known answers."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retina_lab.datasets import open_split
from retina_lab.judge import (
    READ_AT,
    STATISTICS,
    agreement,
    branching_points,
    compare_trees,
    fractal_dimension,
    halves,
    kernel_distance,
    line_length,
    mode_collapse,
    nearest,
    nearness,
    network_features,
    reader,
    tree_statistics,
    variety,
)
from retina_lab.pairs import make_pairs
from retina_lab.synthesis_grid import samples_of
from retina_lab.weights import load_shipped


def picture(text):
    return np.array([[c == "#" for c in row] for row in text.split()])


@pytest.mark.parametrize(
    ("line", "length"),
    [
        ("....", 0),
        ("#...", 0),
        ("####", 3),
        ("#... .#.. ..#. ...#", 3 * math.sqrt(2)),
        ("##.. .#.. .##.", 4),  # corners are walked around, not cut
    ],
)
def test_line_length(line, length):
    assert line_length(picture(line)) == pytest.approx(length)


@pytest.mark.parametrize(
    ("line", "number"),
    [("#####", 0), ("..#.. ..#.. #####", 1), ("#.# .#. .#.", 1), (".#...#. #######", 2)],
)
def test_branching_points(line, number):
    assert len(branching_points(picture(line))) == number


def test_dimensions_of_a_line_and_of_a_square():
    line, filled = np.zeros((256, 256), bool), np.ones((256, 256), bool)
    line[100] = True
    assert fractal_dimension(line) == pytest.approx(1)
    assert fractal_dimension(filled) == pytest.approx(2)
    assert math.isnan(fractal_dimension(np.zeros((256, 256), bool)))


def cross(size, width=1):
    vessels, fov = np.zeros((size, size), bool), np.ones((size, size), bool)
    middle = size // 2
    vessels[middle : middle + width] = True
    vessels[:, middle : middle + width] = True
    return vessels, fov


def test_statistics_of_a_cross():
    found = tree_statistics(*cross(101))
    assert list(found) == list(STATISTICS)
    assert found["vessel share"] == pytest.approx(201 / 101**2)
    assert found["length density"] == pytest.approx(200 / 101)  # two diameters of one each
    assert found["mean width"] == pytest.approx(1 / 101, rel=0.05)
    assert found["branchings"] == pytest.approx(0.5 * 101 / 100, rel=0.01)
    assert found["tortuosity"] == pytest.approx(1)
    assert found["pieces"] == 1


def test_tortuosity_of_a_half_circle():
    rows, columns = np.mgrid[:201, :201]
    radius = np.hypot(rows - 100, columns - 100)
    arc = (np.abs(radius - 80) < 1) & (rows <= 100)
    found = tree_statistics(arc, np.ones_like(arc))
    # the pixel grid makes a circle about 5 % longer
    assert found["tortuosity"] == pytest.approx(math.pi / 2, rel=0.08)


def test_statistics_do_not_depend_on_the_resolution():
    small, large = tree_statistics(*cross(101, 3)), tree_statistics(*cross(303, 9))
    for name in ("vessel share", "length density", "mean width", "branchings", "tortuosity"):
        assert small[name] == pytest.approx(large[name], rel=0.06), name


def test_an_empty_tree_and_an_empty_field():
    empty = np.zeros((64, 64), bool)
    found = tree_statistics(empty, ~empty)
    assert found["vessel share"] == found["pieces"] == found["length density"] == 0
    assert math.isnan(found["tortuosity"])
    with pytest.raises(ValueError, match="field of view is empty"):
        tree_statistics(empty, empty)
    with pytest.raises(ValueError, match="fov is"):
        tree_statistics(empty, ~empty[:5])


def test_trees_compared_with_themselves_and_with_others():
    def trees(width, count):
        return [cross(64 + 2 * i, width) for i in range(count)]

    real = trees(2, 12)
    one, other = halves(range(12))
    # the half that distances are measured from lies at no distance from itself
    same = compare_trees([real[i] for i in one], real)
    assert (same["distance"] == 0).all()
    swapped = compare_trees([real[i] for i in other], real)
    assert swapped["distance"].equals(swapped["control"])
    wide = compare_trees(trees(8, 6), real)
    assert wide.loc["mean width", "distance"] > 5
    assert wide.loc["mean width", "distance"] > wide.loc["mean width", "control"]
    blank = [(np.zeros_like(vessels), fov) for vessels, fov in trees(2, 6)]
    nothing = compare_trees(blank, real)
    assert math.isnan(nothing.loc["mean width", "distance"])
    # all real ones are of one piece, and these of none: no deviation is that large
    assert nothing.loc["pieces", "distance"] == math.inf
    # what is asked of blank trees does not hang on what was made
    assert nothing["control"].equals(same["control"])
    assert nothing["control"].notna().all()
    with pytest.raises(ValueError, match="at least two"):
        compare_trees(trees(2, 1), trees(2, 6))


def test_distance_and_control_are_between_groups_of_one_size():
    """Two samples of one distribution: neither figure may be larger on the whole."""
    rng = np.random.default_rng(0)
    fov = np.ones((48, 48), bool)

    def tree():
        vessels = np.zeros((48, 48), bool)
        vessels[:, 20 : 22 + rng.integers(8)] = True
        return vessels, fov

    larger = [
        np.sign(row["distance"] - row["control"])
        for _ in range(20)
        for row in [compare_trees([tree() for _ in range(8)], [tree() for _ in range(40)]).loc[
            "vessel share"
        ]]
    ]  # fmt: skip
    assert abs(np.mean(larger)) < 0.6


@pytest.mark.parametrize("seed", range(5))
def test_halves_keep_persons_together(seed):
    subjects = ["a", "a", "b", "c", "c", "d"]
    one, other = halves(subjects, seed)
    assert sorted([*one, *other]) == list(range(6))
    assert not {subjects[i] for i in one} & {subjects[i] for i in other}
    assert len({subjects[i] for i in one}) == 2


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 1000), st.integers(2, 6), st.integers(2, 6), st.integers(1, 4))
def test_kernel_distance_by_loops(seed, n, m, d):
    rng = np.random.default_rng(seed)
    x, y = rng.normal(size=(n, d)), rng.normal(size=(m, d))

    def k(a, b):
        return (np.dot(a, b) / d + 1) ** 3

    within_x = np.mean([k(x[i], x[j]) for i in range(n) for j in range(n) if i != j])
    within_y = np.mean([k(y[i], y[j]) for i in range(m) for j in range(m) if i != j])
    between = np.mean([k(a, b) for a in x for b in y])
    assert kernel_distance(x, y) == pytest.approx(within_x + within_y - 2 * between)


def test_kernel_distance_tells_apart():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 300, 5))
    assert abs(kernel_distance(a, b)) < 0.05 < kernel_distance(a, b + 1)
    with pytest.raises(ValueError, match="at least two"):
        kernel_distance(a[:1], b)
    with pytest.raises(ValueError, match="cannot be compared"):
        kernel_distance(a[:, :2], b)


def test_the_nearest_neighbour_is_found_mirrored_too():
    rng = np.random.default_rng(0)
    known = rng.random((4, 6, 6))
    index, distance = nearest(np.stack([known[2], known[1][:, ::-1]]), known)
    assert index.tolist() == [2, 1]
    assert distance.tolist() == pytest.approx([0, 0])
    _, far = nearest(rng.random((1, 6, 6)), known)
    assert far[0] > 0.1
    with pytest.raises(ValueError, match="cannot be compared"):
        nearest(known, known[:, :3])


def test_the_nearest_tree_by_hand():
    known = np.zeros((2, 2, 4), bool)
    known[0, 0, :2] = True  # ██·· / ····
    known[1, 1] = True  #     ···· / ████
    made = np.zeros((3, 2, 4), bool)
    made[0, 0, 2:] = True  #  ··██ / ····: the first, mirrored
    made[1, 1, :2] = True  #  ···· / ██··: two of six shared with the second
    index, distance = nearest(made, known)
    assert index[:2].tolist() == [0, 1]
    assert distance.tolist() == pytest.approx([0, 1 - 2 * 2 / 6, 1])  # a blank page is never near
    index, distance = nearest(known, known, but=np.eye(2, dtype=bool))
    assert index.tolist() == [1, 0]
    assert distance.tolist() == [1, 1]


def test_copies_are_nearer_than_the_control():
    rng = np.random.default_rng(0)
    known = rng.random((12, 8, 8)) < 0.3
    copied = nearness(known[:5], known)
    assert copied["made"] == 0 < copied["control"]
    fresh = nearness(rng.random((60, 8, 8)) < 0.3, known)
    assert abs(fresh["made"] - fresh["control"]) < 0.1
    # two eyes of one person: the fellow eye, a mirror image, does not count
    pairs = np.concatenate([known, known[:, :, ::-1]])
    assert nearness(pairs, pairs)["control"] == 0
    apart = nearness(pairs, pairs, [*range(12), *range(12)])["control"]
    assert apart == nearness(known, known)["control"]
    with pytest.raises(ValueError, match="at least two persons"):
        nearness(known, known, ["one"] * 12)


def test_variety_and_the_alarm():
    rng = np.random.default_rng(0)
    real = rng.integers(0, 256, (6, 8, 8, 3)).astype(np.uint8)
    assert variety(np.stack([real[0]] * 3)) == 0
    black, white = np.zeros((1, 4, 4)), np.ones((1, 4, 4))
    assert variety(np.concatenate([black, white])) == 1
    assert mode_collapse(np.stack([real[0]] * 3), real) == (True, 0)
    assert mode_collapse(real, real) == (False, 1)
    with pytest.raises(ValueError, match="at least two"):
        variety(black)


def test_features_and_agreement_on_phantoms():
    run, samples = load_shipped("small-unet-phantom"), list(open_split("phantom").test[:3])
    features = network_features(run, samples)
    assert features.shape == (3, 8 + 16 + 32 + 64)
    assert np.isfinite(features).all()
    assert not np.allclose(features[0], features[1])
    trees = {s.name: s.vessels for s in samples}
    right = agreement(trees, samples, run)
    wrong = agreement({n: v[::-1] for n, v in trees.items()}, samples, run)
    assert right > 0.7 > 0.4 > wrong


def test_small_pictures_are_read_larger():
    run = load_shipped("small-unet-phantom")
    own = run.settings["fov_width"]
    assert reader(run, 64).settings["fov_width"] == READ_AT
    assert reader(run, 300).settings["fov_width"] == 300
    assert reader(run, 4 * own).settings["fov_width"] == own
    assert run.settings["fov_width"] == own
    small = samples_of(make_pairs(open_split("phantom").train[:3], 128))
    trees = {s.name: s.vessels for s in small}
    read, blurred = (agreement(trees, small, network) for network in (reader(run, 128), run))
    run.settings["fov_width"] = None
    as_they_are = agreement(trees, small, run)
    assert read > max(0.6, blurred, as_they_are)
