"""Training: one readable loop on lightning's ``fabric``.

Every random number of step t (which images, where to cut, how to augment, what to drop) is
drawn from a generator seeded with (seed, t). A run can therefore stop after any step and
continue as if it had never stopped, and several processes draw the same batch and take their
share of it.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import platform
import re
import signal
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.nn as nn
from safetensors.torch import load_file, save_file
from torch.nn.modules.batchnorm import _BatchNorm
from tqdm.auto import tqdm

from retina_lab import __version__
from retina_lab.augment import Augmentation, augmentation_by_name
from retina_lab.datasets.layouts import FundusDataset
from retina_lab.datasets.sample import FundusSample
from retina_lab.losses import Outputs, build_loss, deeply_supervised
from retina_lab.models import build_model, count_parameters, find_model
from retina_lab.predict import predict_dataset, predict_sample
from retina_lab.preprocess import at_working_scale, fov_width, normalise, to_batch

UNITS = {"s": 1, "m": 60, "h": 3600}
CHECKPOINT = "checkpoint.pt"
HISTORY = ["epoch", "step", "seconds", "loss", "lr", "val_dice"]


class TrainingError(RuntimeError):
    """Training cannot start or go on; the message says why and what to do."""


def parse_budget(budget: str | float) -> float:
    """Seconds in a time budget such as ``"60s"``, ``"5m"``, ``"1.5h"`` or ``90``.

    Raises:
        ValueError: if it cannot be read or is not a positive, finite time.
    """
    if isinstance(budget, str):
        match = re.fullmatch(r"\s*(\d+\.?\d*|\.\d+)\s*([smh]?)\s*", budget.lower())
        if not match:
            raise ValueError(f"cannot read the budget {budget!r}; write 60s, 5m or 1.5h")
        budget = float(match[1]) * UNITS[match[2] or "s"]
    if not 0 < budget < math.inf:
        raise ValueError(f"a time budget must be positive and finite, not {budget}")
    return float(budget)


def step_seed(seed: int, *position: int) -> int:
    """A seed for one place in a run; different places get unrelated streams."""
    return int(np.random.SeedSequence([seed, *position]).generate_state(1, np.uint64)[0] >> 1)


def choose_precision(accelerator: str) -> str:
    """Fabric's precision that is fastest on this processor and still safe to train in.

    bfloat16 halves the memory traffic, but a processor without bf16 instructions emulates
    it and is slower than in float32.
    """
    if accelerator == "cuda":
        return "bf16-mixed" if torch.cuda.is_bf16_supported() else "16-mixed"
    if accelerator == "cpu" and (
        torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    ):
        return "bf16-mixed"
    return "32-true"


@dataclass
class Run:
    """A finished (or interrupted) training.

    Attributes:
        model: the network with its best weights, in eval mode, on the CPU.
        settings: everything that ``fit`` was asked, as written to ``run.json``.
        history: one row an epoch: ``epoch``, ``step``, ``seconds``, ``loss``, ``lr`` and
            ``val_dice`` (NaN where validation was not run). The last row of a time budget is
            often part of an epoch.
        threshold: probability from which a pixel counts as vessel, in [0, 1].
        threshold_from: which images chose it.
        seconds: wall time by stage.
        interrupted: true if it was stopped before its end.
        out: its folder, or None if it was kept in memory.
    """

    model: nn.Module
    settings: dict[str, Any]
    history: pd.DataFrame
    threshold: float = 0.5
    threshold_from: str = "default"
    seconds: dict[str, float] = field(default_factory=dict)
    interrupted: bool = False
    out: Path | None = None

    @property
    def normalisation(self) -> str:
        """How images are normalised before this network sees them."""
        return self.settings["normalisation"]


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
    """Dice at threshold ½, pooled over the pixels in the field of view of all samples."""
    overlap = total = 0
    for sample in samples:
        predicted = predict_sample(model, sample, normalisation, width) >= 0.5
        overlap += np.count_nonzero(predicted & sample.vessels & sample.fov)
        total += np.count_nonzero(predicted & sample.fov)
        total += np.count_nonzero(sample.vessels & sample.fov)
    return float(2 * overlap / total) if total else math.nan


def _write_atomically(path: Path, write: Callable[[Path], None]) -> None:
    """Write beside the target and rename, so that a crash never leaves half a file."""
    partial = path.with_name(path.name + ".part")
    write(partial)
    os.replace(partial, path)


def _fingerprint(weights: dict[str, torch.Tensor]) -> str:
    """Short digest of starting weights, so that a resumed run is known to be the same run."""
    digest = hashlib.sha256()
    for name, tensor in sorted(weights.items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def versions() -> dict[str, str]:
    """What a run was made with: software, processor, threads."""
    return {
        "retina_lab": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "processor": platform.processor() or platform.machine(),
        "threads": str(torch.get_num_threads()),
    }


class _StopAfterStep:
    """Turns the first Ctrl-C into a wish that the loop grants between two steps.

    An exception in the middle of a step would leave half of the weights updated. The second
    Ctrl-C is an ordinary one. Signals reach the main thread only; elsewhere nothing changes.
    """

    def __init__(self):
        self.asked = False
        self.previous = None

    def __enter__(self):
        if threading.current_thread() is threading.main_thread():
            self.previous = signal.signal(signal.SIGINT, self._handle)
        return self

    def _handle(self, number, frame):
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True

    def __exit__(self, *_):
        if self.previous is not None:
            signal.signal(signal.SIGINT, self.previous)


class Training:
    """One training in progress: what must be kept to go on, and the loop itself.

    Made by :func:`fit`, which documents the settings. Read :meth:`loop` first.
    """

    def __init__(
        self, fabric, network, optimizer, criterion, sampler, val, settings, out, begin, callback
    ):
        self.fabric, self.criterion, self.sampler, self.val = fabric, criterion, sampler, val
        self.settings, self.out, self.begin, self.callback = settings, out, begin, callback
        self.network, self.optimizer = fabric.setup(network, optimizer)
        self.batchnorms = [m for m in self.network.modules() if isinstance(m, _BatchNorm)]
        self.per_epoch = sampler.steps_per_epoch
        epochs, budget = settings["epochs"], settings["budget_seconds"]
        self.total_steps = math.inf if epochs is None else epochs * self.per_epoch
        self.limit = math.inf if budget is None else budget
        self.step, self.checks_done = 0, 0
        self.before = 0.0  # seconds of the sittings before this one
        self.losses: list[float] = []  # of the current epoch
        self.rows: list[dict[str, float]] = []
        self.best = -1.0
        self.best_weights: dict[str, torch.Tensor] | None = None
        if out is not None and (out / CHECKPOINT).exists():
            self._restore()

    def loop(self, stop: _StopAfterStep, bar: tqdm) -> None:
        """Predict, compare, follow the gradient, until the epochs or the seconds are over."""
        self.network.train()
        while (share := self.share_done()) < 1 and not stop.asked:
            self._set_rate(self.settings["lr"] * (1 - share))
            self._set_momentum()
            image, vessels, fov = self._next_batch()

            outputs = self.network(image)  # logits N×1×h×w, or several of them
            loss = deeply_supervised(self.criterion, outputs, vessels, fov)
            if not torch.isfinite(loss):
                raise TrainingError(self._explain_divergence(outputs))
            self.fabric.backward(loss)
            self.fabric.clip_gradients(
                self.network, self.optimizer, max_norm=self.settings["gradient_clip"]
            )
            self.optimizer.step()
            self.optimizer.zero_grad()

            self.step += 1
            self.losses.append(loss.item())
            if self.step % self.per_epoch == 0:
                self._end_epoch()
            self._show(bar)
        if self.losses and not stop.asked:  # the budget ended inside an epoch
            self._end_epoch()

    def elapsed(self) -> float:
        """Seconds of training so far, all sittings together."""
        return self.before + time.perf_counter() - self.begin

    def share_done(self) -> float:
        """Share of the training that is behind us, in [0, 1], the same in all processes."""
        if self.limit == math.inf:
            return self.step / self.total_steps
        share = min(1.0, self.elapsed() / self.limit)
        # Two clocks would let one process stop while the other waits for its gradients.
        return self.fabric.broadcast(share) if self.fabric.world_size > 1 else share

    def _set_rate(self, lr: float) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = lr

    def _set_momentum(self) -> None:
        """Let BatchNorm's running averages reach back over the last tenth of the steps.

        They are all that prediction sees of BatchNorm. With the usual momentum of 0.1 they
        rest on the last ten batches, which here are twenty crops: so few that the level of
        all probabilities, and the best threshold with it, changed from run to run.
        """
        for norm in self.batchnorms:
            norm.momentum = min(0.1, 10 / (self.step + 1))

    def _next_batch(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """This process's share of the batch of this step: image, vessels, fov."""
        rank = self.fabric.global_rank
        torch.manual_seed(step_seed(self.settings["seed"], 3, self.step, rank))  # dropout
        batch = self.sampler.batch(self.step, self.fabric.device)
        mine = slice(rank, None, self.fabric.world_size)
        image = batch["image"][mine].contiguous(memory_format=torch.channels_last)
        return image, batch["vessels"][mine], batch["fov"][mine]

    def _end_epoch(self) -> None:
        """Write a row of the history; validate and save if one of the checks is due."""
        row = {
            "epoch": self.step / self.per_epoch,
            "step": self.step,
            "seconds": self.elapsed(),
            "loss": float(np.mean(self.losses)),
            "lr": self.optimizer.param_groups[0]["lr"],
            "val_dice": math.nan,
        }
        self.losses.clear()
        self.rows.append(row)
        due = self.share_done() * self.settings["checks"]
        if due >= self.checks_done + 1:
            self.checks_done = math.floor(due)
            self.network.eval()
            if self.val:
                row["val_dice"] = self._validate()
            if self.callback is not None:
                self.callback(self.network.module, row)
            self.network.train()
            self.save()

    def _validate(self) -> float:
        dice = validation_dice(
            self.network.module,
            self.val,
            self.settings["normalisation"],
            self.settings["fov_width"],
        )
        if dice > self.best:
            self.best, self.best_weights = dice, _copy(self.network.module)
        return dice

    def _explain_divergence(self, outputs: Outputs) -> str:
        """What to try when the loss is no longer a number."""
        logits = outputs if isinstance(outputs, torch.Tensor) else outputs[0]
        lr, precision = self.settings["lr"], self.settings["precision"]
        seen = f"the loss before was {self.losses[-1]:.3g}" if self.losses else "it begins an epoch"
        finite = "finite" if logits.isfinite().all() else "not finite"
        return (
            f"the loss of step {self.step} is not finite ({seen}; the logits are {finite}). "
            f"Usual causes: a learning rate that is too high (now {lr:g}: try {lr / 10:g}), "
            f"{precision} precision (try '32-true'), or an image with NaN in it. "
            "The weights before this step are kept."
        )

    def progress_bar(self, wanted: bool) -> tqdm:
        """A bar in steps, or in seconds of the budget. Static pages and other ranks have none."""
        in_steps = self.limit == math.inf
        return tqdm(
            total=round(self.total_steps if in_steps else self.limit),
            initial=self._position(),
            unit="step" if in_steps else "s",
            mininterval=1,
            desc=self.settings["model"],
            disable=not wanted
            or bool(os.environ.get("RETINA_LAB_STATIC"))
            or self.fabric.global_rank > 0,
        )

    def _position(self) -> int:
        return self.step if self.limit == math.inf else round(min(self.elapsed(), self.limit))

    def _show(self, bar: tqdm) -> None:
        if self.rows and not self.losses:
            shown = {"loss": f"{self.rows[-1]['loss']:.3f}"}
            if self.best >= 0:
                shown["val_dice"] = f"{self.best:.3f}"
            bar.set_postfix(shown, refresh=False)
        bar.update(self._position() - bar.n)

    def save(self) -> None:
        """Write ``checkpoint.pt`` and ``history.csv``, unless the weights are already broken."""
        network = self.network.module
        sound = all(torch.isfinite(p).all() for p in network.parameters())
        if self.out is None or self.fabric.global_rank or not sound:
            return
        everything = {
            "model": network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
            "checks_done": self.checks_done,
            "elapsed": self.elapsed(),
            "losses": self.losses,
            "rows": self.rows,
            "best": self.best,
            "best_weights": self.best_weights,
            "settings": json.dumps(self.settings),
        }
        _write_atomically(self.out / CHECKPOINT, lambda path: torch.save(everything, path))
        table = pd.DataFrame(self.rows, columns=HISTORY)
        _write_atomically(self.out / "history.csv", lambda path: table.to_csv(path, index=False))

    def _restore(self) -> None:
        """Go on from ``checkpoint.pt``."""
        saved = torch.load(
            self.out / CHECKPOINT, map_location=self.fabric.device, weights_only=True
        )
        self.network.module.load_state_dict(saved["model"])
        self.optimizer.load_state_dict(saved["optimizer"])
        self.step, self.checks_done = saved["step"], saved["checks_done"]
        self.before, self.losses, self.rows = saved["elapsed"], saved["losses"], saved["rows"]
        self.best, self.best_weights = saved["best"], saved["best_weights"]

    def result(self, interrupted: bool) -> Run:
        """The run with its best weights; ``last.safetensors`` beside them."""
        seconds = {"train": self.elapsed()}
        self.network.eval()
        if self.val and self.rows and not interrupted and math.isnan(self.rows[-1]["val_dice"]):
            self.rows[-1]["val_dice"] = self._validate()
        last_weights = _copy(self.network.module)
        if self.out is not None and self.fabric.global_rank == 0:
            _write_atomically(
                self.out / "last.safetensors", lambda path: save_file(last_weights, path)
            )
        kept = self.network.module.cpu().to(memory_format=torch.contiguous_format)
        kept.load_state_dict(self.best_weights or last_weights)
        return Run(
            model=kept.eval(),
            settings=self.settings,
            history=pd.DataFrame(self.rows, columns=HISTORY),
            seconds=seconds,
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
    augmentation: str | Augmentation = "standard",
    normalisation: str = "local",
    crop: int | None = 192,
    widest: int = 600,
    batch_size: int = 2,
    lr: float = 2e-3,
    weight_decay: float = 1e-2,
    gradient_clip: float = 1.0,
    checks: int = 10,
    device: str = "auto",
    devices: int = 1,
    precision: str = "auto",
    threshold: bool = True,
    split: str | None = None,
    progress: bool = True,
    callback: Callable[[nn.Module, dict[str, float]], None] | None = None,
) -> Run:
    """Train a segmentation network for a number of epochs or for a time budget.

    AdamW, with a learning rate that falls linearly to zero at the end of the epochs or of
    the budget. BatchNorm's running averages reach back over the last tenth of the steps (the
    aim of "precise BatchNorm": Wu and Johnson, "Rethinking 'batch' in BatchNorm", 2021). The
    budget is wall time up to the last training step, reading the images and
    validation included; choosing the threshold comes after it.

    Args:
        model: a name of ``retina-lab models``, built here from ``seed``, or a module.
        train: labelled samples; one epoch shows a crop of each.
        val: labelled samples for ``val_dice`` and the choice of the best weights; without
            them the last weights are kept. Never test images.
        epochs: number of epochs; or
        budget: time such as ``"60s"``, ``"5m"`` or seconds. Exactly one of the two.
        seed: of weights, crops, augmentation and dropout; ≥ 0.
        out: folder for ``run.json``, ``weights.safetensors`` (best), ``last.safetensors``,
            ``history.csv`` and ``checkpoint.pt``. A stopped run in it is continued if its
            settings are the same; a finished one is returned; another one is an error.
        loss: recipe for :func:`retina_lab.losses.build_loss`.
        augmentation: a policy or its name.
        normalisation: see :func:`retina_lab.preprocess.normalise`.
        crop: side of the training crops in pixels; None for whole images.
        widest: field of view in pixels above which photographs are reduced to this width, for
            training and later for prediction (lwnet reduces to 512). A large number trains
            at the photographs' own scale.
        batch_size: crops a step, over all processes together.
        lr: learning rate at the start.
        weight_decay: of AdamW.
        gradient_clip: largest norm of the whole gradient.
        checks: how many times validation is run, evenly over the training.
        device: ``"auto"``, ``"cpu"``, ``"cuda"`` or ``"mps"``.
        devices: number of processes, one device each (DDP above one). Under torchrun or
            SLURM the launcher's number is used.
        precision: ``"auto"`` or one of fabric's, such as ``"32-true"``, ``"bf16-mixed"``.
        threshold: choose the threshold on ``train`` and ``val`` at the end.
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
    # Fabric takes seconds to import: only those who train wait for it, and off the clock.
    from lightning_fabric import Fabric

    if (epochs is None) == (budget is None):
        raise ValueError("give either epochs or a budget, not both and not neither")
    if epochs is not None and epochs < 1:
        raise ValueError(f"epochs must be at least 1, not {epochs}")
    for name, value in {
        "batch_size": batch_size,
        "crop": 1 if crop is None else crop,
        "checks": checks,
        "widest": widest,
    }.items():
        if value < 1:
            raise ValueError(f"{name} must be at least 1, not {value}")
    if lr <= 0 or weight_decay < 0 or gradient_clip <= 0:
        raise ValueError("lr and gradient_clip must be positive and weight_decay not negative")
    limit = parse_budget(budget) if budget is not None else math.inf
    if seed < 0:
        raise ValueError(f"the seed must not be negative, not {seed}")
    if isinstance(augmentation, str):
        augmentation = augmentation_by_name(augmentation)
    criterion = build_loss(loss)
    if isinstance(model, str):
        find_model(model)  # a misspelt name is told before the images are read
    train, val = list(train), list(val or [])

    fabric = Fabric(accelerator=device, devices=devices, precision=None)
    if precision == "auto":
        precision = choose_precision(fabric.device.type)
    fabric = Fabric(accelerator=device, devices=devices, precision=precision)
    fabric.launch()
    begin = time.perf_counter()
    if batch_size % fabric.world_size:
        raise ValueError(
            f"batch_size {batch_size} does not divide among {fabric.world_size} processes"
        )

    torch.manual_seed(step_seed(seed, 0))
    model_name = model if isinstance(model, str) else None
    network = build_model(model) if isinstance(model, str) else model
    settings = {
        "model": model_name or type(network).__name__,
        "model_known": model_name is not None,
        "parameters": count_parameters(network),
        "start": _fingerprint(network.state_dict()),
        "train": [sample.name for sample in train],
        "val": [sample.name for sample in val],
        "dataset": train[0].dataset if train else "",
        "split": split,
        "fov_width": min(widest, round(float(np.median([fov_width(s.fov) for s in train] or [0])))),
        "epochs": epochs,
        "budget_seconds": None if budget is None else limit,
        "seed": seed,
        "loss": loss,
        "augmentation": repr(augmentation),
        "normalisation": normalisation,
        "crop": crop,
        "batch_size": batch_size,
        "lr": lr,
        "weight_decay": weight_decay,
        "gradient_clip": gradient_clip,
        "checks": checks,
        "precision": precision,
    }
    out = Path(out) if out is not None else None
    if out is not None:
        finished = _look_into(out, settings)
        if finished is not None:
            return finished
        out.mkdir(parents=True, exist_ok=True)

    sampler = CropSampler(
        train, crop, batch_size, augmentation, normalisation, seed, settings["fov_width"]
    )
    network = network.to(memory_format=torch.channels_last)
    if fabric.world_size > 1 and fabric.device.type == "cuda":
        network = nn.SyncBatchNorm.convert_sync_batchnorm(network)
    optimizer = torch.optim.AdamW(network.parameters(), lr=lr, weight_decay=weight_decay)
    training = Training(
        fabric, network, optimizer, criterion, sampler, val, settings, out, begin, callback
    )
    with _StopAfterStep() as stop, training.progress_bar(progress) as bar:
        try:
            training.loop(stop, bar)
        except KeyboardInterrupt:  # a second Ctrl-C, or one while validating
            stop.asked = True
        finally:
            # Whatever ended the loop: the state after the last good step is on disk.
            training.save()
    run = training.result(interrupted=stop.asked)
    if threshold and not run.interrupted:
        from retina_lab.evaluate import choose_threshold

        start = time.perf_counter()
        # All labelled images, for observers differ in how much they call a vessel: the best
        # thresholds of single images lie far apart, and two of them are no sample.
        labelled = train + val
        run.threshold = choose_threshold(labelled, predict_dataset(run, labelled))
        run.threshold_from = f"{len(train)} training" + (
            f" and {len(val)} validation images" if val else " images"
        )
        run.seconds["threshold"] = time.perf_counter() - start
    if out is not None and fabric.global_rank == 0:
        save_run(run, out)
    return run


def _copy(network: nn.Module) -> dict[str, torch.Tensor]:
    """The network's weights, on the CPU and untouched by later steps."""
    return {k: v.detach().cpu().clone().contiguous() for k, v in network.state_dict().items()}


