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

from retina_lab import metrics
from retina_lab.datasets.manifests import project_root
from retina_lab.evaluate import METRICS, Report, by_person, mean_with_interval, sign_flip_p
from retina_lab.grids import GRIDS, baseline_of, results_folder

BASELINE = "small-unet"
"""What the course's networks are compared with: the plainest of their size."""

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
        length: of its training, in words; "" if nothing was trained. "3 × 5 min" if there were
            three.
        one_length: of a single one of its trainings.
        dataset: whose test images were scored.
        split: of that dataset.
        result: the whole file.
        report: of these test images.
    """

    grid: str
    kind: str
    label: str
    length: str
    one_length: str
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
    """Every method, seed and test set of some grids.

    Args:
        grids: names in ``GRIDS``, or one.
    """
    grids = [grids] if isinstance(grids, str) else list(grids)
    found = []
    for grid in grids:
        for result in read_cells(grid):
            one = _length(result["settings"])
            members = len(result["settings"].get("members", [0]))
            length = f"{members} × {one}" if members > 1 else one
            for test, report in result["reports"].items():
                dataset, split = test.rsplit(" ", 1)  # a folder's path may hold spaces
                kind = result.get("kind", "network")
                found.append(
                    Scored(
                        grid, kind, _label(result), length, one, dataset, split, result,
                        Report(**report),
                    )
                )  # fmt: skip
    return found


def unique(rows: Iterable[Scored]) -> list[Scored]:
    """Each recipe with each seed once: two grids may hold the same one. The first grid's stays."""
    found: dict[tuple, Scored] = {}
    for row in rows:
        found.setdefault((*row.key, row.seed), row)
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
        ``threshold``, ``dice_low`` and ``dice_high`` (95 % bootstrap interval over persons), and
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
        A frame with ``method``, ``ours`` (its name in ``retina-lab models``), ``adversary`` (that
        it was trained against), ``cite`` (key in the bibliography), ``dataset``, ``split`` (ours
        that comes closest), ``scored_on``, ``pixels``, ``dice``, ``auc_roc``,
        ``auc_pr``, ``sensitivity``, ``specificity``, ``accuracy``; NaN where nothing is said.
    """
    root = project_root() or Path.cwd()
    return pd.read_csv(root / "data" / "results" / "claims.csv")


# --- Differences ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Difference:
    """What a method is better than another one, image by image.

    Attributes:
        mean: mean over persons of (method − baseline), each averaged over its seeds first.
        low: lower end of the 95 % bootstrap interval of the mean over persons.
        high: upper end.
        p: how likely a mean this far from zero is if signs are a matter of chance; see
            :func:`retina_lab.evaluate.sign_flip_p`.
        persons: how many there are.
        ours: mean over the images for each seed of the method.
        theirs: the same for the baseline.
        by_seed: differences between equal seeds, if both are the same trained networks, treated
            in two ways; empty otherwise.
    """

    mean: float
    low: float
    high: float
    p: float
    persons: int
    ours: tuple[float, ...]
    theirs: tuple[float, ...]
    by_seed: tuple[float, ...] = ()

    @property
    def one_seed(self) -> bool:
        """Whether one of the two was trained once only, so that nothing is known of seeds."""
        return min(len(self.ours), len(self.theirs)) == 1

    def verdict(self, higher_is_better: bool = True) -> str:
        """``"better"``, ``"worse"`` or ``"not to be told apart"``.

        The interval speaks of other persons and the seeds of other trainings: a difference
        counts if the interval lies on one side of zero *and* every seed of one is better than
        every seed of the other. Seeds are not paired, for the same number starts different
        networks with different weights; unless they are the very same trained networks: then
        every seed must differ in the same direction.
        """
        seeds = self.by_seed or tuple(a - b for a in self.ours for b in self.theirs)
        above = self.low > 0 and min(seeds) > 0
        below = self.high < 0 and max(seeds) < 0
        if not above and not below:
            return TIE
        return "better" if above == higher_is_better else "worse"


def by_image(rows: Iterable[Scored], metric: str = "dice", region: str = "fov") -> pd.DataFrame:
    """A metric of every test image (rows) for every seed of a method (columns).

    Args:
        rows: the seeds of one method on one set of test images.
        metric: one of :data:`retina_lab.evaluate.METRICS`.
        region: ``"fov"`` or ``"all"``.
    """
    return pd.DataFrame(
        {
            index: {name: image[region][metric] for name, image in row.report.images.items()}
            for index, row in enumerate(rows)
        },
        dtype=float,
    )


def _networks(row: Scored) -> tuple[str, ...]:
    """Digests of the trained networks behind a row; empty where nothing was trained."""
    told = row.result.get("training", [])
    return tuple(one["weights"] for one in (told if isinstance(told, list) else [told]))


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
        The difference of their means over seeds; None if one has none, or an image lacks the
        metric.

    Raises:
        ValueError: if they were scored on different images.
    """
    if not method or not baseline:
        return None
    ours, theirs = by_image(method, metric, region), by_image(baseline, metric, region)
    if set(ours.index) != set(theirs.index):
        raise ValueError(f"{method[0].label} and {baseline[0].label} saw different images")
    each = ours.mean(axis=1, skipna=False) - theirs.mean(axis=1, skipna=False)
    if not len(each) or each.isna().any():
        return None
    values = by_person(each.to_dict(), method[0].report.images)
    mean, low, high = mean_with_interval(values)
    of_these = {
        _networks(row): value
        for row, value in zip(baseline, theirs.mean(), strict=True)
        if _networks(row)
    }
    treated = [
        value - of_these[_networks(row)]
        for row, value in zip(method, ours.mean(), strict=True)
        if _networks(row) in of_these
    ]
    return Difference(
        mean, low, high, sign_flip_p(values), len(values), tuple(ours.mean().tolist()),
        tuple(theirs.mean().tolist()), tuple(treated) if len(treated) == len(method) else (),
    )  # fmt: skip


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


