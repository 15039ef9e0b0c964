"""Augmentation: new training pairs from old ones, image and labels always together.

Every function takes a batch and returns a new one; the batch it was given is not changed.
A batch is a dict of tensors of one height and width:

    image    N×3×H×W  float32 in [0, 1]
    fov      N×1×H×W  float32, 0 or 1: the camera's field of view
    vessels  N×1×H×W  float32, 0 or 1; any other N×C×H×W entry is treated like it

Three rules hold everywhere:

* **Geometry moves everything.** The image is sampled bilinearly, labels and FOV by nearest
  neighbour, so that masks stay exactly 0 or 1. What comes from outside the frame is black,
  without vessels and outside the FOV.
* **Photometry touches the image only**, only inside the FOV, and stays within [0, 1].
* **Chance comes from the** ``torch.Generator`` **that is passed in**, never from the global one.

Parameters are numbers, or tensors with one value for each of the N items. They are kept on
the CPU, so the same seed gives the same batch on every device.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields, replace

import torch
import torch.nn.functional as F

Batch = dict[str, torch.Tensor]
PerItem = float | torch.Tensor


# --------------------------------------------------------------------------- small helpers


def _maps(batch: Batch) -> list[str]:
    """Check the batch; return the names of its N×C×H×W entries, the image first."""
    for name in ("image", "fov"):
        if name not in batch:
            raise ValueError(f"the batch has no '{name}'; it has {sorted(batch)}")
    image = batch["image"]
    if image.ndim != 4 or not image.is_floating_point():
        raise ValueError(
            f"image must be N×C×H×W of a floating type, not {tuple(image.shape)} {image.dtype}"
        )
    names = ["image"]
    for name, entry in batch.items():
        if name == "image" or not isinstance(entry, torch.Tensor) or entry.ndim != 4:
            continue
        if entry.shape[0] != image.shape[0] or entry.shape[2:] != image.shape[2:]:
            raise ValueError(
                f"{name} is {tuple(entry.shape)} but the image is {tuple(image.shape)}: "
                "number of items, height and width must match"
            )
        names.append(name)
    return names


def _per_item(
    value: PerItem, batch: Batch, name: str, low: float = -math.inf, high: float = math.inf
) -> torch.Tensor:
    """One float64 value an item, (N,) on the CPU, inside [low, high] or a ValueError."""
    count = len(batch["image"])
    values = torch.as_tensor(value, dtype=torch.float64, device="cpu")
    if values.ndim > 1 or (values.ndim == 1 and len(values) != count):
        raise ValueError(
            f"{name} must be one number or one for each of {count} items, "
            f"not of shape {tuple(values.shape)}"
        )
    if not bool(((values >= low) & (values <= high) & values.isfinite()).all()):
        raise ValueError(f"{name} must lie in [{low:g}, {high:g}], not {value}")
    return values.expand(count)


def _like(values: torch.Tensor, image: torch.Tensor) -> torch.Tensor:
    return values.to(device=image.device, dtype=image.dtype)


def _uniform(count: int, bounds: tuple[float, float], generator: torch.Generator) -> torch.Tensor:
    low, high = bounds
    values = torch.rand(count, generator=generator, device=generator.device, dtype=torch.float64)
    return low + (high - low) * values.cpu()


def _with_chance(count: int, probability: float, generator: torch.Generator) -> torch.Tensor:
    return _uniform(count, (0.0, 1.0), generator) < probability


# --------------------------------------------------------------------- exact geometry


def _onto_frame(x: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Centre x on an empty height×width frame, cutting off what does not fit."""
    if x.shape[-2:] == (height, width):
        return x
    top, left = (height - x.shape[-2]) // 2, (width - x.shape[-1]) // 2
    # negative padding crops
    return F.pad(x, (left, width - x.shape[-1] - left, top, height - x.shape[-2] - top))


