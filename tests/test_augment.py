"""Augmentation: image and labels move together, masks stay masks, chance is reproducible."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from retina_lab import augment as A
from retina_lab.augment import Augmentation


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def random_batch(count=3, height=12, width=12, seed=0):
    g = generator(seed)
    image = torch.rand(count, 3, height, width, generator=g)
    fov = (torch.rand(count, 1, height, width, generator=g) > 0.2).float()
    vessels = (torch.rand(count, 1, height, width, generator=g) > 0.7).float() * fov
    return {"image": image * fov, "vessels": vessels, "fov": fov}


def plain_batch(rows, count=1):
    """A grey image with the given values; vessels where the value is above .5; all FOV."""
    plane = torch.tensor(rows, dtype=torch.float32)
    image = plane.expand(count, 3, *plane.shape).clone()
    return {
        "image": image,
        "vessels": (image[:, :1] > 0.5).float(),
        "fov": torch.ones_like(image[:, :1]),
    }


def ramps(height, width):
    """Image channels 0 and 1 hold each pixel's own x and y: an image that knows where it is."""
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    image = torch.stack([x, y, torch.zeros_like(x)]).float()[None] / max(height, width)
    return image, x[None, None].float(), y[None, None].float()


def assert_batches_equal(one, other, tolerance=0.0):
    assert one.keys() == other.keys()
    for name in one:
        torch.testing.assert_close(one[name], other[name], atol=tolerance, rtol=0, msg=name)


NUMBERS = [[0.1, 0.2, 0.3], [0.4, 0.5, 0.6], [0.7, 0.8, 0.9]]

EXACT = [
    (
        "left-right",
        lambda b: A.flip(b, horizontal=True),
        [[0.3, 0.2, 0.1], [0.6, 0.5, 0.4], [0.9, 0.8, 0.7]],
    ),
    (
        "up-down",
        lambda b: A.flip(b, vertical=True),
        [[0.7, 0.8, 0.9], [0.4, 0.5, 0.6], [0.1, 0.2, 0.3]],
    ),
    (
        "both",
        lambda b: A.flip(b, True, True),
        [[0.9, 0.8, 0.7], [0.6, 0.5, 0.4], [0.3, 0.2, 0.1]],
    ),
    (
        "one quarter turn, counter-clockwise",
        lambda b: A.quarter_turns(b, 1),
        [[0.3, 0.6, 0.9], [0.2, 0.5, 0.8], [0.1, 0.4, 0.7]],
    ),
    (
        "minus one quarter turn",
        lambda b: A.quarter_turns(b, -1),
        [[0.7, 0.4, 0.1], [0.8, 0.5, 0.2], [0.9, 0.6, 0.3]],
    ),
    (
        "transpose",
        A.transpose,
        [[0.1, 0.4, 0.7], [0.2, 0.5, 0.8], [0.3, 0.6, 0.9]],
    ),
]


@pytest.mark.parametrize(("motion", "expected"), [c[1:] for c in EXACT], ids=[c[0] for c in EXACT])
def test_exact_motions_on_nine_numbers(motion, expected):
    assert_batches_equal(motion(plain_batch(NUMBERS)), plain_batch(expected))


WARPED = [
    ("down 1", (1, 0), [[0, 0, 0], [0.1, 0.2, 0.3], [0.4, 0.5, 0.6]], [0, 1, 1]),
    ("up 1", (-1, 0), [[0.4, 0.5, 0.6], [0.7, 0.8, 0.9], [0, 0, 0]], [1, 1, 0]),
    ("right 2", (0, 2), [[0, 0, 0.1], [0, 0, 0.4], [0, 0, 0.7]], None),
    ("away", (5, 5), [[0, 0, 0], [0, 0, 0], [0, 0, 0]], [0, 0, 0]),
]


@pytest.mark.parametrize(
    ("pixels", "expected", "fov_rows"), [c[1:] for c in WARPED], ids=[c[0] for c in WARPED]
)
def test_shift_by_whole_pixels(pixels, expected, fov_rows):
    moved = A.shift(plain_batch(NUMBERS), torch.tensor(pixels))
    expected = plain_batch(expected)
    torch.testing.assert_close(moved["image"], expected["image"], atol=1e-5, rtol=0)
    assert torch.equal(moved["vessels"], expected["vessels"])
    if fov_rows is not None:
        assert moved["fov"][0, 0, :, 0].tolist() == fov_rows


