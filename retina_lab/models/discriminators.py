"""Discriminators: is this vessel map an observer's or a network's?

V-GAN: Son, Park and Jung 2017, arXiv:1706.09318. MI-GAN: Iqbal and Ali 2018. M-CAM-GAN: Yang et
al. 2021.

All of them take the photograph and a vessel map, stacked, and return a tuple of verdicts: maps
of numbers, large for "real". They differ in how much each verdict sees.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn as nn


def _conv_norm(in_channels: int, out_channels: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, 3, stride, padding=1),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(),
    )


def _trunk(in_channels: int, width: int, strides: tuple[int, ...]) -> nn.Sequential:
    """Stages of two 3×3 convolutions, doubling the width, with 2×2 max-pooling between them.

    Args:
        in_channels: of the input.
        width: channels of the first stage.
        strides: of the first convolution of each stage.
    """
    layers: list[nn.Module] = []
    before = in_channels
    for level, stride in enumerate(strides):
        after = width * 2**level
        if level:
            layers.append(nn.MaxPool2d(2))
        layers += [_conv_norm(before, after, stride), _conv_norm(after, after)]
        before = after
    return nn.Sequential(*layers)


class Discriminator(nn.Module):
    """What V-GAN's four discriminators share: a trunk and a head over the stacked pair.

    Attributes:
        smallest: least height and width of an image in pixels.
    """

    trunk: nn.Sequential
    head: nn.Module
    smallest: int = 1

    def forward(self, image: torch.Tensor, vessels: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """(N, 3, H, W) normalised and (N, 1, H, W) in [0, 1] → one map of verdicts (N, 1, h, w).

        Raises:
            ValueError: if the image is too small for the network.
        """
        check_pair(image, vessels, self.smallest)
        pair = torch.cat([image, vessels], dim=1)  # N×4×H×W
        return (self.head(self.trunk(pair)),)


def check_pair(image: torch.Tensor, vessels: torch.Tensor, smallest: int) -> None:
    """Raise ValueError if a discriminator cannot take this image with this map."""
    if image.shape[0] != vessels.shape[0] or image.shape[2:] != vessels.shape[2:]:
        raise ValueError(
            f"image {tuple(image.shape)} and vessels {tuple(vessels.shape)} do not make a pair"
        )
    if min(image.shape[2:]) < smallest:
        raise ValueError(
            f"this discriminator needs images of at least {smallest}×{smallest} pixels, "
            f"not {image.shape[2]}×{image.shape[3]}"
        )


class PixelDiscriminator(Discriminator):
    """A verdict for every pixel, on what 7×7 pixels show.

    Three 3×3 convolutions with LeakyReLU, without BatchNorm, and a 1×1 convolution (V-GAN).

    Args:
        width: channels of the first layer; the others have twice and four times as many.
        in_channels: of photograph and map together.
    """

    def __init__(self, width: int = 32, in_channels: int = 4):
        super().__init__()
        layers: list[nn.Module] = []
        before = in_channels
        for after in (width, 2 * width, 4 * width):
            layers += [nn.Conv2d(before, after, 3, padding=1), nn.LeakyReLU(0.2)]
            before = after
        self.trunk = nn.Sequential(*layers)
        self.head = nn.Conv2d(4 * width, 1, kernel_size=1)


class Patch2Discriminator(Discriminator):
    """A verdict for every eighth pixel, on 61×61 pixels: 80×80 verdicts on 640×640 (V-GAN).

    Args:
        width: channels of the first of three stages.
        in_channels: of photograph and map together.
    """

    smallest = 8

    def __init__(self, width: int = 32, in_channels: int = 4):
        super().__init__()
        self.trunk = _trunk(in_channels, width, strides=(2, 1, 1))
        self.head = nn.Conv2d(4 * width, 1, kernel_size=1)


class Patch1Discriminator(Discriminator):
    """A verdict for every 64th pixel, on 537×537 pixels: 10×10 verdicts on 640×640 (V-GAN).

    Named as in MI-GAN's table 1; V-GAN's code calls this one patch2 and the other patch1.

    Args:
        width: channels of the first of five stages.
        in_channels: of photograph and map together.
    """

    smallest = 64

    def __init__(self, width: int = 32, in_channels: int = 4):
        super().__init__()
        self.trunk = _trunk(in_channels, width, strides=(2, 2, 1, 1, 1))
        self.head = nn.Conv2d(16 * width, 1, kernel_size=1)


class ImageDiscriminator(Patch1Discriminator):
    """One verdict for the whole image: patch-1's trunk, its global average, a linear layer (V-GAN).

    Args:
        width: channels of the first of five stages.
        in_channels: of photograph and map together.
    """

    def __init__(self, width: int = 32, in_channels: int = 4):
        super().__init__(width, in_channels)
        self.head = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            nn.Conv2d(16 * width, 1, kernel_size=1),  # of a 1×1 map: a linear layer
        )


class CAMAttention(nn.Module):
    """Class activation mapping as attention: look where the evidence lies.

    A linear classifier over the global average of the maps says real or fake. Its weights tell
    what each map speaks for, so their weighted sum is a picture of the evidence (Zhou et al.
    2016, equation 2). Here the maps are multiplied by those weights before they go on, and a
    1×1 convolution mixes them. M-CAM-GAN does not say how its attention is applied; this is the
    form of U-GAT-IT (Kim et al. 2020), with Zhou's average pooling.

    Args:
        channels: of the maps.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.classifier = nn.Linear(channels, 1, bias=False)
        self.mix = nn.Sequential(nn.Conv2d(channels, channels, 1), nn.LeakyReLU(0.2))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(N, C, H, W) → the attended maps (N, C, H, W) and the verdict (N, 1, 1, 1)."""
        verdict = self.classifier(x.mean(dim=(2, 3)))  # N×1
        weights = self.classifier.weight[:, :, None, None]  # 1×C×1×1
        return self.mix(x * weights), verdict[:, :, None, None]

    def activation_map(self, x: torch.Tensor) -> torch.Tensor:
        """(N, C, H, W) → the evidence for "real" at every place, (N, 1, H, W).

        Its average over the image is the verdict.
        """
        return (x * self.classifier.weight[:, :, None, None]).sum(dim=1, keepdim=True)


class MultiScaleCAMDiscriminator(nn.Module):
    """M-CAM-GAN's discriminator: three scales, at each class activation mapping and a classifier.

    C0 judges at full size, on 5×5 pixels. C1 works on maps of a sixteenth of the size, where a
    verdict sees 126×126 pixels, C2 on a thirty-second, where it sees 254×254: the paper's
    128 and 256 as near as these layers come. Each scale gives two verdicts, that of its class
    activation mapping (for the whole image) and that of its own classifier (a map).

    The paper's figure and text fix what is stacked, the three scales, their fields and CAM at
    each; depths and widths are ours.

    Args:
        width: channels at full size; they double with each halving, up to eight times as many.
        in_channels: of photograph and map together.
    """

    smallest = 128

    def __init__(self, width: int = 32, in_channels: int = 4):
        super().__init__()
        w = [width, 2 * width, 4 * width, 8 * width, 8 * width, 8 * width]

        def conv(before: int, after: int) -> list[nn.Module]:
            return [nn.Conv2d(before, after, 3, padding=1), nn.LeakyReLU(0.2)]

        def down(before: int, after: int) -> list[nn.Module]:
            halve = nn.Conv2d(before, after, 4, stride=2, padding=1)
            return [halve, nn.BatchNorm2d(after), nn.LeakyReLU(0.2)]

        self.stages = nn.ModuleList(
            [
                nn.Sequential(*conv(in_channels, w[0]), *conv(w[0], w[0])),
                nn.Sequential(
                    *down(w[0], w[1]), *conv(w[1], w[1]), *down(w[1], w[2]), *conv(w[2], w[2]),
                    *down(w[2], w[3]), *conv(w[3], w[3]), *down(w[3], w[4]),
                ),
                nn.Sequential(*conv(w[4], w[4]), *down(w[4], w[5])),
            ]
        )  # fmt: skip
        channels = (w[0], w[4], w[5])
        self.attention = nn.ModuleList(CAMAttention(c) for c in channels)
        self.classifiers = nn.ModuleList(
            nn.Conv2d(c, 1, side) for c, side in zip(channels, (1, 4, 4), strict=True)
        )

    def forward(self, image: torch.Tensor, vessels: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """(N, 3, H, W) and (N, 1, H, W) → six maps of verdicts, (N, 1, h, w) each.

        Scale by scale, first the verdict of the class activation mapping, then the classifier's.

        Raises:
            ValueError: if the image is too small for the network.
        """
        check_pair(image, vessels, self.smallest)
        x = torch.cat([image, vessels], dim=1)  # N×4×H×W
        verdicts = []
        for stage, attention, classifier in zip(
            self.stages, self.attention, self.classifiers, strict=True
        ):
            x, verdict = attention(stage(x))
            verdicts += [verdict, classifier(x)]
        return tuple(verdicts)

    def activation_maps(
        self, image: torch.Tensor, vessels: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Where each scale finds its evidence for "real": three maps (N, 1, h, w)."""
        check_pair(image, vessels, self.smallest)
        x = torch.cat([image, vessels], dim=1)
        maps = []
        for stage, attention in zip(self.stages, self.attention, strict=True):
            x = stage(x)
            maps.append(attention.activation_map(x))
            x, _ = attention(x)
        return tuple(maps)


DISCRIMINATORS: dict[str, Callable[..., nn.Module]] = {
    "pixel": PixelDiscriminator,
    "patch-1": Patch1Discriminator,
    "patch-2": Patch2Discriminator,
    "image": ImageDiscriminator,
    "multi-scale-cam": MultiScaleCAMDiscriminator,
}


def build_discriminator(name: str, width: int = 32) -> nn.Module:
    """A discriminator of photographs with vessel maps, with fresh weights.

    Raises:
        ValueError: if the name is unknown; the message lists the names.
    """
    if name not in DISCRIMINATORS:
        raise ValueError(f"unknown discriminator {name!r}; there are: {', '.join(DISCRIMINATORS)}")
    return DISCRIMINATORS[name](width)
