"""``python -m retina_lab.synthesis_grid``: the synthesis models that the course ships, judged.

``run`` trains the declared models one after the other and ships their generators; ``judge`` puts
each of them through every test of :mod:`retina_lab.judge`, with controls, and trains segmentation
networks on what they make; ``table`` writes the figures into the book. Each step leaves one file
in ``data/results/synthesis`` and is not repeated; a training that was stopped goes on.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from retina_lab import judge
from retina_lab.benchmark import rounded
from retina_lab.cli import forgive_streams
from retina_lab.datasets import open_dataset, open_split
from retina_lab.datasets.manifests import project_root
from retina_lab.datasets.phantom import make_phantom
from retina_lab.datasets.sample import FundusSample
from retina_lab.grids import length_of
from retina_lab.loop import versions, write_atomically
from retina_lab.models.vgg import load_vgg19
from retina_lab.pairs import TreePairs, as_vessels, make_pairs, pairs_with_trees
from retina_lab.results import between_markers
from retina_lab.sampling import draw_trees, make_samples, random_codes
from retina_lab.synthesis import BANNER, SynthesisRun, find_recipe, fit_synthesis
from retina_lab.weights import (
    find_synthesis,
    is_shipped,
    list_synthesis,
    load_shipped,
    ship_synthesis,
    shipped_for,
)

BEGIN = "<!-- synthesis: made by `python -m retina_lab.synthesis_grid table` -->"
END = "<!-- end -->"
FIRST_NEW_PHANTOM = 10_000
"""Seeds of the eyes that only synthesis learns from: none of the dataset ``phantom`` is among
them, so what is made can be judged on that one."""


@dataclass(frozen=True)
class Planned:
    """A synthesis model that the course trains and ships.

    Attributes:
        model: name in :data:`retina_lab.synthesis.SYNTHESIS`.
        data: ``"phantoms"`` (new ones), or (dataset, split) pairs whose training images serve.
        length: time budget such as ``"10m"``, or ``"200 epochs"``.
        trees: name of the shipped model whose trees it paints when it is judged.
        size: side in pixels.
        width: channels of the first layer.
        phantoms: how many new ones.
        recipe: what differs from the model's own recipe.
        batch_size: pairs a step.
        lr: learning rate at the start.
        seed: of the training.
        without: grades that are left out.
    """

    model: str
    data: str | tuple[tuple[str, str], ...]
    length: str
    trees: str | None = None
    size: int = 128
    width: int = 16
    phantoms: int = 600
    recipe: tuple[tuple[str, Any], ...] = ()
    batch_size: int = 8
    lr: float = 2e-4
    seed: int = 0
    without: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Name of the shipped weights, and of the folder of a run."""
        where = self.data if isinstance(self.data, str) else "-".join(d for d, _ in self.data)
        if self not in PAPERS:
            return f"{self.model}-{where}" + (f"-{self.size}" if self.size > 128 else "")
        latent = dict(self.recipe).get("latent")
        return f"{self.model}{f'-{latent}' if latent else ''}-{where}-{self.size}"

    @property
    def command(self) -> str:
        """What trains and ships it."""
        papers = " --papers" if self in PAPERS else ""
        return f"python -m retina_lab.synthesis_grid run{papers} --only {self.name}"


# BCE and not the report's L1: half of a thin vessel's pixels are uncertain, and the median of an
# uncertain pixel, which L1 asks for, is "no vessel".
TREES = (("reconstruction", "bce"), ("latent", 64))
REAL = (("chase_db1", "20/8"), ("hrf", "15/30"))
# Steps and not minutes, so that a slower computer makes the same: about 6,000 for each, half as
# many again for MI-GAN, whose judge moves every other time, and for the largest. Painters learn
# at five times the papers' rate, for want of time: at theirs, vessels stay pale for many hours.
# MI-GAN keeps its own rate: the weights of its noise, which it cannot hear while it learns, drift
# as far as the rate lets them, and at σ = 1 its paintings fell to pieces.
PLAN = (
    Planned("vae", "phantoms", "80 epochs", recipe=(("latent", 64),)),
    Planned("aae", "phantoms", "80 epochs", recipe=TREES),
    Planned("dual-aae", "phantoms", "80 epochs", recipe=TREES),
    Planned("refined-aae", "phantoms", "80 epochs", recipe=TREES, lr=4e-4),
    *(
        Planned(model, data, length, trees="refined-aae-phantoms", lr=rate)
        for model, data, length, rate in (
            ("pix2pix", "phantoms", "80 epochs", 1e-3),
            ("pix2pix-grade", "phantoms", "80 epochs", 1e-3),
            ("mi-gan", "phantoms", "120 epochs", 2e-4),
            ("pix2pix", REAL, "1200 epochs", 1e-3),
        )
    ),
    Planned("pix2pix-grade", "phantoms", "54 epochs", trees="refined-aae-phantoms", size=256,
            batch_size=4, lr=1e-3),
)  # fmt: skip


