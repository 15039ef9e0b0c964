"""Training a segmentation network: one readable loop on lightning's ``fabric``.

Every random number of step t (which images, where to cut, how to augment, what to drop) is
drawn from a generator seeded with (seed, t). A run can therefore stop after any step and
continue as if it had never stopped, and several processes draw the same batch and take their
share of it.
"""

from __future__ import annotations

import json
import math
import numbers
import os
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
import torch.nn as nn
from safetensors.torch import load_file, save_file

from retina_lab import metrics
from retina_lab.augment import Augmentation, augmentation_by_name
from retina_lab.datasets.layouts import FundusDataset
from retina_lab.datasets.sample import FundusSample
from retina_lab.loop import (
    MIXED,
    RULES,
    Loop,
    StopAfterStep,
    TrainingError,
    claim,
    digest,
    fingerprint,
    parse_budget,
    start_fabric,
    step_seed,
    weights_of,
    write_atomically,
    write_run,
)
from retina_lab.losses import Loss, build_loss, deeply_supervised
from retina_lab.models import build_model, count_parameters, find_model
from retina_lab.predict import predict_dataset, predict_sample
from retina_lab.preprocess import WIDEST, at_working_scale, fov_width, normalise, to_batch

if TYPE_CHECKING:
    from lightning_fabric import Fabric

    from retina_lab.adversarial import Adversary

HISTORY = ["epoch", "step", "seconds", "loss", "lr", "val_dice"]
SCHEDULES = ("linear", "cycles")


@dataclass
class Run:
    """A finished (or interrupted) training.

    Attributes:
        model: the network with the weights that are kept, in eval mode, on the CPU.
        settings: everything that ``fit`` was asked, as written to ``run.json``.
        history: one row an epoch: ``epoch``, ``step``, ``seconds``, ``loss``, ``lr`` and
            ``val_dice`` (NaN where validation was not run). The last row of a time budget is
            often part of an epoch.
        threshold: probability from which a pixel counts as vessel, in [0, 1].
        threshold_from: which images chose it.
        seconds: wall time by stage.
        interrupted: true if it was stopped before its end.
        out: its folder, or None if it was kept in memory.
        adversary: the discriminator that it was trained against, if there was one.
    """

    model: nn.Module
    settings: dict[str, Any]
    history: pd.DataFrame
    threshold: float = 0.5
    threshold_from: str = "default"
    seconds: dict[str, float] = field(default_factory=dict)
    interrupted: bool = False
    out: Path | None = None
    adversary: nn.Module | None = None

    @property
    def normalisation(self) -> str:
        """How images are normalised before this network sees them."""
        return self.settings["normalisation"]

    @property
    def val_dice(self) -> float:
        """Dice on the validation images of the weights that are kept; NaN if there are none."""
        seen = self.history["val_dice"].dropna()
        if not len(seen):
            return math.nan
        return float(seen.max() if self.settings["schedule"] == "cycles" else seen.iloc[-1])


