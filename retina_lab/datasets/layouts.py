"""Where each dataset keeps its files, and how they become samples.

A layout is a function that lists what a folder holds, in the official arrangement of that
dataset, as :class:`Entry` rows. Nothing is decoded until a sample is asked for.
"""

from __future__ import annotations

import csv
import difflib
import os
import random
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from retina_lab.datasets.fov import estimate_fov
from retina_lab.datasets.io import (
    DatasetError,
    image_stem,
    is_image_file,
    read_image,
    read_mask,
)
from retina_lab.datasets.manifests import (
    Manifest,
    load_manifest,
    manifest_names,
    plain_name,
    project_root,
)
from retina_lab.datasets.sample import FundusSample

PHANTOM_TRAIN, PHANTOM_TEST, PHANTOM_SIZE = 20, 20, 512
CLUTTER = ("__MACOSX", ".DS_Store", "Thumbs.db", "desktop.ini")
"""What operating systems leave in folders and archives."""


# --------------------------------------------------------------------------------------------
# the dataset


@dataclass(frozen=True)
class Entry:
    """One sample that has not been read yet.

    Attributes:
        name: unique within its dataset.
        subject: the person; both eyes of one person share it.
        load: makes the sample.
    """

    name: str
    subject: str
    load: Callable[[], FundusSample]


class FundusDataset(Sequence[FundusSample]):
    """Samples in a fixed order, read from disk when they are asked for.

    ``ds[3]``, ``ds["01_test"]`` and iteration give samples; ``ds[2:5]`` and
    ``ds.select(names)`` give smaller datasets, without reading anything.

    Attributes:
        name: name of the dataset.
        names: names of the samples, in order.
        subjects: the person of each sample, in the same order.
    """

    def __init__(self, name: str, entries: Iterable[Entry]):
        self.name = name
        self.entries = tuple(entries)
        self.names = [entry.name for entry in self.entries]
        self.subjects = [entry.subject for entry in self.entries]
        self._index = {entry.name: entry for entry in self.entries}
        if len(self._index) != len(self.entries):
            twice = sorted({n for n in self.names if self.names.count(n) > 1})
            raise DatasetError(f"{name}: several images are called {', '.join(twice)}; rename them")

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, key):
        if isinstance(key, slice):
            return FundusDataset(self.name, self.entries[key])
        if isinstance(key, str):
            return self._entry(key).load()
        return self.entries[key].load()

    def __iter__(self) -> Iterator[FundusSample]:
        return (entry.load() for entry in self.entries)

    def __contains__(self, name: object) -> bool:
        return name in self._index

    def __repr__(self) -> str:
        return f"FundusDataset({self.name!r}, {len(self)} images)"

    def select(self, names: Iterable[str]) -> FundusDataset:
        """The samples called ``names``, in that order.

        Raises:
            DatasetError: if there is no sample of such a name.
        """
        return FundusDataset(self.name, [self._entry(name) for name in names])

    def _entry(self, name: str) -> Entry:
        if name in self._index:
            return self._index[name]
        close = difflib.get_close_matches(name, self.names, n=3)
        hint = f"did you mean {', '.join(close)}?" if close else f"it has {_some(self.names)}"
        raise DatasetError(f"{self.name} has no image called {name!r}; {hint}")


class Split(NamedTuple):
    """A dataset divided in two, so that no person is on both sides."""

    name: str
    train: FundusDataset
    test: FundusDataset


def check_split(split: Split) -> Split:
    """Return ``split`` if no person is on both sides.

    Raises:
        DatasetError: otherwise; the message names the persons.
    """
    both = sorted(set(split.train.subjects) & set(split.test.subjects))
    if both:
        raise DatasetError(
            f"{split.train.name}, split {split.name}: person {_some(both)} on both sides; images "
            "of one person must stay together, or the test measures memory"
        )
    return split


# --------------------------------------------------------------------------------------------
# files


@dataclass(frozen=True)
class Files:
    """The files of one photograph; None where the dataset has none."""

    image: Path
    vessels: Path | None = None
    second_observer: Path | None = None
    fov: Path | None = None


