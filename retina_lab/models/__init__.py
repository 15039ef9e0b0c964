"""The networks of the course, by name."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn as nn

from retina_lab.models.attention import CBAM, CFFA, CBAMUNet, ChannelAttention, SpatialAttention
from retina_lab.models.deformable import (
    ConvOffset2D,
    DeformableEncoderUNet,
    DeformConv2d,
    DUNet,
    DUNet9,
)
from retina_lab.models.mcamgan import LinearAttention, MCAMGenerator
from retina_lab.models.multiscale import MSCAF, PFF, CMPUNet
from retina_lab.models.rsan import RSAB, RSAN, DropBlock2d, ResidualBlock
from retina_lab.models.unet import (
    DoubleConv,
    EncoderDecoder,
    UNet,
    VGANGenerator,
    pad_to_multiple,
)
from retina_lab.models.wnet import WNet

__all__ = [
    "CBAM",
    "CFFA",
    "MODELS",
    "MSCAF",
    "PFF",
    "RSAB",
    "RSAN",
    "CBAMUNet",
    "CMPUNet",
    "ChannelAttention",
    "ConvOffset2D",
    "DUNet",
    "DUNet9",
    "DeformConv2d",
    "DeformableEncoderUNet",
    "DoubleConv",
    "DropBlock2d",
    "EncoderDecoder",
    "LinearAttention",
    "MCAMGenerator",
    "ModelEntry",
    "ResidualBlock",
    "SpatialAttention",
    "UNet",
    "VGANGenerator",
    "WNet",
    "build_model",
    "count_parameters",
    "find_model",
    "list_models",
    "pad_to_multiple",
]


class ModelEntry(NamedTuple):
    """How a named network is built, and where it comes from."""

    build: Callable[..., nn.Module]
    settings: dict[str, Any]
    source: str


MODELS: dict[str, ModelEntry] = {
    "unet": ModelEntry(
        UNet,
        {"widths": (64, 128, 256, 512, 1024)},
        "U-Net slides; Ronneberger et al. 2015",
    ),
    "unet-3": ModelEntry(
        UNet,
        {"widths": (64, 128, 256, 512)},
        "U-Net slides, the variant with 3 encoders and 3 decoders; its widths are not told",
    ),
    "cbam-unet": ModelEntry(
        CBAMUNet,
        {"widths": (16, 32, 64, 128)},
        "U-Net slides: CFFA down the encoder, CBAM in the bridge (Woo et al. 2018)",
    ),
    "cmp-unet": ModelEntry(
        CMPUNet,
        {"widths": (32, 64, 128, 256, 512)},
        "U-Net slides, after Gu et al. 2023: CFFA, MSCAF and PFF",
    ),
    "rsan-backbone": ModelEntry(
        RSAN,
        {"widths": (16, 32, 64, 128), "keep": 1.0, "second": "residual"},
        "Guo et al. 2020, ablation: residual blocks only",
    ),
    "rsan-dropblock": ModelEntry(
        RSAN,
        {"widths": (16, 32, 64, 128), "keep": 0.85, "second": "residual"},
        "Guo et al. 2020, ablation: residual blocks with DropBlock",
    ),
    "rsan": ModelEntry(
        RSAN,
        {"widths": (16, 32, 64, 128), "keep": 0.85},
        "Guo et al. 2020: DropBlock and spatial attention, as for DRIVE",
    ),
    "rsan-no-attention": ModelEntry(
        RSAN,
        {"widths": (16, 32, 64, 128), "keep": 0.85, "second": "rsab without attention"},
        "control of that ablation, not in the paper: rsan without its attention alone",
    ),
    "rsan-dropblock-chase": ModelEntry(
        RSAN,
        {"widths": (16, 32, 64, 128), "keep": 0.78, "second": "residual"},
        "Guo et al. 2020, ablation: residual blocks with DropBlock, as for CHASE_DB1",
    ),
    "rsan-chase": ModelEntry(
        RSAN,
        {"widths": (16, 32, 64, 128), "keep": 0.78},
        "Guo et al. 2020: DropBlock and spatial attention, as for CHASE_DB1",
    ),
    "deformable-encoder-unet": ModelEntry(
        DeformableEncoderUNet,
        {"widths": (64, 128, 256, 512, 1024)},
        "U-Net slides: ConvOffset2D in two levels of the encoder",
    ),
    "du-net": ModelEntry(
        DUNet,
        {"widths": (64, 128, 256, 512, 1024)},
        "U-Net slides: ConvOffset2D on both sides (after Jin et al. 2019)",
    ),
    "du-net-9": ModelEntry(
        DUNet9,
        {"widths": (64, 128, 256, 512, 1024)},
        "Jin et al. 2019; Dai et al. 2017: 9-point deformable convolution on both sides",
    ),
    "w-net": ModelEntry(
        WNet,
        {"widths": (8, 16, 32)},
        "Galdran et al. 2022: two small U-Nets in a row",
    ),
    "v-gan": ModelEntry(
        VGANGenerator,
        {"widths": (32, 64, 128, 256, 512)},
        "generator of V-GAN and MI-GAN (Son et al. 2017; Iqbal and Ali 2018)",
    ),
    "m-cam-gan": ModelEntry(
        MCAMGenerator,
        {"widths": (32, 64, 128, 256, 512)},
        "generator of M-CAM-GAN (Yang et al. 2021): residual blocks, linear attention",
    ),
    "medium-unet": ModelEntry(
        UNet,
        {"widths": (16, 32, 64, 128), "bridge_norm": True},
        "the course's U-Net where there are twenty minutes",
    ),
    "small-unet": ModelEntry(
        UNet,
        {"widths": (8, 16, 32, 64), "bridge_norm": True},
        "the course's default on two CPU cores",
    ),
    "tiny-unet": ModelEntry(
        UNet,
        {"widths": (4, 8, 16), "bridge_norm": True},
        "for tests and for the smoke profile",
    ),
    "small-m-cam-gan": ModelEntry(
        MCAMGenerator,
        {"widths": (8, 15, 30, 56), "features": 8},
        "m-cam-gan, about as large as small-unet",
    ),
    "small-cbam-unet": ModelEntry(
        CBAMUNet, {"widths": (6, 12, 24, 48)}, "cbam-unet, about as large as small-unet"
    ),
    "small-cmp-unet": ModelEntry(
        CMPUNet, {"widths": (8, 8, 16, 16, 16)}, "cmp-unet, about as large as small-unet"
    ),
    "small-rsan-backbone": ModelEntry(
        RSAN,
        {"widths": (6, 11, 22, 44), "keep": 1.0, "second": "residual"},
        "rsan-backbone, about as large as small-unet",
    ),
    "small-rsan-dropblock": ModelEntry(
        RSAN,
        {"widths": (6, 11, 22, 44), "keep": 0.85, "second": "residual"},
        "rsan-dropblock, about as large as small-unet",
    ),
    "small-rsan": ModelEntry(
        RSAN, {"widths": (6, 11, 22, 44), "keep": 0.85}, "rsan, about as large as small-unet"
    ),
    "small-rsan-no-attention": ModelEntry(
        RSAN,
        {"widths": (6, 11, 22, 44), "keep": 0.85, "second": "rsab without attention"},
        "rsan-no-attention, about as large as small-unet",
    ),
    "small-deformable-encoder-unet": ModelEntry(
        DeformableEncoderUNet,
        {"widths": (8, 14, 28, 58)},
        "deformable-encoder-unet, about as large as small-unet",
    ),
    "small-du-net": ModelEntry(
        DUNet, {"widths": (8, 13, 26, 52)}, "du-net, about as large as small-unet"
    ),
    "small-du-net-9": ModelEntry(
        DUNet9, {"widths": (7, 14, 29, 58)}, "du-net-9, about as large as small-unet"
    ),
}


def find_model(name: str) -> ModelEntry:
    """The entry of a name in ``MODELS``.

    Raises:
        ValueError: if the name is unknown; the message lists the names.
    """
    if name not in MODELS:
        near = difflib.get_close_matches(name, MODELS, n=1)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        raise ValueError(f"unknown model {name!r}{hint}; known: {', '.join(MODELS)}")
    return MODELS[name]


def build_model(name: str, **overrides: Any) -> nn.Module:
    """Build a network by its name, with fresh weights from torch's current seed.

    Args:
        name: a name in ``MODELS``.
        **overrides: constructor arguments that replace the named ones.

    Returns:
        A module that takes (N, 3, H, W) normalised images of any size and returns logits
        (N, 1, H, W).

    Raises:
        ValueError: if the name is unknown; the message lists the names.
    """
    entry = find_model(name)
    return entry.build(**{**entry.settings, **overrides})


def count_parameters(model: nn.Module, trainable: bool = True) -> int:
    """Number of parameters that training changes; with ``trainable=False`` every number
    that the network stores in its parameters and floating-point buffers.

    The second count adds the running means and variances of BatchNorm, as Keras's
    "total parameters" does.
    """
    if trainable:
        return sum(p.numel() for p in model.parameters() if p.requires_grad)
    stored = [*model.parameters(), *model.buffers()]
    return sum(t.numel() for t in stored if t.is_floating_point())


def list_models() -> list[dict[str, Any]]:
    """Name, parameter counts, settings and source of every network in ``MODELS``."""
    rows = []
    for name, entry in MODELS.items():
        with torch.device("meta"):  # to count takes no memory, and nobody's random numbers
            model = build_model(name)
        rows.append(
            {
                "name": name,
                "trainable_parameters": count_parameters(model),
                "total_parameters": count_parameters(model, trainable=False),
                "settings": {
                    k: list(v) if isinstance(v, tuple) else v for k, v in entry.settings.items()
                },
                "source": entry.source,
            }
        )
    return rows
