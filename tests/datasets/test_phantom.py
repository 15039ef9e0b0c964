"""The phantom: anatomy that obeys its laws, labels that fit the image, parameters that work."""

from dataclasses import fields

import numpy as np
import pytest
from scipy import ndimage

from retina_lab.datasets.phantom import (
    ARTERY,
    CAMERAS,
    CROSSING,
    FOVEA,
    VEIN,
    PhantomParameters,
    Projection,
    VesselSegment,
    draw_parameters,
    draw_vessels,
    grow_vessels,
    make_phantom,
    make_projection,
    make_tree,
)

NAMES = [item.name for item in fields(PhantomParameters)]


@pytest.fixture(scope="module")
def ten_phantoms():
    return [make_phantom(seed) for seed in range(10)]


@pytest.fixture(scope="module")
def trees():
    """Seed, parameters and tree of a few eyes with different cameras."""
    drawn = [(seed, draw_parameters(seed)) for seed in range(4)]
    return [(seed, parameters, make_tree(seed, parameters)) for seed, parameters in drawn]


def _same(a, b):
    planes = ("image", "fov", "vessels", "second_observer", "artery_vein", "lesions")
    return all(np.array_equal(getattr(a, p), getattr(b, p)) for p in planes)


def _dice(a, b):
    return 2 * (a & b).sum() / (a.sum() + b.sum())


# ---- the sample


@pytest.mark.parametrize("size", [64, 200, 333])
def test_shapes_and_types(size):
    sample = make_phantom(3, size)
    assert sample.image.shape == (size, size, 3)
    assert sample.image.dtype == np.uint8
    for plane, kind in {
        "fov": bool,
        "vessels": bool,
        "second_observer": bool,
        "artery_vein": np.uint8,
        "lesions": np.uint8,
    }.items():
        assert getattr(sample, plane).shape == (size, size)
        assert getattr(sample, plane).dtype == kind
    assert sample.name == "phantom_003"
    assert sample.dataset == "phantom"
    assert sample.vessels.any()


def test_same_seed_same_bits():
    assert _same(make_phantom(5, 160), make_phantom(5, 160))


def test_parameters_and_keywords_are_the_same_thing():
    by_object = make_phantom(5, 96, parameters=PhantomParameters(noise=3, eye="left"))
    assert _same(by_object, make_phantom(5, 96, noise=3, eye="left"))


def test_drawn_parameters_given_back_change_nothing():
    assert _same(make_phantom(8, 96), make_phantom(8, 96, parameters=draw_parameters(8)))


def test_seeds_differ_in_everything():
    a, b = make_phantom(1, 128), make_phantom(2, 128)
    assert not np.array_equal(a.image, b.image)
    assert _dice(a.vessels, b.vessels) < 0.5


def test_the_first_forty_phantoms_vary():
    drawn = [draw_parameters(seed) for seed in range(40)]
    assert {p.camera for p in drawn} == set(CAMERAS)
    assert {p.eye for p in drawn} == {"left", "right"}
    assert {p.grade for p in drawn} == {0, 1, 2, 3, 4}
    assert np.ptp([p.pigmentation for p in drawn]) > 0.7


def test_fixing_one_parameter_leaves_the_others_alone():
    free, fixed = draw_parameters(7), draw_parameters(7, PhantomParameters(noise=9.0))
    assert fixed.noise == 9.0
    others = [name for name in NAMES if name != "noise"]
    assert all(getattr(free, name) == getattr(fixed, name) for name in others)


def test_a_camera_setting_does_not_move_a_vessel():
    plain, changed = make_phantom(4, 128), make_phantom(4, 128, defocus=3, noise=0, gamma=1.3)
    assert np.array_equal(plain.vessels, changed.vessels)
    assert not np.array_equal(plain.image, changed.image)