def _load_files(
    files: Files, name: str, dataset: str, subject: str, grade: int | str | None
) -> FundusSample:
    image = read_image(files.image)
    size, owner = image.shape[:2], files.image

    def mask(path: Path | None, kind: str) -> np.ndarray | None:
        return None if path is None else read_mask(path, kind=kind, size=size, image_path=owner)

    fov, source = mask(files.fov, "fov"), "official"
    if fov is None:
        fov = estimate_fov(image)
        source = "whole image" if fov.all() else "estimated"
    return FundusSample(
        name=name,
        image=image,
        fov=fov,
        vessels=mask(files.vessels, "vessels"),
        second_observer=mask(files.second_observer, "vessels"),
        grade=grade,
        dataset=dataset,
        subject=subject,
        fov_source=source,
    )


def _entry(
    dataset: str, files: Files, *, name: str = "", subject: str = "", grade: int | str | None = None
) -> Entry:
    name = name or image_stem(files.image)
    subject = subject or name
    return Entry(name, subject, partial(_load_files, files, name, dataset, subject, grade))


class _Finder:
    """Looks files up by folder and stem, whatever their type and case; collects what is missing."""

    def __init__(self, manifest: Manifest, root: Path):
        self.manifest, self.root = manifest, root
        self.missing: list[str] = []
        self._stems: dict[str, dict[str, Path]] = {}

    def stems(self, folder: str) -> dict[str, Path]:
        """Image files in a folder of the dataset, by their stem in lower case."""
        if folder not in self._stems:
            at = _descend(self.root, folder)
            official = {Path(file.path).name.lower() for file in self.manifest.files}
            self._stems[folder] = {} if at is None else _image_files(at, official)
        return self._stems[folder]

    def column(
        self, folder: str, stems: Sequence[str], suffix: str, *, needed: bool
    ) -> list[Path | None]:
        """One file for each stem: all of them, or none where the whole column is absent.

        Part of a column is an incomplete copy, so what is missing is noted for :meth:`finish`.
        """
        found = [self.stems(folder).get(stem.lower()) for stem in stems]
        if needed or any(found):
            for stem, path in zip(stems, found, strict=True):
                if path is None:
                    self.missing.append(self._describe(folder, stem, suffix))
        return found

    def _describe(self, folder: str, stem: str, suffix: str) -> str:
        wanted = f"{folder}/{stem}{suffix}".removeprefix("/")
        expected = {image_stem(Path(file.path)).lower() for file in self.manifest.files}
        strangers = [name for name in self.stems(folder) if name not in expected]
        close = difflib.get_close_matches(stem.lower(), strangers, n=1, cutoff=0.8)
        return f"{wanted} (is it {self.stems(folder)[close[0]].name}?)" if close else wanted

    def finish(self) -> None:
        """Raise DatasetError if anything was missing."""
        if self.missing:
            raise DatasetError(
                f"{self.manifest.folder} in {self.root} is incomplete: {len(self.missing)} "
                f"file(s) missing: {_some(self.missing, 8)}. "
                f"Compare with: retina-lab data verify {self.manifest.name}"
            )


def _some(names: Sequence[str], most: int = 6) -> str:
    shown = ", ".join(names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"


def _descend(folder: Path, path: str) -> Path | None:
    """``folder/path`` whatever the case of its parts, or None."""
    for part in filter(None, path.split("/")):
        matches = [p for p in _subfolders(folder) if plain_name(p.name) == plain_name(part)]
        if not matches:
            return None
        folder = matches[0]
    return folder


def _subfolders(folder: Path) -> list[Path]:
    try:
        return sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))
    except OSError:
        return []


def _image_files(folder: Path, official: Collection[str] | None = None) -> dict[str, Path]:
    """Image files by stem in lower case.

    Of two with one stem that with an official name is taken, or else the last. In a folder of
    somebody's own (``official`` is None) nobody knows which is meant: a DatasetError.
    """
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.is_file() and is_image_file(path):
            stem = image_stem(path).lower()
            if official is None and stem in found:
                raise DatasetError(
                    f"{found[stem]} and {path.name} have the same name; rename or remove one"
                )
            if stem not in found or found[stem].name.lower() not in official:
                found[stem] = path
    return found


# --------------------------------------------------------------------------------------------
# official layouts: folder -> entries


