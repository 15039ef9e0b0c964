import json
import os
import re
import subprocess
import sys
import zipfile

import numpy as np
import pytest
from PIL import Image

from retina_lab import cli
from retina_lab.datasets import DatasetError, open_split
from retina_lab.evaluate import METRICS, Report
from retina_lab.loop import digest

TINY = ["--model", "tiny-unet", "--crop", "32", "--val", "1", "--device", "cpu"]


@pytest.fixture(scope="module")
def run(folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "run"
    argv = ["train", "--dataset", str(folder), *TINY, "--epochs", "150", "--lr", "0.01"]
    assert cli.main([*argv, "--out", str(out)]) == 0
    return out


def test_train_writes_its_three_files(run):
    assert {"run.json", "weights.safetensors", "history.csv"} <= {p.name for p in run.iterdir()}
    record = json.loads((run / "run.json").read_text())
    assert record["settings"]["epochs"] == 150
    assert re.fullmatch(r"\d training and \d validation images", record["threshold"]["from"])


def test_the_same_command_again_trains_nothing(run, folder, capsys):
    before = (run / "weights.safetensors").stat().st_mtime_ns
    argv = ["train", "--dataset", str(folder), *TINY, "--epochs", "150", "--lr", "0.01"]
    assert cli.main([*argv, "--out", str(run)]) == 0
    assert (run / "weights.safetensors").stat().st_mtime_ns == before
    argv[argv.index("150")] = "151"
    assert cli.main([*argv, "--out", str(run)]) == 1
    assert "other settings (epochs: 150 there, 151 now)" in capsys.readouterr().err


def test_predict_writes_16_bit_maps_named_after_the_images(run, folder, tmp_path, capsys):
    argv = ["predict", "--run", str(run), "--images", str(folder / "images"), "--device", "cpu"]
    assert cli.main([*argv, "--out", str(tmp_path)]) == 0
    names = sorted(path.name for path in tmp_path.glob("*.png"))
    assert names == [f"eye{i}.png" for i in range(8)]
    with Image.open(tmp_path / "eye0.png") as picture:
        levels = np.asarray(picture)
    assert levels.dtype == np.uint16
    assert levels.shape == (48, 56)
    assert len(np.unique(levels)) > 256
    assert cli.main([*argv, "--out", str(tmp_path)]) == 1
    assert "already holds 8" in capsys.readouterr().err
    assert cli.main([*argv, "--out", str(tmp_path), "--overwrite"]) == 0


def test_a_run_and_its_saved_maps_score_alike(run, folder, tmp_path, capsys):
    """Same threshold, same figures to the last digit, whichever way they are scored."""
    common = ["--dataset", str(folder), "--bootstrap", "50"]
    assert (
        cli.main(["evaluate", "--run", str(run), *common, "--json", str(tmp_path / "a.json")]) == 0
    )
    maps = tmp_path / "maps"
    assert (
        cli.main(["predict", "--run", str(run), "--dataset", str(folder), "--out", str(maps)]) == 0
    )
    argv = ["evaluate", "--maps", str(maps), *common, "--threshold", "run"]
    assert cli.main([*argv, "--json", str(tmp_path / "b.json")]) == 0
    one, two = (json.loads((tmp_path / name).read_text()) for name in ("a.json", "b.json"))
    assert one == two
    assert set(one) == {"fov", "all", "second_observer", "threshold", "images", "histograms"}
    assert set(one["fov"]) == set(METRICS)
    assert set(one["fov"]["dice"]) == {"pooled", "mean", "sd", "interval"}
    assert one["fov"]["cldice"]["pooled"] is None
    assert one["threshold"]["from"].endswith("validation images")
    assert one["fov"]["dice"]["pooled"] > 0.6
    assert set(one["images"]) == set(open_split(folder).test.names)
    assert Report.from_json(tmp_path / "a.json").to_dict() == one
    assert "Threshold" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("threshold", "value", "source"),
    [("0.25", 0.25, "given"), ("otsu", None, "Otsu"), (None, 0.5, "default")],
)
def test_thresholds(run, folder, tmp_path, threshold, value, source):
    maps, report = tmp_path / "maps", tmp_path / "r.json"
    cli.main(["predict", "--run", str(run), "--dataset", str(folder), "--out", str(maps)])
    argv = ["evaluate", "--maps", str(maps), "--dataset", str(folder), "--json", str(report)]
    assert cli.main(argv + (["--threshold", threshold] if threshold else [])) == 0
    found = json.loads(report.read_text())["threshold"]
    assert source in found["from"]
    if value is not None:
        assert found["value"] == value


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda maps: (maps / "eye0.png").rename(maps / "other.png"), "other.png"),
        (lambda maps: [p.unlink() for p in maps.glob("*.png")], "no map for"),
        (lambda maps: [Image.new("L", (9, 9)).save(p) for p in maps.glob("*.png")], "9×9"),
        (lambda maps: (maps / "maps.json").unlink(), "maps.json"),
    ],
)
def test_wrong_maps_are_named(run, folder, tmp_path, capsys, change, message):
    maps = tmp_path / "maps"
    cli.main(["predict", "--run", str(run), "--dataset", str(folder), "--out", str(maps)])
    change(maps)
    argv = ["evaluate", "--maps", str(maps), "--dataset", str(folder), "--threshold", "run"]
    assert cli.main(argv) == 1
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("also", ["", "abroad + "])
def test_test_images_in_training_are_refused(run, folder, tmp_path, capsys, also):
    """A run that has seen a test image is not scored on it, wherever else it has learned."""
    record = json.loads((run / "run.json").read_text())
    leaky = tmp_path / "leaky"
    leaky.mkdir()
    for name in ("weights.safetensors", "history.csv"):
        (leaky / name).write_bytes((run / name).read_bytes())
    known = record["settings"].pop("photographs")
    unseen = open_split(folder).test[0]
    record["settings"]["train"].append(unseen.name)
    record["settings"]["dataset"] = also + record["settings"]["dataset"]
    evaluate = ["evaluate", "--run", str(leaky), "--dataset", str(folder)]
    (leaky / "run.json").write_text(json.dumps(record))  # by name, as in runs from before
    assert cli.main(evaluate) == 1
    assert "trained on 1 of these test images" in capsys.readouterr().err
    record["settings"]["photographs"] = known | {"a copy": digest([unseen.image])}
    (leaky / "run.json").write_text(json.dumps(record))
    assert cli.main(evaluate) == 1
    assert "trained on 1 of these test images" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["train", "--dataset", "nowhere", "--epochs", "1", "--out", "x"], "nowhere"),
        (
            ["train", "--dataset", "phantom", "--model", "unte", "--epochs", "1", "--out", "x"],
            "unet",
        ),
        (["train", "--dataset", "phantom", "--budget", "soon", "--out", "x"], "soon"),
        (["evaluate", "--maps", "nowhere", "--dataset", "phantom"], "nowhere"),
        (["predict", "--run", "nowhere", "--dataset", "phantom", "--out", "x"], "run.json"),
    ],
)
def test_errors_go_to_standard_error_with_status_1(argv, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main(argv) == 1
    assert message in capsys.readouterr().err
    assert not list(tmp_path.glob("x/weights*"))


@pytest.mark.parametrize(
    "argv",
    [
        [],
        ["train", "--dataset", "phantom", "--out", "x"],
        ["train", "--dataset", "phantom", "--out", "x", "--epochs", "1", "--budget", "1s"],
        ["evaluate", "--dataset", "phantom"],
        ["predict", "--run", "x", "--out", "y"],
    ],
)
def test_a_wrong_command_line_is_status_2(argv, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(argv)
    assert stop.value.code == 2


def test_models(capsys):
    assert cli.main(["models"]) == 0
    printed = capsys.readouterr().out
    assert "31,039,425" in printed
    assert "end-to-end" in printed
    assert cli.main(["models", "--json"]) == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert rows["unet"]["trainable_parameters"] == 31_039_425
    assert rows["small-unet"]["trainable_parameters"] < 130_000


def test_doctor(capsys):
    assert cli.main(["doctor"]) == 0
    out = capsys.readouterr().out
    for word in ("torch", "phantom", "precision", "drive"):
        assert word in out


def test_a_submission_for_the_grand_challenge(tmp_path, capsys):
    """Twenty binary pictures, numbered, at the top of the archive."""
    try:
        open_split("drive")
    except DatasetError as error:
        pytest.skip(str(error).splitlines()[0])
    out = tmp_path / "run"
    argv = ["train", "--dataset", "drive", *TINY, "--budget", "3s", "--out", str(out)]
    assert cli.main(argv) == 0
    target = tmp_path / "drive.zip"
    assert cli.main(["submit", "--run", str(out), "--out", str(target)]) == 0
    with zipfile.ZipFile(target) as archive:
        assert sorted(archive.namelist()) == sorted(f"{i}.png" for i in range(1, 21))
        with archive.open("7.png") as file, Image.open(file) as picture:
            assert picture.size == (565, 584)
            assert picture.mode == "L"
            assert set(np.unique(np.asarray(picture))) <= {0, 255}
    assert cli.main(["submit", "--run", str(out), "--out", str(target)]) == 1
    assert "exists" in capsys.readouterr().err


@pytest.mark.skipif(os.name == "nt", reason="there, a closed pipe is another error")
def test_a_reader_who_has_seen_enough_is_no_error():
    """``retina-lab models | head -1`` ends quietly."""
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "retina_lab.cli", "models"]
    done = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writing)
    assert (done.returncode, done.stderr) == (141, "")
