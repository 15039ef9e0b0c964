"""What is declared: names, commands and settings of the cells."""

import shlex

import pytest

from retina_lab import cli, grids
from retina_lab.classical import CLASSICAL
from retina_lab.datasets import list_splits
from retina_lab.grids import DRIVE, GRIDS, PHANTOM, Cell, Classical, Combination, Published
from retina_lab.models import MODELS, build_model, count_parameters

PLAIN = Cell("tiny-unet", "chase_db1", "20/8", "5m", 1)


@pytest.mark.parametrize(
    ("cell", "name"),
    [
        (PLAIN, "tiny-unet-chase_db1-20-8-5m-s1"),
        (Cell("unet", *DRIVE, "200 epochs", 0), "unet-drive-official-200-epochs-s0"),
        (
            Cell("unet", *DRIVE, "5m", 0, options=(("adversary", "patch-1"),)),
            "unet-vs-patch-1-drive-official-5m-s0",
        ),
        (
            Cell("unet", *DRIVE, "5m", 2, variant="lwnet's recipe", also=(PHANTOM,)),
            "unet-lwnet-s-recipe-drive-official-phantom-official-5m-s2",
        ),
        (Combination("ten networks", (PLAIN, PLAIN)), "ten-networks-chase_db1-20-8-5m"),
        (Combination("one, cleaned", (PLAIN,)), "one-cleaned-chase_db1-20-8-5m-s1"),
        (Classical("frangi", "stare", "10/10"), "frangi-stare-10-10"),
        (Published("N4_Fields", "N4 (2014)"), "n4_fields-drive-official"),
    ],
)
def test_names_of_files(cell, name):
    assert cell.name == name


@pytest.mark.parametrize("name", GRIDS)
def test_no_two_cells_share_a_file(name):
    names = [cell.name for cell in GRIDS[name]]
    assert len(set(names)) == len(names)


def test_cells_that_share_a_run_are_the_same_training():
    """A run's folder is named after its cell, in whatever grid the cell is."""
    trainings = {}
    for grid in GRIDS.values():
        for cell in grid:
            for one in cell.members if isinstance(cell, Combination) else [cell]:
                if isinstance(one, Cell):
                    settings = (one.model, one.dataset, one.split, one.length, one.seed, one.also)
                    same = (*settings, one.val, tuple(sorted(map(str, one.options))))
                    assert trainings.setdefault(one.name, same) == same


def test_a_cell_is_scored_on_its_own_images_unless_told():
    assert PLAIN.tests == (("chase_db1", "20/8"),)
    assert Cell("unet", *DRIVE, "5m", 0, (PHANTOM, DRIVE)).tests == (PHANTOM, DRIVE)
    assert Combination("both", (PLAIN,)).tests == PLAIN.tests
    assert Published("DRIU", "DRIU").tests == (DRIVE,)


def test_every_split_and_method_exists():
    for grid in GRIDS.values():
        for cell in grid:
            for dataset, split in cell.tests:
                assert split in list_splits(dataset)
            if isinstance(cell, Classical):
                assert cell.method in CLASSICAL


def test_the_equal_budget_is_of_equal_size():
    counts = {name: count_parameters(build_model(name)) for name in grids.EQUAL_BUDGET_MODELS}
    small = counts.pop("small-unet")
    counts.pop("w-net")  # the published network, as it is
    assert all(abs(count / small - 1) < 0.07 for count in counts.values()), counts
    assert set(grids.EQUAL_BUDGET_MODELS) <= set(MODELS)


@pytest.mark.parametrize("name", GRIDS)
def test_the_commands_ask_for_what_the_grid_runs(name):
    """What the command line makes of a cell's command is what ``run`` hands to ``fit``."""
    parser = cli.build_parser()
    for cell in GRIDS[name]:
        commands = cell.commands(name)
        if not isinstance(cell, Cell):
            ((verb, command),) = commands.items()
            assert cell.name in command if verb == "run" else cell.method in command
            continue
        args = parser.parse_args(shlex.split(commands["train"])[1:])
        asked = {**vars(args), "crop": args.crop or None}
        assert (asked["model"], asked["dataset"], asked["split"], asked["seed"]) == (
            cell.model, cell.dataset, cell.split, cell.seed,
        )  # fmt: skip
        assert asked["also"] == [f"{dataset}@{split}" for dataset, split in cell.also]
        assert asked["val"] == cell.val
        for option, value in {**cell.how_long, **dict(cell.options)}.items():
            assert asked[option] == value, option


def test_every_full_size_network_has_its_papers_settings():
    small = {name for name in MODELS if name.startswith(("small-", "medium-", "tiny-"))}
    assert set(grids.PAPERS) | set(grids.PAPERS_CHASE) == set(MODELS) - small
    names = [cell.name for cell in GRIDS["papers"]]
    assert len(names) == 3 * (2 * len(grids.PAPERS) + len(grids.PAPERS_CHASE)) + 3 * 2 * 4
    # the steps of an ablation are trained alike
    for papers in (grids.PAPERS, grids.PAPERS_CHASE):
        assert len({str(papers[name]) for name in papers if name.startswith("rsan")}) == 1


def test_unknown_grids_are_refused():
    with pytest.raises(ValueError, match="unknown grid 'moon'; there are: small-unet"):
        grids.results_folder("moon")


def test_published_maps_may_lie_elsewhere(monkeypatch, tmp_path):
    monkeypatch.delenv("RETINA_LAB_MAPS", raising=False)
    assert grids.maps_folder().parts[-4:] == ("data", "maps", "results", "DRIVE")
    monkeypatch.setenv("RETINA_LAB_MAPS", str(tmp_path))
    assert grids.maps_folder() == tmp_path
