"""The plan of the shipped synthesis models, its judgements and their table."""

import json
import math
import shutil
from dataclasses import replace

import numpy as np
import pytest

from retina_lab import synthesis_grid, weights
from retina_lab.datasets import open_split
from retina_lab.datasets.layouts import Split
from retina_lab.datasets.manifests import project_root
from retina_lab.datasets.sample import FundusSample
from retina_lab.loop import TrainingError
from retina_lab.pairs import TreePairs, make_pairs
from retina_lab.synthesis import SYNTHESIS, find_recipe
from retina_lab.synthesis_grid import PAPERS, PLAN, Planned
from retina_lab.train import Run
from retina_lab.weights import find_synthesis, list_synthesis


@pytest.fixture
def own_folders(monkeypatch, tmp_path):
    """Weights and results in a folder of the test's own."""
    (tmp_path / "weights").mkdir()
    # The segmentation networks stay at hand; copies, for this folder is written to.
    for name in (weights.MANIFEST, *(entry.file for entry in weights.list_weights().values())):
        shutil.copy(weights.weights_folder() / name, tmp_path / "weights" / name)
    monkeypatch.setattr(weights, "weights_folder", lambda: tmp_path / "weights")
    monkeypatch.setattr(synthesis_grid, "results_folder", lambda: tmp_path / "results")
    return tmp_path


TINY = {"size": 32, "width": 4, "phantoms": 6, "length": "1s"}
TREES = Planned("dual-aae", "phantoms", recipe=(("latent", 8),), **TINY)
PAINTER = Planned("pix2pix", "phantoms", trees=TREES.name, **TINY)


def test_the_plan_holds_together():
    names = [plan.name for plan in PLAN]
    assert len(set(names)) == len(names)
    for plan in PLAN:
        recipe = find_recipe(plan.model)
        assert (plan.trees is None) == (recipe.makes == "trees")
        if plan.trees:
            source = next(p for p in PLAN if p.name == plan.trees)
            assert source.size <= plan.size  # enlarged, never shrunk
            assert names.index(plan.trees) < names.index(plan.name)


def test_the_papers_sizes_stand_beside_the_shipped_ones():
    names = [plan.name for plan in (*PLAN, *PAPERS)]
    assert len(set(names)) == len(names)
    assert {plan.size for plan in PAPERS} == {256, 512}
    sweep = [dict(plan.recipe)["latent"] for plan in PAPERS if plan.model == "aae"]
    assert sweep == [16, 32, 64, 128, 256]
    # The refiner is no source's: at the papers' size it would have nothing to be compared with.
    assert {plan.model for plan in PAPERS} == set(SYNTHESIS) - {"refined-aae"}
    assert PAPERS[0].command.endswith("run --papers --only aae-16-messidor-256")


def test_new_phantoms_are_in_no_dataset():
    one, other = (list(synthesis_grid.new_phantoms(2, 32)) for _ in range(2))
    assert [s.name for s in one] == ["phantom_10000", "phantom_10001"]
    assert np.array_equal(one[0].image, other[0].image)