def symmetry(
    batch: Batch, mirrored: bool | torch.Tensor = False, turns: int | torch.Tensor = 0
) -> Batch:
    """Mirror left and right, then rotate counter-clockwise by quarter turns; pixels are copied.

    These are the eight symmetries of the square; flips, quarter turns and transposition are all
    among them. The frame keeps its size: an image that is not square and makes an odd number of
    turns does so about its centre, so the ends of its longer side are cut off and its shorter
    side gains empty margins.

    Args:
        batch: see the module's docstring.
        mirrored: true, or (N,) truth values, one an item.
        turns: a whole number, or (N,) whole numbers.
    """
    names = _maps(batch)
    height, width = batch["image"].shape[-2:]
    mirrored = _per_item(mirrored, batch, "mirrored", 0, 1) > 0.5
    turns = _per_item(turns, batch, "turns", -1e6, 1e6)
    if not torch.equal(turns, turns.round()):
        raise ValueError(f"turns must be whole numbers, not {turns.tolist()}")
    turns = turns.long() % 4
    moved = {**batch, **{name: torch.empty_like(batch[name]) for name in names}}
    for mirror, turn in set(zip(mirrored.tolist(), turns.tolist(), strict=True)):  # at most 8
        items = ((mirrored == mirror) & (turns == turn)).nonzero()[:, 0]
        items = items.to(batch["image"].device)
        for name in names:
            x = batch[name][items]
            x = torch.rot90(x.flip(-1) if mirror else x, turn, (-2, -1))
            moved[name][items] = _onto_frame(x, height, width)
    return moved


def flip(
    batch: Batch, horizontal: bool | torch.Tensor = False, vertical: bool | torch.Tensor = False
) -> Batch:
    """Mirror left and right (horizontal), top and bottom (vertical), or both.

    Args:
        batch: see the module's docstring.
        horizontal: true, or (N,) truth values, one an item.
        vertical: likewise.
    """
    horizontal = _per_item(horizontal, batch, "horizontal", 0, 1) > 0.5
    vertical = _per_item(vertical, batch, "vertical", 0, 1) > 0.5
    # upside down = left-right mirrored, then half a turn
    return symmetry(batch, horizontal ^ vertical, 2 * vertical)


def quarter_turns(batch: Batch, turns: int | torch.Tensor) -> Batch:
    """Rotate counter-clockwise by whole quarter turns: 1 is ``torch.rot90``."""
    return symmetry(batch, False, turns)


def transpose(batch: Batch, chosen: bool | torch.Tensor = True) -> Batch:
    """Swap rows and columns of the chosen items: the pixel (y, x) goes to (x, y)."""
    chosen = _per_item(chosen, batch, "chosen", 0, 1) > 0.5
    return symmetry(batch, chosen, 1 * chosen)


# ----------------------------------------------------------------- resampled geometry


def affine_matrix(
    batch: Batch, angle: PerItem = 0.0, scale: PerItem = 1.0, shift: PerItem = 0.0
) -> torch.Tensor:
    """The N×3×3 matrix that scales and turns about the image's centre, then shifts.

    It maps homogeneous source pixels (x, y, 1) to where they go.

    Args:
        batch: gives N, H and W.
        angle: degrees, counter-clockwise as displayed.
        scale: above 1 enlarges; in [0.01, 100].
        shift: pixels. A number, (2,) or (N, 2): down and right.
    """
    from kornia.geometry.transform import get_affine_matrix2d

    count = len(batch["image"])
    height, width = batch["image"].shape[-2:]
    angle = _per_item(angle, batch, "angle")
    scale = _per_item(scale, batch, "scale", 0.01, 100)
    shift = torch.as_tensor(shift, dtype=torch.float64, device="cpu")
    if shift.ndim > 2 or (shift.ndim and shift.shape[-1] != 2) or not shift.isfinite().all():
        raise ValueError(f"shift must be finite (down, right) pixels, not {shift.tolist()}")
    shift = shift.expand(count, 2)
    centre = torch.tensor([(width - 1) / 2, (height - 1) / 2], dtype=torch.float64)
    return get_affine_matrix2d(
        translations=shift.flip(-1),  # kornia wants (x, y)
        center=centre.expand(count, 2),
        scale=scale[:, None].expand(count, 2),
        angle=-angle,  # kornia's positive angles turn clockwise
    )


