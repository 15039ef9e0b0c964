"""VGG-19: torchvision's plan, and weights that are what they say they are."""

import warnings

import pytest
import torch
import torch.nn as nn

from retina_lab.models import count_parameters, vgg
from retina_lab.models.vgg import BLOCKS, VGG19, load_vgg19


@pytest.fixture
def slim(monkeypatch):
    """The same plan with a few channels, so that files are small and tests fast."""
    monkeypatch.setattr(vgg, "BLOCKS", tuple((c // 32, n) for c, n in BLOCKS))


@pytest.fixture
def published(slim, tmp_path, monkeypatch):
    """A file as torchvision would hand it out, with a classifier that is not needed here."""
    torch.manual_seed(1)
    state = VGG19().state_dict() | {"classifier.0.weight": torch.zeros(2, 2)}
    path = tmp_path / vgg.FILE
    torch.save(state, path)
    monkeypatch.setattr(vgg, "IMAGENET_SHA256", vgg.sha256_of(path)[:8])
    return path


def test_the_plan_is_that_of_vgg_19():
    """20,024,384 parameters in sixteen convolutions; the first of each block is tapped."""
    network = VGG19()
    convolutions = [m for m in network.features if isinstance(m, nn.Conv2d)]
    assert len(convolutions) == 16
    assert count_parameters(network) == 20_024_384
    assert network.taps == [1, 6, 11, 20, 29]  # relu1_1, relu2_1, relu3_1, relu4_1, relu5_1


def test_it_is_torchvisions():
    models = pytest.importorskip("torchvision.models")
    theirs, ours = models.vgg19(weights=None).features.eval(), VGG19()
    ours.features.load_state_dict(theirs.state_dict())
    x = torch.rand(1, 3, 32, 32)
    seen = (x - ours.mean) / ours.deviation
    for tap, found in zip(ours.taps, ours(2 * x - 1), strict=True):
        torch.testing.assert_close(found, theirs[: tap + 1](seen))


def test_five_maps(slim):
    maps = load_vgg19("stand-in")(torch.zeros(2, 3, 32, 48))
    sizes = [(2, 2, 32, 48), (2, 4, 16, 24), (2, 8, 8, 12), (2, 16, 4, 6), (2, 16, 2, 3)]
    assert [tuple(m.shape) for m in maps] == sizes


def test_a_stand_in_says_so_and_hangs_on_its_seed_alone(slim):
    before = torch.random.get_rng_state()
    one, two, other = (load_vgg19("stand-in", seed=s) for s in (0, 0, 1))
    assert torch.equal(before, torch.random.get_rng_state())
    assert one.origin == "stand-in: random weights, seed 0"
    weights = [n.features[0].weight for n in (one, two, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    assert not any(p.requires_grad for p in one.parameters())


def test_auto_warns_when_it_falls_back(slim, tmp_path, monkeypatch):
    monkeypatch.delenv("RETINA_LAB_VGG19", raising=False)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.warns(UserWarning, match="stand-in with random weights"):
        assert "stand-in" in load_vgg19("auto").origin


def test_a_published_file_is_verified_and_read(published, monkeypatch):
    for way in (str(published), "auto"):
        monkeypatch.setenv("RETINA_LAB_VGG19", str(published))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            network = load_vgg19(way)
        assert network.origin == "ImageNet (torchvision, IMAGENET1K_V1)"
        state = torch.load(published, weights_only=True)
        assert torch.equal(network.features[0].weight, state["features.0.weight"])


def test_imagenet_is_taken_from_torch_hubs_folder(published, tmp_path, monkeypatch):
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    published.rename(folder / vgg.FILE)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    assert "ImageNet" in load_vgg19("imagenet").origin


def test_what_is_wrong_with_a_file_is_named(published, tmp_path):
    published.write_bytes(published.read_bytes()[:-1])
    with pytest.raises(ValueError, match="its sha256 begins with"):
        load_vgg19(published)
    with pytest.raises(FileNotFoundError, match="no such file"):
        load_vgg19(tmp_path / "nothing.pth")


def test_a_download_that_fails_says_what_to_do(slim, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(vgg, "URL", "http://127.0.0.1:9/nothing")
    with pytest.raises(OSError, match=r"could not be fetched.*RETINA_LAB_VGG19"):
        load_vgg19("imagenet")


def test_a_download_that_works(published, tmp_path, monkeypatch, server):
    server.files[vgg.FILE] = published.read_bytes()
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    monkeypatch.setattr(vgg, "URL", server.url(vgg.FILE))
    assert "ImageNet" in load_vgg19("imagenet").origin
    assert (tmp_path / "hub/checkpoints" / vgg.FILE).exists()