MESSIDOR = (("messidor", ""),)
HIDDEN = ("code_hidden", ())
# The sources' own sizes, widths and settings; hours each on a GPU. They are trained and kept in
# their folders, not shipped. Two things differ. The report leaves grades 3 and 4 of its trees out,
# of which Messidor has 3. And painters learn from four pairs a step where their sources take one:
# they paint by BatchNorm's running averages, which steps of one photograph do not teach.
PAPERS = (
    *(
        Planned(model, MESSIDOR, "2000 epochs", size=256, width=64, batch_size=30,
                recipe=(("latent", latent), HIDDEN), without=("3",))
        for model in ("aae", "aae-ls", "dual-aae")
        for latent in (16, 32, 64, 128, 256)
    ),
    Planned("vae", MESSIDOR, "2000 epochs", size=256, width=64, batch_size=30, without=("3",)),
    Planned("pix2pix", MESSIDOR, "200 epochs", size=256, width=64, batch_size=4),
    Planned("pix2pix-grade", "phantoms", "200 epochs", size=512, width=64, phantoms=2000,
            batch_size=4),
    Planned("end-to-end", MESSIDOR, "200 epochs", size=256, width=64, recipe=(HIDDEN,)),
    *(
        Planned(model, data, "2000 epochs", size=512, width=64, batch_size=4)
        for model in ("mi-gan", "mi-gan-style")
        for data in ((("drive", "official"),), (("stare", "10/10"),))
    ),
)  # fmt: skip


def results_folder() -> Path:
    """Where the judgements are kept."""
    return (project_root() or Path.cwd()) / "data" / "results" / "synthesis"


def new_phantoms(number: int, size: int) -> Iterator[FundusSample]:
    """Phantoms that are in no dataset, the same at every call."""
    for i in range(number):
        drawn = make_phantom(seed=FIRST_NEW_PHANTOM + i, size=2 * size)
        yield replace(drawn, dataset="phantoms")


def photographs(plan: Planned) -> Iterator[FundusSample]:
    """The photographs of people that a planned model learns from, one at a time."""
    for dataset, split in plan.data:
        samples = open_split(dataset, split).train if split else open_dataset(dataset)
        yield from (sample for sample in samples if str(sample.grade) not in plan.without)


@lru_cache(maxsize=1)
def phantom_pairs(number: int, size: int) -> TreePairs:
    """Pairs of :func:`new_phantoms`, drawn once: growing hundreds of eyes takes minutes."""
    return make_pairs(new_phantoms(number, size), size)


def training_pairs(plan: Planned) -> TreePairs:
    """What a planned model learns from; trees that nobody has drawn come from a network of ours."""
    if isinstance(plan.data, str):
        return phantom_pairs(plan.phantoms, plan.size)
    return pairs_with_trees(photographs(plan), plan.size, shipped_for(plan.data[0][0]))