def test_half_a_pixel_is_interpolated_in_the_image_only():
    moved = A.shift(plain_batch([[0.0, 1.0, 0.0, 0.0]]), torch.tensor([0.0, 0.4]))
    torch.testing.assert_close(
        moved["image"][0, 0, 0], torch.tensor([0.0, 0.6, 0.4, 0.0]), atol=1e-5, rtol=0
    )
    assert moved["vessels"][0, 0, 0].tolist() == [0, 1, 0, 0]


@pytest.mark.parametrize("size", [7, 8])
@pytest.mark.parametrize("turns", [1, 2, 3])
def test_rotation_by_right_angles_is_rot90(size, turns):
    batch = random_batch(2, size, size)
    turned = A.rotate(batch, 90.0 * turns)
    expected = {k: torch.rot90(v, turns, (-2, -1)) for k, v in batch.items()}
    assert_batches_equal(turned, expected, tolerance=1e-5)
    assert_batches_equal(A.quarter_turns(batch, turns), expected)


@pytest.mark.parametrize(
    ("angle", "factor", "pixels"), [(30.0, 1.0, (0, 0)), (-75.0, 1.3, (2, -3)), (10, 0.6, (0.5, 1))]
)
def test_warp_agrees_with_kornia(angle, factor, pixels):
    from kornia.geometry.transform import warp_affine

    image = random_batch(2, 15, 20)["image"]
    batch = {"image": image, "fov": torch.ones_like(image[:, :1])}
    matrix = A.affine_matrix(batch, angle, factor, torch.tensor(pixels))
    ours = A.warp(batch, matrix)
    theirs = warp_affine(image.double(), matrix[:, :2], (15, 20), align_corners=True).float()
    # kornia fades the outermost half pixel to black: compare where it does not
    weight = warp_affine(
        torch.ones_like(image[:, :1]).double(), matrix[:, :2], (15, 20), align_corners=True
    )
    whole = (weight > 1 - 1e-6).expand_as(image)
    assert whole.float().mean() > 0.2
    torch.testing.assert_close(ours["image"][whole], theirs[whole], atol=1e-4, rtol=0)


def test_flips_and_erasing_agree_with_kornia_augmentation_classes():
    import kornia.augmentation as K

    batch = random_batch(2, 8, 10)
    always = {"p": 1.0}
    assert torch.equal(
        A.flip(batch, horizontal=True)["image"], K.RandomHorizontalFlip(**always)(batch["image"])
    )
    assert torch.equal(
        A.flip(batch, vertical=True)["image"], K.RandomVerticalFlip(**always)(batch["image"])
    )
    affine = K.RandomAffine((40.0, 40.0), p=1.0, align_corners=True)
    theirs = affine(batch["image"])
    # the class says by which matrix it moved
    ours = A.warp(batch, affine.transform_matrix.double())
    weight = affine(torch.ones_like(batch["image"]), params=affine._params)
    whole = weight > 1 - 1e-5
    assert whole.float().mean() > 0.3
    torch.testing.assert_close(ours["image"][whole], theirs[whole], atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", ["brightness", "gamma", "saturation", "hue", "contrast"])
def test_photometry_agrees_with_kornia_where_everything_is_fov(name):
    import kornia.enhance as E

    image = random_batch(2, 6, 6)["image"]
    batch = {"image": image, "fov": torch.ones_like(image[:, :1])}
    value = torch.tensor([0.7, -0.2 if name in ("brightness", "hue") else 1.6])
    theirs = {
        "brightness": lambda v: E.adjust_brightness(image, v),
        "gamma": lambda v: E.adjust_gamma(image, v),
        "saturation": lambda v: E.adjust_saturation(image, v),
        "hue": lambda v: E.adjust_hue(image, v * math.pi / 180),
        # kornia's mean is a weighted grey; ours counts the channels equally, so compare greys
        "contrast": lambda v: E.adjust_contrast_with_mean_subtraction(
            image.mean(1, keepdim=True), v
        ),
    }[name](value)
    if name == "contrast":
        batch["image"] = image.mean(1, keepdim=True).expand(-1, 3, -1, -1).contiguous()
        theirs = theirs.expand(-1, 3, -1, -1)
    ours = getattr(A, name)(batch, value)["image"]
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)
    assert not torch.allclose(ours, batch["image"], atol=1e-2)


