import copy
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
from dataset_files import bars, eye, real_samples, save

from retina_lab.datasets import (
    DatasetError,
    FundusDataset,
    FundusSample,
    Split,
    check_split,
    data_roots,
    layouts,
    list_datasets,
    list_splits,
    open_dataset,
    open_labelled_split,
    open_split,
)
from retina_lab.datasets.manifests import load_manifest, manifest_names

IMAGE, MASK = eye(), bars()
FOV = (IMAGE.max(axis=2) > 0).astype(np.uint8) * 255


def make_drive(root: Path) -> Path:
    for part, numbers in (("training", range(21, 41)), ("test", range(1, 21))):
        for number in numbers:
            here = root / "DRIVE" / part
            save(here / "images" / f"{number:02d}_{part}.tif", IMAGE)
            save(here / "mask" / f"{number:02d}_{part}_mask.gif", FOV)
            save(here / "1st_manual" / f"{number:02d}_manual1.gif", MASK)
            if part == "test":
                save(here / "2nd_manual" / f"{number:02d}_manual2.gif", bars(every=7))
    return root / "DRIVE"


def make_stare(root: Path) -> Path:
    manifest = load_manifest("stare")
    for file in manifest.files:
        image = IMAGE if file.path.startswith("stare-images") else MASK
        save(root / "STARE" / file.path, image)
    return root / "STARE"


def make_chase(root: Path) -> Path:
    for file in load_manifest("chase_db1").files:
        save(root / "CHASEDB1" / file.path, IMAGE if file.path.endswith("jpg") else MASK)
    return root / "CHASEDB1"


def make_hrf(root: Path) -> Path:
    for file in load_manifest("hrf").files:
        folder = file.path.split("/")[0]
        image = {"images": IMAGE, "manual1": MASK, "mask": np.dstack([FOV] * 3)}[folder]
        save(root / "HRF" / file.path, image)
    return root / "HRF"


MAKE = {"drive": make_drive, "stare": make_stare, "chase_db1": make_chase, "hrf": make_hrf}


@pytest.fixture
def no_data(tmp_path, monkeypatch):
    """A machine without datasets."""
    monkeypatch.setenv("RETINA_LAB_DATA", str(tmp_path / "empty"))
    monkeypatch.setattr(layouts, "project_root", lambda: tmp_path / "project")
    return tmp_path


# ------------------------------------------------------------------ official layouts


@pytest.mark.parametrize(
    ("name", "images", "second", "source"),
    [
        ("drive", 40, 20, "official"),
        ("stare", 20, 20, "estimated"),
        ("chase_db1", 28, 28, "estimated"),
        ("hrf", 45, 0, "official"),
    ],
)
def test_official_layouts(tmp_path, name, images, second, source):
    MAKE[name](tmp_path)
    dataset = open_dataset(name, tmp_path)
    assert dataset.name == name
    assert len(dataset) == images == load_manifest(name).images
    samples = list(dataset)
    assert [sample.name for sample in samples] == dataset.names
    assert [sample.subject for sample in samples] == dataset.subjects
    assert all(sample.dataset == name and sample.fov_source == source for sample in samples)
    assert all(np.array_equal(sample.vessels, MASK > 0) for sample in samples)
    assert sum(sample.second_observer is not None for sample in samples) == second


def test_drive_names_and_observers(tmp_path):
    make_drive(tmp_path)
    split = open_split("drive", root=tmp_path)
    assert split.name == "official"
    assert split.train.names[0] == "21_training"
    assert split.test.names[-1] == "20_test"
    sample = split.test["01_test"]
    np.testing.assert_array_equal(sample.fov, FOV > 0)
    np.testing.assert_array_equal(sample.second_observer, bars(every=7) > 0)
    assert split.train[0].second_observer is None


