"""Reading what the benchmark has found: rows, differences, tables, and what they are worth.

Everything here is made from the files in ``data/results`` alone: one JSON a cell of a grid
(:mod:`retina_lab.grids`), and ``claims.csv`` with what the sources say of themselves.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from retina_lab.datasets.manifests import project_root
from retina_lab.evaluate import METRICS, Report, mean_with_interval, sign_flip_p
from retina_lab.grids import GRIDS, results_folder

BASELINE = "small-unet"
"""What every network is compared with: the plainest of its size."""

BEGIN, END = "<!-- results: made by `python -m retina_lab.benchmark table` -->", "<!-- end -->"

HIGHER_IS_BETTER = {
    name: name not in ("betti0_error", "betti1_error", "ece", "brier") for name in METRICS
}


# --- Reading ----------------------------------------------------------------------------------


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


@dataclass(frozen=True)
class Scored:
    """One method from one seed on one set of test images.

    Attributes:
        grid: where it comes from.
        kind: ``"network"``, ``"combination"``, ``"classical"`` or ``"published"``.
        label: what it is called in tables.
        length: of its training, in words; "" if nothing was trained.
        dataset: whose test images were scored.
        split: of that dataset.
        result: the whole file.
        report: of these test images.
    """

    grid: str
    kind: str
    label: str
    length: str
    dataset: str
    split: str
    result: dict[str, Any]
    report: Report

    @property
    def trained_on(self) -> str:
        """Dataset, or datasets, of its training or threshold."""
        return self.result["settings"]["dataset"]

    @property
    def seed(self) -> int | None:
        """Of the training, None where there is none or several."""
        return self.result["settings"]["seed"]

    @property
    def key(self) -> tuple[str, ...]:
        """What is the same for all seeds."""
        return (self.label, self.trained_on, self.length, self.dataset, self.split)


def _label(result: dict[str, Any]) -> str:
    """The network with what was done to it."""
    settings = result["settings"]
    adversary = (settings.get("adversary") or {}).get("discriminator")
    label = settings["model"] + (f" vs {adversary}" if adversary else "")
    return f"{label}, {result['variant']}" if result.get("variant") else label


def _length(settings: dict[str, Any]) -> str:
    if settings["budget_seconds"] is not None:
        seconds = settings["budget_seconds"]
        return f"{seconds:g} s" if seconds < 120 else f"{seconds / 60:g} min"
    return "" if settings["epochs"] is None else f"{settings['epochs']:g} epochs"


def scored(grids: str | Iterable[str]) -> list[Scored]:
    """Every method, seed and test set of some grids, each training once.

    Args:
        grids: names in ``GRIDS``, or one.
    """
    grids = [grids] if isinstance(grids, str) else list(grids)
    found: dict[tuple, Scored] = {}
    for grid in grids:
        for result in read_cells(grid):
            for test, report in result["reports"].items():
                dataset, split = test.rsplit(" ", 1)  # a folder's path may hold spaces
                one = Scored(
                    grid, result.get("kind", "network"), _label(result),
                    _length(result["settings"]), dataset, split, result, Report(**report),
                )  # fmt: skip
                # the same training may belong to two grids
                found.setdefault((*one.key, one.seed), one)
    return list(found.values())


def figures(block: dict[str, Any]) -> dict[str, float]:
    """One number a metric: pooled, or the mean over images where pooling has no meaning."""
    numbers = {}
    for name, entry in block.items():
        value = entry["mean"] if entry["pooled"] is None else entry["pooled"]
        numbers[name] = np.nan if value is None else value
    return numbers


def frame(rows: Iterable[Scored], region: str = "fov") -> pd.DataFrame:
    """What was scored as a table.

    Args:
        rows: from :func:`scored`.
        region: ``"fov"``, or ``"all"`` for all pixels.

    Returns:
        A row each with ``grid``, ``kind``, ``label``, ``model``, ``adversary`` ("" for none),
        ``dataset`` and ``split`` (scored on), ``trained_on``, ``seed``, ``length``,
        ``budget_seconds`` or ``epochs``, ``parameters``, ``steps``, ``train_seconds``,
        ``threshold``, ``dice_low`` and ``dice_high`` (95 % bootstrap interval over images), and
        every metric of :data:`retina_lab.evaluate.METRICS`: pooled over the pixels, or the mean
        over images where pooling has no meaning. Unknown is NaN.
    """
    entries = []
    for row in rows:
        settings, block = row.result["settings"], getattr(row.report, region)
        low, high = block["dice"]["interval"]
        entries.append(
            {
                "grid": row.grid,
                "kind": row.kind,
                "label": row.label,
                "model": settings["model"],
                "adversary": (settings.get("adversary") or {}).get("discriminator", ""),
                "dataset": row.dataset,
                "split": row.split,
                "trained_on": row.trained_on,
                "seed": row.seed,
                "length": row.length,
                "budget_seconds": settings["budget_seconds"],
                "epochs": settings["epochs"],
                "parameters": settings["parameters"],
                "steps": row.result.get("steps"),
                "train_seconds": row.result["seconds"].get("train"),
                "threshold": row.report.threshold["value"],
                "dice_low": low,
                "dice_high": high,
                **figures(block),
            }
        )
    columns = [
        "grid", "kind", "label", "model", "adversary", "dataset", "split", "trained_on", "seed",
        "length", "budget_seconds", "epochs", "parameters", "steps", "train_seconds", "threshold",
        "dice_low", "dice_high", *METRICS,
    ]  # fmt: skip
    table = pd.DataFrame(entries, columns=columns)
    whole = ["seed", "epochs", "parameters", "steps"]  # with gaps, where nothing was trained
    numbers = columns[columns.index("threshold") :] + ["budget_seconds", "train_seconds"]
    return table.astype(dict.fromkeys(whole, "Int64") | dict.fromkeys(numbers, float))


def load(grid: str | Iterable[str], region: str = "fov") -> pd.DataFrame:
    """The figures of one grid, or of several, as :func:`frame` arranges them."""
    return frame(scored(grid), region)


def second_observers(rows: Iterable[Scored]) -> dict[tuple[str, str], dict[str, Any]]:
    """The second observer's block of a report, by dataset and split, where there is one."""
    found = {}
    for row in rows:
        if row.report.second_observer is not None:
            found.setdefault((row.dataset, row.split), row.report.second_observer)
    return found


