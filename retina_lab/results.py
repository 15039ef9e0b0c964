"""``python -m retina_lab.results``: measured figures, from reports to the tables that show them.

``add NAME RUN REPORT …`` reads what ``retina-lab train`` and ``retina-lab evaluate --json`` wrote
and appends a row to ``data/results/NAME.json``. ``write`` puts the table made from that file
between the markers in README.md, so that no figure there is typed by hand.
"""

from __future__ import annotations

import argparse
import json
import shlex
import statistics
import sys
from pathlib import Path

from retina_lab.datasets.manifests import project_root

METRICS = ("dice", "auc_roc", "average_precision", "cldice", "betti0_error")
BEGIN, END = "<!-- results: made by `python -m retina_lab.results write` -->", "<!-- end -->"


def results_file(name: str) -> Path:
    """Where the rows of a measurement are kept."""
    return project_root() / "data" / "results" / f"{name}.json"


def train_command(settings: dict, out: str) -> str:
    """The command line that repeats a run."""
    length = (
        f"--budget {settings['budget_seconds']:g}s"
        if settings["epochs"] is None
        else f"--epochs {settings['epochs']}"
    )
    return (
        f"retina-lab train --dataset {settings['dataset']} --split {settings['split']} "
        f"--model {settings['model']} {length} --seed {settings['seed']} --out {shlex.quote(out)}"
    )


def make_row(run: Path, report: Path, dataset: str, split: str, tta: bool) -> dict:
    """One measurement: how it was trained, on what it was scored, and the figures."""
    record = json.loads((run / "run.json").read_text(encoding="utf-8"))
    scores = json.loads(report.read_text(encoding="utf-8"))
    settings = record["settings"]
    out = f"runs/{run.name}"
    return {
        "train": train_command(settings, out),
        "evaluate": f"retina-lab evaluate --run {out} --dataset {dataset} --split {split}"
        + ("" if tta else " --no-tta"),
        "model": settings["model"],
        "trained_on": settings["dataset"],
        "scored_on": dataset,
        "split": split,
        "tta": tta,
        "budget_seconds": settings["budget_seconds"],
        "epochs": settings["epochs"],
        "seed": settings["seed"],
        "batch_size": settings["batch_size"],
        "lr": settings["lr"],
        "precision": settings["precision"],
        "seconds": record["seconds"],
        "versions": record["versions"],
        "threshold": scores["threshold"],
        "fov": {name: scores["fov"][name] for name in METRICS},
    }


def shown(row: dict, metric: str) -> float | None:
    """The pooled figure, or the mean where pooling has no meaning."""
    entry = row["fov"][metric]
    return entry["mean"] if entry["pooled"] is None else entry["pooled"]


def markdown_table(rows: list[dict]) -> str:
    """One line for each (training set, budget, test set): the median over seeds, and its range."""
    groups: dict[tuple, list[dict]] = {}
    for row in rows:
        length = (
            f"{row['budget_seconds']:g} s" if row["epochs"] is None else f"{row['epochs']} epochs"
        )
        key = (row["model"], row["trained_on"], length, row["scored_on"], row["split"], row["tta"])
        groups.setdefault(key, []).append(row)
    lines = [
        "| network | trained on | for | scored on | seeds | Dice | AUC-ROC | clDice |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for (model, trained, length, scored, split, tta), members in groups.items():

        def cell(metric: str, members=members) -> str:
            values = [shown(row, metric) for row in members]
            text = f"{statistics.median(values):.4f}"
            return text + (f" ({min(values):.4f}–{max(values):.4f})" if len(values) > 1 else "")

        flips = "" if tta else ", no flips"
        lines.append(
            f"| `{model}` | {trained} | {length} | {scored}, {split} test{flips} | {len(members)} "
            f"| {cell('dice')} | {cell('auc_roc')} | {cell('cldice')} |"
        )
    return "\n".join(lines)


def written(text: str, table: str) -> str:
    """``text`` with the table between the markers.

    Raises:
        ValueError: if the markers are not there.
    """
    if BEGIN not in text or END not in text:
        raise ValueError(f"the text lacks the markers {BEGIN} and {END}")
    before, rest = text.split(BEGIN, 1)
    return f"{before}{BEGIN}\n{table}\n{END}{rest.split(END, 1)[1]}"


def main(argv: list[str] | None = None) -> int:
    """Add a row, or write the README's table; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m retina_lab.results", description=__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True)
    add = verbs.add_parser("add", help="append a measurement")
    add.add_argument("name", help="of the results file, such as small-unet")
    add.add_argument("run", type=Path, help="folder of the run")
    add.add_argument("report", type=Path, help="JSON of retina-lab evaluate")
    add.add_argument("--dataset", required=True)
    add.add_argument("--split", required=True)
    add.add_argument("--tta", action=argparse.BooleanOptionalAction, default=True)
    verbs.add_parser("write", help="put the table into README.md")
    args = parser.parse_args(argv)
    if args.verb == "write":
        readme = project_root() / "README.md"
        rows = json.loads(results_file("small-unet").read_text(encoding="utf-8"))
        text = written(readme.read_text(encoding="utf-8"), markdown_table(rows))
        readme.write_text(text, encoding="utf-8")
        return 0
    path = results_file(args.name)
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
    row = make_row(args.run, args.report, args.dataset, args.split, args.tta)
    same = ("train", "evaluate")
    rows = [old for old in rows if any(old[key] != row[key] for key in same)] + [row]
    path.write_text(json.dumps(rows, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
