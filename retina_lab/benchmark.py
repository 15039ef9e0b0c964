"""``python -m retina_lab.benchmark``: train and score a declared grid, one process at a time.

``run GRID`` goes through the cells of a grid: each trains one network from one seed and scores
it on test images by the protocol of :mod:`retina_lab.evaluate`. Every cell leaves one file,
``data/results/GRID/CELL.json``, with settings, versions, machine, seconds, the commands that
repeat it and the whole report. A cell that has its file is not run again, and a training that
was stopped goes on where it was, so giving the command again continues the grid.

``table GRID`` prints what is there, ``readme`` writes the default network's rows into README.md.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from retina_lab.datasets.manifests import project_root

BEGIN, END = "<!-- results: made by `python -m retina_lab.benchmark readme` -->", "<!-- end -->"
FIGURES = ("dice", "auc_roc", "average_precision", "cldice", "betti0_error")


def length_of(text: str) -> dict[str, str | int]:
    """``"200 epochs"`` or ``"5m"`` as the arguments ``epochs`` or ``budget`` of a training."""
    number, _, unit = text.partition(" ")
    return {"epochs": int(number)} if unit == "epochs" else {"budget": text}


@dataclass(frozen=True)
class Cell:
    """One training and its scores.

    Attributes:
        model: name in ``retina-lab models``.
        dataset: trained on the training images of ``split``.
        split: of the dataset.
        length: of training: a time budget such as ``"5m"``, or ``"200 epochs"``.
        seed: of the training.
        scored_on: (dataset, split) pairs whose test images are scored; its own if empty.
        options: further arguments of :func:`retina_lab.train.fit` that the command line has too.
    """

    model: str
    dataset: str
    split: str
    length: str
    seed: int
    scored_on: tuple[tuple[str, str], ...] = ()
    options: tuple[tuple[str, Any], ...] = ()

    @property
    def name(self) -> str:
        """File name of its result."""
        split, length = self.split.replace("/", "-"), self.length.replace(" ", "-")
        adversary = dict(self.options).get("adversary")
        network = f"{self.model}-vs-{adversary}" if adversary else self.model
        return f"{network}-{self.dataset}-{split}-{length}-s{self.seed}"

    @property
    def how_long(self) -> dict[str, str | int]:
        """The same for :func:`retina_lab.train.fit`: ``budget`` or ``epochs``."""
        return length_of(self.length)

    @property
    def tests(self) -> tuple[tuple[str, str], ...]:
        """What it is scored on."""
        return self.scored_on or ((self.dataset, self.split),)

    def commands(self) -> dict[str, str | list[str]]:
        """The command lines that do the same by hand."""
        run = shlex.quote(f"runs/{self.name}")
        flags = "".join(
            f" --{name.replace('_', '-')} {shlex.quote(str(value))}"
            for name, value in {**self.how_long, **dict(self.options)}.items()
        ).replace("--crop None", "--crop 0")
        return {
            "train": f"retina-lab train --dataset {self.dataset} --split {self.split} "
            f"--model {self.model}{flags} --seed {self.seed} --out {run}",
            "evaluate": [
                f"retina-lab evaluate --run {run} --dataset {dataset} --split {split}"
                for dataset, split in self.tests
            ],
        }


EQUAL_BUDGET_MODELS = (
    "small-unet",
    "w-net",
    "small-cbam-unet",
    "small-cmp-unet",
    "small-rsan-backbone",
    "small-rsan-dropblock",
    "small-rsan",
    "small-deformable-encoder-unet",
    "small-du-net",
    "small-du-net-9",
)
SLIDES = {"crop": None, "batch_size": 2, "lr": 1e-3, "loss": "bce + dice", "widest": 2000}
RSAN = {"crop": None, "batch_size": 2, "lr": 1e-3, "loss": "bce", "widest": 2000}
V_GAN = {
    "crop": None, "batch_size": 2, "lr": 2e-4, "loss": "bce", "widest": 2000,
    "normalisation": "zscore",
}  # fmt: skip
M_CAM_GAN = {
    "crop": 512, "batch_size": 2, "lr": 2e-4, "loss": "focal", "widest": 2000,
    "augmentation": "strong", "adversary": "multi-scale-cam",
}  # fmt: skip
W_NET = {"crop": None, "batch_size": 4, "lr": 1e-2, "loss": "bce", "widest": 512}

PAPERS: dict[str, tuple[str, dict[str, Any]]] = {
    # Widths are those of the registry. Where a source gives no schedule (the slides) ours stands;
    # the rate falls linearly everywhere, where RSAN takes one step and lwnet runs through cycles.
    **dict.fromkeys(
        (
            "unet",
            "unet-3",
            "cbam-unet",
            "cmp-unet",
            "deformable-encoder-unet",
            "du-net",
            "du-net-9",
        ),
        ("200 epochs", SLIDES),
    ),
    **dict.fromkeys(("rsan-backbone", "rsan-dropblock", "rsan"), ("200 epochs", RSAN)),
    "rsan-chase": ("150 epochs", {**RSAN, "batch_size": 1}),
    "v-gan": ("400 epochs", V_GAN),
    "m-cam-gan": ("1112 epochs", M_CAM_GAN),  # 10,000 steps on DRIVE's 18 images, two a step
    "w-net": ("1000 epochs", W_NET),
}
"""How long the full-size networks are trained, and with which settings, by their sources."""

ADVERSARIES = ("pixel", "patch-2", "patch-1", "image")
"""MI-GAN's and V-GAN's, by how much a verdict sees."""

DRIVE, CHASE, STARE = ("drive", "official"), ("chase_db1", "20/8"), ("stare", "10/10")
PHANTOM = ("phantom", "official")

GRIDS: dict[str, list[Cell]] = {
    # What the course's default network reaches while a class waits.
    "small-unet": [
        *(Cell("small-unet", *DRIVE, "60s", seed) for seed in range(3)),
        *(Cell("small-unet", *DRIVE, "5m", seed) for seed in range(3)),
        *(Cell("small-unet", *CHASE, "5m", seed) for seed in range(3)),
        Cell("small-unet", *PHANTOM, "5m", 0, (PHANTOM, DRIVE, CHASE, STARE)),
    ],
    # Every architecture at about 120,000 parameters and the same four minutes.
    "equal-budget": [
        Cell(model, *data, "4m", seed)
        for data, seed in ((DRIVE, 0), (CHASE, 0), (DRIVE, 1))
        for model in EQUAL_BUDGET_MODELS
    ],
    # MI-GAN's question at class size: is a network better for having had an opponent?
    "adversaries": [
        Cell("small-unet", *DRIVE, "4m", seed, options=options)
        for seed in range(2)
        for options in ((), *((("adversary", name),) for name in ADVERSARIES))
    ],
    # The full-size networks by their papers' settings. Hours a cell on a GPU, days without one.
    "papers": [
        Cell(model, *data, length, seed, options=tuple(options.items()))
        for seed in range(3)
        for data in (DRIVE, STARE, CHASE)
        for model, (length, options) in PAPERS.items()
        if model != ("rsan" if data == CHASE else "rsan-chase")
    ]
    # MI-GAN's table 1: the same generator against each of its discriminators.
    + [
        Cell(
            "v-gan",
            *data,
            PAPERS["v-gan"][0],
            seed,
            options=(*V_GAN.items(), ("adversary", adversary)),
        )
        for seed in range(3)
        for data in (DRIVE, STARE)
        for adversary in ADVERSARIES
    ],
}


def results_folder(grid: str) -> Path:
    """Where the cells of a grid are kept.

    Raises:
        ValueError: if there is no such grid; the message lists them.
    """
    if grid not in GRIDS:
        raise ValueError(f"unknown grid {grid!r}; there are: {', '.join(GRIDS)}")
    return (project_root() or Path.cwd()) / "data" / "results" / grid


def run_cell(cell: Cell, runs: Path, device: str = "auto") -> dict[str, Any] | None:
    """Train and score one cell.

    Args:
        cell: what to do.
        runs: folder for its run; a stopped one in it is continued.
        device: ``"auto"``, ``"cpu"``, ``"cuda"`` or ``"mps"``.

    Returns:
        What is written to its file, or None if the training was interrupted.

    Raises:
        DatasetError: if one of its datasets is not here.
    """
    from retina_lab.datasets import open_split
    from retina_lab.evaluate import evaluate_maps
    from retina_lab.loop import versions
    from retina_lab.predict import predict_dataset
    from retina_lab.train import fit, hold_out

    # All data are looked up before anything is trained.
    tests = {test: open_split(*test).test for test in cell.tests}
    train, val = hold_out(open_split(cell.dataset, cell.split).train, 2)
    run = fit(
        cell.model, train, val, **cell.how_long, **dict(cell.options), seed=cell.seed,
        device=device, out=runs / cell.name, split=cell.split,
    )  # fmt: skip
    if run.interrupted:
        return None
    reports = {}
    for (dataset, split), samples in tests.items():
        maps = predict_dataset(run, samples, tta=True, device=device)
        report = evaluate_maps(
            samples, maps, threshold=run.threshold, threshold_from=run.threshold_from
        )
        reports[f"{dataset} {split}"] = report.to_dict()
    return {
        "cell": {**vars(cell), "scored_on": cell.tests, "options": dict(cell.options)},
        "commands": cell.commands(),
        "settings": run.settings,
        "steps": int(run.history["step"].iloc[-1]),
        "seconds": run.seconds,
        "versions": versions(),
        "cores": os.cpu_count(),
        "reports": reports,
    }


def run_grid(grid: str, runs: Path, device: str = "auto", only: str = "") -> list[str]:
    """Run the cells of a grid that have no result yet.

    Args:
        grid: a name in ``GRIDS``.
        runs: folder for the runs.
        device: see :func:`run_cell`.
        only: run only cells whose name contains this.

    Returns:
        Why cells were left out, a line each; empty if the grid is complete.

    Raises:
        KeyboardInterrupt: if a training was interrupted; the grid can be continued.
    """
    from retina_lab.datasets import DatasetError

    folder = results_folder(grid)
    folder.mkdir(parents=True, exist_ok=True)
    cells = [cell for cell in GRIDS[grid] if only in cell.name]
    left_out = []
    for number, cell in enumerate(cells, start=1):
        path = folder / f"{cell.name}.json"
        if path.exists():
            continue
        print(f"[{number}/{len(cells)}] {cell.name}", flush=True)
        try:
            result = run_cell(cell, runs, device)
        except DatasetError as error:
            left_out.append(f"{cell.name}: {str(error).splitlines()[0]}")
            continue
        if result is None:
            raise KeyboardInterrupt
        partial = path.with_suffix(".part")
        text = json.dumps(rounded(result), ensure_ascii=False, allow_nan=False)
        partial.write_text(text + "\n", encoding="utf-8")
        os.replace(partial, path)
        for test, report in result["reports"].items():
            print(f"    {test}: Dice {report['fov']['dice']['pooled']:.4f}", flush=True)
    return left_out


def rounded(value: Any) -> Any:
    """The same nested lists and dictionaries with floats to six decimals: smaller files."""
    if isinstance(value, dict):
        return {key: rounded(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(entry) for entry in value]
    return round(value, 6) if isinstance(value, float) else value


def read_cells(grid: str) -> list[dict[str, Any]]:
    """The results of a grid, in the grid's order; cells without one are missing.

    Raises:
        ValueError: if there is no such grid or a file cannot be read; the message names it.
    """
    folder, found = results_folder(grid), []
    for cell in GRIDS[grid]:
        path = folder / f"{cell.name}.json"
        if path.exists():
            try:
                found.append(json.loads(path.read_text(encoding="utf-8")))
            except json.JSONDecodeError as error:
                raise ValueError(f"{path} is damaged ({error}); delete it and run again") from error
    return found


def load(grid: str) -> pd.DataFrame:
    """The figures of a grid, one row for each cell and test set.

    Returns:
        A frame with the columns ``model``, ``adversary`` ("" for none), ``dataset`` and ``split``
        (scored on), ``trained_on``, ``seed``, ``budget_seconds`` or ``epochs``, ``parameters``,
        ``steps``, ``train_seconds``, ``threshold``, ``dice``, ``dice_low``, ``dice_high`` (95 %
        bootstrap interval over images), ``auc_roc``, ``average_precision``, ``cldice`` and
        ``betti0_error``: pooled over the pixels in the field of view, or the mean over images
        where pooling has no meaning.
    """
    rows = []
    for result in read_cells(grid):
        settings = result["settings"]
        for test, report in result["reports"].items():
            dataset, split = test.split(" ", 1)
            figures = {}
            for name in FIGURES:
                entry = report["fov"][name]
                pooled = entry["pooled"]
                figures[name] = entry["mean"] if pooled is None else pooled
            low, high = report["fov"]["dice"]["interval"]
            rows.append(
                {
                    "model": settings["model"],
                    "adversary": (settings.get("adversary") or {}).get("discriminator", ""),
                    "dataset": dataset,
                    "split": split,
                    "trained_on": settings["dataset"],
                    "seed": settings["seed"],
                    "budget_seconds": settings["budget_seconds"],
                    "epochs": settings["epochs"],
                    "parameters": settings["parameters"],
                    "steps": result["steps"],
                    "train_seconds": result["seconds"]["train"],
                    "threshold": report["threshold"]["value"],
                    "dice_low": low,
                    "dice_high": high,
                    **figures,
                }
            )
    columns = [
        "model", "adversary", "dataset", "split", "trained_on", "seed", "budget_seconds", "epochs",
        "parameters", "steps", "train_seconds", "threshold", "dice", "dice_low", "dice_high",
        "auc_roc", "average_precision", "cldice", "betti0_error",
    ]  # fmt: skip
    return pd.DataFrame(rows, columns=columns)


def paired(
    grid: str, dataset: str, model: str, baseline: str = "small-unet", metric: str = "dice"
) -> tuple[float, float, float] | None:
    """Mean difference of two networks over the test images of a dataset, image by image.

    Each image's value is first averaged over the seeds that both networks have.

    Args:
        grid: a name in ``GRIDS``.
        dataset: that both were trained and scored on.
        model: the network that is compared.
        baseline: the network it is compared with.
        metric: one of :data:`retina_lab.evaluate.METRICS`.

    Returns:
        model − baseline, and the ends of its 95 % bootstrap interval over images; None if
        they have no seed in common.
    """
    from retina_lab.evaluate import mean_with_interval

    values: dict[str, dict[int, dict[str, float]]] = {model: {}, baseline: {}}
    for result in read_cells(grid):
        name, seed = result["settings"]["model"], result["settings"]["seed"]
        if name in values and result["settings"]["dataset"] == dataset:
            for test, report in result["reports"].items():
                if test.split(" ", 1)[0] == dataset:
                    images = report["images"].items()
                    values[name][seed] = {image: entry["fov"][metric] for image, entry in images}
    seeds = sorted(values[model].keys() & values[baseline].keys())
    if not seeds:
        return None
    differences = [
        np.mean([values[model][seed][image] - values[baseline][seed][image] for seed in seeds])
        for image in values[model][seeds[0]]
    ]
    return mean_with_interval(np.array(differences))


def summary(rows: pd.DataFrame) -> pd.DataFrame:
    """Median and range over seeds, a row for each network, training, and test set."""
    length = [
        f"{row.budget_seconds:g} s" if pd.notna(row.budget_seconds) else f"{row.epochs:g} epochs"
        for row in rows.itertuples()
    ]
    network = rows["model"] + np.where(rows["adversary"] == "", "", " vs " + rows["adversary"])
    keys = ["model", "trained_on", "length", "dataset", "split"]
    groups = rows.assign(length=length, model=network).groupby(keys, sort=False)
    table = groups.agg(parameters=("parameters", "first"), seeds=("seed", "count"))
    for name in ("dice", "auc_roc", "cldice", "betti0_error"):
        places = 1 if name == "betti0_error" else 4
        table[name] = groups[name].agg(lambda values, places=places: shown(values, places))
    return table.reset_index()


def shown(values: pd.Series, places: int = 4) -> str:
    """Median, and smallest and largest in brackets if there are several."""
    text = f"{values.median():.{places}f}"
    return text if len(values) == 1 else (
        f"{text} ({values.min():.{places}f}–{values.max():.{places}f})"
    )  # fmt: skip


HEADINGS = {
    "model": "network", "parameters": "parameters", "trained_on": "trained on",
    "length": "for", "dataset": "scored on", "seeds": "seeds", "dice": "Dice",
    "auc_roc": "AUC-ROC", "cldice": "clDice", "betti0_error": "Betti-0 error",
}  # fmt: skip


def markdown_table(rows: pd.DataFrame) -> str:
    """The summary as a table in Markdown."""
    table = summary(rows)
    table["model"] = "`" + table["model"] + "`"
    table["parameters"] = table["parameters"].map("{:,}".format)
    table["dataset"] += ", " + table["split"] + " test"
    lines = ["| " + " | ".join(HEADINGS.values()) + " |", "|---" * len(HEADINGS) + "|"]
    for _, row in table.iterrows():
        lines.append("| " + " | ".join(str(row[name]) for name in HEADINGS) + " |")
    return "\n".join(lines)


def between_markers(text: str, table: str, begin: str = BEGIN, end: str = END) -> str:
    """``text`` with the table between two markers.

    Raises:
        ValueError: if the markers are not there.
    """
    if begin not in text or end not in text:
        raise ValueError(f"the text lacks the markers {begin} and {end}")
    before, rest = text.split(begin, 1)
    return f"{before}{begin}\n{table}\n{end}{rest.split(end, 1)[1]}"


def main(argv: list[str] | None = None) -> int:
    """Run a grid, print its table, or write the README's; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m retina_lab.benchmark", description=__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True)
    run = verbs.add_parser("run", help="run, or continue, a grid")
    run.add_argument("grid", choices=GRIDS)
    run.add_argument("--only", default="", help="cells whose name contains this")
    run.add_argument("--runs", type=Path, default=Path("runs"), help="folder for the runs")
    run.add_argument("--device", default="auto")
    table = verbs.add_parser("table", help="print what there is")
    table.add_argument("grid", choices=GRIDS)
    verbs.add_parser("readme", help="write the default network's rows into README.md")
    args = parser.parse_args(argv)
    if args.verb == "run":
        try:
            left_out = run_grid(args.grid, args.runs, args.device, args.only)
        except KeyboardInterrupt:
            print("stopped; give the same command to go on", file=sys.stderr)
            return 130
        for line in left_out:
            print(f"left out: {line}", file=sys.stderr)
        return 1 if left_out else 0
    if args.verb == "table":
        print(markdown_table(load(args.grid)))
        return 0
    readme = project_root() / "README.md"
    table = markdown_table(load("small-unet"))
    text = between_markers(readme.read_text(encoding="utf-8"), table)
    readme.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