def test_drive_without_test_labels_as_the_challenge_hands_it_out(tmp_path):
    folder = make_drive(tmp_path)
    for name in ("1st_manual", "2nd_manual"):
        for path in (folder / "test" / name).iterdir():
            path.unlink()
        (folder / "test" / name).rmdir()
    split = open_split("drive", root=tmp_path)
    assert split.test[0].vessels is None
    assert split.train[0].vessels is not None


def test_hrf_images_alone_at_another_size(tmp_path):
    for file in load_manifest("hrf").files:
        if file.path.startswith("images"):
            save(tmp_path / "HRF" / file.path, eye(48, 72))
    dataset = open_dataset("hrf", tmp_path)
    sample = dataset["03_dr"]
    assert sample.vessels is None
    assert sample.fov_source == "estimated"
    assert sample.grade == "diabetic retinopathy"
    assert dataset["01_h"].grade == "healthy"


@pytest.mark.parametrize("folder", ["CHASEDB1", "chase_db1", "CHASE-DB1", "Chase DB1", "CHASE"])
def test_folder_names_vary(tmp_path, folder):
    make_chase(tmp_path).rename(tmp_path / folder)
    assert len(open_dataset("chase_db1", tmp_path)) == 28
    assert len(open_dataset("CHASEDB1", tmp_path)) == 28
    # the dataset's own folder, as root and as a path
    assert len(open_dataset("chase_db1", tmp_path / folder)) == 28


def test_names_of_files_vary_in_case_and_type(tmp_path):
    folder = make_chase(tmp_path)
    (folder / "Image_01L.jpg").rename(folder / "image_01l.JPG")
    save(folder / "Image_02L_1stHO.tif", MASK)
    (folder / "Image_02L_1stHO.png").unlink()
    dataset = open_dataset("chase_db1", tmp_path)
    assert dataset.names[:2] == ["Image_01L", "Image_01R"]
    assert dataset["Image_01L"].image.shape == IMAGE.shape
    assert dataset["Image_02L"].vessels.any()


def test_a_folder_in_a_folder_of_the_same_name(tmp_path):
    make_chase(tmp_path / "CHASEDB1")
    assert len(open_dataset("chase_db1", tmp_path)) == 28


def test_an_official_folder_opened_by_its_path(tmp_path):
    folder = make_stare(tmp_path)
    assert open_dataset(folder).name == "stare"
    assert open_dataset(str(folder)).names[0] == "im0001"
    assert open_split(folder).name == "10/10"


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("drive", "training/images/21_training.tif"),
        ("drive", "training/1st_manual/40_manual1.gif"),
        ("drive", "training/mask/30_training_mask.gif"),
        ("drive", "test/2nd_manual/07_manual2.gif"),
        ("stare", "stare-images/im0005.ppm.gz"),
        ("stare", "labels-vk/im0324.vk.ppm.gz"),
        ("chase_db1", "Image_08L_1stHO.png"),
        ("hrf", "manual1/15_g.tif"),
    ],
)
def test_a_missing_file_is_named(tmp_path, name, path):
    (MAKE[name](tmp_path) / path).unlink()
    with pytest.raises(DatasetError, match=rf"1 file\(s\) missing: {path}\. .*verify {name}"):
        open_dataset(name, tmp_path)


def test_a_misnamed_file_is_suggested(tmp_path):
    folder = make_drive(tmp_path) / "training" / "mask"
    (folder / "21_training_mask.gif").rename(folder / "21_trainig_mask.gif")
    with pytest.raises(DatasetError, match=r"is it 21_trainig_mask\.gif\?"):
        open_dataset("drive", tmp_path)


def test_a_mis_sized_file_is_named(tmp_path):
    folder = make_drive(tmp_path)
    save(folder / "test" / "1st_manual" / "03_manual1.gif", bars(60, 71))
    dataset = open_dataset("drive", tmp_path)
    dataset["02_test"]
    with pytest.raises(DatasetError, match=r"03_manual1\.gif.*71×60.*03_test\.tif is 70×60"):
        dataset["03_test"]


