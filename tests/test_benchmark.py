import json
import shlex

import pandas as pd
import pytest

from retina_lab import benchmark, cli
from retina_lab.benchmark import Cell
from retina_lab.datasets.manifests import project_root
from retina_lab.models import MODELS, build_model, count_parameters


def result(
    model="a", seed=0, dice=(0.8, 0.7), dataset="drive", budget=60.0, pooled=0.75, epochs=None
):
    """The file of a cell, as far as the tables read it."""
    report = {
        "fov": {
            name: {"pooled": None if name in ("cldice", "betti0_error") else pooled, "mean": 0.5,
                   "interval": [pooled - 0.1, pooled + 0.1]}
            for name in benchmark.FIGURES
        },
        "threshold": {"value": 0.4, "from": "2 validation images"},
        "images": {str(i): {"fov": {"dice": value}} for i, value in enumerate(dice)},
    }  # fmt: skip
    return {
        "settings": {"model": model, "dataset": dataset, "seed": seed, "budget_seconds": budget,
                     "epochs": epochs, "parameters": 1234},
        "steps": 7, "seconds": {"train": 60.1}, "reports": {f"{dataset} official": report},
    }  # fmt: skip


@pytest.fixture
def grid(monkeypatch, tmp_path):
    """A grid of tiny cells whose files lie in a folder of their own."""
    cells = [Cell("tiny-unet", "phantom", "official", "1s", seed) for seed in (0, 1)]
    monkeypatch.setitem(benchmark.GRIDS, "tiny", cells)
    monkeypatch.setattr(benchmark, "project_root", lambda: tmp_path)
    return tmp_path / "data" / "results" / "tiny"


@pytest.fixture
def written(monkeypatch):
    """Replace what is read from the files by a list of results."""

    def put(*results):
        monkeypatch.setattr(benchmark, "read_cells", lambda grid: list(results))

    return put


def test_a_killed_grid_goes_on_and_repeats_nothing(grid, monkeypatch, tmp_path):
    ran = []

    def run_cell(cell, runs, device):
        ran.append(cell.seed)
        if len(ran) == 2:
            raise KeyboardInterrupt
        return result("tiny-unet", cell.seed)

    monkeypatch.setattr(benchmark, "run_cell", run_cell)
    with pytest.raises(KeyboardInterrupt):
        benchmark.run_grid("tiny", tmp_path)
    assert [path.name for path in grid.iterdir()] == ["tiny-unet-phantom-official-1s-s0.json"]
    assert benchmark.run_grid("tiny", tmp_path) == []
    assert ran == [0, 1, 1]
    assert benchmark.run_grid("tiny", tmp_path) == []
    assert ran == [0, 1, 1]
    assert list(benchmark.load("tiny")["seed"]) == [0, 1]


def test_an_interrupted_training_ends_the_grid_without_a_result(grid, monkeypatch, tmp_path):
    monkeypatch.setattr(benchmark, "run_cell", lambda *_: None)
    assert benchmark.main(["run", "tiny", "--runs", str(tmp_path)]) == 130
    assert not list(grid.glob("*.json"))


def test_a_missing_dataset_is_named_and_the_other_cells_run(grid, monkeypatch, tmp_path, capsys):
    from retina_lab.datasets import DatasetError

    def run_cell(cell, runs, device):
        if cell.seed == 0:
            raise DatasetError("the dataset moon is not here")
        return result("tiny-unet", cell.seed)

    monkeypatch.setattr(benchmark, "run_cell", run_cell)
    assert benchmark.main(["run", "tiny", "--runs", str(tmp_path)]) == 1
    assert "s0: the dataset moon is not here" in capsys.readouterr().err
    assert list(benchmark.load("tiny")["seed"]) == [1]


