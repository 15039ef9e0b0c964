"""The U-Net (Ronneberger, Fischer and Brox 2015, arXiv:1505.04597)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn as nn
import torch.nn.functional as F


def pad_to_multiple(x: torch.Tensor, multiple: int) -> torch.Tensor:
    """Repeat the last row and column until height and width divide by ``multiple``.

    Args:
        x: (N, C, H, W), H and W at least 1.
        multiple: 2^depth of a network that halves its maps depth times.

    Returns:
        (N, C, H′, W′), H′ ≥ H and W′ ≥ W the next multiples. The original lies at the top
        left, so ``[..., :H, :W]`` undoes the padding.
    """
    height, width = x.shape[-2:]
    return F.pad(x, (0, -width % multiple, 0, -height % multiple), mode="replicate")


def conv_norm_relu(
    in_channels: int,
    out_channels: int,
    kernel_size: int | tuple[int, int] = 3,
    dilation: int = 1,
    bias: bool = True,
) -> nn.Sequential:
    """Convolution that keeps height and width, BatchNorm, ReLU.

    Args:
        in_channels: channels before.
        out_channels: channels after.
        kernel_size: odd side, or odd height and width.
        dilation: distance between the taps of the kernel in pixels.
        bias: a bias in the convolution. BatchNorm makes it idle; some sources have it.
    """
    return nn.Sequential(
        nn.Conv2d(
            in_channels, out_channels, kernel_size, padding="same", dilation=dilation, bias=bias
        ),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(inplace=True),
    )


class DoubleConv(nn.Sequential):
    """Two 3×3 convolutions with bias, each followed by BatchNorm (unless off) and ReLU.

    (N, in_channels, H, W) → (N, out_channels, H, W).
    """

    def __init__(self, in_channels: int, out_channels: int, batch_norm: bool = True):
        layers: list[nn.Module] = []
        for channels in (in_channels, out_channels):
            layers.append(nn.Conv2d(channels, out_channels, kernel_size=3, padding=1))
            if batch_norm:
                layers.append(nn.BatchNorm2d(out_channels))
            layers.append(nn.ReLU(inplace=True))
        super().__init__(*layers)


class EncoderDecoder(nn.Module):
    """The U itself: what every U-shaped network of the course shares.

    A subclass builds five parts and says with them which network it is:

    * ``encoder``: one block a level, finest first; the maps are halved after each;
    * ``bridge``: the block at the lowest resolution;
    * ``up``: one layer a level, coarsest first, that doubles the maps;
    * ``decoder``: one block a level, coarsest first, for the concatenation of the encoder's
      map and the doubled one;
    * ``head``: from the finest map to logits.
    """

    encoder: nn.ModuleList
    bridge: nn.Module
    up: nn.ModuleList
    decoder: nn.ModuleList
    head: nn.Module

    def decoder_maps(self, x: torch.Tensor) -> list[torch.Tensor]:
        """The decoder's maps, coarsest first.

        Args:
            x: (N, 3, H, W), H and W divisible by 2^depth.
        """
        skips, maps = [], []
        for block in self.encoder:
            x = block(x)  # N×w_i×H/2^i×W/2^i
            skips.append(x)
            x = F.max_pool2d(x, 2)
        x = self.bridge(x)  # N×w_last×H/2^depth×W/2^depth
        for up, block in zip(self.up, self.decoder, strict=True):
            x = torch.cat([skips.pop(), up(x)], dim=1)  # N×2w_i×H/2^i×W/2^i
            x = block(x)  # N×w_i×H/2^i×W/2^i
            maps.append(x)
        return maps

    def fuse(self, maps: list[torch.Tensor]) -> torch.Tensor:
        """What the head sees: the finest of the decoder's maps."""
        return maps[-1]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, 3, H, W) of any height and width → logits (N, 1, H, W)."""
        height, width = x.shape[-2:]
        x = pad_to_multiple(x, 2 ** len(self.encoder))
        return self.head(self.fuse(self.decoder_maps(x)))[..., :height, :width]


def check_widths(widths: Sequence[int], at_least: int = 2, multiple_of: int = 1) -> tuple[int, ...]:
    """The channels of each resolution as a tuple, checked.

    Raises:
        ValueError: if there are too few, or one is not positive or not a multiple.
    """
    widths = tuple(widths)
    if len(widths) < at_least or any(w < 1 or w % multiple_of for w in widths):
        kind = f"multiples of {multiple_of}" if multiple_of > 1 else "positive"
        raise ValueError(f"this network needs at least {at_least} widths, all {kind}; not {widths}")
    return widths


def doubling(widths: Sequence[int]) -> nn.ModuleList:
    """Transposed 2×2 convolutions, coarsest first: each doubles the maps of the width below."""
    return nn.ModuleList(
        nn.ConvTranspose2d(below, width, kernel_size=2, stride=2)
        for below, width in zip(widths[:0:-1], widths[-2::-1], strict=True)
    )


class UNet(EncoderDecoder):
    """Encoder and decoder joined by skip connections at every resolution.

    Each encoder level is a :class:`DoubleConv` and a 2×2 max-pooling; each decoder level a
    transposed 2×2 convolution, concatenation with the encoder's map and a
    :class:`DoubleConv`. A 1×1 convolution makes the logits. With the default widths it has
    the 31,039,425 trainable parameters that the U-Net slides report; the figure is met when
    BatchNorm follows every convolution except the two of the bridge.

    Args:
        widths: channels at each resolution, the bridge last. Its length less one is the
            depth, the number of times that the maps are halved.
        in_channels: channels of the input.
        out_channels: logits a pixel.
        bridge_norm: BatchNorm in the bridge too.

    Raises:
        ValueError: if there are fewer than two widths or one is not positive.
    """

    def __init__(
        self,
        widths: Sequence[int] = (64, 128, 256, 512, 1024),
        in_channels: int = 3,
        out_channels: int = 1,
        bridge_norm: bool = False,
    ):
        super().__init__()
        widths = check_widths(widths)
        self.widths = widths
        *levels, bridge = widths
        self.encoder = nn.ModuleList(
            DoubleConv(before, width)
            for before, width in zip([in_channels, *levels], levels, strict=False)
        )
        self.bridge = DoubleConv(levels[-1], bridge, batch_norm=bridge_norm)
        self.up = doubling(widths)
        self.decoder = nn.ModuleList(DoubleConv(2 * width, width) for width in levels[::-1])
        self.head = nn.Conv2d(widths[0], out_channels, kernel_size=1)


class VGANGenerator(UNet):
    """The generator of V-GAN and MI-GAN: maps are doubled by repeating their pixels.

    Son, Park and Jung 2017 (arXiv:1706.09318) and their code; Iqbal and Ali 2018. No layer
    narrows the doubled maps, so that a decoder's first convolution sees both widths together.

    Args:
        widths: channels at each resolution, the bridge last; at least two.
        in_channels: channels of the input.
        out_channels: logits a pixel.

    Raises:
        ValueError: if there are fewer than two widths or one is not positive.
    """

    def __init__(
        self,
        widths: Sequence[int] = (32, 64, 128, 256, 512),
        in_channels: int = 3,
        out_channels: int = 1,
    ):
        super().__init__(widths, in_channels, out_channels, bridge_norm=True)
        *levels, bridge = widths
        self.up = nn.ModuleList(nn.Upsample(scale_factor=2) for _ in levels)
        self.decoder = nn.ModuleList(
            DoubleConv(below + width, width)
            for below, width in zip([bridge, *levels[:0:-1]], levels[::-1], strict=True)
        )