def test_a_damaged_file_is_named(tmp_path):
    folder = make_stare(tmp_path)
    path = folder / "stare-images" / "im0003.ppm.gz"
    path.write_bytes(path.read_bytes()[:200])
    dataset = open_dataset("stare", tmp_path)  # nothing is decoded yet
    with pytest.raises(DatasetError, match=r"im0003\.ppm\.gz.*truncated"):
        dataset["im0003"]


# ------------------------------------------------------------------ finding


@pytest.mark.parametrize("name", ["drive", "stare", "chase_db1", "hrf", "messidor"])
def test_a_missing_dataset_says_how_to_get_it(no_data, name):
    manifest = load_manifest(name)
    with pytest.raises(DatasetError) as caught:
        open_dataset(name)
    message = str(caught.value)
    assert manifest.homepage in message
    assert manifest.licence in message
    assert str(no_data / "empty" / manifest.folder) in message
    assert ("data get" in message) == bool(manifest.archives)


def test_unknown_names_are_explained(no_data):
    with pytest.raises(DatasetError, match=r"Did you mean stare\?"):
        open_dataset("star")
    with pytest.raises(DatasetError, match="neither a dataset"):
        open_dataset(no_data / "nowhere")
    with pytest.raises(DatasetError, match="neither a dataset"):
        open_dataset("")


def test_several_roots_are_searched_in_order(tmp_path, monkeypatch):
    make_stare(tmp_path / "a")
    make_chase(tmp_path / "b")
    monkeypatch.setenv(
        "RETINA_LAB_DATA", os.pathsep.join(map(str, [tmp_path / "a", tmp_path / "b"]))
    )
    assert len(open_dataset("stare")) == 20
    assert len(open_dataset("chase_db1")) == 28
    assert data_roots()[:2] == [tmp_path / "a", tmp_path / "b"]
    assert data_roots(tmp_path) == [tmp_path]


def test_a_relative_root_is_also_taken_from_the_project(tmp_path, monkeypatch):
    project = tmp_path / "project"
    (project / "notebooks").mkdir(parents=True)
    make_stare(tmp_path / "shelf")
    monkeypatch.setattr(layouts, "project_root", lambda: project)
    monkeypatch.setenv("RETINA_LAB_DATA", "../shelf")
    monkeypatch.chdir(project / "notebooks")
    assert len(open_dataset("stare")) == 20


# ------------------------------------------------------------------ the sequence


def small(names=("a", "b", "c", "d"), persons=None) -> FundusDataset:
    def load(name):
        return FundusSample(name, IMAGE, FOV > 0)

    persons = persons or names
    entries = [
        layouts.Entry(name, person, lambda name=name: load(name))
        for name, person in zip(names, persons, strict=True)
    ]
    return FundusDataset("small", entries)


def test_a_dataset_is_a_sequence():
    dataset = small()
    assert len(dataset) == 4
    assert dataset[0].name == dataset["a"].name == "a"
    assert dataset[-1].name == "d"
    assert [sample.name for sample in dataset] == list("abcd")
    assert isinstance(dataset[1:3], FundusDataset)
    assert dataset[1:3].names == ["b", "c"]
    assert dataset.select(["d", "a"]).names == ["d", "a"]
    assert "b" in dataset
    assert "z" not in dataset
    with pytest.raises(IndexError):
        dataset[4]
    with pytest.raises(DatasetError, match="no image called 'z'"):
        dataset["z"]
    with pytest.raises(DatasetError, match="no image called 'z'"):
        dataset.select(["a", "z"])
    with pytest.raises(DatasetError, match="several images are called a"):
        small("aab")


def test_a_dataset_travels_to_worker_processes(tmp_path):
    make_stare(tmp_path)
    dataset = open_dataset("stare", tmp_path)
    again = pickle.loads(pickle.dumps(dataset))
    assert again.names == dataset.names
    np.testing.assert_array_equal(again[3].vessels, dataset[3].vessels)
    assert copy.copy(dataset).names == dataset.names