@pytest.mark.slow
def test_a_real_cell_trains_scores_and_can_be_read(grid, tmp_path):
    assert benchmark.run_grid("tiny", tmp_path / "runs", "cpu", only="s1") == []
    row = benchmark.load("tiny").iloc[0]
    assert (row.model, row.dataset, row.split, row.seed) == ("tiny-unet", "phantom", "official", 1)
    assert row.dice_low <= row.dice <= row.dice_high
    assert row.parameters == count_parameters(build_model("tiny-unet"))
    saved = json.loads(next(grid.iterdir()).read_text(encoding="utf-8"))
    assert saved["commands"]["train"] == (
        "retina-lab train --dataset phantom --split official --model tiny-unet --budget 1s "
        "--seed 1 --out runs/tiny-unet-phantom-official-1s-s1"
    )
    assert "validation" in saved["reports"]["phantom official"]["threshold"]["from"]


def test_a_damaged_file_is_named(grid):
    grid.mkdir(parents=True)
    (grid / "tiny-unet-phantom-official-1s-s0.json").write_text('{"half')
    with pytest.raises(ValueError, match=r"s0\.json is damaged"):
        benchmark.load("tiny")


def test_unknown_grids_are_refused():
    with pytest.raises(ValueError, match="unknown grid 'moon'; there are: small-unet"):
        benchmark.load("moon")


def test_a_grid_without_results_gives_an_empty_frame(grid):
    assert benchmark.load("tiny").empty
    assert benchmark.paired("tiny", "phantom", "a", "b") is None


@pytest.mark.parametrize(
    ("other", "expected"),
    [
        # per image: means over the seeds in common, then the difference, then the mean
        ([result("b", 0, (0.7, 0.8))], 0.0),  # a: (.8, .7)
        ([result("b", 0, (0.6, 0.6))], 0.15),
        ([result("b", 0, (0.6, 0.6)), result("b", 1, (0.4, 0.4))], 0.25),  # a's seed 1: (.7, .8)
        ([result("b", 5, (0.6, 0.6))], None),
        ([result("b", 0, (0.6, 0.6), dataset="stare")], None),
    ],
)
def test_paired_differences(written, other, expected):
    written(result("a", 0, (0.8, 0.7)), result("a", 1, (0.7, 0.8)), *other)
    found = benchmark.paired("small-unet", "drive", "a", "b")
    if expected is None:
        assert found is None
    else:
        mean, low, high = found
        assert mean == pytest.approx(expected)
        assert low <= mean <= high


def test_the_table_shows_median_and_range(written):
    written(
        *(result(seed=i, pooled=value) for i, value in enumerate((0.8, 0.83, 0.81))),
        result(seed=0, pooled=0.7, budget=300.0),
        *(result(seed=i, budget=None, epochs=200) for i in range(2)),
    )
    lines = benchmark.markdown_table(benchmark.load("small-unet")).splitlines()
    assert lines[0].startswith("| network | parameters | trained on")
    assert (
        "| `a` | 1,234 | drive | 60 s | drive, official test | 3 | 0.8100 (0.8000–0.8300)"
        in (lines[2])
    )
    assert "| 300 s | drive, official test | 1 | 0.7000 | 0.7000 | 0.5000 | 0.5 |" in lines[3]
    assert "| 200 epochs | drive, official test | 2 |" in lines[4]


def test_floats_are_rounded_and_nothing_else():
    assert benchmark.rounded({"a": [1 / 3, 2, None, "x"], "b": (0.5,)}) == {
        "a": [0.333333, 2, None, "x"],
        "b": [0.5],
    }


def test_only_what_is_between_the_markers_changes():
    text = f"before\n{benchmark.BEGIN}\nold\n{benchmark.END}\nafter"
    new = benchmark.between_markers(text, "new")
    assert new == f"before\n{benchmark.BEGIN}\nnew\n{benchmark.END}\nafter"
    assert benchmark.between_markers(new, "new") == new
    with pytest.raises(ValueError, match="markers"):
        benchmark.between_markers("nothing here", "new")


def test_the_readme_shows_the_committed_results():
    readme = (project_root() / "README.md").read_text(encoding="utf-8")
    assert benchmark.between_markers(
        readme, benchmark.markdown_table(benchmark.load("small-unet"))
    ) == (readme)


