"""Reading results: differences, verdicts, tables; and that committed files hold what they say."""

import json

import numpy as np
import pandas as pd
import pytest

from retina_lab import grids, results
from retina_lab.datasets import list_splits
from retina_lab.datasets.manifests import project_root
from retina_lab.evaluate import METRICS
from retina_lab.grids import GRIDS, PHANTOM, Cell
from retina_lab.models import MODELS
from retina_lab.results import Difference


def result(
    model="a",
    seed=0,
    dice=(0.8, 0.7),
    dataset="drive",
    scored=None,
    budget=60.0,
    pooled=0.75,
    epochs=None,
    kind="network",
    observer=None,
    **more,
):
    """The file of a cell, as far as the tables read it."""

    def block(value):
        return {
            name: {"pooled": None if name in ("cldice", "betti0_error", "betti1_error") else value,
                   "mean": 0.5, "sd": 0.1, "interval": [value - 0.1, value + 0.1]}
            for name in METRICS
        }  # fmt: skip

    report = {
        "fov": block(pooled),
        "all": block(pooled + 0.1),
        "second_observer": None if observer is None else block(observer),
        "threshold": {"value": 0.4, "from": "2 validation images"},
        "images": {str(i): {"person": str(i), "fov": {"dice": value, "auc_roc": value / 2},
                            "all": {"dice": 1.0}}
                   for i, value in enumerate(dice)},
    }  # fmt: skip
    return {
        "kind": kind,
        "variant": "",
        "settings": {"model": model, "dataset": dataset, "seed": seed, "budget_seconds": budget,
                     "epochs": epochs, "parameters": 1234},
        "steps": 7, "seconds": {"train": 60.1},
        "reports": {f"{scored or dataset} official": report},
        **more,
    }  # fmt: skip


@pytest.fixture
def written(monkeypatch):
    """Replace what is read from the files by a list of results."""

    def put(*found, **by_grid):
        monkeypatch.setattr(
            results, "read_cells", lambda grid: list(by_grid.get(grid, found) if by_grid else found)
        )

    return put


@pytest.fixture
def tiny(monkeypatch, tmp_path):
    """A grid of two cells, without results."""
    cells = [Cell("tiny-unet", *PHANTOM, "1s", seed) for seed in (0, 1)]
    monkeypatch.setitem(GRIDS, "tiny", cells)
    monkeypatch.setattr(grids, "project_root", lambda: tmp_path)
    return tmp_path / "data" / "results" / "tiny"


# --- Reading ----------------------------------------------------------------------------------


def test_a_damaged_file_is_named(tiny):
    tiny.mkdir(parents=True)
    (tiny / "tiny-unet-phantom-official-1s-s0.json").write_text('{"half')
    with pytest.raises(ValueError, match=r"s0\.json is damaged"):
        results.load("tiny")


def test_a_grid_without_results_gives_an_empty_frame(tiny):
    assert results.load("tiny").empty
    assert results.compare(results.scored("tiny"), [("a", "b")]).empty


def test_rows_hold_the_figures_of_a_region(written):
    written(result(pooled=0.75))
    row = results.load("x").iloc[0]
    assert (row.dice, row.cldice, row.dice_low, row.dice_high) == (0.75, 0.5, 0.65, 0.85)
    assert (row.length, row.trained_on, row.dataset, row.label) == ("60 s", "drive", "drive", "a")
    assert results.load("x", "all").iloc[0].dice == 0.85


@pytest.mark.parametrize(
    ("settings", "length"),
    [
        ({"budget_seconds": 60.0, "epochs": None}, "60 s"),
        ({"budget_seconds": 240.0, "epochs": None}, "4 min"),
        ({"budget_seconds": None, "epochs": 200}, "200 epochs"),
        ({"budget_seconds": None, "epochs": None}, ""),
    ],
)
def test_lengths_in_words(settings, length):
    assert results._length(settings) == length


