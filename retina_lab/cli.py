"""``retina-lab``: a thin door to the library for those who outgrow the notebooks."""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import json
import os
import platform
import shutil
import sys
import warnings
from pathlib import Path

import numpy as np

from retina_lab import __version__

MAPS_RECORD = "maps.json"


class CommandError(RuntimeError):
    """A command cannot do what was asked; the message says why and what would work."""


# --- train -----------------------------------------------------------------------------------


def _train(args: argparse.Namespace) -> int:
    from retina_lab.datasets import open_split
    from retina_lab.models import count_parameters
    from retina_lab.train import fit, hold_out

    split = open_split(args.dataset, args.split)
    train, val = hold_out(split.train, args.val)
    # images of other datasets are only learned from: the model is for the one that is named
    more = [open_split(*other.split("@", 1)).train for other in args.also]
    run = fit(
        args.model,
        [sample for dataset in (train, *more) for sample in dataset],
        val,
        epochs=args.epochs,
        budget=args.budget,
        seed=args.seed,
        out=args.out,
        loss=args.loss,
        adversary=args.adversary,
        augmentation=args.augmentation,
        normalisation=args.normalisation,
        crop=args.crop or None,
        widest=args.widest,
        batch_size=args.batch_size,
        lr=args.lr,
        weight_decay=args.weight_decay,
        schedule=args.schedule,
        checks=args.checks,
        device=args.device,
        devices=args.devices,
        precision=args.precision,
        split=split.name,
    )
    if run.interrupted:
        print(
            f"Stopped after {len(run.history)} epochs; give the same command to go on.",
            file=sys.stderr,
        )
        return 130
    print(
        f"{args.model}: {count_parameters(run.model):,} parameters, "
        f"{len(run.history)} epochs in {run.seconds['train']:.0f} s"
        + (f", validation Dice {run.val_dice:.4f}" if val else "")
        + f", threshold {run.threshold:.4f} (from {run.threshold_from}) → {args.out}"
    )
    return 0


# --- synthesis -------------------------------------------------------------------------------


ALL = "all"


def _learned(dataset: str, split: str | None):
    """Training images of a split, so that test images stay unseen, or every image."""
    from retina_lab.datasets import open_dataset, open_split

    return open_dataset(dataset) if split == ALL else open_split(dataset, split).train


def _pairs(args: argparse.Namespace, samples):
    """Pairs of photographs and trees; trees that nobody has drawn come from a network of ours."""
    from retina_lab.pairs import pairs_with_trees
    from retina_lab.train import load_run
    from retina_lab.weights import shipped_for

    network = load_run(args.segmenter) if args.segmenter else shipped_for(samples.name)
    return pairs_with_trees(samples, args.size, network, redraw=bool(args.segmenter))


def _train_synthesis(args: argparse.Namespace) -> int:
    from retina_lab.datasets import list_splits
    from retina_lab.models.autoencoder import halvings
    from retina_lab.synthesis import BANNER, check_settings, find_recipe, fit_synthesis

    recipe = find_recipe(args.model)
    settings = {
        name: getattr(args, name)
        for name in ("epochs", "budget", "seed", "width", "batch_size", "lr")
    }
    check_settings(**settings)  # before an hour of reading photographs
    halvings(args.size)
    samples = _learned(args.dataset, args.split)
    judge, styles = None, None
    if recipe.style:
        from retina_lab.models.vgg import load_vgg19
        from retina_lab.pairs import make_pairs

        judge = load_vgg19(args.vgg19)
        print(f"VGG-19: {judge.origin}")
        if args.styles is not None:
            # pictures only, no labels; but test images stay unseen where there are any
            official = not list_splits(args.styles)[0].startswith("seeded")
            photographs = list(_learned(args.styles, None if official else ALL))
            empty = {s.name: np.zeros(s.size, bool) for s in photographs}
            styles = make_pairs(photographs, args.size, empty, "none").image
    run = fit_synthesis(
        args.model,
        _pairs(args, samples),
        **settings,
        out=args.out,
        device=args.device,
        devices=args.devices,
        precision=args.precision,
        judge=judge,
        styles=styles,
    )
    if run.interrupted:
        print("Stopped; give the same command to go on.", file=sys.stderr)
        return 130
    counts = ", ".join(f"{name} {count:,}" for name, count in run.settings["parameters"].items())
    print(
        f"{args.model} at {run.size}×{run.size} on {len(run.settings['train'])} photographs "
        f"(trees by {run.settings['tree_source']}): {int(run.history['step'].iloc[-1])} steps in "
        f"{run.seconds['train']:.0f} s; parameters: {counts} → {args.out}\n{BANNER}"
    )
    return 0


