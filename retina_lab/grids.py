"""What is measured: the grids of the benchmark, declared and nothing else.

A grid is a list of cells, and a cell is one method scored on the test images of one or more
datasets by the protocol of :mod:`retina_lab.evaluate`. There are four kinds: a network trained
from one seed (:class:`Cell`), networks that were trained in other cells, together or treated
otherwise (:class:`Combination`), a method that learns nothing (:class:`Classical`), and maps
that somebody has published (:class:`Published`). :mod:`retina_lab.benchmark` measures them,
:mod:`retina_lab.results` reads what was found.
"""

from __future__ import annotations

import os
import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from retina_lab.datasets.manifests import project_root

Test = tuple[str, str]
"""A dataset and a split of it; its test images are scored."""


def length_of(text: str) -> dict[str, str | int]:
    """``"200 epochs"`` or ``"5m"`` as the arguments ``epochs`` or ``budget`` of a training."""
    number, _, unit = text.partition(" ")
    return {"epochs": int(number)} if unit == "epochs" else {"budget": text}


@dataclass(frozen=True)
class Cell:
    """One network, trained from one seed, and its scores.

    Attributes:
        model: name in ``retina-lab models``.
        dataset: trained on the training images of ``split``.
        split: of the dataset.
        length: of training: a time budget such as ``"5m"``, or ``"200 epochs"``.
        seed: of the training.
        scored_on: test images that are scored; its own if empty.
        options: further arguments of :func:`retina_lab.train.fit` that the command line has too.
        variant: what the options make of it, in a word or two; "" for the model's own settings.
        also: datasets whose training images are learned from too.
        val: training images that are kept for the curve of the validation Dice; with cycles they
            choose the weights.
    """

    model: str
    dataset: str
    split: str
    length: str
    seed: int
    scored_on: tuple[Test, ...] = ()
    options: tuple[tuple[str, Any], ...] = ()
    variant: str = ""
    also: tuple[Test, ...] = ()
    val: int = 2

    kind = "network"

    @property
    def name(self) -> str:
        """File name of its result, and of its run."""
        adversary = dict(self.options).get("adversary")
        network = f"{self.model}-vs-{adversary}" if adversary else self.model
        data = [(self.dataset, self.split), *self.also]
        parts = (network, self.variant, *(f"{d}-{s}" for d, s in data), self.length)
        return "-".join(as_file_name(part) for part in (*parts, f"s{self.seed}") if part)

    @property
    def how_long(self) -> dict[str, str | int]:
        """The same for :func:`retina_lab.train.fit`: ``budget`` or ``epochs``."""
        return length_of(self.length)

    @property
    def tests(self) -> tuple[Test, ...]:
        """What it is scored on."""
        return self.scored_on or ((self.dataset, self.split),)

    def commands(self, grid: str) -> dict[str, str | list[str]]:
        """The command lines that do the same by hand."""
        run = shlex.quote(f"runs/{self.name}")
        flags = "".join(f" --also {shlex.quote(f'{data}@{split}')}" for data, split in self.also)
        flags += "".join(
            f" --{name.replace('_', '-')} {shlex.quote(str(value))}"
            for name, value in {**self.how_long, **dict(self.options)}.items()
        ).replace("--crop None", "--crop 0")
        if self.val != type(self).val:  # the command's default
            flags = f" --val {self.val}{flags}"
        return {
            "train": f"retina-lab train --dataset {shlex.quote(self.dataset)} "
            f"--split {self.split} --model {self.model}{flags} --seed {self.seed} "
            f"--out {run}",
            "evaluate": [
                f"retina-lab evaluate --run {run} --dataset {shlex.quote(data)} --split {split}"
                for data, split in self.tests
            ],
        }


@dataclass(frozen=True)
class Combination:
    """Networks of other cells, averaged, or one of them treated otherwise after training.

    Its threshold is chosen as that of every network, on maps without flips of its first member's
    training images: a combination of one network and nothing else is that network.

    Attributes:
        label: what it is called in tables.
        members: the trainings; trained first if they have not been.
        tta: average over the four flips of the image, as every cell does.
        cleaned: hysteresis and sweeping, see :mod:`retina_lab.cleaning`.
    """

    label: str
    members: tuple[Cell, ...]
    tta: bool = True
    cleaned: bool = False

    kind = "combination"

    @property
    def name(self) -> str:
        """File name of its result."""
        first = self.members[0]
        seed = f"-s{first.seed}" if len(self.members) == 1 else ""
        parts = (self.label, first.dataset, first.split, first.length)
        return "-".join(as_file_name(part) for part in parts) + seed

    @property
    def tests(self) -> tuple[Test, ...]:
        """What it is scored on."""
        return self.members[0].tests

    def commands(self, grid: str) -> dict[str, str]:
        """The command line that does it again."""
        return _command(grid, self.name)


