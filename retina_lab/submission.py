"""The file for the DRIVE Grand Challenge: twenty decisions in a ZIP.

The challenge (https://drive.grand-challenge.org) keeps the labels of its test images to itself
and scores what is uploaded. It asks for decisions, not for probabilities: ``1.png`` … ``20.png``
at the top of the archive, 0 for background and 255 for vessel, of the size of the photographs.
"""

from __future__ import annotations

import io
import os
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image


class SubmissionError(ValueError):
    """The file cannot be written or is not what the challenge expects; the message says why."""


def number_of(name: str) -> int:
    """The number of an image, which is what its picture is called: 7 for ``07_test``.

    Raises:
        SubmissionError: if the name holds no number.
    """
    found = re.search(r"\d+", name)
    if found is None:
        raise SubmissionError(f"{name} holds no number to call its picture by")
    return int(found[0])


def write_submission(
    path: str | os.PathLike, vessels: Mapping[str, np.ndarray], overwrite: bool = False
) -> Path:
    """Write decisions as a submission; the file appears whole or not at all.

    Args:
        path: the ZIP file.
        vessels: (H, W) ``bool`` by the name of the image.
        overwrite: replace a file that is there.

    Returns:
        The path.

    Raises:
        SubmissionError: if there is nothing to write, a map is no decision, two images have the
            same number, or the file exists.
    """
    path = Path(path)
    if path.exists() and not overwrite:
        raise SubmissionError(f"{path} exists; choose another name or overwrite it")
    if not vessels:
        raise SubmissionError("there is nothing to submit")
    numbers: dict[int, str] = {}
    for name, plane in vessels.items():
        if np.asarray(plane).dtype != np.bool_ or np.ndim(plane) != 2:
            raise SubmissionError(
                f"{name}: a decision is (H, W) and true or false; cut the map at its threshold"
            )
        other = numbers.setdefault(number_of(name), name)
        if other != name:
            raise SubmissionError(f"{other} and {name} have the same number")
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".part")
    with zipfile.ZipFile(partial, "w", zipfile.ZIP_DEFLATED) as archive:
        for number, name in sorted(numbers.items()):
            picture = io.BytesIO()
            Image.fromarray(vessels[name].astype(np.uint8) * 255).save(picture, format="PNG")
            archive.writestr(f"{number}.png", picture.getvalue())
    os.replace(partial, path)
    return path


def read_submission(path: str | os.PathLike) -> dict[int, np.ndarray]:
    """The decisions in a submission by the number of the image.

    Returns:
        number → (H, W) ``bool``.

    Raises:
        SubmissionError: naming the entry that is not a 0-and-255 picture at the top of the
            archive called by a number.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            found = {}
            for entry in archive.namelist():
                if not re.fullmatch(r"[1-9]\d*\.png", entry):
                    raise SubmissionError(f"{path} holds {entry!r}; names are 1.png, 2.png, …")
                with Image.open(io.BytesIO(archive.read(entry))) as picture:
                    plane = np.asarray(picture)
                if plane.ndim != 2 or plane.dtype != np.uint8 or not np.isin(plane, (0, 255)).all():
                    raise SubmissionError(f"{entry} in {path} is not grey with 0 and 255 only")
                found[int(entry[:-4])] = plane == 255
    except (OSError, zipfile.BadZipFile) as error:
        raise SubmissionError(f"{path} cannot be read as a ZIP of pictures: {error}") from error
    return found