def _drive(manifest: Manifest, root: Path) -> list[Entry]:
    find, entries = _Finder(manifest, root), []
    for part, numbers in (("training", range(21, 41)), ("test", range(1, 21))):
        ids = [f"{number:02d}" for number in numbers]
        names = [f"{number}_{part}" for number in ids]
        images = find.column(f"{part}/images", names, ".tif", needed=True)
        masks = find.column(f"{part}/mask", [f"{n}_mask" for n in names], ".gif", needed=True)
        # The challenge hands out its test images without labels.
        first = find.column(
            f"{part}/1st_manual", [f"{i}_manual1" for i in ids], ".gif", needed=part == "training"
        )
        second = find.column(
            f"{part}/2nd_manual", [f"{i}_manual2" for i in ids], ".gif", needed=False
        )
        find.finish()
        rows = zip(names, images, first, second, masks, strict=True)
        entries += [_entry("drive", Files(*paths), name=name) for name, *paths in rows]
    return entries


def _stare(manifest: Manifest, root: Path) -> list[Entry]:
    find = _Finder(manifest, root)
    train, test = manifest.splits["10/10"].values()
    names = [*train, *test]
    images = find.column("stare-images", names, ".ppm.gz", needed=True)
    first = find.column("labels-ah", [f"{n}.ah" for n in names], ".ppm.gz", needed=False)
    second = find.column("labels-vk", [f"{n}.vk" for n in names], ".ppm.gz", needed=False)
    find.finish()
    rows = zip(names, images, first, second, strict=True)
    return [
        _entry("stare", Files(*paths), name=name, subject=manifest.subjects.get(name, name))
        for name, *paths in rows
    ]


def _chase_db1(manifest: Manifest, root: Path) -> list[Entry]:
    find = _Finder(manifest, root)
    # Some copies keep the files one folder deeper, in "Images".
    folder = "" if find.stems("") or _descend(root, "Images") is None else "Images"
    names = [f"Image_{child:02d}{eye}" for child in range(1, 15) for eye in "LR"]
    images = find.column(folder, names, ".jpg", needed=True)
    first = find.column(folder, [f"{n}_1stHO" for n in names], ".png", needed=False)
    second = find.column(folder, [f"{n}_2ndHO" for n in names], ".png", needed=False)
    find.finish()
    rows = zip(names, images, first, second, strict=True)
    return [
        # Image_07L and Image_07R are the eyes of child 07.
        _entry("chase_db1", Files(*paths), name=name, subject=name[6:8])
        for name, *paths in rows
    ]


HRF_GROUPS = {"h": "healthy", "dr": "diabetic retinopathy", "g": "glaucoma"}


def _hrf(manifest: Manifest, root: Path) -> list[Entry]:
    find = _Finder(manifest, root)
    names = [f"{number:02d}_{group}" for group in HRF_GROUPS for number in range(1, 16)]
    images = find.column("images", names, ".jpg", needed=True)
    first = find.column("manual1", names, ".tif", needed=False)
    masks = find.column("mask", [f"{n}_mask" for n in names], ".tif", needed=False)
    find.finish()
    rows = zip(names, images, first, masks, strict=True)
    return [
        _entry(
            "hrf",
            Files(image, vessels=vessels, fov=mask),
            name=name,
            grade=HRF_GROUPS[name.split("_")[1]],
        )
        for name, image, vessels, mask in rows
    ]


def _messidor(manifest: Manifest, root: Path) -> list[Entry]:
    images = {
        path.name.lower(): path
        for folder in [root, *_subfolders(root)]
        for path in _image_files(folder, ()).values()
    }
    if not images:
        raise DatasetError(
            f"Messidor in {root} holds no images; they belong in {root / 'Base11'} and so on, or "
            "directly in that folder"
        )
    grades: dict[str, int] = {}
    for folder in [root, *_subfolders(root)]:
        for path in sorted(folder.iterdir()):
            if path.suffix.lower() in (".csv", ".xls", ".xlsx"):
                grades |= read_messidor_grades(path)
    missing = sorted(name for name in grades if name not in images)
    if missing:
        raise DatasetError(
            f"Messidor in {root}: {len(missing)} image(s) that the annotation lists are not there: "
            f"{_some(missing)}. Unpack them beside their annotation file"
        )
    return [
        _entry("messidor", Files(path), grade=grades.get(name))
        for name, path in sorted(images.items())
    ]