def warp(batch: Batch, matrix: torch.Tensor, displacement: torch.Tensor | None = None) -> Batch:
    """Resample every map once: by an affine matrix and, if given, an elastic displacement.

    For each pixel p of the result the value is read at M⁻¹(p + d(p)) in the source. One pass
    for all of it, because every further pass of interpolation blurs the thin vessels away.

    Args:
        batch: see the module's docstring.
        matrix: N×3×3 from :func:`affine_matrix`; products of such matrices compose motions.
        displacement: d above, N×2×H×W, (down, right) in pixels, from :func:`elastic_displacement`.
    """
    names = _maps(batch)
    image = batch["image"]
    count, _, height, width = image.shape
    if matrix.shape != (count, 3, 3):
        raise ValueError(f"matrix must be {count}×3×3, not {tuple(matrix.shape)}")
    inverse = _like(torch.linalg.inv(matrix.double()), image)
    y = torch.arange(height, device=image.device, dtype=image.dtype)[:, None]
    x = torch.arange(width, device=image.device, dtype=image.dtype)[None, :]
    if displacement is not None:
        y = y + displacement[:, 0]  # N×H×W
        x = x + displacement[:, 1]
    a = inverse[..., None, None]  # N×3×3×1×1, to broadcast over pixels
    source_x = a[:, 0, 0] * x + a[:, 0, 1] * y + a[:, 0, 2]  # N×H×W
    source_y = a[:, 1, 0] * x + a[:, 1, 1] * y + a[:, 1, 2]
    # grid_sample counts from -1 (outer edge of the first pixel) to 1 (outer edge of the last)
    grid = torch.stack([(2 * source_x + 1) / width - 1, (2 * source_y + 1) / height - 1], dim=-1)

    labels = torch.cat([torch.ones_like(image[:, :1])] + [batch[name] for name in names[1:]], 1)
    labels = F.grid_sample(labels, grid, "nearest", "zeros", align_corners=False)
    inside = labels[:, :1]  # 1 where the source pixel lies within the frame
    # "border", then cut: with "zeros" the outermost half pixel would fade to black
    moved = dict(batch, image=F.grid_sample(image, grid, "bilinear", "border", align_corners=False))
    moved["image"] = moved["image"] * inside
    channel = 1
    for name in names[1:]:
        moved[name] = labels[:, channel : channel + batch[name].shape[1]]
        channel += batch[name].shape[1]
    return moved


def rotate(batch: Batch, angle: PerItem) -> Batch:
    """Turn about the centre by any angle, in degrees, counter-clockwise; the frame stays."""
    return warp(batch, affine_matrix(batch, angle=angle))


def scale(batch: Batch, factor: PerItem) -> Batch:
    """Enlarge (factor above 1) or shrink about the centre; the frame stays."""
    return warp(batch, affine_matrix(batch, scale=factor))


def shift(batch: Batch, pixels: PerItem) -> Batch:
    """Move by (down, right) pixels: a number for both, (2,), or (N, 2)."""
    return warp(batch, affine_matrix(batch, shift=pixels))


def elastic_displacement(
    batch: Batch, alpha: PerItem, sigma: float, generator: torch.Generator
) -> torch.Tensor:
    """A smooth random displacement field after Simard, Steinkraus and Platt (2003).

    Each pixel draws a displacement uniformly from [-1, 1] down and right; the field is smoothed
    with a Gaussian and multiplied by alpha. Smoothing averages about 4πσ² draws, so typical
    displacements are alpha / (6 sigma) pixels.

    Args:
        batch: gives N, H and W.
        alpha: strength, at least 0.
        sigma: width of the Gaussian in pixels, above 0. Small is wobbly, large is nearly affine.
        generator: source of chance.

    Returns:
        N×2×H×W: (down, right) in pixels.
    """
    from kornia.filters import gaussian_blur2d

    if not (math.isfinite(sigma) and sigma > 0):
        raise ValueError(f"sigma must be a positive number of pixels, not {sigma}")
    alpha = _per_item(alpha, batch, "alpha", 0)
    image = batch["image"]
    count, _, height, width = image.shape
    noise = torch.rand(count, 2, height, width, generator=generator, device=generator.device)
    noise = _like(2 * noise - 1, image)
    side = 2 * math.ceil(3 * sigma) + 1
    smooth = gaussian_blur2d(noise, (side, side), (float(sigma), float(sigma)), "constant")
    return smooth * _like(alpha, image)[:, None, None, None]


def elastic(batch: Batch, alpha: PerItem, sigma: float, generator: torch.Generator) -> Batch:
    """Bend the picture like a rubber sheet; see :func:`elastic_displacement`."""
    return warp(batch, affine_matrix(batch), elastic_displacement(batch, alpha, sigma, generator))


