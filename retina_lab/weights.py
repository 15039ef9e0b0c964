"""Networks that the course has trained and ships, each with the command that made it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from safetensors.torch import load_file

from retina_lab.datasets.manifests import project_root, sha256_of
from retina_lab.models import build_model
from retina_lab.train import Run, TrainingError

MANIFEST = "manifest.json"


@dataclass(frozen=True)
class ShippedWeights:
    """One entry of ``data/weights/manifest.json``.

    Attributes:
        name: of the entry, such as ``"small-unet-phantom"``.
        file: name of the safetensors file.
        sha256: of that file.
        command: that trained it.
        settings: of the run, as in ``run.json``.
        threshold: chosen on training images, with its origin.
        seconds: wall time by stage on the machine that trained it.
        versions: of the software that trained it.
        metric: what it reaches: dataset, split, name and value, made by ``measured_by``.
        measured_by: the command that measured it.
    """

    name: str
    file: str
    sha256: str
    command: str
    settings: dict
    threshold: dict
    seconds: dict
    versions: dict
    metric: dict
    measured_by: str


def weights_folder() -> Path:
    """``data/weights`` of the checkout, or the copy in an installed package."""
    root = project_root()
    if root is not None:
        return root / "data" / "weights"
    return Path(__file__).parent / "_data" / "weights"


def list_weights() -> dict[str, ShippedWeights]:
    """Every shipped network by name."""
    path = weights_folder() / MANIFEST
    if not path.exists():
        return {}
    entries = json.loads(path.read_text(encoding="utf-8"))
    return {name: ShippedWeights(name=name, **entry) for name, entry in entries.items()}


def load_shipped(name: str) -> Run:
    """A shipped network as a :class:`retina_lab.train.Run`, in eval mode on the CPU.

    Raises:
        TrainingError: if there is no such entry, or its file is missing or altered.
    """
    known = list_weights()
    if name not in known:
        raise TrainingError(f"no shipped weights {name!r}; there are: {', '.join(known) or 'none'}")
    entry = known[name]
    path = weights_folder() / entry.file
    if not path.exists():
        raise TrainingError(f"{path} is missing; restore it, or train again: {entry.command}")
    if sha256_of(path) != entry.sha256:
        raise TrainingError(f"{path} is altered (sha256 differs); restore it from the repository")
    model = build_model(entry.settings["model"])
    model.load_state_dict(load_file(path))
    import pandas as pd

    from retina_lab.train import HISTORY

    return Run(
        model=model.eval(),
        settings=entry.settings,
        history=pd.DataFrame(columns=HISTORY),
        threshold=entry.threshold["value"],
        threshold_from=entry.threshold["from"],
        seconds=entry.seconds,
    )


def shipped_for(dataset: str, model: str = "small-unet") -> Run:
    """The shipped network trained on a dataset, or else the one trained on phantoms.

    No photograph outside its own training images has been seen by either, so both may be
    scored on the dataset's test images; :attr:`Run.settings` says which it is.
    """
    name = f"{model}-{dataset}"
    return load_shipped(name if name in list_weights() else f"{model}-phantom")
