"""Running grids: continuing, leaving out, and every kind of cell on phantoms."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest

from retina_lab import benchmark, grids, results
from retina_lab.benchmark import LeftOut
from retina_lab.datasets import open_split
from retina_lab.evaluate import METRICS, Report
from retina_lab.grids import PHANTOM, Cell, Classical, Combination, Published
from retina_lab.loop import TrainingError
from retina_lab.models import build_model, count_parameters
from retina_lab.predict import predict_dataset, save_map
from retina_lab.train import load_run

CELLS = [Cell("tiny-unet", *PHANTOM, "1s", seed) for seed in (0, 1)]


@pytest.fixture
def grid(monkeypatch, tmp_path):
    """A grid of tiny cells whose files lie in a folder of their own."""
    monkeypatch.setitem(grids.GRIDS, "tiny", CELLS)
    monkeypatch.setattr(grids, "project_root", lambda: tmp_path)
    return tmp_path / "data" / "results" / "tiny"


def small_result(cell):
    """As little of a cell's file as ``run`` needs."""
    return {"seed": cell.seed, "reports": {"phantom official": {"fov": {"dice": {"pooled": 0.5}}}}}


def files(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("word", ["run", "resume"])
def test_a_killed_grid_goes_on_and_repeats_nothing(grid, monkeypatch, tmp_path, word):
    ran = []

    def run_cell(cell, *_):
        ran.append(cell.seed)
        if len(ran) == 2:
            raise KeyboardInterrupt
        return small_result(cell)

    monkeypatch.setattr(benchmark, "run_cell", run_cell)
    argv = [word, "tiny", "--runs", str(tmp_path)]
    assert benchmark.main(argv) == 130
    assert files(grid) == ["tiny-unet-phantom-official-1s-s0.json"]
    assert benchmark.main(argv) == 0
    assert ran == [0, 1, 1]
    assert benchmark.main(argv) == 0
    assert ran == [0, 1, 1]
    assert json.loads((grid / files(grid)[1]).read_text())["seed"] == 1


def test_nothing_half_written_is_taken_for_a_result(grid, monkeypatch, tmp_path):
    def write_text(path, text, *_):
        path.write_bytes(text.encode()[:10])
        raise OSError("the disk is full")

    monkeypatch.setattr(benchmark, "run_cell", lambda cell, *_: small_result(cell))
    monkeypatch.setattr("pathlib.Path.write_text", write_text)
    with pytest.raises(OSError, match="full"):
        benchmark.run_grid("tiny", tmp_path)
    assert not list(grid.glob("*.json"))


@pytest.mark.parametrize(
    "error",
    [
        TrainingError("the loss is not finite"),
        ValueError("batch_size 1"),
        LeftOut("no map"),
        RuntimeError("CUDA out of memory"),
    ],
)
def test_a_cell_that_fails_does_not_stop_the_others(grid, monkeypatch, tmp_path, capsys, error):
    def run_cell(cell, *_):
        if cell.seed == 0:
            raise error
        return small_result(cell)

    monkeypatch.setattr(benchmark, "run_cell", run_cell)
    assert benchmark.main(["run", "tiny", "--runs", str(tmp_path)]) == 1
    assert str(error) in capsys.readouterr().err
    assert files(grid) == ["tiny-unet-phantom-official-1s-s1.json"]


def test_no_network_is_scored_on_what_it_learns_from(folder):
    cell = Cell("tiny-unet", str(folder), "seeded-0", "1s", 0, ((str(folder), "seeded-1"),))
    with pytest.raises(LeftOut, match=r"learns from the test image eye\d"):
        benchmark.look_up(cell)
    with pytest.raises(LeftOut, match="learns from the test image"):
        benchmark.look_up(Combination("x", (cell,)))
    known, tests = benchmark.look_up(Cell("tiny-unet", str(folder), "seeded-0", "1s", 0))
    assert not set(known.names) & set(tests[str(folder), "seeded-0"].names)


def test_what_has_no_labels_is_left_out_before_training(folder, tmp_path, monkeypatch):
    shutil.copytree(folder / "images", tmp_path / "bare" / "images")
    cell = Cell(
        "tiny-unet", str(folder), "seeded-0", "1s", 0, ((str(tmp_path / "bare"), "seeded-0"),)
    )
    monkeypatch.setattr("retina_lab.train.fit", lambda *_, **__: pytest.fail("it trains"))
    with pytest.raises(LeftOut, match="bare seeded-0 have no labels here"):
        benchmark.measure_network(cell, tmp_path / "runs")


def test_metrics_without_a_meaning_are_left_out():
    entry = {"pooled": 0.5, "mean": 0.5, "sd": 0.1, "interval": [0.4, 0.6]}
    region = {"dice": entry, "ece": entry}
    image = {"person": "a", "fov": {"dice": 0.5, "ece": 0.1}, "all": {"dice": 0.5, "ece": 0.1}}
    given = {"fov": region, "all": region, "images": {"a": image}}
    found = benchmark.unmeasured(given, ("ece",))
    assert found["fov"]["ece"] == {"pooled": None, "mean": None, "sd": None, "interval": [None] * 2}
    assert found["fov"]["dice"] == given["fov"]["dice"]
    assert found["images"]["a"]["all"] == {"dice": 0.5, "ece": None}
    assert found["images"]["a"]["person"] == "a"
    assert given["fov"]["ece"]["pooled"] is not None


def test_a_failure_of_the_first_process_is_heard_by_all(monkeypatch):
    def fail():
        raise ValueError("no vessel in any field of view")

    with pytest.raises(LeftOut, match="no vessel"):
        benchmark.on_first_process(fail)
    monkeypatch.setattr("retina_lab.loop.is_first_process", lambda: False)
    assert benchmark.on_first_process(fail) is None  # alone it hears of nothing
    monkeypatch.setattr("retina_lab.loop.agree", lambda value: "the first one failed")
    with pytest.raises(LeftOut, match="the first one failed"):
        benchmark.on_first_process(fail)


def test_a_misspelt_cell_is_told(grid, tmp_path, capsys):
    assert benchmark.main(["run", "tiny", "--only", "moon", "--runs", str(tmp_path)]) == 2
    assert "no cell of tiny has 'moon' in its name" in capsys.readouterr().err


def test_a_whole_name_means_one_cell(grid, monkeypatch, tmp_path):
    cells = [Cell("tiny-unet", *PHANTOM, "1s", seed) for seed in (1, 10)]
    monkeypatch.setitem(grids.GRIDS, "tiny", cells)
    ran = []
    monkeypatch.setattr(
        benchmark, "run_cell", lambda cell, *_: ran.append(cell.seed) or small_result(cell)
    )
    benchmark.main(["run", "tiny", "--only", cells[0].name, "--runs", str(tmp_path)])
    assert ran == [1]


def test_a_missing_dataset_is_named_and_the_other_cells_run(grid, monkeypatch, tmp_path, capsys):
    from retina_lab.datasets import DatasetError

    def run_cell(cell, *_):
        if cell.seed == 0:
            raise DatasetError("the dataset moon is not here")
        return small_result(cell)

    monkeypatch.setattr(benchmark, "run_cell", run_cell)
    assert benchmark.main(["run", "tiny", "--runs", str(tmp_path)]) == 1
    assert "s0: the dataset moon is not here" in capsys.readouterr().err
    assert files(grid) == ["tiny-unet-phantom-official-1s-s1.json"]


@pytest.mark.parametrize(("part", "seeds"), [("1/2", [0]), ("2/2", [1]), ("1/1", [0, 1])])
def test_machines_share_the_cells(grid, monkeypatch, tmp_path, part, seeds):
    ran = []
    monkeypatch.setattr(
        benchmark, "run_cell", lambda cell, *_: ran.append(cell.seed) or small_result(cell)
    )
    assert benchmark.main(["run", "tiny", "--runs", str(tmp_path), "--part", part]) == 0
    assert ran == seeds


@pytest.mark.parametrize("part", ["0/2", "3/2", "half", "1"])
def test_absurd_parts_are_refused(grid, part, capsys):
    with pytest.raises(SystemExit):
        benchmark.main(["run", "tiny", "--part", part])
    assert "k/n" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("variables", "first"),
    [
        ({}, True),
        ({"LOCAL_RANK": "1"}, False),
        ({"TORCHELASTIC_RUN_ID": "x", "RANK": "1", "LOCAL_RANK": "0"}, False),
        ({"SLURM_NTASKS": "4", "SLURM_JOB_NAME": "train", "SLURM_PROCID": "3"}, False),
        # by hand within a SLURM job: fabric starts the second process itself
        (
            {"SLURM_NTASKS": "1", "SLURM_JOB_NAME": "bash", "SLURM_PROCID": "0", "LOCAL_RANK": "1"},
            False,
        ),
    ],
)
def test_only_the_first_process_measures_what_is_not_trained(
    grid, monkeypatch, tmp_path, variables, first
):
    for name in ("RANK", "SLURM_PROCID", "LOCAL_RANK", "TORCHELASTIC_RUN_ID", "SLURM_NTASKS"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setitem(grids.GRIDS, "tiny", [Classical("frangi", *PHANTOM)])
    monkeypatch.setattr(
        benchmark, "measure_classical", lambda cell: small_result(Cell("x", *PHANTOM, "1s", 0))
    )
    assert benchmark.run_grid("tiny", tmp_path) == []
    assert len(files(grid)) == first


def test_an_interrupted_training_ends_the_grid_without_a_result(grid, monkeypatch, tmp_path):
    from retina_lab.train import Run

    stopped = Run(build_model("tiny-unet"), {}, None, interrupted=True)
    monkeypatch.setattr("retina_lab.train.fit", lambda *_, **__: stopped)
    assert benchmark.main(["run", "tiny", "--runs", str(tmp_path)]) == 130
    assert files(grid) == []


def test_what_a_cell_asks_for_reaches_the_training(grid, monkeypatch, tmp_path):
    options = (("crop", None), ("batch_size", 3), ("loss", "bce"))
    cell = Cell("tiny-unet", *PHANTOM, "1 epochs", 0, options=options, also=(PHANTOM,))
    seen = {}

    def fit(model, train, val, **settings):
        seen.update(settings, train=train, val=val)
        raise KeyboardInterrupt

    monkeypatch.setattr("retina_lab.train.fit", fit)
    with pytest.raises(KeyboardInterrupt):
        benchmark.train_cell(cell, tmp_path, devices=2)
    assert {k: seen[k] for k in ("epochs", "crop", "batch_size", "loss", "devices")} == {
        "epochs": 1, "crop": None, "batch_size": 3, "loss": "bce", "devices": 2,
    }  # fmt: skip
    assert "budget" not in seen
    assert len(seen["train"]) + len(seen["val"]) == 2 * len(open_split(*PHANTOM).train)


def test_real_cells_train_score_combine_and_can_be_read(grid, tmp_path, monkeypatch, folder):
    cells = [Cell("tiny-unet", str(folder), "seeded-0", "3s", seed) for seed in (0, 1)]
    test = f"{folder} seeded-0"
    alone = Combination("alone", (cells[0],))
    both = Combination("both", tuple(cells))
    cleaned = Combination("cleaned", (cells[0],), cleaned=True)
    still = Combination("no flips", (cells[0],), tta=False)
    monkeypatch.setitem(grids.GRIDS, "tiny", [*cells, alone, both, cleaned, still])
    assert benchmark.run_grid("tiny", tmp_path / "runs", "cpu") == []
    rows = results.load("tiny").set_index(["label", "seed"], drop=False)
    first = rows.loc[("tiny-unet", 0)]
    assert first.kind == "network"
    assert first.dice_low <= first.dice <= first.dice_high
    assert first.parameters == count_parameters(build_model("tiny-unet"))
    saved = json.loads((grid / f"{cells[1].name}.json").read_text(encoding="utf-8"))
    assert saved["commands"]["train"] == (
        f"retina-lab train --dataset {folder} --split seeded-0 --model tiny-unet --budget 3s "
        f"--seed 1 --out runs/{cells[1].name}"
    )
    assert "validation" in saved["reports"][test]["threshold"]["from"]

    one = rows[rows.label == "alone"].iloc[0]
    assert one[[*METRICS, "threshold"]].tolist() == first[[*METRICS, "threshold"]].tolist()

    # The combinations are of these very networks: computed here in another way.
    samples = list(open_split(folder).test)
    maps = [
        predict_dataset(load_run(tmp_path / "runs" / cell.name), samples, tta=True, device="cpu")
        for cell in cells
    ]
    mean = {name: (maps[0][name] + maps[1][name]) / 2 for name in maps[0]}
    threshold = rows[rows.label == "both"].threshold.item()
    again = benchmark.score(samples, mean, threshold, "x")
    row = rows[rows.label == "both"].iloc[0]
    assert row.auc_roc == pytest.approx(again["fov"]["auc_roc"]["pooled"], abs=1e-6)
    assert row.parameters == 2 * first.parameters
    assert row.kind == "combination"
    assert rows[rows.label == "no flips"].auc_roc.item() != first.auc_roc
    swept = rows[rows.label == "cleaned"].iloc[0]
    plain = Report(**benchmark.score(samples, maps[0], swept.threshold, "x"))
    assert swept.betti0_error <= plain.fov["betti0_error"]["mean"]


@pytest.mark.slow
def test_a_classical_method_is_measured(grid, tmp_path, monkeypatch, folder):
    monkeypatch.setitem(grids.GRIDS, "tiny", [Classical("matched-filter", str(folder), "seeded-0")])
    assert benchmark.run_grid("tiny", tmp_path / "runs") == []
    row = results.load("tiny").iloc[0]
    assert (row.kind, row.label, row.trained_on) == ("classical", "matched-filter", str(folder))
    assert 0.3 < row.dice < 1
    assert pd.isna(row.parameters)
    saved = json.loads((grid / files(grid)[0]).read_text())
    assert "training images" in saved["reports"][f"{folder} seeded-0"]["threshold"]["from"]


def test_published_maps_are_measured_or_named(grid, tmp_path, monkeypatch, capsys, folder):
    class Given(Published):
        tests = ((str(folder), "seeded-0"),)

    monkeypatch.setitem(grids.GRIDS, "tiny", [Given("theirs", "Theirs (2001)")])
    monkeypatch.setenv("RETINA_LAB_MAPS", str(tmp_path))
    assert benchmark.main(["run", "tiny"]) == 1
    assert "no published maps at" in capsys.readouterr().err
    for sample in open_split(folder).test:
        blurred = np.where(sample.vessels, 0.7, 0.2) + 0.1 * (sample.image[..., 1] % 2)
        save_map(tmp_path / "theirs" / f"{sample.name}.png", blurred)
    assert benchmark.main(["run", "tiny"]) == 0
    row = results.load("tiny").iloc[0]
    assert (row.kind, row.label) == ("published", "Theirs (2001)")
    assert row.dice == 1


def test_floats_are_rounded_and_nothing_else():
    assert benchmark.rounded({"a": [1 / 3, 2, None, "x"], "b": (0.5,)}) == {
        "a": [0.333333, 2, None, "x"],
        "b": [0.5],
    }
