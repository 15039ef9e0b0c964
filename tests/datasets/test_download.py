import argparse
import errno
import hashlib
import io
import json
import stat
import tarfile
import zipfile
from collections import namedtuple

import numpy as np
import pytest
from dataset_files import bars, eye, save

from retina_lab.datasets import DatasetError, download, open_dataset
from retina_lab.datasets.download import get, list_rows, unpack, verify
from retina_lab.datasets.manifests import Archive, Manifest, ManifestFile, load_manifest

IMAGE, MASK = eye(), bars()


@pytest.fixture(scope="module")
def chase_files(tmp_path_factory):
    """Path → bytes of a small CHASE_DB1."""
    tmp_path = tmp_path_factory.mktemp("chase")
    files = {}
    for file in load_manifest("chase_db1").files:
        child = int(file.path[6:8])
        image = eye(seed=child) if file.path.endswith("jpg") else MASK
        files[file.path] = save(tmp_path / "made" / file.path, image).read_bytes()
    return files


def zipped(files, extra=()):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as bundle:
        for name, content in (*files.items(), *extra):
            bundle.writestr(name, content)
    return stream.getvalue()


def tarred(files, mode="w"):
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode=mode) as bundle:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            bundle.addfile(info, io.BytesIO(content))
    return stream.getvalue()


def sha256(content):
    return hashlib.sha256(content).hexdigest()


@pytest.fixture
def publish(server, monkeypatch):
    """Put archives on the server, and a manifest of the same name in the library.

    Of the official manifest everything is kept but the files, the archives and their addresses.
    """

    def publish(name, files, archives, with_digests=True, archive_digests=True, elsewhere=()):
        official = load_manifest(name)
        for path, (content, _) in archives.items():
            server.files[path] = content
        facts = {
            path: {"bytes": len(content), "sha256": sha256(content)} if with_digests else {}
            for path, content in files.items()
        }
        manifest = Manifest(
            **{
                **vars(official),
                "files": tuple(ManifestFile(path, **fact) for path, fact in facts.items()),
                "archives": tuple(
                    Archive(
                        path,
                        (server.url(path),),
                        len(content) if archive_digests else None,
                        sha256(content) if archive_digests else None,
                        into,
                    )
                    for path, (content, into) in archives.items()
                )
                + tuple(elsewhere),
            }
        )
        for module in (download, download.find_folder.__globals__):
            where = module if isinstance(module, dict) else vars(module)
            monkeypatch.setitem(
                where, "load_manifest", lambda n: manifest if n == name else load_manifest(n)
            )
        return manifest

    monkeypatch.setattr(download, "_pause", lambda attempt: 0)
    return publish


def left_behind(root):
    """Everything in ``root``, hidden or not, as relative paths of files."""
    return sorted(path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file())


# ------------------------------------------------------------------ it works


def test_get_downloads_checks_and_unpacks(tmp_path, publish, server, chase_files):
    publish("chase_db1", chase_files, {"CHASEDB1.zip": (zipped(chase_files), "")})
    lines = []
    root = tmp_path / "data"
    folder = get("chase_db1", root, echo=lines.append)
    assert folder == root / "CHASEDB1"
    dataset = open_dataset("chase_db1", root)
    assert len(dataset) == 28
    np.testing.assert_array_equal(dataset[0].vessels, MASK > 0)
    assert sorted(left_behind(root)) == sorted(
        [f"CHASEDB1/{path}" for path in chase_files] + ["CHASEDB1/.retina-lab.json"]
    )
    said = "\n".join(lines)
    assert "CC BY 4.0" in said
    assert "@article{fraz2012ensemble" in said
    report = verify("chase_db1", root)
    assert len(report.ok) == 84
    assert not report.faults
    assert not report.extra


def test_a_second_get_says_it_is_already_there(tmp_path, publish, server, chase_files):
    publish("chase_db1", chase_files, {"CHASEDB1.zip": (zipped(chase_files), "")})
    get("chase_db1", tmp_path / "data", echo=lambda line: None)
    asked = len(server.requests)
    lines = []
    get("chase_db1", tmp_path / "data", echo=lines.append)
    assert "already" in lines[0]
    assert len(server.requests) == asked