def test_another_size_shows_the_same_eye():
    small, large = make_phantom(6, 256, noise=0), make_phantom(6, 768, noise=0)
    reduced = large.image.reshape(256, 3, 256, 3, 3).mean((1, 3))
    both = small.fov & large.fov[1::3, 1::3]
    assert abs(reduced[both] - small.image[both]).mean() < 6
    # Every vessel of the small image is within a pixel of one in the large image.
    nearby = ndimage.binary_dilation(large.vessels, iterations=3)[1::3, 1::3]
    assert nearby[small.vessels].mean() > 0.97


def test_left_and_right_eye_are_mirrored():
    left = make_phantom(2, 128, eye="left", camera="nidek-30").vessels
    right = make_phantom(2, 128, eye="right", camera="nidek-30").vessels
    assert _dice(left, right[:, ::-1]) > 0.99
    assert _dice(left, right) < 0.6


# ---- parameters


RANGE_ENDS = [
    (row["name"], value)
    for row in PhantomParameters.table()
    for value in row.get("range", row.get("options"))
]


@pytest.mark.parametrize(("name", "value"), RANGE_ENDS)
def test_range_ends_give_valid_samples(name, value):
    sample = make_phantom(1, 96, **{name: value})
    assert sample.vessels.any()
    assert sample.image[sample.fov].std() > 3
    assert 0.3 < sample.fov.mean() < 0.75
    assert not (sample.vessels & ~sample.fov).any()


def test_a_narrow_field_on_the_fovea_has_vessels_though_the_disc_is_outside():
    sample = make_phantom(1, 128, field_degrees=25, centring=1.0)
    assert 0.03 < sample.vessels[sample.fov].mean() < 0.3


def test_every_parameter_is_documented():
    for row in PhantomParameters.table():
        assert row["doc"]
        assert row["unit"] or "options" in row
        assert ("range" in row) != ("options" in row)


BAD = [
    ({"noise": -1}, "noise must lie between 0 and 10 grey levels"),
    ({"noise": float("nan")}, "noise must lie between"),
    ({"noise": "much"}, "noise must be a number"),
    ({"grade": 5}, "grade must lie between 0 and 4"),
    ({"grade": 1.5}, "grade must be a whole number"),
    ({"grade": True}, "grade must be a number"),
    ({"camera": "phone"}, "camera must be one of canon-45"),
    ({"eye": "middle"}, "eye must be one of left, right"),
    ({"nose": 1}, "unknown phantom parameter 'nose'"),
    ({"size": 32}, "size must lie between 64"),
    ({"size": 100.5}, "size must be a whole number"),
    ({"seed": -1}, "seed must lie between 0"),
    ({"seed": None}, "seed must be a whole number"),
    ({"parameters": {"noise": 1}}, "parameters must be PhantomParameters"),
]


@pytest.mark.parametrize(("call", "message"), BAD)
def test_bad_parameters_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        make_phantom(**call)


# ---- vessel trees


def _children(segments):
    children = [[] for _ in segments]
    for number, segment in enumerate(segments):
        if segment.parent >= 0:
            assert segment.parent < number, "parents come before their children"
            children[segment.parent].append(segment)
    return children


def test_murrays_law_at_every_branching(trees):
    branchings = 0
    for _, _, segments in trees:
        for parent, children in zip(segments, _children(segments), strict=True):
            if children:
                assert len(children) == 2
                cubes = sum(child.radii[0] ** 3 for child in children)
                assert parent.radii[-1] ** 3 == pytest.approx(cubes, rel=1e-9)
                branchings += 1
    assert branchings > 300


def test_vessels_taper_and_are_as_wide_as_asked_for(trees):
    for _, parameters, segments in trees:
        for segment in segments:
            assert (np.diff(segment.radii) <= 1e-12).all()
            assert segment.radii.min() > 0
        widest = {
            kind: 2000 * max(s.radii.max() for s in segments if s.kind == kind)
            for kind in (ARTERY, VEIN)
        }
        assert widest[VEIN] == pytest.approx(parameters.vein_width)
        ratio = widest[ARTERY] / widest[VEIN]
        assert ratio == pytest.approx(parameters.artery_vein_ratio)


