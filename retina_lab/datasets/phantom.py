"""A procedural fundus photograph: every vessel is known because we grew it.

The phantom is made in the order in which light meets it: anatomy first (where the disc, the
fovea and the vessel trees lie, in millimetres of retina), then reflectance (what colour each
layer has), then the camera (field, illumination, blur, noise, JPEG). Each stage draws from its
own stream of random numbers, so that changing one parameter leaves the rest of the eye alone,
and all of the anatomy is independent of the number of pixels.

Coordinates of the anatomy: millimetres on the retina, origin at the centre of the optic disc,
x towards the temple, y upwards. They are the same for both eyes; only :class:`Projection`
knows which eye it is and how many pixels there are.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from PIL import Image
from scipy import ndimage
from scipy.interpolate import CubicSpline

from retina_lab.datasets.sample import FundusSample

# Schematic eye: one degree of visual angle is about 0.288 mm of retina (Drasdo and Fowler 1974),
# so a 45° photograph shows a disc of 13 mm.
MM_PER_DEGREE = 0.288
# The fovea lies about 2.5 disc diameters temporal of the disc, a little below its centre.
FOVEA = np.array([4.6, -0.35])
# The capillary-free zone is about half a millimetre across; no visible vessel comes closer
# than this to its centre.
AVASCULAR_RADIUS = 0.40
# The field of view fills this part of the image's side.
FIELD_FILL = 0.95

ARTERY, VEIN, CROSSING = 1, 2, 3
MICROANEURYSM, HAEMORRHAGE, EXUDATE, COTTON_WOOL = 1, 2, 3, 4


# --------------------------------------------------------------------------------------------
# parameters


class Camera(NamedTuple):
    """What one kind of camera and clinic does to every photograph.

    Pairs are the range that an eye's own value is drawn from.
    """

    field_degrees: tuple[float, float]
    centring: tuple[float, float]  # 0 on the disc, 1 on the fovea
    flat_cut: tuple[float, float]
    red: tuple[float, float]  # grey level of the fundus, light eyes bright
    green_to_red: tuple[float, float]
    blue_to_green: tuple[float, float]
    vignetting: tuple[float, float]
    defocus: tuple[float, float]
    noise: tuple[float, float]
    jpeg_quality: tuple[int, int]
    black: tuple[int, int, int]  # grey levels outside the field
    notch: bool  # the little mark at the rim that tells up from down
    vessel_spacing: tuple[float, float]
    vessel_contrast: tuple[float, float]
    choroid: tuple[float, float]
    central_reflex: tuple[float, float]
    rim: tuple[float, float]  # width of the rim's penumbra, part of the field's radius


# Ranges measured on training photographs of public datasets with these cameras.
CAMERAS: dict[str, Camera] = {
    # in the manner of DRIVE (Canon CR5, 45°, centred on the macula)
    "canon-45": Camera(
        field_degrees=(43, 47), centring=(0.72, 1.0), flat_cut=(0, 0),
        red=(125, 228), green_to_red=(0.42, 0.62), blue_to_green=(0.55, 0.68),
        vignetting=(0.1, 0.5), defocus=(0.4, 1.0), noise=(1.5, 3.0), jpeg_quality=(80, 97),
        vessel_spacing=(0.65, 0.9), vessel_contrast=(0.6, 1.1), central_reflex=(0, 0.6),
        choroid=(0, 0.7), rim=(0.004, 0.03), black=(3, 3, 3), notch=True,
    ),
    # CHASE_DB1 (Nidek NM-200-D, 30°, centred on the disc of a child)
    "nidek-30": Camera(
        field_degrees=(28, 33), centring=(0, 0.12), flat_cut=(0, 0),
        red=(145, 280), green_to_red=(0.28, 0.46), blue_to_green=(0.10, 0.25),
        vignetting=(0.5, 1.0), defocus=(0.1, 0.55), noise=(2.0, 4.5), jpeg_quality=(75, 95),
        vessel_spacing=(0.95, 1.3), vessel_contrast=(0.55, 1.15), central_reflex=(0.2, 1),
        choroid=(0.4, 1), rim=(0.004, 0.012), black=(1, 0, 0), notch=False,
    ),
    # STARE (Topcon TRV-50, 35°, scanned slides)
    "topcon-35": Camera(
        field_degrees=(34, 40), centring=(0.35, 1.0), flat_cut=(0.04, 0.09),
        red=(150, 235), green_to_red=(0.48, 0.72), blue_to_green=(0.15, 0.45),
        vignetting=(0.1, 0.6), defocus=(0.4, 1.1), noise=(2.0, 4.5), jpeg_quality=(70, 95),
        vessel_spacing=(0.75, 1.1), vessel_contrast=(0.6, 1.2), central_reflex=(0, 0.7),
        choroid=(0.1, 0.8), rim=(0.004, 0.02), black=(8, 14, 12), notch=True,
    ),
    # HRF (Canon CR-1, 45°, top and bottom cut flat)
    "canon-45-cut": Camera(
        field_degrees=(42, 48), centring=(0.3, 0.9), flat_cut=(0.10, 0.16),
        red=(150, 230), green_to_red=(0.28, 0.45), blue_to_green=(0.30, 0.60),
        vignetting=(0.2, 0.7), defocus=(0.3, 0.8), noise=(1.0, 2.5), jpeg_quality=(85, 98),
        vessel_spacing=(0.65, 0.9), vessel_contrast=(0.6, 1.2), central_reflex=(0, 0.8),
        choroid=(0, 0.7), rim=(0.004, 0.015), black=(0, 0, 0), notch=True,
    ),
}  # fmt: skip


def _number(low: float, high: float, unit: str, meaning: str):
    return field(default=None, metadata={"range": (low, high), "unit": unit, "doc": meaning})


def _choice(options: Sequence[str], meaning: str):
    return field(default=None, metadata={"options": tuple(options), "unit": "", "doc": meaning})


@dataclass(frozen=True)
class PhantomParameters:
    """Everything about a phantom that can be set; None lets the seed choose.

    Ranges, units and one line of explanation of every parameter are its metadata, which
    :meth:`table` lists, so that sliders and documentation come from one place.

    Raises:
        ValueError: if a value is outside its range; the message names parameter and range.
    """

    camera: str | None = _choice(tuple(CAMERAS), "kind of camera: field, colours, sharpness")
    eye: str | None = _choice(("left", "right"), "side of the body; mirrors the anatomy")
    field_degrees: float | None = _number(25, 60, "degrees", "angle that the field shows")
    centring: float | None = _number(0, 1, "1", "0 centres the disc, 1 the fovea")
    flat_cut: float | None = _number(0, 0.2, "diameters", "height cut off at top and bottom")
    pigmentation: float | None = _number(0, 1, "1", "0 a blond fundus, 1 a dark brown one")
    grade: int | None = _number(0, 4, "grade", "diabetic retinopathy, 0 none to 4 proliferative")
    vein_width: float | None = _number(90, 220, "µm", "width of the widest vein at the disc")
    artery_vein_ratio: float | None = _number(0.5, 1, "1", "artery width over vein width")
    tortuosity: float | None = _number(0, 1, "1", "how much the vessels wind")
    vessel_spacing: float | None = _number(0.5, 1.6, "mm", "largest gap between like vessels")
    vessel_contrast: float | None = _number(0.3, 1.6, "1", "darkness of blood, 1 is typical")
    central_reflex: float | None = _number(0, 1, "1", "bright line along the wide vessels")
    disc_diameter: float | None = _number(1.4, 2.3, "mm", "vertical diameter of the optic disc")
    cup_ratio: float | None = _number(0, 0.8, "1", "cup diameter over disc diameter")
    macula: float | None = _number(0, 1, "1", "darkness of the macula")
    choroid: float | None = _number(0, 1, "1", "visibility of the choroid and its vessels")
    nerve_fibres: float | None = _number(0, 1, "1", "striations and sheen of the nerve fibres")
    illumination: float | None = _number(0, 1, "1", "unevenness of the light")
    vignetting: float | None = _number(0, 1, "1", "darkening towards the rim")
    border_glow: float | None = _number(0, 1, "1", "stray light along the rim")
    gamma: float | None = _number(0.7, 1.4, "1", "exponent on the grey levels, above 1 darker")
    defocus: float | None = _number(0, 3, "px at 512", "standard deviation of the blur")
    noise: float | None = _number(0, 10, "grey levels", "standard deviation of sensor noise")
    jpeg_quality: int | None = _number(30, 100, "1", "quality of the JPEG file, 100 hardly lossy")

    def __post_init__(self):
        for item in fields(self):
            value = getattr(self, item.name)
            if value is not None:
                _check_parameter(item, value)

    @classmethod
    def table(cls) -> list[dict]:
        """One row a parameter: name, unit, ``range`` or ``options``, doc."""
        return [{"name": item.name, **item.metadata} for item in fields(cls)]


def _check_parameter(item, value) -> None:
    if "options" in item.metadata:
        if value not in item.metadata["options"]:
            raise ValueError(
                f"{item.name} must be one of {', '.join(item.metadata['options'])}, not {value!r}"
            )
        return
    low, high = item.metadata["range"]
    whole = item.name in ("grade", "jpeg_quality")
    if isinstance(value, bool) or not isinstance(value, (int, float, np.integer, np.floating)):
        raise ValueError(f"{item.name} must be a number from {low} to {high}, not {value!r}")
    if whole and value != int(value):
        raise ValueError(f"{item.name} must be a whole number from {low} to {high}, not {value}")
    if not low <= value <= high:
        unit = "" if item.metadata["unit"] == "1" else f" {item.metadata['unit']}"
        raise ValueError(f"{item.name} must lie between {low} and {high}{unit}, not {value}")


def draw_parameters(seed: int, parameters: PhantomParameters | None = None) -> PhantomParameters:
    """Fill in what ``parameters`` leaves open, as the seed decides.

    Every value is drawn whether it is needed or not, so that fixing one parameter does not
    change the others.

    Returns:
        parameters without None.
    """
    given = parameters or PhantomParameters()
    rng = _stream(seed, "parameters")
    names = list(CAMERAS)
    drawn_camera = names[rng.choice(len(names), p=(0.4, 0.3, 0.2, 0.1))]
    camera = CAMERAS[given.camera or drawn_camera]

    def between(pair):
        return float(rng.uniform(*pair))

    drawn = {
        "camera": given.camera or drawn_camera,
        "eye": "right" if rng.random() < 0.5 else "left",
        "field_degrees": between(camera.field_degrees),
        "centring": between(camera.centring),
        "flat_cut": between(camera.flat_cut),
        "pigmentation": between((0, 1)),
        # Screening sees mostly healthy eyes.
        "grade": int(rng.choice(5, p=(0.6, 0.12, 0.12, 0.1, 0.06))),
        "vein_width": float(np.clip(rng.normal(168, 17), 125, 210)),
        "artery_vein_ratio": float(np.clip(rng.normal(0.68, 0.06), 0.55, 0.85)),
        "tortuosity": float(rng.beta(2, 3)),
        "vessel_spacing": between(camera.vessel_spacing),
        "vessel_contrast": between(camera.vessel_contrast),
        "central_reflex": between(camera.central_reflex),
        "disc_diameter": float(np.clip(rng.normal(1.8, 0.12), 1.5, 2.15)),
        "cup_ratio": between((0.25, 0.6)),
        "macula": between((0.3, 1)),
        "choroid": between(camera.choroid),
        "nerve_fibres": float(rng.beta(1.5, 2.5)),
        "illumination": between((0.1, 0.8)),
        "vignetting": between(camera.vignetting),
        "border_glow": float(rng.beta(1, 2.5)),
        "gamma": between((0.9, 1.12)),
        "defocus": between(camera.defocus),
        "noise": between(camera.noise),
        "jpeg_quality": int(rng.integers(camera.jpeg_quality[0], camera.jpeg_quality[1] + 1)),
    }
    set_by_caller = {
        item.name: getattr(given, item.name)
        for item in fields(given)
        if getattr(given, item.name) is not None
    }
    return PhantomParameters(**(drawn | set_by_caller))


_STREAMS = (
    "parameters", "vessels", "disc", "choroid", "fibres", "light", "lesions", "sensor",
    "observer", "texture",
)  # fmt: skip


def _stream(seed: int, name: str) -> np.random.Generator:
    """An independent stream of random numbers for one stage of one phantom."""
    return np.random.default_rng([int(seed), _STREAMS.index(name)])


# --------------------------------------------------------------------------------------------
# projection from retina to image


@dataclass(frozen=True)
class Projection:
    """Where a point of the retina falls in the image.

    Attributes:
        size: side of the square image in pixels.
        centre: (2,) point of the retina at the centre of the field, mm.
        field_radius: radius of the field, mm.
        eye: ``"left"`` or ``"right"``. The disc of a right eye appears on the right.
    """

    size: int
    centre: np.ndarray
    field_radius: float
    eye: str

    @property
    def pixels_per_mm(self) -> float:
        """Scale of the image."""
        return FIELD_FILL * self.size / 2 / self.field_radius

    @property
    def mirror(self) -> int:
        """Sign of the image's x axis along the retina's temporal axis."""
        return 1 if self.eye == "left" else -1

    def to_pixels(self, points: np.ndarray) -> np.ndarray:
        """(..., 2) points in mm as x, y → (..., 2) column, row in pixels."""
        middle = (self.size - 1) / 2
        flip = np.array([self.mirror, -1])
        return middle + flip * (points - self.centre) * self.pixels_per_mm

    def grid(self) -> tuple[np.ndarray, np.ndarray]:
        """Retinal x and y in mm of every pixel, (size, size) ``float32`` each."""
        step = (np.arange(self.size, dtype=np.float32) - (self.size - 1) / 2) / self.pixels_per_mm
        x = self.centre[0] + self.mirror * step
        y = self.centre[1] - step
        return tuple(np.meshgrid(x.astype(np.float32), y.astype(np.float32)))


# --------------------------------------------------------------------------------------------
# vessel trees


@dataclass(frozen=True, eq=False)
class VesselSegment:
    """A vessel between two branchings.

    Attributes:
        kind: ``ARTERY`` (1) or ``VEIN`` (2).
        parent: index of the segment it leaves, in the same list; -1 at the optic disc.
        points: (n, 2) centre line in mm, from the disc outwards.
        radii: (n,) radius in mm at each point.
        order: 0 for the main vessels, 1 for their branches, and so on.
    """

    kind: int
    parent: int
    points: np.ndarray
    radii: np.ndarray
    order: int


@dataclass(eq=False)
class _Branch:
    """A whole vessel before it is divided at its branchings; indices are along ``points``."""

    kind: int
    parent: int
    start: int  # index of the parent's point that it leaves from
    points: np.ndarray
    order: int
    outflow: float  # blood that leaves at its end, in mm of perfused length
    perfusion: float  # blood lost a millimetre to vessels too thin to grow
    children: list[int] = field(default_factory=list)


# Superior vessels in mm, (x, y) from the disc; inferior ones are mirrored at the x axis. The
# temporal arcades curve around the fovea, about 3.5 mm above and below it.
_TEMPORAL_ARCADE = (
    (0.1, 0.8),
    (0.75, 2.0),
    (2.3, 3.2),
    (4.7, 3.75),
    (7.3, 3.3),
    (9.6, 2.2),
    (12, 0.6),
)
_NASAL_VESSEL = ((-0.35, 1.5), (-1.5, 2.9), (-3.2, 4.5), (-5.4, 6.6), (-8, 9))
_UPPER_VESSEL = ((0.7, 4.2), (1.6, 6.2), (3.0, 8.5), (4.5, 11))
_NASAL_TWIG = ((-0.8, 0.15), (-2.0, 0.4), (-3.6, 0.9), (-5.4, 1.3), (-7.5, 1.9))
_MACULAR_TWIG = ((0.7, 0.35), (1.6, 0.75), (2.7, 0.95), (3.6, 0.75))

# Blood lost a millimetre of main vessel, branch, twig and finest twig, relative to a main
# vessel. With Murray's law these give DRIVE's distribution of widths.
_PERFUSION = (1.0, 0.32, 0.14, 0.07)
_STEP = 0.08  # mm between points of a centre line
_CELL = 0.12  # mm, resolution of the map that keeps like vessels apart


def grow_vessels(
    rng: np.random.Generator,
    *,
    centre: np.ndarray = (3.0, -0.1),
    field_radius: float = 6.5,
    disc_radius: float = 0.9,
    vein_width: float = 165.0,
    artery_vein_ratio: float = 0.67,
    tortuosity: float = 0.4,
    spacing: float = 0.85,
) -> list[VesselSegment]:
    """Grow the arteries and veins of one retina from the optic disc.

    The main vessels follow the arcades. Then the emptiest place of the field is sought, again
    and again, and a branch grows there from the best placed vessel of the same kind, until no
    place is further than ``spacing`` from an artery and from a vein: large gaps are filled
    first, by long branches, small ones later, by twigs of twigs. Like vessels never cross.
    Widths follow from the blood that each vessel carries (:func:`_radii`).

    Args:
        rng: the source of all chance.
        centre: (2,) centre of the field in mm.
        field_radius: in mm; vessels end just outside it.
        disc_radius: in mm.
        vein_width: diameter of the widest vein in µm.
        artery_vein_ratio: width of the widest artery over ``vein_width``.
        tortuosity: 0 to 1.
        spacing: in mm.

    Returns:
        segments, parents before their children. At every branching of radii r0 into r1 and r2
        Murray's law holds, r0³ = r1³ + r2³ (Murray 1926, PNAS 12, 207).
    """
    wood = _Forest(rng, np.asarray(centre, float), field_radius, disc_radius, tortuosity)
    for kind in (ARTERY, VEIN):
        wood.plant(kind)
    # Visible vessels first, then the last generation, most of it at the edge of visibility.
    wood.fill(spacing, finest=False)
    wood.fill(0.62 * spacing, finest=True)
    widths = {VEIN: vein_width, ARTERY: vein_width * artery_vein_ratio}
    return _divide(wood.branches, {kind: width / 2000 for kind, width in widths.items()})


class _Forest:
    """The growing vessels and the maps that tell where there is room."""

    def __init__(self, rng, centre, field_radius, disc_radius, tortuosity):
        self.rng = rng
        self.centre = centre
        self.field_radius = field_radius
        # Vessels end just outside the field, but the disc they come from may lie further out.
        self.reach = max(1.04 * field_radius, np.hypot(*centre) + 1.5)
        self.disc_radius = disc_radius
        self.tortuosity = tortuosity
        self.branches: list[_Branch] = []
        self.outside: dict[int, int] = {}  # superior, inferior: which kind runs outside
        self.places = self._candidate_places()
        cells = int(np.ceil(2.3 * self.reach / _CELL)) + 1
        # per kind: distance of each place to the nearest vessel; which cells are taken; and
        # all points as rows x, y, direction x, direction y, branch, index, free
        self.distance = {k: np.full(len(self.places), np.inf) for k in (ARTERY, VEIN)}
        self.taken = {k: np.zeros((cells, cells), bool) for k in (ARTERY, VEIN)}
        self.nodes = {k: np.empty((0, 7)) for k in (ARTERY, VEIN)}

    def _candidate_places(self) -> np.ndarray:
        """A jittered grid over the field without disc and avascular zone, (n, 2) mm."""
        step = self.field_radius / 23
        ticks = np.arange(-self.field_radius, self.field_radius + step, step)
        grid = np.stack(np.meshgrid(ticks, ticks), -1).reshape(-1, 2)
        grid = grid + self.rng.uniform(-0.4, 0.4, grid.shape) * step
        grid = grid[np.hypot(*grid.T) < self.field_radius] + self.centre
        off_disc = np.hypot(*grid.T) > 1.15 * self.disc_radius
        off_fovea = np.hypot(*(grid - FOVEA).T) > 1.25 * AVASCULAR_RADIUS
        return grid[off_disc & off_fovea]

    # ---- main vessels

    def plant(self, kind: int) -> None:
        """Trace the main vessels of one kind, superior and inferior."""
        rng = self.rng
        # The central artery and vein enter side by side, a little nasal of the disc's centre.
        trunk = np.array([0.0 if kind == VEIN else -0.2, 0.0]) + rng.normal(0, 0.05, 2)
        for up in (1, -1):
            # Artery and vein of an arcade run side by side, either of them outside.
            if kind == ARTERY:
                self.outside[up] = rng.choice([-1, 1])
            shift = 0.2 * self.outside[up] * (1 if kind == ARTERY else -1)
            start = trunk + (0, 0.02 * up)
            arcade = self._trace(kind, start, _TEMPORAL_ARCADE, up, shift, outflow=9)
            # The trunk divides on or near the disc into a temporal and a nasal vessel.
            leave_at = rng.uniform(0.35, 0.95) * self.disc_radius
            self._fork(arcade, leave_at, _NASAL_VESSEL, up, shift, outflow=5)
            self._fork(arcade, rng.uniform(1.6, 3.2), _UPPER_VESSEL, up, shift, outflow=4)
            if rng.random() < 0.7:
                self._trace(kind, trunk + (0.1, 0.05 * up), _MACULAR_TWIG, up, shift, 0.1, order=1)
        shift = 0.3 if kind == ARTERY else -0.3
        self._trace(kind, trunk, _NASAL_TWIG, rng.choice([-1, 1]), shift, outflow=1.5)

    def _waypoints(self, template, up, shift) -> np.ndarray:
        """A template, varied, mirrored if inferior, shifted to its left by up to ``shift`` mm."""
        points = np.array(template) * self.rng.uniform(0.9, 1.1)
        reach = np.hypot(*points.T)[:, None]
        aside = _unit(np.gradient(points, axis=0))[:, ::-1] * (-1, 1)
        points = points + aside * shift * np.minimum(reach / 1.2, 1)
        points += self.rng.normal(0, 1, points.shape) * np.minimum(0.045 * reach, 0.28)
        return points * (1, up)

    def _trace(self, kind, start, template, up, shift, outflow, order=0) -> int:
        """Lay a main vessel from the disc along a template; returns its number."""
        points = _resample(np.vstack([start, self._waypoints(template, up, shift)]))
        points, left = self._inside(_meander(self.rng, points, self.tortuosity))
        return self._add(kind, -1, 0, points, order, outflow if left else 0.05, order)

    def _fork(self, parent, leave_at, template, up, shift, outflow) -> None:
        """Divide a main vessel, if the second one has room."""
        trunk = self.branches[parent]
        at = int(leave_at / _STEP)
        if at > len(trunk.points) - 6:
            return
        start = trunk.points[at]
        for _ in range(4):
            waypoints = self._waypoints(template, up, shift)
            # Only what lies ahead: a branch does not turn back along its parent.
            waypoints = waypoints[np.hypot(*waypoints.T) > np.hypot(*start) + 0.5]
            if not len(waypoints):
                return
            points = _resample(np.vstack([start, waypoints]))
            points, left = self._inside(_meander(self.rng, points, self.tortuosity))
            if len(points) > 6 and self._is_free(trunk.kind, points):
                self._add(trunk.kind, parent, at, points, 0, outflow if left else 0.05, 0)
                return

    def _inside(self, points: np.ndarray) -> tuple[np.ndarray, bool]:
        """The part of a line up to where it leaves the field; whether it does."""
        outside = np.hypot(*(points - self.centre).T) > self.reach
        if not outside.any():
            return points, False
        return points[: int(outside.argmax())], True

    def _add(self, kind, parent, at, points, order, outflow, generation) -> int:
        number = len(self.branches)
        perfusion = _PERFUSION[min(generation, 3)] * self.rng.uniform(0.7, 1.3)
        self.branches.append(_Branch(kind, parent, at, points, order, outflow, perfusion))
        if parent >= 0:
            self.branches[parent].children.append(number)
            self._close(kind, parent, at)
        self._occupy(kind, number, points)
        return number

    def _close(self, kind, branch, at) -> None:
        """Two branchings do not share a point, nor lie side by side."""
        nodes = self.nodes[kind]
        near = (nodes[:, 4] == branch) & (np.abs(nodes[:, 5] - at) < 4)
        nodes[near, 6] = 0

    def _occupy(self, kind, number, points) -> None:
        direction = _unit(np.gradient(points, axis=0))
        index = np.arange(len(points))
        free = (index > 3) & (index < len(points) - 4)
        columns = (points, direction, np.full(len(points), number)[:, None], index[:, None])
        rows = np.hstack([*columns, free[:, None]])
        self.nodes[kind] = np.vstack([self.nodes[kind], rows])
        # The grid of places is coarse, so every fourth point will do.
        apart = self.places[:, None] - points[None, ::4]
        nearest = np.sqrt(np.einsum("pqi,pqi->pq", apart, apart).min(1))
        np.minimum(self.distance[kind], nearest, out=self.distance[kind])
        row, column = self._cells(points)
        self.taken[kind][row, column] = True

    def _cells(self, points) -> tuple[np.ndarray, np.ndarray]:
        cells = ((points - self.centre + 1.15 * self.reach) / _CELL).astype(int)
        cells = np.clip(cells, 0, self.taken[ARTERY].shape[0] - 1)
        return cells[:, 1], cells[:, 0]

    # ---- branches

    def fill(self, spacing: float, finest: bool) -> None:
        """Grow branches of both kinds until no place is further than ``spacing`` from either."""
        hopeless = {k: np.zeros(len(self.places), bool) for k in (ARTERY, VEIN)}
        growing = [ARTERY, VEIN]
        while growing:
            for kind in tuple(growing):
                other = self.distance[ARTERY + VEIN - kind]
                # Arteries and veins alternate: a place beside the other kind is less in need.
                need = self.distance[kind] * (0.6 + 0.4 * np.minimum(other / spacing, 1))
                need[hopeless[kind]] = 0
                place = int(need.argmax())
                if need[place] < spacing * 0.8:
                    growing.remove(kind)
                elif not self._reach(kind, self.places[place], finest):
                    hopeless[kind][place] = True

    def _reach(self, kind: int, target: np.ndarray, finest: bool) -> bool:
        """Grow one branch to ``target`` from the best placed vessel; whether it was possible."""
        nodes = self.nodes[kind]
        nodes = nodes[nodes[:, 6] > 0]
        ahead = target - nodes[:, :2]
        distance = np.hypot(*ahead.T) + 1e-9
        cosine = (ahead * nodes[:, 2:4]).sum(1) / distance
        # Forwards rather than back towards the disc, and not from vessels on the disc itself.
        cost = distance * (1.7 - 0.7 * cosine)
        cost = np.where(np.hypot(*nodes[:, :2].T) < self.disc_radius, 2 * cost, cost)
        for choice in np.argsort(cost)[:12:4]:
            # Overshoot if there is room: twigs are longer than the gap that they close.
            for reach in (self.rng.uniform(1.3, 2.6), 1.0):
                points = self._curve(nodes[choice], nodes[choice, :2] + reach * ahead[choice])
                if self._is_free(kind, points):
                    return self._branch(kind, nodes[choice], points, finest)
        return False

    def _branch(self, kind, node, points, finest: bool) -> bool:
        parent, at = int(node[4]), int(node[5])
        points, left = self._inside(points)
        if len(points) < 4:
            return False
        order = self.branches[parent].order + 1
        generation = 3 if finest else min(order, 2)
        outflow = 1.2 * _PERFUSION[generation] if left else 0.002
        self._add(kind, parent, at, points, order, outflow, generation)
        return True

    def _curve(self, node: np.ndarray, target: np.ndarray) -> np.ndarray:
        """A smooth line that leaves its parent at a branching angle and ends at the target."""
        start, tangent = node[:2], node[2:4]
        ahead = target - start
        length = np.hypot(*ahead)
        turn = np.arctan2(tangent[0] * ahead[1] - tangent[1] * ahead[0], tangent @ ahead)
        # Least work asks for 37° between equal branches and almost 90° for a thin side branch
        # (Murray 1926); real side branches leave at 30° to 80°.
        leave = np.sign(turn) * np.clip(abs(turn), np.radians(30), np.radians(80))
        cosine, sine = np.cos(leave), np.sin(leave)
        first = np.array([[cosine, -sine], [sine, cosine]]) @ tangent
        last = _unit(ahead / length + 0.4 * self.rng.normal(size=2))
        t = np.linspace(0, 1, max(5, int(np.ceil(1.05 * length / _STEP)) + 1))[:, None]
        # cubic Hermite curve
        points = (
            (2 * t**3 - 3 * t**2 + 1) * start
            + (t**3 - 2 * t**2 + t) * length * first
            + (3 * t**2 - 2 * t**3) * target
            + (t**3 - t**2) * length * 0.8 * last
        )
        # Thin vessels wind more than the arcades.
        return _meander(self.rng, points, 0.3 + 1.1 * self.tortuosity)

    def _is_free(self, kind: int, points: np.ndarray) -> bool:
        """Whether a branch meets neither the avascular zone nor a vessel of its own kind."""
        if np.hypot(*(points - FOVEA).T).min() < AVASCULAR_RADIUS:
            return False
        away = points[np.hypot(*(points - points[0]).T) > 2.2 * _CELL]
        row, column = self._cells(away)
        return not self.taken[kind][row, column].any()


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / (np.linalg.norm(vectors, axis=-1, keepdims=True) + 1e-12)


def _resample(waypoints: np.ndarray) -> np.ndarray:
    """A smooth line through waypoints, one point every ``_STEP`` mm."""
    chord = np.r_[0, np.cumsum(np.hypot(*np.diff(waypoints, axis=0).T))]
    line = CubicSpline(chord, waypoints)
    fine = line(np.linspace(0, chord[-1], int(chord[-1] / _STEP * 4)))
    length = np.r_[0, np.cumsum(np.hypot(*np.diff(fine, axis=0).T))]
    even = np.linspace(0, length[-1], max(2, round(length[-1] / _STEP) + 1))
    return np.stack([np.interp(even, length, fine[:, i]) for i in (0, 1)], 1)


def _meander(rng: np.random.Generator, points: np.ndarray, amount: float) -> np.ndarray:
    """Shift a line sideways by waves of several lengths; its first point stays."""
    arc = np.r_[0, np.cumsum(np.hypot(*np.diff(points, axis=0).T))]
    normal = _unit(np.gradient(points, axis=0))[:, ::-1] * (-1, 1)
    sideways = np.zeros(len(points))
    for wavelength in (0.5, 0.9, 1.7, 3.2):
        wave = rng.normal(0, 1)
        phase = 2 * np.pi * (arc / (wavelength * rng.uniform(0.8, 1.25)) + rng.random())
        # The same relative bend at every wavelength, less at the shortest.
        sideways += wave * np.sin(phase) * wavelength * (0.006 + 0.03 * amount)
    return points + normal * (sideways * np.minimum(arc / 0.5, 1))[:, None]


# --------------------------------------------------------------------------------------------
# widths: Murray's law


def _flow(branches: list[_Branch]) -> list[np.ndarray]:
    """Blood that passes each point of each branch, after what leaves at that point.

    Blood is conserved: a branch carries what leaves at its end, what its children carry, and
    what it gives off along its length to vessels too thin to be grown. Children come after
    their parents, so one pass from the last branch to the first is enough.
    """
    flows: list[np.ndarray] = [np.empty(0)] * len(branches)
    for number in reversed(range(len(branches))):
        branch = branches[number]
        arc = np.r_[0, np.cumsum(np.hypot(*np.diff(branch.points, axis=0).T))]
        flow = branch.outflow + branch.perfusion * (arc[-1] - arc)
        for child in branch.children:
            flow[: branches[child].start] += flows[child][0]
        flows[number] = flow + 1e-6
    return flows


def _divide(branches: list[_Branch], widest: dict[int, float]) -> list[VesselSegment]:
    """Cut branches at their branchings and turn flow into radius, r ∝ flow^(1/3).

    A vessel of radius r costs pumping work ∝ flow²/r⁴ and blood to be kept alive ∝ r². The
    cheapest radius has r³ ∝ flow, and since blood is conserved, r0³ = r1³ + r2³ where it
    divides (Murray 1926). A common factor per kind, which the law allows, makes the widest
    vessel as wide as asked for.
    """
    flows = _flow(branches)
    thickest = {
        kind: max(flow.max() for flow, b in zip(flows, branches, strict=True) if b.kind == kind)
        for kind in widest
    }
    segments: list[VesselSegment] = []
    segment_at: dict[int, int] = {}  # child branch → segment that it leaves
    for number, branch in enumerate(branches):
        scale = widest[branch.kind] / thickest[branch.kind] ** (1 / 3)
        parent = segment_at.get(number, -1)
        children = sorted(branch.children, key=lambda child: branches[child].start)
        cuts = [branches[child].start for child in children]
        for first, last in zip([0, *cuts], [*cuts, len(branch.points) - 1], strict=True):
            flow = flows[number][first : last + 1].copy()
            if last in cuts:  # before the branching the vessel still carries the child's blood
                child = children[cuts.index(last)]
                flow[-1] += flows[child][0]
                segment_at[child] = len(segments)
            radii = scale * np.cbrt(flow)
            points = branch.points[first : last + 1]
            segments.append(VesselSegment(branch.kind, parent, points, radii, branch.order))
            parent = len(segments) - 1
    return segments


# --------------------------------------------------------------------------------------------
# drawing vessels


class VesselMaps(NamedTuple):
    """What the vessels of one kind are at each pixel, all (size, size).

    Attributes:
        depth: ``float32``, thickness of the blood that the light crosses, mm.
        reflex: ``float32`` in [0, 1], the bright line along the axis.
        mask: ``bool``, pixels that an observer would mark.
    """

    depth: np.ndarray
    reflex: np.ndarray
    mask: np.ndarray


class CentreLine(NamedTuple):
    """Closely spaced points along vessels, in pixels (column, row)."""

    points: np.ndarray  # (n, 2)
    directions: np.ndarray  # (n, 2), unit vectors
    radii: np.ndarray  # (n,)
    segment: np.ndarray  # (n,), which segment


def _centre_line(segments: Sequence[VesselSegment], projection: Projection) -> CentreLine:
    """Put a point on the segments every pixel or closer."""
    if not segments:
        return CentreLine(np.empty((0, 2)), np.empty((0, 2)), np.empty(0), np.empty(0, int))
    points = projection.to_pixels(np.vstack([segment.points for segment in segments]))
    radii = np.concatenate([segment.radii for segment in segments]) * projection.pixels_per_mm
    owner = np.repeat(np.arange(len(segments)), [len(segment.points) for segment in segments])
    first = np.flatnonzero(owner[:-1] == owner[1:])  # edges, not from one segment to the next
    along = points[first + 1] - points[first]
    count = np.ceil(np.hypot(*along.T) / 0.8).astype(int) + 1
    edge = np.repeat(np.arange(len(first)), count)
    # 0, 1, 2 … within each edge
    rank = np.arange(len(edge)) - np.repeat(np.cumsum(count) - count, count)
    t = rank / count[edge]
    start = first[edge]
    return CentreLine(
        points[start] + t[:, None] * along[edge],
        _unit(along)[edge],
        radii[start] * (1 - t) + radii[start + 1] * t,
        owner[start],
    )


def _around(line: CentreLine, reach: np.ndarray, size: int):
    """Find the pixels beside each point of a centre line, points of similar width together.

    Args:
        line: n points.
        reach: (n,) how far to look, in pixels.
        size: side of the image.

    Yields:
        three (m,) arrays, one entry for each pair of a point and a pixel beside it: number of
        the point, flat number of the pixel, distance of its centre from the axis in pixels.
    """
    half = np.ceil(reach).astype(int)
    groups = np.unique(np.where(half > 4, (half + 2) // 3 * 3, half))
    # Points in rows, their pixels in columns: arrays of one size for each group of widths.
    lower = 0
    for half_size in groups:
        which = np.flatnonzero((half > lower) & (half <= half_size))
        lower = half_size
        if not len(which):
            continue
        offset = np.arange(-half_size, half_size + 1)
        offsets = np.stack(np.meshgrid(offset, offset), -1).reshape(-1, 2)
        offsets = offsets[np.hypot(*offsets.T) < half_size + 0.5]
        pixel = np.rint(line.points[which]).astype(int)[:, None] + offsets
        apart_x, apart_y = np.moveaxis(pixel - line.points[which][:, None], -1, 0)
        ahead_x, ahead_y = line.directions[which].T[..., None]
        along = np.abs(apart_x * ahead_x + apart_y * ahead_y)
        across = np.abs(apart_x * ahead_y - apart_y * ahead_x)
        keep = (along < 0.9) & (pixel.min(-1) >= 0) & (pixel.max(-1) < size)
        row, _ = np.nonzero(keep)
        flat = pixel[..., 1][keep] * size + pixel[..., 0][keep]
        yield which[row], flat, across[keep]


# The thinnest vessel that an observer marks: in pixels of a 512-pixel image, because the optics
# resolve a fixed part of the field, and in mm, because thinner blood takes too little light.
VISIBLE_PIXELS = 0.95
VISIBLE_MM = 0.022


def visible_width(projection: Projection) -> float:
    """Width in pixels from which on an observer marks a vessel, at least half a pixel."""
    optics = VISIBLE_PIXELS * projection.size / 512
    return max(0.5, optics, VISIBLE_MM * projection.pixels_per_mm)


def draw_vessels(segments: Sequence[VesselSegment], projection: Projection) -> VesselMaps:
    """Draw vessels as cylinders of blood.

    A pixel at distance d from the axis looks through 2·√(r² − d²) of blood. Vessels thinner
    than the pixels are drawn wider and shallower with the same amount of blood, so that they
    fade instead of breaking up.
    """
    size, scale = projection.size, projection.pixels_per_mm
    depth = np.zeros(size * size, np.float32)
    reflex = np.zeros(size * size, np.float32)
    mask = np.zeros(size * size, bool)
    line = _centre_line(segments, projection)
    drawn = np.maximum(line.radii, 0.9)
    for which, flat, across in _around(line, drawn + 0.6, size):
        radius, wide = line.radii[which], drawn[which]
        blood = np.sqrt(np.maximum(wide**2 - across**2, 0)) * (2 / scale) * (radius / wide) ** 2
        np.maximum.at(depth, flat, blood.astype(np.float32))
        # The reflex is about a quarter of the width and needs a few pixels to be seen.
        shine = np.exp(-((across / (0.28 * radius)) ** 2)) * np.clip(radius - 1.1, 0, 1)
        np.maximum.at(reflex, flat, shine.astype(np.float32))
        visible = 2 * radius >= visible_width(projection)
        mask[flat[visible & (across <= np.maximum(radius + 0.25, 0.71))]] = True
    shape = (size, size)
    return VesselMaps(depth.reshape(shape), reflex.reshape(shape), mask.reshape(shape))


def _artery_vein(artery: np.ndarray, vein: np.ndarray) -> np.ndarray:
    return (ARTERY * artery + VEIN * vein).astype(np.uint8)


def observe(
    rng: np.random.Generator, segments: Sequence[VesselSegment], projection: Projection
) -> np.ndarray:
    """The vessels as a second observer marks them.

    He overlooks a vessel the more likely the thinner it is, draws a little wider or narrower
    than the first, never quite on the axis, and now and then a faint vessel that the first
    left out.

    Returns:
        (size, size) ``bool``.
    """
    size = projection.size
    line = _centre_line(segments, projection)
    limit = visible_width(projection)
    shown = np.zeros(size * size, bool)
    if not len(line.points):
        return shown.reshape(size, size)
    count = len(segments)
    widest = np.array([2 * s.radii.max() for s in segments]) * projection.pixels_per_mm
    habit = rng.normal(0.1, 0.15)  # pixels that he draws wider than the first
    attention = rng.uniform(1.35, 1.6)
    seen = widest > limit * (attention + 0.35 * rng.normal(size=count))
    bias = (habit + 0.2 * rng.normal(size=count)) * size / 512
    drift = 0.35 * rng.normal(size=(count, 2)) * size / 512
    line = line._replace(points=line.points + drift[line.segment])
    width = np.maximum(line.radii + bias[line.segment] + 0.25, 0.71)
    for which, flat, across in _around(line, width + 0.6, size):
        shown[flat[seen[line.segment[which]] & (across <= width[which])]] = True
    return shown.reshape(size, size)


# --------------------------------------------------------------------------------------------
# textures


def _smooth_noise(rng: np.random.Generator, size: int, cells: int) -> np.ndarray:
    """Noise of about unit deviation with ``cells`` bumps across the image, whatever its size."""
    grid = rng.normal(size=(cells + 3, cells + 3)).astype(np.float32)
    step = np.linspace(0.5, cells + 1.5, size)
    # Cubic interpolation on a random grid; 1.5 restores the deviation that it takes away.
    box = (step[0], step[0], step[-1], step[-1])
    image = Image.fromarray(grid).resize((size, size), Image.Resampling.BICUBIC, box=box)
    return np.asarray(image) * 1.5


def _bump(x, y, centre, sigma) -> np.ndarray:
    """A round hill of height one; everything in mm."""
    return np.exp(-((x - centre[0]) ** 2 + (y - centre[1]) ** 2) / (2 * sigma**2))


def _cells(projection: Projection, millimetres: float) -> int:
    """How many bumps of a given size fit across the image, at most one in two pixels."""
    across = projection.size / projection.pixels_per_mm
    return int(np.clip(round(across / millimetres), 2, projection.size // 2))


def _choroid(seed: int, projection: Projection, amount: float) -> tuple[np.ndarray, ...]:
    """Mottle, large vessels and red flecks behind the retina, each of about unit size.

    Choroidal vessels are wide, blurred, without visible branching, and seen as lighter bands
    between darker pigment: what a segmentation must learn not to mark.
    """
    rng, size = _stream(seed, "choroid"), projection.size

    def noise(millimetres):
        return _smooth_noise(rng, size, _cells(projection, millimetres))

    mottle = 0.45 * noise(2.6) + 0.4 * noise(1.1) + 0.35 * noise(0.45) + 0.25 * noise(0.2)
    # They run from behind the macula outwards to the vortex veins, winding on their way:
    # stripes in polar coordinates, bent by smooth noise.
    x, y = projection.grid()
    x, y = x - 3.0 + 0.35 * noise(2.2), y + 0.35 * noise(2.2)
    radius, angle = np.hypot(x, y), np.arctan2(y, x)
    stripes = rng.normal(size=(10, 130)).astype(np.float32)
    stripes = ndimage.gaussian_filter(stripes, (0.4, 0.7), mode="wrap")
    where = [radius / 1.6 + 0.5, (angle + np.pi) * (130 / (2 * np.pi))]
    bands = ndimage.map_coordinates(stripes, where, order=1, mode="wrap") / stripes.std()
    patchy = np.clip(0.3 + 0.7 * noise(3.0) + 0.5 * noise(1.0), 0, 1.4)
    # Away from the middle of the pattern, where stripes would crowd together.
    patchy *= np.clip(radius / 2.2, 0, 1) ** 1.5
    # Where the retina is thin the choroid glows red: flecks rather than clouds.
    flecks = np.clip(0.6 * noise(0.9) + 0.4 * noise(0.35) + 0.3 * noise(0.15) - 0.3, 0, 1.5)
    return amount * mottle, amount * patchy * np.clip(bands, -0.5, 1.6), amount * flecks


def _fibres(seed: int, projection: Projection, x, y) -> np.ndarray:
    """Striations of the nerve-fibre layer: bright lines that leave the disc along the arcades."""
    rng = _stream(seed, "fibres")
    radius = np.hypot(x, y) + 1e-3
    # Temporal fibres arch around the fovea: straighten them by turning with the distance.
    temporal = np.clip(x / radius, 0, 1)
    angle = np.arctan2(y, x) + 0.09 * radius * temporal * np.sign(y)
    count = 720
    lines = rng.normal(size=(count, 14)).astype(np.float32)
    lines = ndimage.gaussian_filter(lines, (0.9, 1.0), mode="wrap")
    where = [(angle + np.pi) * (count / (2 * np.pi)), np.clip(radius * 2.2, 0, 13)]
    stripes = ndimage.map_coordinates(lines, where, order=1, mode="wrap") / (lines.std() + 1e-6)
    # Thickest above and below the disc, gone four millimetres away.
    thick = (0.35 + np.abs(y) / radius) * np.exp(-(((radius - 1.3) / 1.7) ** 2))
    return thick * (0.55 + 0.35 * stripes)


# --------------------------------------------------------------------------------------------
# reflectance of the retina


def _fundus_colour(parameters: PhantomParameters) -> np.ndarray:
    """(3,) grey levels of the bare fundus, from the camera's range and the eye's pigment."""
    camera = CAMERAS[parameters.camera]
    dark = parameters.pigmentation

    def within(pair):  # a light eye at the upper end
        return pair[1] + (pair[0] - pair[1]) * dark

    red = within(camera.red)
    # A pigmented eye is redder as well as darker.
    green = red * within(camera.green_to_red)
    return np.array([red, green, green * within(camera.blue_to_green)], np.float32)


# How much of each layer's effect red, green and blue light feel. Melanin and blood absorb red
# light least, so the choroid is seen in red and the vessels in green.
_CHOROID_RGB = np.array([0.055, 0.085, 0.06], np.float32)
_CHOROID_VESSEL_RGB = np.array([0.06, 0.08, 0.04], np.float32)
_FLECK_RGB = np.array([0.12, -0.05, -0.09], np.float32)
_MACULA_RGB = np.array([0.27, 0.45, 0.40], np.float32)
_FIBRE_RGB = np.array([0.05, 0.17, 0.22], np.float32)
_BLOOD_RGB = {
    ARTERY: np.array([0.13, 0.44, 0.36], np.float32),
    VEIN: np.array([0.25, 0.50, 0.38], np.float32),
}
_BLOOD_DEPTH = 0.07  # mm of blood that take up 63 % of what blood can


def _paint_retina(seed: int, parameters: PhantomParameters, projection: Projection) -> np.ndarray:
    """(size, size, 3) ``float32`` grey levels of the retina without vessels and lesions."""
    x, y = projection.grid()
    rng = _stream(seed, "texture")
    mottle, bands, flecks = _choroid(seed, projection, parameters.choroid)
    fine = _smooth_noise(rng, projection.size, _cells(projection, 0.06))
    grain = 0.7 * _smooth_noise(rng, projection.size, _cells(projection, 0.11)) + 0.6 * fine
    grain *= 0.006 + 0.016 * parameters.choroid
    effect = mottle[..., None] * _CHOROID_RGB + bands[..., None] * _CHOROID_VESSEL_RGB
    effect += flecks[..., None] * _FLECK_RGB + grain[..., None]
    # Macular pigment and taller pigment cells darken the macula, most of all the foveal pit.
    macula = 0.7 * _bump(x, y, FOVEA, 1.05) + 0.5 * _bump(x, y, FOVEA, 0.38)
    effect -= parameters.macula * macula[..., None] * _MACULA_RGB
    fibres = _fibres(seed, projection, x, y)
    effect += parameters.nerve_fibres * fibres[..., None] * _FIBRE_RGB
    image = _fundus_colour(parameters) * np.exp(effect)
    reach = 1.4 * parameters.disc_diameter
    near = np.s_[np.abs(y[:, 0]) < reach, np.abs(x[0]) < reach]
    rows, columns = (np.flatnonzero(inside) for inside in near)
    if len(rows) and len(columns):
        near = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        _paint_disc(image[near], seed, parameters, x[near], y[near])
    return image


def _paint_disc(image, seed, parameters, x, y) -> None:
    """Add the optic disc: rim, cup, the halo and often a crescent around it.

    Changes ``image``, a window of the retina around the disc; x and y are its mm.
    """
    rng = _stream(seed, "disc")
    radius = parameters.disc_diameter / 2
    narrow, tilt = rng.uniform(0.86, 0.97), rng.normal(0, 0.25)
    u, v = x * np.cos(tilt) + y * np.sin(tilt), -x * np.sin(tilt) + y * np.cos(tilt)
    wobble = 0.02 * np.sin(3 * np.arctan2(v, u) + rng.uniform(0, 6))
    r = np.hypot(u / narrow, v) / radius + wobble
    soft = rng.uniform(0.03, 0.07)
    disc = 1 / (1 + np.exp(np.clip((r - 1) / soft, -30, 30)))
    offset = rng.uniform(-0.05, 0.15) * radius
    cup_r = np.hypot((u - offset) / narrow, v) / (radius * max(parameters.cup_ratio, 1e-3))
    cup = 1 / (1 + np.exp(np.clip((cup_r - 1) / 0.16, -30, 30))) * (parameters.cup_ratio > 0.02)
    halo = np.exp(-(((r - 1) / 0.35) ** 2)) * rng.uniform(-0.05, 0.16)
    # Where pigment epithelium stops short of the disc the sclera shows, mostly temporally.
    side = 0.5 + 0.5 * np.cos(np.arctan2(y, x) - rng.normal(0, 0.5))
    crescent = np.exp(-(((r - 1.08) / 0.06) ** 2)) * side * rng.choice([0, 0, 0.35, -0.3])
    # The disc has no pigment: about the same yellow-white in light and dark eyes, in front of
    # a camera that was set for the fundus around it.
    base = _fundus_colour(parameters)
    red, green_share, blue_share = base[0], base[1] / base[0], base[2] / base[0]
    pale = red * np.array([1.35, 0.5 + 0.75 * green_share, 0.15 + 0.9 * blue_share]) + (25, 12, 0)
    tissue = base + rng.uniform(0.65, 1.0) * (pale - base)
    pit = tissue + rng.uniform(0.4, 1.0) * (pale * (1.15, 1.3, 1.5) - tissue)
    # The rim is thicker, and redder, on the nasal side.
    tissue = tissue * (1 - 0.12 * np.clip(-x / radius, -1, 1))[..., None]
    colour = tissue + cup[..., None] * (pit - tissue)
    image *= np.exp(halo + crescent)[..., None]
    image += disc[..., None] * (colour - image)


def _add_blood(image, maps: dict[int, VesselMaps], parameters: PhantomParameters) -> np.ndarray:
    """Let light pass twice through the vessels (Beer and Lambert), and shine back from them."""
    image = image.copy()
    for kind in (VEIN, ARTERY):
        vessel = maps[kind].depth > 0
        taken = 1 - np.exp(-maps[kind].depth[vessel] / _BLOOD_DEPTH)
        loss = parameters.vessel_contrast * _BLOOD_RGB[kind]
        # Arteries, with their thicker walls, shine more.
        shine = (0.45 if kind == ARTERY else 0.30) * parameters.central_reflex
        shine = 1 + shine * maps[kind].reflex[vessel][:, None] * (0.7, 1.0, 0.9)
        image[vessel] *= np.exp(-taken[:, None] * loss) * shine
    return image


# --------------------------------------------------------------------------------------------
# lesions


# Mean number of each kind by grade 0–4, after the steps of the international scale (Wilkinson
# et al. 2003): microaneurysms only, more than those, many haemorrhages, new vessels.
_LESION_COUNTS = {
    MICROANEURYSM: (0, 6, 14, 26, 30),
    HAEMORRHAGE: (0, 0, 5, 16, 22),
    EXUDATE: (0, 0, 2, 4, 5),  # clusters
    COTTON_WOOL: (0, 0, 1, 3, 4),
}


def _place(rng, projection: Projection, keep_off: float = 1.3) -> np.ndarray:
    """A random place in the field, not on the disc, (2,) mm."""
    while True:
        point = rng.uniform(-1, 1, 2) * 0.9
        place = projection.centre + point * projection.field_radius
        if np.hypot(*point) < 0.9 and np.hypot(*place) > keep_off:
            return place


def _blob(rng, projection, place, radii, angle, edge, ragged, strength=1.0):
    """Window of the image and a soft-edged irregular ellipse in it, 0 to 1.

    ``radii`` in mm, ``edge`` in mm is the softness of the outline.
    """
    scale, size = projection.pixels_per_mm, projection.size
    column, row = projection.to_pixels(np.asarray(place))
    reach = int(np.ceil((max(radii) * (1 + ragged) + 3 * edge) * scale)) + 2
    # A lesion outside the image gives an empty window.
    low = np.clip([int(row) - reach, int(column) - reach], 0, size)
    high = np.clip([int(row) + reach + 1, int(column) + reach + 1], 0, size)
    window = np.s_[low[0] : high[0], low[1] : high[1]]
    v, u = np.mgrid[window].astype(np.float32)
    u, v = (u - column) / scale, (v - row) / scale
    a, b = u * np.cos(angle) + v * np.sin(angle), -u * np.sin(angle) + v * np.cos(angle)
    around = np.arctan2(b, a)
    wave = sum(rng.normal(0, 0.5) * np.sin(k * around + rng.uniform(0, 6.3)) for k in (2, 3, 5))
    r = np.hypot(a / radii[0], b / radii[1]) + ragged * wave
    soft = max(edge, 0.35 / scale) / min(radii)
    return window, strength / (1 + np.exp(np.clip((r - 1) / soft, -30, 30)))


def _lesion_shapes(rng, projection: Projection, grade: int):
    """Yield kind, window and opacity of every lesion."""

    def number(kind):
        mean = _LESION_COUNTS[kind][grade]
        return max(int(rng.poisson(mean)), 1) if mean else 0

    def angle_of_fibres(place):
        return -projection.mirror * np.arctan2(place[1], place[0])

    for _ in range(number(COTTON_WOOL)):  # swollen nerve fibres near the arcades
        up = rng.choice([-1, 1])
        place = np.array([rng.uniform(-1.5, 4.5), up * rng.uniform(1.5, 3.8)])
        radii = rng.uniform(0.14, 0.38) * np.array([1.3, 0.8])
        angle = angle_of_fibres(place)
        yield COTTON_WOOL, *_blob(rng, projection, place, radii, angle, 0.09, 0.25, 0.7)
    for _ in range(number(EXUDATE)):  # fat left by leaking vessels: sharp, waxy, in groups
        middle = FOVEA + rng.normal(0, 1.5, 2)
        for _ in range(int(rng.integers(5, 26))):
            place = middle + rng.normal(0, 0.35, 2)
            size = rng.lognormal(np.log(0.038), 0.5)
            shape = (size * rng.uniform(0.8, 1.6), size)
            yield EXUDATE, *_blob(rng, projection, place, shape, rng.uniform(0, 6), 0.006, 0.25)
    for _ in range(number(HAEMORRHAGE)):
        place, flame = _place(rng, projection), rng.random() < 0.35
        if flame:  # in the nerve-fibre layer, drawn out along the fibres
            size = rng.uniform(0.12, 0.3)
            shape, angle = (size, 0.28 * size), angle_of_fibres(place)
            ragged, edge = 0.35, 0.03
        else:  # dot and blot, deeper, held together by the columns of cells around them
            size = rng.lognormal(np.log(0.09), 0.45)
            shape, angle = (size * rng.uniform(1, 1.5), size), rng.uniform(0, 6)
            ragged, edge = 0.18, 0.015
        yield HAEMORRHAGE, *_blob(rng, projection, place, shape, angle, edge, ragged)
    for _ in range(number(MICROANEURYSM)):  # round dots, 30 to 100 µm across
        place, size = _place(rng, projection), rng.uniform(0.022, 0.05)
        yield MICROANEURYSM, *_blob(rng, projection, place, (size, size), 0, 0.005, 0.05, 0.85)


def _add_lesions(image, seed, parameters, projection) -> tuple[np.ndarray, np.ndarray]:
    """Paint the lesions of the grade and return the image and their map."""
    rng = _stream(seed, "lesions")
    lesions = np.zeros(image.shape[:2], np.uint8)
    base = _fundus_colour(parameters)
    red = base * (0.72, 0.48, 0.5)
    colours = {
        MICROANEURYSM: red,
        HAEMORRHAGE: red,
        EXUDATE: base * (1.1, 1.75, 1.1) + (15, 25, 5),
        COTTON_WOOL: base * (1.1, 1.5, 1.5) + (10, 15, 15),
    }
    for kind, window, opacity in _lesion_shapes(rng, projection, parameters.grade):
        part = image[window]
        if not part.size:
            continue
        image[window] = part + opacity[..., None] * (colours[kind] - part)
        lesions[window][opacity > 0.4] = kind
    return image, lesions


# --------------------------------------------------------------------------------------------
# the camera


def _field_of_view(parameters: PhantomParameters, size: int) -> np.ndarray:
    """(size, size) signed distance to the rim of the field in radii, positive inside."""
    step = (np.arange(size, dtype=np.float32) - (size - 1) / 2) / (FIELD_FILL * size / 2)
    x, y = np.meshgrid(step, step)
    inside = 1 - np.hypot(x, y)
    if CAMERAS[parameters.camera].notch and parameters.flat_cut < 0.02:
        # at the upper right, half outside the circle
        notch = 0.045 - np.hypot(x - 0.72, y + 0.72)
        inside = np.maximum(inside, notch)
    return np.minimum(inside, 1 - 2 * parameters.flat_cut - np.abs(y))


def _illuminate(image, seed, parameters, inside) -> np.ndarray:
    """Uneven flash, vignetting, and stray light near the rim of the field."""
    rng, size = _stream(seed, "light"), image.shape[0]
    step = np.linspace(-1, 1, size, dtype=np.float32)
    x, y = np.meshgrid(step, step)
    tilt, slope = rng.uniform(0, 2 * np.pi), rng.uniform(0.2, 0.65)
    uneven = slope * (x * np.cos(tilt) + y * np.sin(tilt)) + 0.12 * _smooth_noise(rng, size, 3)
    r = np.hypot(x, y) / FIELD_FILL
    shade = parameters.illumination * uneven - parameters.vignetting * (0.5 * r**2 + 0.25 * r**6)
    # Less light is also redder: it comes from deeper.
    image = image * np.exp(shade[..., None] * np.array([0.9, 1.15, 1.15], np.float32))
    # Where the pupil cuts the beam the light is greyer, on one side.
    cast = np.clip(0.5 + x * np.cos(tilt + 1) + y * np.sin(tilt + 1), 0, None) ** 2
    cast *= parameters.illumination * rng.uniform(0, 0.22)
    image = image * (1 + cast[..., None] * np.array([-0.8, 0, 0.25], np.float32))
    # A crescent of stray light on one side, and a thin line all around.
    side = rng.uniform(0, 2 * np.pi)
    crescent = np.clip((x * np.cos(side) + y * np.sin(side)) / FIELD_FILL, 0, 1) ** 3
    glow = crescent * np.exp(-inside / rng.uniform(0.04, 0.3)) + 0.3 * np.exp(-inside / 0.012)
    tint = rng.uniform((10, 5, 0), (60, 60, 70)).astype(np.float32)
    return image + parameters.border_glow * glow[..., None] * tint


def _expose(image, seed, parameters, inside) -> np.ndarray:
    """Blur, field stop, gamma, sensor noise and JPEG: (size, size, 3) ``uint8``."""
    rng, size = _stream(seed, "sensor"), image.shape[0]
    camera = CAMERAS[parameters.camera]
    # Optics and interpolation of the colour filter blur even a sharp photograph a little.
    sigma = np.hypot(parameters.defocus, 0.4) * size / 512
    image = ndimage.gaussian_filter(image, (sigma, sigma, 0))
    image = 255 * np.clip(image / 255, 0, None) ** parameters.gamma
    image = image / (1 + np.clip(image / 255 - 0.8, 0, None))  # highlights saturate gently
    # Masks include the penumbra of the field stop, and so does ours.
    penumbra = max(rng.uniform(*camera.rim), 2.4 / size)
    edge = np.clip(inside / penumbra + 0.15, 0, 1)[..., None]
    image = np.array(camera.black) + edge * (image - np.array(camera.black))
    # Shot noise grows with the root of the light; the sensor's colours are interpolated from
    # neighbours, so the noise is correlated over about a pixel.
    grain = 0.55 * max(1, size / 600)
    white = rng.normal(size=image.shape).astype(np.float32)
    white = ndimage.gaussian_filter(white, (grain, grain, 0)) * (grain * 3.5)
    level = parameters.noise * np.sqrt(np.clip(image, 4, 255) / 110)
    image = np.clip(image + level * white, 0, 255)
    return _jpeg(np.rint(image).astype(np.uint8), parameters.jpeg_quality)


def _jpeg(image: np.ndarray, quality: int) -> np.ndarray:
    """The image after saving as JPEG and reading it back."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=int(quality))
    return np.asarray(Image.open(buffer).convert("RGB"))