def with_baseline(
    rows: Iterable[Scored],
) -> dict[tuple[str, ...], tuple[list[Scored], list[Scored]]]:
    """Every method with the baseline of its grid, trained on the same images.

    The baseline is the grid's own where it has one, so that both come from one machine, else
    that of another grid with the same length of a single training. Full-size networks are
    trained by their sources' settings, so there lengths differ.

    Returns:
        (seeds of the method, seeds of its baseline) by :attr:`Scored.key`, from the first grid
        that has the method.
    """
    rows = list(rows)
    by_grid: dict[str, list[Scored]] = {}
    for row in rows:
        by_grid.setdefault(row.grid, []).append(row)
    found: dict[tuple[str, ...], tuple[list[Scored], list[Scored]]] = {}
    for grid, own in by_grid.items():
        for key, seeds in groups(own).items():
            wanted = baseline_of(grid, key[0])
            if key[0] != wanted and key not in found:
                others = _trained_alike(own, seeds[0], wanted, any_length=grid == "papers")
                others = others or _trained_alike(unique(rows), seeds[0], wanted)
                if others:
                    found[key] = seeds, others
    return found


def against_baseline(
    rows: Iterable[Scored], metric: str = "dice"
) -> dict[tuple[str, ...], Difference]:
    """What every method is better than its baseline; see :func:`with_baseline`."""
    found = {key: difference(*pair, metric) for key, pair in with_baseline(rows).items()}
    return {key: compared for key, compared in found.items() if compared is not None}