def test_variants_and_adversaries_are_part_of_the_name(written):
    fought = result()
    fought["settings"]["adversary"] = {"discriminator": "image", "weight": 0.1}
    written(result(), fought, result(variant="soft-clDice"))
    rows = results.load("x")
    assert rows["label"].tolist() == ["a", "a vs image", "a, soft-clDice"]
    assert rows["adversary"].tolist() == ["", "image", ""]
    lines = results.markdown_table(rows).splitlines()
    assert [line.split(" | ")[0] for line in lines[2:]] == [
        "| `a`", "| `a vs image`", "| `a, soft-clDice`",
    ]  # fmt: skip


def test_a_recipe_that_two_grids_hold_counts_once(written):
    written(
        one=[result(seed=0, pooled=0.6), result(seed=1, pooled=0.7)],
        two=[result(seed=1, pooled=0.8), result(seed=2, pooled=0.9)],
    )
    table = results.frame(results.unique(results.scored(["one", "two"])))
    assert table["dice"].tolist() == [0.6, 0.7, 0.9]


def test_an_ensembles_length_is_that_of_all_its_members(written):
    together = result("all", None, budget=300.0, kind="combination")
    together["settings"]["members"] = ["a", "b", "c"]
    written(together, result("small-unet", 0, budget=300.0))
    ensemble, _ = results.scored("x")
    assert (ensemble.length, ensemble.one_length) == ("3 × 5 min", "5 min")
    assert list(results.with_baseline(results.scored("x"))) == [ensemble.key]


# --- Differences ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("other", "expected"),
    [
        # per image: means over the seeds of each, then the difference, then the mean
        ([result("b", 0, (0.7, 0.8))], 0.0),  # a: (.8, .7)
        ([result("b", 0, (0.6, 0.6))], 0.15),
        ([result("b", 0, (0.6, 0.6)), result("b", 1, (0.4, 0.4))], 0.25),  # a's seed 1: (.7, .8)
        ([result("b", 5, (0.6, 0.6))], 0.15),  # seeds are not paired
        ([result("b", 0, (0.6, 0.6), dataset="stare")], None),
        ([result("b", None, (0.6, 0.5))], 0.2),  # an ensemble: against the mean of all seeds
    ],
)
def test_paired_differences(written, other, expected):
    written(result("a", 0, (0.8, 0.7)), result("a", 1, (0.7, 0.8)), *other)
    found = results.compare(results.scored("x"), [("a", "b")])
    if expected is None:
        assert found.empty
    else:
        (row,) = found.itertuples()
        assert row.difference == pytest.approx(expected)
        assert row.low <= row.difference <= row.high
        assert (row.dataset, row.method, row.against, row.length) == ("drive", "a", "b", "60 s")


def test_another_metric_and_region(written):
    written(result("a", 0, (0.8, 0.6)), result("b", 0, (0.4, 0.4)))
    rows = results.scored("x")
    by_metric = results.difference([rows[0]], [rows[1]], "auc_roc")
    assert by_metric.mean == pytest.approx(0.15)
    assert results.difference([rows[0]], [rows[1]], "dice", "all").mean == 0


@pytest.mark.parametrize(
    ("low", "high", "ours", "theirs", "up", "verdict"),
    [
        (0.01, 0.02, (0.81, 0.82), (0.79, 0.80), True, "better"),
        (0.01, 0.02, (0.81, 0.82), (0.79, 0.80), False, "worse"),
        (-0.02, -0.01, (0.79,), (0.80, 0.81), True, "worse"),
        (-0.02, -0.01, (9.0,), (10.0,), False, "better"),
        (-0.01, 0.02, (0.81,), (0.80,), True, "not to be told apart"),  # other images might differ
        (0.01, 0.02, (0.79, 0.84), (0.78, 0.80), True, "not to be told apart"),  # another seed did
        (-0.02, -0.01, (0.79,), (0.78, 0.83), True, "not to be told apart"),
    ],
)
def test_verdicts(low, high, ours, theirs, up, verdict):
    found = Difference(0.0, low, high, 0.5, 20, ours, theirs)
    assert found.verdict(up) == verdict
    assert found.one_seed == (1 in (len(ours), len(theirs)))