IDENTITIES = [
    ("flip", lambda b: A.flip(b), 0),
    ("quarter_turns", lambda b: A.quarter_turns(b, 0), 0),
    ("four quarter turns", lambda b: A.quarter_turns(b, 4), 0),
    ("transpose", lambda b: A.transpose(b, False), 0),
    ("rotate", lambda b: A.rotate(b, 0.0), 1e-5),
    ("rotate 360", lambda b: A.rotate(b, 360.0), 1e-5),
    ("scale", lambda b: A.scale(b, 1.0), 1e-5),
    ("shift", lambda b: A.shift(b, 0.0), 1e-5),
    ("elastic", lambda b: A.elastic(b, 0.0, 3.0, generator()), 1e-5),
    ("brightness", lambda b: A.brightness(b, 0.0), 0),
    ("contrast", lambda b: A.contrast(b, 1.0), 1e-6),
    ("gamma", lambda b: A.gamma(b, 1.0), 1e-6),
    ("hue", lambda b: A.hue(b, 0.0), 1e-5),
    ("saturation", lambda b: A.saturation(b, 1.0), 1e-5),
    ("blur", lambda b: A.blur(b, 0.0), 1e-6),
    ("noise", lambda b: A.noise(b, 0.0, generator()), 0),
    ("erase", lambda b: A.erase(b, torch.tensor([[0, 0, -1, -1]] * len(b["image"]))), 0),
    ("policy none", lambda b: Augmentation.none()(b, generator()), 0),
]


@pytest.mark.parametrize(
    ("change", "tolerance"), [c[1:] for c in IDENTITIES], ids=[c[0] for c in IDENTITIES]
)
@pytest.mark.parametrize("size", [(9, 9), (7, 12), (1, 1)])
def test_neutral_parameters_change_nothing(change, tolerance, size):
    batch = random_batch(3, *size)
    assert_batches_equal(change(batch), batch, tolerance)


POLICY = Augmentation.strong()
EVERYTHING = Augmentation(
    **{
        name: 1.0
        for name in (
            [
                "flip",
                "quarter_turn",
                "stitch",
                "affine",
                "elastic",
                "colour",
                "blur",
                "noise",
                "erase",
            ]
        )
    }
)


@settings(max_examples=25, deadline=None)
@given(
    count=st.integers(1, 4),
    height=st.integers(1, 24),
    width=st.integers(1, 24),
    seed=st.integers(0, 10**6),
)
def test_laws_of_every_policy(count, height, width, seed):
    """Shapes stay, masks stay binary, outside the FOV there are neither light nor vessels."""
    batch = random_batch(count, height, width, seed)
    kept = {name: value.clone() for name, value in batch.items()}
    for policy in (Augmentation.light(), Augmentation.standard(), POLICY, EVERYTHING):
        out = policy(batch, generator(seed))
        assert_batches_equal(batch, kept)  # the input is not changed
        for name in batch:
            assert out[name].shape == batch[name].shape
            assert out[name].dtype == batch[name].dtype
        assert out["image"].isfinite().all()
        assert out["image"].min() >= 0
        assert out["image"].max() <= 1
        for mask in ("vessels", "fov"):
            assert set(out[mask].unique().tolist()) <= {0.0, 1.0}


def test_what_enters_the_frame_is_black_and_outside_the_fov():
    batch = plain_batch(torch.ones(20, 20).tolist(), count=8)
    strong = Augmentation(affine=1, shift=(0.3, 0.6), colour=1, brightness=(0.2, 0.3), noise=1)
    out = strong(batch, generator())
    outside = out["fov"] == 0
    assert outside.float().mean() > 0.2
    assert out["image"][outside.expand(-1, 3, -1, -1)].abs().max() == 0
    assert out["vessels"][outside].max() == 0