class CropSampler:
    """Batches of random crops, each a pure function of (seed, step).

    Images whose colours the augmentation leaves alone are normalised once, whole, so that
    the statistics at the edge of a crop come from the photograph and not from the crop.

    Args:
        samples: labelled samples of any size.
        crop: side of the square crops in pixels, or None for whole images (padded to the
            largest, outside counting as outside the field).
        batch_size: crops in a batch.
        augmentation: policy applied to each batch.
        normalisation: see :func:`retina_lab.preprocess.normalise`.
        seed: of the run.
        width: of the field of view, see :func:`retina_lab.preprocess.at_working_scale`.

    Raises:
        TrainingError: if there is no sample or one has no labels.
    """

    def __init__(
        self,
        samples: Sequence[FundusSample],
        crop: int | None,
        batch_size: int,
        augmentation: Augmentation,
        normalisation: str,
        seed: int,
        width: int | None = None,
    ):
        self.batch_size, self.seed = batch_size, seed
        self.augmentation, self.normalisation = augmentation, normalisation
        self.width = width
        self.images: list[dict[str, torch.Tensor]] = []
        self.corners: list[tuple[int, int, int, int]] = []
        for sample in samples:
            if sample.vessels is None:
                raise TrainingError(f"{sample.name} has no vessel labels to train on")
            item = self._prepare(sample)
            fov = item["fov"][0].numpy()
            rows, columns = np.flatnonzero(fov.any(1)), np.flatnonzero(fov.any(0))
            if not rows.size:
                raise TrainingError(f"{sample.name}: the field of view is empty")
            self.images.append(item)
            self.corners.append((rows[0], rows[-1] + 1, columns[0], columns[-1] + 1))
        if not self.images:
            raise TrainingError("there are no training images")
        if crop is None:
            height = max(item["fov"].shape[-2] for item in self.images)
            width = max(item["fov"].shape[-1] for item in self.images)
            self.window = (height, width)
        else:
            self.window = (crop, crop)

    def _prepare(self, sample: FundusSample) -> dict[str, torch.Tensor]:
        """One sample at the working scale, stored small: half precision or bytes."""
        batch = at_working_scale(to_batch(sample), sample.fov, self.width)
        if self.augmentation.changes_colours:
            image = (batch["image"] * 255).round().byte()
        else:
            image = normalise(batch["image"], batch["fov"], self.normalisation).half()
        return {
            "image": image[0],
            "vessels": batch["vessels"][0].byte(),
            "fov": batch["fov"][0].byte(),
        }

    @property
    def steps_per_epoch(self) -> int:
        """Batches in which every image is visited once."""
        return math.ceil(len(self.images) / self.batch_size)

    def _order(self, step: int) -> list[int]:
        """Which images step ``step`` shows: every image once an epoch, in random order."""
        epoch, position = divmod(step, self.steps_per_epoch)
        generator = torch.Generator().manual_seed(step_seed(self.seed, 1, epoch))
        order = torch.randperm(len(self.images), generator=generator).tolist()
        first = position * self.batch_size
        # The last batch of an epoch is filled up from the epoch's beginning.
        return [order[(first + i) % len(order)] for i in range(self.batch_size)]

    def _cut(self, index: int, generator: torch.Generator) -> dict[str, torch.Tensor]:
        """A window at a random place of the field's bounding box, zeros beyond the image."""
        item = self.images[index]
        height, width = self.window
        y0, y1, x0, x1 = self.corners[index]
        draw = torch.rand(2, generator=generator)
        top = int(y0 + math.floor(float(draw[0]) * max(1, y1 - y0 - height + 1)))
        left = int(x0 + math.floor(float(draw[1]) * max(1, x1 - x0 - width + 1)))
        if height >= y1 - y0:
            top = max(0, min(top, item["fov"].shape[-2] - height))
        if width >= x1 - x0:
            left = max(0, min(left, item["fov"].shape[-1] - width))
        cut = {}
        for name, plane in item.items():
            piece = plane[:, top : top + height, left : left + width].float()
            missing = (0, width - piece.shape[-1], 0, height - piece.shape[-2])
            cut[name] = nn.functional.pad(piece, missing)
        return cut

    def batch(self, step: int, device: torch.device | str = "cpu") -> dict[str, torch.Tensor]:
        """The batch of step ``step``: image (N, 3, h, w), vessels and fov (N, 1, h, w)."""
        generator = torch.Generator().manual_seed(step_seed(self.seed, 2, step))
        cuts = [self._cut(index, generator) for index in self._order(step)]
        batch = {name: torch.stack([cut[name] for cut in cuts]).to(device) for name in cuts[0]}
        if self.augmentation.changes_colours:
            batch["image"] = batch["image"] / 255
            batch = self.augmentation(batch, generator)
            batch["image"] = normalise(batch["image"], batch["fov"], self.normalisation)
            return batch
        return self.augmentation(batch, generator)


def hold_out(dataset: FundusDataset, count: int) -> tuple[FundusDataset, FundusDataset | None]:
    """Keep images of a training set for validation, evenly spread and whole persons only.

    Args:
        dataset: the training images of a split.
        count: how many images to keep at least; 0 keeps none.

    Returns:
        The images left for training, and those for validation (None if ``count`` is 0).

    Raises:
        ValueError: if ``count`` is negative or would leave nothing to train on.
    """
    if count < 0:
        raise ValueError(f"the number of validation images must not be negative, not {count}")
    if count == 0:
        return dataset, None
    persons = list(dict.fromkeys(dataset.subjects))
    sizes = sorted(dataset.subjects.count(person) for person in persons)
    wanted = next((k for k in range(1, len(persons)) if sum(sizes[:k]) >= count), None)
    if wanted is None:
        raise ValueError(
            f"{count} validation images would leave none of {dataset.name}'s {len(dataset)} "
            "training images; keep fewer"
        )
    # The middle of each of `wanted` equal stretches of the list.
    kept = {persons[int((i + 0.5) * len(persons) / wanted)] for i in range(wanted)}
    named = list(zip(dataset.names, dataset.subjects, strict=True))
    return (
        dataset.select([name for name, person in named if person not in kept]),
        dataset.select([name for name, person in named if person in kept]),
    )


