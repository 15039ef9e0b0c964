"""Networks that the course has trained and ships, each with the command that made it.

``python -m retina_lab.weights GRID CELL`` ships the run of a finished cell of
:mod:`retina_lab.benchmark`: it copies the weights to ``data/weights`` and writes their entry in
the manifest.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors.torch import load_file, save_file

from retina_lab.datasets.manifests import project_root, sha256_of
from retina_lab.loop import RECORD, write_atomically
from retina_lab.models import build_model
from retina_lab.train import Run, TrainingError

if TYPE_CHECKING:
    from retina_lab.synthesis import SynthesisRun

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


def _verify(path: Path, sha256: str, command: str) -> None:
    if not path.exists():
        raise TrainingError(f"{path} is missing; restore it, or train again: {command}")
    if sha256_of(path) != sha256:
        raise TrainingError(f"{path} is altered (sha256 differs); restore it from the repository")


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
    _verify(path, entry.sha256, entry.command)
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
    scored on the test images of the dataset's default split, and on no other split without a
    look: :attr:`Run.settings` says which it is and what it has seen.
    """
    name = f"{model}-{dataset}"
    return load_shipped(name if name in list_weights() else f"{model}-phantom")


SYNTHESIS_MANIFEST = "synthesis.json"


def list_synthesis() -> dict[str, dict]:
    """Every shipped synthesis model: its entry in ``data/weights/synthesis.json`` by name."""
    path = weights_folder() / SYNTHESIS_MANIFEST
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def is_shipped(name: str) -> bool:
    """Whether a synthesis model is shipped, and its file there."""
    entry = list_synthesis().get(name)
    return entry is not None and (weights_folder() / entry["file"]).exists()


def find_synthesis(name: str | os.PathLike) -> SynthesisRun:
    """A synthesis model: a run's folder, or the name of a shipped one.

    Raises:
        TrainingError: if it is neither, or its file is missing or altered.
    """
    from retina_lab.synthesis import load_synthesis, synthesis_from

    if Path(name).is_dir():
        return load_synthesis(name)
    known = list_synthesis()
    if str(name) not in known:
        raise TrainingError(
            f"{name} is neither a run's folder nor a shipped model; shipped: "
            f"{', '.join(known) or 'none'}"
        )
    entry = known[str(name)]
    path = weights_folder() / entry["file"]
    _verify(path, entry["sha256"], entry["command"])
    return synthesis_from(entry["settings"], load_file(path), entry["seconds"])


def ship_synthesis(name: str, folder: Path, command: str) -> Path:
    """Put the generators of a finished synthesis run into ``data/weights``, at half precision.

    Args:
        name: of the entry.
        folder: of the run.
        command: that trained it.

    Returns:
        The file.
    """
    from retina_lab.synthesis import GENERATORS

    record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    weights = {
        key: values.half() if values.is_floating_point() else values
        for key, values in load_file(folder / "weights.safetensors").items()
        if key.split(".")[0] in GENERATORS
    }
    broken = [key for key, values in weights.items() if not torch.isfinite(values).all()]
    if broken:
        raise TrainingError(f"{name}: {broken[0]} is not finite at half precision")
    path = weights_folder() / f"{name}.safetensors"
    write_atomically(path, lambda partial: save_file(weights, partial))
    path.chmod(0o644)  # safetensors writes files that nobody else may read
    entries = list_synthesis()
    entries[name] = {
        "file": path.name,
        "sha256": sha256_of(path),
        "command": command,
        "settings": record["settings"],
        "seconds": record["seconds"],
        "versions": record["versions"],
    }
    text = json.dumps(dict(sorted(entries.items())), indent=1, ensure_ascii=False)
    (weights_folder() / SYNTHESIS_MANIFEST).write_text(text + "\n", encoding="utf-8")
    return path


def ship(grid: str, cell: str, runs: Path) -> str:
    """Put the weights of a finished cell of a grid, and what they reach, into ``data/weights``.

    Args:
        grid: a name in :data:`retina_lab.grids.GRIDS`.
        cell: name of one of its cells.
        runs: the folder of runs that the grid was given.

    Returns:
        The name of the entry, ``MODEL-DATASET``.

    Raises:
        TrainingError: if the cell is not finished or its run is not there.
    """
    from retina_lab.grids import results_folder

    record, weights = results_folder(grid) / f"{cell}.json", runs / cell / "weights.safetensors"
    for path in (record, weights):
        if not path.exists():
            raise TrainingError(
                f"{path} is missing; run: python -m retina_lab.benchmark run {grid} --only {cell}"
            )
    found = json.loads(record.read_text(encoding="utf-8"))
    adversary = found["settings"].get("adversary")
    if found.get("variant") or adversary or " + " in found["settings"]["dataset"]:
        raise TrainingError(
            f"{cell} is a variant; only a network trained by the course's own settings on one "
            "dataset is shipped under its name"
        )
    dataset, split = found["settings"]["dataset"], found["settings"]["split"]
    report = found["reports"][f"{dataset} {split}"]
    name = f"{found['settings']['model']}-{dataset}"
    folder = weights_folder()
    copied = folder / f"{name}.safetensors"
    shutil.copyfile(weights, copied)
    manifest = folder / MANIFEST
    entries = json.loads(manifest.read_text(encoding="utf-8")) if manifest.exists() else {}
    entries[name] = {
        "file": copied.name,
        "sha256": sha256_of(copied),
        "command": found["commands"]["train"],
        "settings": found["settings"],
        "threshold": report["threshold"],
        "seconds": found["seconds"],
        "versions": found.get("training", found)["versions"],
        "metric": {"name": "dice", "region": "fov", "value": report["fov"]["dice"]["pooled"]},
        "measured_by": next(
            line for line in found["commands"]["evaluate"] if f"--dataset {dataset} " in line
        ),
    }
    text = json.dumps(dict(sorted(entries.items())), indent=1, ensure_ascii=False)
    manifest.write_text(text + "\n", encoding="utf-8")
    return name


def main(argv: list[str] | None = None) -> int:
    """Ship a cell's weights; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m retina_lab.weights", description=__doc__)
    parser.add_argument("grid")
    parser.add_argument("cell")
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    args = parser.parse_args(argv)
    try:
        print(f"shipped {ship(args.grid, args.cell, args.runs)}")
    except (TrainingError, ValueError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