@settings(max_examples=30, deadline=None)
@given(
    height=st.integers(4, 30),
    width=st.integers(4, 30),
    angle=st.floats(-180, 180),
    factor=st.floats(0.5, 2),
    down=st.floats(-5, 5),
    seed=st.integers(0, 1000),
)
def test_labels_stay_aligned_with_the_image(height, width, angle, factor, down, seed):
    """The image carries each pixel's source x and y, the label carries them too, rounded."""
    image, x, y = ramps(height, width)
    batch = {"image": image, "fov": torch.ones_like(x), "x": x, "y": y}
    bend = A.elastic_displacement(batch, 40.0, 3.0, generator(seed))
    moved = A.warp(batch, A.affine_matrix(batch, angle, factor, torch.tensor([down, 0.0])), bend)
    seen = moved["fov"][0, 0] > 0
    for channel, name in enumerate(("x", "y")):
        difference = moved["image"][0, channel] * max(height, width) - moved[name][0, 0]
        assert difference[seen].abs().max() <= 0.501 if seen.any() else True


@pytest.mark.parametrize("size", [(10, 10), (6, 11)])
def test_exact_motions_keep_alignment_exactly(size):
    image, x, y = ramps(*size)
    batch = {"image": image, "fov": torch.ones_like(x), "x": x, "y": y}
    for mirrored in (False, True):
        for turns in range(4):
            moved = A.symmetry(batch, mirrored, turns)
            assert torch.equal(moved["image"][:, :1] * max(size), moved["x"])
            assert torch.equal(moved["image"][:, 1:2] * max(size), moved["y"])
            if size == (10, 10):
                assert moved["fov"].min() == 1


def test_an_odd_turn_of_an_oblong_image_keeps_its_middle():
    batch = plain_batch([[0.1, 0.2, 0.3, 0.4, 0.5, 0.6]] * 2)
    turned = A.quarter_turns(batch, 1)
    expected = torch.tensor([[0, 0, 0.4, 0.4, 0, 0], [0, 0, 0.3, 0.3, 0, 0]])
    assert torch.equal(turned["image"][0, 0], expected)
    assert torch.equal(turned["fov"][0, 0], (expected > 0).float())


def test_each_item_has_its_own_parameters():
    batch = {k: v.expand(3, -1, -1, -1) for k, v in random_batch(1, 10, 10).items()}
    each = A.rotate(batch, torch.tensor([0.0, 90.0, 33.0]))
    for i, angle in enumerate((0.0, 90.0, 33.0)):
        alone = A.rotate({k: v[:1] for k, v in batch.items()}, angle)
        for name in batch:
            torch.testing.assert_close(each[name][i : i + 1], alone[name])
    assert not torch.equal(each["image"][0], each["image"][2])


def test_same_seed_same_batch_and_the_global_generator_is_left_alone():
    batch = random_batch(4, 16, 16)
    torch.manual_seed(1234)
    before = torch.get_rng_state()
    one = EVERYTHING(batch, generator(7))
    other = EVERYTHING(batch, generator(7))
    different = EVERYTHING(batch, generator(8))
    assert torch.equal(torch.get_rng_state(), before)
    assert_batches_equal(one, other)
    assert not torch.equal(one["image"], different["image"])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_gives_the_same_batch():
    batch = random_batch(4, 32, 32)
    expected = EVERYTHING(batch, generator(3))
    out = EVERYTHING({name: value.cuda() for name, value in batch.items()}, generator(3))
    for name in batch:
        assert out[name].is_cuda
    # a nearest neighbour exactly between two pixels may fall to either side
    assert (out["image"].cpu() - expected["image"]).abs().median() < 1e-4
    for mask in ("vessels", "fov"):
        assert (out[mask].cpu() != expected[mask]).float().mean() < 1e-3


def test_the_light_policy_uses_all_eight_symmetries_equally():
    batch = plain_batch(NUMBERS, count=4000)
    out = Augmentation.light()(batch, generator())["image"][:, 0].flatten(1)
    kinds, counts = out.unique(dim=0, return_counts=True)
    assert len(kinds) == 8
    assert counts.min() > 400  # 500 expected
    assert counts.max() < 600