def validation_dice(
    model: nn.Module,
    samples: Sequence[FundusSample],
    normalisation: str,
    width: int | None = None,
) -> float:
    """Dice at the best threshold, pooled over the pixels in the field of view of all samples.

    The threshold of a finished network is chosen too (on many more images), so a network in
    training is not to be blamed if ½ does not suit it.
    """
    pooled = None
    for sample in samples:
        probability = predict_sample(model, sample, normalisation, width)
        found = metrics.histogram(probability, sample.vessels, sample.fov)
        pooled = found if pooled is None else pooled + found
    if pooled is None or not pooled.positives.any():
        return math.nan
    return float(np.nanmax(metrics.dice(metrics.counts_at_levels(pooled))))


class Training(Loop):
    """The training of one segmentation network. Made by :func:`fit`, which documents the settings.

    Args:
        sampler: makes the batches.
        criterion: a loss of (logits, vessels, fov).
        val: validation images.
        **others: see :class:`retina_lab.loop.Loop`.
    """

    def __init__(self, *args, sampler: CropSampler, criterion: Loss, val, **others):
        super().__init__(*args, steps_per_epoch=sampler.steps_per_epoch, **others)
        self.sampler, self.criterion, self.val = sampler, criterion, val

    def learn(self) -> dict[str, float]:
        """Predict, compare with the labels, follow the gradient."""
        image, vessels, fov = self.next_batch()
        outputs = self.networks["network"](image)  # logits N×1×h×w, or several of them
        loss = deeply_supervised(self.criterion, outputs, vessels, fov)
        self.follow(loss, "network")
        return {"loss": loss.item()}

    def next_batch(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """This process's share of the batch of this step: image, vessels, fov."""
        batch = self.sampler.batch(self.step, self.fabric.device)
        mine = slice(self.rank, None, self.fabric.world_size)
        image = batch["image"][mine].contiguous(memory_format=torch.channels_last)
        return image, batch["vessels"][mine], batch["fov"][mine]

    def validate(self) -> float:
        """Dice on the validation images."""
        if not self.val:
            return math.nan
        return validation_dice(
            self.networks["network"].module,
            self.val,
            self.settings["normalisation"],
            self.settings["fov_width"],
        )

    def result(self, interrupted: bool) -> Run:
        """The run with its last weights; with the best where there were cycles."""
        kept = self.networks["network"].module.cpu().to(memory_format=torch.contiguous_format)
        if self.best_weights is not None:
            if self.out is not None and self.rank == 0:
                last = weights_of(kept)
                write_atomically(self.out / "last.safetensors", lambda path: save_file(last, path))
            kept.load_state_dict(self.best_weights)
        return Run(
            model=kept.eval(),
            settings=self.settings,
            history=self.history(),
            seconds={"train": self.seconds},
            interrupted=interrupted,
            out=self.out,
        )


def fit(
    model: str | nn.Module,
    train: Sequence[FundusSample],
    val: Sequence[FundusSample] | None = None,
    *,
    epochs: int | None = None,
    budget: str | float | None = None,
    seed: int = 0,
    out: str | os.PathLike | None = None,
    loss: str = "bce + dice",
    augmentation: str | Augmentation = "light",
    normalisation: str = "local",
    crop: int | None = 192,
    widest: int = WIDEST,
    batch_size: int = 2,
    lr: float = 2e-3,
    weight_decay: float = 1e-2,
    schedule: str = "linear",
    gradient_clip: float = 1.0,
    checks: int = 10,
    device: str = "auto",
    devices: int = 1,
    precision: str = "auto",
    threshold: bool = True,
    adversary: str | Adversary | None = None,
    split: str | None = None,
    progress: bool = True,
    callback: Callable[[nn.Module, dict[str, float]], None] | None = None,
) -> Run:
    """Train a segmentation network for a number of epochs or for a time budget.

    AdamW, with a learning rate that falls to zero at the end of the epochs or of the budget.
    BatchNorm's running averages reach back over the last tenth of the steps (the
    aim of "precise BatchNorm": Wu and Johnson, "Rethinking 'batch' in BatchNorm", 2021). The
    budget is wall time from the moment when the images are in memory to the last training step,
    validation included; choosing the threshold comes after it.

    Args:
        model: a name of ``retina-lab models``, built here from ``seed``, or a module.
        train: labelled samples, of several datasets if you like; one epoch shows a crop of each.
            The first one's dataset is the home of the network: the others are only learned from,
            and have no say in its scale and its threshold.
        val: labelled samples for ``val_dice``, never test images. With cycles they choose among
            the weights at the ends of the cycles; else the last weights are kept.
        epochs: number of epochs; or
        budget: time such as ``"60s"``, ``"5m"`` or seconds. Exactly one of the two.
        seed: of weights, crops, augmentation and dropout; ≥ 0.
        out: folder for ``run.json``, ``weights.safetensors`` (with cycles ``last.safetensors``
            too), ``history.csv`` and ``checkpoint.pt``. A stopped run in it is continued if its
            settings are the same; a finished one is returned; another one is an error.
        loss: recipe for :func:`retina_lab.losses.build_loss`.
        augmentation: a policy or its name.
        normalisation: see :func:`retina_lab.preprocess.normalise`. Where a policy changes
            colours, a crop is normalised after it, so z-scores are then those of the crop; when
            the network predicts they are those of the photograph.
        crop: side of the training crops in pixels; None for whole images.
        widest: field of view in pixels to which photographs are reduced if they are wider by
            more than a third or so (see :func:`retina_lab.preprocess.at_working_scale`), for
            training and later for prediction (lwnet reduces to 512). A large number trains
            at the photographs' own scale.
        batch_size: crops a step, over all processes together.
        lr: learning rate at the start.
        weight_decay: of AdamW.
        schedule: of the rate: ``"linear"``, or ``"cycles"`` of half a cosine, one a check; see
            :meth:`retina_lab.loop.Loop.rate`.
        gradient_clip: largest norm of the whole gradient.
        checks: how many times validation is run, evenly over the training.
        device: ``"auto"``, ``"cpu"``, ``"cuda"`` or ``"mps"``.
        devices: number of processes, one device each (DDP above one). Under torchrun or
            SLURM the launcher's number is used. What the first process returns is written; the
            others' networks may differ in BatchNorm's averages.
        precision: ``"auto"`` or one of fabric's, such as ``"32-true"``, ``"bf16-mixed"``.
        threshold: choose the threshold at the end, on ``val`` and on the images of ``train`` that
            are at home.
        adversary: a discriminator to train against, by name (``"pixel"``, ``"patch-1"``,
            ``"patch-2"``, ``"image"``, ``"multi-scale-cam"``) or with its rule; see
            :class:`retina_lab.adversarial.Adversary`. Its weights go to
            ``adversary.safetensors``.
        split: name of the split, for the record.
        progress: show a bar.
        callback: called as ``callback(model, row)`` at each check, the model in eval mode.

    Returns:
        A :class:`Run`. Ctrl-C ends training early and returns what there is.

    Raises:
        ValueError: if a setting makes no sense; the message names it.
        TrainingError: if the loss is not finite, labels are missing, or ``out`` holds a
            different run.
    """
    if (epochs is None) == (budget is None):
        raise ValueError("give either epochs or a budget, not both and not neither")
    if epochs is not None and epochs < 1:
        raise ValueError(f"epochs must be at least 1, not {epochs}")
    whole = {"batch_size": batch_size, "crop": crop, "checks": checks, "widest": widest}
    for name, value in {**whole, "epochs": epochs, "seed": seed}.items():
        if value is not None and not isinstance(value, numbers.Integral):
            raise ValueError(f"{name} must be a whole number, not {value!r}")
        if value is not None and value < 1 and name in whole:
            raise ValueError(f"{name} must be at least 1, not {value}")
    if schedule not in SCHEDULES:
        raise ValueError(f"schedule must be one of {', '.join(SCHEDULES)}, not {schedule!r}")
    if lr <= 0 or weight_decay < 0 or gradient_clip <= 0:
        raise ValueError("lr and gradient_clip must be positive and weight_decay not negative")
    limit = parse_budget(budget) if budget is not None else math.inf
    # NumPy's integers would not go into run.json
    seed, checks, widest, batch_size = int(seed), int(checks), int(widest), int(batch_size)
    epochs, crop = (None if number is None else int(number) for number in (epochs, crop))
    if seed < 0:
        raise ValueError(f"the seed must not be negative, not {seed}")
    if isinstance(augmentation, str):
        augmentation = augmentation_by_name(augmentation)
    criterion = build_loss(loss)
    if adversary is not None:
        from retina_lab.adversarial import AdversarialTraining, as_adversary

        adversary = as_adversary(adversary)
    if isinstance(model, str):
        find_model(model)  # a misspelt name is told before the images are read
    train, val = list(train), list(val or [])
    names = [sample.name for sample in (*train, *val)]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(
            f"two images are called {twice[0]!r}; the names of training and validation images "
            "must differ, whatever dataset they come from"
        )
    for sample in val:
        if sample.vessels is None:
            raise TrainingError(f"{sample.name} has no vessel labels to validate with")
    arrays = (array for s in (*train, *val) for array in (s.image, s.vessels, s.fov))
    pixels = digest(array for array in arrays if array is not None)
    photographs = {sample.name: digest([sample.image]) for sample in (*train, *val)}

    fabric, precision = start_fabric(device, devices, precision)
    begin = time.perf_counter()
    if batch_size % fabric.world_size:
        raise ValueError(
            f"batch_size {batch_size} does not divide among {fabric.world_size} processes; use "
            "as many processes as divide it, and train several networks side by side instead"
        )

    home = [sample for sample in train if sample.dataset == train[0].dataset]
    torch.manual_seed(step_seed(seed, 0))
    model_name = model if isinstance(model, str) else None
    network = build_model(model) if isinstance(model, str) else model
    settings = {
        "model": model_name or type(network).__name__,
        "model_known": model_name is not None,
        "parameters": count_parameters(network),
        "start": fingerprint(network.state_dict()),
        "train": [sample.name for sample in train],
        "val": [sample.name for sample in val],
        "pixels": pixels,
        "photographs": photographs,
        "dataset": MIXED.join(dict.fromkeys(sample.dataset for sample in train)),
        "split": split,
        "fov_width": min(widest, round(float(np.median([fov_width(s.fov) for s in home] or [0])))),
        "epochs": epochs,
        "budget_seconds": None if budget is None else limit,
        "seed": seed,
        "loss": loss,
        "adversary": None if adversary is None else asdict(adversary),
        "augmentation": repr(augmentation),
        "normalisation": normalisation,
        "crop": crop,
        "batch_size": batch_size,
        "lr": lr,
        "weight_decay": weight_decay,
        "schedule": schedule,
        "gradient_clip": gradient_clip,
        "checks": checks,
        "precision": precision,
        "rules": RULES,
    }
    out = Path(out) if out is not None else None
    with ExitStack() as held:
        if out is not None and claim(out, settings, held) and model_name:
            run = load_run(out)
            if threshold and run.threshold_from == Run.threshold_from:
                _choose_threshold(run, home, val, fabric)
                if fabric.global_rank == 0:
                    save_run(run, out)
            return run
        sampler = CropSampler(
            train, crop, batch_size, augmentation, normalisation, seed, settings["fov_width"]
        )
        networks = {"network": network}
        optimizers = {
            "network": torch.optim.AdamW(network.parameters(), lr=lr, weight_decay=weight_decay)
        }
        options = {
            "settings": settings, "sampler": sampler, "criterion": criterion, "val": val,
            "out": out, "begin": begin, "callback": callback,
        }  # fmt: skip
        if adversary is None:
            training = Training(fabric, networks, optimizers, **options)
        else:
            training = AdversarialTraining(fabric, networks, optimizers, adversary, **options)
        stop = StopAfterStep()
        training.finish(stop, progress)
        run = training.result(interrupted=stop.granted)
        if threshold and not run.interrupted:
            _choose_threshold(run, home, val, fabric)
        if out is not None and fabric.global_rank == 0:
            save_run(run, out)
        return run


def _choose_threshold(run: Run, home: list, val: list, fabric: Fabric) -> None:
    """Choose the threshold of a finished network, on one process for all."""
    from retina_lab.evaluate import choose_threshold

    start = time.perf_counter()
    # All labelled images, for observers differ in how much they call a vessel: the best
    # thresholds of single images lie far apart, and two of them are no sample.
    labelled = home + val
    if fabric.global_rank == 0:
        maps = predict_dataset(run, labelled, device=str(fabric.device))
        run.threshold = choose_threshold(labelled, maps)
        run.model.cpu()
    run.threshold = fabric.broadcast(run.threshold)
    run.threshold_from = f"{len(home)} training" + (
        f" and {len(val)} validation images" if val else " images"
    )
    run.seconds["threshold"] = time.perf_counter() - start


def leaked(dataset: str, names: Iterable[str], samples: FundusDataset) -> list[str]:
    """The names of samples that have been learned from, in alphabetical order.

    Args:
        dataset: that was learned from, or several with ``MIXED`` between them.
        names: of the images that were learned from, for validation too.
        samples: that are to be scored.
    """
    if samples.name != dataset and samples.name not in dataset.split(MIXED):
        return []
    return sorted(set(names) & set(samples.names))


def seen_by(run: Run, samples: FundusDataset) -> list[str]:
    """The names of samples whose photographs a run has learned from, in alphabetical order.

    Photographs are compared pixel by pixel, whatever they and their datasets are called; for runs
    from before their digests were recorded, by dataset and name.
    """
    known = run.settings.get("photographs")
    if known is None:
        learned = (*run.settings["train"], *run.settings["val"])
        return leaked(run.settings["dataset"], learned, samples)
    return sorted(s.name for s in samples if digest([s.image]) in known.values())


def save_run(run: Run, out: str | os.PathLike) -> None:
    """Write ``run.json``, ``weights.safetensors`` and ``history.csv`` into a folder."""
    weights = {"weights": weights_of(run.model)}
    if run.adversary is not None:
        weights["adversary"] = weights_of(run.adversary)
    threshold = {"value": run.threshold, "from": run.threshold_from}
    write_run(Path(out), weights, run, threshold=threshold)


def load_run(folder: str | os.PathLike, model: nn.Module | None = None) -> Run:
    """Read a run that ``fit`` or ``retina-lab train`` has written.

    Args:
        folder: with ``run.json``, ``weights.safetensors`` and ``history.csv``.
        model: the architecture, needed only if it has no name in ``retina-lab models``.

    Returns:
        The :class:`Run`, its network in eval mode.

    Raises:
        TrainingError: if a file is missing or unreadable, or the weights do not fit.
    """
    folder = Path(folder)
    try:
        record = json.loads((folder / "run.json").read_text(encoding="utf-8"))
        settings = record["settings"]
        if model is None:
            if not settings["model_known"]:
                raise TrainingError(
                    f"{folder} was trained from a network without a name "
                    f"({settings['model']}); pass it as load_run(folder, model)"
                )
            model = build_model(settings["model"])
        model.load_state_dict(load_file(folder / "weights.safetensors"))
        adversary = None
        if settings.get("adversary"):
            from retina_lab.adversarial import Adversary

            adversary = Adversary(**settings["adversary"]).build()
            adversary.load_state_dict(load_file(folder / "adversary.safetensors"))
            adversary.eval()
        history = pd.read_csv(folder / "history.csv")
    except FileNotFoundError as error:
        raise TrainingError(
            f"{folder} is not a finished run: {Path(error.filename).name} is missing. "
            "Train one with: retina-lab train --out FOLDER …"
        ) from error
    except TrainingError:
        raise
    except Exception as error:
        raise TrainingError(f"the run in {folder} cannot be read: {error}") from error
    return Run(
        model=model.eval(),
        settings=settings,
        history=history,
        threshold=record["threshold"]["value"],
        threshold_from=record["threshold"]["from"],
        seconds=record["seconds"],
        interrupted=record["interrupted"],
        out=folder,
        adversary=adversary,
    )