@pytest.mark.parametrize("name", benchmark.GRIDS)
def test_committed_files_belong_to_the_grid_and_were_not_touched(name):
    names = {cell.name for cell in benchmark.GRIDS[name]}
    for path in benchmark.results_folder(name).glob("*.json"):
        assert path.stem in names
        saved = json.loads(path.read_text(encoding="utf-8"))
        cell = next(cell for cell in benchmark.GRIDS[name] if cell.name == path.stem)
        assert saved["settings"]["model"] == cell.model
        assert saved["commands"] == json.loads(json.dumps(cell.commands()))
        for report in saved["reports"].values():
            images = pd.DataFrame(
                [entry["fov"]["counts"] for entry in report["images"].values()]
            ).sum()
            pooled = 2 * images.tp / (2 * images.tp + images.fp + images.fn)
            assert report["fov"]["dice"]["pooled"] == pytest.approx(pooled, abs=1e-6)


def test_the_equal_budget_is_of_equal_size():
    counts = {name: count_parameters(build_model(name)) for name in benchmark.EQUAL_BUDGET_MODELS}
    small = counts.pop("small-unet")
    counts.pop("w-net")  # the published network, as it is
    assert all(abs(count / small - 1) < 0.07 for count in counts.values()), counts
    assert set(benchmark.EQUAL_BUDGET_MODELS) <= set(MODELS)


@pytest.mark.parametrize("name", benchmark.GRIDS)
def test_the_commands_ask_for_what_the_grid_runs(name):
    """What the command line makes of a cell's command is what ``run`` hands to ``fit``."""
    parser = cli.build_parser()
    for cell in benchmark.GRIDS[name]:
        args = parser.parse_args(shlex.split(cell.commands()["train"])[1:])
        asked = {**vars(args), "crop": args.crop or None}
        assert (asked["model"], asked["dataset"], asked["split"], asked["seed"]) == (
            cell.model, cell.dataset, cell.split, cell.seed,
        )  # fmt: skip
        for option, value in {**cell.how_long, **dict(cell.options)}.items():
            assert asked[option] == value, option


def test_every_full_size_network_has_its_papers_settings():
    small = {name for name in MODELS if name.startswith(("small-", "medium-", "tiny-"))}
    assert set(benchmark.PAPERS) == set(MODELS) - small
    names = [cell.name for cell in benchmark.GRIDS["papers"]]
    assert len(names) == 3 * 3 * (len(benchmark.PAPERS) - 1) + 3 * 2 * 4


@pytest.mark.parametrize("name", benchmark.GRIDS)
def test_no_two_cells_share_a_file(name):
    names = [cell.name for cell in benchmark.GRIDS[name]]
    assert len(set(names)) == len(names)


def test_an_adversary_is_part_of_the_network_in_tables(written):
    fought = result()
    fought["settings"]["adversary"] = {"discriminator": "image", "weight": 0.1}
    written(result(), fought)
    rows = benchmark.load("small-unet")
    assert rows["adversary"].tolist() == ["", "image"]
    lines = benchmark.markdown_table(rows).splitlines()
    assert [line.split(" | ")[0] for line in lines[2:]] == ["| `a`", "| `a vs image`"]


def test_epochs_and_options_reach_the_training(grid, monkeypatch, tmp_path):
    options = (("crop", None), ("batch_size", 3), ("loss", "bce"))
    cell = Cell("tiny-unet", "phantom", "official", "1 epochs", 0, options=options)
    monkeypatch.setitem(benchmark.GRIDS, "tiny", [cell])
    seen = {}

    def fit(model, train, val, **settings):
        seen.update(settings)
        raise KeyboardInterrupt

    monkeypatch.setattr("retina_lab.train.fit", fit)
    with pytest.raises(KeyboardInterrupt):
        benchmark.run_grid("tiny", tmp_path)
    assert {k: seen[k] for k in ("epochs", "crop", "batch_size", "loss")} == {
        "epochs": 1, "crop": None, "batch_size": 3, "loss": "bce",
    }  # fmt: skip
    assert "budget" not in seen
