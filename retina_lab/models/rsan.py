"""The residual spatial attention network (Guo et al. 2020, arXiv:2009.08829) and DropBlock."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
import torch.nn as nn

from retina_lab.models.attention import SpatialAttention
from retina_lab.models.unet import EncoderDecoder, check_widths, doubling


class DropBlock2d(nn.Module):
    """In training, sets square blocks of each channel to zero (Ghiasi et al. 2018).

    Neighbouring values of a map say nearly the same, so dropping single ones hides nothing;
    a block does. Blocks are seeded with probability

        γ = (1 − keep) / b² · HW / ((H − b + 1)(W − b + 1))

    at every place where a whole b×b block fits, independently for each image and channel, and
    what is left is enlarged so that the mean stays. Overlapping blocks make the share that is
    dropped a little smaller than 1 − keep. In eval mode nothing changes.

    Args:
        keep: share of values to keep, in (0, 1].
        block_size: b in pixels; on a smaller map the block is as large as fits.

    Raises:
        ValueError: if ``keep`` or ``block_size`` makes no sense.
    """

    def __init__(self, keep: float = 0.85, block_size: int = 7):
        super().__init__()
        if not 0 < keep <= 1:
            raise ValueError(f"keep must be in (0, 1], not {keep}")
        if block_size < 1:
            raise ValueError(f"block_size must be at least 1, not {block_size}")
        self.keep, self.block_size = keep, block_size

    def gamma(self, height: int, width: int) -> float:
        """Probability that a block begins at a given place of a height×width map."""
        b = min(self.block_size, height, width)
        places = (height - b + 1) * (width - b + 1)
        return (1 - self.keep) / b**2 * height * width / places

    def expected_share(self, height: int, width: int) -> float:
        """Share of a height×width map that is dropped on average, overlaps counted once.

        A pixel stays if none of the blocks that would cover it is seeded. Near the border it
        lies in fewer of them.
        """
        b = min(self.block_size, height, width)
        rows, columns = (
            [min(i, n - b) - max(0, i - b + 1) + 1 for i in range(n)] for n in (height, width)
        )
        reach = torch.outer(torch.tensor(rows), torch.tensor(columns)).double()
        return (1 - (1 - self.gamma(height, width)) ** reach).mean().item()

    def mask(self, x: torch.Tensor) -> torch.Tensor:
        """A random map of the shape of ``x``: 0 in the dropped blocks, 1 elsewhere."""
        n, channels, height, width = x.shape
        b = min(self.block_size, height, width)
        tall, wide = height - b + 1, width - b + 1  # places where a block may begin
        seeds = torch.rand(n, channels, tall, wide, device=x.device) < self.gamma(height, width)
        # A block is its seed repeated b times downwards, and that b times to the right.
        columns = seeds.new_zeros(n, channels, height, wide)
        for i in range(b):
            columns[:, :, i : i + tall] |= seeds
        dropped = seeds.new_zeros(n, channels, height, width)
        for i in range(b):
            dropped[:, :, :, i : i + wide] |= columns
        return (~dropped).to(x.dtype)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, C, H, W) → (N, C, H, W)."""
        if not self.training or self.keep == 1:
            return x
        mask = self.mask(x)
        # In 16 bits the sum over a large map would be rounded, or overflow.
        kept = mask.sum(dtype=torch.float32).clamp(min=1)
        return x * (mask * (mask.numel() / kept))

    def extra_repr(self) -> str:
        """What ``print`` shows."""
        return f"keep={self.keep}, block_size={self.block_size}"


Drop = Callable[[], nn.Module]


def pre_activation(in_channels: int, out_channels: int, drop: Drop) -> nn.Sequential:
    """BatchNorm → ReLU → 3×3 convolution → drop, twice: the body of both residual blocks.

    Args:
        in_channels: channels before.
        out_channels: channels after.
        drop: makes the layer that drops, such as ``lambda: DropBlock2d(0.85)``.
    """
    layers: list[nn.Module] = []
    for channels in (in_channels, out_channels):
        layers += [
            nn.BatchNorm2d(channels),
            nn.ReLU(),
            nn.Conv2d(channels, out_channels, kernel_size=3, padding=1),
            drop(),
        ]
    return nn.Sequential(*layers)


