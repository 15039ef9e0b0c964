"""Deformable convolution: bilinear sampling, learned offsets, and the deformable U-Nets.

``bilinear_sample_by_hand`` → ``bilinear_sample_vectorised`` → ``bilinear_sample`` →
``ConvOffset2D`` and ``DeformConv2d`` → the networks: each step uses the one before, or is tested
to be equal to it.

Coordinates are (y, x) in pixels, (0, 0) the centre of the first pixel. They stay in float32
under mixed precision: bfloat16 has 8 significant bits, so it takes 200.4 for 200 and 301 for 300.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn as nn
import torch.nn.functional as F

from retina_lab.models.unet import DoubleConv, EncoderDecoder, check_widths, doubling


def bilinear_sample_by_hand(image: torch.Tensor, y: float, x: float) -> float:
    """The value of an image between its pixels, by the sum over all of them.

    image(p) = Σ_q max(0, 1 − |q_y − y|) · max(0, 1 − |q_x − x|) · image(q); at most four
    pixels have a weight above zero (Dai et al. 2017, equations 3 and 4; U-Net slides).

    Args:
        image: (H, W).
        y: row, anywhere; positions outside are moved to the nearest edge.
        x: column, likewise.
    """
    height, width = image.shape
    y, x = min(max(y, 0.0), height - 1.0), min(max(x, 0.0), width - 1.0)
    total = 0.0
    for row in range(height):
        for column in range(width):
            weight = max(0.0, 1 - abs(row - y)) * max(0.0, 1 - abs(column - x))
            total += weight * float(image[row, column])
    return total


def bilinear_sample_vectorised(x: torch.Tensor, coordinates: torch.Tensor) -> torch.Tensor:
    """The same for all channels and positions at once: four neighbours, four weights.

    It is here to be read; :func:`bilinear_sample` is faster and gives the same.

    Args:
        x: (N, C, H, W).
        coordinates: (N, 2, H′, W′) rows and columns in pixels, the same for all channels.
            Positions outside are moved to the nearest edge.

    Returns:
        (N, C, H′, W′), with gradients for both arguments.
    """
    _, channels, height, width = x.shape
    row, column = coordinates[:, 0].clamp(0, height - 1), coordinates[:, 1].clamp(0, width - 1)
    top, left = row.detach().floor(), column.detach().floor()  # N×H′×W′
    bottom, right = (top + 1).clamp(max=height - 1), (left + 1).clamp(max=width - 1)
    down, along = (row - top)[:, None], (column - left)[:, None]  # N×1×H′×W′, in [0, 1)

    def at(rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
        index = (rows * width + columns).long().flatten(1)[:, None].expand(-1, channels, -1)
        return x.flatten(2).gather(2, index).unflatten(2, row.shape[1:])  # N×C×H′×W′

    upper = (1 - along) * at(top, left) + along * at(top, right)
    lower = (1 - along) * at(bottom, left) + along * at(bottom, right)
    return (1 - down) * upper + down * lower


def bilinear_sample(x: torch.Tensor, coordinates: torch.Tensor) -> torch.Tensor:
    """Values of maps between their pixels, in one call to the library's ``grid_sample``.

    Args:
        x: (N, C, H, W).
        coordinates: (N, 2, H′, W′) rows and columns in pixels, the same for all channels.
            Positions outside are moved to the nearest edge.

    Returns:
        (N, C, H′, W′), with gradients for both arguments.
    """
    grid = sampling_grid(coordinates, x.shape[-2:])
    return F.grid_sample(x, grid, padding_mode="border", align_corners=False)


def sampling_grid(coordinates: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    """Pixel coordinates as ``grid_sample`` wants them: (x, y) last, −1 … 1 across the image.

    The ends are the outer edges of the border pixels (``align_corners=False``): with their
    centres instead, a map that is one pixel wide would have no extent to measure by.

    Args:
        coordinates: (N, 2, H′, W′) rows and columns in pixels.
        size: H and W of the image that is sampled.

    Returns:
        (N, H′, W′, 2).
    """
    height, width = size
    y, x = coordinates.unbind(dim=1)
    return torch.stack([(2 * x + 1) / width - 1, (2 * y + 1) / height - 1], dim=-1)


def at_least_float32(x: torch.Tensor) -> torch.Tensor:
    """Half-precision tensors in float32, others as they are."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def pixel_positions(height: int, width: int, device: torch.device | None = None) -> torch.Tensor:
    """(2, H, W): the row and the column of every pixel."""
    rows = torch.arange(height, dtype=torch.float32, device=device)
    columns = torch.arange(width, dtype=torch.float32, device=device)
    return torch.stack(torch.meshgrid(rows, columns, indexing="ij"))


