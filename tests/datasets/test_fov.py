import numpy as np
import pytest
from dataset_files import one_real_sample, real_samples
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from retina_lab.datasets import estimate_fov


def overlap(a, b):
    """Intersection over union of two masks."""
    return np.sum(a & b) / np.sum(a | b)


def disc(height, width, row, column, radius, top=None, bottom=None):
    """Mask of a circle, cut flat above and below; (row, column) pairs tilt the cuts."""
    rows, columns = np.mgrid[:height, :width]
    mask = (rows - row) ** 2 + (columns - column) ** 2 <= radius**2
    for cut, sign in ((top, 1), (bottom, -1)):
        if cut is not None:
            (row_1, column_1), (row_2, column_2) = cut
            line = row_1 + (row_2 - row_1) / (column_2 - column_1) * (columns - column_1)
            mask &= sign * rows >= sign * line
    return mask


def photograph(mask, seed=0, background=(0, 0, 0), noise=3.0):
    """A fundus-like image whose field of view is ``mask``: (H, W, 3) uint8."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[: mask.shape[0], : mask.shape[1]]
    shade = 1 - 0.3 * np.hypot(rows / mask.shape[0] - 0.5, columns / mask.shape[1] - 0.5)
    image = np.where(mask[:, :, None], shade[:, :, None] * [190, 110, 60], background)
    return np.clip(image + rng.normal(0, noise, image.shape), 0, 255).astype(np.uint8)


# Read by eye from the brightness along rows and columns of each photograph (first pixel that is a
# third of the way up from the background to the eye), six to eight rim pixels each, and a circle
# laid through them; cuts are (row, column) of two points. Not made with estimate_fov.
HAND_MADE = [
    ("stare", "im0162", 292.9, 342.4, 324.8, (16.5, 16.5), (568.5, 568.5)),
    ("stare", "im0236", 293.3, 344.7, 325.1, (19.5, 19.5), (568.5, 568.5)),
    ("stare", "im0002", 288.4, 343.5, 325.0, (12.5, 11.5), (564.5, 562.5)),
    ("stare", "im0004", 281.0, 338.0, 324.4, (11.5, 11.5), (557.5, 557.5)),
    ("chase_db1", "Image_08L", 478.3, 493.3, 447.0, None, None),
    ("chase_db1", "Image_06L", 478.9, 493.0, 459.8, None, None),
    ("hrf", "01_h", 582.2, 880.3, 816.0, None, None),
    ("hrf", "10_dr", 582.2, 878.2, 815.9, None, None),
]


@pytest.mark.parametrize(("dataset", "name", "row", "column", "radius", "top", "bottom"), HAND_MADE)
def test_hand_made_masks(dataset, name, row, column, radius, top, bottom):
    image = one_real_sample(dataset, name).image
    # HRF was read at half of its published size.
    scale = 2 if image.shape[:2] == (2336, 3504) else 1
    cuts = [
        rows and ((scale * rows[0], scale * 300), (scale * rows[1], scale * 400))
        for rows in (top, bottom)
    ]
    by_hand = disc(*image.shape[:2], scale * row, scale * column, scale * radius, *cuts)
    assert overlap(estimate_fov(image), by_hand) > 0.99


def test_official_masks_of_drive():
    # DRIVE's masks include the camera's notch, half a percent of the area.
    for sample in real_samples("drive").values():
        assert overlap(estimate_fov(sample.image), sample.fov) > 0.988, sample.name


@pytest.mark.parametrize(
    ("dataset", "low", "high"), [("stare", 0.71, 0.80), ("chase_db1", 0.64, 0.70)]
)
def test_every_photograph_has_a_border(dataset, low, high):
    for sample in real_samples(dataset).values():
        assert low < sample.fov.mean() < high, sample.name
        assert sample.fov_source == "estimated"


@settings(max_examples=20, deadline=None)
@given(
    row=st.floats(110, 190),
    column=st.floats(130, 220),
    radius=st.floats(95, 180),
    background=st.sampled_from([(0, 0, 0), (14, 30, 16), (120, 120, 125), (250, 250, 250)]),
    seed=st.integers(0, 99),
)
def test_any_circle_is_found(row, column, radius, background, seed):
    mask = disc(300, 350, row, column, radius)
    if mask[:8, :8].any() or mask[-8:, :8].any() or mask[:8, -8:].any() or mask[-8:, -8:].any():
        return  # corners that show the eye are another case
    assert overlap(estimate_fov(photograph(mask, seed, background)), mask) > 0.99


CIRCLE = disc(300, 350, 150, 175, 135)


def test_flat_cuts_are_kept():
    mask = disc(300, 350, 150, 175, 135, ((60, 0), (60, 9)), ((240, 0), (243, 100)))
    assert overlap(estimate_fov(photograph(mask)), mask) > 0.99


def test_dark_lesions_and_quadrants_cut_nothing_out():
    for region in (np.s_[120:170, 140:210], np.s_[120:170, 40:90], np.s_[150:300, 175:350]):
        image = photograph(CIRCLE, noise=1)
        image[region] = (image[region] * 0.15).astype(np.uint8)
        assert overlap(estimate_fov(image), CIRCLE) > 0.99


def test_a_notch_does_not_move_the_circle():
    mask = CIRCLE.copy()
    mask[30:60, 270:300] = True
    assert overlap(estimate_fov(photograph(mask)), CIRCLE) > 0.99


@pytest.mark.parametrize(("height", "width"), [(300, 250), (200, 350)])
def test_an_ellipse_after_resizing(height, width):
    image = Image.fromarray(photograph(CIRCLE)).resize((width, height))
    mask = Image.fromarray(CIRCLE).resize((width, height))
    assert overlap(estimate_fov(np.asarray(image)), np.asarray(mask)) > 0.985


def test_a_rectangle_is_its_hull():
    mask = np.zeros((300, 350), bool)
    mask[40:260, 50:300] = True
    assert overlap(estimate_fov(photograph(mask)), mask) > 0.98


@pytest.mark.parametrize(
    "image",
    [
        photograph(np.ones((200, 220), bool)),
        np.zeros((80, 90, 3), np.uint8),
        np.full((80, 90, 3), 255, np.uint8),
        np.zeros((3, 5, 3), np.uint8),
        np.zeros((1, 1, 3), np.uint8),
        # light that fades towards the corners without an edge
        (
            np.exp(-(np.hypot(*np.mgrid[-150:150, -150:150]) ** 2) / 20000)[:, :, None]
            * [200, 110, 60]
        ).astype(np.uint8),
    ],
    ids=["crop of a retina", "black", "white", "tiny", "one pixel", "vignette"],
)
def test_without_a_border_the_whole_image_counts(image):
    assert estimate_fov(image).all()


def test_large_photographs_keep_their_border():
    image = np.asarray(Image.fromarray(photograph(CIRCLE)).resize((350 * 7 + 3, 300 * 7 + 1)))
    mask = np.asarray(Image.fromarray(CIRCLE).resize((350 * 7 + 3, 300 * 7 + 1)))
    found = estimate_fov(image)
    assert found.shape == mask.shape
    assert overlap(found, mask) > 0.99


@pytest.mark.parametrize(
    "image", [np.zeros((9, 9), np.uint8), np.zeros((9, 9, 3), float), np.zeros((9, 9, 4), np.uint8)]
)
def test_wrong_arrays_are_refused(image):
    with pytest.raises(ValueError, match="H×W×3 uint8"):
        estimate_fov(image)


def test_a_crop_of_a_retina_has_no_border():
    generator = np.random.default_rng(0)
    for sample in real_samples("drive").values():
        half = int(generator.integers(70, 140))
        row, column = np.argwhere(sample.fov).mean(axis=0).astype(int)
        crop = sample.image[row - half : row + half, column - half : column + half]
        assert estimate_fov(np.ascontiguousarray(crop)).all(), (sample.name, half)
