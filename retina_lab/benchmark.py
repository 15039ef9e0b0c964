"""``python -m retina_lab.benchmark``: measure a declared grid, one cell after the other.

``run GRID`` goes through the cells of a grid (:mod:`retina_lab.grids`). Every cell leaves one
file, ``data/results/GRID/CELL.json``, with settings, versions, machine, seconds, the commands
that repeat it and the whole report. A cell that has its file is not run again, and a training
that was stopped goes on where it was, so giving the command again continues the grid
(``resume`` is the same word for it).

On several cards or machines, let each take every n-th cell: ``--part 1/4``, ``--part 2/4``, …
with ``CUDA_VISIBLE_DEVICES`` saying which card is whose (in a SLURM array: ``--part
$SLURM_ARRAY_TASK_ID/4``). A training that another process is busy with is left out. Or spread
each training over several processes: ``--devices``, or ``torchrun``, or ``srun``; their number
must divide the batch size.

``table`` prints a grid, or writes README and the book from all of them.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from retina_lab.cli import forgive_streams
from retina_lab.grids import (
    GRIDS,
    AnyCell,
    Cell,
    Classical,
    Combination,
    Published,
    maps_folder,
    results_folder,
)

if TYPE_CHECKING:
    from retina_lab.datasets.layouts import FundusDataset
    from retina_lab.datasets.sample import FundusSample
    from retina_lab.train import Run

Maps = Mapping[str, np.ndarray]


class LeftOut(RuntimeError):
    """A cell cannot be measured now; the message says why."""


class UnknownCell(ValueError):
    """No cell is called as asked."""


def train_cell(cell: Cell, runs: Path, device: str = "auto", devices: int = 1) -> Run:
    """The run of a cell: trained now, continued, or read if it is finished.

    Args:
        cell: what to train.
        runs: folder for the runs.
        device: ``"auto"``, ``"cpu"``, ``"cuda"`` or ``"mps"``.
        devices: number of processes, one device each.

    Raises:
        DatasetError: if one of its datasets is not here.
        TrainingError: if it fails, or another process is training it.
        KeyboardInterrupt: if it was interrupted.
    """
    from retina_lab.datasets import open_split
    from retina_lab.train import fit, hold_out

    train, val = hold_out(open_split(cell.dataset, cell.split).train, cell.val)
    more = [open_split(*other).train for other in cell.also]
    run = fit(
        cell.model, [sample for dataset in (train, *more) for sample in dataset], val,
        **cell.how_long, **dict(cell.options), seed=cell.seed, device=device, devices=devices,
        out=runs / cell.name, split=cell.split,
    )  # fmt: skip
    if run.interrupted:
        raise KeyboardInterrupt
    return run


def about_training(run: Run) -> dict[str, Any]:
    """Where a run was trained, and a digest of its weights."""
    from retina_lab.loop import RECORD, fingerprint

    record = json.loads((run.out / RECORD).read_text(encoding="utf-8"))
    return {"versions": record["versions"], "weights": fingerprint(run.model.state_dict())}


def look_up(
    cell: Cell | Combination,
) -> tuple[list[FundusSample], dict[tuple[str, str], FundusDataset]]:
    """The images that choose a cell's threshold, and its test images, before anything is trained.

    Returns:
        Training images (validation included) of the first training, and test images by
        dataset and split.

    Raises:
        DatasetError: if a dataset is not here.
        LeftOut: if a network would be scored on an image that it learns from, or that has no
            labels here.
    """
    from retina_lab.datasets import open_split
    from retina_lab.train import leaked

    tests = {test: open_split(*test).test for test in cell.tests}
    for test, samples in tests.items():
        if samples[0].vessels is None:
            raise LeftOut(f"the photographs of {' '.join(test)} have no labels here")
    members = cell.members if isinstance(cell, Combination) else (cell,)
    for member in members:
        for source in ((member.dataset, member.split), *member.also):
            learned = open_split(*source).train
            for samples in tests.values():
                if seen := leaked(learned.name, learned.names, samples):
                    raise LeftOut(f"{member.name} learns from the test image {seen[0]}")
    first = members[0]
    return open_split(first.dataset, first.split).train, tests


def on_first_process(work: Callable[[], Any]) -> Any:
    """Do what only one process needs to do; all of them hear of a failure.

    Returns:
        What ``work`` returns; None in the other processes.

    Raises:
        LeftOut: in all processes, if it fails in the first.
    """
    from retina_lab.loop import agree, is_first_process

    found = problem = None
    if is_first_process():
        try:
            found = work()
        except (ValueError, RuntimeError, OSError) as error:  # out of memory is a RuntimeError
            if not isinstance(error, LeftOut):
                traceback.print_exc()
            problem = str(error) or type(error).__name__
    if (problem := agree(problem)) is not None:
        raise LeftOut(problem)
    return found


def measure_network(
    cell: Cell, runs: Path, device: str = "auto", devices: int = 1
) -> dict[str, Any] | None:
    """Train and score one network; with several processes all but the first get None."""
    _, tests = look_up(cell)
    run = train_cell(cell, runs, device, devices)

    def report() -> dict[str, Any]:
        begin = time.perf_counter()
        reports = {
            f"{dataset} {split}": score(
                samples,
                average_maps([run], samples, tta=True, device=device),
                run.threshold,
                run.threshold_from,
            )
            for (dataset, split), samples in tests.items()
        }
        return {
            "settings": run.settings,
            "steps": int(run.history["step"].max()),
            "seconds": {**run.seconds, "test": time.perf_counter() - begin},
            "training": about_training(run),
            "reports": reports,
        }

    return on_first_process(report)


def measure_combination(
    cell: Combination, runs: Path, device: str = "auto", devices: int = 1
) -> dict[str, Any] | None:
    """Average the maps of trained networks, or treat them otherwise, and score that."""
    from retina_lab.cleaning import choose_cleaning
    from retina_lab.evaluate import choose_threshold

    learned_from, tests = look_up(cell)
    members = [train_cell(member, runs, device, devices) for member in cell.members]

    def report() -> dict[str, Any]:
        samples_known = list(learned_from)
        known = average_maps(members, samples_known, tta=False, device=device)
        threshold = choose_threshold(samples_known, known)
        cleaning = choose_cleaning(samples_known, known, threshold) if cell.cleaned else None
        reports = {}
        begin = time.perf_counter()
        for (dataset, split), samples in tests.items():
            maps = average_maps(members, samples, cell.tta, device)
            if cleaning is not None:
                maps = {name: cleaning.map(probability) for name, probability in maps.items()}
            reports[f"{dataset} {split}"] = score(
                samples, maps, threshold, f"{len(samples_known)} training images"
            )
        first = members[0].settings
        return {
            "settings": {
                "model": cell.label,
                "members": [member.name for member in cell.members],
                "tta": cell.tta,
                "cleaning": None if cleaning is None else vars(cleaning),
                "dataset": first["dataset"],
                "seed": cell.members[0].seed if len(members) == 1 else None,
                "budget_seconds": first["budget_seconds"],
                "epochs": first["epochs"],
                "parameters": sum(run.settings["parameters"] for run in members),
            },
            "training": [about_training(run) for run in members],
            "seconds": {
                "train": sum(run.seconds["train"] for run in members),
                "test": time.perf_counter() - begin,
            },
            "reports": reports,
        }

    return on_first_process(report)


def measure_classical(cell: Classical) -> dict[str, Any]:
    """Apply a method that learns nothing; its threshold comes from training images."""
    from retina_lab.classical import CLASSICAL
    from retina_lab.datasets import open_split
    from retina_lab.evaluate import CALIBRATION, choose_threshold

    split = open_split(cell.dataset, cell.split)
    detect = CLASSICAL[cell.method]
    known, test = list(split.train), list(split.test)
    threshold = choose_threshold(known, {sample.name: detect(sample) for sample in known})
    begin = time.perf_counter()
    maps = {sample.name: detect(sample) for sample in test}
    report = score(test, maps, threshold, f"{len(known)} training images")
    return {
        "settings": {**_no_network(cell.method), "dataset": cell.dataset},
        "seconds": {"test": time.perf_counter() - begin},
        # Such a map ranks pixels and is no probability of anything.
        "reports": {f"{cell.dataset} {cell.split}": unmeasured(report, CALIBRATION)},
    }


def measure_published(cell: Published) -> dict[str, Any]:
    """Score maps that others have published, where the user has them."""
    from retina_lab.datasets import DatasetError, open_split
    from retina_lab.evaluate import AREAS, CALIBRATION, load_maps, otsu_threshold

    folder = maps_folder() / cell.method
    if not folder.is_dir():
        raise DatasetError(f"no published maps at {folder}; set RETINA_LAB_MAPS to their folder")
    ((dataset, split),) = cell.tests
    test = list(open_split(dataset, split).test)
    maps = load_maps(folder, test)
    report = score(
        test, maps, otsu_threshold(test, maps), "Otsu on the maps scored, without labels"
    )
    if all(len(np.unique(probability)) <= 2 for probability in maps.values()):
        report = unmeasured(report, (*AREAS, *CALIBRATION))  # decisions: a curve of one point
    return {
        "settings": {**_no_network(cell.label), "dataset": dataset},
        "seconds": {},
        "reports": {f"{dataset} {split}": report},
    }


def unmeasured(report: dict[str, Any], metrics: Sequence[str]) -> dict[str, Any]:
    """A report without metrics that have no meaning for these maps.

    Args:
        report: as it stands in a cell's file.
        metrics: names of metrics of probabilities.
    """
    nothing = {"pooled": None, "mean": None, "sd": None, "interval": [None, None]}
    regions = {
        region: report[region] | dict.fromkeys(metrics, nothing) for region in ("fov", "all")
    }
    images = {
        name: image | {r: image[r] | dict.fromkeys(metrics) for r in ("fov", "all")}
        for name, image in report["images"].items()
    }
    return report | regions | {"images": images}


def _no_network(label: str) -> dict[str, Any]:
    unknown = dict.fromkeys(("seed", "budget_seconds", "epochs", "parameters"))
    return {"model": label, **unknown}


def average_maps(
    members: Sequence[Run], samples: Sequence[FundusSample], tta: bool, device: str = "auto"
) -> dict[str, np.ndarray]:
    """The mean of several networks' maps, by the name of the image."""
    from retina_lab.predict import predict_dataset

    maps = [predict_dataset(run, samples, tta=tta, device=device) for run in members]
    return {name: np.mean([one[name] for one in maps], axis=0) for name in maps[0]}