class ConvOffset2D(nn.Module):
    """Moves every pixel of every channel by an offset of its own, found by a convolution.

    A 3×3 convolution without bias makes two numbers for each channel, Δy and Δx; the output
    at p is the input at p + Δp, bilinearly (U-Net slides, after Dai et al. 2017). The output
    goes into an ordinary convolution.

    Channels 2c and 2c + 1 of the offsets belong to channel c. The public code that the slides
    build on reshapes (2C, H, W) to (C, H, W, 2), which pairs neighbouring *pixels* instead.
    The layer has 18 C² parameters.

    Args:
        channels: C.
        deviation: of the normal distribution that the weights start from.
    """

    def __init__(self, channels: int, deviation: float = 0.01):
        super().__init__()
        self.conv = nn.Conv2d(channels, 2 * channels, kernel_size=3, padding=1, bias=False)
        nn.init.normal_(self.conv.weight, std=deviation)

    def offsets(self, x: torch.Tensor) -> torch.Tensor:
        """(N, C, H, W) → (N, C, 2, H, W): Δy and Δx of every pixel and channel, in pixels."""
        n, channels, height, width = x.shape
        return at_least_float32(self.conv(x)).view(n, channels, 2, height, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, C, H, W) → (N, C, H, W)."""
        n, channels, height, width = x.shape
        positions = pixel_positions(height, width, x.device)  # 2×H×W
        coordinates = (positions + self.offsets(x)).flatten(0, 1)  # N·C×2×H×W
        maps = at_least_float32(x).reshape(n * channels, 1, height, width)
        return bilinear_sample(maps, coordinates).view(n, channels, height, width).to(x.dtype)


class DeformConv2d(nn.Module):
    """Convolution whose taps have moved, each by an offset of its own (Dai et al. 2017).

    An ordinary convolution finds 2k² numbers a pixel, Δy and Δx of each of the k² taps, the
    same for all channels; the kernel is then applied to the values found there, zero outside
    the image. The offsets start at zero, and with them this is an ordinary convolution.

    It agrees with ``torchvision.ops.deform_conv2d``, and so does the order of its offsets.

    Args:
        in_channels: channels before.
        out_channels: channels after.
        kernel_size: k, odd.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int = 3):
        super().__init__()
        if kernel_size < 1 or kernel_size % 2 == 0:
            raise ValueError(f"kernel_size must be odd and positive, not {kernel_size}")
        self.offset = nn.Conv2d(
            in_channels, 2 * kernel_size**2, kernel_size, padding=kernel_size // 2
        )
        nn.init.zeros_(self.offset.weight)
        nn.init.zeros_(self.offset.bias)
        self.weight = nn.Parameter(torch.empty(out_channels, in_channels, kernel_size, kernel_size))
        self.bias = nn.Parameter(torch.empty(out_channels))
        nn.init.kaiming_uniform_(self.weight, a=math.sqrt(5))  # as nn.Conv2d starts
        bound = 1 / math.sqrt(in_channels * kernel_size**2)
        nn.init.uniform_(self.bias, -bound, bound)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, in_channels, H, W) → (N, out_channels, H, W)."""
        return deform_conv2d(x, self.offset(x), self.weight, self.bias)


def deform_conv2d(
    x: torch.Tensor, offset: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor
) -> torch.Tensor:
    """Apply a kernel at displaced taps.

    Args:
        x: (N, C, H, W).
        offset: (N, 2k², H, W) in pixels: Δy and Δx of the first tap, of the second, …
        weight: (C′, C, k, k), k odd.
        bias: (C′,).

    Returns:
        (N, C′, H, W).
    """
    n, _, height, width = x.shape
    side = weight.shape[-1]
    taps = pixel_positions(side, side, x.device) - side // 2  # 2×k×k; −1, 0, 1 for k = 3
    taps = taps.flatten(1).T[None, :, :, None, None]  # 1×k²×2×1×1
    positions = pixel_positions(height, width, x.device)  # 2×H×W
    moved = at_least_float32(offset).view(n, side**2, 2, height, width)
    coordinates = positions + taps + moved  # N×k²×2×H×W
    # All taps in one call: they lie below each other in one tall picture.
    tall = coordinates.transpose(1, 2).reshape(n, 2, side**2 * height, width)
    grid = sampling_grid(tall, (height, width))
    values = F.grid_sample(
        at_least_float32(x), grid, padding_mode="zeros", align_corners=False
    )  # N×C×k²H×W
    values = values.unflatten(2, (side**2, height)).flatten(1, 2)  # N×Ck²×H×W
    return F.conv2d(values.to(x.dtype), weight.reshape(len(weight), -1, 1, 1), bias)


class OffsetConv(nn.Sequential):
    """A convolution that sees its input displaced by :class:`ConvOffset2D`."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__(
            ConvOffset2D(in_channels), nn.Conv2d(in_channels, out_channels, 3, padding=1)
        )


