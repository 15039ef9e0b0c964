"""The generator of M-CAM-GAN: a residual U-Net with linear attention (Yang et al. 2021)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn as nn

from retina_lab.models.rsan import ResidualBlock
from retina_lab.models.unet import EncoderDecoder, check_widths, doubling


class LinearAttention(nn.Module):
    r"""Every pixel looks at every other one, at a cost that grows linearly with their number.

    Ordinary attention of :math:`n` pixels is :math:`\mathrm{softmax}(QK^T)\,V`, with an
    :math:`n × n` matrix in the middle: for a photograph of 512×512 pixels, 69 billion numbers.
    Taking the softmax of both factors separately,

    .. math:: \mathrm{softmax}_d(Q)\;\bigl(\mathrm{softmax}_n(K)^T\,V\bigr),

    over the features of Q and over the pixels of K, leaves a product that may be bracketed from
    the right: the matrix in the middle is :math:`d × d`. Its rows still sum to one, so a pixel
    receives a weighted mean of all values (Shen et al. 2021, arXiv:1812.01243). M-CAM-GAN's text
    credits the Reformer, which saves in another way; its reference 29, Wang's "linear attention
    transformer", is this layer but for a factor that the last convolution can learn. BatchNorm
    before it and the numbers of heads and features are ours. The result is added to the input.

    Args:
        channels: of the maps.
        heads: attentions side by side, each of its own Q, K and V.
        features: d, of each head.
    """

    def __init__(self, channels: int, heads: int = 4, features: int = 16):
        super().__init__()
        self.heads, self.features = heads, features
        self.norm = nn.BatchNorm2d(channels)
        self.to_qkv = nn.Conv2d(channels, 3 * heads * features, kernel_size=1, bias=False)
        self.to_out = nn.Conv2d(heads * features, channels, kernel_size=1)

    def factors(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """(N, C, H, W) → softmaxed Q and K, and V; each (N, heads, HW, features)."""
        n = len(x)
        qkv = self.to_qkv(self.norm(x)).flatten(2)  # N×(3·heads·d)×HW
        q, k, v = qkv.reshape(n, 3, self.heads, self.features, -1).transpose(-1, -2).unbind(1)
        return q.softmax(dim=-1), k.softmax(dim=-2), v

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, C, H, W) → (N, C, H, W)."""
        q, k, v = self.factors(x)
        context = k.transpose(-1, -2) @ v  # N×heads×d×d: what the image holds, by feature
        seen = q @ context  # N×heads×HW×d
        seen = seen.transpose(-1, -2).reshape(len(x), -1, *x.shape[2:])  # N×(heads·d)×H×W
        return x + self.to_out(seen)


class MCAMGenerator(EncoderDecoder):
    """A U-Net of residual blocks, with linear attention on the way down.

    The paper's figure and text give the U-shape, residual blocks and linear attention "in the
    process of downsampling"; number and widths of the levels, and attention in the bridge too,
    are ours.

    Args:
        widths: channels at each resolution, the bridge last; at least two.
        in_channels: channels of the input.
        out_channels: logits a pixel.
        heads: of each attention.
        features: of each head.

    Raises:
        ValueError: if the widths make no sense.
    """

    def __init__(
        self,
        widths: Sequence[int] = (32, 64, 128, 256, 512),
        in_channels: int = 3,
        out_channels: int = 1,
        heads: int = 4,
        features: int = 16,
    ):
        super().__init__()
        *levels, bridge = check_widths(widths)

        def attended(before: int, width: int) -> nn.Module:
            return nn.Sequential(
                ResidualBlock(before, width), LinearAttention(width, heads, features)
            )

        self.encoder = nn.ModuleList(
            attended(before, width)
            for before, width in zip([in_channels, *levels], levels, strict=False)
        )
        self.bridge = attended(levels[-1], bridge)
        self.up = doubling(widths)
        self.decoder = nn.ModuleList(ResidualBlock(2 * width, width) for width in levels[::-1])
        # Pre-activation blocks end in a bare sum: the last one is activated before the head.
        self.head = nn.Sequential(
            nn.BatchNorm2d(levels[0]), nn.ReLU(), nn.Conv2d(levels[0], out_channels, kernel_size=1)
        )
