"""Fetch, check and list the public datasets.

``get`` downloads what the licence lets everybody download, and otherwise says what to do by hand.
An interrupted download continues where it stopped; what arrives is checked before it is used; a
dataset appears in its place complete or not at all, and one that is there is never touched.
"""

from __future__ import annotations

import argparse
import errno
import json
import os
import shutil
import stat
import sys
import tarfile
import tempfile
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import BinaryIO, NamedTuple

from retina_lab import __version__
from retina_lab.datasets.io import DatasetError, is_image_file
from retina_lab.datasets.layouts import (
    CLUTTER,
    EMBEDDED,
    PHANTOM_TEST,
    PHANTOM_TRAIN,
    data_roots,
    find_folder,
    how_to_get,
    list_datasets,
)
from retina_lab.datasets.manifests import (
    Archive,
    Manifest,
    ManifestFile,
    load_manifest,
    plain_name,
    sha256_of,
)

RECORD = ".retina-lab.json"
ATTEMPTS = 5
CHUNK = 1 << 16
TIMEOUT = (20, 60)  # seconds to connect, and between two pieces
MEBIBYTE = 1 << 20


# --------------------------------------------------------------------------------------------
# get


def get(name: str, root: str | Path | None = None, *, echo: Callable[[str], None] = print) -> Path:
    """Download a dataset, check it and put it where :func:`open_dataset` finds it.

    Args:
        name: a dataset with a manifest, such as ``"stare"``.
        root: folder to put it in; the first of :func:`data_roots` by default.
        echo: takes the lines that tell what happens.

    Returns:
        The dataset's folder.

    Raises:
        DatasetError: if it has to be fetched by hand (the message says how), cannot be
            downloaded, does not match its manifest, does not fit on the disk, or is there
            already in another state. Nothing is left half done; a download that was cut off is
            kept in ``.downloads`` and continued by the next call.
    """
    if name in EMBEDDED:
        raise DatasetError(f"{name} comes with the library; there is nothing to download")
    manifest = load_manifest(name)
    present = find_folder(name, root)
    if present is not None:
        report = verify(name, root)
        if report.faults:
            raise DatasetError(
                f"{present} is there already, but {report.summary()}. Nothing was changed; move "
                f"that folder away and run: retina-lab data get {name}"
            )
        echo(f"{manifest.folder} is there already: {present}")
        return present
    if not manifest.archives:
        raise DatasetError(
            f"{manifest.title} cannot be downloaded without registration.\n"
            f"{how_to_get(name, root)}\n\nPlease cite:\n{manifest.citation}"
        )
    base = data_roots(root)[0]
    target = base / manifest.folder
    if target.exists():
        raise DatasetError(f"{target} is in the way; move it away first")
    cache = base / ".downloads" / manifest.name
    with _friendly_disk_errors(base):
        cache.mkdir(parents=True, exist_ok=True)
        # Archives of unknown size are checked again when the server has told it.
        known = [*manifest.archives, *manifest.files]
        _check_space(base, sum(item.bytes or 0 for item in known))
        archives = [_download(archive, manifest, cache, echo) for archive in manifest.archives]
        # Beside the target, so that the last step is a rename within one file system.
        work = Path(tempfile.mkdtemp(prefix=f".{manifest.folder}-", dir=base))
        try:
            fresh = work / manifest.folder
            for archive, path in zip(manifest.archives, archives, strict=True):
                echo(f"unpacking {archive.file}")
                _unpack_archive(archive, manifest, path, work / "unpacked", fresh)
            _check_unpacked(manifest, fresh, archives)
            _write_record(manifest, fresh, archives)
            if target.exists():
                raise DatasetError(f"{target} has appeared meanwhile; it was left as it is")
            fresh.rename(target)
        finally:
            shutil.rmtree(work, ignore_errors=True)
    shutil.rmtree(cache, ignore_errors=True)
    if not any(cache.parent.iterdir()):
        cache.parent.rmdir()
    echo(f"{manifest.title}: {manifest.images} images in {target}")
    echo(f"Licence: {manifest.licence} ({manifest.licence_url}). {manifest.redistribution}")
    echo(f"Please cite:\n{manifest.citation}")
    return target


