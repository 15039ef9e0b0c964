import numpy as np
import pytest
import torch
from scipy import ndimage

from retina_lab.datasets import FundusSample
from retina_lab.preprocess import RIM, fov_width, normalise, resize_batch, to_batch


def sample(height=4, width=5, vessels=True):
    image = np.arange(height * width * 3, dtype=np.uint8).reshape(height, width, 3)
    fov = np.ones((height, width), bool)
    return FundusSample("made", image, fov, vessels=fov.copy() if vessels else None)


def test_to_batch_shapes_and_values():
    batch = to_batch([sample(), sample()])
    assert batch["image"].shape == (2, 3, 4, 5)
    assert batch["image"][0, :, 0, 0].tolist() == pytest.approx([0, 1 / 255, 2 / 255])
    assert batch["fov"].shape == batch["vessels"].shape == (2, 1, 4, 5)
    assert "vessels" not in to_batch([sample(), sample(vessels=False)])


@pytest.mark.parametrize(
    ("samples", "message"),
    [([], "at least one"), ([sample(4, 5), sample(5, 4)], "different sizes")],
)
def test_to_batch_refuses(samples, message):
    with pytest.raises(ValueError, match=message):
        to_batch(samples)


def test_local_normalisation_agrees_with_scipy():
    """Box mean and deviation over the field only, by scipy's uniform filter."""
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(1, 3, 40, 50, generator=generator)
    fov = torch.zeros(1, 1, 40, 50)
    fov[..., 5:35, 8:45] = 1
    ours = normalise(image, fov, "local", window=9)[0].numpy()
    inside = np.zeros((40, 50))
    inside[5 + RIM : 35 - RIM, 8 + RIM : 45 - RIM] = 1

    def box(values):
        return ndimage.uniform_filter(values, 9, mode="constant") * 81

    for channel, plane in enumerate(image[0].double().numpy()):
        count = box(inside)
        mean = box(plane * inside) / np.maximum(count, 1)
        deviation = np.sqrt(np.maximum(box(plane**2 * inside) / np.maximum(count, 1) - mean**2, 0))
        expected = (plane - mean) / np.maximum(deviation, 0.01) * inside
        assert ours[channel] == pytest.approx(expected, abs=2e-3)


def test_black_border_does_not_bend_the_rim():
    """A field that is flat comes out flat up to its very edge."""
    fov = torch.zeros(1, 1, 64, 64)
    fov[..., 16:48, 16:48] = 1
    image = 0.6 * fov.expand(1, 3, 64, 64)
    assert normalise(image, fov, "local").abs().max() < 1e-3


@pytest.mark.parametrize("method", ["local", "zscore"])
def test_brightness_and_contrast_of_the_camera_drop_out(method):
    image = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    fov = torch.ones(2, 1, 64, 64)
    other_camera = 0.5 * image + 0.2
    assert torch.allclose(
        normalise(image, fov, method), normalise(other_camera, fov, method), atol=1e-3
    )


def test_the_penumbra_of_the_aperture_is_no_vessel():
    """A rim that fades over the outermost pixels leaves no dark ring behind."""
    fov = torch.zeros(1, 1, 64, 64)
    fov[..., 16:48, 16:48] = 1
    image = 0.6 * fov.expand(1, 3, 64, 64).clone()
    image[..., 16, 16:48] = 0.2
    image[..., 17, 16:48] = 0.4
    assert normalise(image, fov, "local").abs().max() < 1e-3
    assert normalise(image, fov, "zscore").min() < -3


def test_a_crop_of_the_inside_loses_nothing_at_its_edges():
    image = torch.rand(1, 3, 20, 20, generator=torch.Generator().manual_seed(3))
    assert (normalise(image, torch.ones(1, 1, 20, 20), "local")[..., 0, :] != 0).all()


def test_zscore_has_mean_zero_and_deviation_one_in_the_field():
    image = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(2))
    fov = torch.zeros(1, 1, 32, 32)
    fov[..., :20] = 1
    values = normalise(image, fov, "zscore")[..., :20]
    assert values.mean((2, 3))[0].tolist() == pytest.approx([0, 0, 0], abs=1e-5)
    assert values.std((2, 3), correction=0)[0].tolist() == pytest.approx([1, 1, 1], abs=1e-4)


def test_none_only_clears_the_outside():
    image = torch.rand(1, 3, 8, 8)
    fov = torch.zeros(1, 1, 8, 8)
    fov[..., :4] = 1
    assert torch.equal(normalise(image, fov, "none"), image * fov)


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"method": "histogram"}, "histogram"),
        ({"window": 30}, "odd"),
        ({"window": 1}, "at least 3"),
    ],
)
def test_normalise_refuses(keywords, message):
    with pytest.raises(ValueError, match=message):
        normalise(torch.zeros(1, 3, 8, 8), torch.ones(1, 1, 8, 8), **keywords)


def test_an_empty_field_gives_zeros_not_nan():
    out = normalise(torch.rand(1, 3, 40, 40), torch.zeros(1, 1, 40, 40), "local")
    assert torch.equal(out, torch.zeros_like(out))


@pytest.mark.parametrize(
    ("rows", "columns", "expected"),
    [((2, 9), (3, 5), 7), ((0, 4), (0, 10), 10), ((3, 3), (3, 3), 0)],
)
def test_width_of_the_field(rows, columns, expected):
    fov = np.zeros((12, 12), bool)
    fov[slice(*rows), slice(*columns)] = True
    assert fov_width(fov) == expected


def test_resizing_keeps_masks_binary_and_flat_images_flat():
    batch = to_batch(sample(20, 30))
    batch["image"][:] = 0.3
    half = resize_batch(batch, 0.5)
    assert half["image"].shape == (1, 3, 10, 15)
    assert torch.allclose(half["image"], torch.tensor(0.3))
    assert set(half["vessels"].unique().tolist()) <= {0.0, 1.0}
    assert resize_batch(batch, 0.001)["fov"].shape == (1, 1, 1, 1)


@pytest.mark.parametrize("factor", [0.5, 0.645, 0.37, 0.18, 1.6])
def test_resized_labels_lie_where_the_photograph_shows_them(factor):
    rows, columns = np.mgrid[:240, :300]
    disc = np.hypot(rows - 101, columns - 143) < 60
    image = np.where(disc[..., None], np.uint8(255), np.uint8(0)).repeat(3, axis=2)
    shown = FundusSample("disc", image, np.ones_like(disc), vessels=disc)
    batch = resize_batch(to_batch(shown), factor)

    def middle(plane):
        y, x = np.mgrid[: plane.shape[0], : plane.shape[1]]
        return np.array([(plane * y).sum(), (plane * x).sum()]) / plane.sum()

    np.testing.assert_allclose(
        middle(batch["vessels"][0, 0].numpy()), middle(batch["image"][0, 1].numpy()), atol=0.3
    )