# --------------------------------------------------------------------------------------------
# the whole


SMALLEST, LARGEST = 64, 4096


def _check_call(seed, size, parameters, overrides, called="seed") -> PhantomParameters:
    for name, value, low, high in ((called, seed, 0, 2**63), ("size", size, SMALLEST, LARGEST)):
        if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
            raise ValueError(f"{name} must be a whole number, not {value!r}")
        if not low <= value <= high:
            raise ValueError(f"{name} must lie between {low} and {high}, not {value}")
    if parameters is not None and not isinstance(parameters, PhantomParameters):
        raise ValueError(f"parameters must be PhantomParameters, not {type(parameters).__name__}")
    known = [item.name for item in fields(PhantomParameters)]
    for name in overrides:
        if name not in known:
            raise ValueError(f"unknown phantom parameter {name!r}; there are {', '.join(known)}")
    return replace(parameters or PhantomParameters(), **overrides)


def make_projection(parameters: PhantomParameters, size: int) -> Projection:
    """The geometry of a phantom whose parameters are all drawn."""
    centre = FOVEA * parameters.centring
    radius = parameters.field_degrees * MM_PER_DEGREE / 2
    return Projection(size, centre, radius, parameters.eye)


def make_tree(seed: int, parameters: PhantomParameters) -> list[VesselSegment]:
    """The vessel trees of a phantom whose parameters are all drawn; read-only arrays.

    See :func:`grow_vessels`.
    """
    return list(
        _grown(
            int(seed),
            centring=parameters.centring,
            field_radius=parameters.field_degrees * MM_PER_DEGREE / 2,
            disc_radius=parameters.disc_diameter / 2,
            vein_width=parameters.vein_width,
            artery_vein_ratio=parameters.artery_vein_ratio,
            tortuosity=parameters.tortuosity,
            spacing=parameters.vessel_spacing,
        )
    )