# ---------------------------------------------------------------------------- photometry


def _repaint(batch: Batch, image: torch.Tensor) -> Batch:
    """Take the new image inside the FOV, clamped to [0, 1]; outside keep the old one."""
    return {**batch, "image": torch.where(batch["fov"] > 0.5, image.clamp(0, 1), batch["image"])}


def brightness(batch: Batch, amount: PerItem) -> Batch:
    """Add ``amount``, in [-1, 1], to all channels; 0 changes nothing."""
    from kornia.enhance import adjust_brightness

    amount = _per_item(amount, batch, "brightness", -1, 1)
    return _repaint(batch, adjust_brightness(batch["image"], _like(amount, batch["image"])))


def contrast(batch: Batch, factor: PerItem) -> Batch:
    """Multiply the distance from the mean grey inside the FOV by ``factor``, in [0, 10]."""
    image, fov = batch["image"], batch["fov"]
    factor = _like(_per_item(factor, batch, "contrast", 0, 10), image)[:, None, None, None]
    # kornia's own versions scale about black, or about a mean that counts the black surround
    pixels = (fov.sum(dim=(-2, -1), keepdim=True) * image.shape[1]).clamp(min=1)  # N×1×1×1
    mean = (image * fov).sum(dim=(-3, -2, -1), keepdim=True) / pixels
    return _repaint(batch, torch.lerp(mean.expand_as(image), image, factor))


def gamma(batch: Batch, exponent: PerItem) -> Batch:
    """Raise every value to ``exponent``, in [0.05, 20]: above 1 darkens the mid-tones."""
    from kornia.enhance import adjust_gamma

    exponent = _per_item(exponent, batch, "gamma", 0.05, 20)
    return _repaint(batch, adjust_gamma(batch["image"], _like(exponent, batch["image"])))


def hue(batch: Batch, degrees: PerItem) -> Batch:
    """Turn the colour circle by ``degrees``, in [-180, 180]."""
    from kornia.enhance import adjust_hue

    radians = _per_item(degrees, batch, "hue", -180, 180) * (math.pi / 180)
    return _repaint(batch, adjust_hue(batch["image"], _like(radians, batch["image"])))


def saturation(batch: Batch, factor: PerItem) -> Batch:
    """Multiply the saturation by ``factor``, in [0, 10]; 0 leaves greys."""
    from kornia.enhance import adjust_saturation

    factor = _per_item(factor, batch, "saturation", 0, 10)
    return _repaint(batch, adjust_saturation(batch["image"], _like(factor, batch["image"])))


def blur(batch: Batch, sigma: PerItem) -> Batch:
    """Defocus with a Gaussian of ``sigma`` pixels, in [0, 50].

    Only pixels inside the FOV are averaged, so that the rim does not darken.
    """
    from kornia.filters import gaussian_blur2d

    image, fov = batch["image"], batch["fov"]
    sigma = _per_item(sigma, batch, "blur", 0, 50)
    side = 2 * math.ceil(3 * float(sigma.max())) + 1
    widths = _like(sigma.clamp(min=0.01), image)[:, None].expand(-1, 2)
    both = torch.cat([image * fov, fov], dim=1)  # N×4×H×W
    both = gaussian_blur2d(both, (side, side), widths, "constant")
    return _repaint(batch, both[:, :-1] / both[:, -1:].clamp(min=1e-6))


def noise(batch: Batch, deviation: PerItem, generator: torch.Generator) -> Batch:
    """Add Gaussian noise of standard ``deviation``, in [0, 1], to each channel."""
    image = batch["image"]
    deviation = _per_item(deviation, batch, "noise", 0, 1)
    grain = torch.randn(image.shape, generator=generator, device=generator.device)
    return _repaint(
        batch, image + _like(deviation, image)[:, None, None, None] * _like(grain, image)
    )


