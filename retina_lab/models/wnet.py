"""The W-Net: two small U-Nets in a row (Galdran et al. 2022, "The little W-Net that could")."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn as nn

from retina_lab.models.unet import EncoderDecoder, check_widths, doubling


def conv_relu_norm(in_channels: int, out_channels: int) -> list[nn.Module]:
    """3×3 convolution, LeakyReLU and only then BatchNorm: the order of this network."""
    return [
        nn.Conv2d(in_channels, out_channels, kernel_size=3, padding=1),
        nn.LeakyReLU(),
        nn.BatchNorm2d(out_channels),
    ]


class ShortcutBlock(nn.Module):
    """Two convolutions beside a 1×1 convolution with BatchNorm; both are added."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.body = nn.Sequential(
            *conv_relu_norm(in_channels, out_channels), *conv_relu_norm(out_channels, out_channels)
        )
        self.shortcut = nn.Sequential(
            nn.Conv2d(in_channels, out_channels, kernel_size=1, bias=False),
            nn.BatchNorm2d(out_channels),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, in_channels, H, W) → (N, out_channels, H, W)."""
        return self.body(x) + self.shortcut(x)


class BridgedSkip(nn.Module):
    """A decoder block of the W-Net: the skip goes through a convolution of its own first."""

    def __init__(self, width: int):
        super().__init__()
        self.bridge = nn.Sequential(*conv_relu_norm(width, width))
        self.block = ShortcutBlock(2 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, 2·width, H, W), the skip first → (N, width, H, W)."""
        skip, up = x.chunk(2, dim=1)
        return self.block(torch.cat([up, self.bridge(skip)], dim=1))


class LittleUNet(EncoderDecoder):
    """One half of the W-Net: a U-Net with shortcuts and convolutions on its skips.

    With the default widths and three input channels it has 34,201 parameters.

    Args:
        widths: channels at each resolution, the bridge last; at least two.
        in_channels: channels of the input.
        out_channels: logits a pixel.
    """

    def __init__(
        self, widths: Sequence[int] = (8, 16, 32), in_channels: int = 3, out_channels: int = 1
    ):
        super().__init__()
        *levels, bridge = check_widths(widths)
        self.encoder = nn.ModuleList(
            ShortcutBlock(before, width)
            for before, width in zip([in_channels, *levels], levels, strict=False)
        )
        self.bridge = ShortcutBlock(levels[-1], bridge)
        self.up = doubling(widths)
        self.decoder = nn.ModuleList(BridgedSkip(width) for width in levels[::-1])
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
                nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="leaky_relu")
        self.head = nn.Conv2d(levels[0], out_channels, kernel_size=1)


class WNet(nn.Module):
    """Two U-Nets in a row: the second sees the image and the logits of the first.

    With the default widths it has 68,482 parameters. In training it returns the logits of
    both, and the loss is taken of both; in eval mode those of the second.

    Args:
        widths: channels at each resolution of both halves.
        in_channels: channels of the input.
        out_channels: logits a pixel.
    """

    def __init__(
        self, widths: Sequence[int] = (8, 16, 32), in_channels: int = 3, out_channels: int = 1
    ):
        super().__init__()
        self.first = LittleUNet(widths, in_channels, out_channels)
        self.second = LittleUNet(widths, in_channels + out_channels, out_channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        """(N, 3, H, W) → logits (N, 1, H, W); in training a pair, the final ones first."""
        draft = self.first(x)
        final = self.second(torch.cat([x, draft], dim=1))
        return (final, draft) if self.training else final