def read_messidor_grades(path: Path) -> dict[str, int]:
    """Retinopathy grades of one Messidor annotation file.

    Args:
        path: the official ``.xls`` (needs the package ``xlrd``), the same as ``.xlsx`` (needs
            ``openpyxl``) or as ``.csv``, with columns *Image name* and *Retinopathy grade*.

    Returns:
        File name of the image in lower case → grade 0 (none) to 3.

    Raises:
        DatasetError: if the file cannot be read or lacks these columns.
    """
    if path.suffix.lower() == ".csv":
        try:
            text = path.read_text(encoding="utf-8-sig")
        except UnicodeDecodeError:
            text = path.read_text(encoding="latin-1")
        separator = max(",;\t", key=text.partition("\n")[0].count)
        rows = [row for row in csv.reader(text.splitlines(), delimiter=separator) if any(row)]
    else:
        import pandas

        package = {".xls": "xlrd", ".xlsx": "openpyxl"}[path.suffix.lower()]
        try:
            rows = pandas.read_excel(path, header=None, dtype=str).fillna("").values.tolist()
        except ImportError:
            raise DatasetError(
                f"{path}: reading it needs the package {package}: pip install {package}, or save "
                "the table as .csv beside it and move the original elsewhere"
            ) from None
        except Exception as error:  # each reader raises its own kinds on a damaged file
            raise DatasetError(f"{path}: cannot be read as a table ({error})") from error
    header = [plain_name(str(cell)) for cell in rows[0]] if rows else []
    try:
        name_at, grade_at = header.index("imagename"), header.index("retinopathygrade")
    except ValueError:
        raise DatasetError(
            f"{path}: the first row must name the columns 'Image name' and 'Retinopathy grade'"
        ) from None
    grades = {}
    for number, row in enumerate(rows[1:], start=2):
        try:
            grades[row[name_at].strip().lower()] = int(float(row[grade_at]))
        except (IndexError, ValueError):
            raise DatasetError(
                f"{path}, row {number}: no image name and whole-numbered grade"
            ) from None
    return grades


LAYOUTS: dict[str, Callable[[Manifest, Path], list[Entry]]] = {
    "drive": _drive,
    "stare": _stare,
    "chase_db1": _chase_db1,
    "hrf": _hrf,
    "messidor": _messidor,
}


# --------------------------------------------------------------------------------------------
# a user's own folder

USER_FOLDERS = {
    "fov": ("mask", "masks", "fov", "fovmask", "fovmasks"),
    "vessels": (
        "vessels",
        "vessel",
        "manual",
        "manual1",
        "1stmanual",
        "labels",
        "labelsah",
        "gt",
        "groundtruth",
        "1stho",
    ),
    "second_observer": ("manual2", "2ndmanual", "labelsvk", "2ndho"),
}
USER_SUFFIXES = {
    "fov": ("_mask", "_fov"),
    "vessels": ("_vessels", "_vessel", "_manual1", "_manual", "_gt", "_label", "_1stho", ".ah"),
    "second_observer": ("_manual2", "_2ndho", ".vk"),
}
USER_IMAGES = ("images", "image", "img", "imgs")
_EYE = re.compile(r"^(.+?)[-_ .](?:l|r|left|right|od|os)$", re.IGNORECASE)