def box_mask(batch: Batch, boxes: torch.Tensor) -> torch.Tensor:
    """N×1×H×W, true inside each item's box.

    Args:
        batch: gives N, H and W.
        boxes: (N, 4) whole numbers: top, left, bottom, right; the last two are included.
            A box with bottom < top is empty.
    """
    height, width = batch["image"].shape[-2:]
    boxes = torch.as_tensor(boxes)
    if boxes.shape != (len(batch["image"]), 4):
        raise ValueError(f"boxes must be {len(batch['image'])}×4, not {tuple(boxes.shape)}")
    device = batch["image"].device
    top, left, bottom, right = boxes.to(device)[:, :, None, None].unbind(1)  # each N×1×1
    y = torch.arange(height, device=device)[:, None]
    x = torch.arange(width, device=device)[None, :]
    inside = (y >= top) & (y <= bottom) & (x >= left) & (x <= right)  # N×H×W
    return inside[:, None]


def erase(batch: Batch, boxes: torch.Tensor) -> Batch:
    """Paint a box of each image in its mean colour (CutOut, DeVries and Taylor 2017).

    The mean is what "nothing" looks like to a network that sees normalised images. Vessels and
    FOV stay: the network is asked to continue the vessels through the gap.

    Args:
        batch: see the module's docstring.
        boxes: (N, 4), see :func:`box_mask`.
    """
    image, fov = batch["image"], batch["fov"]
    pixels = fov.sum(dim=(-2, -1), keepdim=True).clamp(min=1)
    mean = (image * fov).sum(dim=(-2, -1), keepdim=True) / pixels  # N×3×1×1
    return _repaint(batch, torch.where(box_mask(batch, boxes), mean, image))


def sample_boxes(
    count: int, size: tuple[int, int], side: tuple[float, float], generator: torch.Generator
) -> torch.Tensor:
    """Random boxes, (count, 4), for :func:`erase`.

    Args:
        count: how many.
        size: height and width of the images.
        side: range of the box's sides as fractions of the image's, in (0, 1].
        generator: source of chance.
    """
    height, width = size
    tall = (_uniform(count, side, generator) * height).round().clamp(1, height)
    wide = (_uniform(count, side, generator) * width).round().clamp(1, width)
    top = (_uniform(count, (0.0, 1.0), generator) * (height - tall + 1)).floor()
    left = (_uniform(count, (0.0, 1.0), generator) * (width - wide + 1)).floor()
    return torch.stack([top, left, top + tall - 1, left + wide - 1], dim=1).long()


# ---------------------------------------------------- image stitching (M-CAM-GAN, Algorithm 1)


@dataclass(frozen=True)
class Stitch:
    """The random choices of image stitching, one for each of N items.

    Attributes:
        donor: (N,) which item of the batch the rectangle is cut from (line 1; it may be the
            item itself, since the algorithm draws both images independently).
        boxes: (N, 4) the rectangle: StartPoint (top, left) and EndPoint (bottom, right), ordered
            and both included (lines 3-5).
        spin: (N,) degrees, whole numbers from 0 to 359, counter-clockwise (line 10).
        flip: (N,) whether to transpose (line 11).
    """

    donor: torch.Tensor
    boxes: torch.Tensor
    spin: torch.Tensor
    flip: torch.Tensor


def sample_stitch(count: int, size: tuple[int, int], generator: torch.Generator) -> Stitch:
    """Draw the choices of lines 1, 3, 4, 5, 10 and 11 of Algorithm 1 for ``count`` items."""

    def choice(limit: int, *shape: int) -> torch.Tensor:
        drawn = torch.randint(limit, shape, generator=generator, device=generator.device)
        return drawn.cpu()

    y = choice(size[0], count, 2).sort(dim=1).values  # Order(StartPoint, EndPoint)
    x = choice(size[1], count, 2).sort(dim=1).values
    return Stitch(
        donor=choice(count, count),
        boxes=torch.stack([y[:, 0], x[:, 0], y[:, 1], x[:, 1]], dim=1),
        spin=choice(360, count),
        flip=choice(2, count) == 1,
    )


def paste(batch: Batch, donor: torch.Tensor, boxes: torch.Tensor) -> Batch:
    """Copy each item's box from its donor, at the same place, in image, labels and FOV.

    Args:
        batch: see the module's docstring.
        donor: (N,) indices into the batch.
        boxes: (N, 4), see :func:`box_mask`.
    """
    inside = box_mask(batch, boxes)
    donor = torch.as_tensor(donor)
    count = len(batch["image"])
    if donor.shape != (count,) or donor.min() < 0 or donor.max() >= count:
        raise ValueError(f"donor must be {count} indices from 0 to {count - 1}, not {donor}")
    donor = donor.to(inside.device)
    pasted = {name: torch.where(inside, batch[name][donor], batch[name]) for name in _maps(batch)}
    return {**batch, **pasted}


