"""Vessel trees from noise: the variational and the adversarial autoencoder.

Architecture after the table of the DR-synthesis report (figure 3; after Costa et al. 2018):
D is a convolution that halves the map, C one that keeps it, U one that doubles it, F a dense
layer, each with its number of channels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn as nn

ENCODER = (64, 128, 256, 512, 512, 512, 512, 512)
"""D64 C64 D128 C128 D256 C256 D512 C512 … D512: channels after each halving, 256 → 1 pixels."""

DECODER = (512, 512, 512, 512, 256, 128, 64, 64)
"""U512 U512 U512 U512 U256 C256 U128 C128 U64 C64 U64 C64: after each doubling, 1 → 256."""


def halvings(size: int) -> int:
    """How often a side can be halved until it is 1.

    Raises:
        ValueError: if the side is not a power of two between 16 and 1024.
    """
    if size not in (16, 32, 64, 128, 256, 512, 1024):
        raise ValueError(f"the side must be a power of two from 16 to 1024 pixels, not {size}")
    return int(math.log2(size))


def _scaled(channels: Sequence[int], count: int, width: int) -> list[int]:
    """The first ``count`` of the published channels, for another width than 64."""
    longer = [*channels, *[channels[-1]] * max(0, count - len(channels))]
    return [max(1, c * width // 64) for c in longer[:count]]


class TreeEncoder(nn.Module):
    """A vessel tree becomes the mean and the variance of a code.

    Strided 3×3 convolutions halve the map until one pixel is left, a 3×3 convolution following
    each but the last; two dense layers read μ and log σ off the 512 numbers that remain. The
    report samples z = μ + √σ·ε, so its σ is a variance; a network that gives its logarithm
    cannot make it negative.

    Args:
        size: side of the trees in pixels, a power of two.
        latent: length of the code; the report tries 16 to 256 and likes 128.
        width: channels after the first halving; 64 in the report.
    """

    def __init__(self, size: int = 256, latent: int = 128, width: int = 64):
        super().__init__()
        channels = _scaled(ENCODER, halvings(size), width)
        layers: list[nn.Module] = []
        before = 1
        for level, after in enumerate(channels):
            layers += [nn.Conv2d(before, after, 3, stride=2, padding=1)]
            last = level == len(channels) - 1
            if not last:  # a BatchNorm over one pixel an image would leave little of it
                layers += [nn.BatchNorm2d(after), nn.LeakyReLU(0.2)]
                layers += [nn.Conv2d(after, after, 3, padding=1), nn.BatchNorm2d(after)]
            layers += [nn.LeakyReLU(0.2)]
            before = after
        self.body = nn.Sequential(*layers)
        self.mean = nn.Linear(before, latent)
        self.log_variance = nn.Linear(before, latent)

    def forward(self, tree: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(N, 1, size, size) in [0, 1] → mean and log variance, each (N, latent)."""
        features = self.body(tree).flatten(1)  # N×512
        return self.mean(features), self.log_variance(features)


class TreeDecoder(nn.Module):
    """A code becomes a vessel tree: a dense layer, then doublings by nearest neighbour.

    Args:
        size: side of the trees in pixels, a power of two.
        latent: length of the code.
        width: channels before the last doubling; 64 in the report.
    """

    def __init__(self, size: int = 256, latent: int = 128, width: int = 64):
        super().__init__()
        count = halvings(size)
        # the finest doublings are the same at every size; a smaller tree begins further down
        longer = (*[DECODER[0]] * max(0, count - len(DECODER)), *DECODER)
        channels = [max(1, c * width // 64) for c in longer[-count:]]
        self.start = nn.Sequential(nn.Linear(latent, channels[0]), nn.ReLU())
        layers: list[nn.Module] = []
        before = channels[0]
        for level, after in enumerate(channels):
            layers += [nn.Upsample(scale_factor=2), nn.Conv2d(before, after, 3, padding=1)]
            layers += [nn.BatchNorm2d(after), nn.ReLU()]
            if level >= count - 4:  # U256 C256, U128 C128, U64 C64, U64 C64
                layers += [nn.Conv2d(after, after, 3, padding=1), nn.BatchNorm2d(after), nn.ReLU()]
            before = after
        self.body = nn.Sequential(*layers, nn.Conv2d(before, 1, 3, padding=1))

    def forward(self, code: torch.Tensor) -> torch.Tensor:
        """(N, latent) → logits of the tree, (N, 1, size, size)."""
        return self.body(self.start(code)[:, :, None, None])


class TreeAutoencoder(nn.Module):
    """Encoder and decoder: the generator of the VAE and of every AAE.

    Args:
        size: side of the trees in pixels, a power of two.
        latent: length of the code.
        width: channels at the finest resolution.

    Raises:
        ValueError: if a number makes no sense.
    """

    def __init__(self, size: int = 256, latent: int = 128, width: int = 64):
        super().__init__()
        if latent < 1 or width < 1:
            raise ValueError(f"latent and width must be at least 1, not {latent} and {width}")
        self.size, self.latent = size, latent
        self.encoder = TreeEncoder(size, latent, width)
        self.decoder = TreeDecoder(size, latent, width)

    @staticmethod
    def sample(mean: torch.Tensor, log_variance: torch.Tensor) -> torch.Tensor:
        """z = μ + √σ·ε with ε from N(0, 1), so that the gradient reaches μ and σ (equation 5)."""
        return mean + (0.5 * log_variance).exp() * torch.randn_like(mean)

    def forward(
        self, tree: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """(N, 1, size, size) → logits of its reconstruction, code, mean, log variance."""
        mean, log_variance = self.encoder(tree)
        code = self.sample(mean, log_variance)
        return self.decoder(code), code, mean, log_variance


class CodeDiscriminator(nn.Sequential):
    """Does a code come from N(0, I), or from the encoder?

    The report has a single dense layer, ``hidden=()``. Such a discriminator compares a weighted
    sum of the code with a threshold: it sees that the mean is off, but neither a wrong spread nor
    a dependence between two numbers. Two hidden layers see both.

    Args:
        latent: length of the code.
        hidden: widths of the layers in between.
    """

    def __init__(self, latent: int = 128, hidden: Sequence[int] = (256, 256)):
        layers: list[nn.Module] = []
        before = latent
        for after in hidden:
            layers += [nn.Linear(before, after), nn.LeakyReLU(0.2)]
            before = after
        super().__init__(*layers, nn.Linear(before, 1))


def kl_divergence(mean: torch.Tensor, log_variance: torch.Tensor) -> torch.Tensor:
    r"""Distance of the encoder's Gaussians from N(0, I), in nats (Kingma and Welling 2014).

    .. math:: \tfrac12 \sum_i \bigl(μ_i^2 + σ_i - \log σ_i - 1\bigr), \quad σ \text{ a variance},

    summed over the code and averaged over the batch.

    Args:
        mean: (N, latent).
        log_variance: (N, latent).

    Returns:
        A scalar ≥ 0; 0 if every code is N(0, I).
    """
    terms = mean.square() + log_variance.exp() - log_variance - 1
    return 0.5 * terms.sum(dim=1).mean()
