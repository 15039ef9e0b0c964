"""One fundus photograph with everything that is known about it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

FOV_SOURCES = ("official", "estimated", "whole image")


@dataclass(frozen=True, eq=False)
class FundusSample:
    """A fundus photograph, its field of view and its labels.

    Attributes:
        name: unique within its dataset, the stem of the image file (``"01_test"``).
        image: (H, W, 3) ``uint8``, RGB.
        fov: (H, W) ``bool``, true inside the circular field of view of the camera.
        vessels: (H, W) ``bool``, the first observer's vessels, or None if unlabelled.
        second_observer: (H, W) ``bool``, the second observer's vessels, or None.
        artery_vein: (H, W) ``uint8``: 0 neither, 1 artery, 2 vein, 3 crossing; or None.
        lesions: (H, W) ``uint8``: 0 none, 1 microaneurysm, 2 haemorrhage, 3 exudate,
            4 cotton-wool spot; or None.
        grade: disease grade or group as the dataset gives it, or None.
        dataset: name of the dataset.
        subject: the person. Both eyes of one person share it, so that a split can keep
            them on one side. Defaults to ``name``.
        fov_source: where ``fov`` comes from: ``"official"``, ``"estimated"`` or
            ``"whole image"``.

    Raises:
        ValueError: if a shape or a type is not as stated; the message names the sample.
    """

    name: str
    image: np.ndarray
    fov: np.ndarray
    vessels: np.ndarray | None = None
    second_observer: np.ndarray | None = None
    artery_vein: np.ndarray | None = None
    lesions: np.ndarray | None = None
    grade: int | str | None = None
    dataset: str = ""
    subject: str = ""
    fov_source: str = "official"

    def __post_init__(self):
        if self.image.ndim != 3 or self.image.shape[2] != 3 or self.image.dtype != np.uint8:
            raise ValueError(
                f"{self.name}: the image must be H×W×3 uint8, "
                f"not {self.image.shape} {self.image.dtype}"
            )
        for field in ("fov", "vessels", "second_observer", "artery_vein", "lesions"):
            plane = getattr(self, field)
            if plane is None:
                continue
            wanted = np.uint8 if field in ("artery_vein", "lesions") else np.bool_
            if plane.shape != self.image.shape[:2]:
                height, width = self.image.shape[:2]
                raise ValueError(
                    f"{self.name}: {field} is {plane.shape[1]}×{plane.shape[0]} pixels "
                    f"but the image is {width}×{height}; they must match"
                )
            if plane.dtype != wanted:
                raise ValueError(
                    f"{self.name}: {field} must be {np.dtype(wanted)}, not {plane.dtype}"
                )
        if self.fov is None:
            raise ValueError(f"{self.name}: a sample needs a field of view (fov)")
        if self.fov_source not in FOV_SOURCES:
            raise ValueError(f"{self.name}: fov_source must be one of {FOV_SOURCES}")
        if not self.subject:
            object.__setattr__(self, "subject", self.name)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self.image.shape[:2]