def test_a_comparison_names_seeds_and_verdict(written):
    written(
        *(result("a", seed, tuple(0.8 + 0.01 * i for i in range(10))) for seed in (0, 1)),
        result("b", 0, tuple(0.7 + 0.012 * i for i in range(10))),
        *(result("c", seed, (0.8, *(0.8001 + 0.01 * i for i in range(1, 10)))) for seed in (0, 1)),
        result("a", 0, (0.9,) * 10, dataset="stare"),
    )
    found = results.compare(results.scored("x"), [("a", "b"), ("a", "c"), ("a", "moon")])
    assert found[["dataset", "against", "seeds", "verdict"]].to_numpy().tolist() == [
        ["drive", "b", "2 : 1", "better, one seed"],
        ["drive", "c", "2 : 2", "worse"],
    ]
    assert results.compare(results.scored("x"), [("b", "a")], "auc_roc").verdict.item() == (
        "worse, one seed"
    )


def test_lengths_are_compared_with_their_like(written):
    written(
        result("a", budget=60.0), result("a", budget=300.0, dice=(0.9, 0.9)),
        result("b", budget=60.0), result("b", budget=300.0),
    )  # fmt: skip
    found = results.compare(results.scored("x"), [("a", "b")])
    assert found[["length", "seeds"]].to_numpy().tolist() == [["60 s", "1 : 1"], ["5 min", "1 : 1"]]
    assert found["difference"].tolist() == pytest.approx([0, 0.15])


def test_one_person_decides_nothing(written):
    written(result("a", 0, (0.9,)), result("b", 0, (0.5,)))
    (row,) = results.compare(results.scored("x"), [("a", "b")]).itertuples()
    assert np.isnan(row.low)
    assert row.verdict == "too few persons to tell"


def test_the_same_networks_are_compared_seed_by_seed(written):
    """What flips change is smaller than what seeds do, and can be told for all that."""
    plain = [tuple(0.7 + 0.05 * seed + 0.01 * i for i in range(10)) for seed in range(3)]
    treated = []
    for seed, dice in enumerate(plain):
        one = result("small-unet, cleaned", seed, tuple(d + 0.003 for d in dice))
        one["settings"]["members"] = [f"small-unet-s{seed}"]
        one["training"] = [{"weights": f"digest {seed}"}]
        treated.append(one)
    # the same seeds, but another loss: other networks
    other = [result("other", seed, tuple(d + 0.003 for d in plain[seed])) for seed in range(3)]
    for seed, one in enumerate(other):
        one["settings"]["members"] = [f"soft-clDice-s{seed}"]
        one["training"] = [{"weights": f"other digest {seed}"}]
    baseline = [result("small-unet", seed, dice) for seed, dice in enumerate(plain)]
    for seed, one in enumerate(baseline):
        one["training"] = {"weights": f"digest {seed}"}
    written(*baseline, *treated, *other)
    table = results.comparison(results.with_baseline(results.scored("x")).values())
    assert dict(zip(table["method"], table["verdict"], strict=True)) == {
        "small-unet, cleaned": "better",
        "other": "not to be told apart",
    }


def test_different_images_are_not_compared(written):
    written(result("a", 0, (0.8, 0.7)), result("b", 0, (0.7, 0.6, 0.85)))
    with pytest.raises(ValueError, match="a and b saw different images"):
        results.difference(*([row] for row in results.scored("x")))


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ([0.03], [0.03]),
        ([0.01, 0.04, 0.03, 0.005], [0.03, 0.06, 0.06, 0.02]),
        ([0.5, 0.9, 0.6], [1, 1, 1]),
        ([0.02, 0.02], [0.04, 0.04]),
        ([], []),
    ],
)
def test_holm(given, expected):
    assert results.holm(given) == pytest.approx(expected)


def test_holm_wants_probabilities():
    with pytest.raises(ValueError, match="p-values"):
        results.holm([0.1, 1.5])


def test_the_p_value_is_that_of_all_signs(written):
    written(result("a", 0, (0.8, 0.7, 0.9)), result("b", 0, (0.7, 0.6, 0.85)))
    a, b = results.scored("x")
    assert results.difference([a], [b]).p == 2 / 8  # only + + + and - - - are as far from zero


