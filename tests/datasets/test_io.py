import gzip
import io
import re
import struct
import zlib

import numpy as np
import pytest
from dataset_files import bars, eye, save
from PIL import Image

from retina_lab.datasets import DatasetError, DatasetWarning, read_image, read_mask

RGB = eye()
GREY = RGB[:, :, 0]


def png_16_bit(path, samples):
    """Write (H, W, 3) whole numbers below 65536 as a 16-bit colour PNG."""

    def chunk(kind, data):
        checksum = zlib.crc32(kind + data)
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", checksum)

    height, width = samples.shape[:2]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in samples)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0))
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )
    return path


@pytest.mark.parametrize("kind", ["tif", "TIFF", "png", "bmp", "ppm", "ppm.gz"])
def test_lossless_formats_return_the_pixels(tmp_path, kind):
    image = read_image(save(tmp_path / f"a.{kind}", RGB))
    assert image.dtype == np.uint8
    assert image.flags.c_contiguous
    np.testing.assert_array_equal(image, RGB)


@pytest.mark.parametrize("kind", ["jpg", "gif"])
def test_lossy_formats_return_about_the_pixels(tmp_path, kind):
    smooth = np.dstack([np.add.outer(np.arange(60), np.arange(70))] * 3).astype(np.uint8)
    image = read_image(save(tmp_path / f"a.{kind}", smooth))
    assert np.abs(image.astype(int) - smooth).mean() < 4


def test_greyscale_is_repeated(tmp_path):
    np.testing.assert_array_equal(read_image(save(tmp_path / "a.png", GREY)), np.dstack([GREY] * 3))


def test_palette_is_looked_up(tmp_path):
    indices = np.array([[0, 1], [2, 1]], np.uint8)
    picture = Image.fromarray(indices).convert("P")
    picture.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
    picture.save(tmp_path / "a.png")
    image = read_image(tmp_path / "a.png")
    assert image[0, 0].tolist() == [10, 20, 30]
    assert image[1, 0].tolist() == [70, 80, 90]


def test_transparency_is_composited_over_black(tmp_path):
    rgba = np.zeros((2, 2, 4), np.uint8)
    rgba[:] = [200, 100, 50, 255]
    rgba[0, 0, 3] = 0
    rgba[0, 1, 3] = 128
    image = read_image(save(tmp_path / "a.png", rgba))
    assert image[0, 0].tolist() == [0, 0, 0]
    assert np.abs(image[0, 1].astype(int) - [100, 50, 25]).max() <= 1
    assert image[1, 1].tolist() == [200, 100, 50]


@pytest.mark.parametrize(
    ("brightest", "expected"),
    [(200, 200), (1023, 255), (4095, 255), (16383, 255), (65535, 255), (2047, 127)],
)
def test_16_bit_greyscale_is_scaled_by_its_true_range(tmp_path, brightest, expected):
    values = np.zeros((8, 9), np.uint16)
    values[4] = brightest
    image = read_image(save(tmp_path / "a.png", values))
    assert image.max() == expected
    assert image.min() == 0


@pytest.mark.parametrize("brightest", [4095, 65535])
def test_16_bit_colour_keeps_the_lower_bytes(tmp_path, brightest):
    ramp = np.linspace(0, brightest, 8 * 9 * 3).round().reshape(8, 9, 3).astype(np.uint16)
    image = read_image(png_16_bit(tmp_path / "a.png", ramp))
    np.testing.assert_array_equal(image, np.rint(ramp * (255 / brightest)))


def test_16_bit_colour_tiff(tmp_path):
    tifffile = pytest.importorskip("tifffile")
    ramp = np.linspace(0, 4095, 8 * 9 * 3).round().reshape(8, 9, 3).astype(np.uint16)
    for options in ({}, {"byteorder": ">"}, {"compression": "zlib"}):
        tifffile.imwrite(tmp_path / "a.tif", ramp, **options)
        image = read_image(tmp_path / "a.tif")
        np.testing.assert_array_equal(image, np.rint(ramp * (255 / 4095)))


def test_floating_point(tmp_path):
    ramp = np.linspace(0, 1, 12, dtype=np.float32).reshape(3, 4)
    expected = np.rint(ramp * 255)
    np.testing.assert_array_equal(read_image(save(tmp_path / "a.tif", ramp))[:, :, 0], expected)
    np.testing.assert_array_equal(
        read_image(save(tmp_path / "b.tif", ramp * 255))[:, :, 0], expected
    )
    with pytest.raises(DatasetError, match="must lie in"):
        read_image(save(tmp_path / "c.tif", ramp - 5))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(tmp_path, orientation):
    turned = {
        1: lambda a: a,
        2: np.fliplr,
        3: lambda a: np.rot90(a, 2),
        4: np.flipud,
        5: lambda a: a.transpose(1, 0, 2),
        6: lambda a: np.rot90(a, -1),
        7: lambda a: np.rot90(a, 2).transpose(1, 0, 2),
        8: np.rot90,
    }[orientation]
    picture = Image.fromarray(RGB)
    exif = picture.getexif()
    exif[0x0112] = orientation
    picture.save(tmp_path / "a.png", exif=exif)
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), turned(RGB))


