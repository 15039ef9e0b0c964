"""Making something with a trained synthesis model: trees, photographs, folders of both."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from retina_lab.datasets.manifests import sha256_of
from retina_lab.datasets.phantom import SMALLEST, make_phantom
from retina_lab.datasets.sample import FundusSample
from retina_lab.loop import step_seed
from retina_lab.pairs import LESIONS, TreePairs, as_vessels, field_box, lesion_maps
from retina_lab.synthesis import BANNER, SynthesisRun, conditions_of

MANIFEST = "manifest.json"
AT_ONCE = 16
"""Pictures made in one go: more would fill a small machine's memory."""


def _generator(seed: int, purpose: int) -> torch.Generator:
    return torch.Generator().manual_seed(step_seed(seed, 5, purpose))


@torch.inference_mode()
def draw_trees(run: SynthesisRun, codes: torch.Tensor, blurred: bool = False) -> torch.Tensor:
    """Vessel trees of given codes.

    Args:
        run: of a model that makes trees.
        codes: (N, latent); from N(0, I) for new trees, from :func:`encode_trees` for known ones.
        blurred: the decoder's own trees, even if the model has a refiner.

    Returns:
        (N, 1, S, S) ``float32`` in [0, 1].

    Raises:
        ValueError: if the run does not make trees, or the codes have the wrong length.
    """
    if "autoencoder" not in run.networks:
        raise ValueError(f"{run.settings['model']} makes no trees; it paints given ones")
    if codes.ndim != 2 or codes.shape[1] != run.recipe.latent:
        raise ValueError(f"codes must be (N, {run.recipe.latent}), not {tuple(codes.shape)}")
    trees = []
    for some in codes.float().split(AT_ONCE):
        tree = run.networks["autoencoder"].decoder(some).sigmoid()
        if "refiner" in run.networks and not blurred:
            tree = run.networks["refiner"](tree, some).sigmoid()
        trees.append(tree)
    return torch.cat(trees)


def random_codes(run: SynthesisRun, number: int, seed: int = 0) -> torch.Tensor:
    """Codes of new trees from N(0, I): (number, latent). The first are the same for any number."""
    latent = run.recipe.latent
    return (
        torch.stack([torch.randn(latent, generator=_generator(seed, i)) for i in range(number)])
        if number
        else torch.zeros(0, latent)
    )


@torch.inference_mode()
def encode_trees(run: SynthesisRun, trees: torch.Tensor) -> torch.Tensor:
    """The codes of known trees, without their spread: (N, 1, S, S) → (N, latent)."""
    if "autoencoder" not in run.networks:
        raise ValueError(f"{run.settings['model']} has no encoder of trees")
    return run.networks["autoencoder"].encoder(trees)[0]


def between_codes(
    one: torch.Tensor, other: torch.Tensor, share: float, spherical: bool = False
) -> torch.Tensor:
    r"""A code on the way from one code to another.

    Codes from N(0, I) all have a length close to the root of how many numbers they hold, and the
    middle of the straight line between two of them is shorter by a factor of about √2: a kind of
    code that the decoder has rarely met. The arc (Shoemake 1985; White 2016, arXiv:1609.04468)

    .. math:: \frac{\sin (1-t) θ}{\sin θ}\, a + \frac{\sin t θ}{\sin θ}\, b,
        \quad θ \text{ the angle between } a \text{ and } b,

    keeps the length, if both ends have the same.

    Args:
        one: (latent,).
        other: (latent,).
        share: t of the way: 0 is one, 1 is the other.
        spherical: along the arc; opposite and parallel codes have none, and get the line.

    Returns:
        (latent,).
    """
    line = torch.lerp(one, other, share)
    if not spherical:
        return line
    cosine = F.cosine_similarity(one, other, dim=0).clamp(-1, 1)
    angle = cosine.acos()
    if angle.sin() < 1e-4:
        return line
    return (((1 - share) * angle).sin() * one + (share * angle).sin() * other) / angle.sin()