def score(
    samples: Sequence[FundusSample], maps: Maps, threshold: float, threshold_from: str
) -> dict[str, Any]:
    """The report of maps, as it stands in a cell's file."""
    from retina_lab.evaluate import evaluate_maps

    report = evaluate_maps(samples, maps, threshold=threshold, threshold_from=threshold_from)
    return report.to_dict()


def run_cell(
    cell: AnyCell, grid: str, runs: Path, device: str = "auto", devices: int = 1
) -> dict[str, Any] | None:
    """Measure one cell.

    Args:
        cell: what to do.
        grid: its grid, for the commands in its file.
        runs: folder for its runs; a stopped one in it is continued.
        device: ``"auto"``, ``"cpu"``, ``"cuda"`` or ``"mps"``.
        devices: number of processes, one device each.

    Returns:
        What is written to its file; None in all processes but the first.

    Raises:
        DatasetError: if one of its datasets is not here.
        LeftOut: if it cannot be measured now.
        KeyboardInterrupt: if the training was stopped.
    """
    from retina_lab.loop import versions

    if isinstance(cell, Cell):
        found = measure_network(cell, runs, device, devices)
    elif isinstance(cell, Combination):
        found = measure_combination(cell, runs, device, devices)
    elif isinstance(cell, Classical):
        found = on_first_process(lambda: measure_classical(cell))
    else:
        found = on_first_process(lambda: measure_published(cell))
    if found is None:
        return None
    return {
        "kind": cell.kind,
        "variant": getattr(cell, "variant", ""),
        "commands": cell.commands(grid),
        **found,
        "versions": versions(),
        "cores": os.cpu_count(),
    }