def test_an_existing_dataset_is_never_touched(tmp_path, publish, server, chase_files):
    publish("chase_db1", chase_files, {"CHASEDB1.zip": (zipped(chase_files), "")})
    mine = tmp_path / "data" / "CHASEDB1" / "Image_01L.jpg"
    mine.parent.mkdir(parents=True)
    mine.write_bytes(b"my own work")
    with pytest.raises(DatasetError, match=r"there already, but.*missing.*Nothing was changed"):
        get("chase_db1", tmp_path / "data")
    assert mine.read_bytes() == b"my own work"
    assert left_behind(tmp_path / "data") == ["CHASEDB1/Image_01L.jpg"]
    assert not server.requests


@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_several_tar_archives_each_in_its_folder(tmp_path, publish, mode):
    files, archives = {}, {}
    for file in load_manifest("stare").files:
        image = IMAGE if file.path.startswith("stare-images") else MASK
        files[file.path] = save(tmp_path / "made" / file.path, image).read_bytes()
    for folder in ("stare-images", "labels-ah", "labels-vk"):
        inside = {p.split("/")[1]: c for p, c in files.items() if p.startswith(folder)}
        archives[f"{folder}.tar"] = (tarred(inside, mode), folder)
    publish("stare", files, archives)
    get("stare", tmp_path / "data", echo=lambda line: None)
    assert len(open_dataset("stare", tmp_path / "data")) == 20
    assert len(verify("stare", tmp_path / "data").ok) == 60


def test_a_folder_around_the_files_and_clutter_are_taken_off(tmp_path, publish, chase_files):
    wrapped = {f"CHASEDB1/{path}": content for path, content in chase_files.items()}
    clutter = [("__MACOSX/CHASEDB1/._Image_01L.jpg", b"x"), ("CHASEDB1/.DS_Store", b"x")]
    publish("chase_db1", chase_files, {"CHASEDB1.zip": (zipped(wrapped, clutter), "")})
    get("chase_db1", tmp_path / "data", echo=lambda line: None)
    report = verify("chase_db1", tmp_path / "data")
    assert len(report.ok) == 84
    assert not report.extra


# ------------------------------------------------------------------ bad connections


def test_a_cut_connection_is_continued(tmp_path, publish, server, chase_files):
    content = zipped(chase_files)
    publish("chase_db1", chase_files, {"CHASEDB1.zip": (content, "")})
    server.cuts["CHASEDB1.zip"] = [1000, 2000]
    get("chase_db1", tmp_path / "data", echo=lambda line: None)
    assert [wanted for _, wanted in server.requests] == [None, "bytes=1000-", "bytes=3000-"]


def test_a_later_get_continues_what_an_earlier_one_left(tmp_path, publish, server, chase_files):
    content = zipped(chase_files)
    publish("chase_db1", chase_files, {"CHASEDB1.zip": (content, "")})
    root = tmp_path / "data"
    server.cuts["CHASEDB1.zip"] = [100] * download.ATTEMPTS
    with pytest.raises(DatasetError, match="connection"):
        get("chase_db1", root, echo=lambda line: None)
    part = root / ".downloads" / "chase_db1" / "CHASEDB1.zip.part"
    assert part.read_bytes() == content[: 100 * download.ATTEMPTS]
    assert not (root / "CHASEDB1").exists()
    server.requests.clear()
    get("chase_db1", root, echo=lambda line: None)
    assert server.requests == [("CHASEDB1.zip", f"bytes={100 * download.ATTEMPTS}-")]
    assert not (root / ".downloads").exists()


def test_a_server_that_ignores_range(tmp_path, publish, server, chase_files):
    publish("chase_db1", chase_files, {"CHASEDB1.zip": (zipped(chase_files), "")})
    server.ignore_range = True
    server.cuts["CHASEDB1.zip"] = [1000]
    get("chase_db1", tmp_path / "data", echo=lambda line: None)
    assert len(verify("chase_db1", tmp_path / "data").ok) == 84


