from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn as nn
from PIL import Image

from retina_lab.models import build_model
from retina_lab.predict import pick_device, predict, predict_dataset, predict_tensor, save_map
from retina_lab.preprocess import fov_width, normalise, to_batch
from retina_lab.train import Run
from tests.conftest import made_sample


class Green(nn.Module):
    """Logits are the green channel: what comes out is known."""

    def __init__(self):
        super().__init__()
        self.anything = nn.Parameter(torch.zeros(1))

    def forward(self, x):
        return x[:, 1:2]


@pytest.fixture
def network():
    torch.manual_seed(0)
    return build_model("tiny-unet")


def test_it_is_one_sigmoid_of_the_logits_in_the_field():
    sample = made_sample(0)
    batch = to_batch(sample)
    expected = normalise(batch["image"], batch["fov"])[0, 1].sigmoid().numpy() * sample.fov
    out = predict(Green(), sample, device="cpu")
    assert out.dtype == np.float32
    assert out == pytest.approx(expected, abs=1e-6)
    assert (out[~sample.fov] == 0).all()


def test_the_labels_are_not_looked_at(network):
    sample = made_sample(0)
    blind = replace(sample, vessels=None)
    assert np.array_equal(
        predict(network, sample, device="cpu"), predict(network, blind, device="cpu")
    )


def test_flips_average_to_a_flip_invariant_map(network):
    """With test-time flips, flipping the photograph flips the map."""
    image = torch.randn(1, 3, 32, 40)
    for axes in ((2,), (3,), (2, 3)):
        turned = predict_tensor(network, image.flip(axes), tta=True).flip(axes)
        assert torch.allclose(predict_tensor(network, image, tta=True), turned, atol=1e-6)
    plain = [predict_tensor(network, image.flip(a)).flip(a) for a in ((), (2,), (3,), (2, 3))]
    assert torch.allclose(predict_tensor(network, image, tta=True), sum(plain) / 4, atol=1e-6)
    assert not torch.allclose(plain[0], plain[1], atol=1e-4)


def test_a_sliding_window_equals_the_whole_image_for_a_pointwise_network():
    image = torch.randn(1, 3, 70, 90)
    whole = predict_tensor(Green(), image)
    assert torch.allclose(predict_tensor(Green(), image, window=32), whole, atol=1e-5)


def test_large_images_go_through_a_window(network, monkeypatch):
    monkeypatch.setattr("retina_lab.predict.WHOLE_IMAGE_PIXELS", 100)
    seen = []
    network.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].shape))
    out = predict_tensor(network, torch.randn(1, 3, 40, 1200))
    assert out.shape == (1, 1, 40, 1200)
    assert len(seen) > 1


def test_the_mode_of_the_network_is_restored(network):
    network.train()
    before = network.encoder[0][1].running_mean.clone()
    predict_tensor(network, torch.randn(2, 3, 16, 16))
    assert network.training
    assert torch.equal(network.encoder[0][1].running_mean, before)


def test_a_photograph_of_another_scale_is_segmented_at_the_scale_of_training(network):
    """Twice the pixels, the same retina: the network sees the same picture, the map is whole."""
    small = made_sample(0, 48, 56)
    planes = {
        name: np.kron(getattr(small, name), np.ones((2, 2), bool)).astype(bool)
        for name in ("fov", "vessels")
    }
    large = replace(small, image=np.repeat(np.repeat(small.image, 2, 0), 2, 1), **planes)
    run = Run(network, {"normalisation": "local", "fov_width": fov_width(small.fov)}, None)
    seen = []
    network.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].shape[2:]))
    map_small, map_large = predict(run, small, device="cpu"), predict(run, large, device="cpu")
    assert seen[0] == seen[1]
    assert map_large.shape == (96, 112)
    assert np.abs(map_large[::2, ::2] - map_small)[small.fov].mean() < 0.05
    assert (map_large[~large.fov] == 0).all()


def test_a_little_larger_is_left_alone(network):
    sample = made_sample(0)
    settings = {"normalisation": "local", "fov_width": round(0.85 * fov_width(sample.fov))}
    same = predict(Run(network, settings, None), sample, device="cpu")
    assert np.array_equal(same, predict(network, sample, device="cpu"))


def test_a_dataset_by_name(network):
    samples = [made_sample(i) for i in range(2)]
    maps = predict_dataset(network, samples, device="cpu")
    assert list(maps) == ["made_0", "made_1"]
    assert np.array_equal(maps["made_1"], predict(network, samples[1], device="cpu"))


def test_maps_are_sixteen_bit_png(tmp_path):
    values = np.array([[0, 0.5, 1], [1 / 65535, 0.25, 0.9999]], np.float32)
    save_map(tmp_path / "deep/map.png", values)
    with Image.open(tmp_path / "deep/map.png") as picture:
        levels = np.asarray(picture)
    assert levels.dtype == np.uint16
    assert levels.tolist() == [[0, 32768, 65535], [1, 16384, 65528]]


def test_a_saved_map_reads_back_to_the_level(tmp_path):
    from retina_lab.evaluate import read_map
    from retina_lab.metrics import quantise

    values = np.random.default_rng(0).random((20, 30), np.float32)
    save_map(tmp_path / "map.png", values)
    assert np.array_equal(quantise(read_map(tmp_path / "map.png")), quantise(values))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.zeros(5), "must be"),
        (np.array([[0.5, np.nan]]), "NaN"),
        (np.array([[0.5, 1.5]]), r"\[0, 1\]"),
    ],
)
def test_bad_maps_are_not_written(tmp_path, values, message):
    with pytest.raises(ValueError, match=message):
        save_map(tmp_path / "map.png", values)
    assert not list(tmp_path.iterdir())


def test_an_absurd_window_is_named(network):
    with pytest.raises(ValueError, match="window"):
        predict_tensor(network, torch.randn(1, 3, 40, 40), window=4)


def test_devices():
    assert pick_device("cpu") == torch.device("cpu")
    assert pick_device().type in ("cpu", "cuda", "mps")
    with pytest.raises(ValueError, match=r"no device 'warp' here; there are: auto, .*cpu"):
        pick_device("warp")
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="no device 'cuda:1' here"):
            pick_device("cuda:1")