# ------------------------------------------------------------------ splits

STARE_TRAIN = [f"im{number:04d}" for number in (1, 2, 3, 4, 5, 44, 77, 81, 82, 139)]
STARE_TEST = [f"im{n:04d}" for n in (162, 163, 235, 236, 239, 240, 255, 291, 319, 324)]


def children(first, last):
    return [f"Image_{child:02d}{eye}" for child in range(first, last + 1) for eye in "LR"]


@pytest.mark.parametrize(
    ("name", "split", "train", "test"),
    [
        (
            "drive",
            "official",
            [f"{n}_training" for n in range(21, 41)],
            [f"{n:02d}_test" for n in range(1, 21)],
        ),
        ("stare", "10/10", STARE_TRAIN, STARE_TEST),
        ("stare", "loo-im0001", (STARE_TRAIN + STARE_TEST)[1:], ["im0001"]),
        ("chase_db1", "20/8", children(1, 10), children(11, 14)),
        ("chase_db1", "8/20", children(11, 14), children(1, 10)),
        ("chase_db1", "lwnet", children(1, 4), children(5, 14)),
    ],
)
def test_named_splits(tmp_path, name, split, train, test):
    MAKE[name](tmp_path)
    found = open_split(name, split, tmp_path)
    assert found.name == split
    assert found.train.names == train
    assert found.test.names == test


def test_hrf_split_is_balanced(tmp_path):
    make_hrf(tmp_path)
    split = open_split("hrf", root=tmp_path)
    assert (len(split.train), len(split.test)) == (15, 30)
    for group in ("h", "dr", "g"):
        assert [n for n in split.train.names if n.endswith(f"_{group}")] == [
            f"{number:02d}_{group}" for number in range(1, 6)
        ]


@pytest.mark.parametrize("name", ["drive", "stare", "chase_db1", "hrf"])
def test_every_split_divides_the_dataset_by_person(tmp_path, name):
    MAKE[name](tmp_path)
    dataset = open_dataset(name, tmp_path)
    assert list_splits(name)[0] == load_manifest(name).default_split
    for split_name in list_splits(name):
        split = open_split(name, split_name, tmp_path)
        used = [*split.train.names, *split.test.names]
        assert len(used) == len(set(used))
        left_out = set(dataset.names) - set(used)
        # STARE's two pictures of one eye: testing on one, the other is not trained on.
        assert left_out <= {"im0235", "im0236"}
        assert not set(split.train.subjects) & set(split.test.subjects)


def test_a_person_on_both_sides_is_refused():
    dataset = small(("1L", "1R", "2L", "2R"), ("1", "1", "2", "2"))
    check_split(Split("fine", dataset[:2], dataset[2:]))
    with pytest.raises(DatasetError, match="split bad: person 1 on both sides"):
        check_split(Split("bad", dataset[:1], dataset[1:]))


def test_unknown_splits_are_explained(tmp_path):
    make_chase(tmp_path)
    with pytest.raises(DatasetError, match="there are 20/8, 8/20, lwnet"):
        open_split("chase_db1", "official", tmp_path)
    with pytest.raises(DatasetError, match="no split 'seeded-1'"):
        open_split("chase_db1", "seeded-1", tmp_path)


# ------------------------------------------------------------------ a user's folder


def user_folder(root, *paths):
    for path in paths:
        flat = "." not in Path(path).parts[0]
        is_mask = (flat and Path(path).parts[0] != "images") or any(
            word in Path(path).stem for word in ("_mask", "_fov", "_vessels", "_manual")
        )
        is_fov = any(word in str(path) for word in ("mask", "fov"))
        save(root / path, (FOV if is_fov else MASK) if is_mask else IMAGE)
    return root