class ResidualBlock(nn.Module):
    """Pre-activation residual block: the input plus what two convolutions make of it.

    He et al. 2016 (arXiv:1603.05027), with DropBlock as in RSAN, figure 3c. A 1×1 convolution
    carries the input if the number of channels changes.
    """

    def __init__(self, in_channels: int, out_channels: int, drop: Drop = nn.Identity):
        super().__init__()
        self.body = pre_activation(in_channels, out_channels, drop)
        same = in_channels == out_channels
        self.shortcut = nn.Identity() if same else nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, in_channels, H, W) → (N, out_channels, H, W)."""
        return self.shortcut(x) + self.body(x)


class RSAB(nn.Module):
    """Residual spatial attention block: spatial attention on the residual before it is added.

    BatchNorm and ReLU follow the sum (RSAN, figure 4).

    Args:
        channels: of the map, before and after.
        drop: makes the layer that drops.
        attention: False leaves out the attention and nothing else.
    """

    def __init__(self, channels: int, drop: Drop = nn.Identity, attention: bool = True):
        super().__init__()
        self.body = pre_activation(channels, channels, drop)
        # Drawn in any case: with or without it, the layers after it get the same first weights.
        spatial = SpatialAttention()
        self.attention = spatial if attention else nn.Identity()
        self.activation = nn.Sequential(nn.BatchNorm2d(channels), nn.ReLU())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, C, H, W) → (N, C, H, W)."""
        return self.activation(x + self.attention(self.body(x)))


class RSAN(EncoderDecoder):
    """Residual spatial attention network: at each level a residual block, then an RSAB.

    Its ablation takes the ingredients away one by one. The paper does not say how many blocks
    a level of its backbone has, and the public code builds the whole network only. Here the depth
    stays. ``"rsab without attention"`` lacks the 98 parameters of each spatial attention and
    nothing else, and begins with the same weights; it is no step of the paper's, but the control
    of its last one. ``"residual"`` lacks the BatchNorm and ReLU that end an RSAB as well, so
    that the head is given a bare sum. The maps are doubled by 2×2
    transposed convolutions as in the paper (the code has 3×3). The paper pads DRIVE to 592×592 and
    CHASE_DB1 to 1008×1008 with zeros on four sides; here every network pads itself to the next
    multiple of 2^depth (:func:`retina_lab.models.pad_to_multiple`).

    Args:
        widths: channels at each resolution, the bridge last; at least two.
        in_channels: channels of the input.
        out_channels: logits a pixel.
        keep: share that DropBlock keeps: .85 for DRIVE and .78 for CHASE_DB1 in the paper;
            1 for no DropBlock.
        block_size: of DropBlock.
        second: second block of a level: ``"rsab"``, ``"rsab without attention"`` or
            ``"residual"``.

    Raises:
        ValueError: if the widths, DropBlock's settings or ``second`` make no sense.
    """

    def __init__(
        self,
        widths: Sequence[int] = (16, 32, 64, 128),
        in_channels: int = 3,
        out_channels: int = 1,
        keep: float = 0.85,
        block_size: int = 7,
        second: str = "rsab",
    ):
        super().__init__()
        *levels, bridge = check_widths(widths)
        seconds: dict[str, Callable[[int, Drop], nn.Module]] = {
            "rsab": RSAB,
            "rsab without attention": partial(RSAB, attention=False),
            "residual": lambda width, drop: ResidualBlock(width, width, drop),
        }
        if second not in seconds:
            raise ValueError(f"second must be one of {', '.join(seconds)}, not {second!r}")

        def drop() -> nn.Module:
            return DropBlock2d(keep, block_size)

        def level(before: int, width: int) -> nn.Module:
            return nn.Sequential(ResidualBlock(before, width, drop), seconds[second](width, drop))

        self.encoder = nn.ModuleList(
            level(before, width)
            for before, width in zip([in_channels, *levels], levels, strict=False)
        )
        self.bridge = level(levels[-1], bridge)
        self.up = doubling(widths)
        self.decoder = nn.ModuleList(level(2 * width, width) for width in levels[::-1])
        self.head = nn.Conv2d(levels[0], out_channels, kernel_size=1)
