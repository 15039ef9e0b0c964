import json

import pytest

from retina_lab import results
from retina_lab.datasets.manifests import project_root


def row(seed, dice, scored="drive"):
    return {
        "model": "small-unet", "trained_on": "drive", "scored_on": scored, "split": "official",
        "tta": False, "budget_seconds": 60.0, "epochs": None, "seed": seed,
        "fov": {
            "dice": {"pooled": dice, "mean": 0},
            "auc_roc": {"pooled": 0.97, "mean": 0},
            "cldice": {"pooled": None, "mean": 0.8},
        },
    }  # fmt: skip


def test_the_table_shows_median_and_range():
    table = results.markdown_table([row(0, 0.8), row(1, 0.81), row(2, 0.83), row(0, 0.7, "stare")])
    lines = table.splitlines()[2:]
    assert len(lines) == 2
    assert "| 3 | 0.8100 (0.8000–0.8300) | 0.9700 (0.9700–0.9700) | 0.8000" in lines[0]
    assert "| 1 | 0.7000 | 0.9700 | 0.8000 |" in lines[1]


def test_only_what_is_between_the_markers_changes():
    text = f"before\n{results.BEGIN}\nold\n{results.END}\nafter"
    new = results.written(text, "new")
    assert new == f"before\n{results.BEGIN}\nnew\n{results.END}\nafter"
    assert results.written(new, "new") == new
    with pytest.raises(ValueError, match="markers"):
        results.written("nothing here", "new")


def test_the_readme_shows_the_committed_results():
    rows = json.loads(results.results_file("small-unet").read_text(encoding="utf-8"))
    readme = (project_root() / "README.md").read_text(encoding="utf-8")
    assert results.written(readme, results.markdown_table(rows)) == readme


def test_a_row_is_made_from_a_run_and_its_report(tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    settings = {
        "dataset": "drive", "split": "official", "model": "small-unet", "budget_seconds": 300.0,
        "epochs": None, "seed": 2, "batch_size": 2, "lr": 0.002, "precision": "32-true",
    }  # fmt: skip
    record = {"settings": settings, "seconds": {"train": 300.1}, "versions": {}}
    (run / "run.json").write_text(json.dumps(record))
    entry = {"pooled": 0.8, "mean": 0.8, "sd": 0.1, "interval": [0.7, 0.9]}
    report = {
        "threshold": {"value": 0.5, "from": "x"},
        "fov": dict.fromkeys(results.METRICS, entry),
    }
    (tmp_path / "report.json").write_text(json.dumps(report))
    made = results.make_row(run, tmp_path / "report.json", "stare", "10/10", tta=True)
    assert made["train"] == (
        "retina-lab train --dataset drive --split official --model small-unet --budget 300s "
        "--seed 2 --out runs/run"
    )
    assert made["evaluate"].endswith("--run runs/run --dataset stare --split 10/10")
    assert made["fov"]["dice"]["interval"] == [0.7, 0.9]
