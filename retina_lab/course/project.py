"""Where the course lies, and which notebooks are meant."""

import os
import re
from pathlib import Path

PROFILES = ("smoke", "class", "full")


class CourseError(RuntimeError):
    """Something about the course is not as it must be; the message names it and the cure."""


def project_root() -> Path:
    """Return the folder that holds ``notebooks/`` and ``book/``.

    The working directory and its parents are searched first, then the checkout in which this
    library lies.

    Raises:
        CourseError: no such folder; the course's notebooks are not part of an installed wheel.
    """
    here = Path.cwd().resolve()
    for folder in (here, *here.parents, Path(__file__).resolve().parents[2]):
        if (folder / "notebooks").is_dir() and (folder / "book" / "_config.yml").is_file():
            return folder
    raise CourseError(
        "The course's notebooks were not found. Run this from a checkout of the course "
        f"(a folder with notebooks/ and book/), not from {here}."
    )


def list_notebooks(root: Path) -> list[Path]:
    """Return all notebooks of the course in order."""
    return sorted((root / "notebooks").glob("*.ipynb"))


def find_notebooks(names: list[str], root: Path | None = None) -> list[Path]:
    """Resolve names to notebooks; no names means every notebook of the course.

    A name is a path, a number (``1``, ``01``) or a stem (``04_unet_baseline``).

    Raises:
        CourseError: a name that fits no notebook, or more than one.
    """
    if not names:
        root = root or project_root()
        every = list_notebooks(root)
        if not every:
            raise CourseError(f"There are no notebooks in {root / 'notebooks'}.")
        return every
    found: list[Path] = []
    for name in names:
        path = Path(name)
        if path.suffix == ".ipynb":
            if not path.is_file():
                raise CourseError(f"There is no notebook {name}.")
            matches = [path.resolve()]
        else:
            every = list_notebooks(root or project_root())
            if name.isdigit():
                matches = [p for p in every if re.match(rf"0*{int(name)}_", p.name)]
            else:
                matches = [p for p in every if p.stem == name]
            if len(matches) != 1:
                known = ", ".join(p.stem for p in every) or "none at all"
                raise CourseError(f"{name!r} names no notebook of the course. There are: {known}.")
        found += [path for path in matches if path not in found]
    return found


def data_root() -> str | None:
    """Return ``RETINA_LAB_DATA`` with absolute paths (a kernel runs in another folder), or None."""
    folders = [part.strip() for part in os.environ.get("RETINA_LAB_DATA", "").split(os.pathsep)]
    return os.pathsep.join(str(Path(f).expanduser().resolve()) for f in folders if f) or None


def slug(text: str) -> str:
    """Return `text` as a folder name: a dataset may be given as a path to somebody's images."""
    return re.sub(r"[^A-Za-z0-9]+", "_", text).strip("_").lower() or "unnamed"