def test_every_segment_hangs_on_a_tree_that_starts_in_the_disc(trees):
    for _, parameters, segments in trees:
        for segment in segments:
            if segment.parent < 0:
                assert np.hypot(*segment.points[0]) < parameters.disc_diameter / 2
            else:
                parent = segments[segment.parent]
                assert np.array_equal(segment.points[0], parent.points[-1])
                assert segment.kind == parent.kind


def test_the_avascular_zone_is_empty(trees):
    for _, _, segments in trees:
        points = np.vstack([s.points for s in segments if s.order > 0])
        assert np.hypot(*(points - FOVEA).T).min() > 0.3


def test_no_large_part_of_the_field_is_without_vessels(trees):
    for _, parameters, segments in trees:
        projection = make_projection(parameters, 256)
        points = np.vstack([s.points for s in segments])
        x, y = projection.grid()
        inside = np.hypot(x - projection.centre[0], y - projection.centre[1])
        inside = inside < 0.95 * projection.field_radius
        empty = np.ones(x.shape, bool)
        column, row = np.rint(projection.to_pixels(points)).astype(int).T
        keep = (column >= 0) & (column < 256) & (row >= 0) & (row < 256)
        empty[row[keep], column[keep]] = False
        gap = ndimage.distance_transform_edt(empty) / projection.pixels_per_mm
        assert gap[inside].max() < 1.5 * parameters.vessel_spacing


def test_spacing_controls_how_many_vessels_grow():
    count = {
        spacing: len(grow_vessels(np.random.default_rng(0), spacing=spacing))
        for spacing in (0.7, 1.4)
    }
    assert count[0.7] > 1.5 * count[1.4]


def _straight(radius_mm, height_mm=0.0):
    points = np.stack([np.linspace(-2, 2, 51), np.full(51, height_mm)], 1)
    return [VesselSegment(VEIN, -1, points, np.full(51, radius_mm), 0)]


@pytest.mark.parametrize("width", [1.0, 2.0, 4.0, 9.0])
def test_a_vessel_holds_the_blood_of_a_cylinder(width):
    # 100 pixels are 1 mm. The cross-section of the drawn depth is the area of a circle,
    # exactly so on average over where between the pixels the vessel lies.
    projection = Projection(475, np.zeros(2), 4.75 * 0.475, "left")
    assert projection.pixels_per_mm == pytest.approx(100)
    areas = [
        draw_vessels(_straight(width / 200, height / 100), projection).depth[:, 237].sum() / 100
        for height in np.arange(0, 1, 0.1)
    ]
    assert np.mean(areas) == pytest.approx(np.pi * (width / 200) ** 2, rel=0.03)


def test_a_mask_is_as_wide_as_its_vessel():
    projection = Projection(475, np.zeros(2), 4.75 * 0.475, "left")
    assert draw_vessels(_straight(0.045), projection).mask[:, 237].sum() == pytest.approx(9, abs=1)
    assert not draw_vessels(_straight(0.002), projection).mask.any()


# ---- labels against image


def test_vessel_share_is_that_of_real_photographs(ten_phantoms):
    for sample in ten_phantoms:
        assert 0.07 < sample.vessels[sample.fov].mean() < 0.16, sample.name


def test_vessels_and_lesions_lie_in_the_field(ten_phantoms):
    for sample in ten_phantoms:
        for plane in ("vessels", "second_observer", "artery_vein", "lesions"):
            assert not getattr(sample, plane)[~sample.fov].any()


def test_artery_vein_map_fits_the_vessels(ten_phantoms):
    for sample in ten_phantoms:
        assert set(np.unique(sample.artery_vein)) == {0, ARTERY, VEIN, CROSSING}
        assert np.array_equal(sample.artery_vein > 0, sample.vessels)
        assert (sample.artery_vein == CROSSING).sum() < 0.2 * sample.vessels.sum()