def run_grid(
    grid: str,
    runs: Path,
    device: str = "auto",
    devices: int = 1,
    only: str = "",
    part: tuple[int, int] = (1, 1),
) -> list[str]:
    """Run the cells of a grid that have no result yet.

    Args:
        grid: a name in ``GRIDS``.
        runs: folder for the runs.
        device: see :func:`run_cell`.
        devices: see :func:`run_cell`.
        only: run only the cell of this name or, if there is none, those whose name contains it.
        part: (k, n): of these only the k-th, (k + n)-th, …

    Returns:
        Why cells were left out, a line each; empty if the grid is complete.

    Raises:
        KeyboardInterrupt: if a training was interrupted; the grid can be continued.
        UnknownCell: if none is called so.
    """
    import torch

    from retina_lab.datasets import DatasetError
    from retina_lab.loop import TrainingError, agree, write_atomically

    folder = results_folder(grid)
    folder.mkdir(parents=True, exist_ok=True)
    cells = [cell for cell in GRIDS[grid] if cell.name == only]
    cells = cells or [cell for cell in GRIDS[grid] if only in cell.name]
    if not cells:
        raise UnknownCell(f"no cell of {grid} has {only!r} in its name")
    cells = cells[part[0] - 1 :: part[1]]
    left_out = []
    for number, cell in enumerate(cells, start=1):
        path = folder / f"{cell.name}.json"
        if agree(path.exists()):
            continue
        print(f"[{number}/{len(cells)}] {cell.name}", flush=True)
        try:
            result = run_cell(cell, grid, runs, device, devices)
        except (ValueError, RuntimeError, OSError) as error:  # out of memory is a RuntimeError
            # What cannot be measured today must not keep the others from it.
            if not isinstance(error, DatasetError | TrainingError | LeftOut):
                if torch.distributed.is_initialized() and not isinstance(error, ValueError):
                    raise  # of one process alone: the others wait for it and must be ended
                traceback.print_exc()
            reason = (str(error) or type(error).__name__).splitlines()[0]
            left_out.append(f"{cell.name}: {reason}")
            print(f"    left out: {left_out[-1]}", file=sys.stderr, flush=True)
            continue
        if result is not None:
            text = json.dumps(rounded(result), ensure_ascii=False, allow_nan=False) + "\n"
            write_atomically(path, lambda part, text=text: part.write_text(text, "utf-8"))
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