def test_two_eyes_of_a_person_are_one_witness(written):
    a, b = result("a", 0, (0.9, 0.8, 0.7, 0.7)), result("b", 0, (0.7, 0.7, 0.6, 0.7))
    for found in (a, b):
        for name, image in found["reports"]["drive official"]["images"].items():
            image["person"] = "first" if name in "01" else "second"
    written(a, b)
    found = results.difference(*([row] for row in results.scored("x")))
    assert (found.persons, found.p) == (2, 0.5)
    assert found.mean == pytest.approx(0.1)  # of .15 and .05


def test_the_grids_own_baseline_comes_first(written):
    written(
        one=[result("small-unet", 0, (0.5, 0.5))],
        two=[result("small-unet", 0, (0.6, 0.6)), result("b", 0, (0.7, 0.7))],
        three=[result("c", 0, (0.7, 0.7))],
    )
    found = results.against_baseline(results.scored(["one", "two", "three"]))
    assert {key[0]: round(d.mean, 6) for key, d in found.items()} == {"b": 0.1, "c": 0.2}


def test_full_size_networks_have_baselines_of_their_own(written):
    def paper(model, epochs, dice, adversary=None):
        found = result(model, 0, dice, budget=None, epochs=epochs)
        found["settings"]["adversary"] = adversary and {"discriminator": adversary}
        return found

    written(
        papers=[
            paper("unet", 200, (0.8, 0.8)), paper("cmp-unet", 200, (0.81, 0.81)),
            paper("rsan-backbone", 200, (0.7, 0.7)), paper("rsan", 200, (0.72, 0.72)),
            paper("v-gan", 400, (0.6, 0.6)), paper("v-gan", 400, (0.63, 0.63), "image"),
        ]
    )  # fmt: skip
    found = results.against_baseline(results.scored("papers"))
    assert {key[0]: round(d.mean, 6) for key, d in found.items()} == {
        "cmp-unet": 0.01, "rsan": 0.02, "v-gan": -0.2,
        "v-gan vs image": 0.03,
    }  # fmt: skip


def test_the_baseline_has_the_same_data_and_length(written):
    written(
        result("small-unet", 0, (0.5, 0.5)),
        result("small-unet", 0, (0.6, 0.6), budget=240.0),
        result("b", 0, (0.7, 0.7), budget=240.0),
        result("c", 0, (0.7, 0.7), budget=300.0),
        result("d", 0, (0.7, 0.7), dataset="stare"),
    )
    found = results.against_baseline(results.scored("x"))
    assert [(key[0], round(d.mean, 6)) for key, d in found.items()] == [("b", 0.1)]


def test_sentences_say_who_wins_and_what_is_noise(written):
    plain = tuple(0.5 + 0.01 * i for i in range(10))

    def shifted(by):
        return tuple(value + by for value in plain)

    written(
        *(result("small-unet", seed, shifted(0.01 * seed)) for seed in (0, 1)),
        *(result("good", seed, shifted(0.2)) for seed in (0, 1)),
        result("bad", 0, shifted(-0.3)),
        result("fickle", 0, shifted(0.1)),
        result("fickle", 1, shifted(-0.05)),
        result("abroad", 0, shifted(0.9), scored="stare"),
    )
    assert results.sentences(results.scored("x")) == [
        "**drive official, 60 s**, 10 persons: better: good (+0.1950); worse, one seed: bad "
        "(-0.3050); not to be told apart: fickle (+0.0200)."
    ]


def test_few_persons_crown_nobody(written):
    """Five photographs: the smallest p is 1/16."""
    written(
        *(result("small-unet", seed, (0.5,) * 5) for seed in (0, 1)),
        *(result("good", seed, (0.7,) * 5) for seed in (0, 1)),
    )
    (line,) = results.sentences(results.scored("x"))
    assert line.endswith("5 persons: too few persons to tell: good (+0.2000).")