def test_halves_of_two_versions_are_not_joined(tmp_path, publish, server, chase_files):
    # No digest of the archive: only the version tag can tell.
    content = zipped(chase_files)
    publish("chase_db1", chase_files, {"CHASEDB1.zip": (content, "")}, archive_digests=False)
    part = tmp_path / "data" / ".downloads" / "chase_db1" / "CHASEDB1.zip.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(b"z" * 1000)
    part.with_name("CHASEDB1.zip.part.tag").write_text('"v0"')
    get("chase_db1", tmp_path / "data", echo=lambda line: None)
    assert len(verify("chase_db1", tmp_path / "data").ok) == 84


@pytest.mark.parametrize("surplus", [0, 5])
def test_a_part_that_is_too_long_is_discarded(tmp_path, publish, server, chase_files, surplus):
    content = zipped(chase_files)
    publish("chase_db1", chase_files, {"CHASEDB1.zip": (content, "")})
    part = tmp_path / "data" / ".downloads" / "chase_db1" / "CHASEDB1.zip.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(content + b"x" * surplus)
    get("chase_db1", tmp_path / "data", echo=lambda line: None)
    assert len(verify("chase_db1", tmp_path / "data").ok) == 84


def test_an_overloaded_server_is_asked_again(tmp_path, publish, server, chase_files):
    publish("chase_db1", chase_files, {"CHASEDB1.zip": (zipped(chase_files), "")})
    server.statuses["CHASEDB1.zip"] = [503, 429, 500]
    get("chase_db1", tmp_path / "data", echo=lambda line: None)
    assert len(server.requests) == 4


def test_not_found_is_reported_at_once_with_the_page(tmp_path, publish, server, chase_files):
    publish("chase_db1", chase_files, {"CHASEDB1.zip": (zipped(chase_files), "")})
    server.files.clear()
    with pytest.raises(DatasetError, match=r"answers 404(.|\n)*blogs\.kingston\.ac\.uk"):
        get("chase_db1", tmp_path / "data", echo=lambda line: None)
    assert len(server.requests) == 1
    assert not (tmp_path / "data" / "CHASEDB1").exists()


def test_the_next_address_is_tried(tmp_path, publish, server, chase_files):
    content = zipped(chase_files)
    server.files["second.zip"] = content
    archive = Archive(
        "CHASEDB1.zip", (server.url("gone.zip"), server.url("second.zip")), None, sha256(content)
    )
    publish("chase_db1", chase_files, {}, elsewhere=(archive,))
    get("chase_db1", tmp_path / "data", echo=lambda line: None)
    assert [path for path, _ in server.requests] == ["gone.zip", "second.zip"]


def test_nobody_listens(tmp_path, publish, server, chase_files):
    archive = Archive("CHASEDB1.zip", ("http://127.0.0.1:9/CHASEDB1.zip",))
    publish("chase_db1", chase_files, {}, elsewhere=(archive,))
    with pytest.raises(DatasetError, match="could not be downloaded"):
        get("chase_db1", tmp_path / "data", echo=lambda line: None)


def test_without_encryption_there_must_be_a_digest(tmp_path, publish, server, chase_files):
    publish(
        "chase_db1",
        chase_files,
        {"CHASEDB1.zip": (zipped(chase_files), "")},
        with_digests=False,
        archive_digests=False,
    )
    with pytest.raises(DatasetError, match="not encrypted, and there is no digest"):
        get("chase_db1", tmp_path / "data", echo=lambda line: None)
    assert not server.requests


# ------------------------------------------------------------------ bad content


def test_corrupted_bytes_are_refused(tmp_path, publish, server, chase_files):
    content = bytearray(zipped(chase_files))
    publish("chase_db1", chase_files, {"CHASEDB1.zip": (bytes(content), "")})
    content[500] ^= 1
    server.files["CHASEDB1.zip"] = bytes(content)
    with pytest.raises(DatasetError, match="its sha256 differs"):
        get("chase_db1", tmp_path / "data", echo=lambda line: None)
    assert left_behind(tmp_path / "data") == []
    assert len(server.requests) == 2  # once may be the line, twice is the file


