import json
import shutil

import pandas as pd
import pytest
import torch

from retina_lab import weights
from retina_lab.datasets import DatasetError, open_split
from retina_lab.evaluate import evaluate_maps
from retina_lab.predict import predict_dataset
from retina_lab.train import HISTORY, TrainingError

NAMES = list(weights.list_weights())


def test_every_file_has_an_entry_and_every_entry_a_file():
    files = {path.name for path in weights.weights_folder().glob("*.safetensors")}
    known = {entry.file for entry in weights.list_weights().values()}
    assert files == known | {entry["file"] for entry in weights.list_synthesis().values()}
    assert files


@pytest.mark.parametrize("name", NAMES)
def test_shipped_weights_are_small_and_say_where_they_come_from(name):
    entry = weights.list_weights()[name]
    path = weights.weights_folder() / entry.file
    assert path.stat().st_size <= 2 * 2**20
    assert entry.command.startswith("retina-lab train --dataset")
    assert f"--seed {entry.settings['seed']}" in entry.command
    assert entry.measured_by.startswith("retina-lab evaluate")
    assert "test" not in entry.threshold["from"]


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_shipped_weights_meet_their_figure(name):
    """Half of a unit in the third decimal: another processor rounds differently."""
    entry = weights.list_weights()[name]
    run = weights.load_shipped(name)
    try:
        split = open_split(entry.settings["dataset"], entry.settings["split"])
    except DatasetError as error:
        pytest.skip(str(error).splitlines()[0])
    report = evaluate_maps(
        split.test,
        predict_dataset(run, split.test, tta=True, device="cpu"),
        threshold=run.threshold,
        threshold_from=run.threshold_from,
        bootstrap=0,
    )
    assert report.fov["dice"]["pooled"] == pytest.approx(entry.metric["value"], abs=5e-4)


def test_no_shipped_network_has_seen_its_test_images():
    for entry in weights.list_weights().values():
        try:
            split = open_split(entry.settings["dataset"], entry.settings["split"])
        except DatasetError:
            continue
        seen = {*entry.settings["train"], *entry.settings["val"]}
        assert not seen & set(split.test.names)


@pytest.fixture
def copied(tmp_path, monkeypatch):
    """A copy of the weights folder that a test may spoil."""
    shutil.copytree(weights.weights_folder(), tmp_path / "weights")
    monkeypatch.setattr(weights, "weights_folder", lambda: tmp_path / "weights")
    return tmp_path / "weights"


def test_altered_and_missing_files_are_named(copied):
    name = NAMES[0]
    path = copied / weights.list_weights()[name].file
    path.write_bytes(path.read_bytes()[:-1] + b"\x01")
    with pytest.raises(TrainingError, match="altered"):
        weights.load_shipped(name)
    path.unlink()
    with pytest.raises(TrainingError, match="is missing"):
        weights.load_shipped(name)
    with pytest.raises(TrainingError, match="no shipped weights 'nothing'"):
        weights.load_shipped("nothing")


def test_a_dataset_without_weights_gets_those_of_the_phantom(copied):
    assert weights.shipped_for("somewhere").settings["dataset"] == "phantom"
    manifest = json.loads((copied / weights.MANIFEST).read_text())
    manifest["small-unet-elsewhere"] = manifest["small-unet-phantom"]
    (copied / weights.MANIFEST).write_text(json.dumps(manifest))
    assert weights.shipped_for("elsewhere").settings["dataset"] == "phantom"


def test_a_cell_that_is_not_finished_cannot_be_shipped(tmp_path, capsys):
    assert weights.main(["small-unet", "moon", "--runs", str(tmp_path)]) == 1
    assert "benchmark run small-unet --only moon" in capsys.readouterr().err


def test_shipping_copies_weights_and_writes_their_entry(tmp_path, monkeypatch):
    from retina_lab import grids
    from retina_lab.models import build_model
    from retina_lab.train import Run, save_run

    run = Run(
        model=build_model("tiny-unet"),
        settings={
            "model": "tiny-unet", "model_known": True, "dataset": "phantom", "split": "official",
            "normalisation": "local", "seed": 0,
        },
        history=pd.DataFrame(columns=HISTORY),
    )  # fmt: skip
    save_run(run, tmp_path / "runs" / "cell")
    monkeypatch.setattr(grids, "project_root", lambda: tmp_path)
    monkeypatch.setattr(weights, "project_root", lambda: tmp_path)
    record = {
        "settings": run.settings,
        "seconds": {"train": 1.0},
        "versions": {},
        "commands": grids.Cell("tiny-unet", "phantom", "official", "1s", 0).commands("small-unet"),
        "reports": {
            "phantom official": {
                "threshold": {"value": 0.3, "from": "2 training images"},
                "fov": {"dice": {"pooled": 0.5}},
            }
        },
    }
    folder = grids.results_folder("small-unet")
    folder.mkdir(parents=True)
    (tmp_path / "data" / "weights").mkdir()
    (folder / "cell.json").write_text(json.dumps(record))
    assert weights.ship("small-unet", "cell", tmp_path / "runs") == "tiny-unet-phantom"
    shipped = weights.load_shipped("tiny-unet-phantom")
    assert shipped.threshold == 0.3
    x = torch.randn(1, 3, 16, 16)
    assert torch.equal(shipped.model(x), run.model.eval()(x))
    assert weights.list_weights()["tiny-unet-phantom"].metric["value"] == 0.5