def stitch(batch: Batch, choices: Stitch) -> Batch:
    """Image stitching: paste a rectangle from another pair, rotate, perhaps transpose.

    Algorithm 1 of Yang et al., "Retinal vessel segmentation using multi-scale generative
    adversarial network with class activation mapping" (M-CAM-GAN). Item i of the batch is
    OriginalImage1, item ``donor[i]`` is OriginalImage0.

    Args:
        batch: see the module's docstring.
        choices: from :func:`sample_stitch`, or your own.
    """
    batch = paste(batch, choices.donor, choices.boxes)  # lines 6-9: Crop, Paste
    batch = rotate(batch, choices.spin)  # lines 12-13: Rotate
    return transpose(batch, choices.flip)  # lines 14-17: Transpose


def stitch_steps(batch: Batch, choices: Stitch, item: int = 0) -> dict[str, Batch]:
    """Image stitching of one item with every step kept, to be looked at.

    Args:
        batch: the pool of pairs, "all original images" of the algorithm.
        choices: from :func:`sample_stitch`, or your own.
        item: which item of the batch is OriginalImage1; its donor is OriginalImage0.

    Returns:
        Batches of one item, in order: ``"original 0"``, ``"original 1"``, ``"crop"`` (the
        rectangle alone), ``"paste"``, ``"rotate"`` and ``"transpose"``. The last is item
        ``item`` of :func:`stitch`; it equals ``"rotate"`` when the coin said no.
    """
    names = _maps(batch)
    inside = box_mask(batch, choices.boxes)[item]

    def pick(source: Batch, index: int) -> Batch:
        return {name: source[name][index : index + 1] for name in names}

    donor = pick(batch, int(choices.donor[item]))
    steps = {"original 0": donor, "original 1": pick(batch, item)}
    steps["crop"] = {name: donor[name] * inside for name in names}
    steps["paste"] = pick(paste(batch, choices.donor, choices.boxes), item)
    steps["rotate"] = rotate(steps["paste"], choices.spin[item])
    steps["transpose"] = transpose(steps["rotate"], choices.flip[item])
    return steps


# ------------------------------------------------------------------------------- policies


def _range(low: float, high: float, minimum: float, maximum: float):
    """A field that holds (from, to), with the limits it is checked against."""
    return field(default=(low, high), metadata={"limits": (minimum, maximum)})