@dataclass(frozen=True)
class Classical:
    """A method that learns nothing but its threshold.

    Attributes:
        method: name in :data:`retina_lab.classical.CLASSICAL`.
        dataset: whose training images choose the threshold and whose test images are scored.
        split: of the dataset.
    """

    method: str
    dataset: str
    split: str

    kind = "classical"

    @property
    def name(self) -> str:
        """File name of its result."""
        return "-".join(as_file_name(part) for part in (self.method, self.dataset, self.split))

    @property
    def tests(self) -> tuple[Test, ...]:
        """What it is scored on."""
        return ((self.dataset, self.split),)

    def commands(self, grid: str) -> dict[str, str]:
        """The command line that does it again."""
        return _command(grid, self.name)


@dataclass(frozen=True)
class Published:
    """Probability maps of DRIVE's test images that others have published.

    There are none of training images, so the threshold is Otsu's, which needs no labels.

    Attributes:
        method: folder of the maps in :func:`maps_folder`.
        label: what it is called in tables, with its year.
    """

    method: str
    label: str

    kind = "published"

    @property
    def name(self) -> str:
        """File name of its result."""
        return as_file_name(f"{self.method}-drive-official")

    @property
    def tests(self) -> tuple[Test, ...]:
        """What it is scored on."""
        return (DRIVE,)

    def commands(self, grid: str) -> dict[str, str]:
        """The command line that does the same by hand."""
        return {
            "evaluate": f"retina-lab evaluate --maps data/maps/results/DRIVE/{self.method} "
            "--dataset drive --split official --threshold otsu"
        }


AnyCell = Cell | Combination | Classical | Published


def as_file_name(text: str) -> str:
    """Lower case letters, digits, hyphens and underscores only."""
    kept = (c if c.isalnum() or c == "_" else "-" for c in text.lower().replace("×", "x"))
    return re.sub("-+", "-", "".join(kept)).strip("-")


def _command(grid: str, name: str) -> dict[str, str]:
    return {"run": f"python -m retina_lab.benchmark run {grid} --only {name}"}


def maps_folder() -> Path:
    """Where published maps are looked for: ``RETINA_LAB_MAPS``, or ``data/maps/results/DRIVE``."""
    default = (project_root() or Path.cwd()) / "data" / "maps" / "results" / "DRIVE"
    return Path(os.environ.get("RETINA_LAB_MAPS") or default)


def baseline_of(grid: str, label: str) -> str:
    """The label that a method of a grid is compared with."""
    if " vs " in label and not label.startswith("m-cam-gan"):
        return label.split(" vs ")[0]
    if grid == "papers":
        return "rsan-backbone" if label.startswith("rsan") else "unet"
    return "small-unet"


EQUAL_BUDGET_MODELS = (
    "small-unet",
    "w-net",
    "small-cbam-unet",
    "small-cmp-unet",
    "small-rsan-backbone",
    "small-rsan-dropblock",
    "small-rsan-no-attention",
    "small-rsan",
    "small-deformable-encoder-unet",
    "small-du-net",
    "small-du-net-9",
)
STANDARD = (("augmentation", "standard"),)
"""In a few minutes ``light`` teaches a small network more; where rivals are compared or trainings
are long, all have the wider policy."""
# At the photograph's own scale local normalisation would see a wide vessel as its surroundings.
SLIDES = {
    **dict(STANDARD),
    "crop": None, "batch_size": 2, "lr": 1e-3, "loss": "bce + dice", "widest": 2000,
    "normalisation": "zscore", "weight_decay": 0.0,
}  # fmt: skip
RSAN = {**SLIDES, "loss": "bce"}
V_GAN = {**SLIDES, "lr": 2e-4, "loss": "bce"}
M_CAM_GAN = {
    "crop": 512, "batch_size": 2, "lr": 2e-4, "loss": "focal", "widest": 2000,
    "normalisation": "zscore", "weight_decay": 0.0,
    "augmentation": "strong", "adversary": "multi-scale-cam",
}  # fmt: skip
W_NET = {
    **dict(STANDARD),
    "crop": None, "batch_size": 4, "lr": 1e-2, "weight_decay": 0.0, "loss": "bce", "widest": 512,
    "normalisation": "none", "schedule": "cycles", "checks": 20,
}  # fmt: skip
"""lwnet's recipe: Adam, 20 cycles of half a cosine, whole images, reduced to 512 pixels where they
are much wider, no normalisation. Its scheduler is stepped past the end of each cycle, so that half
of its snapshots lie at the highest rate; ours restarts after each check."""