Conv = Callable[[int, int], nn.Module]


def double_conv(in_channels: int, out_channels: int, first: Conv, second: Conv) -> nn.Sequential:
    """Two convolutions of any kind, each followed by BatchNorm and ReLU."""
    layers: list[nn.Module] = []
    for before, conv in ((in_channels, first), (out_channels, second)):
        layers += [conv(before, out_channels), nn.BatchNorm2d(out_channels), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)


DEFORMED = (1, 2)  # the encoder's second and third level, counted from the finest
DEFORMED_UP = (0, 1)  # the decoder's two finest, as in the last version of DUNet's code


class DeformableEncoderUNet(EncoderDecoder):
    """U-Net with deformable convolutions in the second and third level of its encoder.

    With the default widths it has 32,886,721 trainable parameters and 32,898,497 in all, as
    the U-Net slides report: a U-Net with BatchNorm after every convolution, and a
    ``ConvOffset2D`` before each convolution of the two levels, on 64, 128, 128 and 256
    channels.

    Args:
        widths: channels at each resolution, the bridge last; at least four.
        in_channels: channels of the input.
        out_channels: logits a pixel.
        conv: the deformable convolution: :class:`OffsetConv` or :class:`DeformConv2d`.

    Raises:
        ValueError: if there are fewer than four widths or one is not positive.
    """

    def __init__(
        self,
        widths: Sequence[int] = (64, 128, 256, 512, 1024),
        in_channels: int = 3,
        out_channels: int = 1,
        conv: Conv = OffsetConv,
    ):
        super().__init__()
        *levels, bridge = check_widths(widths, at_least=4)
        before = [in_channels, *levels]
        self.encoder = nn.ModuleList(
            double_conv(before[i], width, conv, conv)
            if i in DEFORMED
            else DoubleConv(before[i], width)
            for i, width in enumerate(levels)
        )
        self.bridge = DoubleConv(levels[-1], bridge)
        self.up = doubling(widths)
        self.decoder = nn.ModuleList(DoubleConv(2 * width, width) for width in levels[::-1])
        self.head = nn.Conv2d(levels[0], out_channels, kernel_size=1)


class DUNet(DeformableEncoderUNet):
    """The deformable encoder, and offsets in the decoder too (U-Net slides, after Jin et al. 2019).

    With the default widths it has 34,729,921 trainable parameters and 34,741,697 in all. The
    slides give the counts but not the places of the decoder's offsets. Before each convolution of
    its two finest levels, on 256, 128, 128 and 64 channels, they meet both counts, and the public
    code of Jin et al. deforms the same two levels.

    Arguments and errors as in :class:`DeformableEncoderUNet`.
    """

    def __init__(
        self,
        widths: Sequence[int] = (64, 128, 256, 512, 1024),
        in_channels: int = 3,
        out_channels: int = 1,
        conv: Conv = OffsetConv,
    ):
        super().__init__(widths, in_channels, out_channels, conv)
        *levels, _ = widths
        for i in DEFORMED_UP:
            place = len(levels) - 1 - i  # the decoder counts from the coarsest
            self.decoder[place] = double_conv(2 * levels[i], levels[i], conv, conv)


class DUNet9(DUNet):
    """The same levels with the 9-point deformable convolution.

    This is the layer that Jin et al. 2019 (DUNet) and Dai et al. 2017 use: nine offsets a
    pixel that all channels share, where ``ConvOffset2D`` has one for each channel.

    Arguments and errors as in :class:`DUNet`.
    """

    def __init__(
        self,
        widths: Sequence[int] = (64, 128, 256, 512, 1024),
        in_channels: int = 3,
        out_channels: int = 1,
    ):
        super().__init__(widths, in_channels, out_channels, conv=DeformConv2d)