def run_plan(plan: Planned, runs: Path, device: str = "auto") -> SynthesisRun | None:
    """Train one model, and ship it unless it is full-size; None if it was interrupted.

    What is shipped already, or finished in its folder, is not trained again.
    """
    if is_shipped(plan.name):
        return find_synthesis(plan.name)
    recipe = replace(find_recipe(plan.model), **dict(plan.recipe))
    folder = runs / plan.name
    # The papers' sizes are not worth hours beside a judge of random weights.
    judge = load_vgg19("imagenet" if plan in PAPERS else "auto") if recipe.style else None
    run = fit_synthesis(
        recipe, training_pairs(plan), **length_of(plan.length), seed=plan.seed, judge=judge,
        width=plan.width, batch_size=plan.batch_size, lr=plan.lr, out=folder, device=device,
        name=plan.model,
    )  # fmt: skip
    if run.interrupted:
        return None
    if plan not in PAPERS:
        ship_synthesis(plan.name, folder, plan.command)
    return run


# --- judging ---------------------------------------------------------------------------------


def judge_plan(
    plan: Planned,
    number: int = 100,
    budget: str = "60s",
    seeds: Sequence[int] = (0, 1, 2),
    device: str = "auto",
) -> dict[str, Any]:
    """Every test of :mod:`retina_lab.judge` for one shipped model.

    Args:
        plan: which.
        number: how many trees or photographs it makes for it.
        budget: of each segmentation network that is trained on what it makes.
        seeds: of those networks.
        device: see :func:`retina_lab.train.fit`.

    Returns:
        What is written to its file.
    """
    run, learned, shipped = find_synthesis(plan.name), training_pairs(plan), list_synthesis()
    report: dict[str, Any] = {
        "name": plan.name,
        "command": plan.command,
        "weights": shipped[plan.name]["sha256"],
        "number": number,
    }
    if run.recipe.makes == "trees":
        trees = draw_trees(run, random_codes(run, number, seed=1))[:, 0].numpy()
        report |= judge_trees(trees, learned, run.fov)
    else:
        maker = find_synthesis(plan.trees)
        report |= {"trees": plan.trees, "trees_weights": shipped[plan.trees]["sha256"]}
        # As many of each grade as among those it is compared with.
        grade = None
        if run.grades:
            chosen = np.random.default_rng(1).integers(len(learned), size=number)
            grade = [learned.grades[i] for i in chosen]
        made = make_samples(run, number, seed=1, trees=maker, grade=grade)
        report |= judge_photographs(made, learned)
        report["training"] = use_for_training(plan, made, budget, seeds, device)
    return {**report, "banner": BANNER, "versions": versions(), "cores": os.cpu_count()}


def judge_trees(trees: np.ndarray, learned: TreePairs, fov: np.ndarray) -> dict[str, Any]:
    """Statistics, novelty and variety of trees, (N, S, S) in [0, 1]."""
    made, real = as_vessels(trees), as_vessels(learned.tree[:, 0].numpy())
    fields = learned.fov[:, 0].numpy() > 0.5
    few = slice(2 * len(made))  # for one half to compare with, and one to compare that with
    statistics = judge.compare_trees(
        [(tree, fov) for tree in made],
        list(zip(real[few], fields[few], strict=True)),
        learned.subjects[few],
    )
    alarm, share = judge.mode_collapse(made, real[: len(made)])
    return {
        "statistics": statistics.round(6).T.to_dict(),
        "nearest": judge.nearness(made, real, learned.subjects),
        "variety": share,
        "mode_collapse": bool(alarm),
    }


def judge_photographs(made: list[FundusSample], learned: TreePairs) -> dict[str, Any]:
    """Nearness, variety, kernel distance and agreement of painted photographs."""
    # A network that has learned from other phantoms, and from nothing that was made up.
    network = judge.reader(load_shipped("small-unet-phantom"), learned.size)
    real = samples_of(learned)
    pictures = np.stack([s.image for s in made])
    known = np.stack([s.image for s in real])
    features, theirs = (judge.network_features(network, s) for s in (made, real))
    alarm, share = judge.mode_collapse(pictures, known[: len(pictures)])
    # One draw of two halves of a few photographs says little; the median of twenty does.
    between = [
        judge.kernel_distance(theirs[one], theirs[other])
        for one, other in (judge.halves(learned.subjects, seed) for seed in range(20))
    ]
    return {
        "nearest": judge.nearness(pictures, known, learned.subjects),
        "variety": share,
        "mode_collapse": bool(alarm),
        "kernel_distance": {
            "features": "small-unet-phantom, means of all levels",
            "made": judge.kernel_distance(features, theirs),
            "control": float(np.median(between)),
        },
        "agreement": {
            "made": judge.agreement({s.name: s.vessels for s in made}, made, network),
            "control": judge.agreement({s.name: s.vessels for s in real}, real, network),
        },
    }


