"""Several scales at once: MSCAF, PFF and the CMP-UNet (Gu et al. 2023)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn as nn
import torch.nn.functional as F

from retina_lab.models.attention import CFFA, ChannelAttention, cffa_encoder
from retina_lab.models.unet import EncoderDecoder, check_widths, conv_norm_relu, doubling


class MSCAF(nn.Module):
    """Multi-scale channel adaptive fusion: three dilations side by side, weighed by channel.

    3×3 convolutions with dilation 1, 3 and 5 see 3, 7 and 11 pixels; they give one half, one
    quarter and one quarter of the channels. Channel attention decides which scale counts, a
    1×1 convolution mixes (U-Net slides). The slides multiply each channel by its weight; their
    authors' public code adds the channel once more, so that none can be silenced.

    Args:
        in_channels: channels before.
        out_channels: channels after, a multiple of 4.
        dropout: probability that a number is dropped at the end.
        ratio: of the channel attention.

    Raises:
        ValueError: if the channels after are not a positive multiple of 4.
    """

    def __init__(self, in_channels: int, out_channels: int, dropout: float = 0.0, ratio: int = 8):
        super().__init__()
        if out_channels < 4 or out_channels % 4:
            raise ValueError(f"MSCAF shares out a multiple of 4 channels, not {out_channels}")
        half, quarter = out_channels // 2, out_channels // 4
        self.branches = nn.ModuleList(
            conv_norm_relu(in_channels, channels, 3, dilation, bias=False)
            for channels, dilation in ((half, 1), (quarter, 3), (quarter, 5))
        )
        self.attention = ChannelAttention(out_channels, ratio)
        self.mix = nn.Sequential(
            conv_norm_relu(out_channels, out_channels, 1, bias=False), nn.Dropout(dropout)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, in_channels, H, W) → (N, out_channels, H, W)."""
        scales = torch.cat([branch(x) for branch in self.branches], dim=1)  # N×out×H×W
        return self.mix(self.attention(scales))


class PFF(nn.Module):
    """Pyramid feature fusion: four resolutions brought to the finest one and fused.

    1×1 convolutions reduce the maps to C/8, C/8, C/4 and C/2 channels, the coarsest first;
    bilinear interpolation enlarges them by 8, 4, 2 and 1; MSCAF fuses the concatenation, and
    the finest map is added (U-Net slides).

    Args:
        widths: channels of the four maps, coarsest first. The last is C, a multiple of 8.
        dropout: of the MSCAF.

    Raises:
        ValueError: if there are not four widths, or C is not a positive multiple of 8.
    """

    def __init__(self, widths: Sequence[int], dropout: float = 0.0):
        super().__init__()
        if len(widths) != 4 or widths[-1] < 8 or widths[-1] % 8:
            raise ValueError(f"PFF fuses four maps, the last of 8, 16, … channels, not {widths}")
        channels = widths[-1]
        shares = (channels // 8, channels // 8, channels // 4, channels // 2)
        self.reduce = nn.ModuleList(
            conv_norm_relu(width, share, 1, bias=False)
            for width, share in zip(widths, shares, strict=True)
        )
        self.fuse = MSCAF(channels, channels, dropout)

    def forward(self, maps: Sequence[torch.Tensor]) -> torch.Tensor:
        """Maps of H/8, H/4, H/2 and H pixels → (N, C, H, W)."""
        finest = maps[-1]
        pyramid = [
            F.interpolate(reduce(x), finest.shape[-2:], mode="bilinear", align_corners=False)
            for reduce, x in zip(self.reduce, maps, strict=True)
        ]
        return self.fuse(torch.cat(pyramid, dim=1)) + finest


class CMPUNet(EncoderDecoder):
    """CFFA down the encoder, MSCAF up the decoder, PFF over all of the decoder's maps.

    U-Net slides, after Gu et al. 2023 (Electronics 12, 4743). The slides do not say whose four
    maps PFF fuses; the paper and the public code of the slides' authors give it the decoder's.

    Args:
        widths: channels at five resolutions, the bridge last; all multiples of 8.
        in_channels: channels of the input.
        out_channels: logits a pixel.
        dropout: probability in the decoder and in the PFF.

    Raises:
        ValueError: if there are not five widths, or one is not a positive multiple of 8.
    """

    def __init__(
        self,
        widths: Sequence[int] = (32, 64, 128, 256, 512),
        in_channels: int = 3,
        out_channels: int = 1,
        dropout: float = 0.0,
    ):
        super().__init__()
        *levels, bridge = check_widths(widths, at_least=5, multiple_of=8)
        if len(levels) > 4:
            raise ValueError(f"the pyramid fuses four maps, so there are five widths, not {widths}")
        self.encoder = cffa_encoder(levels, in_channels)
        self.bridge = nn.Sequential(CFFA(levels[-1], bridge), CFFA(bridge, bridge))
        self.up = doubling(widths)
        self.decoder = nn.ModuleList(
            nn.Sequential(
                MSCAF(2 * width, width, dropout), conv_norm_relu(width, width), nn.Dropout(dropout)
            )
            for width in levels[::-1]
        )
        self.pyramid = PFF(levels[::-1], dropout)
        self.head = nn.Conv2d(levels[0], out_channels, kernel_size=1)

    def fuse(self, maps: list[torch.Tensor]) -> torch.Tensor:
        """All of the decoder's maps, through the pyramid."""
        return self.pyramid(maps)