def _user_folder(root: Path) -> list[Entry]:
    """Entries of a folder of somebody's own photographs.

    Photographs lie in the folder itself or in ``images/``. Masks, all optional, lie in folders
    beside them (``mask``, ``fov``; ``vessels``, ``manual1``, ``labels`` …; ``manual2`` …), or
    carry a suffix (``_mask``, ``_fov``; ``_vessels``, ``_manual1``, ``_gt`` …; ``_manual2`` …).
    In a folder of its own a mask is called like its photograph, with or without the suffix.
    ``eye7_L`` and ``eye7_R`` (also ``_left``, ``_right``, ``_OD``, ``_OS``) are one person.
    """
    folders = {plain_name(p.name): p for p in _subfolders(root)}
    inside = next((folders[name] for name in USER_IMAGES if name in folders), None)
    at = inside or root
    files = _image_files(at)
    roles: dict[str, dict[str, Path]] = {role: {} for role in USER_FOLDERS}
    for role, suffixes in USER_SUFFIXES.items():
        for stem in list(files):
            suffix = next((s for s in suffixes if stem.endswith(s)), None)
            # "left_mask" is a mask only where there is a "left".
            if suffix and (owner := stem.removesuffix(suffix)) in files:
                _give(roles[role], owner, files.pop(stem), files[owner], role)
    if not files:
        raise DatasetError(
            f"{root} holds no images; put photographs (TIFF, PNG, JPEG, PPM, GIF or BMP) into it "
            "or into a folder 'images' inside it"
        )
    for role, names in USER_FOLDERS.items():
        for name in names:
            if name in folders:
                for stem, path in _image_files(folders[name]).items():
                    owner = _owner(stem, files, USER_SUFFIXES[role])
                    if owner is None:
                        raise DatasetError(
                            f"{path}: no photograph in {at} belongs to it; a mask is called like "
                            f"its photograph, with or without {' or '.join(USER_SUFFIXES[role])}"
                        )
                    _give(roles[role], owner, path, files[owner], role)
    entries = []
    for stem, path in files.items():
        name = image_stem(path)
        eye = _EYE.match(name)
        paths = {role: roles[role].get(stem) for role in roles}
        entries.append(
            _entry(plain_folder_name(root), Files(path, **paths), subject=eye[1] if eye else name)
        )
    return entries


def _give(given: dict[str, Path], owner: str, path: Path, photograph: Path, role: str) -> None:
    """Note the file of one photograph for one role; two are an error."""
    if given.setdefault(owner, path) != path:
        raise DatasetError(
            f"{photograph} has two files for {role}: {given[owner]} and {path}; keep one"
        )


def plain_folder_name(root: Path) -> str:
    """Name that a user's folder goes by as a dataset: its own, if no embedded one has it."""
    name = root.resolve().name or "folder"
    return f"{name}-folder" if plain_name(name) in EMBEDDED else name


def _owner(stem: str, files: dict[str, Path], suffixes: Sequence[str]) -> str | None:
    candidates = [stem, *(stem.removesuffix(s) for s in suffixes)]
    return next((c for c in candidates if c in files), None)


# --------------------------------------------------------------------------------------------
# embedded datasets


@lru_cache(maxsize=PHANTOM_TRAIN + PHANTOM_TEST)
def _phantom_sample(seed: int) -> FundusSample:
    from retina_lab.datasets.phantom import make_phantom

    name = f"phantom_{seed:03d}"
    sample = make_phantom(seed=seed, size=PHANTOM_SIZE)
    return replace(sample, name=name, dataset="phantom", subject=name)


def _phantom() -> list[Entry]:
    return [
        Entry(f"phantom_{seed:03d}", f"phantom_{seed:03d}", partial(_phantom_sample, seed))
        for seed in range(PHANTOM_TRAIN + PHANTOM_TEST)
    ]


@lru_cache(maxsize=1)
def _retina_sample() -> FundusSample:
    from skimage import data

    image = np.ascontiguousarray(data.retina()[:, :, :3])
    fov = estimate_fov(image)
    source = "whole image" if fov.all() else "estimated"
    return FundusSample(name="retina", image=image, fov=fov, dataset="retina", fov_source=source)


EMBEDDED: dict[str, Callable[[], list[Entry]]] = {
    "phantom": _phantom,
    "retina": lambda: [Entry("retina", "retina", _retina_sample)],
}


# --------------------------------------------------------------------------------------------
# the public door


def list_datasets() -> list[str]:
    """Names that :func:`open_dataset` knows: the embedded datasets first."""
    return [*EMBEDDED, *manifest_names()]


