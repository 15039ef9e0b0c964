"""Fundus photographs: the embedded phantom, the public datasets, a user's own folder."""

from retina_lab.datasets.fov import estimate_fov
from retina_lab.datasets.io import DatasetError, DatasetWarning, read_image, read_mask
from retina_lab.datasets.layouts import (
    FundusDataset,
    Split,
    check_split,
    data_roots,
    list_datasets,
    list_splits,
    open_dataset,
    open_labelled_split,
    open_split,
)
from retina_lab.datasets.manifests import load_manifest
from retina_lab.datasets.sample import FundusSample

__all__ = [
    "DatasetError",
    "DatasetWarning",
    "FundusDataset",
    "FundusSample",
    "PhantomParameters",
    "Split",
    "check_split",
    "data_roots",
    "estimate_fov",
    "list_datasets",
    "list_splits",
    "load_manifest",
    "make_phantom",
    "open_dataset",
    "open_labelled_split",
    "open_split",
    "read_image",
    "read_mask",
]


def __getattr__(name):
    # The phantom draws with scikit-image, which takes a moment to import.
    if name in ("make_phantom", "PhantomParameters"):
        from retina_lab.datasets import phantom

        return getattr(phantom, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