PAPERS: dict[str, tuple[str, dict[str, Any]]] = {
    # Widths are those of the registry. Where a source gives no schedule (the slides) ours stands;
    # the rate falls linearly everywhere but in lwnet's cycles, where RSAN takes one step.
    **dict.fromkeys(
        (
            "unet",
            "unet-3",
            "cbam-unet",
            "cmp-unet",
            "deformable-encoder-unet",
            "du-net",
            "du-net-9",
        ),
        ("200 epochs", SLIDES),
    ),
    **dict.fromkeys(
        ("rsan-backbone", "rsan-dropblock", "rsan-no-attention", "rsan"), ("200 epochs", RSAN)
    ),
    "v-gan": ("400 epochs", V_GAN),
    "m-cam-gan": ("1112 epochs", M_CAM_GAN),  # DRIVE and CHASE_DB1: 10,000 steps of two images
    "w-net": ("1000 epochs", W_NET),
}
"""How long the full-size networks are trained, and with which settings, by their sources."""

PAPERS_CHASE: dict[str, tuple[str, dict[str, Any]]] = {
    **{name: entry for name, entry in PAPERS.items() if not name.startswith("rsan")},
    # keep .78 and one image a step; the three steps of the ablation differ in nothing else
    **dict.fromkeys(
        ("rsan-backbone", "rsan-dropblock-chase", "rsan-chase"),
        ("150 epochs", {**RSAN, "batch_size": 1}),
    ),
}
"""The same on CHASE_DB1, where RSAN has other settings."""

ADVERSARIES = ("pixel", "patch-2", "patch-1", "image")
"""MI-GAN's and V-GAN's, by how much a verdict sees."""


def _as_options(settings: dict[str, Any]) -> tuple[tuple[str, Any], ...]:
    return tuple(settings.items())


DRIVE, CHASE, STARE = ("drive", "official"), ("chase_db1", "20/8"), ("stare", "10/10")
PHANTOM, HRF = ("phantom", "official"), ("hrf", "15/30")
EVERYWHERE = (PHANTOM, DRIVE, STARE, CHASE)

CLASS = {
    (data, seed): Cell("small-unet", *data, "5m", seed, val=0)
    for data in (DRIVE, CHASE)
    for seed in range(3)
}
"""The default network after five minutes, which other cells start from."""

EQUAL_BUDGET = {
    (data, seed): [
        Cell(model, *data, "4m", seed, options=STANDARD) for model in EQUAL_BUDGET_MODELS
    ]
    for data, seed in ((DRIVE, 0), (CHASE, 0), (DRIVE, 1))
}
"""Every architecture at about 120,000 parameters and the same four minutes."""

CLDICE = [
    Cell(
        "small-unet", *DRIVE, "5m", seed,
        options=(("loss", "bce + dice + 0.5 cldice"),), variant="soft-clDice", val=0,
    )
    for seed in range(3)
]  # fmt: skip