def test_run_ships_judge_writes_table_reads(own_folders, monkeypatch):
    monkeypatch.setattr(synthesis_grid, "PLAN", (TREES, PAINTER))
    whole = open_split("phantom")
    few = Split("few", whole.train[:3], whole.test[:2])  # to draw all forty takes long
    monkeypatch.setattr(synthesis_grid, "open_split", lambda *_: few)
    settings = {"number": 4, "budget": "1s", "seeds": (0,), "device": "cpu"}
    assert synthesis_grid.judge_all(**settings) == ([], [])  # nothing is shipped yet
    for plan in (TREES, PAINTER):
        run = synthesis_grid.run_plan(plan, own_folders / "runs", "cpu")
        assert not run.interrupted
        assert run.settings["model"] == plan.model
        shipped = find_synthesis(plan.name)
        assert "discriminator" not in shipped.networks
        assert shipped.recipe == run.recipe
    entry = list_synthesis()[PAINTER.name]
    assert entry["command"] == "python -m retina_lab.synthesis_grid run --only pix2pix-phantoms"
    again = synthesis_grid.run_plan(PAINTER, own_folders / "runs", "cpu")
    assert "discriminator" not in again.networks  # what is shipped is not trained again

    assert synthesis_grid.judge_all(**settings) == ([TREES.name, PAINTER.name], [])
    assert synthesis_grid.judge_all(**settings) == ([], [])
    for plan, key in ((PAINTER, "trees_weights"), (TREES, "weights")):
        path = own_folders / "results" / f"{plan.name}.json"
        before = path.read_text("utf-8")
        path.write_text(json.dumps(json.loads(before) | {key: "of others"}), "utf-8")
        assert not synthesis_grid.is_judged(plan)  # of weights that are gone
        path.write_text(before, "utf-8")
        assert synthesis_grid.is_judged(plan)
    trees, painter = synthesis_grid.load()
    assert set(trees) >= {"statistics", "nearest", "variety", "mode_collapse", "banner", "versions"}
    assert set(painter["training"]) >= {"real", "synthetic", "real + synthetic"}
    assert painter["training"]["real + synthetic"]["photographs"] == (
        painter["training"]["real"]["photographs"] + 4
    )
    text = synthesis_grid.tables([trees, painter])
    assert "| mean (distance) | real | dual-aae-phantoms |" in text
    assert "\n| dual-aae-phantoms | " in text
    assert "| pix2pix-phantoms |" in text


def test_the_table_says_what_the_files_say():
    report = {
        "name": "pix2pix-x",
        "nearest": {"made": 0.1, "control": 0.2},
        "variety": 0.25,
        "mode_collapse": True,
        "kernel_distance": {"made": 0.5, "control": 0.01},
        "agreement": {"made": 0.6, "control": 0.8},
        "training": {"dataset": "x"}
        | {
            diet: {"photographs": 3, "dice": {"0": 0.5, "1": 0.7, "2": 0.6}}
            for diet in ("real", "synthetic", "real + synthetic")
        },
    }
    text = synthesis_grid.tables([report])
    assert "| 0.1 (0.2) | 0.25 **alarm** | 0.5 (0.01) | 0.6 (0.8) |" in text
    assert "| x | 0.6000 (0.5000–0.7000; n = 3) |" in text
    assert "made-up ones in 0 of 1 rows, and more than the mixture of both in 0." in text
    report["training"]["real"] = {"photographs": 3, "dice": {"0": 0.55, "1": 0.61, "2": 0.9}}
    report["training"]["synthetic"]["dice"] = {"0": None}  # no vessel to learn from
    both = synthesis_grid.tables([report, report])
    assert "made-up ones in 2 of 2 rows, and more than the mixture of both in 2." in both
    assert synthesis_grid.tables([]) == ""


def test_what_cannot_be_measured_is_a_dash_and_valid_json():
    fov = np.ones((32, 32), bool)
    real = pairs_with_bars()
    blank = synthesis_grid.judge_trees(np.zeros((4, 32, 32), np.float32), real, fov)
    report = synthesis_grid.plain({"name": "blank", **blank})
    json.dumps(report, allow_nan=False)
    assert report["nearest"]["made"] == 1
    assert report["mode_collapse"]
    text = synthesis_grid.tables([report])
    assert "nan" not in text
    assert "| mean width | " in text
    assert synthesis_grid.plain({"a": [math.inf, 1.5], "b": (math.nan,)}) == {
        "a": [None, 1.5], "b": [None],
    }  # fmt: skip