class _friendly_disk_errors:
    """Turn the errors of a full or unwritable disk into DatasetError."""

    def __init__(self, base: Path):
        self.base = base

    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace):
        if not isinstance(error, OSError) or isinstance(error, DatasetError):
            return
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DatasetError(
                f"the disk of {self.base} is full; make room, or choose another folder with "
                "--root or RETINA_LAB_DATA, and run the command again"
            ) from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise DatasetError(
                f"{error.filename or self.base} cannot be written; choose another folder with "
                "--root or RETINA_LAB_DATA"
            ) from error


def _most_bytes(manifest: Manifest) -> int:
    """Most that a dataset may unpack to.

    A readme or a preview may come along, but not ten times the dataset.
    """
    known = sum(file.bytes or 0 for file in manifest.files)
    bound = sum(archive.unpacked_bytes or 0 for archive in manifest.archives)
    return 2 * known + bound + 16 * MEBIBYTE


def _check_space(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < needed + 16 * MEBIBYTE:
        raise DatasetError(
            f"{folder} has {free // MEBIBYTE:,} MiB free but {needed // MEBIBYTE + 16:,} MiB are "
            "needed; make room, or choose another folder with --root or RETINA_LAB_DATA"
        )


# --------------------------------------------------------------------------------------------
# one download


def _download(
    archive: Archive, manifest: Manifest, cache: Path, echo: Callable[[str], None]
) -> Path:
    """Bring one archive into ``cache``; its sha256 is right, or not known."""
    import logging

    import pooch
    import requests

    pooch.get_logger().setLevel(logging.WARNING)
    # Without a digest of its own an archive can only be trusted through its files.
    checkable = bool(archive.sha256) or all(file.sha256 for file in manifest.files)
    failures = []
    for url in archive.urls:
        if url.startswith("http:") and not checkable:
            failures.append(f"{url}: not encrypted, and there is no digest to check it by")
            continue
        mismatches = 0
        for attempt in range(ATTEMPTS):
            echo(f"downloading {url}" if attempt == 0 else f"trying again ({attempt + 1})")
            try:
                path = pooch.retrieve(
                    url,
                    known_hash=archive.sha256 and f"sha256:{archive.sha256}",
                    fname=archive.file,
                    path=cache,
                    downloader=_Resume(cache / f"{archive.file}.part", archive.bytes),
                )
                return Path(path)
            except _WillNotWork as error:
                failures.append(f"{url}: {error}")
                break
            except requests.exceptions.SSLError as error:
                failures.append(f"{url}: its certificate is not accepted ({error})")
                break
            except (requests.exceptions.RequestException, _CutShort) as error:
                failure = f"{url}: {error}"
            except ValueError:  # from pooch: the digest is wrong
                failure = (
                    f"{url}: what arrived is not the file in the manifest (its sha256 differs)"
                )
                mismatches += 1  # once may be the line; twice is the file
            if attempt == ATTEMPTS - 1 or mismatches == 2:
                failures.append(failure)
                break
            time.sleep(_pause(attempt))
    raise DatasetError(
        f"{archive.file} could not be downloaded:\n  "
        + "\n  ".join(failures)
        + f"\nTry again later (what has arrived is kept), or by hand: {manifest.homepage}"
    )


def _pause(attempt: int) -> float:
    """Seconds to wait before the next attempt: 1, 2, 4, 8."""
    return float(2**attempt)


class _WillNotWork(Exception):
    """The server's answer will be the same next time."""


class _CutShort(Exception):
    """The connection ended before the file did."""


class _Resume:
    """A downloader for pooch that continues a ``.part`` file by HTTP Range.

    Beside it, ``.part.tag`` holds the server's name for that version of the file, so that the
    halves of two different files are never joined.
    """

    def __init__(self, part: Path, size: int | None):
        self.part, self.size = part, size
        self.tag = part.with_name(f"{part.name}.tag")

    def __call__(self, url: str, output_file: str, pooch=None) -> None:
        import requests

        have = self.part.stat().st_size if self.part.exists() else 0
        # Compression on the way would make byte positions meaningless.
        headers = {"Accept-Encoding": "identity", "User-Agent": f"retina-lab/{__version__}"}
        if have:
            headers["Range"] = f"bytes={have}-"
            if self.tag.exists():
                headers["If-Range"] = self.tag.read_text(encoding="ascii")
        with closing(requests.get(url, headers=headers, stream=True, timeout=TIMEOUT)) as answer:
            if answer.status_code == 416:
                self._forget()  # what is here is not a beginning of that file
                raise _CutShort("the partial download did not fit and was discarded")
            if 400 <= answer.status_code < 500 and answer.status_code not in (408, 429):
                raise _WillNotWork(f"the server answers {answer.status_code} {answer.reason}")
            answer.raise_for_status()
            start = have if answer.status_code == 206 else 0
            if answer.status_code == 206:
                sent_from = answer.headers.get("Content-Range", "").partition("-")[0]
                if sent_from != f"bytes {have}":
                    self._forget()
                    raise _CutShort("the server continued at another place")
            total = start + int(answer.headers.get("Content-Length", -1 - start))
            total = total if total >= 0 else None
            if self.size is not None and total not in (None, self.size):
                self._forget()
                raise _WillNotWork(
                    f"the file there has {total:,} bytes, the manifest says {self.size:,}"
                )
            _check_space(self.part.parent, (total or 0) - start)
            self._remember(answer.headers)
            # Keep the bytes before a break; the length is checked below.
            answer.raw.enforce_content_length = False
            self._receive(answer, start, total)
        got = self.part.stat().st_size
        if got != (total or self.size or got):
            raise _CutShort(f"the connection ended after {got:,} of {total or self.size:,} bytes")
        os.replace(self.part, output_file)
        self.tag.unlink(missing_ok=True)

    def _receive(self, answer, start: int, total: int | None) -> None:
        from tqdm.auto import tqdm

        with (
            open(self.part, "ab" if start else "wb") as stream,
            tqdm(
                total=total,
                initial=start,
                unit="B",
                unit_scale=True,
                desc=self.part.stem,
                disable=None,  # shown in a terminal or a notebook only
            ) as bar,
        ):
            for piece in answer.iter_content(CHUNK):
                stream.write(piece)
                bar.update(len(piece))

    def _remember(self, headers) -> None:
        # A weak ETag (W/…) does not promise equal bytes, so it cannot be resumed by.
        tag = headers.get("ETag", "")
        tag = tag if tag and not tag.startswith("W/") else headers.get("Last-Modified", "")
        if tag.isascii() and tag:
            self.tag.write_text(tag, encoding="ascii")
        else:
            self.tag.unlink(missing_ok=True)

    def _forget(self) -> None:
        self.part.unlink(missing_ok=True)
        self.tag.unlink(missing_ok=True)


# --------------------------------------------------------------------------------------------
# unpacking


class _Member(NamedTuple):
    """A regular file in an archive."""

    name: str
    open: Callable[[], BinaryIO]


def unpack(archive: str | Path, target: str | Path, *, most_bytes: int, most_files: int) -> None:
    """Unpack a zip, tar or tar.gz so that nothing can be written outside ``target``.

    Args:
        archive: the file.
        target: a folder, made if needed.
        most_bytes: limit on what is written, whatever the archive says about itself.
        most_files: limit on the number of files.

    Raises:
        DatasetError: if a member has an absolute path, climbs out with ``..``, is a link or a
            device, would overwrite another, or if a limit is passed, or the archive is damaged.
    """
    archive, target = Path(archive), Path(target)
    written, names = 0, set()
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _check_space(target.parent, min(_declared_bytes(archive), most_bytes))
        for member in _members(archive):
            path = _safe_path(member.name, archive)
            if any(part in CLUTTER for part in path.parts):
                continue
            # Names that differ in case only are one file on some systems.
            if str(path).lower() in names:
                raise DatasetError(f"{archive}: holds {member.name!r} twice")
            names.add(str(path).lower())
            if len(names) > most_files:
                raise DatasetError(f"{archive}: holds more than {most_files:,} files")
            destination = target / path
            destination.parent.mkdir(parents=True, exist_ok=True)
            with closing(member.open()) as source, open(destination, "xb") as sink:
                while piece := source.read(CHUNK):
                    written += len(piece)
                    if written > most_bytes:
                        raise DatasetError(
                            f"{archive}: unpacks to more than {most_bytes:,} bytes; it is damaged "
                            "or hostile"
                        )
                    sink.write(piece)
    except (zipfile.BadZipFile, tarfile.TarError, EOFError, zlib.error, NotImplementedError) as why:
        raise DatasetError(f"{archive}: is damaged ({why}); download it again") from why
    except (FileExistsError, NotADirectoryError) as why:
        raise DatasetError(f"{archive}: a file and a folder have the same name") from why


def _members(archive: Path) -> Iterator[_Member]:
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as bundle:
            for info in bundle.infolist():
                mode = info.external_attr >> 16
                if mode and stat.S_IFMT(mode) not in (0, stat.S_IFREG, stat.S_IFDIR):
                    raise DatasetError(f"{archive}: {info.filename!r} is a link or a device")
                if info.flag_bits & 1:
                    raise DatasetError(f"{archive}: {info.filename!r} is encrypted")
                _safe_path(info.orig_filename, archive)
                if not info.is_dir():
                    yield _Member(info.orig_filename, lambda info=info: bundle.open(info))
    elif tarfile.is_tarfile(archive):
        with tarfile.open(archive) as bundle:
            for info in bundle:
                _safe_path(info.name, archive)
                if not (info.isreg() or info.isdir()):
                    raise DatasetError(f"{archive}: {info.name!r} is a link or a device")
                if info.isreg():
                    yield _Member(info.name, lambda info=info: bundle.extractfile(info))
    else:
        raise DatasetError(f"{archive}: neither a zip nor a tar archive; download it again")


def _declared_bytes(archive: Path) -> int:
    """What an archive says that it unpacks to."""
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as bundle:
            return sum(info.file_size for info in bundle.infolist())
    if tarfile.is_tarfile(archive):
        with tarfile.open(archive) as bundle:
            return sum(info.size for info in bundle)
    return 0


def _safe_path(name: str, archive: Path) -> PurePosixPath:
    path = PurePosixPath(name)
    # A backslash or a drive letter means something on Windows only; no dataset needs them.
    if path.is_absolute() or ".." in path.parts or any(c in name for c in "\\:\0"):
        raise DatasetError(f"{archive}: the path {name!r} leads out of the archive; refused")
    return path


def _unpack_archive(
    archive: Archive, manifest: Manifest, path: Path, scratch: Path, dataset: Path
) -> None:
    """Unpack one archive and move what it holds to its place in ``dataset``."""
    shutil.rmtree(scratch, ignore_errors=True)
    most_files = 4 * len(manifest.files) + 100
    try:
        unpack(path, scratch, most_bytes=_most_bytes(manifest), most_files=most_files)
    except DatasetError:
        path.unlink(missing_ok=True)  # the next attempt must not find it again
        raise
    place = dataset / archive.into
    place.mkdir(parents=True, exist_ok=True)
    for entry in sorted(_without_wrapping(scratch, archive, manifest).iterdir()):
        if (place / entry.name).exists():
            raise DatasetError(f"{archive.file}: holds {entry.name}, which another archive holds")
        entry.rename(place / entry.name)


def _without_wrapping(folder: Path, archive: Archive, manifest: Manifest) -> Path:
    """``folder``, or the only folder inside it if the dataset's files begin there."""
    prefix = f"{archive.into}/" if archive.into else ""
    first = {
        file.path.removeprefix(prefix).split("/")[0].lower()
        for file in manifest.files
        if file.path.startswith(prefix)
    }
    if not folder.is_dir():
        raise DatasetError(f"{archive.file}: is empty; download it again")
    here = list(folder.iterdir())
    if len(here) == 1 and here[0].is_dir() and here[0].name.lower() not in first:
        return here[0]
    return folder


def _check_unpacked(manifest: Manifest, folder: Path, archives: list[Path]) -> None:
    report = _compare(manifest, folder)
    if report.missing or report.altered:
        for path in archives:
            path.unlink(missing_ok=True)
        raise DatasetError(
            f"what was downloaded is not the dataset in the manifest: {report.summary()}. "
            f"It was discarded; try again later, or by hand: {manifest.homepage}"
        )


# --------------------------------------------------------------------------------------------
# verify


@dataclass
class Verification:
    """How a dataset's folder compares with its manifest; the lists hold paths inside it.

    Attributes:
        folder: where the dataset is.
        ok: sha256 as published or as recorded on the first download.
        unchecked: there, but no sha256 is known.
        missing: not there (optional files aside).
        altered: other bytes than expected.
        extra: not in the manifest.
        absent_optional: optional files that are not there.
    """

    folder: Path
    ok: list[str] = field(default_factory=list)
    unchecked: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    altered: list[str] = field(default_factory=list)
    extra: list[str] = field(default_factory=list)
    absent_optional: list[str] = field(default_factory=list)

    @property
    def faults(self) -> bool:
        """Whether a file is missing or altered."""
        return bool(self.missing or self.altered)

    def summary(self) -> str:
        """One line: the counts, and the first names of what is missing or altered."""
        parts = [f"{len(self.ok)} files are right"]
        for label, names in (("missing", self.missing), ("altered", self.altered)):
            if names:
                more = f" and {len(names) - 5} more" if len(names) > 5 else ""
                parts.append(f"{len(names)} {label} ({', '.join(names[:5])}{more})")
        return ", ".join(parts)


def verify(name: str, root: str | Path | None = None, *, record: bool = False) -> Verification:
    """Compare a dataset's files with its manifest.

    Args:
        name: a dataset with a manifest.
        root: as in :func:`open_dataset`.
        record: write down the sha256 of files for which none is known, in a small file
            ``.retina-lab.json`` in the dataset's folder, so that later changes are noticed.

    Returns:
        The lists of files.

    Raises:
        DatasetError: if the dataset is not there; the message says how to get it.
    """
    manifest = load_manifest(name)
    folder = find_folder(name, root)
    if folder is None:
        places = ", ".join(str(path) for path in data_roots(root))
        raise DatasetError(
            f"the dataset {name} is not here (looked in {places}).\n{how_to_get(name, root)}"
        )
    report = _compare(manifest, folder)
    if record and report.unchecked:
        _write_record(manifest, folder, [])
        report = _compare(manifest, folder)
    return report


def _compare(manifest: Manifest, folder: Path) -> Verification:
    report = Verification(folder)
    recorded = {file.path.lower(): file for file in _read_record(folder)}
    here = {
        path.relative_to(folder).as_posix(): path
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != RECORD and path.name not in CLUTTER
    }
    # Copies differ in the case of names (01_dr.JPG), and so do file systems.
    by_lower = {name.lower(): name for name in here}
    expected = manifest.files or [
        ManifestFile(name) for name, path in here.items() if is_image_file(path)
    ]
    for file in expected:
        name = by_lower.pop(file.path.lower(), None)
        if name is None:
            (report.absent_optional if file.optional else report.missing).append(file.path)
            continue
        known = file if file.sha256 else recorded.get(file.path.lower(), file)
        if known.bytes is not None and here[name].stat().st_size != known.bytes:
            report.altered.append(name)
        elif known.sha256 is None:
            empty = here[name].stat().st_size == 0
            (report.altered if empty else report.unchecked).append(name)
        else:
            same = sha256_of(here[name]) == known.sha256
            (report.ok if same else report.altered).append(name)
    if not manifest.files:
        report.missing += [
            file.path for key, file in recorded.items() if key not in {n.lower() for n in here}
        ]
    report.extra = sorted(by_lower.values())
    return report


def _read_record(folder: Path) -> list[ManifestFile]:
    try:
        content = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        return [ManifestFile(**entry) for entry in content["files"]]
    except FileNotFoundError:
        return []
    except (ValueError, TypeError, KeyError) as error:
        raise DatasetError(
            f"{folder / RECORD}: is damaged ({error}); delete it to start a new record"
        ) from error


def _write_record(manifest: Manifest, folder: Path, archives: list[Path]) -> None:
    """Note the sha256 of the archives, and of the files for which the manifest has none."""
    recorded = {file.path.lower(): file for file in _read_record(folder)}
    published = {file.path.lower() for file in manifest.files if file.sha256}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and is_image_file(path) and name.lower() not in published:
            recorded.setdefault(
                name.lower(), ManifestFile(name, path.stat().st_size, sha256_of(path))
            )
    content = {
        "dataset": manifest.name,
        "recorded": datetime.now(UTC).isoformat(timespec="seconds"),
        "archives": [
            {"file": path.name, "bytes": path.stat().st_size, "sha256": sha256_of(path)}
            for path in archives
        ],
        "files": [
            {"path": file.path, "bytes": file.bytes, "sha256": file.sha256}
            for file in recorded.values()
        ],
    }
    text = json.dumps(content, indent=1, ensure_ascii=False)
    partial = folder / f"{RECORD}.new"
    partial.write_text(text + "\n", encoding="utf-8")
    os.replace(partial, folder / RECORD)


# --------------------------------------------------------------------------------------------
# list


def list_rows(root: str | Path | None = None) -> list[dict[str, str | int]]:
    """One row for each dataset: name, images, labels, where it is or how to get it, licence."""
    embedded = {
        "phantom": {
            "images": PHANTOM_TRAIN + PHANTOM_TEST,
            "labels": "vessels, arteries and veins, lesions, field of view",
            "where": "drawn by the library",
            "licence": "Apache-2.0",
        },
        "retina": {
            "images": 1,
            "labels": "none",
            "where": "comes with scikit-image",
            "licence": "public domain",
        },
    }
    rows = []
    for name in list_datasets():
        if name in embedded:
            rows.append({"name": name, **embedded[name]})
            continue
        manifest = load_manifest(name)
        folder = find_folder(name, root)
        missing = f"retina-lab data get {name}" + ("" if manifest.archives else " (by hand)")
        rows.append(
            {
                "name": name,
                "images": manifest.images,
                "labels": manifest.labels,
                "where": str(folder) if folder else missing,
                "licence": manifest.licence,
            }
        )
    return rows


# --------------------------------------------------------------------------------------------
# command line


def add_cli(subparsers) -> None:
    """Register ``data list``, ``data get`` and ``data verify`` with an argparse sub-command set.

    The chosen command is in ``args.run_command``, a function of the arguments that returns the
    exit status.
    """
    data = subparsers.add_parser("data", help="list, download and check datasets")
    commands = data.add_subparsers(dest="data_command", required=True, metavar="COMMAND")
    listing = commands.add_parser("list", help="what there is, where it is, how to get it")
    listing.add_argument("--json", action="store_true", help="for other programs")
    listing.set_defaults(run_command=_cli_list)
    getting = commands.add_parser("get", help="download, check and unpack a dataset")
    getting.set_defaults(run_command=_cli_get)
    checking = commands.add_parser("verify", help="compare a dataset with its manifest")
    checking.add_argument(
        "--record", action="store_true", help="note the sha256 of files that have none"
    )
    checking.set_defaults(run_command=_cli_verify)
    for command in (listing, getting, checking):
        command.add_argument(
            "--root", help="folder that holds the datasets (default: RETINA_LAB_DATA, then data)"
        )
    for command in (getting, checking):
        command.add_argument("name", type=_dataset_name, help="such as stare or chase_db1")


def _dataset_name(text: str) -> str:
    names = list_datasets()
    found = next((name for name in names if plain_name(name) == plain_name(text)), None)
    if found is None:
        raise argparse.ArgumentTypeError(f"no dataset {text!r}; there are {', '.join(names)}")
    return found


def _cli_list(args: argparse.Namespace) -> int:
    rows = list_rows(args.root)
    if args.json:
        print(json.dumps(rows, indent=1, ensure_ascii=False))
        return 0
    columns = list(rows[0])
    table = [columns, *([str(row[column]) for column in columns] for row in rows)]
    widths = [max(len(row[k]) for row in table) for k in range(len(columns))]
    for row in table:
        print(
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        )
    return 0


def _cli_get(args: argparse.Namespace) -> int:
    get(args.name, args.root)
    return 0


def _cli_verify(args: argparse.Namespace) -> int:
    if args.name in EMBEDDED:
        print(f"{args.name} comes with the library; there is nothing to verify")
        return 0
    report = verify(args.name, args.root, record=args.record)
    print(f"{args.name} in {report.folder}")
    rows = (
        ("ok", report.ok, False),
        ("not there, optional", report.absent_optional, True),
        ("extra", report.extra, True),
        ("there, no sha256 known", report.unchecked, False),
        ("altered", report.altered, True),
        ("missing", report.missing, True),
    )
    for label, names, shown in rows:
        if names:
            print(f"{len(names):5} {label}")
            for name in names if shown else ():
                print(f"        {name}")
    if report.unchecked and not args.record:
        print(f"To notice later changes: retina-lab data verify {args.name} --record")
    if report.faults:
        print(
            f"{args.name} is not complete as published. Official page: "
            f"{load_manifest(args.name).homepage}",
            file=sys.stderr,
        )
    return 1 if report.faults else 0