def claims() -> pd.DataFrame:
    """What the sources say of themselves, with the images and pixels that they have counted.

    Returns:
        A frame with ``method``, ``ours`` (its name in ``retina-lab models``), ``cite`` (key in
        the bibliography), ``dataset``, ``scored_on``, ``pixels``, ``dice``, ``auc_roc``,
        ``auc_pr``, ``sensitivity``, ``specificity``, ``accuracy``; NaN where nothing is said.
    """
    root = project_root() or Path.cwd()
    return pd.read_csv(root / "data" / "results" / "claims.csv")


def step_seconds(size: int = 256) -> dict[str, float]:
    """Seconds of a training step with one image on a processor, by network.

    Args:
        size: side of the image in pixels.

    Returns:
        As ``make bench`` has measured them last; empty if that is not committed.
    """
    path = (project_root() or Path.cwd()) / "data" / "results" / "bench-cpu.json"
    if not path.exists():
        return {}
    rows = json.loads(path.read_text(encoding="utf-8"))["rows"]
    return {row["model"]: row["step_seconds"] for row in rows if row["size"] == size}


# --- Differences ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Difference:
    """What a method is better than another one, image by image.

    Attributes:
        mean: mean over the images of (method − baseline), each averaged over seeds first.
        low: lower end of the 95 % bootstrap interval of the mean over images.
        high: upper end.
        by_seed: the mean difference for every seed that both have.
        images: how many there were.
        p: how likely a mean this far from zero is if signs are a matter of chance; see
            :func:`retina_lab.evaluate.sign_flip_p`.
    """

    mean: float
    low: float
    high: float
    by_seed: tuple[float, ...]
    images: int
    p: float

    def verdict(self, higher_is_better: bool = True) -> str:
        """``"better"``, ``"worse"`` or ``"not to be told apart"``.

        The interval speaks of other images and the seeds of other trainings: a difference
        counts if the interval lies on one side of zero *and* every seed does.
        """
        ends = (self.low, self.high, *self.by_seed)
        if all(value > 0 for value in ends):
            return "better" if higher_is_better else "worse"
        if all(value < 0 for value in ends):
            return "worse" if higher_is_better else "better"
        return "not to be told apart"