def test_veins_are_wider_than_arteries(ten_phantoms):
    share = [(s.artery_vein == VEIN).sum() / (s.artery_vein == ARTERY).sum() for s in ten_phantoms]
    assert 1 < np.median(share) < 2.5


def test_vessels_are_darker_than_their_surroundings_in_green(ten_phantoms):
    for sample in ten_phantoms:
        green = sample.image[:, :, 1].astype(float)
        tissue = sample.fov & ~ndimage.binary_dilation(sample.vessels, iterations=2)
        weight = ndimage.uniform_filter(tissue.astype(float), 25)
        around = ndimage.uniform_filter(green * tissue, 25) / np.maximum(weight, 1e-6)
        core = ndimage.binary_erosion(sample.vessels) & (weight > 0.1)
        assert (green[core] / around[core]).mean() < 0.92
        assert (green[core] < around[core]).mean() > 0.85


def test_the_field_is_bright_and_the_rest_dark(ten_phantoms):
    for sample in ten_phantoms:
        away = ~ndimage.binary_dilation(sample.fov, iterations=4)
        assert sample.image[away].mean() < 20
        assert sample.image[sample.fov].mean() > 30


def test_second_observer_agrees_about_as_well_as_people_do(ten_phantoms):
    for sample in ten_phantoms:
        assert 0.75 < _dice(sample.vessels, sample.second_observer) < 0.92, sample.name


# ---- lesions


def test_grade_0_has_no_lesions():
    for seed in range(5):
        sample = make_phantom(seed, 128, grade=0)
        assert sample.grade == 0
        assert not sample.lesions.any()


def test_lesions_grow_with_the_grade():
    area = np.zeros(5)
    kinds = [set() for _ in range(5)]
    for grade in range(5):
        for seed in range(4):
            sample = make_phantom(seed, 160, grade=grade, camera="canon-45")
            area[grade] += (sample.lesions > 0).sum()
            kinds[grade] |= set(np.unique(sample.lesions).tolist()) - {0}
    assert (np.diff(area) > 0).all()
    assert kinds == [set(), {1}, {1, 2, 3, 4}, {1, 2, 3, 4}, {1, 2, 3, 4}]


def test_red_lesions_are_dark_and_yellow_ones_bright():
    healthy = make_phantom(3, 384, grade=0, noise=0, camera="canon-45").image[:, :, 1].astype(float)
    sample = make_phantom(3, 384, grade=4, noise=0, camera="canon-45")
    change = sample.image[:, :, 1] - healthy
    off_vessels = ~ndimage.binary_dilation(sample.vessels, iterations=2)
    for kind, sign in ((1, -1), (2, -1), (3, 1), (4, 1)):
        pixels = change[(sample.lesions == kind) & off_vessels]
        assert sign * pixels.mean() > 4


def test_one_tree_in_two_eyes():
    """Vessels to the pixel alike; grain and lesions each eye's own."""
    home = make_phantom(3, 160, grade=4)
    one, other = (make_phantom(seed, 160, tree_of=3, grade=4) for seed in (7, 8))
    for eye in (one, other):
        assert np.array_equal(eye.vessels, home.vessels)
        assert np.array_equal(eye.fov, home.fov)
    assert not np.array_equal(one.lesions, other.lesions)
    plain = ndimage.binary_erosion(one.fov & ~one.vessels, iterations=4)
    greens = [eye.image[..., 1].astype(float) for eye in (one, other)]
    grain = [(green - ndimage.gaussian_filter(green, 3))[plain] for green in greens]
    assert abs(np.corrcoef(*grain)[0, 1]) < 0.5
    assert np.array_equal(make_phantom(3, 160, tree_of=3, grade=4).image, home.image)
    for side in ("left", "right"):
        moved = make_phantom(7, 96, tree_of=3, eye=side)
        assert np.array_equal(moved.vessels, make_phantom(3, 96, eye=side).vessels)


def test_the_other_eye_of_a_tree_must_exist():
    with pytest.raises(ValueError, match="tree_of must lie between"):
        make_phantom(1, 96, tree_of=-1)