def test_photographs_alone(tmp_path):
    (tmp_path / "note.txt").write_text("not an image")
    (tmp_path / ".hidden.png").write_text("not an image")
    dataset = open_dataset(user_folder(tmp_path, "b.jpg", "a.png"))
    assert dataset.names == ["a", "b"]
    assert dataset.name == tmp_path.name
    assert dataset[0].vessels is None
    assert dataset[0].fov_source == "estimated"


@pytest.mark.parametrize(
    ("fov", "vessels", "second"),
    [
        ("one_mask.png", "one_vessels.png", "one_manual2.png"),
        ("one_fov.gif", "one_manual1.tif", "one_2ndHO.png"),
        ("mask/one.png", "vessels/one.png", "manual2/one.png"),
        ("Mask/one_mask.tif", "manual1/one.tif", "2nd_manual/one_manual2.gif"),
        ("fov/one_fov.png", "1st_manual/one_manual1.gif", "labels-vk/one.vk.ppm.gz"),
    ],
)
@pytest.mark.parametrize("image", ["one.jpg", "images/one.jpg"])
def test_masks_beside_photographs(tmp_path, image, fov, vessels, second):
    if "/" in image and "/" not in fov:
        fov, vessels, second = (f"images/{name}" for name in (fov, vessels, second))
    save(tmp_path / image, IMAGE)
    save(tmp_path / fov, FOV)
    save(tmp_path / vessels, MASK)
    save(tmp_path / second, bars(every=7))
    sample = open_dataset(tmp_path)["one"]
    assert sample.fov_source == "official"
    np.testing.assert_array_equal(sample.fov, FOV > 0)
    np.testing.assert_array_equal(sample.vessels, MASK > 0)
    np.testing.assert_array_equal(sample.second_observer, bars(every=7) > 0)


def test_a_suffix_counts_only_beside_its_photograph(tmp_path):
    dataset = open_dataset(user_folder(tmp_path, "left_mask.png", "right.png"))
    assert dataset.names == ["left_mask", "right"]


def test_some_photographs_may_lack_a_mask(tmp_path):
    dataset = open_dataset(user_folder(tmp_path, "images/a.png", "images/b.png", "vessels/a.png"))
    assert dataset["a"].vessels is not None
    assert dataset["b"].vessels is None


def test_a_mask_of_no_photograph_is_named(tmp_path):
    user_folder(tmp_path, "images/a.png", "vessels/b.png")
    with pytest.raises(DatasetError, match=r"b\.png: no photograph .* belongs to it"):
        open_dataset(tmp_path)


def test_two_masks_for_one_photograph_are_named(tmp_path):
    user_folder(tmp_path, "a.png", "vessels/a.png", "labels/a.png")
    with pytest.raises(DatasetError, match="has two files for vessels"):
        open_dataset(tmp_path)


@pytest.mark.parametrize(
    "files",
    [
        ("a.png", "a_manual1.png", "a_vessels.png"),
        ("images/a.png", "vessels/a.png", "vessels/a.tif"),
    ],
)
def test_two_labels_of_one_photograph_are_refused(tmp_path, files):
    user_folder(tmp_path, *files)
    with pytest.raises(DatasetError, match=r"two files for vessels|have the same name"):
        open_dataset(tmp_path)


def test_a_folder_that_is_called_like_an_embedded_dataset_is_none(tmp_path):
    for number in range(6):
        user_folder(tmp_path / "phantom", f"p{number}.png")
    split = open_split(tmp_path / "phantom")
    assert split.name == "seeded-0"
    assert split.train.name == "phantom-folder"
    assert len(split.train) + len(split.test) == 6


def test_splits_are_listed_by_any_spelling():
    assert list_splits("CHASEDB1") == list_splits("chase_db1")
    assert list_splits("Phantom") == ["official"]


def test_an_empty_folder_is_explained(tmp_path):
    with pytest.raises(DatasetError, match="holds no images"):
        open_dataset(tmp_path)