def _look_into(out: Path, settings: dict[str, Any]) -> Run | None:
    """What lies in an output folder: a finished run of the same settings, or nothing final.

    Raises:
        TrainingError: if the folder holds another run or foreign files.
    """
    if out.exists() and not out.is_dir():
        raise TrainingError(f"{out} is a file; choose a folder for the run")
    found = None
    if (out / "run.json").exists():
        found = json.loads((out / "run.json").read_text(encoding="utf-8"))["settings"]
    elif (out / CHECKPOINT).exists():
        try:
            saved = torch.load(out / CHECKPOINT, map_location="cpu", weights_only=True)
            found = json.loads(saved["settings"])
        except Exception as error:
            raise TrainingError(
                f"{out / CHECKPOINT} cannot be read ({error}); "
                "delete it to start again, or choose another folder"
            ) from error
    if found is None:
        return None
    differing = [k for k in settings if settings[k] != found.get(k)]
    if differing:
        detail = "; ".join(f"{k}: {found.get(k)!r} there, {settings[k]!r} now" for k in differing)
        raise TrainingError(
            f"{out} holds a run with other settings ({detail}). "
            "Choose another folder; nothing there was changed."
        )
    run = load_run(out) if (out / "run.json").exists() and settings["model_known"] else None
    return run if run is not None and not run.interrupted else None


def save_run(run: Run, out: str | os.PathLike) -> None:
    """Write ``run.json``, ``weights.safetensors`` and ``history.csv`` into a folder."""
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    weights = _copy(run.model)
    _write_atomically(out / "weights.safetensors", lambda path: save_file(weights, path))
    _write_atomically(out / "history.csv", lambda path: run.history.to_csv(path, index=False))
    record = {
        "settings": run.settings,
        "versions": versions(),
        "seconds": {k: round(v, 3) for k, v in run.seconds.items()},
        "threshold": {"value": run.threshold, "from": run.threshold_from},
        "interrupted": run.interrupted,
    }
    text = json.dumps(record, indent=2, ensure_ascii=False) + "\n"
    _write_atomically(out / "run.json", lambda path: path.write_text(text, encoding="utf-8"))


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
    )
