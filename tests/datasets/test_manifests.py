import json
import re
import shutil
import subprocess
import sys

import pytest

from retina_lab.datasets import DatasetError, manifests
from retina_lab.datasets.manifests import load_manifest, manifest_names, plain_name, sha256_of

NAMES = ["chase_db1", "drive", "hrf", "messidor", "stare"]


def test_there_is_a_manifest_for_each_public_dataset():
    assert manifest_names() == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_every_manifest_is_complete(name):
    manifest = load_manifest(name)
    assert manifest.name == name
    for text in (manifest.title, manifest.licence, manifest.redistribution, manifest.labels):
        assert text.strip()
    assert manifest.homepage.startswith("https://")
    assert manifest.licence_url.startswith("https://")
    assert re.match(r"@\w+\{\w+,", manifest.citation)
    assert manifest.citation.count("{") == manifest.citation.count("}")
    assert bool(manifest.archives) != bool(manifest.steps), "by itself, or by hand"
    assert manifest.default_split is None or manifest.default_split in manifest.splits
    for archive in manifest.archives:
        # Without any digest nothing could be checked after the download.
        assert archive.sha256 or all(file.sha256 for file in manifest.files)


@pytest.mark.parametrize("name", NAMES)
def test_digests_sizes_and_paths_are_well_formed(name):
    manifest = load_manifest(name)
    paths = [file.path for file in manifest.files]
    assert len({path.lower() for path in paths}) == len(paths)
    for item in (*manifest.files, *manifest.archives):
        assert item.sha256 is None or re.fullmatch("[0-9a-f]{64}", item.sha256)
        assert item.bytes is None or item.bytes > 0
    for path in paths:
        assert not path.startswith("/")
        assert ".." not in path.split("/")


@pytest.mark.parametrize(
    ("name", "files", "with_digest", "optional"),
    [
        ("drive", 140, 140, 40),
        ("stare", 60, 60, 0),
        ("chase_db1", 84, 84, 0),
        ("hrf", 135, 0, 0),
        ("messidor", 0, 0, 0),
    ],
)
def test_counts_of_files(name, files, with_digest, optional):
    manifest = load_manifest(name)
    assert len(manifest.files) == files
    assert sum(file.sha256 is not None for file in manifest.files) == with_digest
    assert sum(file.optional for file in manifest.files) == optional


def test_what_must_not_be_passed_on_is_not_downloaded():
    for name in NAMES:
        manifest = load_manifest(name)
        if "no redistribution" in manifest.licence:
            assert not manifest.archives


def test_unknown_and_broken_manifests_are_named(tmp_path, monkeypatch):
    with pytest.raises(DatasetError, match="no manifest for the dataset 'eyes'; there are chase"):
        load_manifest("eyes")
    monkeypatch.setattr(manifests, "manifests_folder", lambda: tmp_path)
    for content in ("{", "[]", '{"name": "bad1"}', '{"nonsense": 1}'):
        (tmp_path / "bad.json").write_text(content)
        with pytest.raises(DatasetError, match=r"bad\.json: not a manifest"):
            load_manifest.__wrapped__("bad")


def test_a_wheel_finds_its_manifests(tmp_path):
    # As installed: no project around the library, the manifests in retina_lab/_data.
    source = manifests.manifests_folder()
    library = tmp_path / "retina_lab"
    shutil.copytree(
        manifests.project_root() / "retina_lab",
        library,
        ignore=shutil.ignore_patterns("__pycache__", "_data"),
    )
    shutil.copytree(source, library / "_data" / "manifests")
    code = (
        "from retina_lab.datasets import list_datasets, manifests;"
        "print(manifests.manifests_folder(), *list_datasets())"
    )
    found = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    assert found[0] == str(library / "_data" / "manifests")
    assert set(found[1:]) == {"phantom", "retina", *NAMES}


def test_manifests_are_plain_readable_json():
    for path in manifests.manifests_folder().glob("*.json"):
        text = path.read_text(encoding="utf-8")
        assert json.loads(text)["name"] == path.stem
        assert max(map(len, text.splitlines())) < 1200


def test_sha256_of(tmp_path):
    path = tmp_path / "abc"
    path.write_bytes(b"abc")
    assert sha256_of(path) == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


@pytest.mark.parametrize("name", ["CHASE_DB1", "chase-db1", "CHASEDB1", "Chase DB1"])
def test_plain_name(name):
    assert plain_name(name) == "chasedb1"
