"""The Grand Challenge's file: written, read back, and refused where it is wrong."""

import io
import zipfile

import numpy as np
import pytest
from PIL import Image

from retina_lab.submission import SubmissionError, number_of, read_submission, write_submission

PLANE = np.eye(5, 7, dtype=bool)


def test_written_and_read_back(tmp_path):
    maps = {f"{n:02d}_test": np.roll(PLANE, n, axis=1) for n in (20, 1, 3)}
    path = write_submission(tmp_path / "new" / "drive.zip", maps)
    with zipfile.ZipFile(path) as archive:
        assert archive.namelist() == ["1.png", "3.png", "20.png"]
        with Image.open(io.BytesIO(archive.read("3.png"))) as picture:
            assert (picture.mode, picture.size) == ("L", (7, 5))
    found = read_submission(path)
    assert all((found[number_of(name)] == plane).all() for name, plane in maps.items())
    assert not list(path.parent.glob("*.part"))


@pytest.mark.parametrize(("name", "number"), [("01_test", 1), ("im0162", 162), ("Image_11L", 11)])
def test_numbers(name, number):
    assert number_of(name) == number


@pytest.mark.parametrize(
    ("maps", "message"),
    [
        ({}, "nothing to submit"),
        ({"01_test": PLANE * 0.5}, "cut the map at its threshold"),
        ({"01_test": PLANE[None]}, "a decision is"),
        ({"retina": PLANE}, "no number"),
        ({"01_test": PLANE, "1": PLANE}, "01_test and 1 have the same number"),
    ],
)
def test_what_cannot_be_submitted(tmp_path, maps, message):
    with pytest.raises(SubmissionError, match=message):
        write_submission(tmp_path / "a.zip", maps)
    assert not list(tmp_path.iterdir())


def test_nothing_is_overwritten_unasked(tmp_path):
    path = write_submission(tmp_path / "a.zip", {"1": PLANE})
    with pytest.raises(SubmissionError, match="exists"):
        write_submission(path, {"1": ~PLANE})
    assert (read_submission(path)[1] == PLANE).all()
    write_submission(path, {"1": ~PLANE}, overwrite=True)
    assert (read_submission(path)[1] == ~PLANE).all()


def png(plane):
    file = io.BytesIO()
    Image.fromarray(plane).save(file, format="PNG")
    return file.getvalue()


@pytest.mark.parametrize(
    ("entry", "content", "message"),
    [
        ("maps/1.png", png(PLANE.astype(np.uint8) * 255), "names are 1.png"),
        ("01.png", png(PLANE.astype(np.uint8) * 255), "names are 1.png"),
        ("1.png", png(PLANE.astype(np.uint8)), "0 and 255 only"),
        ("1.png", png(np.zeros((3, 3, 3), np.uint8)), "0 and 255 only"),
        ("1.png", b"no picture", "cannot be read"),
    ],
)
def test_what_the_challenge_would_refuse(tmp_path, entry, content, message):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr(entry, content)
    with pytest.raises(SubmissionError, match=message):
        read_submission(tmp_path / "a.zip")


def test_no_archive(tmp_path):
    (tmp_path / "a.zip").write_text("no archive")
    with pytest.raises(SubmissionError, match="cannot be read"):
        read_submission(tmp_path / "a.zip")