def samples_of(pairs: TreePairs) -> list[FundusSample]:
    """Pairs as samples again, at their size."""
    images = (pairs.image.permute(0, 2, 3, 1) * 255).round().to(torch.uint8).numpy()
    return [
        FundusSample(
            name=name,
            image=images[i],
            fov=pairs.fov[i, 0].numpy() > 0.5,
            vessels=as_vessels(pairs.tree[i, 0].numpy()),
            dataset=pairs.dataset,
        )
        for i, name in enumerate(pairs.names)
    ]


def use_for_training(
    plan: Planned, made: list[FundusSample], budget: str, seeds: Sequence[int], device: str
) -> dict[str, Any]:
    """Train on synthetic, test on real: what made-up photographs are worth beside real ones.

    Three diets at the same time budget: the real training photographs, as many made-up ones as
    were made, and both. All are brought to the painter's size, the test photographs too, so that
    only the origin differs.

    Returns:
        For each diet the number of photographs, and the Dice on the test photographs by seed.
    """
    data = ("phantom", "official") if isinstance(plan.data, str) else plan.data[0]
    real, test = _at_size(*data, plan.size)
    diets = {"synthetic": made, "real + synthetic": [*real, *made]}
    return (
        dict(zip(("dataset", "split", "budget"), (*data, budget), strict=True))
        | _real_only(*data, plan.size, budget, tuple(seeds), device)
        | compare_diets(diets, test, budget, seeds, device)
    )


@lru_cache(maxsize=1)
def _at_size(dataset: str, split: str, size: int) -> tuple[list[FundusSample], list[FundusSample]]:
    both = open_split(dataset, split)
    real, test = (samples_of(make_pairs(part, size)) for part in (both.train, both.test))
    return real, test


@lru_cache
def _real_only(
    dataset: str, split: str, size: int, budget: str, seeds: tuple[int, ...], device: str
) -> dict[str, Any]:
    """The control, once for all painters that are judged on the same photographs."""
    real, test = _at_size(dataset, split, size)
    return compare_diets({"real": real}, test, budget, seeds, device)


def compare_diets(
    diets: Mapping[str, Sequence[FundusSample]],
    test: Sequence[FundusSample],
    budget: str,
    seeds: Sequence[int] = (0,),
    device: str = "auto",
) -> dict[str, Any]:
    """Train a segmentation network on each diet, for the same time, and test on the same images.

    Args:
        diets: labelled samples by name, all of one size.
        test: real photographs that no diet contains or was made from, of that size.
        budget: of each training.
        seeds: of the trainings.
        device: see :func:`retina_lab.train.fit`.

    Returns:
        For each diet ``photographs``, their number, and ``dice``, pooled over the test images in
        the field of view at a threshold chosen on the diet, by seed; None if the diet holds not
        one vessel pixel, from which nothing can be learned.

    Raises:
        KeyboardInterrupt: if a training was stopped; a part of it must not be scored.
    """
    from retina_lab.evaluate import evaluate_maps
    from retina_lab.predict import predict_dataset
    from retina_lab.train import fit

    found: dict[str, Any] = {}
    for diet, samples in diets.items():
        scores: dict[str, float | None] = dict.fromkeys(map(str, seeds))
        # One name for all: the network is at home with its whole diet, and so is its threshold.
        one_origin = [replace(s, dataset="diet") for s in samples]
        anything = any((s.vessels & s.fov).any() for s in samples)
        for seed in seeds if anything else ():
            run = fit(
                "small-unet", one_origin, budget=budget, seed=seed, crop=min(96, *test[0].size),
                device=device, progress=False,
            )  # fmt: skip
            if run.interrupted:
                raise KeyboardInterrupt
            maps = predict_dataset(run, test, tta=True, device=device)
            report = evaluate_maps(
                test, maps, threshold=run.threshold, threshold_from=run.threshold_from, bootstrap=0
            )
            scores[str(seed)] = report.fov["dice"]["pooled"]
        found[diet] = {"photographs": len(samples), "dice": scores}
    return found