def paired_values(
    method: list[Scored], baseline: list[Scored], metric: str = "dice", region: str = "fov"
) -> pd.DataFrame:
    """method − baseline for every image (rows) and seed that both have (columns).

    If one of the two has no seed (an ensemble), there is one column: the difference of their
    means over seeds. Arguments as in :func:`difference`.
    """

    def by_seed(rows: list[Scored]) -> dict[int | None, pd.Series]:
        return {
            row.seed: pd.Series(
                {name: image[region][metric] for name, image in row.report.images.items()},
                dtype=float,
            )
            for row in rows
        }

    ours, theirs = by_seed(method), by_seed(baseline)
    if (None in ours or None in theirs) and ours and theirs:
        ours = {None: pd.DataFrame(ours).mean(axis=1)}
        theirs = {None: pd.DataFrame(theirs).mean(axis=1)}
    common = sorted(ours.keys() & theirs.keys(), key=str)
    return pd.DataFrame({seed: ours[seed] - theirs[seed] for seed in common})


def difference(
    method: list[Scored], baseline: list[Scored], metric: str = "dice", region: str = "fov"
) -> Difference | None:
    """Compare two methods over the test images of one dataset.

    Args:
        method: its seeds on these images.
        baseline: those of what it is compared with.
        metric: one of :data:`retina_lab.evaluate.METRICS`.
        region: ``"fov"`` or ``"all"``.

    Returns:
        The difference over the seeds that both have; over all of them if one of the two has no
        seed. None without common seeds, or if an image lacks the metric.
    """
    each = paired_values(method, baseline, metric, region)
    values = each.mean(axis=1, skipna=False).to_numpy()
    if not len(values) or np.isnan(values).any():
        return None
    mean, low, high = mean_with_interval(values)
    by_seed = tuple(each.mean().tolist())
    return Difference(mean, low, high, by_seed, len(values), sign_flip_p(values))


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values of several comparisons, adjusted so that all may be read together.

    The smallest of m is multiplied by m, the next by m − 1 and so on; none may be smaller than
    the one before it, or above 1. Rejecting below 5 % then makes one false claim or more in at
    most 5 % of all studies. Source: Holm 1979, a simple sequentially rejective multiple test
    procedure.

    Args:
        p_values: in [0, 1], in any order.

    Returns:
        The adjusted ones in the same order.

    Raises:
        ValueError: if one is not a probability.
    """
    if not all(0 <= p <= 1 for p in p_values):
        raise ValueError(f"p-values lie in [0, 1], not {list(p_values)}")
    order = np.argsort(p_values, kind="stable")
    adjusted, highest = [0.0] * len(order), 0.0
    for rank, index in enumerate(order):
        highest = max(highest, min(1.0, (len(order) - rank) * p_values[index]))
        adjusted[index] = float(highest)
    return adjusted


def paired(
    grid: str, dataset: str, model: str, baseline: str = BASELINE, metric: str = "dice"
) -> tuple[float, float, float] | None:
    """Mean difference of two networks of a grid over the test images of a dataset.

    Both trained on that dataset. Each image's value is first averaged over the seeds that both
    have.

    Returns:
        model − baseline, and the ends of its 95 % bootstrap interval over images; None if
        they have no seed in common.
    """
    rows = [row for row in scored(grid) if row.dataset == row.trained_on == dataset]
    found = difference(
        [row for row in rows if row.label == model],
        [row for row in rows if row.label == baseline],
        metric,
    )
    return None if found is None else (found.mean, found.low, found.high)


def groups(rows: Iterable[Scored]) -> dict[tuple[str, ...], list[Scored]]:
    """The seeds of each method, training and test set together, by :attr:`Scored.key`."""
    found: dict[tuple[str, ...], list[Scored]] = {}
    for row in rows:
        found.setdefault(row.key, []).append(row)
    return found


def by_test_images(rows: Iterable[Scored]) -> dict[str, list[Scored]]:
    """The methods on each set of test images that have learned from the same dataset.

    Returns:
        Rows by names such as ``"drive, official"``.

    Raises:
        ValueError: if there is none.
    """
    found: dict[str, list[Scored]] = {}
    for row in rows:
        if row.trained_on == row.dataset:
            found.setdefault(f"{row.dataset}, {row.split}", []).append(row)
    if not found:
        raise ValueError("there are no results to compare; see python -m retina_lab.benchmark run")
    return found


def against_baseline(
    rows: Iterable[Scored], metric: str = "dice"
) -> dict[tuple[str, ...], Difference]:
    """Every method against the baseline of the same training data, length and test images."""
    together = groups(rows)
    found = {}
    for key, seeds in together.items():
        others = together.get((BASELINE, *key[1:]))
        if others and key[0] != BASELINE:
            compared = difference(seeds, others, metric)
            if compared is not None:
                found[key] = compared
    return found


# --- Tables -----------------------------------------------------------------------------------


def shown(values: pd.Series, places: int = 4) -> str:
    """Median, and smallest and largest in brackets if there are several."""
    if values.isna().all():
        return "–"
    text = f"{values.median():.{places}f}"
    return text if len(values) == 1 else (
        f"{text} ({values.min():.{places}f}–{values.max():.{places}f})"
    )  # fmt: skip


def summary(rows: pd.DataFrame) -> pd.DataFrame:
    """Median and range over seeds, a row for each method, training, and test set."""
    keys = ["label", "trained_on", "length", "dataset", "split"]
    by_method = rows.groupby(keys, sort=False)
    table = by_method.agg(
        model=("model", "first"), parameters=("parameters", "first"), seeds=("dice", "size")
    )
    for name in ("dice", "auc_roc", "average_precision", "cldice", "betti0_error", "ece"):
        places = {"betti0_error": 1, "ece": 3}.get(name, 4)
        table[name] = by_method[name].agg(lambda values, places=places: shown(values, places))
    return table.reset_index()


def as_markdown(table: pd.DataFrame) -> str:
    """A frame of texts and numbers as a table in Markdown."""
    lines = ["| " + " | ".join(table.columns) + " |", "|---" * len(table.columns) + "|"]
    lines += ["| " + " | ".join(str(value) for value in row) + " |" for row in table.to_numpy()]
    return "\n".join(lines)


def _count(parameters: float) -> str:
    return "–" if pd.isna(parameters) else f"{int(parameters):,}"


def markdown_table(rows: pd.DataFrame) -> str:
    """The summary of a grid as a table in Markdown."""
    table = summary(rows)
    return as_markdown(
        pd.DataFrame(
            {
                "network": "`" + table["label"] + "`",
                "parameters": table["parameters"].map(_count),
                "trained on": table["trained_on"],
                "for": table["length"],
                "scored on": table["dataset"] + ", " + table["split"] + " test",
                "seeds": table["seeds"],
                "Dice": table["dice"],
                "AUC-ROC": table["auc_roc"],
                "clDice": table["cldice"],
                "Betti-0 error": table["betti0_error"],
            }
        )
    )


TABLE = (
    "small-unet", "equal-budget", "papers", "adversaries", "lwnet", "ensembles", "connected",
    "classical", "published",
)  # fmt: skip
"""The grids of the one table; training on one dataset to be tested on another is a matrix."""


def one_table(rows: list[Scored], dataset: str, split: str) -> str:
    """Every method on one set of test images, the best Dice first, in Markdown.

    Methods that were trained on another dataset are left out. The second observer has a row.
    """
    chosen = [
        row for row in rows if (row.dataset, row.split, row.trained_on) == (dataset, split, dataset)
    ]
    compared = against_baseline(chosen)
    table = summary(frame(chosen))
    median = frame(chosen).groupby(["label", "length"])["dice"].median()
    entries = []
    for row in table.itertuples():
        found = compared.get((row.label, row.trained_on, row.length, dataset, split))
        entries.append(
            {
                "order": median[row.label, row.length],
                "method": row.label,
                "parameters": _count(row.parameters),
                "trained for": row.length or "–",
                "seeds": row.seeds if row.length else "–",
                "Dice": row.dice,
                f"− {BASELINE}": "–"
                if found is None
                else f"{found.mean:+.4f} [{found.low:+.4f}, {found.high:+.4f}]",
                "AUC-ROC": row.auc_roc,
                "average precision": row.average_precision,
                "clDice": row.cldice,
                "Betti-0 error": row.betti0_error,
                "ECE": row.ece,
            }
        )
    observer = second_observers(chosen).get((dataset, split))
    if observer is not None:
        numbers = figures(observer)
        entries.append(
            dict.fromkeys(entries[0], "–")
            | {
                "order": numbers["dice"],
                "method": "**second human observer**",
                "Dice": f"{numbers['dice']:.4f}",
                "clDice": f"{numbers['cldice']:.4f}",
                "Betti-0 error": f"{numbers['betti0_error']:.1f}",
            }
        )
    entries.sort(key=lambda entry: -entry.pop("order"))
    return as_markdown(pd.DataFrame(entries))


def sentences(rows: list[Scored], metric: str = "dice") -> list[str]:
    """What the differences against the baseline are worth, in words.

    Only of methods that were trained on the data they are scored on, and in no other way than
    the baseline.

    Returns:
        A line in Markdown for each dataset and length of training.
    """
    chosen = [row for row in rows if row.dataset == row.trained_on]
    verdicts: dict[tuple[str, str], dict[str, list[str]]] = {}
    for (label, _, length, dataset, _), found in against_baseline(chosen, metric).items():
        said = verdicts.setdefault((dataset, length), {})
        seeds = "" if len(found.by_seed) > 1 else ", one seed"
        verdict = found.verdict(HIGHER_IS_BETTER[metric])
        said.setdefault(verdict, []).append(f"{label} ({found.mean:+.4f}{seeds})")
    lines = []
    for (dataset, length), said in verdicts.items():
        parts = [
            f"{verdict}: {', '.join(said[verdict]) if verdict in said else 'none'}"
            for verdict in ("better", "worse", "not to be told apart")
        ]
        lines.append(f"**{dataset}, {length}**, against {BASELINE}: {'; '.join(parts)}.")
    return lines


def matrix(rows: Iterable[Scored], metric: str = "dice") -> pd.DataFrame:
    """Trained on (rows) against tested on (columns): the median over seeds."""
    table = frame(rows)
    order = list(dict.fromkeys(table["trained_on"])), list(dict.fromkeys(table["dataset"]))
    pivot = table.pivot_table(metric, "trained_on", "dataset", aggfunc="median")
    return pivot.reindex(index=order[0], columns=order[1])


def claims_table(rows: list[Scored]) -> str:
    """The sources' own figures, beside ours for the same network where there are any."""
    ours = frame(rows)
    table = claims()
    known = {"dice": "Dice", "auc_roc": "AUC-ROC", "accuracy": "accuracy"}
    columns = {
        "method": table["method"],
        "dataset": table["dataset"],
        "scored on": table["scored_on"],
        "pixels": table["pixels"],
    }
    for name, heading in known.items():
        columns[heading] = table[name].map(lambda v: "–" if pd.isna(v) else f"{v:.4f}".rstrip("0"))
    columns["ours, Dice"] = [
        shown(found) if len(found := _of(ours, row.ours, row.dataset)) else "not run"
        for row in table.itertuples()
    ]
    return as_markdown(pd.DataFrame(columns))


