"""Read fundus photographs and masks, whatever the camera or the annotator saved."""

from __future__ import annotations

import gzip
import io
import struct
import sys
import warnings
import zlib
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

IMAGE_SUFFIXES = (".tif", ".tiff", ".ppm", ".pgm", ".png", ".jpg", ".jpeg", ".gif", ".bmp")
# No fundus camera makes 200 megapixels; a .gz that grows beyond this is damaged or hostile.
MAX_BYTES = 600_000_000


class DatasetError(ValueError):
    """A dataset, an image or a mask cannot be used; the message says which, why and the cure."""


class DatasetWarning(UserWarning):
    """Something in a dataset looks odd but can be used."""


def is_image_file(path: Path) -> bool:
    """Whether ``path`` has the name of an image (``.tif`` … ``.bmp``, also with ``.gz``)."""
    name = path.name.lower().removesuffix(".gz")
    return name.endswith(IMAGE_SUFFIXES) and not path.name.startswith(".")


def image_stem(path: Path) -> str:
    """Name of an image file without its type: ``im0001.ah.ppm.gz`` → ``im0001.ah``."""
    name = path.name
    if name.lower().endswith(".gz"):
        name = name[:-3]
    return Path(name).stem


def read_image(path: str | Path) -> np.ndarray:
    """Read a photograph as RGB.

    EXIF orientation is applied. Greyscale is repeated in three channels, a palette is looked
    up, and transparency is composited over black, the colour around a fundus. Samples of more
    than 8 bits are scaled by their true range, the smallest of 8, 10, 12, 14 and 16 bits that
    holds the brightest one (many cameras store 12 bits in 16); floating point must lie in
    [0, 1] or [0, 255]. Of a file with several pages the first is read.

    Args:
        path: a TIFF, PPM, PNG, JPEG, GIF or BMP file, or one of them compressed as ``.gz``.

    Returns:
        (H, W, 3) ``uint8``.

    Raises:
        DatasetError: if the file is missing, empty, truncated, damaged or not an image.
    """
    picture = _decode(Path(path))
    values = np.asarray(picture) if isinstance(picture, Image.Image) else picture
    if values.dtype != np.uint8:
        values = _to_8_bits(values, path)
    if values.ndim == 2:
        values = np.repeat(values[:, :, None], 3, axis=2)
    return np.ascontiguousarray(values)


def read_mask(
    path: str | Path,
    *,
    kind: str = "vessels",
    size: tuple[int, int] | None = None,
    image_path: str | Path | None = None,
) -> np.ndarray:
    """Read a binary mask.

    Any two-valued coding is understood: 0/1, 0/255, 16 bits, palette, coloured, drawn in the
    transparency. Values in between, as JPEG leaves them, are cut at half of the brightest;
    a file with many of them is a photograph or a probability map, and is refused.

    Args:
        path: the file.
        kind: ``"vessels"`` (a mask of vessels cannot cover most of the image) or ``"fov"``
            (a field of view cannot be empty).
        size: height and width that the mask must have, in pixels.
        image_path: the photograph that it belongs to, for the message.

    Returns:
        (H, W) ``bool``.

    Raises:
        DatasetError: if the file cannot be read, is not a mask, has another size than the
            image, or cannot be of its ``kind``.
    """
    if kind not in ("vessels", "fov"):
        raise ValueError(f"kind must be 'vessels' or 'fov', not {kind!r}")
    path = Path(path)
    picture = _decode(path, keep_alpha=True)
    values = np.asarray(picture).astype(np.float64)
    if values.ndim == 3 and values.shape[2] in (2, 4):
        alpha, colours = values[:, :, -1], values[:, :, :-1]
        # Some programs draw in one colour and keep the shape in the transparency.
        drawn = np.ptp(colours) == 0 and np.ptp(alpha) > 0
        values = alpha if drawn else colours * (alpha / 255.0)[:, :, None]
    if values.ndim == 3:
        values = values.max(axis=2)
    if size is not None and values.shape != tuple(size):
        owner = f"its image {image_path}" if image_path is not None else "its image"
        raise DatasetError(
            f"{path}: the mask is {values.shape[1]}×{values.shape[0]} pixels but {owner} is "
            f"{size[1]}×{size[0]}; save the mask at the size of the image"
        )
    brightest = values.max()
    if brightest <= 0:
        mask = np.zeros(values.shape, bool)
    else:
        between = np.mean((values > 0.25 * brightest) & (values < 0.75 * brightest))
        if between > 0.1:
            raise DatasetError(
                f"{path}: {between:.0%} of the pixels are neither black nor white, so this is "
                "not a mask; is it a photograph or a probability map?"
            )
        mask = values > 0.5 * brightest
    _check_plausible(mask, kind, path)
    return mask


def _check_plausible(mask: np.ndarray, kind: str, path: Path) -> None:
    share = mask.mean()
    if kind == "fov" and share == 0:
        raise DatasetError(f"{path}: the field of view is empty; it must be white where the eye is")
    if kind == "vessels" and share > 0.5:
        raise DatasetError(
            f"{path}: {share:.0%} of the pixels are marked as vessel; is the mask inverted, or is "
            "it a field of view? Vessels must be white on black"
        )
    if kind == "vessels" and share == 0:
        warnings.warn(
            f"{path}: no pixel is marked as vessel", category=DatasetWarning, stacklevel=3
        )