def judge_all(only: str = "", **settings) -> tuple[list[str], list[str]]:
    """Judge every shipped model of the plan that has no file yet, or one of other weights.

    Returns:
        The names of those that were judged, and of those that could not be, each with the reason.
    """
    folder = results_folder()
    folder.mkdir(parents=True, exist_ok=True)
    done, failed = [], []
    for plan in PLAN:
        path = folder / f"{plan.name}.json"
        if only not in plan.name or plan.name not in list_synthesis() or is_judged(plan):
            continue
        print(f"judging {plan.name}", flush=True)
        try:
            report = plain(rounded(judge_plan(plan, **settings)))
        except (ValueError, RuntimeError, OSError) as error:
            failed.append(f"{plan.name}: {error}")
            continue
        text = json.dumps(report, ensure_ascii=False, allow_nan=False) + "\n"
        write_atomically(path, lambda partial, text=text: partial.write_text(text, "utf-8"))
        done.append(plan.name)
    return done, failed


def is_judged(plan: Planned) -> bool:
    """Whether the plan's file is there and speaks of the weights that are shipped now."""
    path = results_folder() / f"{plan.name}.json"
    if not path.exists():
        return False
    report, shipped = json.loads(path.read_text(encoding="utf-8")), list_synthesis()
    return all(
        name is None or report.get(key) == shipped.get(name, {}).get("sha256")
        for key, name in (("weights", plan.name), ("trees_weights", plan.trees))
    )


