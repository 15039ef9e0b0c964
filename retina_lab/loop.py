"""What every training of the course shares: clock, rate, record, stopping, going on.

What one step does, and what is learned from it, is said by the subclasses: segmentation in
:mod:`retina_lab.train`, against an adversary in :mod:`retina_lab.adversarial`.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import platform
import re
import signal
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
import torch.distributed
import torch.nn as nn
from filelock import FileLock, Timeout
from safetensors.torch import save_file
from torch.nn.modules.batchnorm import _BatchNorm
from tqdm.auto import tqdm

from retina_lab import __version__

if TYPE_CHECKING:
    from lightning_fabric import Fabric

CHECKPOINT, RECORD, LOCK = "checkpoint.pt", "run.json", ".lock"
RULES = 2
"""Raised when equal settings end in other weights than before, so that no old run passes for a
new one. 2: last weights; labels that lie where a reduced photograph shows them."""
LATER = {"schedule": "linear", "adversary": None, "rules": 1}
"""Settings that older runs do not name, and what they had in their place."""
DIGESTS = {
    "pixels": "photographs or labels have changed",
    "photographs": "photographs have changed",
    "trees": "photographs or trees have changed",
    "styles": "the styles are others",
}
"""Settings that stand for data, in words; older runs do not know them."""
LONGEST_WAIT = timedelta(hours=12)
"""How long processes wait for one that is predicting and scoring."""
UNITS = {"s": 1, "m": 60, "h": 3600}


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


def choose_precision(accelerator: str) -> str:
    """Fabric's precision that is fastest on this processor and still safe to train in.

    bfloat16 halves the memory traffic, but a processor or card without bf16 instructions
    emulates it and is slower than in float32 (or, on a card, in float16).
    """
    if accelerator == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
        return "bf16-mixed" if native else "16-mixed"
    if accelerator == "cpu" and (
        torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    ):
        return "bf16-mixed"
    return "32-true"


def launcher() -> str:
    """Who starts the processes, as fabric sees it: ``"torchrun"``, ``"slurm"`` or ``"own"``."""
    if "TORCHELASTIC_RUN_ID" in os.environ:
        return "torchrun"
    by_hand = os.environ.get("SLURM_JOB_NAME") in ("bash", "interactive")
    return "slurm" if "SLURM_NTASKS" in os.environ and not by_hand else "own"


def launched_processes(devices: int) -> tuple[int, int]:
    """Processes a node, and nodes: the launcher's numbers, or ``devices`` without a launcher.

    Fabric knows torchrun's and SLURM's variables, but wants to be told how many there are.

    Raises:
        ValueError: if SLURM has started another number of processes than is asked for.
    """
    told = os.environ
    if launcher() == "torchrun":
        here = int(told["LOCAL_WORLD_SIZE"])
        return here, int(told["WORLD_SIZE"]) // here
    if launcher() == "slurm":
        nodes = int(told.get("SLURM_NNODES", 1))
        here = int(told["SLURM_NTASKS"]) // nodes
        if devices > 1 and devices != here:
            raise ValueError(
                f"SLURM has started {here} processes a node, not {devices}; ask for them with "
                "--ntasks-per-node"
            )
        return here, nodes
    return devices, 1


def is_first_process() -> bool:
    """Whether this is the process that writes; true where there is only one.

    Known before anything is launched: torchrun, SLURM and fabric's own launcher say it in
    variables.
    """
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank() == 0
    name = {"torchrun": "RANK", "slurm": "SLURM_PROCID", "own": "LOCAL_RANK"}[launcher()]
    return int(os.environ.get(name, 0)) == 0


def agree(value: Any) -> Any:
    """What the first process says; the value itself where there is only one process."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        said = [value]
        torch.distributed.broadcast_object_list(said, src=0)
        return said[0]
    return value


MIXED = " + "
"""Between the names of the datasets that a network was trained on."""


