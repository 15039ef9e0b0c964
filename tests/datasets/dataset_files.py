import gzip
import io
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from retina_lab.datasets import DatasetError, open_dataset


@lru_cache
def _real_samples(name: str):
    try:
        return {sample.name: sample for sample in open_dataset(name)}
    except DatasetError as error:
        return str(error).splitlines()[0]


def real_samples(name: str) -> dict:
    """All samples of the dataset ``name``, or skip the test where it is not on this machine."""
    samples = _real_samples(name)
    if isinstance(samples, str):
        pytest.skip(samples)
    return samples


def one_real_sample(dataset: str, name: str):
    """One sample of a dataset, or skip the test; for large photographs."""
    try:
        return open_dataset(dataset)[name]
    except DatasetError as error:
        pytest.skip(str(error).splitlines()[0])


def save(path: Path, array: np.ndarray, **options) -> Path:
    """Write an array as an image, gzipped if the name ends in .gz."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(array)
    if path.suffix == ".gz":
        stream = io.BytesIO()
        image.save(stream, format="PPM")
        path.write_bytes(gzip.compress(stream.getvalue(), mtime=0))
    else:
        image.save(path, **options)
    return path


def eye(height: int = 60, width: int = 70, seed: int = 0) -> np.ndarray:
    """A bright disc with texture on black, (H, W, 3) uint8."""
    rng = np.random.default_rng(seed)
    rows, columns = np.ogrid[:height, :width]
    disc = np.hypot(rows - height / 2, columns - width / 2) < 0.45 * height
    image = rng.integers(120, 200, (height, width, 3)) * disc[:, :, None]
    return image.astype(np.uint8)


def bars(height: int = 60, width: int = 70, every: int = 10) -> np.ndarray:
    """A mask with vertical bars, (H, W) uint8 of 0 and 255."""
    mask = np.zeros((height, width), np.uint8)
    mask[:, ::every] = 255
    return mask