def _origin(args: argparse.Namespace, trees) -> str | dict:
    """Where painted trees come from, for the manifest."""
    if trees is None:
        return "its own"
    if args.trees is not None:
        return {"model": str(args.trees), "settings": trees.settings}
    in_turn = {"dataset": trees.dataset, "drawn_by": trees.tree_source}
    return in_turn | {"split": args.split, "in_turn": list(trees.names)}


def _synthesize(args: argparse.Namespace) -> int:
    from retina_lab.loop import versions
    from retina_lab.sampling import make_samples, write_samples
    from retina_lab.synthesis import BANNER
    from retina_lab.weights import find_synthesis

    painter = find_synthesis(args.model)
    if Path(args.out).exists() and any(Path(args.out).iterdir()):  # rather now than at the end
        raise CommandError(f"{args.out} is not empty; choose another folder")
    own = "autoencoder" in painter.networks
    if (args.dataset or args.split) and (own or args.trees is not None):
        who = args.trees if args.trees is not None else args.model
        raise CommandError(f"{who} draws the trees itself; leave --dataset and --split out")
    trees = None
    args.dataset = args.dataset or "phantom"
    args.size, args.segmenter = painter.size, None
    if args.trees is not None:
        trees = find_synthesis(args.trees)
    elif not own:
        trees = _pairs(args, _learned(args.dataset, args.split))
    for run, name in ((painter, args.model), (trees, args.trees)):
        if getattr(run, "interrupted", False):
            print(f"retina-lab: warning: the training of {name} was stopped early", file=sys.stderr)
    samples = make_samples(painter, args.number, args.seed, trees=trees, grade=args.grade)
    about = {
        "model": str(args.model),
        "settings": painter.settings,
        "interrupted": painter.interrupted,
        "trees": _origin(args, trees),
        "number": args.number,
        "seed": args.seed,
        "grade": args.grade,
        "versions": versions(),
    }
    out = write_samples(samples, args.out, about)
    print(f"{len(samples)} photographs with trees → {out}\n{BANNER}")
    return 0


# --- predict ---------------------------------------------------------------------------------


def _predict(args: argparse.Namespace) -> int:
    from tqdm.auto import tqdm

    from retina_lab.datasets import open_dataset, open_split
    from retina_lab.predict import predict, save_map
    from retina_lab.train import load_run

    if args.images is not None and args.split is not None:
        raise CommandError("--split goes with --dataset; a folder given as --images has none")
    run = load_run(args.run)
    if args.images is not None:
        samples = open_dataset(Path(args.images))
    elif args.split is not None:
        samples = open_split(args.dataset, args.split).test
    else:
        samples = open_dataset(args.dataset)
    out = Path(args.out)
    present = [name for name in samples.names if (out / f"{name}.png").exists()]
    if present and not args.overwrite:
        raise CommandError(
            f"{out} already holds {len(present)} of these maps, {present[0]}.png first; "
            "choose another folder or add --overwrite"
        )
    for sample in tqdm(samples, desc="predict", unit="image", total=len(samples)):
        probability = predict(run, sample, tta=args.tta, window=args.window, device=args.device)
        save_map(out / f"{sample.name}.png", probability)
    record = {
        "model": run.settings["model"],
        "run": str(args.run),
        "tta": args.tta,
        "window": args.window,
        "threshold": {"value": run.threshold, "from": run.threshold_from},
    }
    (out / MAPS_RECORD).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    print(f"{len(samples)} maps of 16 bits → {out}")
    return 0