def start_fabric(device: str, devices: int, precision: str) -> tuple[Fabric, str]:
    """A launched fabric, and the precision it has chosen if asked for ``"auto"``.

    Raises:
        ValueError: if this machine lacks the device.
    """
    from retina_lab.predict import pick_device

    pick_device(device)
    # Fabric takes seconds to import: only those who train wait for it, and off the clock.
    from lightning_fabric import Fabric
    from lightning_fabric.strategies import DDPStrategy

    # It announces the precision at every start; that stands in the run's record.
    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)
    devices, nodes = launched_processes(devices)
    several = devices * nodes > 1
    common = {
        "accelerator": device,
        "devices": devices,
        "num_nodes": nodes,
        "strategy": DDPStrategy(timeout=LONGEST_WAIT) if several else "auto",
    }
    if precision == "auto":
        precision = choose_precision(Fabric(**common | {"strategy": "auto"}).device.type)
    fabric = Fabric(**common, precision=precision)
    fabric.launch()
    return fabric, precision


def step_seed(seed: int, *position: int) -> int:
    """A seed for one place in a run; different places get unrelated streams."""
    return int(np.random.SeedSequence([seed, *position]).generate_state(1, np.uint64)[0] >> 1)


def write_atomically(path: Path, write: Callable[[Path], None]) -> None:
    """Write beside the target and rename, so that a crash never leaves half a file."""
    partial = path.with_name(path.name + ".part")
    write(partial)
    os.replace(partial, path)


def weights_of(network: nn.Module) -> dict[str, torch.Tensor]:
    """The network's weights, on the CPU and untouched by later steps."""
    return {k: v.detach().cpu().clone().contiguous() for k, v in network.state_dict().items()}