def _part(text: str) -> tuple[int, int]:
    """``"2/5"`` as (2, 5)."""
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    if not match or not 1 <= int(match[1]) <= int(match[2]):
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form k/n with 1 ≤ k ≤ n")
    return int(match[1]), int(match[2])


def main(argv: list[str] | None = None) -> int:
    """Run a grid, or write what is known of it; returns the exit status."""
    forgive_streams()
    parser = argparse.ArgumentParser(prog="python -m retina_lab.benchmark", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    verbs = parser.add_subparsers(dest="verb", required=True)
    run = verbs.add_parser("run", aliases=["resume"], help="run, or continue, a grid")
    run.add_argument("grid", choices=GRIDS)
    run.add_argument("--only", default="", help="cells whose name contains this")
    run.add_argument("--part", type=_part, default=(1, 1), help="k/n: every n-th from the k-th")
    run.add_argument("--runs", type=Path, default=Path("runs"), help="folder for the runs")
    run.add_argument("--device", default="auto")
    run.add_argument("--devices", type=int, default=1, help="processes, one device each")
    table = verbs.add_parser("table", help="print a grid, or write README and the book")
    table.add_argument("grid", choices=GRIDS, nargs="?")
    args = parser.parse_args(argv)
    if args.verb == "table":
        from retina_lab import results

        if args.grid is None:
            results.write_tables()
        else:
            print(results.markdown_table(results.load(args.grid)))
        return 0
    try:
        left_out = run_grid(args.grid, args.runs, args.device, args.devices, args.only, args.part)
    except KeyboardInterrupt:
        print("stopped; give the same command to go on", file=sys.stderr)
        return 130
    except UnknownCell as error:
        print(error, file=sys.stderr)
        return 2
    if left_out:
        print(f"{len(left_out)} cells were left out:", *left_out, sep="\n", file=sys.stderr)
    return 1 if left_out else 0


if __name__ == "__main__":
    sys.exit(main())