def test_a_file_of_another_size_is_refused(tmp_path, publish, server, chase_files):
    content = zipped(chase_files)
    publish("chase_db1", chase_files, {"CHASEDB1.zip": (content, "")})
    server.files["CHASEDB1.zip"] = content[:-10]
    with pytest.raises(DatasetError, match="the manifest says"):
        get("chase_db1", tmp_path / "data", echo=lambda line: None)


def test_a_web_page_instead_of_an_archive(tmp_path, publish, server, chase_files):
    publish("chase_db1", chase_files, {"CHASEDB1.zip": (b"<html>", "")}, archive_digests=False)
    with pytest.raises(DatasetError, match="neither a zip nor a tar"):
        get("chase_db1", tmp_path / "data", echo=lambda line: None)
    assert left_behind(tmp_path / "data") == []


@pytest.mark.parametrize("change", ["altered", "missing"])
def test_other_files_than_published_are_refused(tmp_path, publish, chase_files, change):
    inside = dict(chase_files)
    if change == "altered":
        inside["Image_05R.jpg"] += b"!"
    else:
        del inside["Image_05R.jpg"]
    publish("chase_db1", chase_files, {"CHASEDB1.zip": (zipped(inside), "")}, archive_digests=False)
    with pytest.raises(DatasetError, match=rf"not the dataset.*1 {change} \(Image_05R\.jpg\)"):
        get("chase_db1", tmp_path / "data", echo=lambda line: None)
    assert left_behind(tmp_path / "data") == []


def test_a_hostile_path_in_a_real_get_leaves_nothing(tmp_path, publish, chase_files):
    inside = zipped(chase_files, [("../../evil.txt", b"x")])
    publish("chase_db1", chase_files, {"CHASEDB1.zip": (inside, "")})
    with pytest.raises(DatasetError, match=r"'\.\./\.\./evil\.txt' leads out"):
        get("chase_db1", tmp_path / "data", echo=lambda line: None)
    assert left_behind(tmp_path / "data") == []
    assert not list(tmp_path.rglob("evil.txt"))


# ------------------------------------------------------------------ disks and interruptions

Usage = namedtuple("Usage", "total used free")


def test_too_little_room_is_said_before_anything_is_asked(
    tmp_path, publish, server, chase_files, monkeypatch
):
    publish("chase_db1", chase_files, {"CHASEDB1.zip": (zipped(chase_files), "")})
    monkeypatch.setattr(download.shutil, "disk_usage", lambda path: Usage(10, 10, 0))
    with pytest.raises(DatasetError, match=r"MiB free but .* MiB are needed"):
        get("chase_db1", tmp_path / "data", echo=lambda line: None)
    assert not server.requests


@pytest.mark.parametrize("stage", ["download", "unpacking"])
def test_a_full_disk(tmp_path, publish, chase_files, monkeypatch, stage):
    publish("chase_db1", chase_files, {"CHASEDB1.zip": (zipped(chase_files), "")})

    class Full(io.BytesIO):
        def write(self, data):
            raise OSError(errno.ENOSPC, "No space left on device")

    def full_open(path, mode="r", *arguments, **options):
        wanted = {"download": "wb", "unpacking": "xb"}[stage]
        return Full() if mode == wanted else open(path, mode, *arguments, **options)

    monkeypatch.setattr(download, "open", full_open, raising=False)
    root = tmp_path / "data"
    with pytest.raises(DatasetError, match=r"the disk of .* is full; make room"):
        get("chase_db1", root, echo=lambda line: None)
    assert not (root / "CHASEDB1").exists()
    monkeypatch.undo()
    # What was downloaded is kept for the next attempt, nothing else.
    kept = [".downloads/chase_db1/CHASEDB1.zip"] if stage == "unpacking" else []
    assert [path for path in left_behind(root) if not path.endswith(".tag")] == kept