def fingerprint(weights: dict[str, torch.Tensor]) -> str:
    """Short digest of starting weights, so that a resumed run is known to be the same run."""
    digest = hashlib.sha256()
    for name, tensor in sorted(weights.items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def digest(arrays: Iterable[np.ndarray]) -> str:
    """Short digest of what is learned from: shapes, types and values of all arrays, in order."""
    found = hashlib.sha256()
    for array in arrays:
        found.update(f"{array.shape}{array.dtype}".encode())
        found.update(np.ascontiguousarray(array))
    return found.hexdigest()[:16]


def versions() -> dict[str, str]:
    """What a run was made with: software, processor, threads."""
    return {
        "retina_lab": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "processor": platform.processor() or platform.machine(),
        "threads": str(torch.get_num_threads()),
        **({"card": torch.cuda.get_device_name()} if torch.cuda.is_available() else {}),
    }


def settings_found(out: Path, settings: dict[str, Any]) -> bool:
    """Whether a run of these settings lies in a folder, finished or not.

    Raises:
        TrainingError: if the folder holds a run of other settings, or what it holds cannot be
            read. Nothing in it is changed.
    """
    if out.exists() and not out.is_dir():
        raise TrainingError(f"{out} is a file; choose a folder for the run")
    found = None
    if (out / RECORD).exists():
        found = json.loads((out / RECORD).read_text(encoding="utf-8"))["settings"]
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
        return False
    differing = [
        k
        for k in settings
        if settings[k] != found.get(k, LATER.get(k)) and (k in found or k not in DIGESTS)
    ]
    if differing:
        detail = "; ".join(
            DIGESTS.get(k, f"{k}: {found.get(k)!r} there, {settings[k]!r} now") for k in differing
        )
        raise TrainingError(
            f"{out} holds a run with other settings ({detail}). "
            "Choose another folder; nothing there was changed."
        )
    return True


def is_finished(out: Path, settings: dict[str, Any]) -> bool:
    """Whether a folder holds a finished run of these settings.

    Raises:
        TrainingError: see :func:`settings_found`.
    """
    if not settings_found(out, settings) or not (out / RECORD).exists():
        return False
    return not json.loads((out / RECORD).read_text(encoding="utf-8"))["interrupted"]


def claim(out: Path, settings: dict[str, Any], held: ExitStack) -> bool:
    """Take a folder for a run, so that no other process trains in it; all processes agree.

    Args:
        out: the folder, made if needed.
        settings: of the run.
        held: lets the folder go when it is closed.

    Returns:
        Whether the run is finished already; then nothing is held.

    Raises:
        TrainingError: if the folder holds another run, or one that is being trained.
    """
    finished, problem = False, None
    if is_first_process():
        try:
            finished = is_finished(out, settings)
            if not finished:
                out.mkdir(parents=True, exist_ok=True)
                held.enter_context(FileLock(out / LOCK, timeout=0))
                finished = is_finished(out, settings)  # in the meantime
        except Timeout:
            problem = f"{out} is being trained by another process; wait for it, or choose a folder"
        except (TrainingError, OSError) as error:
            problem = str(error)
    finished, problem = agree((finished, problem))
    if problem is not None:
        raise TrainingError(problem)
    return finished


def write_run(
    out: Path, weights: dict[str, dict[str, torch.Tensor]], run: Any, **more: Any
) -> None:
    """Write what a finished or stopped training leaves: weights, ``history.csv``, ``run.json``.

    Args:
        out: folder, made if needed.
        weights: by name of the file without its ending.
        run: has ``settings``, ``history``, ``seconds`` and ``interrupted``.
        **more: further entries of ``run.json``.
    """
    out.mkdir(parents=True, exist_ok=True)
    for name, tensors in weights.items():
        write_atomically(
            out / f"{name}.safetensors", lambda path, tensors=tensors: save_file(tensors, path)
        )
    write_atomically(out / "history.csv", lambda path: run.history.to_csv(path, index=False))
    record = {
        "settings": run.settings,
        "versions": versions(),
        "seconds": {k: round(v, 3) for k, v in run.seconds.items()},
        "interrupted": run.interrupted,
        **more,
    }
    text = json.dumps(record, indent=2, ensure_ascii=False) + "\n"
    write_atomically(out / RECORD, lambda path: path.write_text(text, encoding="utf-8"))


class StopAfterStep:
    """Turns the first Ctrl-C, or a polite kill, into a wish that the loop grants between two steps.

    An exception in the middle of a step would leave half of the weights updated. The second
    one is an ordinary interrupt. SLURM and torchrun end a job by SIGTERM. Signals reach the
    main thread only; elsewhere nothing changes.
    """

    SIGNALS = (signal.SIGINT, signal.SIGTERM)

    def __init__(self):
        self.asked = False  # of this process
        self.granted = False  # and agreed upon by all
        self.previous: dict[int, Any] = {}

    def __enter__(self):
        if threading.current_thread() is threading.main_thread():
            self.previous = {kind: signal.signal(kind, self._handle) for kind in self.SIGNALS}
        return self

    def _handle(self, number, frame):
        # A job's end may be announced twice; only a person who presses Ctrl-C again means now.
        if self.asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.asked = True

    def __exit__(self, *_):
        for kind, handler in self.previous.items():
            signal.signal(kind, signal.SIG_DFL if handler is None else handler)


def _mean(values: list[float]) -> float:
    """NaN, without a warning, if there are none."""
    return float(np.mean(values)) if values else math.nan


class Loop:
    """One training in progress: what must be kept to go on, and the loop itself.

    A subclass fills in :meth:`learn`, which makes one step, and may fill in :meth:`validate`.
    Read :meth:`run` first.

    Args:
        fabric: sets up devices, precision and processes; launched.
        networks: by name; the first one is what is trained *for*. Where the rate falls to zero
            its last weights are kept; where it runs through cycles, those of the best check.
        optimizers: by the same names. The rate each begins with is multiplied by :meth:`rate`.
        steps_per_epoch: steps in which every image is seen once.
        settings: of the run, with ``model``, ``seed``, ``epochs``, ``budget_seconds``,
            ``checks``, ``gradient_clip`` (None: none) and ``precision``; ``schedule`` if it is
            not linear.
        columns: what :meth:`learn` reports beside ``loss``.
        score: name of the column with what :meth:`validate` returns.
        out: folder for ``checkpoint.pt`` and ``history.csv``, or None.
        begin: ``time.perf_counter()`` when the budget began.
        callback: called as ``callback(network, row)`` at each check, the network in eval mode.
    """

    def __init__(
        self,
        fabric: Fabric,
        networks: dict[str, nn.Module],
        optimizers: dict[str, torch.optim.Optimizer],
        *,
        steps_per_epoch: int,
        settings: dict[str, Any],
        columns: Sequence[str] = (),
        score: str = "val_dice",
        out: Path | None = None,
        begin: float | None = None,
        callback: Callable[[nn.Module, dict[str, float]], None] | None = None,
    ):
        self.fabric, self.settings, self.out, self.callback = fabric, settings, out, callback
        self.networks, self.optimizers = {}, {}
        for name, network in networks.items():
            network = network.to(memory_format=torch.channels_last)
            if fabric.world_size > 1 and fabric.device.type == "cuda":
                network = nn.SyncBatchNorm.convert_sync_batchnorm(network)
            for group in optimizers[name].param_groups:
                group["initial_lr"] = group["lr"]
            self.networks[name], self.optimizers[name] = fabric.setup(network, optimizers[name])
        self.main = next(iter(self.networks))
        self.batchnorms = [
            m for network in self.networks.values() for m in network.modules()
            if isinstance(m, _BatchNorm)
        ]  # fmt: skip
        self.per_epoch = steps_per_epoch
        epochs, budget = settings["epochs"], settings["budget_seconds"]
        self.total_steps = math.inf if epochs is None else epochs * self.per_epoch
        self.limit = math.inf if budget is None else budget
        self.columns, self.score = ["loss", *columns], score
        self.history_columns = ["epoch", "step", "seconds", *self.columns, "lr", score]
        self.step, self.checks_done = 0, 0
        self.whole = True  # whether no network has moved since the step began
        self.cycle_began = 0.0  # share of the training at the end of the last check
        self.cycle_step = 0  # and the step
        self.begin = time.perf_counter() if begin is None else begin
        self.before = 0.0  # seconds of the sittings before this one
        self.seconds = math.nan  # of all of them, once it is finished
        self.losses: list[dict[str, float]] = []  # of the current epoch
        self.rows: list[dict[str, float]] = []
        self.best = -math.inf  # of the ends of cycles
        self.best_weights: dict[str, torch.Tensor] | None = None
        if out is not None and agree((out / CHECKPOINT).exists()):
            self._restore()

    # --- what a subclass says

    def learn(self) -> dict[str, float]:
        """Make one step; return ``"loss"``, and what there is of the other ``columns``."""
        raise NotImplementedError

    def validate(self) -> float:
        """How good the main network is on images that it does not train on; higher is better.

        NaN, if there are none.
        """
        return math.nan

    # --- the loop

    def run(self, stop: StopAfterStep, bar: tqdm) -> None:
        """Step by step, until the epochs or the seconds are over."""
        self._train_mode(True)
        while (share := self.share_done()) < 1 and not self.stopped(stop):
            self._set_rates(self.rate(share))
            self._set_momentum()
            torch.manual_seed(step_seed(self.settings["seed"], 3, self.step, self.rank))  # dropout
            self.losses.append(self.learn())

            self.step += 1
            self.whole = True
            if self.step % self.per_epoch == 0 or self._cycle_is_over():
                self._end_epoch()
            self._show(bar)
        if self.losses and not self.stopped(stop):  # the budget ended inside an epoch
            self._end_epoch()

    def follow(self, loss: torch.Tensor, *names: str) -> None:
        """Let some of the networks follow the gradient of a loss, clipped, by one step.

        Raises:
            TrainingError: if the loss or its gradient is not finite; the weights are as they were.
        """
        sound = torch.isfinite(loss)
        if self.fabric.world_size > 1:  # a bad share of the batch must stop all processes
            sound = self.fabric.all_reduce(sound.float(), reduce_op="mean") == 1
        if not sound:
            raise TrainingError(self._explain_divergence(names[0]))
        self.fabric.backward(loss)
        # In float16 the loss is scaled up until a gradient overflows; that step is left out.
        scaled = getattr(self.fabric.strategy.precision, "scaler", None) is not None
        for name in names:
            network, optimizer = self.networks[name], self.optimizers[name]
            if self.settings["gradient_clip"] is not None:
                norm = self.fabric.clip_gradients(
                    network,
                    optimizer,
                    max_norm=self.settings["gradient_clip"],
                    error_if_nonfinite=False,
                )
                if not scaled and not torch.isfinite(norm):
                    raise TrainingError(self._explain_divergence(name, "gradient"))
            self.whole = False
            optimizer.step()
            optimizer.zero_grad()

    @property
    def rank(self) -> int:
        """Which of the processes this is; 0 if there is one."""
        return self.fabric.global_rank

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

    def rate(self, share: float) -> float:
        """The learning rate at a share of the training, as a part of the rate at its start.

        ``"linear"`` falls from one to zero. ``"cycles"`` falls along half a cosine to zero before
        every check and is one again after it (Loshchilov and Hutter, "SGDR", 2017, equation 5).
        A cycle ends with its check: weights must not be judged at a high rate.
        """
        if not self.in_cycles:
            return 1 - share
        length = max(self._next_check() - self.cycle_began, 1e-9)
        position = min(1.0, (share - self.cycle_began) / length)
        return (1 + math.cos(math.pi * position)) / 2

    @property
    def in_cycles(self) -> bool:
        """Whether the rate runs through cycles."""
        return self.settings.get("schedule", "linear") == "cycles"

    def _next_check(self) -> float:
        """The share of the training at which the cycle that has begun will end."""
        checks = self.settings["checks"]
        # Validation takes time: a cycle lasts between half and one and a half of its share.
        return min(1.0, (math.floor(self.cycle_began * checks + 0.5) + 1) / checks)

    def _cycle_is_over(self) -> bool:
        """Whether a check is due in the middle of an epoch: cycles do not wait for its end."""
        return self.in_cycles and self.share_done() >= self._next_check()

    def stopped(self, stop: StopAfterStep) -> bool:
        """Whether to stop after this step: the first process decides, and all do the same."""
        stop.granted = agree(stop.asked)
        return stop.granted

    def _train_mode(self, training: bool) -> None:
        for network in self.networks.values():
            network.train(training)

    def _set_rates(self, share: float) -> None:
        for optimizer in self.optimizers.values():
            for group in optimizer.param_groups:
                group["lr"] = group["initial_lr"] * share

    def _set_momentum(self) -> None:
        """Let BatchNorm's running averages reach back over the last tenth of the steps.

        They are all that prediction sees of BatchNorm. With the usual momentum of 0.1 they
        rest on the last ten batches, which here are twenty crops: so few that the level of
        all probabilities, and the best threshold with it, changed from run to run. The very
        first batches get a plain mean, so that nothing is left of the 0 and 1 it starts from. A
        cycle begins anew: the averages before it are of other weights.
        """
        since = self.step - (self.cycle_step if self.in_cycles else 0)
        for norm in self.batchnorms:
            norm.momentum = max(min(0.1, 10 / (since + 1)), 1 / (self.step + 1))

    def _end_epoch(self) -> None:
        """Write a row of the history; validate and save if one of the checks is due."""
        row = {
            "epoch": self.step / self.per_epoch,
            "step": self.step,
            "seconds": self.elapsed(),
            **{
                name: _mean([loss[name] for loss in self.losses if name in loss])
                for name in self.columns
            },
            "lr": self.optimizers[self.main].param_groups[0]["lr"],
            self.score: math.nan,
        }
        self.losses.clear()
        self.rows.append(row)
        share = self.share_done()
        begun = share * self.settings["checks"]  # checks that are due until now
        if share >= self._next_check() if self.in_cycles else begun >= self.checks_done + 1:
            self.checks_done = math.floor(begun)
            self._train_mode(False)
            row[self.score] = self._check()
            self.cycle_began, self.cycle_step = self.share_done(), self.step
            if self.callback is not None:
                self.callback(self.networks[self.main].module, row)
            self._train_mode(True)
            self.save()

    def _check(self) -> float:
        """Validate; at the end of a cycle, keep the weights if they are the best so far.

        Where the rate falls to zero the last weights are the best guess: a few validation images
        tell a network in the middle of its training from a better one no more surely than a coin.
        """
        score = self.validate()
        if self.in_cycles and score > self.best:
            self.best, self.best_weights = score, weights_of(self.networks[self.main].module)
        return score

    def _explain_divergence(self, name: str, what: str = "loss") -> str:
        """What to try when the loss, or its gradient, is no longer a number."""
        precision = self.settings["precision"]
        lr = self.optimizers[name].param_groups[0]["initial_lr"]
        seen = (
            f"the loss before was {self.losses[-1]['loss']:.3g}"
            if self.losses
            else "it begins an epoch"
        )
        whose = "" if len(self.networks) == 1 else f" of the {name}"
        return (
            f"the {what}{whose} of step {self.step} is not finite ({seen}). "
            f"Usual causes: a learning rate that is too high (now {lr:g}: try {lr / 10:g}), "
            f"{precision} precision (try '32-true'), or an image with NaN in it. "
            "What was saved before is kept."
        )

    # --- the progress bar

    def progress_bar(self, wanted: bool) -> tqdm:
        """A bar in steps, or in seconds of the budget. Static pages and other ranks have none."""
        in_steps = self.limit == math.inf
        return tqdm(
            total=round(self.total_steps if in_steps else self.limit),
            initial=self._position(),
            unit="step" if in_steps else "s",
            mininterval=1,
            desc=self.settings["model"],
            disable=not wanted or bool(os.environ.get("RETINA_LAB_STATIC")) or self.rank > 0,
        )

    def _position(self) -> int:
        return self.step if self.limit == math.inf else round(min(self.elapsed(), self.limit))

    def _show(self, bar: tqdm) -> None:
        if self.rows and not self.losses:
            shown = {name: f"{self.rows[-1][name]:.3f}" for name in self.columns}
            scores = [row[self.score] for row in self.rows if not math.isnan(row[self.score])]
            if scores:
                shown[self.score] = f"{scores[-1]:.3f}"
            bar.set_postfix(shown, refresh=False)
        bar.update(self._position() - bar.n)

    # --- stopping and going on

    def history(self) -> pd.DataFrame:
        """One row an epoch."""
        return pd.DataFrame(self.rows, columns=self.history_columns)

    def save(self) -> None:
        """Write ``checkpoint.pt`` and ``history.csv``, unless the state is already broken.

        It is, if a number is not finite (BatchNorm's averages are spoiled before the loss is
        seen), or if the step was interrupted after some of the weights had moved.
        """
        networks = {name: network.module for name, network in self.networks.items()}
        sound = all(
            torch.isfinite(t).all()
            for n in networks.values()
            for t in n.state_dict().values()
            if t.is_floating_point()
        )
        if self.out is None or self.rank or not sound or not self.whole:
            return
        everything = {
            "networks": {name: network.state_dict() for name, network in networks.items()},
            "optimizers": {name: o.state_dict() for name, o in self.optimizers.items()},
            "precision": self.fabric.strategy.precision.state_dict(),
            "step": self.step,
            "checks_done": self.checks_done,
            "cycle_began": self.cycle_began,
            "cycle_step": self.cycle_step,
            "elapsed": self.elapsed(),
            "losses": self.losses,
            "rows": self.rows,
            "best": self.best,
            "best_weights": self.best_weights,
            "settings": json.dumps(self.settings),
        }
        write_atomically(self.out / CHECKPOINT, lambda path: torch.save(everything, path))
        table = self.history()
        write_atomically(self.out / "history.csv", lambda path: table.to_csv(path, index=False))

    def _restore(self) -> None:
        """Go on from ``checkpoint.pt``."""
        # Through the CPU: AdamW counts its steps there, and on a card would wait for each.
        saved = torch.load(self.out / CHECKPOINT, map_location="cpu", weights_only=True)
        for name, network in self.networks.items():
            network.module.load_state_dict(saved["networks"][name])
            self.optimizers[name].load_state_dict(saved["optimizers"][name])
        self.fabric.strategy.precision.load_state_dict(saved.get("precision", {}))
        self.step, self.checks_done = saved["step"], saved["checks_done"]
        self.cycle_began, self.cycle_step = saved["cycle_began"], saved["cycle_step"]
        self.before, self.losses, self.rows = saved["elapsed"], saved["losses"], saved["rows"]
        self.best, self.best_weights = saved["best"], saved["best_weights"]

    def finish(self, stop: StopAfterStep, progress: bool) -> None:
        """Run to the end, or until asked to stop; the state after the last whole step is saved.

        If a second Ctrl-C comes in the middle of a step, that of the last check.
        """
        with stop, self.progress_bar(progress) as bar:
            try:
                self.run(stop, bar)
            except KeyboardInterrupt:  # a second Ctrl-C, or one while validating
                stop.granted = True
            finally:
                self.save()
        self.seconds = self.elapsed()
        self._train_mode(False)
        if not stop.granted and self.rows and math.isnan(self.rows[-1][self.score]):
            self.rows[-1][self.score] = self._check()