GRIDS: dict[str, list[AnyCell]] = {
    # What the course's default network reaches while a class waits.
    "small-unet": [
        *(Cell("small-unet", *DRIVE, "60s", seed, val=0) for seed in range(3)),
        *CLASS.values(),
        Cell("small-unet", *PHANTOM, "5m", 0, (PHANTOM, DRIVE, CHASE, STARE), val=0),
        *(Cell("small-unet", *DRIVE, "20m", seed, val=0) for seed in range(3)),
    ],
    # The same seconds for lwnet's recipe, in our own framework.
    "lwnet": [
        Cell(
            "w-net",
            *DRIVE,
            length,
            seed,
            options=_as_options({**W_NET, "checks": cycles}),
            variant="lwnet's recipe",
        )
        for length, cycles, seeds in (("5m", 5, 3), ("20m", 20, 1))
        for seed in range(seeds)
    ],
    # Something for learning to beat.
    "classical": [
        Classical(method, *data)
        for data in (DRIVE, STARE, CHASE, PHANTOM)
        for method in ("frangi", "matched-filter", "line-detector")
    ],
    "published": [
        Published("DRIU", "DRIU (2016)"),
        Published("HED", "HED (2015)"),
        Published("N4_Fields", "N4-Fields (2014)"),
        Published("Kernel_Boost", "Kernel Boost (2013)"),
        Published("CRFs", "CRFs (2014)"),
        Published("Wavelets", "Wavelets (2006)"),
        Published("V-GAN-authors", "V-GAN (2017)"),
        Published("V-GAN", "V-GAN, re-implemented (2018)"),
    ],
    # Trained here, tested there.
    "cross-dataset": [
        *(Cell("small-unet", *data, "5m", 0, EVERYWHERE, val=0) for data in EVERYWHERE),
        *(
            Cell("small-unet", *data, "5m", 0, EVERYWHERE, also=(PHANTOM,), val=0)
            for data in (DRIVE, STARE, CHASE)
        ),
    ],
    # The same with HRF, whose labels not every copy has.
    "cross-dataset-hrf": [
        *(Cell("small-unet", *data, "5m", 0, (HRF,), val=0) for data in EVERYWHERE),
        Cell("small-unet", *HRF, "5m", 0, (*EVERYWHERE, HRF), val=0),
        Cell("small-unet", *HRF, "5m", 0, (*EVERYWHERE, HRF), also=(PHANTOM,), val=0),
    ],
    # What flips and company buy.
    "ensembles": [
        *(
            Combination("small-unet without flips", (CLASS[DRIVE, seed],), tta=False)
            for seed in range(3)
        ),
        *(
            Combination("small-unet, three seeds", tuple(CLASS[data, seed] for seed in range(3)))
            for data in (DRIVE, CHASE)
        ),
        *(  # a control of one of them is no new company
            Combination(
                "ten networks",
                tuple(c for c in EQUAL_BUDGET[data, 0] if c.model != "small-rsan-no-attention"),
            )
            for data in (DRIVE, CHASE)
        ),
    ],
    # Vessels in one piece: by the loss, or by cleaning up.
    "connected": [
        *CLDICE,
        *(
            Combination("small-unet, cleaned", (CLASS[DRIVE, seed],), cleaned=True)
            for seed in range(3)
        ),
        *(Combination("small-unet soft-clDice, cleaned", (cell,), cleaned=True) for cell in CLDICE),
    ],
    # Every architecture at about 120,000 parameters and the same four minutes.
    "equal-budget": [cell for cells in EQUAL_BUDGET.values() for cell in cells],
    # MI-GAN's question at class size: is a network better for having had an opponent?
    "adversaries": [
        Cell("small-unet", *DRIVE, "4m", seed, options=(*STANDARD, *options))
        for seed in range(2)
        for options in ((), *((("adversary", name),) for name in ADVERSARIES))
    ],
    # The full-size networks by their papers' settings. Hours a cell on a GPU, days without one.
    "papers": [
        Cell(model, *data, length, seed, options=_as_options(options))
        for seed in range(3)
        for data in (DRIVE, STARE, CHASE)
        for model, (length, options) in (PAPERS_CHASE if data == CHASE else PAPERS).items()
    ]
    # MI-GAN's table 1: the same generator against each of its discriminators.
    + [
        Cell(
            "v-gan",
            *data,
            PAPERS["v-gan"][0],
            seed,
            options=(*V_GAN.items(), ("adversary", adversary)),
        )
        for seed in range(3)
        for data in (DRIVE, STARE)
        for adversary in ADVERSARIES
    ],
}


def results_folder(grid: str) -> Path:
    """Where the cells of a grid are kept.

    Raises:
        ValueError: if there is no such grid; the message lists them.
    """
    if grid not in GRIDS:
        raise ValueError(f"unknown grid {grid!r}; there are: {', '.join(GRIDS)}")
    return (project_root() or Path.cwd()) / "data" / "results" / grid
