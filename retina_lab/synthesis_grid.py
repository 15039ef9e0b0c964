"""``python -m retina_lab.synthesis_grid``: the synthesis models that the course ships, judged.

``run`` trains the declared models one after the other and ships their generators; ``judge`` puts
each of them through every test of :mod:`retina_lab.judge`, with controls, and trains segmentation
networks on what they make; ``table`` writes the figures into the book. Each step leaves one file
in ``data/results/synthesis`` and is not repeated; a training that was stopped goes on.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from retina_lab import judge
from retina_lab.benchmark import rounded
from retina_lab.datasets import open_dataset, open_split
from retina_lab.datasets.manifests import project_root
from retina_lab.datasets.phantom import make_phantom
from retina_lab.datasets.sample import FundusSample
from retina_lab.grids import length_of
from retina_lab.loop import RECORD, versions, write_atomically
from retina_lab.models.vgg import load_vgg19
from retina_lab.pairs import TreePairs, make_pairs, segmented_trees
from retina_lab.results import between_markers
from retina_lab.sampling import draw_trees, make_samples, random_codes
from retina_lab.synthesis import BANNER, SynthesisRun, find_recipe, fit_synthesis, load_synthesis
from retina_lab.weights import (
    find_synthesis,
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
        seed: of the training.
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
    seed: int = 0

    @property
    def name(self) -> str:
        """Name of the shipped weights, and of the folder of a run."""
        where = self.data if isinstance(self.data, str) else "-".join(d for d, _ in self.data)
        if self not in PAPERS:
            return f"{self.model}-{where}"
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
PLAN = (
    Planned("vae", "phantoms", "5m", recipe=(("latent", 64),)),
    Planned("aae", "phantoms", "12m", recipe=TREES),
    Planned("dual-aae", "phantoms", "12m", recipe=TREES),
    Planned("pix2pix", "phantoms", "12m", trees="dual-aae-phantoms"),
    Planned("pix2pix-grade", "phantoms", "12m", trees="dual-aae-phantoms"),
    Planned("mi-gan", "phantoms", "12m", trees="dual-aae-phantoms"),
    Planned("pix2pix", REAL, "12m", trees="dual-aae-phantoms"),
)


MESSIDOR = (("messidor", ""),)
# The sources' own sizes, widths and settings; hours each on a GPU. They are trained and kept in
# their folders, not shipped.
PAPERS = (
    *(
        Planned(model, MESSIDOR, "2000 epochs", size=256, width=64, batch_size=30,
                recipe=(("latent", latent), ("code_hidden", ())))
        for model in ("aae", "aae-ls", "dual-aae")
        for latent in (16, 32, 64, 128, 256)
    ),
    Planned("vae", MESSIDOR, "2000 epochs", size=256, width=64, batch_size=30),
    Planned("pix2pix", MESSIDOR, "200 epochs", size=256, width=64, batch_size=1),
    Planned("pix2pix-grade", "phantoms", "200 epochs", size=512, width=64, phantoms=2000,
            batch_size=1),
    Planned("end-to-end", MESSIDOR, "200 epochs", size=256, width=64),
    *(
        Planned(model, data, "2000 epochs", size=512, width=64, batch_size=1)
        for model in ("mi-gan", "mi-gan-style")
        for data in ((("drive", "official"),), (("stare", "10/10"),))
    ),
)  # fmt: skip


def results_folder() -> Path:
    """Where the judgements are kept."""
    return (project_root() or Path.cwd()) / "data" / "results" / "synthesis"


def new_phantoms(number: int, size: int) -> list[FundusSample]:
    """Phantoms that are in no dataset, the same at every call."""
    return [
        replace(make_phantom(seed=FIRST_NEW_PHANTOM + i, size=2 * size), dataset="phantoms")
        for i in range(number)
    ]


def training_pairs(plan: Planned) -> TreePairs:
    """What a planned model learns from; trees that nobody has drawn come from a network of ours."""
    if isinstance(plan.data, str):
        return make_pairs(new_phantoms(plan.phantoms, plan.size), plan.size)
    samples = [
        sample
        for dataset, split in plan.data
        for sample in (open_split(dataset, split).train if split else open_dataset(dataset))
    ]
    if all(sample.vessels is not None for sample in samples):
        return make_pairs(samples, plan.size)
    network = shipped_for(plan.data[0][0])
    source = f"{network.settings['model']} trained on {network.settings['dataset']}"
    return make_pairs(samples, plan.size, segmented_trees(network, samples), source)


def run_plan(plan: Planned, runs: Path, device: str = "auto") -> SynthesisRun | None:
    """Train one model, and ship it unless it is full-size; None if it was interrupted.

    What is shipped already, or finished in its folder, is not trained again.
    """
    if plan.name in list_synthesis():
        return find_synthesis(plan.name)
    folder = runs / plan.name
    run = load_synthesis(folder) if (folder / RECORD).exists() else None
    if run is None or run.interrupted:
        recipe = replace(find_recipe(plan.model), **dict(plan.recipe))
        judge = load_vgg19() if recipe.style else None
        run = fit_synthesis(
            recipe, training_pairs(plan), **length_of(plan.length), seed=plan.seed, judge=judge,
            width=plan.width, batch_size=plan.batch_size, out=folder, device=device,
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
    run, learned = find_synthesis(plan.name), training_pairs(plan)
    report: dict[str, Any] = {"name": plan.name, "command": plan.command, "number": number}
    if run.recipe.makes == "trees":
        trees = draw_trees(run, random_codes(run, number, seed=1))[:, 0].numpy()
        report |= judge_trees(trees, learned, run.fov)
    else:
        source = find_synthesis(plan.trees)
        made = make_samples(run, number, seed=1, trees=source)
        report |= judge_photographs(made, learned)
        report["training"] = use_for_training(plan, made, budget, seeds, device)
    return {**report, "banner": BANNER, "versions": versions(), "cores": os.cpu_count()}


def judge_trees(trees: np.ndarray, learned: TreePairs, fov: np.ndarray) -> dict[str, Any]:
    """Statistics, novelty and variety of trees, (N, S, S) in [0, 1]."""
    real = learned.tree[:, 0].numpy()
    made = [(tree >= 0.5, fov) for tree in trees]
    known = [(tree >= 0.5, f[0].numpy() > 0.5) for tree, f in zip(real, learned.fov, strict=True)]
    known = known[: len(made)]
    alarm, share = judge.mode_collapse(trees, real[: len(trees)])
    return {
        "statistics": judge.compare_trees(made, known).round(6).T.to_dict(),
        "nearest": nearness(trees, real),
        "variety": share,
        "mode_collapse": bool(alarm),
    }


def nearness(made: np.ndarray, known: np.ndarray) -> dict[str, float]:
    """Median distance of what is made to the nearest of the known, beside a control.

    The control is the distance of known ones to the nearest *other* known one. Copies would lie
    much closer.
    """
    half = len(known) // 2
    _, distance = judge.nearest(made, known)
    _, control = judge.nearest(known[:half][: len(made)], known[half:])
    return {"made": float(np.median(distance)), "control": float(np.median(control))}


def judge_photographs(made: list[FundusSample], learned: TreePairs) -> dict[str, Any]:
    """Nearness, variety, kernel distance and agreement of painted photographs."""
    # A network that has seen none of these pictures and no synthetic one.
    network = load_shipped("small-unet-phantom")
    # It reads the squares as they are: blown up to its own scale they agreed less with their
    # labels, the real ones too.
    network.settings["fov_width"] = None
    real = samples_of(learned)
    pictures = np.stack([s.image for s in made])
    known = np.stack([s.image for s in real])
    features, theirs = (judge.network_features(network, s) for s in (made, real))
    alarm, share = judge.mode_collapse(pictures, known[: len(pictures)])
    half = len(theirs) // 2
    return {
        "nearest": nearness(pictures, known),
        "variety": share,
        "mode_collapse": bool(alarm),
        "kernel_distance": {
            "features": "small-unet-phantom, means of all levels",
            "made": judge.kernel_distance(features, theirs),
            "control": judge.kernel_distance(theirs[:half], theirs[half:]),
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
            vessels=pairs.tree[i, 0].numpy() >= 0.5,
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
    split = open_split("phantom") if isinstance(plan.data, str) else open_split(*plan.data[0])
    real = samples_of(make_pairs(list(split.train), plan.size))
    test = samples_of(make_pairs(list(split.test), plan.size))
    diets = {"real": real, "synthetic": made, "real + synthetic": [*real, *made]}
    found = {"dataset": split.test.name, "split": split.name, "budget": budget}
    return found | compare_diets(diets, test, budget, seeds, device)


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
        the field of view at a threshold chosen on the diet, by seed.
    """
    from retina_lab.evaluate import evaluate_maps
    from retina_lab.predict import predict_dataset
    from retina_lab.train import fit

    found: dict[str, Any] = {}
    for diet, samples in diets.items():
        scores = {}
        for seed in seeds:
            run = fit(
                "small-unet", samples, budget=budget, seed=seed, crop=min(96, *test[0].size),
                device=device, progress=False,
            )  # fmt: skip
            maps = predict_dataset(run, test, tta=True, device=device)
            report = evaluate_maps(
                test, maps, threshold=run.threshold, threshold_from=run.threshold_from, bootstrap=0
            )
            scores[str(seed)] = report.fov["dice"]["pooled"]
        found[diet] = {"photographs": len(samples), "dice": scores}
    return found