def pairs_with_bars() -> TreePairs:
    """Eight squares with a bar each."""
    samples = []
    for i in range(8):
        vessels = np.zeros((32, 32), bool)
        vessels[4 : 20 + i, 3 * i + 2 : 3 * i + 4 + i % 2] = True
        image = np.full((32, 32, 3), 99, np.uint8)
        fov = np.ones((32, 32), bool)
        samples.append(FundusSample(f"bar_{i}", image, fov, vessels=vessels, dataset="bars"))
    return make_pairs(samples, 32)


def test_a_diet_without_a_vessel_is_not_learned_from():
    real = synthesis_grid.samples_of(pairs_with_bars())
    nothing = [replace(sample, vessels=np.zeros((32, 32), bool)) for sample in real]
    found = synthesis_grid.compare_diets({"blank": nothing}, real, "1s", (0, 1), "cpu")
    assert found == {"blank": {"photographs": 8, "dice": {"0": None, "1": None}}}


def test_a_training_that_was_stopped_is_not_scored(monkeypatch):
    real = synthesis_grid.samples_of(pairs_with_bars())

    def stopped(*_, **__):
        return Run(model=None, settings={}, history=None, interrupted=True)

    monkeypatch.setattr("retina_lab.train.fit", stopped)
    with pytest.raises(KeyboardInterrupt):
        synthesis_grid.compare_diets({"real": real}, real, "1s", (0,), "cpu")


def test_one_that_fails_does_not_stop_the_others(own_folders, monkeypatch, capsys):
    monkeypatch.setattr(synthesis_grid, "PLAN", (TREES, PAINTER))
    tried = []

    def fails(plan, *_):
        tried.append(plan.name)
        raise TrainingError("the loss of step 3 is not finite")

    monkeypatch.setattr(synthesis_grid, "run_plan", fails)
    assert synthesis_grid.main(["run", "--device", "cpu"]) == 1
    assert tried == [TREES.name, PAINTER.name]
    assert "pix2pix-phantoms: the loss of step 3" in capsys.readouterr().err
    monkeypatch.setattr(synthesis_grid, "run_plan", lambda *_: None)
    assert synthesis_grid.main(["run"]) == 130


def test_what_is_missing_is_named_before_anything_is_trained(own_folders, monkeypatch, capsys):
    monkeypatch.setenv("RETINA_LAB_DATA", str(own_folders))
    monkeypatch.setattr("retina_lab.datasets.layouts.project_root", lambda: own_folders)
    absent = Planned("pix2pix", (("messidor", ""),), "1s")
    monkeypatch.setattr(synthesis_grid, "PLAN", (TREES, absent))
    monkeypatch.setattr(synthesis_grid, "run_plan", lambda *_: pytest.fail("it trains"))
    assert synthesis_grid.main(["run"]) == 1
    assert "messidor" in capsys.readouterr().err.lower()
    assert synthesis_grid.main(["run", "--only", "pixie"]) == 1
    assert "no model is called like 'pixie'" in capsys.readouterr().err
    assert synthesis_grid.main(["table"]) == 1
    assert "nothing is judged yet" in capsys.readouterr().err


def test_the_page_has_room_for_the_table():
    text = (project_root() / "book" / "synthesis.md").read_text(encoding="utf-8")
    assert text.count(synthesis_grid.BEGIN) == 1
    assert synthesis_grid.END in text.split(synthesis_grid.BEGIN)[1]


def test_committed_judgements_belong_to_the_plan():
    known = {plan.name for plan in PLAN}
    folder = synthesis_grid.results_folder()
    for path in folder.glob("*.json") if folder.exists() else ():
        assert path.stem in known
        assert json.loads(path.read_text(encoding="utf-8"))["name"] == path.stem
        assert synthesis_grid.is_judged(next(plan for plan in PLAN if plan.name == path.stem))
    assert set(list_synthesis()) <= known


@pytest.mark.parametrize("name", list_synthesis())
def test_shipped_models_are_as_their_manifest_says(name):
    run = find_synthesis(name)
    plan = next(plan for plan in PLAN if plan.name == name)
    assert (run.size, run.settings["width"]) == (plan.size, plan.width)