def test_interrupted_unpacking_leaves_nothing_half_done(
    tmp_path, publish, server, chase_files, monkeypatch
):
    publish("chase_db1", chase_files, {"CHASEDB1.zip": (zipped(chase_files), "")})
    root = tmp_path / "data"
    calls = []

    def interrupt(name, archive):
        calls.append(name)
        if len(calls) > 40:
            raise KeyboardInterrupt
        return original(name, archive)

    original = download._safe_path
    with monkeypatch.context() as patch:
        patch.setattr(download, "_safe_path", interrupt)
        with pytest.raises(KeyboardInterrupt):
            get("chase_db1", root, echo=lambda line: None)
    assert left_behind(root) == [".downloads/chase_db1/CHASEDB1.zip"]
    with pytest.raises(DatasetError, match="is not here"):
        open_dataset("chase_db1", root)
    # The next call unpacks what is there without asking the server again.
    asked = len(server.requests)
    get("chase_db1", root, echo=lambda line: None)
    assert len(server.requests) == asked
    assert len(open_dataset("chase_db1", root)) == 28


def test_a_folder_that_cannot_be_written(tmp_path, publish, chase_files, monkeypatch):
    publish("chase_db1", chase_files, {"CHASEDB1.zip": (zipped(chase_files), "")})

    def refuse(*arguments, **options):
        raise PermissionError(errno.EACCES, "Permission denied", str(tmp_path))

    monkeypatch.setattr(download.tempfile, "mkdtemp", refuse)
    with pytest.raises(DatasetError, match="cannot be written; choose another folder"):
        get("chase_db1", tmp_path / "data", echo=lambda line: None)


# ------------------------------------------------------------------ archives


def zip_with(name, content=b"x", mode=stat.S_IFREG | 0o644):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as bundle:
        info = zipfile.ZipInfo("placeholder")
        info.filename = name
        info.external_attr = mode << 16
        bundle.writestr(info, content)
    return stream.getvalue()


def tar_with(name, kind=tarfile.REGTYPE, link=""):
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as bundle:
        info = tarfile.TarInfo(name)
        info.type, info.linkname = kind, link
        bundle.addfile(info)
    return stream.getvalue()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (zip_with("../evil"), "leads out"),
        (zip_with("a/../../evil"), "leads out"),
        (zip_with("/evil"), "leads out"),
        (zip_with("..\\evil"), "leads out"),
        (zip_with("C:/evil"), "leads out"),
        (zip_with("link", b"/etc/passwd", stat.S_IFLNK | 0o777), "link or a device"),
        (tar_with("../evil"), "leads out"),
        (tar_with("/evil"), "leads out"),
        (tar_with("link", tarfile.SYMTYPE, "/etc"), "link or a device"),
        (tar_with("link", tarfile.LNKTYPE, "other"), "link or a device"),
        (tar_with("pipe", tarfile.FIFOTYPE), "link or a device"),
        (tar_with("disk", tarfile.BLKTYPE), "link or a device"),
        (zipped({"a.txt": b"1", "A.TXT": b"2"}), "twice"),
        (zipped({"a": b"1", "a/b": b"2"}), "same name"),
        (zipped({"bomb": b"\0" * 200_000}), "more than 100,000 bytes"),
        (tarred({"bomb": b"\0" * 200_000}, "w:gz"), "more than 100,000 bytes"),
        (zipped({str(n): b"" for n in range(11)}), "more than 10 files"),
        (tarred({"a": bytes(range(256)) * 50}, "w:gz")[:200], "damaged|neither"),
        (b"", "neither a zip nor a tar"),
        (b"hello", "neither a zip nor a tar"),
    ],
)
def test_hostile_archives_are_refused(tmp_path, content, message):
    archive = tmp_path / "archive"
    archive.write_bytes(content)
    target = tmp_path / "deep" / "target"
    with pytest.raises(DatasetError, match=message):
        unpack(archive, target, most_bytes=100_000, most_files=10)
    assert not list(tmp_path.rglob("*evil*"))


