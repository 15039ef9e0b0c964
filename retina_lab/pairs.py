"""Photographs with their vessel trees, cut to squares of one size, for synthesis."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F

from retina_lab.augment import affine_matrix, flip, warp
from retina_lab.cleaning import Cleaning
from retina_lab.datasets.sample import FundusSample
from retina_lab.loop import MIXED, TrainingError, step_seed

if TYPE_CHECKING:
    from retina_lab.train import Run

LESIONS = ("microaneurysm", "haemorrhage", "exudate", "cotton-wool spot")
"""What the numbers 1 to 4 in :attr:`FundusSample.lesions` mean, in order."""


@dataclass(frozen=True, eq=False)
class TreePairs:
    """Squares of one size, each with the field of view from edge to edge.

    Attributes:
        image: (N, 3, S, S) ``float32`` in [0, 1], black outside the field of view.
        tree: (N, 1, S, S) ``float32`` in [0, 1]: which share of a pixel is vessel. A vessel
            thinner than a pixel stays visible.
        fov: (N, 1, S, S) ``float32`` in {0, 1}.
        lesions: (N, 4, S, S) ``float32`` in [0, 1], one map a kind (``LESIONS``), or None.
        grades: N names of grades or groups, or None.
        names: N names.
        subjects: N persons, with their datasets.
        dataset: where they come from; several joined by " + ".
        tree_source: who drew the trees, in words.
    """

    image: torch.Tensor
    tree: torch.Tensor
    fov: torch.Tensor
    lesions: torch.Tensor | None
    grades: tuple[str, ...] | None
    names: tuple[str, ...]
    subjects: tuple[str, ...]
    dataset: str
    tree_source: str

    def __len__(self) -> int:
        return len(self.names)

    @property
    def size(self) -> int:
        """Side in pixels."""
        return self.image.shape[-1]

    @property
    def grade_names(self) -> tuple[str, ...]:
        """The different grades, sorted; empty if there are none."""
        return tuple(sorted(set(self.grades or ())))

    def select(self, indices: Sequence[int]) -> TreePairs:
        """Some of the pairs, in the order of the indices."""
        rows = torch.as_tensor(list(indices), dtype=torch.long)
        return TreePairs(
            image=self.image[rows],
            tree=self.tree[rows],
            fov=self.fov[rows],
            lesions=None if self.lesions is None else self.lesions[rows],
            grades=None if self.grades is None else tuple(self.grades[i] for i in indices),
            names=tuple(self.names[i] for i in indices),
            subjects=tuple(self.subjects[i] for i in indices),
            dataset=self.dataset,
            tree_source=self.tree_source,
        )


def field_box(fov: np.ndarray) -> tuple[int, int, int]:
    """The square around a field of view.

    Args:
        fov: (H, W) ``bool``.

    Returns:
        top, left, side in pixels; the square may reach beyond the image.

    Raises:
        ValueError: if the field of view is empty.
    """
    rows, columns = np.flatnonzero(fov.any(1)), np.flatnonzero(fov.any(0))
    if not rows.size:
        raise ValueError("the field of view is empty")
    height, width = np.ptp(rows) + 1, np.ptp(columns) + 1
    side = max(height, width)
    top, left = rows[0] - (side - height) // 2, columns[0] - (side - width) // 2
    return int(top), int(left), int(side)


def square(planes: np.ndarray, box: tuple[int, int, int], size: int) -> torch.Tensor:
    """Cut a square out of (H, W, C) planes and bring it to ``size`` by averaging.

    Args:
        planes: (H, W, C), numbers or ``bool``.
        box: top, left and side; what lies beyond the image is 0.
        size: of the result in pixels.

    Returns:
        (C, size, size) ``float32``.
    """
    top, left, side = box
    height, width = planes.shape[:2]
    cut = np.zeros((side, side, planes.shape[2]), np.float32)
    y0, y1, x0, x1 = max(0, top), min(height, top + side), max(0, left), min(width, left + side)
    cut[y0 - top : y1 - top, x0 - left : x1 - left] = planes[y0:y1, x0:x1]
    tensor = torch.from_numpy(cut).permute(2, 0, 1)[None]
    return F.interpolate(
        tensor, (size, size), mode="bilinear", align_corners=False, antialias=True
    )[0]


def lesion_maps(lesions: np.ndarray, box: tuple[int, int, int], size: int) -> torch.Tensor:
    """Which share of each pixel of a square is a lesion of each kind.

    Args:
        lesions: (H, W) numbers as in :attr:`FundusSample.lesions`.
        box: top, left and side.
        size: of the result in pixels.

    Returns:
        (4, size, size) ``float32`` in [0, 1].
    """
    kinds = lesions[..., None] == np.arange(1, 1 + len(LESIONS))
    return square(kinds, box, size).clamp(0, 1)


def make_pairs(
    samples: Iterable[FundusSample],
    size: int,
    trees: Mapping[str, np.ndarray] | None = None,
    tree_source: str = "",
) -> TreePairs:
    """Cut the squares around the fields of view of some photographs.

    Args:
        samples: of any size, gone through once; with vessels, unless ``trees`` gives them.
        size: side of the squares in pixels.
        trees: for photographs without labels, (H, W) ``bool`` by name, such as the maps of
            :func:`segmented_trees`.
        tree_source: who drew ``trees``, in words.

    Returns:
        The pairs. ``lesions`` and ``grades`` are there if every sample has them.

    Raises:
        TrainingError: if there are no samples, two have one name, or one has no tree or one of
            another size; it is named.
    """
    images, vessels, fovs, lesions = [], [], [], []
    grades, names, subjects, datasets = [], [], [], []
    for sample in samples:
        if sample.name in names:
            raise TrainingError(f"two photographs are called {sample.name}; rename one")
        tree = sample.vessels if trees is None else trees.get(sample.name)
        if tree is None:
            raise TrainingError(
                f"{sample.name} has no vessel tree; pass trees=segmented_trees(run, samples)"
            )
        if np.shape(tree) != sample.size:
            raise TrainingError(
                f"{sample.name} is {sample.size[1]}×{sample.size[0]} pixels and its tree has the "
                f"shape {np.shape(tree)}; draw it at the photograph's size"
            )
        box = field_box(sample.fov)
        fov = square(sample.fov[..., None], box, size) > 0.5
        images.append(square(sample.image / np.float32(255), box, size).clamp(0, 1) * fov)
        vessels.append(square(np.asarray(tree, bool)[..., None], box, size).clamp(0, 1) * fov)
        fovs.append(fov.float())
        if sample.lesions is not None:
            lesions.append(lesion_maps(sample.lesions, box, size))
        if sample.grade is not None:
            grades.append(str(sample.grade))
        names.append(sample.name)
        subjects.append(f"{sample.dataset}/{sample.subject}")
        datasets.append(sample.dataset)
    if not names:
        raise TrainingError("there are no photographs to make pairs of")
    return TreePairs(
        image=torch.stack(images),
        tree=torch.stack(vessels),
        fov=torch.stack(fovs),
        lesions=torch.stack(lesions) if len(lesions) == len(names) else None,
        grades=tuple(grades) if len(grades) == len(names) else None,
        names=tuple(names),
        subjects=tuple(subjects),
        dataset=MIXED.join(dict.fromkeys(datasets)),
        tree_source=tree_source or ("the first observer" if trees is None else "given"),
    )


def as_vessels(shares: np.ndarray, threshold: float = 0.5) -> np.ndarray:
    """Which pixels of small trees are vessel, where yes or no is wanted.

    In a picture this small the thinnest vessels fill less than half of every pixel that they pass
    through, and a threshold cuts them into dots. So half the threshold will do where a chain of
    such pixels ties it to a sure one (hysteresis, :mod:`retina_lab.cleaning`).

    Args:
        shares: (…, S, S) in [0, 1], which share of a pixel is vessel.
        threshold: of the sure pixels, in (0, 1].

    Returns:
        (…, S, S) ``bool``.

    Raises:
        ValueError: if the threshold is out of range, or a share is not a number.
    """
    shares = np.clip(shares, 0, 1)  # interpolation may round a little beyond
    cut = Cleaning(threshold, threshold / 2)
    planes = [cut.vessels(plane) for plane in shares.reshape(-1, *shares.shape[-2:])]
    return np.array(planes, dtype=bool).reshape(shares.shape)


def segmented_trees(run, samples: Sequence[FundusSample]) -> dict[str, np.ndarray]:
    """Vessel trees of photographs that nobody has labelled, by a trained network of ours.

    Args:
        run: a :class:`retina_lab.train.Run`.
        samples: photographs.

    Returns:
        (H, W) ``bool`` by name, at the run's threshold.
    """
    from retina_lab.metrics import binarise
    from retina_lab.predict import predict

    return {s.name: binarise(predict(run, s, tta=True), run.threshold) for s in samples}


def pairs_with_trees(
    samples: Iterable[FundusSample], size: int, network: Run, redraw: bool = False
) -> TreePairs:
    """Pairs of photographs of which not all have been labelled.

    Args:
        samples: of any size, gone through once.
        size: side of the squares in pixels.
        network: draws the trees that nobody has drawn.
        redraw: let it draw the others, too.

    Raises:
        TrainingError: as :func:`make_pairs`.
    """
    drawn = {"observer": 0, "network": 0}

    def with_tree() -> Iterator[FundusSample]:
        for sample in samples:
            by = "network" if redraw or sample.vessels is None else "observer"
            drawn[by] += 1
            if by == "observer":
                yield sample
            else:
                yield replace(sample, vessels=segmented_trees(network, [sample])[sample.name])

    pairs = make_pairs(with_tree(), size)
    settings = network.settings
    names = {
        "observer": "the first observer",
        "network": f"{settings['model']} trained on {settings['dataset']}",
    }
    several = all(drawn.values())
    source = ", ".join(
        names[by] + (f" ({count})" if several else "") for by, count in drawn.items() if count
    )
    return replace(pairs, tree_source=source)


class PairSampler:
    """Batches of pairs, each a pure function of (seed, step).

    Left and right eyes are mirror images, so every pair is mirrored with probability one half;
    a turn by up to ten degrees and a change of scale by up to a twentieth stand for how the
    patient held the head. Photographs are not turned upside down: no camera takes them so.

    Args:
        pairs: what to show.
        batch_size: pairs a step.
        seed: of the run.
        vary: turn and scale, beside mirroring.
    """

    def __init__(self, pairs: TreePairs, batch_size: int, seed: int, vary: bool = True):
        self.pairs, self.batch_size, self.seed, self.vary = pairs, batch_size, seed, vary

    @property
    def steps_per_epoch(self) -> int:
        """Batches in which every pair is visited once."""
        return -(-len(self.pairs) // self.batch_size)

    def indices(self, step: int) -> list[int]:
        """Which pairs a step shows: each once an epoch, in random order."""
        epoch, position = divmod(step, self.steps_per_epoch)
        generator = torch.Generator().manual_seed(step_seed(self.seed, 1, epoch))
        order = torch.randperm(len(self.pairs), generator=generator).tolist()
        first = position * self.batch_size
        return [order[(first + i) % len(order)] for i in range(self.batch_size)]

    def batch(self, step: int, device: torch.device | str = "cpu") -> dict[str, torch.Tensor]:
        """``image``, ``tree``, ``fov``, and ``lesions`` and ``grade`` (N, G; one 1) if known."""
        chosen = self.pairs.select(self.indices(step))
        generator = torch.Generator().manual_seed(step_seed(self.seed, 2, step))
        planes = [chosen.image, chosen.tree]
        if chosen.lesions is not None:
            planes.append(chosen.lesions)
        # One stack of planes, so that trees and lesions are interpolated as smoothly as the image.
        batch = {"image": torch.cat(planes, dim=1).to(device), "fov": chosen.fov.to(device)}
        count = len(chosen)
        batch = flip(batch, torch.rand(count, generator=generator) < 0.5)
        if self.vary:
            angle = 20 * torch.rand(count, generator=generator) - 10
            scale = 0.95 + 0.1 * torch.rand(count, generator=generator)
            batch = warp(batch, affine_matrix(batch, angle, scale))
        image, tree, lesions = batch["image"].split([3, 1, batch["image"].shape[1] - 4], dim=1)
        made = {"image": image * batch["fov"], "tree": tree * batch["fov"], "fov": batch["fov"]}
        if chosen.lesions is not None:
            made["lesions"] = lesions * batch["fov"]
        if chosen.grades is not None:
            names = self.pairs.grade_names
            number = torch.tensor([names.index(grade) for grade in chosen.grades])
            made["grade"] = F.one_hot(number, len(names)).float().to(device)
        return made