def test_parameters_stay_in_their_ranges_and_skipped_items_are_neutral():
    policy = Augmentation(affine=0.5, angle=(10, 20), scale=(1.5, 2), shift=(0.1, 0.2))
    drawn = policy.sample_parameters(1000, (50, 100), generator())
    on = drawn["angle"] != 0
    assert 400 < on.sum() < 600
    assert ((drawn["angle"][on] >= 10) & (drawn["angle"][on] <= 20)).all()
    assert (drawn["scale"][~on] == 1).all()
    assert ((drawn["scale"][on] >= 1.5) & (drawn["scale"][on] <= 2)).all()
    assert (drawn["shift"][~on] == 0).all()
    assert ((drawn["shift"][on] >= torch.tensor([5, 10])).all(dim=1)).all()
    assert set(drawn) == {"angle", "scale", "shift"}


# ---------------------------------------------------------------- photometry, one by one


def test_photometry_by_hand():
    batch = plain_batch([[0.2, 0.4, 0.6, 0.8]])
    batch["fov"][..., 3] = 0  # the last pixel is outside: it must never change
    cases = [
        (A.brightness(batch, 0.5), [0.7, 0.9, 1.0, 0.8]),
        (A.brightness(batch, -0.3), [0.0, 0.1, 0.3, 0.8]),
        (A.contrast(batch, 2.0), [0.0, 0.4, 0.8, 0.8]),  # about the mean inside the FOV, .4
        (A.contrast(batch, 0.0), [0.4, 0.4, 0.4, 0.8]),
        (A.gamma(batch, 2.0), [0.04, 0.16, 0.36, 0.8]),
    ]
    for out, expected in cases:
        torch.testing.assert_close(out["image"][0, 0, 0], torch.tensor(expected))
        assert torch.equal(out["vessels"], batch["vessels"])


def test_hue_by_a_third_of_the_circle_swaps_the_primaries():
    batch = {"image": torch.tensor([1.0, 0, 0])[None, :, None, None], "fov": torch.ones(1, 1, 1, 1)}
    torch.testing.assert_close(A.hue(batch, 120.0)["image"].flatten(), torch.tensor([0.0, 1, 0]))
    grey = A.saturation(batch, 0.0)["image"].flatten()
    assert grey.std() == 0


def test_blur_keeps_a_flat_disc_flat_up_to_its_rim():
    batch = plain_batch([[0.0] * 3 + [0.5] * 5 + [0.0] * 3] * 11)
    batch["fov"] = (batch["image"][:, :1] > 0).float()
    out = A.blur(batch, 1.5)
    torch.testing.assert_close(out["image"], batch["image"])


def test_blur_agrees_with_scipy():
    from scipy.ndimage import gaussian_filter

    image = torch.zeros(1, 3, 31, 31)
    image[..., 15, 15] = 1
    batch = {"image": image, "fov": torch.ones(1, 1, 31, 31)}
    ours = A.blur(batch, 2.0)["image"][0, 0].numpy()
    theirs = gaussian_filter(image[0, 0].numpy(), 2.0, truncate=3.0)
    torch.testing.assert_close(torch.tensor(ours), torch.tensor(theirs), atol=1e-5, rtol=0)


def test_noise_has_the_stated_deviation():
    batch = plain_batch([[0.5] * 100] * 100)
    out = A.noise(batch, 0.1, generator())["image"]
    assert float(out.std()) == pytest.approx(0.1, abs=0.003)
    assert float(out.mean()) == pytest.approx(0.5, abs=0.003)


def test_elastic_displacement_has_the_documented_size():
    batch = plain_batch([[0.5] * 128] * 128, count=4)
    field = A.elastic_displacement(batch, 120.0, 6.0, generator())
    assert field.shape == (4, 2, 128, 128)
    assert float(field.std()) == pytest.approx(120 / (6 * 6), rel=0.15)
    step = (field[..., 1:] - field[..., :-1]).abs().max()
    assert step < 3  # smooth: neighbours move together


def test_a_displacement_says_where_to_read():
    batch = plain_batch(NUMBERS)
    field = torch.zeros(1, 2, 3, 3)
    field[:, 0] = 1  # read one pixel further down: the content moves up
    moved = A.warp(batch, A.affine_matrix(batch), field)
    assert_batches_equal(moved, A.shift(batch, torch.tensor([-1, 0])), tolerance=1e-5)


def test_erase_paints_the_mean_colour_and_keeps_the_vessels():
    batch = plain_batch([[0.0, 0.3], [0.3, 0.9]])
    batch["fov"][0, 0, 0, 0] = 0
    out = A.erase(batch, torch.tensor([[0, 0, 0, 1]]))
    expected = torch.tensor([[0.0, 0.5], [0.3, 0.9]])  # the mean inside the FOV is .5
    torch.testing.assert_close(out["image"][0, 1], expected)
    assert torch.equal(out["vessels"], batch["vessels"])
    assert torch.equal(out["fov"], batch["fov"])