# --- evaluate --------------------------------------------------------------------------------


def _threshold(args: argparse.Namespace, run, samples, maps) -> tuple[float, str]:
    """The threshold and where it comes from; never from the labels of the images scored."""
    from retina_lab.evaluate import otsu_threshold

    asked = args.threshold or ("run" if run is not None else "0.5")
    if asked == "otsu":
        return otsu_threshold(samples, maps), "Otsu on the maps scored, in the FOV, without labels"
    if asked == "run":
        if run is not None:
            return run.threshold, run.threshold_from
        record = Path(args.maps) / MAPS_RECORD
        if not record.exists():
            raise CommandError(
                f"--threshold run needs a run: {args.maps} holds no {MAPS_RECORD}, which "
                "`retina-lab predict` writes beside its maps; give --threshold T or otsu"
            )
        threshold = json.loads(record.read_text(encoding="utf-8"))["threshold"]
        return float(threshold["value"]), threshold["from"]
    try:
        value = float(asked)
    except ValueError:
        raise CommandError(f"--threshold {asked!r} is not a number, 'otsu' or 'run'") from None
    if not 0 <= value <= 1:
        raise CommandError(f"--threshold must lie in [0, 1], not {value}")
    return value, "given" if args.threshold else "default"


def _evaluate(args: argparse.Namespace) -> int:
    from retina_lab.datasets import open_dataset, open_split
    from retina_lab.evaluate import evaluate_maps, load_maps
    from retina_lab.predict import predict_dataset
    from retina_lab.train import load_run

    split = open_split(args.dataset, args.split)
    run = None
    if args.run is not None:
        run = load_run(args.run)
        _warn_of_leak(run, split)
        maps = predict_dataset(
            run,
            split.test,
            tta=args.tta,
            window=args.window,
            device=args.device,
            progress=True,
        )
    else:
        others = [name for name in open_dataset(args.dataset).names if name not in split.test]
        maps = load_maps(args.maps, split.test, others=others)
    value, source = _threshold(args, run, split.test, maps)
    report = evaluate_maps(
        split.test, maps, threshold=value, threshold_from=source, bootstrap=args.bootstrap
    )
    print(f"{args.dataset}, split {split.name}, test images")
    print(report)
    if args.json is not None:
        report.to_json(args.json)
        print(f"→ {args.json}")
    return 0


def _warn_of_leak(run, split) -> None:
    """Say it loudly when a test image was trained on."""
    from retina_lab.train import seen_by

    seen = seen_by(run, split.test)
    if seen:
        raise CommandError(
            f"the run was trained on {len(seen)} of these test images, {seen[0]} first; "
            "evaluate it on a split whose test images it has not seen"
        )


# --- submit ----------------------------------------------------------------------------------


def _submit(args: argparse.Namespace) -> int:
    """Predict, cut at the run's threshold and write the challenge's file."""
    from retina_lab.datasets import open_split
    from retina_lab.metrics import binarise
    from retina_lab.predict import predict
    from retina_lab.submission import write_submission
    from retina_lab.train import load_run

    if Path(args.out).exists() and not args.overwrite:  # told before the work is done
        raise CommandError(f"{args.out} exists; choose another name or add --overwrite")
    run = load_run(args.run)
    split = open_split("drive", "official")
    _warn_of_leak(run, split)
    how = {"tta": args.tta, "window": args.window, "device": args.device}
    vessels = {
        sample.name: binarise(predict(run, sample, **how), run.threshold) for sample in split.test
    }
    write_submission(args.out, vessels, args.overwrite)
    print(
        f"{len(vessels)} maps at threshold {run.threshold:.4f} (from {run.threshold_from}) → "
        f"{args.out}\nUpload it at https://drive.grand-challenge.org (registration needed)."
    )
    return 0