def _decode(path: Path, keep_alpha: bool = False) -> Image.Image | np.ndarray:
    """Decode to 8-bit L/RGB (LA/RGBA if ``keep_alpha``), or to an array of deeper samples."""
    if path.is_dir():
        raise DatasetError(f"{path}: this is a folder, not an image")
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise DatasetError(f"{path}: there is no such file") from None
    except OSError as error:
        raise DatasetError(f"{path}: cannot be read ({error.strerror or error})") from error
    if not data:
        raise DatasetError(f"{path}: the file is empty (0 bytes); copy or download it again")
    try:
        if data[:2] == b"\x1f\x8b":
            data = _gunzip(data, path)
        picture = Image.open(io.BytesIO(data))
        deep = _deep_colour(picture, data)
        if deep is not None:
            return deep
        picture.load()
        picture = ImageOps.exif_transpose(picture)
        return _to_plain_mode(picture, keep_alpha)
    except UnidentifiedImageError:
        raise DatasetError(
            f"{path}: this is not an image that can be read, or its beginning is damaged; "
            "use TIFF, PNG, JPEG, PPM, GIF or BMP, or copy the file again"
        ) from None
    except Image.DecompressionBombError as error:
        raise DatasetError(f"{path}: {error}") from None
    except (OSError, EOFError, SyntaxError, ValueError, struct.error, zlib.error) as error:
        if isinstance(error, DatasetError):
            raise
        raise DatasetError(
            f"{path}: the file is truncated or damaged ({error}); copy or download it again"
        ) from error


def _gunzip(data: bytes, path: Path) -> bytes:
    with gzip.GzipFile(fileobj=io.BytesIO(data)) as stream:
        plain = stream.read(MAX_BYTES + 1)
    if len(plain) > MAX_BYTES:
        raise DatasetError(f"{path}: unpacks to more than {MAX_BYTES:,} bytes; it is not an image")
    return plain


def _to_plain_mode(picture: Image.Image, keep_alpha: bool) -> Image.Image | np.ndarray:
    if picture.mode.startswith("I") or picture.mode == "F":
        return np.asarray(picture)
    if picture.mode in ("1", "L"):
        return picture.convert("L")
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        if keep_alpha:
            return picture
        black = Image.new("RGBA", picture.size, (0, 0, 0, 255))
        return Image.alpha_composite(black, picture).convert("RGB")
    return picture.convert("RGB")


def _deep_colour(picture: Image.Image, data: bytes) -> np.ndarray | None:
    """(H, W, 3) ``uint16`` of a colour image with 16 bits a channel, None for any other.

    Pillow reads such files but keeps only the upper byte of each sample, which turns 12 bits
    stored in 16 to black. Decoding once with each byte order gives both bytes.
    """
    native = {"little": "RGB;16B", "big": "RGB;16L"}[sys.byteorder]
    orders = {"RGB;16B": "RGB;16L", "RGB;16L": "RGB;16B", "RGB;16N": native}
    raw = {_raw_mode(tile) for tile in picture.tile}
    if len(raw) != 1 or not raw <= orders.keys():
        return None
    high = np.asarray(ImageOps.exif_transpose(picture)).astype(np.uint16)
    swapped = Image.open(io.BytesIO(data))
    swapped.tile = [_with_raw_mode(tile, orders[_raw_mode(tile)]) for tile in swapped.tile]
    low = np.asarray(ImageOps.exif_transpose(swapped)).astype(np.uint16)
    return high << 8 | low


def _raw_mode(tile) -> str:
    return tile[3] if isinstance(tile[3], str) else tile[3][0]


def _with_raw_mode(tile, mode: str):
    arguments = mode if isinstance(tile[3], str) else (mode, *tile[3][1:])
    # A plain tuple before Pillow 11, a named one since.
    return tile._replace(args=arguments) if hasattr(tile, "_replace") else (*tile[:3], arguments)


def _to_8_bits(values: np.ndarray, path: str | Path) -> np.ndarray:
    if values.dtype == bool:
        return values.astype(np.uint8) * 255
    low, high = values.min(), values.max()
    if values.dtype.kind == "f":
        if not np.isfinite(values).all() or low < 0 or high > 255:
            raise DatasetError(
                f"{path}: floating-point values from {low:g} to {high:g}; a photograph must lie "
                "in [0, 1] or [0, 255]. Save it with 8 bits"
            )
        return np.rint(values * (255 if high <= 1 else 1)).astype(np.uint8)
    for bits in (8, 10, 12, 14, 16):
        if low >= 0 and high < 2**bits:
            return np.rint(values * (255.0 / (2**bits - 1))).astype(np.uint8)
    raise DatasetError(
        f"{path}: whole numbers from {low} to {high} do not fit 16 bits; save it with 8 bits"
    )