@settings(max_examples=30, deadline=None)
@given(height=st.integers(1, 40), width=st.integers(1, 40), seed=st.integers(0, 1000))
def test_boxes_lie_within_the_image(height, width, seed):
    boxes = A.sample_boxes(20, (height, width), (0.05, 1.0), generator(seed))
    top, left, bottom, right = boxes.T
    assert (top >= 0).all()
    assert (left >= 0).all()
    assert (top <= bottom).all()
    assert (left <= right).all()
    assert (bottom < height).all()
    assert (right < width).all()


# ---------------------------------------------------------------------------- stitching


def numbered(count, height, width):
    """Item i has the grey value (i+1)/10 and the label i+1: pixels that name their source."""
    item = (torch.arange(count) + 1.0)[:, None, None, None].expand(count, 1, height, width)
    image = (item / 10).expand(count, 3, height, width)
    return {"image": image.clone(), "fov": torch.ones_like(item), "source": item.clone()}


def test_paste_by_hand():
    batch = numbered(2, 3, 3)
    out = A.paste(batch, torch.tensor([1, 1]), torch.tensor([[0, 1, 1, 2], [0, 0, 2, 2]]))
    assert out["source"][0, 0].tolist() == [[1, 2, 2], [1, 2, 2], [1, 1, 1]]
    assert torch.equal(out["source"][1], batch["source"][1])
    assert torch.equal(out["image"][:, :1], out["source"] / 10)


@settings(max_examples=25, deadline=None)
@given(
    count=st.integers(1, 5),
    height=st.integers(2, 20),
    width=st.integers(2, 20),
    seed=st.integers(0, 10**6),
)
def test_every_stitched_pixel_comes_from_one_of_two_sources(count, height, width, seed):
    batch = numbered(count, height, width)
    choices = A.sample_stitch(count, (height, width), generator(seed))
    assert (choices.boxes[:, :2] <= choices.boxes[:, 2:]).all()
    pasted = A.paste(batch, choices.donor, choices.boxes)
    # exact before the rotation: image and label tell the same source
    torch.testing.assert_close(pasted["image"][:, :1] * 10, pasted["source"])
    out = A.stitch(batch, choices)
    for i in range(count):
        allowed = {0.0, i + 1.0, float(choices.donor[i]) + 1}
        assert set(out["source"][i].unique().tolist()) <= allowed
        seen = out["fov"][i] > 0
        assert (out["source"][i][seen] > 0).all()
        assert (out["source"][i][~seen] == 0).all()
        # after the rotation the image is interpolated, between its two sources only
        grey = out["image"][i, :1][seen] * 10
        low, high = sorted((i + 1.0, float(choices.donor[i]) + 1))
        assert ((grey > low - 1e-3) & (grey < high + 1e-3)).all()


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("turns", [0, 1, 2, 3])
def test_stitching_by_right_angles_is_exact(flip, turns):
    batch = random_batch(3, 8, 8)
    choices = A.Stitch(
        donor=torch.tensor([1, 2, 0]),
        boxes=torch.tensor([[1, 2, 4, 6], [0, 0, 7, 7], [3, 3, 3, 3]]),
        spin=torch.full((3,), 90 * turns),
        flip=torch.full((3,), flip),
    )
    out = A.stitch(batch, choices)
    for name, maps in batch.items():
        expected = maps.clone()
        for i, (top, left, bottom, right) in enumerate(choices.boxes.tolist()):
            region = (slice(None), slice(top, bottom + 1), slice(left, right + 1))
            expected[i][region] = maps[choices.donor[i]][region]
        expected = torch.rot90(expected, turns, (-2, -1))
        if flip:
            expected = expected.transpose(-1, -2)
        torch.testing.assert_close(out[name], expected, atol=1e-5, rtol=0)