def test_the_first_page_of_several_is_read(tmp_path):
    pages = [Image.fromarray(RGB), Image.fromarray(255 - RGB)]
    pages[0].save(tmp_path / "a.tif", save_all=True, append_images=pages[1:])
    np.testing.assert_array_equal(read_image(tmp_path / "a.tif"), RGB)


def encoded(kind):
    stream = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3)).astype(np.uint8)
    Image.fromarray(noise).save(stream, format=kind)
    return stream.getvalue()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.png", b"", "is empty"),
        ("a.ppm.gz", b"", "is empty"),
        ("a.jpg", b"<html>404</html>", "not an image"),
        ("a.ppm.gz", gzip.compress(b"hello", mtime=0), "not an image"),
        ("a.png", encoded("PNG")[:3000], "truncated or damaged"),
        ("a.jpg", encoded("JPEG")[:1500], "truncated or damaged"),
        ("a.tif", encoded("TIFF")[:3000], "truncated or damaged|not an image"),
        ("a.ppm", encoded("PPM")[:3000], "truncated or damaged"),
        ("a.ppm.gz", gzip.compress(encoded("PPM"), mtime=0)[:3000], "truncated or damaged"),
        ("a.png", b"\x89PNG\r\n\x1a\n" + b"\0" * 50, "damaged"),
    ],
)
def test_a_bad_file_is_named(tmp_path, name, content, message):
    path = tmp_path / name
    path.write_bytes(content)
    for read in (read_image, read_mask):
        with pytest.raises(DatasetError, match=f"{re.escape(str(path))}.*({message})"):
            read(path)


def test_missing_files_and_folders_are_named(tmp_path):
    with pytest.raises(DatasetError, match=r"nothing\.png: there is no such file"):
        read_image(tmp_path / "nothing.png")
    with pytest.raises(DatasetError, match="this is a folder"):
        read_image(tmp_path)


BARS = bars()


@pytest.mark.parametrize(
    "stored",
    [
        BARS,
        BARS // 255,
        (BARS // 255).astype(np.uint16) * 65535,
        BARS > 0,
        np.dstack([BARS, BARS * 0, BARS * 0]),
        np.dstack([BARS, BARS, BARS, np.full_like(BARS, 255)]),
        np.dstack([BARS * 0 + 7, BARS * 0 + 7, BARS * 0 + 7, BARS]),
    ],
    ids=["0/255", "0/1", "16 bit", "1 bit", "red", "opaque RGBA", "drawn in the alpha"],
)
def test_every_coding_of_a_mask_is_understood(tmp_path, stored):
    mask = read_mask(save(tmp_path / "a.png", stored))
    assert mask.dtype == bool
    np.testing.assert_array_equal(mask, BARS > 0)


@pytest.mark.parametrize(("grey", "share"), [(0, 0.0), (255, 1.0)])
def test_an_opaque_mask_of_one_colour_is_read_by_its_colour(tmp_path, grey, share):
    stored = np.dstack([np.full_like(BARS, grey)] * 3 + [np.full_like(BARS, 255)])
    path = save(tmp_path / "a.png", stored)
    if share:
        assert read_mask(path, kind="fov").mean() == share
    else:
        with pytest.raises(DatasetError):
            read_mask(path, kind="fov")


def test_a_palette_gif_is_understood(tmp_path):
    # White is index 0 here, so reading indices would invert the mask.
    picture = Image.fromarray((BARS == 0).astype(np.uint8)).convert("P")
    picture.putpalette([255, 255, 255, 0, 0, 0])
    picture.save(tmp_path / "a.gif")
    np.testing.assert_array_equal(read_mask(tmp_path / "a.gif"), BARS > 0)


def test_noise_of_jpeg_is_cut_away(tmp_path):
    blocks = np.zeros((64, 64), np.uint8)
    blocks[5:60, 13:20] = 255
    path = save(tmp_path / "a.jpg", blocks, quality=80)
    assert len(np.unique(np.asarray(Image.open(path)))) > 2
    np.testing.assert_array_equal(read_mask(path), blocks > 0)


def test_a_photograph_is_not_a_mask(tmp_path):
    ramp = np.add.outer(np.arange(60), np.arange(70)).astype(np.uint8)
    with pytest.raises(DatasetError, match="neither black nor white"):
        read_mask(save(tmp_path / "a.png", ramp))


def test_implausible_masks(tmp_path):
    black = save(tmp_path / "black.png", np.zeros((9, 9), np.uint8))
    white = save(tmp_path / "white.png", np.full((9, 9), 255, np.uint8))
    with pytest.warns(DatasetWarning, match="no pixel is marked"):
        assert not read_mask(black).any()
    with pytest.raises(DatasetError, match=r"black\.png: the field of view is empty"):
        read_mask(black, kind="fov")
    with pytest.raises(DatasetError, match=r"white\.png: 100%.*inverted"):
        read_mask(white)
    assert read_mask(white, kind="fov").all()


def test_a_mask_of_another_size_names_both_files(tmp_path):
    path = save(tmp_path / "mask.png", BARS)
    with pytest.raises(DatasetError, match=r"mask\.png.*70×60.*eye\.tif is 50×40"):
        read_mask(path, size=(40, 50), image_path="eye.tif")