def data_roots(root: str | Path | None = None) -> list[Path]:
    """Folders in which datasets are looked for, in order.

    ``root`` alone if it is given; otherwise the folders in the environment variable
    ``RETINA_LAB_DATA`` (separated like ``PATH``; a relative one is taken from the current folder,
    then from the project's), then ``data`` in the project or the current folder.
    """
    if root is not None:
        return [Path(root).expanduser()]
    project = project_root()
    roots = []
    for text in os.environ.get("RETINA_LAB_DATA", "").split(os.pathsep):
        if text.strip():
            path = Path(text.strip()).expanduser()
            roots.append(path)
            # A notebook runs in its own folder; the variable was set for the project's.
            if not path.is_absolute() and project is not None:
                roots.append(project / path)
    roots.append((project or Path.cwd()) / "data")
    unique = {path.resolve(): path for path in reversed(roots)}
    return list(reversed(unique.values()))


def find_folder(name: str, root: str | Path | None = None) -> Path | None:
    """The folder of a public dataset, or None if it is not there.

    Case, hyphens and underscores of the folder's name do not matter; ``root`` may also be the
    dataset's folder itself; a folder inside a folder of the same name, as some archives unpack,
    is followed.
    """
    manifest = load_manifest(name)
    known = {plain_name(n) for n in (manifest.name, manifest.folder, *manifest.aliases)}
    for base in data_roots(root):
        candidates = [p for p in _subfolders(base) if plain_name(p.name) in known]
        # The official name goes before another one that is in use.
        candidates.sort(key=lambda p: plain_name(p.name) != plain_name(manifest.folder))
        if root is not None and plain_name(base.resolve().name) in known and base.is_dir():
            candidates.append(base)
        for folder in candidates:
            deeper = [p for p in _subfolders(folder) if plain_name(p.name) in known]
            inside = [p for p in folder.iterdir() if p.name not in CLUTTER and p.name[0] != "."]
            return deeper[0] if deeper and len(inside) == 1 else folder
    return None


def how_to_get(name: str, root: str | Path | None = None) -> str:
    """What to do to have the dataset ``name``, in a few lines."""
    manifest = load_manifest(name)
    target = data_roots(root)[0] / manifest.folder
    if manifest.archives:
        lines = [f"Run: retina-lab data get {name}"]
        urls = ", ".join(archive.urls[0] for archive in manifest.archives)
        lines.append(f"or download {urls} by hand and unpack to {target}.")
    else:
        lines = [f"{number}. {step}" for number, step in enumerate(manifest.steps, start=1)]
        lines.append(f"It belongs in {target}.")
    lines.append(f"Official page: {manifest.homepage}")
    lines.append(f"Licence: {manifest.licence} ({manifest.licence_url})")
    return "\n".join(lines)


def open_dataset(name: str | Path, root: str | Path | None = None) -> FundusDataset:
    """Open a whole dataset; nothing is decoded before a sample is asked for.

    Args:
        name: one of :func:`list_datasets`, or the path of a folder with photographs: an official
            dataset under its own name, or anybody's own images (see ``data/README.md`` for the
            names that masks may have).
        root: folder that holds the dataset's folder; see :func:`data_roots` for the default.

    Returns:
        The samples, in the order of the official lists or of their names.

    Raises:
        DatasetError: if the dataset is not there (the message says how to get it), is
            incomplete (the message names the files), or has no such name.
    """
    key = plain_name(str(name))
    by_key = {plain_name(known): known for known in list_datasets()}
    looks_like_path = isinstance(name, Path) or os.sep in name or "/" in name or name in (".", "..")
    if key in by_key and not looks_like_path:
        known = by_key[key]
        if known in EMBEDDED:
            return FundusDataset(known, EMBEDDED[known]())
        folder = find_folder(known, root)
        if folder is None:
            places = ", ".join(str(path) for path in data_roots(root))
            raise DatasetError(
                f"the dataset {known} is not here (looked in {places}).\n{how_to_get(known, root)}"
            )
        return FundusDataset(known, LAYOUTS[known](load_manifest(known), folder))
    folder = Path(name).expanduser() if root is None else Path(root).expanduser() / name
    if not str(name).strip() or not folder.is_dir():
        close = difflib.get_close_matches(str(name).lower(), list_datasets(), n=1)
        hint = f" Did you mean {close[0]}?" if close else ""
        raise DatasetError(
            f"{name!s}: neither a dataset ({', '.join(list_datasets())}) nor a folder.{hint}"
        )
    official = by_key.get(plain_name(folder.resolve().name))
    if official in LAYOUTS:
        return FundusDataset(official, LAYOUTS[official](load_manifest(official), folder))
    return FundusDataset(plain_folder_name(folder), _user_folder(folder))