# --- models and doctor -----------------------------------------------------------------------


def _models(args: argparse.Namespace) -> int:
    from retina_lab.models import list_models

    rows = list_models()
    if args.json:
        print(json.dumps(rows, indent=2, ensure_ascii=False))
        return 0
    width = max(len(row["name"]) for row in rows)
    print(f"{'model':{width}}  {'trainable':>12}  {'in all':>12}  source")
    for row in rows:
        print(
            f"{row['name']:{width}}  {row['trainable_parameters']:>12,}  "
            f"{row['total_parameters']:>12,}  {row['source']}"
        )
    from retina_lab.synthesis import SYNTHESIS

    makes = {"trees": "trees", "fundus": "photographs", "both": "trees and photographs"}
    print(f"\n{'synthesis':{width}}  {'makes':26}  source")
    for name, recipe in SYNTHESIS.items():
        print(f"{name:{width}}  {makes[recipe.makes]:26}  {recipe.source}")
    return 0


def _doctor(args: argparse.Namespace) -> int:
    """Print what this machine has and what is missing; 1 if something needed is missing."""
    problems: list[str] = []

    def line(name: str, value: object, problem: str = "") -> None:
        print(f"{'✗' if problem else '✓'} {name:18} {value}")
        if problem:
            problems.append(problem)

    version = platform.python_version()
    old = sys.version_info < (3, 11)
    line("Python", version, "Python 3.11 or newer is needed" if old else "")
    line("retina-lab", __version__)
    for requirement in importlib.metadata.requires("retina-lab") or []:
        name = requirement.split(";")[0].split(">")[0].split("<")[0].split("=")[0].strip()
        optional = "extra ==" in requirement
        try:
            line(name, importlib.metadata.version(name))
        except importlib.metadata.PackageNotFoundError:
            extra = requirement.rsplit("extra ==", 1)[-1].strip(" '\"")
            if optional:
                print(f"· {name:18} not installed (only for the {extra} extra)")
            else:
                line(name, "missing", f"install {name}: python -m pip install {name!r}")
    if importlib.util.find_spec("torch") is not None:
        import torch

        from retina_lab.loop import choose_precision
        from retina_lab.predict import pick_device

        device = pick_device()
        line("cores", f"{os.cpu_count()}, torch uses {torch.get_num_threads()} threads")
        line("device", torch.cuda.get_device_name() if device.type == "cuda" else device.type)
        line("precision", choose_precision(device.type))
    free = shutil.disk_usage(".").free / 2**30
    line("free disk", f"{free:.1f} GiB", "less than 1 GiB of disk is free" if free < 1 else "")
    from retina_lab.datasets import list_datasets, open_dataset

    for name in list_datasets():
        try:
            dataset = open_dataset(name)
            line(name, f"{len(dataset)} images")
        except Exception as error:
            reason = str(error).splitlines()[0]
            print(f"· {name:18} {reason}")
    for problem in problems:
        print(f"To mend: {problem}", file=sys.stderr)
    return 1 if problems else 0


# --- the parser ------------------------------------------------------------------------------