def plain(value: Any) -> Any:
    """NaN and infinity as None, for JSON has neither; what cannot be measured is shown as "–"."""
    if isinstance(value, Mapping):
        return {key: plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def load() -> list[dict[str, Any]]:
    """The judgements that there are, in the plan's order."""
    paths = [results_folder() / f"{plan.name}.json" for plan in PLAN]
    return [json.loads(p.read_text(encoding="utf-8")) for p in paths if p.exists()]


def tables(reports: list[dict[str, Any]]) -> str:
    """All judgements as Markdown: trees, photographs, and what they are worth for training."""
    parts = []
    trees = [r for r in reports if "statistics" in r]
    if trees:
        first = trees[0]["statistics"]
        columns = {
            "real": {name: _against(row, "real", "control", 3) for name, row in first.items()}
        } | {
            r["name"]: {
                name: _against(row, "made", "distance", 3) for name, row in r["statistics"].items()
            }
            for r in trees
        }
        parts.append(_markdown(pd.DataFrame(columns), "mean (distance)"))
    rows = {
        r["name"]: {
            "nearest neighbour": _against(r["nearest"]),
            "variety": f"{r['variety']:.2f}" + (" **alarm**" if r["mode_collapse"] else ""),
            "kernel distance": _against(r.get("kernel_distance")),
            "agreement": _against(r.get("agreement")),
        }
        for r in reports
    }
    if rows:
        parts.append(_markdown(pd.DataFrame(rows).T, "model (control in brackets)"))
    trained = [r["training"] for r in reports if "training" in r]
    diets = {
        r["name"]: {"tested on": r["training"]["dataset"]}
        | {
            head: _spread(r["training"][diet])
            for diet, head in {
                "real": "its photographs",
                "synthetic": "made-up ones",
                "real + synthetic": "both",
            }.items()
        }
        for r in reports
        if "training" in r
    }
    if diets:
        parts.append(_markdown(pd.DataFrame(diets).T, "painter; test Dice after learning from"))
        first = sum(_median(t["real"]) > _median(t["synthetic"]) for t in trained)
        all_alone = sum(_median(t["real"]) > _median(t["real + synthetic"]) for t in trained)
        parts.append(
            f"By medians, real photographs alone taught more than made-up ones in {first} of "
            f"{len(trained)} rows, and more than the mixture of both in {all_alone}."
        )
    return "\n\n".join(parts)


def _against(
    entry: Mapping | None, made: str = "made", control: str = "control", digits: int = 3
) -> str:
    """A figure with its control in brackets."""
    if entry is None or entry[made] is None:
        return "–"
    beside = "–" if entry[control] is None else f"{entry[control]:.{digits - 1}g}"
    return f"{entry[made]:.{digits}g} ({beside})"


def _scores(diet: Mapping[str, Any]) -> list[float]:
    return [score for score in diet["dice"].values() if score is not None]


def _median(diet: Mapping[str, Any]) -> float:
    """Over the seeds; nothing was learned from a diet without vessels."""
    return float(np.median(_scores(diet) or [0.0]))


def _spread(diet: Mapping[str, Any]) -> str:
    """Median and range over the seeds, and the number of photographs."""
    scores = _scores(diet)
    if not scores:
        return "–"
    return f"{_median(diet):.4f} ({min(scores):.4f}–{max(scores):.4f}; n = {diet['photographs']})"


def _markdown(frame: pd.DataFrame, corner: str) -> str:
    lines = [f"| {corner} | " + " | ".join(map(str, frame.columns)) + " |"]
    lines.append("|---" * (1 + len(frame.columns)) + "|")
    lines += [f"| {name} | " + " | ".join(row) + " |" for name, row in frame.iterrows()]
    return "\n".join(lines)


def named(only: str, plans: Sequence[Planned]) -> list[Planned]:
    """Those of the plans whose name contains ``only``.

    Raises:
        ValueError: if there is none.
    """
    chosen = [plan for plan in plans if only in plan.name]
    if not chosen:
        names = ", ".join(plan.name for plan in plans)
        raise ValueError(f"no model is called like {only!r}; there are: {names}")
    return chosen


def chosen_plans(only: str = "", papers: bool = False) -> list[Planned]:
    """The planned models whose name contains ``only``.

    Raises:
        ValueError: if there is none.
        DatasetError: if what one of them learns from is not here.
    """
    chosen = named(only, PAPERS if papers else PLAN)
    for plan in chosen:
        for dataset, _ in () if isinstance(plan.data, str) else plan.data:
            open_dataset(dataset)  # rather now than after hours
    return chosen


def main(argv: list[str] | None = None) -> int:
    """Train, judge, or write the table; returns the exit status."""
    forgive_streams()
    parser = argparse.ArgumentParser(
        prog="python -m retina_lab.synthesis_grid", description=__doc__
    )
    verbs = parser.add_subparsers(dest="verb", required=True)
    for verb, text in {"run": "train and ship what is planned", "judge": "judge it"}.items():
        one = verbs.add_parser(verb, help=text)
        one.add_argument("--only", default="", help="models whose name contains this")
        one.add_argument("--device", default="auto")
        if verb == "run":
            one.add_argument("--runs", type=Path, default=Path("runs"), help="folder for the runs")
            one.add_argument(
                "--papers", action="store_true", help="the full-size ones, which want a GPU"
            )
    verbs.add_parser("table", help="write the judgements into book/synthesis.md")
    args = parser.parse_args(argv)
    failed: list[str] = []
    try:
        if args.verb == "run":
            for plan in chosen_plans(args.only, args.papers):
                print(plan.name, flush=True)
                try:
                    if run_plan(plan, args.runs, args.device) is None:
                        raise KeyboardInterrupt
                except (ValueError, RuntimeError, OSError) as error:
                    failed.append(f"{plan.name}: {error}")
        elif args.verb == "judge":
            named(args.only, PLAN)
            done, failed = judge_all(args.only, device=args.device)
            print(f"judged: {', '.join(done) or 'nothing that was not judged before'}")
        else:
            write_page()
    except KeyboardInterrupt:
        print("stopped; give the same command to go on", file=sys.stderr)
        return 130
    except ValueError as error:
        failed.append(str(error))
    for line in failed:
        print(line, file=sys.stderr)
    return 1 if failed else 0


def write_page() -> None:
    """Put the judgements into ``book/synthesis.md``.

    Raises:
        ValueError: if there are none.
    """
    reports = load()
    if not reports:
        raise ValueError("nothing is judged yet; run: python -m retina_lab.synthesis_grid judge")
    page = project_root() / "book" / "synthesis.md"
    text = between_markers(page.read_text(encoding="utf-8"), tables(reports), BEGIN, END)
    page.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