def test_a_zip_that_lies_about_its_size(tmp_path):
    honest = zipped({"bomb": b"\0" * 200_000})
    size = (200_000).to_bytes(4, "little")
    assert honest.count(size) == 2
    archive = tmp_path / "a.zip"
    archive.write_bytes(honest.replace(size, (10).to_bytes(4, "little")))
    with pytest.raises(DatasetError, match=r"more than|damaged"):
        unpack(archive, tmp_path / "out", most_bytes=100_000, most_files=10)


def test_a_damaged_member_is_noticed(tmp_path):
    content = bytearray(zipped({"a.bin": np.random.default_rng(0).bytes(5000)}))
    content[2000] ^= 255
    archive = tmp_path / "a.zip"
    archive.write_bytes(bytes(content))
    with pytest.raises(DatasetError, match="is damaged"):
        unpack(archive, tmp_path / "out", most_bytes=100_000, most_files=10)


def test_unpack_writes_what_is_inside(tmp_path):
    files = {"a.txt": b"1", "b/c.txt": b"22", "b/d/e.txt": b""}
    for number, content in enumerate((zipped(files), tarred(files), tarred(files, "w:gz"))):
        archive = tmp_path / f"archive{number}"
        archive.write_bytes(content)
        target = tmp_path / f"out{number}"
        unpack(archive, target, most_bytes=100, most_files=3)
        assert {path: (target / path).read_bytes() for path in left_behind(target)} == files


# ------------------------------------------------------------------ verify, list, command line


def make_hrf(root):
    for file in load_manifest("hrf").files:
        save(root / "HRF" / file.path, IMAGE if file.path.startswith("images") else MASK)
    return root / "HRF"


def test_verify_names_what_is_missing_altered_and_extra(tmp_path, publish, chase_files):
    publish("chase_db1", chase_files, {})
    folder = tmp_path / "CHASEDB1"
    for path, content in chase_files.items():
        (folder / path).parent.mkdir(exist_ok=True)
        (folder / path).write_bytes(content)
    (folder / "Image_01L.jpg").unlink()
    changed = bytearray(chase_files["Image_02L.jpg"])
    changed[-1] ^= 1
    (folder / "Image_02L.jpg").write_bytes(bytes(changed))
    (folder / "Image_03L.jpg").write_bytes(b"short")
    (folder / "notes.txt").write_text("mine")
    report = verify("chase_db1", tmp_path)
    assert report.missing == ["Image_01L.jpg"]
    assert report.altered == ["Image_02L.jpg", "Image_03L.jpg"]
    assert report.extra == ["notes.txt"]
    assert len(report.ok) == 81
    assert report.faults
    assert left_behind(folder) == sorted({*chase_files, "notes.txt"} - {"Image_01L.jpg"})


def test_the_labels_that_drive_keeps_back_are_optional(tmp_path):
    report = verify("drive", make_partial_drive(tmp_path))
    assert len(report.absent_optional) == 40
    assert len(report.missing) == 99
    assert report.altered == ["training/images/21_training.tif"]


def make_partial_drive(root):
    save(root / "DRIVE" / "training" / "images" / "21_training.tif", IMAGE)
    return root


def test_first_download_records_what_is_not_published(tmp_path, publish):
    folder = make_hrf(tmp_path / "made")
    files = {path: (folder / path).read_bytes() for path in left_behind(folder)}
    content = zipped(files)
    publish("hrf", files, {"all.zip": (content, "")}, with_digests=False)
    root = tmp_path / "data"
    get("hrf", root, echo=lambda line: None)
    record = json.loads((root / "HRF" / ".retina-lab.json").read_text())
    assert record["archives"][0]["sha256"] == sha256(content)
    assert len(record["files"]) == 135
    assert len(verify("hrf", root).ok) == 135
    (root / "HRF" / "manual1" / "01_h.tif").write_bytes(b"changed since")
    assert verify("hrf", root).altered == ["manual1/01_h.tif"]