def build_parser() -> argparse.ArgumentParser:
    """The parser of ``retina-lab``."""
    from retina_lab.augment import POLICIES
    from retina_lab.datasets import download
    from retina_lab.preprocess import NORMALISATIONS

    parser = argparse.ArgumentParser(
        prog="retina-lab",
        description="Retinal vessel segmentation: data, training, prediction, evaluation.",
    )
    parser.add_argument("--version", action="version", version=f"retina-lab {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    device = argparse.ArgumentParser(add_help=False)
    device.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda", "mps"))
    inference = argparse.ArgumentParser(add_help=False, parents=[device])
    inference.add_argument(
        "--tta",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="average over the four flips of the image (default)",
    )
    inference.add_argument(
        "--window", type=int, help="side of a sliding window in pixels; default: whole image"
    )

    download.add_cli(commands)

    train = commands.add_parser("train", parents=[device], help="train a network")
    train.add_argument("--dataset", required=True, help="a dataset's name or a folder of images")
    train.add_argument("--split", help="default: the dataset's first split")
    train.add_argument(
        "--also",
        action="append",
        default=[],
        metavar="DATASET[@SPLIT]",
        help="learn from another dataset's training images too; may be repeated",
    )
    train.add_argument("--model", default="small-unet", help="see: retina-lab models")
    length = train.add_mutually_exclusive_group(required=True)
    length.add_argument("--budget", help="wall time, such as 60s, 5m, 1.5h")
    length.add_argument("--epochs", type=int)
    train.add_argument("--seed", type=int, default=0)
    train.add_argument("--out", required=True, help="folder of the run; continued if it is there")
    train.add_argument(
        "--val", type=int, default=2, help="training images kept for validation (default 2)"
    )
    train.add_argument("--loss", default="bce + dice", help='such as "bce + dice + 0.5 cldice"')
    train.add_argument(
        "--adversary",
        choices=("pixel", "patch-1", "patch-2", "image", "multi-scale-cam"),
        help="a discriminator to train against, by the rules of its paper",
    )
    train.add_argument("--augmentation", default="light", choices=POLICIES)
    train.add_argument("--normalisation", default="local", choices=NORMALISATIONS)
    train.add_argument("--crop", type=int, default=192, help="side in pixels; 0: whole images")
    train.add_argument(
        "--widest",
        type=int,
        default=600,
        help="photographs with a much wider field of view are reduced to it (default 600 pixels)",
    )
    train.add_argument("--batch-size", type=int, default=2)
    train.add_argument("--lr", type=float, default=2e-3)
    train.add_argument("--weight-decay", type=float, default=1e-2)
    train.add_argument("--schedule", default="linear", help="of the rate: linear or cycles")
    train.add_argument(
        "--checks", type=int, default=10, help="validations, and cycles if there are (default 10)"
    )
    train.add_argument("--devices", type=int, default=1, help="processes, one device each")
    train.add_argument("--precision", default="auto", help="such as 32-true or bf16-mixed")
    train.set_defaults(run_command=_train)

    synthesis = commands.add_parser(
        "train-synthesis", parents=[device], help="train a model of trees or photographs"
    )
    synthesis.add_argument("--model", required=True, help="vae, aae, pix2pix, mi-gan, end-to-end …")
    synthesis.add_argument("--dataset", required=True, help="a dataset's name or a folder")
    split = {"help": "whose training images serve; default: the dataset's first; all: every image"}
    synthesis.add_argument("--split", **split)
    length = synthesis.add_mutually_exclusive_group(required=True)
    length.add_argument("--budget", help="wall time, such as 60s, 5m, 1.5h")
    length.add_argument("--epochs", type=int)
    synthesis.add_argument("--seed", type=int, default=0)
    synthesis.add_argument("--out", required=True, help="folder of the run; continued if there")
    synthesis.add_argument("--size", type=int, default=256, help="side in pixels (default 256)")
    synthesis.add_argument("--width", type=int, default=64, help="channels of the first layer")
    synthesis.add_argument("--batch-size", type=int, default=4)
    synthesis.add_argument("--lr", type=float, default=2e-4)
    synthesis.add_argument(
        "--segmenter",
        help="run that draws the trees; default: the labels, or the shipped network without them",
    )
    synthesis.add_argument("--styles", help="dataset whose styles are wanted (mi-gan-style)")
    synthesis.add_argument(
        "--vgg19", default="auto", help="weights for style transfer: a file, imagenet, stand-in"
    )
    synthesis.add_argument("--devices", type=int, default=1, help="processes, one device each")
    synthesis.add_argument("--precision", default="auto")
    synthesis.set_defaults(run_command=_train_synthesis)

    make = commands.add_parser("synthesize", help="make photographs with vessel trees")
    make.add_argument("--model", required=True, help="a shipped model that paints, or a run")
    make.add_argument("--number", type=int, default=8)
    make.add_argument("--seed", type=int, default=0)
    make.add_argument("--out", required=True, help="folder; must be empty or not there")
    where = make.add_mutually_exclusive_group()
    where.add_argument("--trees", help="a shipped model that makes trees, or a run")
    where.add_argument(
        "--dataset", help="whose trees are painted, unless a model makes them; default: phantom"
    )
    make.add_argument("--split", **split)
    make.add_argument("--grade", help="of all of them; default: each in turn")
    make.set_defaults(run_command=_synthesize)

    predict = commands.add_parser("predict", parents=[inference], help="write probability maps")
    predict.add_argument("--run", required=True, help="folder of a run")
    what = predict.add_mutually_exclusive_group(required=True)
    what.add_argument("--dataset", help="every image of a dataset")
    what.add_argument("--images", help="every image of a folder")
    predict.add_argument("--split", help="only this split's test images")
    predict.add_argument("--out", required=True, help="folder for the 16-bit PNG maps")
    predict.add_argument("--overwrite", action="store_true")
    predict.set_defaults(run_command=_predict)

    evaluate = commands.add_parser("evaluate", parents=[inference], help="score a run or maps")
    scored = evaluate.add_mutually_exclusive_group(required=True)
    scored.add_argument("--run", help="folder of a run")
    scored.add_argument("--maps", help="folder of probability maps by any method")
    evaluate.add_argument("--dataset", required=True)
    evaluate.add_argument("--split", help="default: the dataset's first split")
    evaluate.add_argument(
        "--threshold", help="a number, 'otsu' or 'run'; default: run's, .5 for maps"
    )
    evaluate.add_argument("--json", help="file for all figures")
    evaluate.add_argument("--bootstrap", type=int, default=1000, help="resamples; 0: no intervals")
    evaluate.set_defaults(run_command=_evaluate)

    submit = commands.add_parser(
        "submit", parents=[inference], help="write a DRIVE Grand Challenge submission"
    )
    submit.add_argument("--run", required=True)
    submit.add_argument("--out", required=True, help="the ZIP file")
    submit.add_argument("--overwrite", action="store_true")
    submit.set_defaults(run_command=_submit)

    models = commands.add_parser("models", help="list the networks and their parameters")
    models.add_argument("--json", action="store_true")
    models.set_defaults(run_command=_models)

    doctor = commands.add_parser("doctor", help="say what this machine has and lacks")
    doctor.set_defaults(run_command=_doctor)
    return parser


def forgive_streams() -> None:
    """Print a question mark for what a Windows console or pipe cannot, and do not crash."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns the exit status.

    0: done; 1: it could not be done, the reason is on standard error; 2: the command line is
    wrong; 130: interrupted; 141: nobody reads the output any more.
    """
    forgive_streams()
    args = build_parser().parse_args(argv)
    warnings.formatwarning = lambda message, *_, **__: f"retina-lab: warning: {message}\n"
    import torch

    from retina_lab.train import TrainingError

    try:
        status = args.run_command(args) or 0
        sys.stdout.flush()  # here, where a closed pipe can still be caught
        return status
    except BrokenPipeError:  # `retina-lab models | head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for the flush at the end
        return 141
    except KeyboardInterrupt:
        print("retina-lab: interrupted", file=sys.stderr)
        return 130
    except torch.OutOfMemoryError as error:
        advice = "give a smaller --batch-size, --crop or --window, or --device cpu"
        print(f"retina-lab: error: no memory left on the card ({error}); {advice}", file=sys.stderr)
        return 1
    except (CommandError, TrainingError, ValueError, OSError) as error:
        print(f"retina-lab: error: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