# Growing is half of the work, and most sliders of an explorer leave the tree alone.
@lru_cache(maxsize=16)
def _grown(seed: int, *, centring: float, **anatomy: float) -> tuple[VesselSegment, ...]:
    segments = grow_vessels(_stream(seed, "vessels"), centre=FOVEA * centring, **anatomy)
    for segment in segments:  # shared, so nobody may change them
        segment.points.setflags(write=False)
        segment.radii.setflags(write=False)
    return tuple(segments)


OF_THE_TREE = (
    "camera", "eye", "field_degrees", "centring", "flat_cut", "disc_diameter",
    "vein_width", "artery_vein_ratio", "tortuosity", "vessel_spacing",
)  # fmt: skip
"""Parameters that decide where vessels lie in the picture."""


def make_phantom(
    seed: int = 0,
    size: int = 512,
    *,
    parameters: PhantomParameters | None = None,
    tree_of: int | None = None,
    **overrides,
) -> FundusSample:
    """Make a procedural fundus photograph with all its labels.

    The same seed and parameters give the same bits on one machine; the same seed at another
    size shows the same eye. Parameters that are not given are drawn from the seed.

    Args:
        seed: 0 or above.
        size: side of the square image in pixels, 64 to 4096.
        parameters: what to fix, see :class:`PhantomParameters`.
        tree_of: seed of another eye whose vessels this one gets. Geometry and whatever the
            vessels depend on (:data:`OF_THE_TREE`) come from that eye too, unless they are given;
            all the rest is this eye's own.
        **overrides: single parameters, on top of ``parameters``.

    Returns:
        image, field of view, vessels of visible width, arteries and veins, a second observer,
        lesions and grade.

    Raises:
        ValueError: if the seed, the size or a parameter is unknown or out of range.
    """
    given = _check_call(seed, size, parameters, overrides)
    if tree_of is not None:
        theirs = draw_parameters(
            tree_of, _check_call(tree_of, size, parameters, overrides, called="tree_of")
        )
        given = replace(given, **{name: getattr(theirs, name) for name in OF_THE_TREE})
    parameters = draw_parameters(seed, given)
    projection = make_projection(parameters, size)
    segments = make_tree(seed if tree_of is None else tree_of, parameters)
    maps = {
        kind: draw_vessels([s for s in segments if s.kind == kind], projection)
        for kind in (ARTERY, VEIN)
    }
    inside = _field_of_view(parameters, size)
    fov = inside > 0

    image = _paint_retina(seed, parameters, projection)
    image = _add_blood(image, maps, parameters)
    image, lesions = _add_lesions(image, seed, parameters, projection)
    image = _illuminate(image, seed, parameters, np.clip(inside, 0, None))
    image = _expose(image, seed, parameters, inside)

    artery_vein = _artery_vein(maps[ARTERY].mask & fov, maps[VEIN].mask & fov)
    return FundusSample(
        name=f"phantom_{seed:03d}",
        image=image,
        fov=fov,
        vessels=artery_vein > 0,
        second_observer=observe(_stream(seed, "observer"), segments, projection) & fov,
        artery_vein=artery_vein,
        lesions=np.where(fov, lesions, 0).astype(np.uint8),
        grade=int(parameters.grade),
        dataset="phantom",
    )
