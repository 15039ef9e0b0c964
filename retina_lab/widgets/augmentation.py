"""The augmentation explorer."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from matplotlib.figure import Figure

from retina_lab import augment, plots
from retina_lab.augment import Batch
from retina_lab.datasets.sample import FundusSample
from retina_lab.preprocess import to_batch
from retina_lab.widgets.base import Explorer, menu, reduced, slider


def _sign(generator: torch.Generator) -> int:
    return 1 if torch.rand((), generator=generator) < 0.5 else -1


def _stitched(batch: Batch, strength: float, generator: torch.Generator) -> Batch:
    choices = augment.sample_stitch(len(batch["image"]), batch["image"].shape[-2:], generator)
    donor = choices.donor.clone()
    donor[0] = 1 % len(donor)  # from another image, or there is nothing to see
    top, left, bottom, right = choices.boxes.double().T
    middle = torch.stack([top + bottom, left + right, top + bottom, left + right], 1) / 2
    boxes = (middle + strength * (choices.boxes - middle)).round().long()
    if not strength:
        boxes[:, 2:] = boxes[:, :2] - 1  # an empty rectangle
    return augment.stitch(
        batch,
        augment.Stitch(donor, boxes, strength * choices.spin, choices.flip & (strength > 0.5)),
    )


def _erased(batch: Batch, strength: float, generator: torch.Generator) -> Batch:
    if not strength:
        return batch
    side = (0.5 * strength, 0.5 * strength)
    size = batch["image"].shape[-2:]
    return augment.erase(batch, augment.sample_boxes(len(batch["image"]), size, side, generator))


def _shifted(batch: Batch, strength: float, generator: torch.Generator) -> Batch:
    size = torch.tensor(batch["image"].shape[-2:])
    direction = torch.tensor([_sign(generator), _sign(generator)])
    return augment.shift(batch, 0.3 * strength * direction * size)


TRANSFORMS: dict[str, Callable[[Batch, float, torch.Generator], Batch]] = {
    "flips and quarter turns": lambda b, s, g: augment.symmetry(
        b, s > 0.6, round(3 * s) * _sign(g)
    ),
    "rotation": lambda b, s, g: augment.rotate(b, 180 * s * _sign(g)),
    "scale": lambda b, s, g: augment.scale(b, 2 ** (s * _sign(g))),
    "shift": _shifted,
    "elastic": lambda b, s, g: augment.elastic(b, 600 * s, 16.0, g),
    "brightness": lambda b, s, g: augment.brightness(b, 0.4 * s * _sign(g)),
    "contrast": lambda b, s, g: augment.contrast(b, 3 ** (s * _sign(g))),
    "gamma": lambda b, s, g: augment.gamma(b, 3 ** (s * _sign(g))),
    "saturation": lambda b, s, g: augment.saturation(b, max(0, 1 + s * _sign(g))),
    "hue": lambda b, s, g: augment.hue(b, 60 * s * _sign(g)),
    "blur": lambda b, s, g: augment.blur(b, 6 * s),
    "noise": lambda b, s, g: augment.noise(b, 0.25 * s, g),
    "erasing": _erased,
    "image stitching": _stitched,
}
"""Transforms of the augmentation explorer, ``f(batch, strength, generator) -> batch``: strength 0
changes nothing, 1 is more than one would train with; the generator decides on the direction."""


def augment_for_show(
    samples: Sequence[FundusSample], transform: str, strength: float, seed: int = 0
) -> Batch:
    """Apply one of ``TRANSFORMS`` to samples of one size.

    Args:
        samples: one or more, with vessels.
        transform: a key of ``TRANSFORMS``.
        strength: in [0, 1].
        seed: for the generator.

    Returns:
        The augmented batch; its first item is the one that explorers show.

    Raises:
        ValueError: if the transform is unknown or the strength out of range.
    """
    if transform not in TRANSFORMS:
        raise ValueError(f"no transform {transform!r}; choose one of {', '.join(TRANSFORMS)}")
    if not 0 <= strength <= 1:
        raise ValueError(f"strength must lie in [0, 1], not {strength}")
    generator = torch.Generator().manual_seed(int(seed))
    return TRANSFORMS[transform](to_batch(samples), strength, generator)


@plots.styled
def render_augmentation(
    samples: Sequence[FundusSample], transform: str, strength: float, seed: int = 0
) -> Figure:
    """The first sample before, and image and vessels after; arguments: :func:`augment_for_show`."""
    batch = augment_for_show(samples, transform, strength, seed)
    image = batch["image"][0].permute(1, 2, 0).numpy()
    fov, vessels = (batch[name][0, 0].numpy() > 0.5 for name in ("fov", "vessels"))
    height, width = samples[0].size
    figure = Figure(figsize=(9.6, 3.2 * height / width + 0.3))
    top = 1 - 0.3 / figure.get_figheight()
    pictures = {
        "before": samples[0].image,
        f"{transform}, strength {strength:.2f}": image,
        "its vessels": plots.label_picture(vessels, fov),
    }
    for column, (title, picture) in enumerate(pictures.items()):
        axes = figure.add_axes((column / 3 + 0.003, 0, 1 / 3 - 0.006, top))
        plots.draw_picture(axes, picture, title)
    return figure


def describe_augmentation(
    samples: Sequence[FundusSample], transform: str, strength: float, seed: int = 0
) -> str:
    """The state of :func:`render_augmentation` in words."""
    batch = augment_for_show(samples, transform, strength, seed)
    before = to_batch(samples)
    moved = not torch.equal(batch["vessels"], before["vessels"])
    inside = float(batch["fov"][0].mean())
    return (
        f"{samples[0].name} after {transform} at strength {strength:.2f} (seed {seed}); "
        f"its vessel mask {'has moved with it' if moved else 'is unchanged'}, "
        f"the field of view covers {inside:.0%} of the frame."
    )


def explore_augmentation(
    samples: FundusSample | Sequence[FundusSample], transform: str = "rotation"
) -> Explorer:
    """A menu of transforms and a slider of strength: image and mask side by side.

    Args:
        samples: with vessels, all of one size. The first is shown, the second gives the
            rectangle for image stitching.
        transform: where the menu starts, a key of ``TRANSFORMS``.

    Raises:
        ValueError: if a sample is unlabelled, or the sizes differ.
    """
    samples = [samples] if isinstance(samples, FundusSample) else list(samples)
    for sample in samples:
        if sample.vessels is None:
            raise ValueError(f"{sample.name} has no vessel labels to move along")
    samples = [reduced(sample) for sample in samples]
    return Explorer(
        "Augmentation explorer",
        lambda **values: render_augmentation(samples, **values),
        lambda **values: describe_augmentation(samples, **values),
        {
            "transform": menu("transform", TRANSFORMS, transform),
            "strength": slider("strength", 0.5, 0.0, 1.0, 0.05),
            "seed": slider("seed", 0, 0, 20, 1, "d"),
        },
        frames={"transform": list(TRANSFORMS), "strength": [0.25, 0.5, 1.0]},
    )