def list_splits(name: str) -> list[str]:
    """Named splits of a dataset, its default first; ``seeded-N`` exists for every folder."""
    by_key = {plain_name(known): known for known in manifest_names()}
    if plain_name(name) == "phantom":
        return ["official"]
    if plain_name(name) not in by_key:
        return ["seeded-0"]
    manifest = load_manifest(by_key[plain_name(name)])
    if manifest.default_split is None:
        return ["seeded-0"]
    return sorted(manifest.splits, key=lambda split: split != manifest.default_split)


def open_split(name: str | Path, split: str | None = None, root: str | Path | None = None) -> Split:
    """Open a dataset divided into training and test images.

    Args:
        name: as in :func:`open_dataset`.
        split: a named split of that dataset (:func:`list_splits`); None is its default. Without
            an official one (a user's folder, Messidor), ``"seeded-N"`` puts a third of the
            persons, drawn with seed N, into the test set; ``"seeded-0"`` is the default.
        root: as in :func:`open_dataset`.

    Returns:
        name, train and test.

    Raises:
        DatasetError: as :func:`open_dataset`, and if there is no such split or a person is on
            both sides.
    """
    dataset = open_dataset(name, root)
    if dataset.name == "phantom":
        splits = {
            "official": {
                "train": dataset.names[:PHANTOM_TRAIN],
                "test": dataset.names[-PHANTOM_TEST:],
            }
        }
    elif dataset.name in manifest_names():
        splits = load_manifest(dataset.name).splits
    else:
        splits = {}
    split = split or next(iter(list_splits(dataset.name)))
    seeded = re.fullmatch(r"seeded-(\d+)", split)
    if split in splits:
        sides = splits[split]
        chosen = Split(split, dataset.select(sides["train"]), dataset.select(sides["test"]))
    elif seeded and not splits:
        chosen = _seeded_split(dataset, int(seeded[1]))
    else:
        known = ", ".join([*splits] if splits else ["seeded-0, seeded-1, …"])
        raise DatasetError(f"{dataset.name} has no split {split!r}; there are {known}")
    return check_split(chosen)


INSTEAD = "so phantoms take its place here."
"""How the sentence ends by which a notebook says that it goes on with phantoms."""


def open_labelled_split(name: str | Path, root: str | Path | None = None, least: int = 5) -> Split:
    """Open a dataset's default split to train and test on, or the phantoms' where it cannot serve.

    It cannot if it shows too few persons, or if the photographs of one side have no vessel labels
    (such as DRIVE's test images from the challenge). Then the reason is printed.

    Args:
        name: as in :func:`open_dataset`.
        root: as in :func:`open_dataset`.
        least: persons that it must show.

    Raises:
        DatasetError: as :func:`open_split`.
    """
    dataset = open_dataset(name, root)
    persons = len(set(dataset.subjects))
    if persons < least:
        problem = f"shows too few persons ({persons}; {least} are the least)"
    else:
        split = open_split(name, root=root)
        sides = {"training": split.train, "test": split.test}
        bare = [side for side, samples in sides.items() if samples[0].vessels is None]
        if not bare:
            return split
        problem = f"has no vessel labels in its {' and '.join(bare)} photographs"
    print(f"{dataset.name} {problem}, {INSTEAD}")
    return open_split("phantom")


def _seeded_split(dataset: FundusDataset, seed: int) -> Split:
    persons = sorted(set(dataset.subjects))
    if len(persons) < 2:
        raise DatasetError(
            f"{dataset.name} shows {len(persons)} person(s); a split needs at least two"
        )
    random.Random(seed).shuffle(persons)
    test = set(persons[: max(1, round(len(persons) / 3))])
    sides = {True: [], False: []}
    for entry in dataset.entries:
        sides[entry.subject in test].append(entry)
    return Split(
        f"seeded-{seed}",
        FundusDataset(dataset.name, sides[False]),
        FundusDataset(dataset.name, sides[True]),
    )
