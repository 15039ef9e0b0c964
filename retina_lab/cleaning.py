"""Connected vessels from probabilities: hysteresis and the sweeping of crumbs.

A threshold decides pixel by pixel, and leaves gaps where a vessel is faint and crumbs where the
background is loud. Two old tools look at neighbours: hysteresis (Canny 1986) keeps a faint pixel
if a chain of faint pixels ties it to a sure one, and pieces that are too small to be vessels are
swept away. How faint, and how small, is chosen on training images; otherwise the choice would be
fitted to the test.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from retina_lab import metrics
from retina_lab.datasets.sample import FundusSample

EIGHT = np.ones((3, 3))
STEP = 1 / metrics.TOP_LEVEL
"""One level of a 16-bit map: the least that lies below a threshold."""


@dataclass(frozen=True)
class Cleaning:
    """What is done to a probability map before it is cut at its threshold.

    Attributes:
        threshold: of the sure pixels, in (0, 1].
        faint: a pixel from here on is vessel if a chain of such pixels joins it to a sure one;
            in (0, ``threshold``], equal for no hysteresis.
        smallest: pieces of fewer pixels are swept away; 0 for none.

    Raises:
        ValueError: if a number is out of range.
    """

    threshold: float
    faint: float
    smallest: int = 0

    def __post_init__(self):
        if not 0 < self.faint <= self.threshold <= 1:
            raise ValueError(
                f"0 < faint ≤ threshold ≤ 1 is wanted, not {self.faint} and {self.threshold}"
            )
        if self.smallest < 0:
            raise ValueError(f"smallest must not be negative, not {self.smallest}")

    def vessels(self, probability: np.ndarray) -> np.ndarray:
        """The vessels of a map: (H, W) in [0, 1] → (H, W) ``bool``."""
        sure = metrics.binarise(probability, self.threshold)
        pieces, count = ndimage.label(metrics.binarise(probability, self.faint), structure=EIGHT)
        has_sure = np.zeros(count + 1, bool)
        has_sure[pieces[sure]] = True
        has_sure[0] = False  # what is not even faint
        found = has_sure[pieces]
        if self.smallest:
            pieces, count = ndimage.label(found, structure=EIGHT)
            size = np.bincount(pieces.ravel(), minlength=count + 1)
            found &= size[pieces] >= self.smallest
        return found

    def map(self, probability: np.ndarray) -> np.ndarray:
        """The map itself, changed as little as needed for the threshold to give these vessels.

        What was swept away comes to lie just below the threshold, what hysteresis has added just
        at it, so that ROC, calibration and every other figure is of the cleaned method too.

        Returns:
            (H, W) ``float32`` in [0, 1].
        """
        found = self.vessels(probability)
        probability = np.asarray(probability, np.float64)
        below = np.minimum(probability, max(0.0, self.threshold - STEP))
        return np.where(found, np.maximum(probability, self.threshold), below).astype(np.float32)


SHARES = (1.0, 0.8, 0.6, 0.4, 0.25)
SIZES = (0, 10, 20, 40, 80, 160)


def choose_cleaning(
    samples: Iterable[FundusSample],
    maps: Mapping[str, np.ndarray],
    threshold: float,
    allowed: float = 0.002,
) -> Cleaning:
    """The cleaning with the least Betti-0 error that costs hardly any Dice.

    Args:
        samples: training images with vessels, never test images.
        maps: (H, W) probabilities by name.
        threshold: of the method.
        allowed: by how much the pooled Dice may fall below that of the plain threshold.

    Returns:
        The best of all pairs of ``SHARES`` of the threshold and ``SIZES``; of equal ones the one
        with the higher Dice.
    """
    samples = list(samples)
    tried = []
    for share in SHARES:
        for smallest in SIZES:
            cleaning = Cleaning(threshold, share * threshold, smallest)
            errors, counts = [], []
            for sample in samples:
                found = cleaning.vessels(maps[sample.name])
                counts.append(metrics.count(found, sample.vessels, sample.fov))
                errors.append(metrics.betti_errors(found, sample.vessels, sample.fov)[0])
            pooled = sum(c.tp for c in counts), sum(c.fp + c.fn for c in counts)
            dice = 2 * pooled[0] / max(1, 2 * pooled[0] + pooled[1])
            tried.append((float(np.mean(errors)), -dice, cleaning))
    plain = -tried[0][1]
    affordable = [entry for entry in tried if -entry[1] >= plain - allowed]
    return min(affordable, key=lambda entry: entry[:2])[2]