def test_more_comparisons_need_more_persons(written):
    """Of two comparisons by six persons the smaller adjusted p is 2/32 at best."""
    written(
        *(result("small-unet", seed, (0.5,) * 6) for seed in (0, 1)),
        *(result("good", seed, (0.7,) * 6) for seed in (0, 1)),
        *(result("bad", seed, (0.3,) * 6) for seed in (0, 1)),
    )
    (line,) = results.sentences(results.scored("x"))
    assert "too few persons to tell: good (+0.2000), bad (-0.2000)" in line


def test_six_persons_who_agree_are_enough(written):
    """The smallest p is 1/32, and there is one comparison."""
    written(
        *(result("small-unet", seed, (0.5,) * 6) for seed in (0, 1)),
        *(result("good", seed, (0.7,) * 6) for seed in (0, 1)),
    )
    (line,) = results.sentences(results.scored("x"))
    assert line.endswith("6 persons: better: good (+0.2000).")


# --- Tables -----------------------------------------------------------------------------------


def test_the_table_shows_median_and_range(written):
    written(
        *(result(seed=i, pooled=value) for i, value in enumerate((0.8, 0.83, 0.81))),
        result(seed=0, pooled=0.7, budget=300.0),
        *(result(seed=i, budget=None, epochs=200) for i in range(2)),
    )
    lines = results.markdown_table(results.load("x")).splitlines()
    assert lines[0].startswith("| network | parameters | trained on")
    assert (
        "| `a` | 1,234 | drive | 60 s | drive, official test | 3 | 0.8100 (0.8000–0.8300)"
        in (lines[2])
    )
    assert "| 5 min | drive, official test | 1 | 0.7000 | 0.7000 | 0.5000 | 0.5 |" in lines[3]
    assert "| 200 epochs | drive, official test | 2 |" in lines[4]


def test_one_table_is_sorted_and_has_the_observer(written):
    learned_nothing = {"budget": None, "kind": "classical"}
    written(
        result("small-unet", pooled=0.81, observer=0.79),
        result("b", pooled=0.82, dice=(0.81, 0.72)),
        result("frangi", None, pooled=0.65, **learned_nothing),
        result("abroad", pooled=0.9, dataset="phantom", scored="drive"),
    )
    lines = results.one_table(results.scored("x"), "drive", "official").splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert [row[0] for row in cells[2:]] == [
        "b", "small-unet", "**second human observer**", "frangi",
    ]  # fmt: skip
    assert cells[2][5] == "+0.0150 [+0.0100, +0.0200]"
    assert cells[3][5] == cells[5][5] == "–"
    assert cells[4][4] == "0.7900"
    assert cells[5][2:4] == ["–", "–"]
    written(result(dataset="phantom", observer=0.9))
    assert "second observer, simulated" in results.one_table(
        results.scored("x"), "phantom", "official"
    )


def test_published_maps_are_shown_with_the_bound_of_their_dice(written):
    maps = result("DRIU", None, kind="published", budget=None, pooled=0.7)
    positives, negatives = [0] * 256, [0] * 256
    positives[50], negatives[50], positives[200], negatives[0] = 4, 5, 4, 90
    pixels = {"positives": positives, "negatives": negatives}
    maps["reports"]["drive official"]["histograms"] = {"fov": pixels, "all": pixels}
    hard = result("CRFs", None, kind="published", budget=None, pooled=0.6)
    written(maps, hard)
    lines = results.one_table(results.scored("x"), "drive", "official").splitlines()
    dice = [line.split("|")[5].strip() for line in lines[2:]]
    # 8 of 8 with 5 false alarms: 16/21; 4 of 8 with none: 8/12
    assert dice == ["0.7000† (at best 0.7619)", "0.6000†"]


def test_the_matrix_is_trained_on_against_tested_on(written):
    written(
        *(
            result(dataset=a, scored=b, pooled=value)
            for a, b, value in (
                ("drive", "drive", 0.8), ("drive", "stare", 0.7), ("stare", "drive", 0.6),
            )
        )
    )  # fmt: skip
    found = results.matrix(results.scored("x"))
    assert found.loc["drive", "stare"] == 0.7
    assert np.isnan(found.loc["stare", "stare"])


