r"""Content, style and smoothness of a picture, seen through VGG-19 (MI-GAN, equations 7 to 11).

Two pictures agree in *content* if the same things lie at the same places: the maps of a deep
layer are alike. They agree in *style* if the same things occur together, wherever they lie: the
correlations between the maps of a layer, its Gram matrix, are alike (Gatys et al. 2016).

MI-GAN's equation 7 sums the Gram matrix over all pixels and equation 8 divides its squared
difference by their number once, so that the loss would grow with the picture's area. Here the
Gram matrix is the mean over pixels and channels (Johnson et al. 2016), and the squared
differences are summed; content is averaged over the channels too, and smoothness over the
picture. The factors ω and ϖ are the paper's; the balance between the terms therefore is not.
Equation 12 adds the loss of the segmentation network, which is left out here.
"""

from __future__ import annotations

import torch

from retina_lab.models.vgg import VGG19

STYLE_WEIGHTS = (0.2, 0.2, 0.2, 0.2, 0.2)
"""ϖ of MI-GAN: of the five blocks in the style loss."""

CONTENT_BLOCK = 4
"""Γ_c of MI-GAN: whose maps are the content."""

WEIGHTS = {"content": 1.0, "style": 10.0, "smoothness": 100.0}
"""ω of MI-GAN, equation 11."""


def gram(features: torch.Tensor) -> torch.Tensor:
    """How strongly each two of a layer's maps go together (MI-GAN, equation 7).

    Args:
        features: (N, C, H, W).

    Returns:
        (N, C, C): sums of products over the pixels, divided by C·H·W.
    """
    flat = features.flatten(2)  # N×C×HW
    return flat @ flat.transpose(1, 2) / flat[0].numel()


def style_loss(painted: list[torch.Tensor], style: list[torch.Tensor]) -> torch.Tensor:
    """Squared differences of the Gram matrices of the five blocks, weighted (equation 8)."""
    terms = [
        weight * (gram(a) - gram(b)).square().sum(dim=(1, 2)).mean()
        for weight, a, b in zip(STYLE_WEIGHTS, painted, style, strict=True)
    ]
    return torch.stack(terms).sum()


def content_loss(painted: list[torch.Tensor], real: list[torch.Tensor]) -> torch.Tensor:
    """Mean squared difference of the maps of block 4 (equation 9)."""
    a, b = painted[CONTENT_BLOCK - 1], real[CONTENT_BLOCK - 1]
    return (a - b).square().mean()


def total_variation(picture: torch.Tensor) -> torch.Tensor:
    """Squared differences of neighbouring pixels (equation 10), averaged over the picture.

    Args:
        picture: (N, C, H, W).

    Returns:
        A scalar ≥ 0; 0 for a picture of one colour.
    """
    down = (picture[..., 1:, :] - picture[..., :-1, :]).square().mean()
    right = (picture[..., 1:] - picture[..., :-1]).square().mean()
    return down + right


def transfer_loss(
    judge: VGG19, painted: torch.Tensor, real: torch.Tensor, style: torch.Tensor
) -> dict[str, torch.Tensor]:
    """MI-GAN's style transfer loss and its three terms, weighted (equation 11).

    Args:
        judge: VGG-19.
        painted: (N, 3, H, W) in [-1, 1], what the generator made.
        real: (N, 3, H, W), the photograph of the same tree: the content.
        style: (N, 3, H, W), the photograph whose style is wanted; any other one.

    Returns:
        ``content``, ``style``, ``smoothness``, and ``total``, their sum.
    """
    with torch.no_grad():
        wanted, like = judge(real), judge(style)
    seen = judge(painted)
    terms = {
        "content": WEIGHTS["content"] * content_loss(seen, wanted),
        "style": WEIGHTS["style"] * style_loss(seen, like),
        "smoothness": WEIGHTS["smoothness"] * total_variation(painted),
    }
    return {**terms, "total": torch.stack(list(terms.values())).sum()}