def judge_all(only: str = "", **settings) -> list[str]:
    """Judge every shipped model of the plan that has no file yet; returns their names."""
    folder = results_folder()
    folder.mkdir(parents=True, exist_ok=True)
    done = []
    for plan in PLAN:
        path = folder / f"{plan.name}.json"
        if only not in plan.name or path.exists() or plan.name not in list_synthesis():
            continue
        print(f"judging {plan.name}", flush=True)
        report = rounded(judge_plan(plan, **settings))
        text = json.dumps(report, ensure_ascii=False) + "\n"
        write_atomically(path, lambda partial, text=text: partial.write_text(text, "utf-8"))
        done.append(plan.name)
    return done


def load() -> list[dict[str, Any]]:
    """The judgements that there are, in the plan's order."""
    paths = [results_folder() / f"{plan.name}.json" for plan in PLAN]
    return [json.loads(p.read_text(encoding="utf-8")) for p in paths if p.exists()]


def tables(reports: list[dict[str, Any]]) -> str:
    """All judgements as Markdown: trees, photographs, and what they are worth for training."""
    parts = []
    trees = [r for r in reports if "statistics" in r]
    if trees:
        frame = pd.DataFrame(
            {
                r["name"]: {
                    name: f"{row['made']:.3g} ({row['distance']:.2f})"
                    for name, row in r["statistics"].items()
                    if row["made"] is not None and row["distance"] is not None
                }
                for r in trees
            }
        )
        real = {
            name: f"{row['real']:.3g} ({row['control']:.2f})"
            for name, row in trees[0]["statistics"].items()
            if row["control"] is not None
        }
        frame.insert(0, "real", real)
        parts.append(_markdown(frame.fillna("–"), "mean (distance)"))
    rows = {
        r["name"]: {
            "nearest neighbour": f"{r['nearest']['made']:.3f} ({r['nearest']['control']:.3f})",
            "variety": f"{r['variety']:.2f}" + (" **alarm**" if r["mode_collapse"] else ""),
            "kernel distance": _against(r.get("kernel_distance"), 4),
            "agreement": _against(r.get("agreement"), 3),
        }
        for r in reports
    }
    if rows:
        parts.append(_markdown(pd.DataFrame(rows).T, "model (control in brackets)"))
    diets = {
        r["name"]: {
            diet: f"{np.median(scores):.4f} ({min(scores):.4f}–{max(scores):.4f})"
            for diet in ("real", "synthetic", "real + synthetic")
            for scores in [list(r["training"][diet]["dice"].values())]
        }
        for r in reports
        if "training" in r
    }
    if diets:
        parts.append(_markdown(pd.DataFrame(diets).T, "painter; test Dice after training on"))
    return "\n\n".join(parts)


