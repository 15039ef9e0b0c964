"""The plan of the shipped synthesis models, its judgements and their table."""

import json

import numpy as np
import pytest

from retina_lab import synthesis_grid, weights
from retina_lab.synthesis import SYNTHESIS, find_recipe
from retina_lab.synthesis_grid import PAPERS, PLAN, Planned
from retina_lab.weights import find_synthesis, list_synthesis


@pytest.fixture
def own_folders(monkeypatch, tmp_path):
    """Weights and results in a folder of the test's own."""
    (tmp_path / "weights").mkdir()
    for path in weights.weights_folder().glob("*"):  # the segmentation networks stay at hand
        if path.name != weights.SYNTHESIS_MANIFEST:
            (tmp_path / "weights" / path.name).symlink_to(path)
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
            assert source.size == plan.size
            assert names.index(plan.trees) < names.index(plan.name)


def test_the_papers_sizes_stand_beside_the_shipped_ones():
    names = [plan.name for plan in (*PLAN, *PAPERS)]
    assert len(set(names)) == len(names)
    assert {plan.size for plan in PAPERS} == {256, 512}
    sweep = [dict(plan.recipe)["latent"] for plan in PAPERS if plan.model == "aae"]
    assert sweep == [16, 32, 64, 128, 256]
    assert {plan.model for plan in PAPERS} == set(SYNTHESIS)
    assert PAPERS[0].command.endswith("run --papers --only aae-16-messidor-256")


def test_new_phantoms_are_in_no_dataset():
    one, other = (synthesis_grid.new_phantoms(2, 32) for _ in range(2))
    assert [s.name for s in one] == ["phantom_10000", "phantom_10001"]
    assert np.array_equal(one[0].image, other[0].image)


def test_run_ships_judge_writes_table_reads(own_folders, monkeypatch):
    monkeypatch.setattr(synthesis_grid, "PLAN", (TREES, PAINTER))
    settings = {"number": 4, "budget": "1s", "seeds": (0,), "device": "cpu"}
    assert synthesis_grid.judge_all(**settings) == []  # nothing is shipped yet
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

    assert synthesis_grid.judge_all(**settings) == [TREES.name, PAINTER.name]
    assert synthesis_grid.judge_all(**settings) == []
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
        "training": {
            diet: {"photographs": 3, "dice": {"0": 0.5, "1": 0.7, "2": 0.6}}
            for diet in ("real", "synthetic", "real + synthetic")
        },
    }
    text = synthesis_grid.tables([report])
    assert "| 0.100 (0.200) | 0.25 **alarm** | 0.5000 (0.0100) | 0.600 (0.800) |" in text
    assert "| 0.6000 (0.5000–0.7000) |" in text
    assert synthesis_grid.tables([]) == ""


def test_committed_judgements_belong_to_the_plan():
    known = {plan.name for plan in PLAN}
    folder = synthesis_grid.results_folder()
    for path in folder.glob("*.json") if folder.exists() else ():
        assert path.stem in known
        assert json.loads(path.read_text(encoding="utf-8"))["name"] == path.stem
    assert set(list_synthesis()) <= known


@pytest.mark.parametrize("name", list_synthesis())
def test_shipped_models_are_as_their_manifest_says(name):
    run = find_synthesis(name)
    plan = next(plan for plan in PLAN if plan.name == name)
    assert (run.size, run.settings["width"]) == (plan.size, plan.width)