def test_verify_can_record_what_was_fetched_by_hand(tmp_path):
    folder = make_hrf(tmp_path)
    (folder / "images" / "01_dr.jpg").rename(folder / "images" / "01_dr.JPG")
    report = verify("hrf", tmp_path)
    assert len(report.unchecked) == 135
    assert not report.ok
    assert not report.faults
    assert len(verify("hrf", tmp_path, record=True).ok) == 135
    assert len(verify("hrf", tmp_path).ok) == 135
    save(folder / "images" / "02_h.jpg", eye(seed=9))
    # Recording again does not hide a change.
    assert verify("hrf", tmp_path, record=True).altered == ["images/02_h.jpg"]
    (folder / "images" / "03_h.jpg").write_bytes(b"")
    (folder / ".retina-lab.json").unlink()
    assert verify("hrf", tmp_path).altered == ["images/03_h.jpg"]


def test_messidor_is_recorded_without_a_list_of_files(tmp_path):
    for number in range(3):
        save(tmp_path / "Messidor" / "Base11" / f"{number}.tif", IMAGE)
    assert len(verify("messidor", tmp_path).unchecked) == 3
    assert len(verify("messidor", tmp_path, record=True).ok) == 3
    (tmp_path / "Messidor" / "Base11" / "1.tif").unlink()
    assert verify("messidor", tmp_path).missing == ["Base11/1.tif"]


def test_a_damaged_record_is_named(tmp_path):
    make_hrf(tmp_path)
    (tmp_path / "HRF" / ".retina-lab.json").write_text("{")
    with pytest.raises(DatasetError, match=r"\.retina-lab\.json: is damaged"):
        verify("hrf", tmp_path)


@pytest.mark.parametrize("name", ["drive", "messidor"])
def test_get_says_what_to_do_by_hand(tmp_path, name):
    manifest = load_manifest(name)
    with pytest.raises(DatasetError) as caught:
        get(name, tmp_path)
    message = str(caught.value)
    for step in manifest.steps:
        assert step in message
    assert manifest.citation in message
    assert str(tmp_path / manifest.folder) in message
    assert left_behind(tmp_path) == []


def test_embedded_datasets_need_no_download(tmp_path):
    with pytest.raises(DatasetError, match="comes with the library"):
        get("phantom", tmp_path)


def test_list_rows(tmp_path):
    make_hrf(tmp_path)
    rows = {row["name"]: row for row in list_rows(tmp_path)}
    assert set(rows) == {"phantom", "retina", "drive", "stare", "chase_db1", "hrf", "messidor"}
    assert rows["phantom"]["images"] == 40
    assert rows["hrf"]["where"] == str(tmp_path / "HRF")
    assert rows["stare"]["where"] == "retina-lab data get stare"
    assert rows["drive"]["where"] == "retina-lab data get drive (by hand)"
    assert all(row.keys() == rows["drive"].keys() for row in rows.values())


def run(*arguments):
    parser = argparse.ArgumentParser()
    download.add_cli(parser.add_subparsers())
    args = parser.parse_args(["data", *map(str, arguments)])
    return args.run_command(args)


def test_command_line(tmp_path, capsys, publish, chase_files):
    publish("chase_db1", chase_files, {"CHASEDB1.zip": (zipped(chase_files), "")})
    assert run("list", "--root", tmp_path) == 0
    assert "retina-lab data get chase_db1" in capsys.readouterr().out
    assert run("get", "CHASEDB1", "--root", tmp_path) == 0
    assert "@article" in capsys.readouterr().out
    assert run("verify", "chase-db1", "--root", tmp_path) == 0
    assert "84 ok" in capsys.readouterr().out
    (tmp_path / "CHASEDB1" / "Image_01L.jpg").unlink()
    assert run("verify", "chase_db1", "--root", tmp_path) == 1
    told = capsys.readouterr()
    assert "1 missing" in told.out
    assert "Image_01L.jpg" in told.out
    assert run("list", "--json", "--root", tmp_path) == 0
    assert json.loads(capsys.readouterr().out)[0]["name"] == "phantom"
    assert run("verify", "phantom") == 0
    with pytest.raises(SystemExit) as caught:
        run("get", "kaggle")
    assert caught.value.code == 2
    assert "there are phantom" in capsys.readouterr().err