def test_the_steps_lead_to_the_stitched_item():
    batch = random_batch(4, 16, 16)
    choices = A.sample_stitch(4, (16, 16), generator(3))
    whole = A.stitch(batch, choices)
    for item in range(4):
        steps = A.stitch_steps(batch, choices, item)
        assert list(steps) == ["original 0", "original 1", "crop", "paste", "rotate", "transpose"]
        for name in batch:
            torch.testing.assert_close(steps["transpose"][name][0], whole[name][item])
            top, left, bottom, right = choices.boxes[item].tolist()
            inside = (slice(None), slice(top, bottom + 1), slice(left, right + 1))
            for step in ("crop", "paste"):
                assert torch.equal(
                    steps[step][name][0][inside], steps["original 0"][name][0][inside]
                )


def test_the_choices_of_stitching_cover_their_ranges():
    drawn = A.sample_stitch(3000, (10, 20), generator())
    assert set(drawn.spin.unique().tolist()) == set(range(360))
    assert 1300 < drawn.flip.sum() < 1700
    assert drawn.boxes[:, :2].min() == 0
    assert drawn.boxes[:, 2].max() == 9
    assert drawn.boxes[:, 3].max() == 19
    assert drawn.donor.max() < 3000


# -------------------------------------------------------------------------------- errors

BAD_CALLS = [
    (lambda b: A.rotate(b, math.nan), "angle"),
    (lambda b: A.scale(b, 0.0), "scale"),
    (lambda b: A.scale(b, -1.0), "scale"),
    (lambda b: A.shift(b, torch.tensor([math.inf, 0.0])), "shift"),
    (lambda b: A.shift(b, torch.zeros(3)), "shift"),
    (lambda b: A.gamma(b, 0.0), "gamma"),
    (lambda b: A.contrast(b, -0.1), "contrast"),
    (lambda b: A.brightness(b, 2.0), "brightness"),
    (lambda b: A.hue(b, 200.0), "hue"),
    (lambda b: A.saturation(b, -1.0), "saturation"),
    (lambda b: A.blur(b, -1.0), "blur"),
    (lambda b: A.noise(b, -0.1, generator()), "noise"),
    (lambda b: A.elastic(b, -1.0, 4.0, generator()), "alpha"),
    (lambda b: A.elastic(b, 1.0, 0.0, generator()), "sigma"),
    (lambda b: A.rotate(b, torch.zeros(7)), "angle must be one number or one for each of 3"),
    (lambda b: A.quarter_turns(b, torch.tensor([0, 0.5, 1])), "turns"),
    (lambda b: A.erase(b, torch.zeros(2, 4)), "boxes"),
    (lambda b: A.paste(b, torch.tensor([0, 1, 3]), torch.zeros(3, 4)), "donor"),
    (lambda b: A.warp(b, torch.eye(3)[None]), "matrix"),
    (lambda b: A.flip({"image": b["image"]}, True), "'fov'"),
    (lambda b: A.flip({**b, "vessels": b["vessels"][..., 1:]}, True), "vessels"),
    (lambda b: A.flip({**b, "image": b["image"].byte()}, True), "image"),
]


@pytest.mark.parametrize(("call", "message"), BAD_CALLS)
def test_absurd_parameters_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call(random_batch())


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("flip", 1.5),
        ("stitch", -0.1),
        ("angle", (30, -30)),
        ("scale", (0.0, 1.0)),
        ("gamma", (0, 1)),
        ("sigma", 0.0),
        ("erase_side", (0.5, 1.5)),
        ("noise_deviation", (-1, 0)),
        ("hue", (math.nan, 1.0)),
    ],
)
def test_a_policy_refuses_absurd_settings(name, value):
    with pytest.raises(ValueError, match=name):
        Augmentation(**{name: value})


def test_a_policy_says_whether_it_changes_colours():
    assert not Augmentation.light().changes_colours
    assert not Augmentation(affine=1, elastic=1, stitch=1).changes_colours
    assert Augmentation.standard().changes_colours
    for name in ("colour", "blur", "noise", "erase"):
        assert Augmentation(**{name: 0.1}).changes_colours


def test_policies_by_name():
    assert [A.augmentation_by_name(n) for n in A.POLICIES] == [
        Augmentation.none(),
        Augmentation.light(),
        Augmentation.standard(),
        Augmentation.strong(),
    ]
    with pytest.raises(ValueError, match=r"'medium'; choose one of none, light, standard, strong"):
        A.augmentation_by_name("medium")