def comparison(
    pairs: Iterable[tuple[list[Scored], list[Scored]]], metric: str = "dice"
) -> pd.DataFrame:
    """Differences as a table, a row a pair.

    Args:
        pairs: (seeds of a method, seeds of what it is compared with), each pair on one set of test
            images; pairs without a difference are left out.
        metric: one of :data:`retina_lab.evaluate.METRICS`.

    Returns:
        A frame with ``dataset``, ``split``, ``method``, ``against``, ``length``, ``difference``,
        ``low`` and ``high`` (95 % interval over persons), ``p``, ``adjusted p`` (Holm, over the
        pairs on the same test images), ``seeds`` (of both) and ``verdict``.
    """
    found = [(ours, theirs, difference(ours, theirs, metric)) for ours, theirs in pairs]
    found = [(ours[0], theirs[0], d) for ours, theirs, d in found if d is not None]
    adjusted: dict[int, float] = {}
    sizes: dict[int, int] = {}
    for test in dict.fromkeys((one.dataset, one.split) for one, _, _ in found):
        family = [i for i, (one, _, _) in enumerate(found) if (one.dataset, one.split) == test]
        adjusted |= zip(family, holm([found[i][2].p for i in family]), strict=True)
        sizes |= dict.fromkeys(family, len(family))
    lines = [
        {
            "dataset": one.dataset,
            "split": one.split,
            "method": one.label,
            "against": other.label,
            "length": one.length,
            "difference": d.mean,
            "low": d.low,
            "high": d.high,
            "p": d.p,
            "adjusted p": adjusted[index],
            "seeds": f"{len(d.ours)} : {len(d.theirs)}",
            "verdict": _verdict(d, adjusted[index], metric, sizes[index]),
        }
        for index, (one, other, d) in enumerate(found)
    ]
    columns = [
        "dataset", "split", "method", "against", "length", "difference", "low", "high", "p",
        "adjusted p", "seeds", "verdict",
    ]  # fmt: skip
    return pd.DataFrame(lines, columns=columns)


TIE = "not to be told apart"
TOO_FEW = "too few persons to tell"


def _verdict(found: Difference, adjusted: float, metric: str, family: int = 1) -> str:
    """In words: interval, seeds and p-value must all speak for a difference.

    ``family`` is the number of comparisons among which it stands.
    """
    if family * 2 / 2**found.persons >= 0.05:  # the smallest p there can be: all persons agree
        return TOO_FEW
    verdict = found.verdict(HIGHER_IS_BETTER[metric])
    if verdict == TIE or adjusted >= 0.05:
        return TIE
    return f"{verdict}, one seed" if found.one_seed else verdict


def compare(
    rows: Iterable[Scored], pairs: Sequence[tuple[str, str]], metric: str = "dice"
) -> pd.DataFrame:
    """Named methods against named others, on every dataset that both were trained and tested on.

    Args:
        rows: of one grid.
        pairs: (label of a method, label of what it is compared with).
        metric: one of :data:`retina_lab.evaluate.METRICS`.

    Returns:
        See :func:`comparison`.
    """
    by_method: dict[tuple[str, ...], list[Scored]] = {}
    for row in rows:
        if row.dataset == row.trained_on:
            key = (row.dataset, row.split, row.one_length, row.label)
            by_method.setdefault(key, []).append(row)
    places = dict.fromkeys(key[:3] for key in by_method)
    return comparison(
        (
            (by_method.get((*place, label), []), by_method.get((*place, other), []))
            for place in places
            for label, other in pairs
        ),
        metric,
    )


def _trained_alike(
    rows: Iterable[Scored], like: Scored, label: str, any_length: bool = False
) -> list[Scored]:
    """The seeds of another method on the same images, after the same length of training."""
    return [
        row
        for row in rows
        if row.label == label
        and (row.trained_on, row.dataset, row.split) == (like.trained_on, like.dataset, like.split)
        and (any_length or row.one_length == like.one_length != "")
    ]


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


CROSSED = ("cross-dataset", "cross-dataset-hrf")
"""Grids whose rows say what a network is worth on other cameras' photographs."""

TABLE = (
    "small-unet", "equal-budget", "papers", "adversaries", "lwnet", "ensembles", "connected",
    "classical", "published", *CROSSED,
)  # fmt: skip
"""The grids of the one table, which shows what was tested on the dataset that it learned from."""


def _at_best(published: Scored | None) -> str:
    """What the best threshold on the test images themselves would give published maps."""
    if published is None:
        return ""
    if published.report.histograms is None:
        return "†"
    counts = metrics.counts_at_levels(published.report.histogram())
    best = np.nanmax(metrics.dice(counts))
    return f"† (at best {best:.4f})"