def test_two_photographs_of_one_name_are_refused(tmp_path):
    user_folder(tmp_path, "a.png", "a.jpg")
    with pytest.raises(DatasetError, match=r"a\.jpg and a\.png have the same name"):
        open_dataset(tmp_path)


def test_a_seeded_split_keeps_both_eyes_together(tmp_path):
    names = [f"p{person}_{eye}.png" for person in range(9) for eye in ("OD", "OS")]
    folder = user_folder(tmp_path, *names)
    split = open_split(folder)
    assert split.name == "seeded-0"
    assert (len(split.train), len(split.test)) == (12, 6)
    assert not set(split.train.subjects) & set(split.test.subjects)
    assert open_split(folder).test.names == split.test.names
    assert any(open_split(folder, f"seeded-{n}").test.names != split.test.names for n in (1, 2, 3))
    with pytest.raises(DatasetError, match="no split 'official'"):
        open_split(folder, "official")


def test_one_person_cannot_be_split(tmp_path):
    with pytest.raises(DatasetError, match="at least two"):
        open_split(user_folder(tmp_path, "p_left.png", "p_right.png"))


def test_where_all_is_labelled_the_split_is_its_own(tmp_path, capsys):
    make_drive(tmp_path)
    split = open_labelled_split("drive", tmp_path)
    assert (split.name, split.test.name, len(split.test)) == ("official", "drive", 20)
    assert capsys.readouterr().out == ""


def test_where_labels_or_persons_lack_phantoms_take_the_place(tmp_path, capsys):
    drive = make_drive(tmp_path)
    for name in ("1st_manual", "2nd_manual"):  # as the challenge hands it out
        for file in (drive / "test" / name).iterdir():
            file.unlink()
    few = user_folder(tmp_path / "few", *(f"p{n}.png" for n in range(4)))
    bare = user_folder(tmp_path / "bare", *(f"p{n}.png" for n in range(6)))
    for name, reason in (
        ("drive", "drive has no vessel labels in its test photographs"),
        (few, "shows too few persons (4; 5 are the least)"),
        (bare, "has no vessel labels in its training and test photographs"),
    ):
        assert open_labelled_split(name, tmp_path).train.name == "phantom"
        assert reason in capsys.readouterr().out


# ------------------------------------------------------------------ Messidor

ANNOTATION = "Image name,Ophthalmologic department,Retinopathy grade,Risk of macular edema \n"


def test_messidor_grades(tmp_path):
    for base, names in (("Base11", ("a.tif", "b.tif")), ("Base12", ("c.tif",))):
        for name in names:
            save(tmp_path / "Messidor" / base / name, IMAGE)
    save(tmp_path / "Messidor" / "d.tif", IMAGE)
    (tmp_path / "Messidor" / "Base11" / "Annotation_Base11.csv").write_text(
        ANNOTATION + "a.tif,Service,3,0\nB.TIF,Service,0,1\n"
    )
    (tmp_path / "Messidor" / "Base12" / "annotation.csv").write_text(
        "Image name;Retinopathy grade\nc.tif;2\n"
    )
    dataset = open_dataset("messidor", tmp_path)
    assert {sample.name: sample.grade for sample in dataset} == {"a": 3, "b": 0, "c": 2, "d": None}
    split = open_split("messidor", root=tmp_path)
    assert split.name == "seeded-0"
    assert len(split.train) + len(split.test) == 4


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (ANNOTATION + "a.tif,Service,3,0\nz.tif,Service,3,0\n", r"1 image\(s\).*z\.tif"),
        (ANNOTATION + "a.tif,Service,bad,0\n", "row 2"),
        ("Picture,Grade\na.tif,3\n", "must name the columns"),
        ("", "must name the columns"),
    ],
)
def test_bad_messidor_annotations_are_named(tmp_path, text, message):
    save(tmp_path / "Messidor" / "Base11" / "a.tif", IMAGE)
    (tmp_path / "Messidor" / "Base11" / "annotation.csv").write_text(text)
    with pytest.raises(DatasetError, match=message):
        open_dataset("messidor", tmp_path)


