"""The views of the dataset tour."""

import numpy as np
import pytest
from skimage import exposure

from retina_lab.enhance import clahe, green_channel


def gradient(seed=0):
    rng = np.random.default_rng(seed)
    base = np.linspace(80, 120, 64)[None, :] + rng.normal(0, 4, (64, 64))
    return base.clip(0, 255).astype(np.uint8)


def test_green_channel_is_a_copy_of_the_second():
    image = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
    green = green_channel(image)
    assert green.tolist() == [[1, 4], [7, 10]]
    green[:] = 0
    assert image[0, 0, 1] == 1


def test_clahe_agrees_with_scikit_image_without_a_fov():
    image = gradient()
    expected = exposure.equalize_adapthist(image, kernel_size=8, clip_limit=0.01)
    assert np.abs(clahe(image) - expected * 255).max() <= 0.5


@pytest.mark.parametrize("colour", [False, True])
def test_clahe_stretches_contrast_and_keeps_shape_and_type(colour):
    image = np.stack([gradient()] * 3, axis=-1) if colour else gradient()
    result = clahe(image, clip_limit=0.05)
    assert result.shape == image.shape
    assert result.dtype == np.uint8
    assert result.std() > 2 * image.std()


def test_the_surround_is_black_and_does_not_matter():
    image = gradient()
    fov = np.hypot(*np.mgrid[-32:32, -32:32]) < 30
    bright, dark = image.copy(), image.copy()
    bright[~fov], dark[~fov] = 255, 0
    assert (clahe(bright, fov)[~fov] == 0).all()
    assert (clahe(bright, fov) == clahe(dark, fov)).all()


def test_an_empty_fov_gives_black():
    assert clahe(gradient(), np.zeros((64, 64), bool)).max() == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((np.zeros((4, 4)),), "uint8"),
        ((np.zeros((4, 4, 4), np.uint8),), "H×W×3"),
        ((np.zeros((4, 4), np.uint8), np.ones((4, 5), bool)), "fov"),
    ],
)
def test_refuses_bad_images(arguments, message):
    with pytest.raises(ValueError, match=message):
        clahe(*arguments)


@pytest.mark.parametrize(("name", "value"), [("clip_limit", 0), ("clip_limit", 2), ("tiles", 0)])
def test_refuses_absurd_parameters(name, value):
    with pytest.raises(ValueError, match=name):
        clahe(gradient(), **{name: value})


def test_green_needs_colour():
    with pytest.raises(ValueError, match="H×W×3"):
        green_channel(gradient())