def _of(rows: pd.DataFrame, model: str, dataset: str) -> pd.Series:
    """Dice of a network trained by its paper's settings, one a seed."""
    same = (rows["grid"] == "papers") & (rows["model"] == model) & (rows["adversary"] == "")
    return rows[same & (rows["dataset"] == dataset) & (rows["trained_on"] == dataset)]["dice"]


def between_markers(text: str, table: str, begin: str = BEGIN, end: str = END) -> str:
    """``text`` with the table between two markers.

    Raises:
        ValueError: if the markers are not there.
    """
    if begin not in text or end not in text:
        raise ValueError(f"the text lacks the markers {begin} and {end}")
    before, rest = text.split(begin, 1)
    return f"{before}{begin}\n{table}\n{end}{rest.split(end, 1)[1]}"


def marker(name: str) -> str:
    """The comment after which a part of the book's page stands."""
    return f"<!-- {name}: made by `python -m retina_lab.benchmark table` -->"


def page_parts() -> dict[str, str]:
    """What the book's page of results shows, by the name of its marker."""
    rows = scored(TABLE)
    parts = {}
    for test in dict.fromkeys((row.dataset, row.split) for row in rows):
        if any(row.dataset == row.trained_on for row in rows if (row.dataset, row.split) == test):
            parts[" ".join(test)] = one_table(rows, *test)
    tables = "\n\n".join(
        f"### {name.replace(' ', ', ')}\n\n{table}" for name, table in parts.items()
    )
    crossed = matrix(scored("cross-dataset"))
    nothing = "Nothing has been measured yet."
    return {
        "tables": tables or nothing,
        "verdicts": "\n".join(f"- {line}" for line in sentences(rows)) or nothing,
        "cross-dataset": nothing
        if crossed.empty
        else as_markdown(
            crossed.map(lambda v: "–" if pd.isna(v) else f"{v:.4f}")
            .rename_axis("trained on")
            .reset_index()
        ),
        "claims": claims_table(rows),
    }


def write_tables() -> None:
    """Write README's table, and the tables of the book's page of results, from the files."""
    root = project_root() or Path.cwd()
    readme, page = root / "README.md", root / "book" / "results.md"
    text = between_markers(readme.read_text(encoding="utf-8"), markdown_table(load("small-unet")))
    readme.write_text(text, encoding="utf-8")
    text = page.read_text(encoding="utf-8")
    for name, part in page_parts().items():
        text = between_markers(text, part, marker(name))
    page.write_text(text, encoding="utf-8")