def principal_directions(
    codes: torch.Tensor, number: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Along which directions codes differ most (principal component analysis).

    Args:
        codes: (N, latent), N ≥ 2.
        number: how many directions, at most N − 1 and latent.

    Returns:
        Mean of the codes (latent,); directions (number, latent) of length 1, perpendicular to
        each other, the one with the largest spread first, each turned so that its largest
        component is positive; standard deviation of the codes along each, (number,).

    Raises:
        ValueError: if there are not so many.
    """
    most = min(len(codes) - 1, codes.shape[1])
    if not 1 <= number <= most:
        raise ValueError(f"{len(codes)} codes have 1 to {most} directions, not {number}")
    mean = codes.mean(dim=0)
    _, spread, directions = torch.linalg.svd(codes - mean, full_matrices=False)
    spread, directions = spread[:number], directions[:number]
    largest = directions.gather(1, directions.abs().argmax(dim=1, keepdim=True))
    return mean, directions * largest.sign(), spread / math.sqrt(len(codes) - 1)


@torch.inference_mode()
def paint(
    run: SynthesisRun,
    trees: torch.Tensor,
    *,
    grade: str | Sequence[str] | None = None,
    lesions: torch.Tensor | None = None,
    noise: torch.Tensor | None = None,
) -> np.ndarray:
    """Photographs of given trees.

    Args:
        run: of a model that paints.
        trees: (N, 1, S, S) in [0, 1].
        grade: one for all, or one each; needed by a model that is told of it.
        lesions: (N, 4, S, S) in [0, 1]; none if a model that is told of them is given None.
        noise: (N, numbers) for MI-GAN, see :func:`random_noise`; zeros if not given.

    Returns:
        (N, S, S, 3) ``uint8``, RGB.

    Raises:
        ValueError: if the run does not paint, does not know the grade, or is given something that
            it has not been told of in training.
    """
    if "generator" not in run.networks:
        raise ValueError(f"{run.settings['model']} makes trees only; paint them with pix2pix")
    for what, given, heard in (
        ("grades", grade, "grade" in run.recipe.conditions),
        ("lesions", lesions, "lesions" in run.recipe.conditions),
        ("noise", noise if noise is not None and noise.numel() else None, run.recipe.noise),
    ):
        if given is not None and not heard:
            raise ValueError(f"{run.settings['model']} has not been told of {what}")
    recipe, batch = run.recipe, {"tree": trees.float()}
    if "grade" in recipe.conditions:
        one = isinstance(grade, str | int | None)
        wanted = [g if g is None else str(g) for g in ([grade] * len(trees) if one else grade)]
        if len(wanted) != len(trees):
            raise ValueError(f"{len(trees)} trees need as many grades, not {len(wanted)}")
        unknown = sorted({str(g) for g in wanted if g not in run.grades})
        if unknown:
            raise ValueError(f"unknown grade {unknown[0]}; there are: {', '.join(run.grades)}")
        numbers = torch.tensor([run.grades.index(g) for g in wanted])
        batch["grade"] = F.one_hot(numbers, len(run.grades)).float()
    if "lesions" in recipe.conditions:
        empty = torch.zeros(len(trees), len(LESIONS), run.size, run.size)
        batch["lesions"] = empty if lesions is None else lesions.float()
    if recipe.noise and noise is None:
        noise = torch.zeros(len(trees), recipe.noise)
    conditions = conditions_of(recipe, batch).split(AT_ONCE)
    noises = noise.split(AT_ONCE) if recipe.noise else [None] * len(conditions)
    generator = run.networks["generator"]
    painted = torch.cat([generator(c, n) for c, n in zip(conditions, noises, strict=True)])
    levels = ((painted + 1) * 127.5).round().clamp(0, 255).byte()
    return levels.permute(0, 2, 3, 1).numpy()


def random_noise(run: SynthesisRun, number: int, seed: int = 0, scale: float = 1.0) -> torch.Tensor:
    """Noise for MI-GAN, (number, 400): deviation 1 when sampling, as in the paper."""
    if not run.recipe.noise:
        return torch.zeros(number, 0)
    return scale * torch.stack(
        [
            torch.randn(run.recipe.noise, generator=_generator(seed, 10_000 + i))
            for i in range(number)
        ]
    )


def lesions_from_map(lesions: np.ndarray, size: int) -> torch.Tensor:
    """Lesions as the painter is told of them.

    Args:
        lesions: (H, W) whole numbers: 0 none, 1 to 4 the kinds in ``LESIONS``.
        size: side of the picture in pixels.

    Returns:
        (1, 4, size, size) ``float32`` in [0, 1].

    Raises:
        ValueError: if the map is not square or holds another number.
    """
    lesions = np.asarray(lesions)
    if lesions.ndim != 2 or lesions.shape[0] != lesions.shape[1]:
        raise ValueError(f"a map of lesions must be square, not {lesions.shape}")
    if not np.isin(lesions, range(len(LESIONS) + 1)).all():
        raise ValueError(f"lesions are numbered 0 to {len(LESIONS)}, not up to {lesions.max()}")
    kinds = torch.from_numpy(lesions[None] == np.arange(1, 1 + len(LESIONS))[:, None, None])
    return F.interpolate(
        kinds[None].float(), (size, size), mode="bilinear", align_corners=False, antialias=True
    ).clamp(0, 1)


def place_lesion(
    lesions: np.ndarray, kind: int | str, row: float, column: float, radius: float
) -> np.ndarray:
    """A map of lesions with one more, round, where somebody has clicked.

    Args:
        lesions: (H, W) ``uint8``; it is not changed.
        kind: 1 to 4, or a name in ``LESIONS``.
        row: of its middle, in pixels.
        column: likewise.
        radius: in pixels, above 0.

    Raises:
        ValueError: if there is no such kind, the radius is not positive or the place lies
            outside the map.
    """
    if isinstance(kind, str):
        if kind not in LESIONS:
            raise ValueError(f"unknown lesion {kind!r}; there are: {', '.join(LESIONS)}")
        kind = LESIONS.index(kind) + 1
    if not 1 <= kind <= len(LESIONS) or not radius > 0:
        raise ValueError(f"kinds are 1 to {len(LESIONS)} and radii positive, not {kind}, {radius}")
    height, width = lesions.shape
    if not (0 <= row < height and 0 <= column < width):
        raise ValueError(f"({row:g}, {column:g}) lies outside the {height}×{width} map")
    rows, columns = np.ogrid[:height, :width]
    inside = np.hypot(rows - row, columns - column) <= radius
    return np.where(inside, np.uint8(kind), lesions).astype(np.uint8)


def made_lesions(run: SynthesisRun, grades: Sequence[str], seed: int = 0) -> torch.Tensor:
    """Lesions as they may lie in eyes of these grades: those of new phantoms of the same grade.

    They are cut and averaged as those that the painter has learned from. Grades that are not the
    phantom's (0 to 4) get none: nobody has drawn them.

    Returns:
        (N, 4, S, S) ``float32`` in [0, 1]: which share of a pixel is a lesion of each kind.
    """
    maps = []
    for i, grade in enumerate(grades):
        drawn = torch.zeros(len(LESIONS), run.size, run.size)
        if str(grade) in ("0", "1", "2", "3", "4"):
            side = max(2 * run.size, SMALLEST)
            eye = make_phantom(seed=step_seed(seed, 6, i), size=side, grade=int(grade))
            drawn = lesion_maps(eye.lesions, field_box(eye.fov), run.size)
        maps.append(drawn)
    return torch.stack(maps)


def make_samples(
    painter: SynthesisRun,
    number: int,
    seed: int = 0,
    *,
    trees: SynthesisRun | TreePairs | None = None,
    grade: str | Sequence[str] | None = None,
    threshold: float = 0.5,
) -> list[FundusSample]:
    """Synthetic photographs with their trees, as samples like any others.

    Args:
        painter: of a model that paints.
        number: how many, ≥ 1.
        seed: of codes, noise, grades and lesions; the first ones are the same for any number.
        trees: where the trees come from: a model that makes them, whose trees are enlarged if the
            painter's pictures are larger, or pairs of the painter's size, whose trees are taken in
            turn. None: the painter's own, if it makes both.
        grade: of all of them, or one each; None: each of the painter's grades in turn.
        threshold: share of a pixel from which it counts as vessel for sure
            (:func:`~retina_lab.pairs.as_vessels`), or as lesion.

    Returns:
        Samples named ``synthetic_0000`` and so on, with vessels, field of view, and the grade
        and lesions that they were asked to have.

    Raises:
        ValueError: if there are no trees, their size does not fit the painter's, or a grade is
            asked for that it has not been told of.
    """
    if number < 1 or seed < 0:
        raise ValueError("number must be at least 1 and the seed not negative")
    if grade is not None and not painter.grades:
        raise ValueError(f"{painter.settings['model']} has not been told of grades")
    source = painter if trees is None else trees
    if isinstance(source, TreePairs):
        tree = source.tree[torch.arange(number) % len(source)]
    else:
        tree = draw_trees(source, random_codes(source, number, seed))
        if source.size < painter.size:
            tree = F.interpolate(tree, (painter.size,) * 2, mode="bilinear", align_corners=False)
    if tree.shape[-1] != painter.size:
        raise ValueError(
            f"the trees are {tree.shape[-1]}×{tree.shape[-1]} pixels and "
            f"{painter.settings['model']} paints {painter.size}×{painter.size}"
        )
    grades, lesions = None, None
    if painter.grades:
        each = [str(grade)] * number if isinstance(grade, str | int) else grade
        grades = list(each or (painter.grades[i % len(painter.grades)] for i in range(number)))
        if len(grades) != number:
            raise ValueError(f"{number} photographs need as many grades, not {len(grades)}")
        if "lesions" in painter.recipe.conditions:
            lesions = made_lesions(painter, grades, seed)
    images = paint(
        painter, tree, grade=grades, lesions=lesions, noise=random_noise(painter, number, seed)
    )
    samples = []
    for i in range(number):
        marked = None
        if lesions is not None:
            strongest = lesions[i].max(dim=0)
            there = (strongest.values.numpy() >= threshold) & painter.fov
            marked = np.where(there, strongest.indices.numpy() + 1, 0).astype(np.uint8)
        samples.append(
            FundusSample(
                name=f"synthetic_{i:04d}",
                image=images[i] * painter.fov[..., None],
                fov=painter.fov,
                vessels=as_vessels(tree[i, 0].numpy(), threshold) & painter.fov,
                lesions=marked,
                grade=None if grades is None else grades[i],
                dataset=f"synthetic by {painter.settings['model']}",
            )
        )
    return samples


def write_samples(
    samples: Sequence[FundusSample], out: str | os.PathLike, about: dict | None = None
) -> Path:
    """Write synthetic samples as a folder that ``retina-lab`` can read as a dataset.

    Read back it has images, fields of view and vessels; grades and lesions are for other tools.

    Args:
        samples: from :func:`make_samples`.
        out: folder; must be empty or not there.
        about: what to say about them in the manifest: model, seed, and so on.

    Returns:
        The folder: ``images/NAME.png``, ``masks/NAME.png`` (field of view), ``vessels/NAME.png``
        (0 and 255), ``lesions/NAME.png`` (0 to 4) where there are lesions, ``manifest.json``.

    Raises:
        ValueError: if the folder holds anything.
    """
    out = Path(out)
    if out.exists() and any(out.iterdir()):
        raise ValueError(f"{out} is not empty; choose another folder")
    entries = []
    for sample in samples:
        planes = {
            "images": sample.image,
            "masks": sample.fov.astype(np.uint8) * 255,
            "vessels": sample.vessels.astype(np.uint8) * 255,
        }
        if sample.lesions is not None:
            planes["lesions"] = sample.lesions
        entry = {"name": sample.name, "grade": sample.grade, "files": {}}
        for kind, plane in planes.items():
            path = out / kind / f"{sample.name}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(plane).save(path)
            entry["files"][kind] = {"path": f"{kind}/{path.name}", "sha256": sha256_of(path)}
        entries.append(entry)
    record = {"banner": BANNER, **(about or {}), "lesions": list(LESIONS), "samples": entries}
    text = json.dumps(record, indent=1, ensure_ascii=False) + "\n"
    (out / MANIFEST).write_text(text, encoding="utf-8")
    return out
