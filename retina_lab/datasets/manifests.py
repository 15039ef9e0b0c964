"""The manifests: one JSON file per public dataset, the only place where its facts are written.

A manifest holds the licence, the citation, where the files come from, their sizes and sha256,
and the named splits as literal lists of image names. Everything else reads them from here.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from retina_lab.datasets.io import DatasetError


@dataclass(frozen=True)
class ManifestFile:
    """One file of a dataset.

    Attributes:
        path: relative to the dataset's folder, with forward slashes.
        bytes: size, or None where it is not known.
        sha256: hexadecimal digest, or None where it is not known.
        optional: true where some official copies leave the file out (the DRIVE challenge
            keeps its test labels back).
    """

    path: str
    bytes: int | None = None
    sha256: str | None = None
    optional: bool = False


@dataclass(frozen=True)
class Archive:
    """One archive to download.

    Attributes:
        file: name to store it under.
        urls: addresses to try in order, all of them official.
        bytes: size, or None where it is not known.
        sha256: hexadecimal digest, or None where only the files inside can be checked.
        into: folder, relative to the dataset's, that it unpacks to.
        unpacked_bytes: most that it may unpack to; None where the sizes of all files are known.
    """

    file: str
    urls: tuple[str, ...]
    bytes: int | None = None
    sha256: str | None = None
    into: str = ""
    unpacked_bytes: int | None = None


@dataclass(frozen=True)
class Manifest:
    """What is known about one public dataset.

    Attributes:
        name: as in ``open_dataset(name)``.
        title: full name.
        folder: official name of its folder; case, hyphens and underscores do not matter.
        aliases: other names of that folder that are in use.
        homepage: the official page.
        licence: short name or the terms in a sentence.
        licence_url: where the terms are written.
        redistribution: what may be passed on, in a sentence.
        citation: BibTeX of the paper to cite.
        images: number of photographs.
        labels: what is annotated, in a phrase.
        notes: what a user should know before trusting a figure.
        steps: what to do by hand, one sentence each; empty where ``archives`` suffice.
        archives: what to download; empty where registration is needed.
        files: every file; empty where the names are not published.
        splits: name → {"train": names, "test": names}.
        default_split: the split that ``open_split(name)`` takes, or None.
        subjects: image → person, where several images show the same person.
    """

    name: str
    title: str
    folder: str
    homepage: str
    licence: str
    licence_url: str
    redistribution: str
    citation: str
    images: int
    labels: str
    aliases: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    steps: tuple[str, ...] = ()
    archives: tuple[Archive, ...] = ()
    files: tuple[ManifestFile, ...] = ()
    splits: dict[str, dict[str, list[str]]] = field(default_factory=dict)
    default_split: str | None = None
    subjects: dict[str, str] = field(default_factory=dict)


def project_root() -> Path | None:
    """The checkout that this library runs from, or None when it is installed as a wheel."""
    root = Path(__file__).resolve().parents[2]
    return root if (root / "pyproject.toml").is_file() else None


def manifests_folder() -> Path:
    """``data/manifests`` of the checkout, or the copy inside an installed wheel."""
    root = project_root()
    inside = Path(__file__).resolve().parents[1] / "_data" / "manifests"
    return inside if root is None else root / "data" / "manifests"


def manifest_names() -> list[str]:
    """Names of the public datasets that have a manifest, sorted."""
    return sorted(path.stem for path in manifests_folder().glob("*.json"))


@cache
def load_manifest(name: str) -> Manifest:
    """Read the manifest of the dataset ``name``.

    Raises:
        DatasetError: if there is none, or if it is not a manifest.
    """
    path = manifests_folder() / f"{name}.json"
    if not path.is_file():
        known = ", ".join(manifest_names()) or "none at all: is the installation complete?"
        raise DatasetError(f"no manifest for the dataset {name!r}; there are {known}")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return Manifest(
            **content
            | {
                "aliases": tuple(content.get("aliases", ())),
                "notes": tuple(content.get("notes", ())),
                "steps": tuple(content.get("steps", ())),
                "files": tuple(ManifestFile(**entry) for entry in content.get("files", ())),
                "archives": tuple(
                    Archive(**entry | {"urls": tuple(entry["urls"])})
                    for entry in content.get("archives", ())
                ),
            }
        )
    except (AttributeError, TypeError, KeyError, ValueError) as error:
        raise DatasetError(f"{path}: not a manifest ({error})") from error


def sha256_of(path: str | Path) -> str:
    """Hexadecimal sha256 of a file."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def plain_name(name: str) -> str:
    """Letters and digits in lower case: ``CHASE_DB1``, ``chase-db1``, ``CHASEDB1`` are one."""
    return "".join(letter for letter in name.lower() if letter.isalnum())