def _against(entry: dict | None, places: int) -> str:
    return "–" if entry is None else f"{entry['made']:.{places}f} ({entry['control']:.{places}f})"


def _markdown(frame: pd.DataFrame, corner: str) -> str:
    lines = [f"| {corner} | " + " | ".join(map(str, frame.columns)) + " |"]
    lines.append("|---" * (1 + len(frame.columns)) + "|")
    lines += [f"| {name} | " + " | ".join(row) + " |" for name, row in frame.iterrows()]
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    """Train, judge, or write the table; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m retina_lab.synthesis_grid", description=__doc__
    )
    verbs = parser.add_subparsers(dest="verb", required=True)
    for verb, text in {"run": "train and ship what is planned", "judge": "judge it"}.items():
        one = verbs.add_parser(verb, help=text)
        one.add_argument("--only", default="", help="models whose name contains this")
        one.add_argument("--runs", type=Path, default=Path("runs"), help="folder for the runs")
        one.add_argument("--device", default="auto")
        if verb == "run":
            one.add_argument(
                "--papers", action="store_true", help="the full-size ones, which want a GPU"
            )
    verbs.add_parser("table", help="write the judgements into book/synthesis.md")
    args = parser.parse_args(argv)
    if args.verb == "run":
        for plan in PAPERS if args.papers else PLAN:
            if args.only in plan.name:
                print(plan.name, flush=True)
                if run_plan(plan, args.runs, args.device) is None:
                    print("stopped; give the same command to go on", file=sys.stderr)
                    return 130
    elif args.verb == "judge":
        for name in judge_all(args.only, device=args.device):
            print(f"judged {name}")
    else:
        page = project_root() / "book" / "synthesis.md"
        text = between_markers(page.read_text(encoding="utf-8"), tables(load()), BEGIN, END)
        page.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
