"""From a vessel tree to a fundus photograph: pix2pix and MI-GAN's synthesis."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn as nn

from retina_lab.models.unet import check_widths


class FundusGenerator(nn.Module):
    """A vessel tree, perhaps with noise, becomes a photograph.

    Strided 4×4 convolutions with BatchNorm and LeakyReLU halve the tree, transposed ones with
    BatchNorm and ReLU double it again, each beside the encoder's map of its size; tanh ends it.
    Dropout follows the first three doublings (pix2pix: Isola et al. 2017; DR-synthesis report,
    stage 2). Isola et al. leave it and the batch's own statistics on when painting; here painting
    is in eval mode, so that one tree gives one photograph.

    With ``noise`` (MI-GAN, figure 2) a dense layer turns a random vector into maps that are laid
    beside the coarsest ones: 400 numbers become 8×8×256 beside 8×8×512, at 512×512 pixels.
    MI-GAN has BatchNorm after every convolution and LeakyReLU in the decoder too, skips every
    other layer and drops nothing; but for the dropout, this is pix2pix's plan with its noise.

    Args:
        size: side of the pictures in pixels, divisible by 2 for each of the widths.
        widths: channels after each halving.
        in_channels: of the condition: the tree, and what else is given as maps.
        noise: length of the random vector; 0: none, and one tree gives one photograph.
        noise_channels: of the maps that it becomes.
        dropout: probability in the first three doublings.
        out_channels: 3 of a photograph.

    Raises:
        ValueError: if size and widths do not fit.
    """

    def __init__(
        self,
        size: int = 256,
        widths: Sequence[int] = (64, 128, 256, 512, 512, 512, 512, 512),
        in_channels: int = 1,
        noise: int = 0,
        noise_channels: int = 256,
        dropout: float = 0.5,
        out_channels: int = 3,
    ):
        super().__init__()
        widths = check_widths(widths)
        if size % 2 ** len(widths):
            raise ValueError(f"{len(widths)} halvings do not divide {size} pixels")
        self.size, self.noise = size, noise
        self.encoder = nn.ModuleList()
        before = in_channels
        for level, after in enumerate(widths):
            layers: list[nn.Module] = [nn.Conv2d(before, after, 4, stride=2, padding=1)]
            # none at the first; at the last, a map of one pixel would be normalised to nothing
            if 0 < level < len(widths) - 1:
                layers.append(nn.BatchNorm2d(after))
            self.encoder.append(nn.Sequential(*layers, nn.LeakyReLU(0.2)))
            before = after
        coarsest = size // 2 ** len(widths)
        if noise:
            self.from_noise = nn.Sequential(
                nn.Linear(noise, noise_channels * coarsest**2),
                nn.Unflatten(1, (noise_channels, coarsest, coarsest)),
                nn.LeakyReLU(0.2),
            )
            before += noise_channels
        self.decoder = nn.ModuleList()
        for level, after in enumerate(widths[-2::-1]):
            layers = [nn.ConvTranspose2d(before, after, 4, stride=2, padding=1)]
            layers.append(nn.BatchNorm2d(after))
            if level < 3 and dropout:
                layers.append(nn.Dropout(dropout))
            self.decoder.append(nn.Sequential(*layers, nn.ReLU()))
            before = 2 * after  # the encoder's map comes beside it
        last = nn.ConvTranspose2d(before, out_channels, 4, stride=2, padding=1)
        self.head = nn.Sequential(last, nn.Tanh())

    def forward(self, condition: torch.Tensor, noise: torch.Tensor | None = None) -> torch.Tensor:
        """(N, in_channels, size, size) in [0, 1], noise (N, noise) → (N, 3, size, size) in [-1, 1].

        Raises:
            ValueError: if the side is not ``size``, or noise is missing or not wanted.
        """
        if condition.shape[-2:] != (self.size, self.size):
            raise ValueError(
                f"this network paints {self.size}×{self.size} pixels, not "
                f"{condition.shape[-2]}×{condition.shape[-1]}"
            )
        if (noise is None) == bool(self.noise):
            raise ValueError(f"this network takes {self.noise or 'no'} random numbers an image")
        x, skips = condition, []
        for halve in self.encoder:
            x = halve(x)  # N×w_i×size/2^(i+1)×…
            skips.append(x)
        x = skips.pop()
        if noise is not None:
            x = torch.cat([x, self.from_noise(noise)], dim=1)
        for double in self.decoder:
            x = torch.cat([double(x), skips.pop()], dim=1)
        return self.head(x)


class TreeRefiner(FundusGenerator):
    """A blurred vessel tree becomes a crisp one: pix2pix's generator, drawing instead of painting.

    A code of a few dozen numbers cannot say where every vessel lies, and a decoder that is
    compared pixel by pixel answers with a blur: the share of eyes in which a vessel runs there.
    Beginning with that, this network draws one tree that fits it, as the finer generators of
    Denton et al. (2015, LAPGAN) begin with a coarser picture. The code comes in beside the
    coarsest maps, as MI-GAN's noise does, so that codes with one blur may have different trees.

    Args:
        size: side of the trees in pixels, divisible by 2 for each of the widths.
        latent: length of the code.
        widths: channels after each halving.
    """

    def __init__(
        self,
        size: int = 256,
        latent: int = 128,
        widths: Sequence[int] = (64, 128, 256, 512, 512, 512),
    ):
        super().__init__(
            size, widths, 1, noise=latent, noise_channels=4 * widths[0], dropout=0.0,
            out_channels=1,
        )  # fmt: skip
        self.head = self.head[0]  # logits
        nn.init.constant_(self.head.bias, -2)  # about a tenth of an eye is vessel

    def forward(self, tree: torch.Tensor, code: torch.Tensor) -> torch.Tensor:
        """(N, 1, size, size) in [0, 1], code (N, latent) → logits of the crisp tree."""
        return super().forward(tree, code)


class PairDiscriminator(nn.Module):
    """Does this photograph belong to this tree? One verdict a patch (pix2pix's PatchGAN).

    Strided 4×4 convolutions with BatchNorm (not after the first) and LeakyReLU, then a 3×3
    convolution. Four halvings give 16×16 verdicts on 256×256 pixels (DR-synthesis report), five
    on 512×512 (MI-GAN, 32 to 512 channels); a verdict sees 78 and 158 pixels.

    Args:
        in_channels: of the condition.
        width: channels after the first halving; they double up to sixteen times as many.
        halvings: number of strided convolutions.
        picture_channels: of what is judged: 3 of a photograph, 1 of a tree.
    """

    def __init__(
        self, in_channels: int = 1, width: int = 64, halvings: int = 4, picture_channels: int = 3
    ):
        super().__init__()
        layers: list[nn.Module] = []
        before = in_channels + picture_channels
        for level in range(halvings):
            after = width * 2 ** min(level, 4)
            layers.append(nn.Conv2d(before, after, 4, stride=2, padding=1))
            if level:
                layers.append(nn.BatchNorm2d(after))
            layers.append(nn.LeakyReLU(0.2))
            before = after
        self.trunk = nn.Sequential(*layers, nn.Conv2d(before, 1, 3, padding=1))

    def forward(self, condition: torch.Tensor, picture: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """(N, in_channels, H, W) and (N, picture_channels, H, W) → one map of verdicts."""
        return (self.trunk(torch.cat([condition, picture], dim=1)),)


class TreeDiscriminator(PairDiscriminator):
    """Are these whole trees, and are they different ones? For what a refiner draws.

    Before the last convolution each place is told how much the batch differs, in one number: the
    standard deviation over the batch, averaged over maps and places (Karras et al. 2018). A
    refiner that draws the same tree again and again gives itself away.

    Args:
        width: channels after the first halving.
        halvings: number of strided convolutions.
    """

    def __init__(self, width: int = 64, halvings: int = 6):
        super().__init__(0, width, halvings, picture_channels=1)
        self.trunk[-1] = nn.Conv2d(self.trunk[-1].in_channels + 1, 1, 3, padding=1)

    def forward(self, condition: torch.Tensor, picture: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """(N, 0, H, W) and (N, 1, H, W) → one map of verdicts."""
        maps = self.trunk[:-1](torch.cat([condition, picture], dim=1))
        spread = (maps.float().var(dim=0, unbiased=False) + 1e-8).sqrt().mean().to(maps.dtype)
        maps = torch.cat([maps, spread.expand(len(maps), 1, *maps.shape[2:])], dim=1)
        return (self.trunk[-1](maps),)