def test_only_what_is_between_the_markers_changes():
    text = f"before\n{results.BEGIN}\nold\n{results.END}\nafter"
    new = results.between_markers(text, "new")
    assert new == f"before\n{results.BEGIN}\nnew\n{results.END}\nafter"
    assert results.between_markers(new, "new") == new
    with pytest.raises(ValueError, match="markers"):
        results.between_markers("nothing here", "new")


def test_claims_are_of_our_networks_and_have_a_source():
    table = results.claims()
    bibliography = (project_root() / "book" / "references.bib").read_text(encoding="utf-8")
    for row in table.itertuples():
        assert row.ours in MODELS
        assert f"{{{row.cite}," in bibliography
    for row in table.itertuples():
        assert row.split in list_splits(row.dataset)
    numbers = table[["dice", "auc_roc", "auc_pr", "sensitivity", "specificity", "accuracy"]]
    assert (numbers.isna() | ((numbers > 0.5) & (numbers < 1))).all(axis=None)
    assert numbers.notna().any(axis=1).all()


def test_claims_stand_beside_the_same_network_opponent_split_and_pixels(monkeypatch, written):
    claim = {
        "method": "X", "ours": "v-gan", "adversary": "image", "dataset": "drive",
        "split": "official", "scored_on": "test", "pixels": "all", "dice": 0.8, "auc_roc": None,
        "accuracy": None,
    }  # fmt: skip
    other = claim | {"adversary": None, "pixels": "field of view"}
    monkeypatch.setattr(results, "claims", lambda: pd.DataFrame([claim, other]))
    fought = result("v-gan", pooled=0.81)
    fought["settings"]["adversary"] = {"discriminator": "image"}
    written(papers=[fought], two=[result("v-gan", pooled=0.5)])
    lines = results.claims_table(results.scored(["papers", "two"])).splitlines()[2:]
    assert lines[0].endswith("| 0.9100 |")  # all pixels: see the helper above
    assert lines[1].endswith("| not run |")


def test_progress_counts_the_cells_that_have_a_file(tiny):
    tiny.mkdir(parents=True)
    (tiny / "stray.json").write_text("{}")
    before = results.progress().set_index("grid").loc["tiny"]
    (tiny / f"{GRIDS['tiny'][0].name}.json").write_text("{}")
    after = results.progress().set_index("grid").loc["tiny"]
    assert (before["done"], after["done"]) == (0, 1)
    assert before["of"] == after["of"] == len(GRIDS["tiny"])


# --- What is committed ------------------------------------------------------------------------


def test_readme_and_book_show_the_committed_results():
    root = project_root()
    readme = (root / "README.md").read_text(encoding="utf-8")
    table = results.markdown_table(results.load("small-unet"))
    assert results.between_markers(readme, table) == readme
    page = (root / "book" / "results.md").read_text(encoding="utf-8")
    for name, part in results.page_parts().items():
        assert results.between_markers(page, part, results.marker(name)) == page, name


@pytest.mark.parametrize("name", GRIDS)
def test_committed_files_belong_to_the_grid_and_were_not_touched(name):
    cells = {cell.name: cell for cell in GRIDS[name]}
    for path in grids.results_folder(name).glob("*.json"):
        assert path.stem in cells
        saved = json.loads(path.read_text(encoding="utf-8"))
        cell = cells[path.stem]
        if isinstance(cell, Cell):
            assert saved["settings"]["model"] == cell.model
        assert saved["commands"] == json.loads(json.dumps(cell.commands(name)))
        assert set(saved["reports"]) == {" ".join(test) for test in cell.tests}
        for report in saved["reports"].values():
            images = pd.DataFrame(
                [entry["fov"]["counts"] for entry in report["images"].values()]
            ).sum()
            pooled = 2 * images.tp / (2 * images.tp + images.fp + images.fn)
            assert report["fov"]["dice"]["pooled"] == pytest.approx(pooled, abs=1e-6)