COLOUR_NEUTRAL = {"brightness": 0.0, "contrast": 1.0, "saturation": 1.0, "hue": 0.0, "gamma": 1.0}


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """A policy: how likely each change is, and how strong.

    ``Augmentation(...)(batch, generator)`` returns an augmented batch; each item draws its own
    parameters. A single number is the probability that an item is changed at all, a pair the
    range that its parameter is drawn from, uniformly.

    Attributes:
        flip: probability of a left-right flip, and again of an up-down flip.
        quarter_turn: probability of a turn by 90, 180 or 270 degrees.
        stitch: probability of image stitching (Algorithm 1 of M-CAM-GAN).
        affine: probability of turning by ``angle`` (degrees), enlarging by ``scale`` and moving
            by ``shift`` (fractions of height and width).
        elastic: probability of an elastic bend of strength ``alpha``, smoothness ``sigma`` (px).
        colour: probability of changing ``brightness`` (added), ``contrast`` (factor),
            ``saturation`` (factor), ``hue`` (degrees) and ``gamma`` (exponent) together.
        blur: probability of a Gaussian of ``blur_sigma`` (px).
        noise: probability of noise of standard deviation ``noise_deviation``.
        erase: probability of erasing a box with sides of ``erase_side`` (fractions).

    Raises:
        ValueError: if a probability is outside [0, 1] or a range is absurd; it names the field.
    """

    flip: float = 0.0
    quarter_turn: float = 0.0
    stitch: float = 0.0
    affine: float = 0.0
    angle: tuple[float, float] = _range(-45, 45, -360, 360)
    scale: tuple[float, float] = _range(0.8, 1.2, 0.01, 100)
    shift: tuple[float, float] = _range(-0.1, 0.1, -1, 1)
    elastic: float = 0.0
    alpha: tuple[float, float] = _range(0, 200, 0, 1e5)
    sigma: float = 10.0
    colour: float = 0.0
    brightness: tuple[float, float] = _range(-0.06, 0.06, -1, 1)
    contrast: tuple[float, float] = _range(0.85, 1.15, 0, 10)
    saturation: tuple[float, float] = _range(0.85, 1.15, 0, 10)
    hue: tuple[float, float] = _range(-5, 5, -180, 180)
    gamma: tuple[float, float] = _range(0.8, 1.25, 0.05, 20)
    blur: float = 0.0
    blur_sigma: tuple[float, float] = _range(0, 1.5, 0, 50)
    noise: float = 0.0
    noise_deviation: tuple[float, float] = _range(0, 0.04, 0, 1)
    erase: float = 0.0
    erase_side: tuple[float, float] = _range(0.1, 0.3, 1e-6, 1)

    def __post_init__(self):
        for setting in fields(self):
            name, value = setting.name, getattr(self, setting.name)
            if "limits" in setting.metadata:
                minimum, maximum = setting.metadata["limits"]
                low, high = value
                if not minimum <= low <= high <= maximum:
                    raise ValueError(
                        f"{name} must be (from, to) within [{minimum:g}, {maximum:g}], not {value}"
                    )
            elif name == "sigma":
                if not 0 < value < 1000:
                    raise ValueError(f"sigma must be above 0 and below 1000 pixels, not {value}")
            elif not 0 <= value <= 1:
                raise ValueError(f"{name} is a probability in [0, 1], not {value}")

    @classmethod
    def none(cls) -> Augmentation:
        """Change nothing."""
        return cls()

    @classmethod
    def light(cls) -> Augmentation:
        """Flips and quarter turns: exact, and fast enough to cost nothing in training.

        The default of ``fit``: in a few minutes a small network learns more from it than from
        wider policies, which slow each step down and ask for more.
        """
        return cls(flip=0.5, quarter_turn=0.75)

    @classmethod
    def standard(cls) -> Augmentation:
        """Light, plus rotation by up to 45 degrees, scale, shift and changes of colour.

        For long trainings and for photographs that differ from those at hand.
        """
        return replace(
            cls.light(),
            affine=1.0,
            colour=0.8,
            brightness=(-0.1, 0.1),
            contrast=(0.7, 1.3),
            saturation=(0.6, 1.4),
            gamma=(0.6, 1.6),
            hue=(0, 0),  # left alone: its way through HSV would take half of the time
        )

    @classmethod
    def strong(cls) -> Augmentation:
        """Standard with wider ranges, plus elastic, blur, noise, erasing and stitching."""
        return replace(
            cls.standard(),
            angle=(-180, 180),
            scale=(0.7, 1.4),
            brightness=(-0.15, 0.15),
            hue=(-12, 12),
            elastic=0.3,
            blur=0.2,
            noise=0.3,
            erase=0.2,
            stitch=0.3,
        )

    @property
    def changes_colours(self) -> bool:
        """Whether pixel values change, and not only their places."""
        return any((self.colour, self.blur, self.noise, self.erase))

    def sample_parameters(
        self, count: int, size: tuple[int, int], generator: torch.Generator
    ) -> dict[str, torch.Tensor | Stitch]:
        """Draw every item's parameters; an item that a change skips gets the neutral value.

        Args:
            count: number of items N.
            size: height and width, for shifts and boxes.
            generator: source of chance.

        Returns:
            Tensors with N rows, by name, on the CPU. Changes of probability 0, and colours
            whose range is neutral, do not appear.
        """

        def draw(name: str, chosen: torch.Tensor, neutral: float) -> torch.Tensor:
            return torch.where(chosen, _uniform(count, getattr(self, name), generator), neutral)

        drawn: dict[str, torch.Tensor | Stitch] = {}
        if self.stitch:
            drawn["stitch_chosen"] = _with_chance(count, self.stitch, generator)
            drawn["stitch"] = sample_stitch(count, size, generator)
        if self.flip:
            horizontal = _with_chance(count, self.flip, generator)
            vertical = _with_chance(count, self.flip, generator)
            drawn["mirrored"] = horizontal ^ vertical  # as in flip()
            drawn["turns"] = 2 * vertical
        if self.quarter_turn:
            chosen = _with_chance(count, self.quarter_turn, generator)
            turns = torch.randint(1, 4, (count,), generator=generator, device=generator.device)
            drawn["turns"] = drawn.get("turns", 0) + turns.cpu() * chosen
        if self.affine:
            chosen = _with_chance(count, self.affine, generator)
            drawn["angle"] = draw("angle", chosen, 0.0)
            drawn["scale"] = draw("scale", chosen, 1.0)
            down, right = (draw("shift", chosen, 0.0) * side for side in size)
            drawn["shift"] = torch.stack([down, right], dim=1)
        if self.elastic:
            drawn["alpha"] = draw("alpha", _with_chance(count, self.elastic, generator), 0.0)
        if self.colour:
            chosen = _with_chance(count, self.colour, generator)
            for name, neutral in COLOUR_NEUTRAL.items():
                if getattr(self, name) != (neutral, neutral):
                    drawn[name] = draw(name, chosen, neutral)
        if self.blur:
            drawn["blur_sigma"] = draw("blur_sigma", _with_chance(count, self.blur, generator), 0.0)
        if self.noise:
            drawn["noise_deviation"] = draw(
                "noise_deviation", _with_chance(count, self.noise, generator), 0.0
            )
        if self.erase:
            chosen = _with_chance(count, self.erase, generator)
            boxes = sample_boxes(count, size, self.erase_side, generator)
            drawn["erase"] = torch.where(chosen[:, None], boxes, torch.tensor([0, 0, -1, -1]))
        return drawn

    def __call__(self, batch: Batch, generator: torch.Generator) -> Batch:
        """Augment a batch; the same generator state gives the same result.

        Args:
            batch: see the module's docstring; it is not changed.
            generator: source of chance, on the CPU or on the batch's device.

        Returns:
            A batch of the same shapes.
        """
        _maps(batch)
        size = tuple(batch["image"].shape[-2:])
        drawn = self.sample_parameters(len(batch["image"]), size, generator)
        batch = self._geometry(batch, drawn, generator)
        return self._photometry(batch, drawn, generator)

    def _geometry(self, batch: Batch, drawn: dict, generator: torch.Generator) -> Batch:
        angle = drawn.get("angle", 0.0)
        if self.stitch:
            choices, chosen = drawn["stitch"], drawn["stitch_chosen"]
            itself = torch.arange(len(chosen))
            batch = paste(batch, torch.where(chosen, choices.donor, itself), choices.boxes)
            batch = transpose(batch, choices.flip & chosen)
            # The spin is uniform over the circle, so it may as well come last, in the one warp.
            angle = angle + choices.spin * chosen
        if self.flip or self.quarter_turn:
            batch = symmetry(batch, drawn.get("mirrored", False), drawn.get("turns", 0))
        if self.affine or self.stitch or self.elastic:
            matrix = affine_matrix(batch, angle, drawn.get("scale", 1.0), drawn.get("shift", 0.0))
            displacement = None
            if self.elastic:
                displacement = elastic_displacement(batch, drawn["alpha"], self.sigma, generator)
            batch = warp(batch, matrix, displacement)
        return dict(batch)

    def _photometry(self, batch: Batch, drawn: dict, generator: torch.Generator) -> Batch:
        for change in (brightness, contrast, saturation, hue, gamma):
            if change.__name__ in drawn:
                batch = change(batch, drawn[change.__name__])
        if self.blur:
            batch = blur(batch, drawn["blur_sigma"])
        if self.noise:
            batch = noise(batch, drawn["noise_deviation"], generator)
        if self.erase:
            batch = erase(batch, drawn["erase"])
        return batch


POLICIES = ("none", "light", "standard", "strong")


def augmentation_by_name(name: str) -> Augmentation:
    """The named policy: ``"none"``, ``"light"``, ``"standard"`` or ``"strong"``.

    Raises:
        ValueError: for any other name; it lists these.
    """
    if name not in POLICIES:
        raise ValueError(f"no augmentation is called {name!r}; choose one of {', '.join(POLICIES)}")
    return getattr(Augmentation, name)()