def one_table(rows: list[Scored], dataset: str, split: str) -> str:
    """Every method on one set of test images, the best Dice first, in Markdown.

    Methods that were trained on another dataset are left out. The second observer has a row.
    """
    chosen = [
        row for row in rows if (row.dataset, row.split, row.trained_on) == (dataset, split, dataset)
    ]
    compared = against_baseline(chosen)
    published = {row.label: row for row in chosen if row.kind == "published"}
    chosen = unique(chosen)
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
                "Dice": row.dice + _at_best(published.get(row.label)),
                "− baseline": "–"
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
                "method": "**second observer, simulated**"
                if dataset == "phantom"
                else "**second human observer**",
                "Dice": f"{numbers['dice']:.4f}",
                "clDice": f"{numbers['cldice']:.4f}",
                "Betti-0 error": f"{numbers['betti0_error']:.1f}",
            }
        )
    entries.sort(key=lambda entry: -entry.pop("order"))
    return as_markdown(pd.DataFrame(entries))


def sentences(rows: list[Scored], metric: str = "dice") -> list[str]:
    """What the differences against the baseline are worth, in words.

    Only of methods that were trained on the data they are scored on. Besides interval and seeds
    the p-value must hold, after Holm's rule over all that were compared on these test images.

    Returns:
        A line in Markdown for each dataset and length of training.
    """
    chosen = [row for row in rows if row.dataset == row.trained_on]
    pairs = with_baseline(chosen).values()
    table = comparison(pairs, metric)
    persons = {}
    for ours, _ in pairs:
        images = ours[0].report.images.values()
        persons[ours[0].dataset, ours[0].split] = len({image["person"] for image in images})
    lines = []
    for (dataset, split, length), group in table.groupby(
        ["dataset", "split", "length"], sort=False
    ):
        parts = []
        for verdict in VERDICTS:
            those = group[group["verdict"] == verdict]
            names = [f"{row.method} ({row.difference:+.4f})" for row in those.itertuples()]
            parts += [f"{verdict}: {', '.join(names)}"] if names else []
        where = f"{dataset} {split}, {length}"
        lines.append(f"**{where}**, {persons[dataset, split]} persons: {'; '.join(parts)}.")
    return lines


VERDICTS = ("better", "worse", "better, one seed", "worse, one seed", TIE, TOO_FEW)


def matrix(rows: Iterable[Scored], metric: str = "dice") -> pd.DataFrame:
    """Trained on (rows) against tested on (columns): the median over seeds."""
    table = frame(rows)
    order = list(dict.fromkeys(table["trained_on"])), list(dict.fromkeys(table["dataset"]))
    pivot = table.pivot_table(metric, "trained_on", "dataset", aggfunc="median")
    return pivot.reindex(index=order[0], columns=order[1])


def claims_table(rows: list[Scored]) -> str:
    """The sources' own figures, beside ours for the same network where there are any."""
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
    columns["ours, Dice"] = [_ours(rows, row) for row in table.itertuples()]
    return as_markdown(pd.DataFrame(columns))


def _ours(rows: Iterable[Scored], claim: Any) -> str:
    """Our Dice for a claim: same network, opponent, split and pixels, by its paper's settings."""
    label = claim.ours if pd.isna(claim.adversary) else f"{claim.ours} vs {claim.adversary}"
    region = "all" if claim.pixels == "all" else "fov"
    values = [
        figures(getattr(row.report, region))["dice"]
        for row in rows
        if (row.grid, row.label) == ("papers", label)
        and row.trained_on == row.dataset == claim.dataset
        and row.split == claim.split
    ]
    return shown(pd.Series(values)) if values else "not run"


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


def progress() -> pd.DataFrame:
    """How many trainings and measurements of each declared grid have a file.

    Returns:
        One row a grid, in the order of ``GRIDS``: its name, how many files, of how many.
    """
    return pd.DataFrame(
        {
            "grid": name,
            "done": sum((results_folder(name) / f"{cell.name}.json").is_file() for cell in cells),
            "of": len(cells),
        }
        for name, cells in GRIDS.items()
    )


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
    crossed = matrix(scored(CROSSED))
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
        "progress": as_markdown(progress()),
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
