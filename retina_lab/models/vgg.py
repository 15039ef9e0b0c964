"""VGG-19's convolutions as a judge of content and style (Simonyan and Zisserman 2015)."""

from __future__ import annotations

import os
import warnings
from pathlib import Path

import torch
import torch.nn as nn

from retina_lab.datasets.manifests import sha256_of

BLOCKS = ((64, 2), (128, 2), (256, 4), (512, 4), (512, 4))
"""(channels, convolutions) of the five blocks; max-pooling lies between them."""

FILE = "vgg19-dcbb9e9d.pth"
URL = f"https://download.pytorch.org/models/{FILE}"
IMAGENET_SHA256 = "dcbb9e9d"
"""First digits of the sha256 of torchvision's file, part of its name."""

MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of ImageNet's pictures, by channel: what the published weights expect."""


class VGG19(nn.Module):
    """The first convolution of each of VGG-19's five blocks, with all that lies before it.

    Attributes:
        origin: which weights it has, in words. Written beside every result that rests on it.
    """

    def __init__(self):
        super().__init__()
        layers: list[nn.Module] = []
        self.taps: list[int] = []  # index of the ReLU after each block's first convolution
        before = 3
        for number, (channels, convolutions) in enumerate(BLOCKS):
            if number:
                layers.append(nn.MaxPool2d(2))
            for i in range(convolutions):
                layers += [nn.Conv2d(before, channels, 3, padding=1), nn.ReLU()]
                if i == 0:
                    self.taps.append(len(layers) - 1)
                before = channels
        self.features = nn.Sequential(*layers, nn.MaxPool2d(2))  # torchvision's numbering
        self.register_buffer("mean", torch.tensor(MEAN)[:, None, None], persistent=False)
        self.register_buffer("deviation", torch.tensor(DEVIATION)[:, None, None], persistent=False)
        self.origin = "no weights yet"

    def forward(self, image: torch.Tensor) -> list[torch.Tensor]:
        """(N, 3, H, W) in [-1, 1] → five maps, (N, 64, H, W) to (N, 512, H/16, W/16)."""
        x = ((image + 1) / 2 - self.mean) / self.deviation
        maps = []
        for layer in self.features[: self.taps[-1] + 1]:
            x = layer(x)
            maps.append(x)
        return [maps[tap] for tap in self.taps]


def load_vgg19(weights: str | os.PathLike = "auto", seed: int = 0) -> VGG19:
    """VGG-19 with ImageNet's weights where they are to be had, or else a labelled stand-in.

    Args:
        weights: ``"imagenet"``: torchvision's, from its cache or its server; a path: a file with
            torchvision's state dict; ``"stand-in"``: random weights from ``seed``;
            ``"auto"``: the file that the environment variable ``RETINA_LAB_VGG19`` names, or
            torchvision's in torch.hub's folder; otherwise the stand-in, with a warning.
        seed: of the stand-in's weights.

    Returns:
        The network in eval mode, its weights frozen; ``origin`` says which they are.

    Raises:
        ValueError: if a file is not torchvision's VGG-19; its sha256 must begin as published.
        FileNotFoundError: if there is no such file.
        OSError: if ``"imagenet"`` is asked for and not to be had.
    """
    with torch.random.fork_rng(devices=[]):  # its weights are replaced: nobody's chance is used
        network = VGG19()
    weights = os.fspath(weights)
    if weights == "auto":
        weights = os.environ.get("RETINA_LAB_VGG19") or _cached() or "stand-in"
        if weights == "stand-in":
            warnings.warn(
                "ImageNet's weights of VGG-19 are not here; a stand-in with random weights takes "
                "their place. Set RETINA_LAB_VGG19 to vgg19-dcbb9e9d.pth to use them.",
                stacklevel=2,
            )
    if weights == "imagenet":
        weights = _cached() or _download()
    if weights == "stand-in":
        generator = torch.Generator().manual_seed(seed)
        for layer in network.features:
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu", generator=generator)
                nn.init.zeros_(layer.bias)
        network.origin = f"stand-in: random weights, seed {seed}"
    else:
        path = Path(weights).expanduser()
        network.load_state_dict(_checked(path), strict=True)
        network.origin = "ImageNet (torchvision, IMAGENET1K_V1)"
    return network.eval().requires_grad_(False)


def _cached() -> str | None:
    """Where torch.hub keeps torchvision's file, if it is there."""
    path = Path(torch.hub.get_dir()) / "checkpoints" / FILE
    return str(path) if path.exists() else None


def _download() -> str:
    """Fetch torchvision's file into torch.hub's folder; it is verified there and then."""
    path = Path(torch.hub.get_dir()) / "checkpoints" / FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        torch.hub.download_url_to_file(URL, str(path), hash_prefix=IMAGENET_SHA256)
    except Exception as error:
        raise OSError(
            f"{URL} could not be fetched ({error}). Download it elsewhere and set "
            f"RETINA_LAB_VGG19 to the file, or use weights='stand-in'"
        ) from error
    return str(path)


def _checked(path: Path) -> dict[str, torch.Tensor]:
    """The convolutions of a file of torchvision's, after its sha256 is verified."""
    if not path.exists():
        raise FileNotFoundError(f"{path}: there is no such file; it should hold {FILE}")
    digest = sha256_of(path)
    if not digest.startswith(IMAGENET_SHA256):
        raise ValueError(
            f"{path} is not torchvision's {FILE}: its sha256 begins with {digest[:8]}, not "
            f"{IMAGENET_SHA256}; download it again from {URL}"
        )
    state = torch.load(path, map_location="cpu", weights_only=True)
    return {key: value for key, value in state.items() if key.startswith("features.")}
