"""Attention for vessels: channel and spatial attention, CBAM, CFFA and the CBAM-UNet."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn as nn

from retina_lab.models.unet import (
    DoubleConv,
    EncoderDecoder,
    check_widths,
    conv_norm_relu,
    doubling,
)


class ChannelAttention(nn.Module):
    """Weighs each channel by a number in (0, 1): *what* to look at.

    The mean and the maximum of every channel go through one shared two-layer perceptron; the
    sigmoid of the sum of both answers is the weight (Woo et al. 2018, equation 2).

    The bias of the second layer enters that sum twice, because the perceptron is used twice.

    Args:
        channels: C.
        ratio: how many times narrower the hidden layer is; the slides use 8.
    """

    def __init__(self, channels: int, ratio: int = 8):
        super().__init__()
        hidden = max(1, channels // ratio)
        self.perceptron = nn.Sequential(
            nn.Linear(channels, hidden), nn.ReLU(), nn.Linear(hidden, channels)
        )
        for layer in (self.perceptron[0], self.perceptron[2]):
            nn.init.kaiming_normal_(layer.weight)
            nn.init.zeros_(layer.bias)

    def weights(self, x: torch.Tensor) -> torch.Tensor:
        """(N, C, H, W) → weights (N, C, 1, 1) in (0, 1)."""
        mean = self.perceptron(x.mean(dim=(2, 3)))  # N×C
        largest = self.perceptron(x.amax(dim=(2, 3)))  # N×C
        return torch.sigmoid(mean + largest)[:, :, None, None]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, C, H, W) → (N, C, H, W)."""
        return x * self.weights(x)


class SpatialAttention(nn.Module):
    """Weighs each pixel by a number in (0, 1): *where* to look.

    The maximum and the mean over the channels are two maps; a convolution without bias makes
    one of them, its sigmoid is the weight (RSAN, equations 2 to 4). With the 7×7 kernel of
    the sources it has 7 · 7 · 2 = 98 parameters, however many channels there are. They start as
    PyTorch's do, smaller than by the he_normal of the sources.

    Args:
        kernel_size: side of the convolution, odd.
    """

    def __init__(self, kernel_size: int = 7):
        super().__init__()
        if kernel_size < 1 or kernel_size % 2 == 0:
            raise ValueError(f"kernel_size must be odd and positive, not {kernel_size}")
        self.conv = nn.Conv2d(2, 1, kernel_size, padding=kernel_size // 2, bias=False)

    def weights(self, x: torch.Tensor) -> torch.Tensor:
        """(N, C, H, W) → weights (N, 1, H, W) in (0, 1)."""
        largest, mean = x.amax(dim=1, keepdim=True), x.mean(dim=1, keepdim=True)
        return torch.sigmoid(self.conv(torch.cat([largest, mean], dim=1)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, C, H, W) → (N, C, H, W)."""
        return x * self.weights(x)


class CBAM(nn.Sequential):
    """Convolutional block attention module: channel attention, then spatial attention.

    Woo et al. 2018 (arXiv:1807.06521). (N, C, H, W) → (N, C, H, W).

    Args:
        channels: C.
        ratio: of the channel attention.
    """

    def __init__(self, channels: int, ratio: int = 8):
        super().__init__(ChannelAttention(channels, ratio), SpatialAttention())


class CFFA(nn.Module):
    """Coarse and fine feature aggregation: a small window beside a wide one.

    The fine branch is a 3×1 and then a 1×3 convolution (together they see 3×3 pixels), the
    coarse one a 7×7 and a 1×1; a 1×1 convolution mixes both (U-Net slides, after Gu et al. 2023).

    Args:
        in_channels: channels before.
        out_channels: channels of each branch and of the result.
    """

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.fine = nn.Sequential(
            conv_norm_relu(in_channels, out_channels, (3, 1)),
            conv_norm_relu(out_channels, out_channels, (1, 3)),
        )
        self.coarse = nn.Sequential(
            conv_norm_relu(in_channels, out_channels, 7),
            conv_norm_relu(out_channels, out_channels, 1),
        )
        self.mix = conv_norm_relu(2 * out_channels, out_channels, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, in_channels, H, W) → (N, out_channels, H, W)."""
        both = torch.cat([self.fine(x), self.coarse(x)], dim=1)  # N×2·out×H×W
        return self.mix(both)


def cffa_encoder(widths: Sequence[int], in_channels: int) -> nn.ModuleList:
    """Encoder of CBAM-UNet and CMP-UNet: 3×3 convolutions at full size, two CFFA below it."""
    blocks: list[nn.Module] = [DoubleConv(in_channels, widths[0])]
    for before, width in pairwise(widths):
        blocks.append(nn.Sequential(CFFA(before, width), CFFA(width, width)))
    return nn.ModuleList(blocks)


class CBAMUNet(EncoderDecoder):
    """A U-Net with CFFA blocks down the encoder and CBAM in the bridge (U-Net slides).

    The slides say no more. Its widths, the two 3×3 convolutions at full size, the two CFFA at each
    level below and the place of the CBAM are our choice.

    Args:
        widths: channels at each resolution, the bridge last; at least two.
        in_channels: channels of the input.
        out_channels: logits a pixel.
        ratio: of the channel attention.

    Raises:
        ValueError: if there are fewer than two widths or one is not positive.
    """

    def __init__(
        self,
        widths: Sequence[int] = (16, 32, 64, 128),
        in_channels: int = 3,
        out_channels: int = 1,
        ratio: int = 8,
    ):
        super().__init__()
        *levels, bridge = check_widths(widths)
        self.encoder = cffa_encoder(levels, in_channels)
        self.bridge = nn.Sequential(
            conv_norm_relu(levels[-1], bridge),
            CBAM(bridge, ratio),
            conv_norm_relu(bridge, bridge),
        )
        self.up = doubling(widths)
        self.decoder = nn.ModuleList(DoubleConv(2 * width, width) for width in levels[::-1])
        self.head = nn.Conv2d(levels[0], out_channels, kernel_size=1)
