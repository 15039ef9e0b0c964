import os

# Several test processes share the cores: threads that spin for each other cost tenfold.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MPLBACKEND", "Agg")

import numpy as np
import pytest
from PIL import Image

from retina_lab.datasets import FundusSample
from tests.server import server as server  # a fixture


def made_sample(seed: int, height: int = 48, width: int = 56) -> FundusSample:
    """A small fundus-like image: a disc of light with dark bars across it."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:height, :width]
    fov = np.hypot(rows - height / 2, columns - width / 2) < 0.48 * height
    vessels = np.zeros((height, width), bool)
    for _ in range(3):
        angle, offset = rng.uniform(0, np.pi), rng.uniform(-0.2, 0.2) * height
        distance = (rows - height / 2) * np.cos(angle) + (columns - width / 2) * np.sin(angle)
        vessels |= np.abs(distance - offset) < 1.5
    vessels &= fov
    light = np.array([180, 110, 60])
    image = light - 50 * vessels[..., None] + rng.normal(0, 4, (height, width, 3))
    image = np.clip(image * fov[..., None], 0, 255).astype(np.uint8)
    return FundusSample(name=f"made_{seed}", image=image, fov=fov, vessels=vessels, dataset="made")


@pytest.fixture
def made_samples():
    """Four small labelled samples."""
    return [made_sample(seed) for seed in range(4)]


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """A user's folder of eight small photographs with vessels and masks."""
    root = tmp_path_factory.mktemp("photographs")
    for part in ("images", "vessels", "mask"):
        (root / part).mkdir()
    for seed in range(8):
        sample = made_sample(seed)
        Image.fromarray(sample.image).save(root / f"images/eye{seed}.png")
        Image.fromarray(sample.vessels).save(root / f"vessels/eye{seed}.png")
        Image.fromarray(sample.fov).save(root / f"mask/eye{seed}.png")
    return root


def assert_every_weight_learns(network):
    """After a backward pass: every gradient is finite, and no weight is cut off from the loss."""
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        if "weight" in name:
            assert parameter.grad.abs().sum() > 0, name