def test_messidor_excel_without_a_reader_says_what_to_install(tmp_path, monkeypatch):
    import pandas

    def no_reader(*arguments, **options):
        raise ImportError("xlrd")

    monkeypatch.setattr(pandas, "read_excel", no_reader)
    save(tmp_path / "Messidor" / "a.tif", IMAGE)
    (tmp_path / "Messidor" / "Annotation_Base11.xls").write_bytes(b"\xd0\xcf\x11\xe0")
    with pytest.raises(DatasetError, match=r"pip install xlrd, or save the table as \.csv"):
        open_dataset("messidor", tmp_path)


def test_messidor_excel_is_read_like_csv(tmp_path, monkeypatch):
    import pandas

    table = pandas.DataFrame([["Image name", "Retinopathy grade"], ["a.tif", "2"]])
    monkeypatch.setattr(pandas, "read_excel", lambda *arguments, **options: table)
    save(tmp_path / "Messidor" / "a.tif", IMAGE)
    (tmp_path / "Messidor" / "Annotation_Base11.xls").write_bytes(b"\xd0\xcf\x11\xe0")
    assert open_dataset("messidor", tmp_path)[0].grade == 2


# ------------------------------------------------------------------ embedded


def test_the_phantom_is_the_embedded_default():
    split = open_split("phantom")
    assert split.name == "official"
    assert split.train.names == [f"phantom_{seed:03d}" for seed in range(20)]
    assert split.test.names == [f"phantom_{seed:03d}" for seed in range(20, 40)]
    sample = split.test[0]
    assert sample.name == "phantom_020"
    assert sample.dataset == "phantom"
    assert sample.image.shape == (512, 512, 3)
    assert sample.artery_vein is not None
    assert split.test[0] is sample  # drawn once


def test_the_photograph_of_scikit_image():
    sample = open_dataset("retina")[0]
    assert sample.image.shape == (1411, 1411, 3)
    assert sample.vessels is None
    assert sample.fov_source == "estimated"
    assert 0.74 < sample.fov.mean() < 0.79
    with pytest.raises(DatasetError, match="at least two"):
        open_split("retina")


def test_the_list_of_datasets():
    assert list_datasets() == ["phantom", "retina", *manifest_names()]
    assert set(manifest_names()) == {"drive", "stare", "chase_db1", "hrf", "messidor"}


# ------------------------------------------------------------------ real images


def test_drive_constants():
    samples = [real_samples("drive")[f"{number:02d}_test"] for number in range(1, 21)]
    assert sum(int(sample.fov.sum()) for sample in samples) == 4_538_143
    assert sum(int((sample.vessels & sample.fov).sum()) for sample in samples) == 577_649


@pytest.mark.parametrize(
    ("name", "split", "dice", "tolerance"),
    [
        ("drive", "official", 0.789, 0.0005),
        # The last digits depend on the field of view, which is estimated here.
        ("stare", "10/10", 0.760, 0.0015),
        ("chase_db1", "8/20", 0.768, 0.001),
        ("chase_db1", "20/8", 0.797, 0.001),
    ],
)
def test_second_observers(name, split, dice, tolerance):
    samples = real_samples(name)
    both = total = 0
    for sample in map(samples.get, open_split(name, split).test.names):
        first, second = sample.vessels & sample.fov, sample.second_observer & sample.fov
        both += int((first & second).sum())
        total += int(first.sum() + second.sum())
    assert 2 * both / total == pytest.approx(dice, abs=tolerance)


@pytest.mark.parametrize(
    ("name", "size"),
    [("drive", (584, 565)), ("stare", (605, 700)), ("chase_db1", (960, 999))],
)
def test_real_photographs_are_all_readable(name, size):
    for sample in real_samples(name).values():
        assert sample.size == size
        assert 0.05 < sample.vessels[sample.fov].mean() < 0.2, sample.name
