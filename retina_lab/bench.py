"""``python -m retina_lab.bench``: what each network costs on this machine.

Every network is measured in one run, one after the other, beside MONAI's U-Net of the same
widths, so that the ratios mean something when the absolute times drift. Results go to
``data/results/bench-DEVICE.json`` and a table to the screen.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import torch
import torch.nn as nn
from torch.utils.flop_counter import FlopCounterMode
from tqdm.auto import tqdm

from retina_lab.datasets.manifests import project_root
from retina_lab.losses import build_loss, deeply_supervised
from retina_lab.models import MODELS, UNet, build_model, count_parameters
from retina_lab.predict import pick_device
from retina_lab.train import versions

SIZES = (256, 512, 1024)


def monai_unet(widths: tuple[int, ...]) -> nn.Module:
    """MONAI's BasicUNet with the widths of ours, BatchNorm and ReLU.

    It has five levels always, so it stands beside five widths only.
    """
    from monai.networks.nets import BasicUNet

    return BasicUNet(
        spatial_dims=2,
        in_channels=3,
        out_channels=1,
        features=(*widths, widths[0]),
        act=("relu", {"inplace": True}),
        norm="batch",
        upsample="deconv",
    )


def contestants(names: list[str]) -> dict[str, Callable[[], nn.Module]]:
    """The networks to measure by name, each with MONAI's twin where there is one."""
    rows: dict[str, Callable[[], nn.Module]] = {}
    for name in names:
        rows[name] = lambda name=name: build_model(name)
        settings = MODELS[name].settings
        if MODELS[name].build is UNet and len(settings["widths"]) == 5:
            rows[f"{name} (MONAI)"] = lambda widths=settings["widths"]: monai_unet(widths)
    return rows


def seconds(call: Callable[[], object], repeats: int, device: torch.device) -> float:
    """Median wall time of ``call`` in seconds, after one call to warm up."""

    def once() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize()
        start = time.perf_counter()
        call()
        if device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - start

    once()
    return float(np.median([once() for _ in range(repeats)]))


def measure(build: Callable[[], nn.Module], size: int, device: torch.device, repeats: int) -> dict:
    """Parameters, multiply-adds and times of one network at one image size.

    Returns:
        ``parameters``; ``multiply_adds`` of one image; ``predict_seconds`` an image;
        ``step_seconds`` of a training step (forward, loss, backward, AdamW) on one image.
    """
    torch.manual_seed(0)
    model = build().to(device, memory_format=torch.channels_last)
    image = torch.randn(1, 3, size, size, device=device).contiguous(
        memory_format=torch.channels_last
    )
    target = (torch.rand(1, 1, size, size, device=device) < 0.1).float()
    loss = build_loss("bce + dice")
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    model.eval()
    with torch.inference_mode():
        with FlopCounterMode(display=False) as counter:
            model(image)
        predict = seconds(lambda: model(image), repeats, device)
    model.train()

    def step() -> None:
        deeply_supervised(loss, model(image), target).backward()
        optimizer.step()
        optimizer.zero_grad()

    return {
        "parameters": count_parameters(model),
        "multiply_adds": counter.get_total_flops() // 2,
        "predict_seconds": predict,
        "step_seconds": seconds(step, repeats, device),
    }


def main(argv: list[str] | None = None) -> int:
    """Measure, print the table, write the JSON; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m retina_lab.bench", description=__doc__)
    parser.add_argument("--models", nargs="*", choices=list(MODELS), default=list(MODELS))
    parser.add_argument("--sizes", nargs="*", type=int, default=list(SIZES))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--out", help="default: data/results/bench-DEVICE.json")
    args = parser.parse_args(argv)
    device = pick_device(args.device)
    rows = []
    cells = [(name, size) for size in args.sizes for name in contestants(args.models)]
    for name, size in tqdm(cells, desc="bench", unit="cell"):
        build = contestants(args.models)[name]
        rows.append({"model": name, "size": size, **measure(build, size, device, args.repeats)})
    print(f"{'model':20} {'size':>5} {'parameters':>12} {'G mult-adds':>12} "
          f"{'s/image':>9} {'s/step':>9}")  # fmt: skip
    for row in rows:
        print(
            f"{row['model']:20} {row['size']:>5} {row['parameters']:>12,} "
            f"{row['multiply_adds'] / 1e9:>12.2f} {row['predict_seconds']:>9.4f} "
            f"{row['step_seconds']:>9.4f}"
        )
    root = project_root() or Path.cwd()
    out = Path(args.out) if args.out else root / "data" / "results" / f"bench-{device.type}.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    record = {
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
        "device": torch.cuda.get_device_name() if device.type == "cuda" else platform.machine(),
        "cores": os.cpu_count(),
        "versions": versions(),
        "rows": rows,
    }
    out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(f"→ {out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
