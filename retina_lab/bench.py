"""``python -m retina_lab.bench``: what each network costs on this machine.

``run`` measures every network in one go, one after the other, each in a process of its own, beside
the same network from an independent library where there is one: MONAI's U-Net of the same
widths, torchvision's deformable convolution. Absolute times drift with the machine, so read
the ratios. Results go to ``data/results/bench-DEVICE.json``. ``table`` writes them into the
book's page on costs.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import multiprocessing
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

from retina_lab.cli import forgive_streams
from retina_lab.datasets.manifests import project_root
from retina_lab.loop import versions
from retina_lab.losses import build_loss, deeply_supervised
from retina_lab.models import MODELS, DeformConv2d, UNet, build_model, count_parameters
from retina_lab.predict import pick_device
from retina_lab.results import between_markers

SIZES = (256, 512, 1024)
PRECISIONS = ("float32", "bfloat16", "compiled")
PATIENCE = 4.0  # seconds; a call that takes longer is not repeated
BEGIN, END = "<!-- costs: made by `python -m retina_lab.bench table` -->", "<!-- end -->"


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


class OneDeformable(nn.Module):
    """A network of one layer, 3 → 32 → 1 channels, to time a deformable convolution alone.

    Args:
        library: ``"ours"`` or ``"torchvision"``.
    """

    def __init__(self, library: str):
        super().__init__()
        self.widen, self.narrow = nn.Conv2d(3, 32, 1), nn.Conv2d(32, 1, 1)
        self.layer, self.library = DeformConv2d(32, 32), library

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, 3, H, W) → (N, 1, H, W)."""
        x = self.widen(x)
        if self.library == "ours":
            return self.narrow(self.layer(x))
        from torchvision.ops import deform_conv2d

        layer = self.layer
        return self.narrow(deform_conv2d(x, layer.offset(x), layer.weight, layer.bias, padding=1))


def contestants(names: list[str]) -> dict[str, Callable[[], nn.Module]]:
    """The networks to measure by name, each with its twin where there is one."""
    rows: dict[str, Callable[[], nn.Module]] = {}
    for name in names:
        rows[name] = lambda name=name: build_model(name)
        settings = MODELS[name].settings
        if MODELS[name].build is UNet and len(settings["widths"]) == 5:
            rows[f"{name} (MONAI)"] = lambda widths=settings["widths"]: monai_unet(widths)
    if set(names) == set(MODELS):
        rows["DeformConv2d 32→32"] = lambda: OneDeformable("ours")
        if importlib.util.find_spec("torchvision"):
            rows["DeformConv2d 32→32 (torchvision)"] = lambda: OneDeformable("torchvision")
    return rows


def seconds(call: Callable[[], object], repeats: int, device: torch.device) -> float:
    """Median wall time of ``call`` in seconds, after one call to warm up.

    A call that takes longer than ``PATIENCE`` is its own warming up.
    """

    wait = {"cuda": torch.cuda.synchronize, "mps": torch.mps.synchronize}.get(device.type)

    def once() -> float:
        if wait:
            wait()
        start = time.perf_counter()
        call()
        if wait:
            wait()
        return time.perf_counter() - start

    first = once()
    if first > PATIENCE:
        return first
    return float(np.median([once() for _ in range(repeats)]))


def peak_memory(device: torch.device, reset: bool = False) -> int | None:
    """The most memory that this process has held, in bytes; None if the system does not tell.

    Args:
        device: a card counts what torch has allocated on it, a processor the resident pages.
        reset: forget the past first: from now on only what is held now counts.
    """
    if device.type == "cuda":
        if reset:
            torch.cuda.reset_peak_memory_stats()
        return torch.cuda.max_memory_allocated()
    status = Path("/proc/self/status")
    if not status.exists():  # only Linux can forget the peak of loading torch
        return None
    if reset:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


def measure(
    build: Callable[[], nn.Module],
    size: int,
    device: torch.device,
    repeats: int,
    precision: str = "float32",
) -> dict:
    """What one network costs at one image size, one image at a time, channels last.

    Args:
        build: makes the network.
        size: side of the square image in pixels.
        device: to measure on.
        repeats: calls of which the median is taken.
        precision: ``"float32"``, ``"bfloat16"`` (autocast) or ``"compiled"`` (that, through
            ``torch.compile``).

    Returns:
        ``parameters``; ``multiply_adds`` of one image; ``predict_seconds`` an image;
        ``step_seconds`` of a training step (forward, loss, backward, AdamW);
        ``peak_bytes``: memory of that step beyond the network and the image.
    """
    torch.manual_seed(0)
    model = build().to(device, memory_format=torch.channels_last)
    image = torch.randn(1, 3, size, size, device=device).contiguous(
        memory_format=torch.channels_last
    )
    target = (torch.rand(1, 1, size, size, device=device) < 0.1).float()
    loss = build_loss("bce + dice")
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    parameters = count_parameters(model)
    before = peak_memory(device, reset=True)
    model.eval()
    # On the meta device nothing is computed: the operations are only counted.
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        build().to("meta").eval()(image.to("meta"))
    called = torch.compile(model) if precision == "compiled" else model
    half = torch.autocast(device.type, torch.bfloat16, enabled=precision != "float32")
    with torch.inference_mode(), half:
        if precision == "compiled":
            called(image)  # compiles, off the clock
        predict = seconds(lambda: called(image), repeats, device)
    model.train()

    def step() -> None:
        with half:
            outputs = called(image)
        deeply_supervised(loss, outputs, target).backward()
        optimizer.step()
        optimizer.zero_grad()

    if precision == "compiled":
        step()  # the graph of a training is another one
    step_seconds = seconds(step, repeats, device)
    after = peak_memory(device)
    return {
        "parameters": parameters,
        "multiply_adds": counter.get_total_flops() // 2,
        "predict_seconds": predict,
        "step_seconds": step_seconds,
        "peak_bytes": None if before is None or after is None else after - before,
    }


def measure_by_name(
    name: str, size: int, device: str, repeats: int, precision: str, answer
) -> None:
    """Body of a child process: measure a contestant and send the row, or what went wrong."""
    try:
        build = contestants(list(MODELS))[name]
        answer.put(measure(build, size, torch.device(device), repeats, precision))
    except (RuntimeError, MemoryError) as error:
        answer.put({"error": str(error).splitlines()[0]})


def measure_alone(name: str, size: int, device: str, repeats: int, precision: str) -> dict:
    """:func:`measure` in a process of its own, so that its memory is its own.

    Returns:
        The row, or ``{"error": …}`` if there was not enough memory for it.
    """
    context = multiprocessing.get_context("spawn")
    answer = context.SimpleQueue()
    child = context.Process(
        target=measure_by_name, args=(name, size, device, repeats, precision, answer)
    )
    child.start()
    while child.is_alive() and answer.empty():
        child.join(0.05)
    row = {"error": ended(child.exitcode)} if answer.empty() else answer.get()
    child.join()
    return row


def ended(code: int | None) -> str:
    """What a process that sent no answer has died of."""
    if code == -9:  # SIGKILL, a name that Windows lacks
        return "killed, most likely for lack of memory"
    return f"the process ended with {code}"


def measured_peak(device: torch.device, side: int = 8192, repeats: int = 10) -> float:
    """Multiply-adds a second that this card reaches in a large bfloat16 matrix product."""
    a = torch.randn(side, side, device=device, dtype=torch.bfloat16)
    return side**3 / seconds(lambda: a @ a, repeats, device)


def run(args: argparse.Namespace) -> int:
    """Measure and write the JSON; rows that are there already are kept with ``--resume``."""
    device = pick_device(args.device)
    root = project_root() or Path.cwd()
    out = Path(args.out) if args.out else root / "data" / "results" / f"bench-{device.type}.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    rows: list[dict] = []
    machine = {
        "device": torch.cuda.get_device_name() if device.type == "cuda" else platform.machine(),
        "cores": os.cpu_count(),
        "versions": versions(),
    }
    if args.resume and out.exists():
        old = json.loads(out.read_text(encoding="utf-8"))
        other = [f"{key}: {old.get(key)} there" for key in machine if old.get(key) != machine[key]]
        if other:
            print(
                f"{out} was measured elsewhere ({'; '.join(other)}); give another --out, or leave "
                "out --resume to measure everything anew",
                file=sys.stderr,
            )
            return 1
        rows = old["rows"]
    done = {(row["model"], row["size"], row["precision"]) for row in rows}
    precisions = args.precisions or (PRECISIONS if device.type == "cuda" else PRECISIONS[:1])
    cells = [
        (name, size, precision)
        for size in args.sizes
        for name in contestants(args.models)
        for precision in precisions
        if (name, size, precision) not in done
    ]
    record = {
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
        **machine,
        "peak_multiply_adds": measured_peak(device) if device.type == "cuda" else None,
        "rows": rows,
    }
    for name, size, precision in tqdm(cells, desc="bench", unit="cell"):
        found = measure_alone(name, size, device.type, args.repeats, precision)
        rows.append({"model": name, "size": size, "precision": precision, **found})
        partial = out.with_suffix(".part")
        partial.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        os.replace(partial, out)
    print(table(record))
    print(f"written to {out}")
    return 0


def table(record: dict) -> str:
    """The rows as a table in Markdown, with ratios to ``unet`` at the same size and precision.

    The precision has a column of its own only if there are several.
    """
    mixed = len({row["precision"] for row in record["rows"]}) > 1
    reference = {
        (row["size"], row["precision"]): row
        for row in record["rows"]
        if row["model"] == "unet" and "error" not in row
    }
    lines = [
        "| network | side |"
        + (" precision |" if mixed else "")
        + " parameters | G mult-adds | s/image | s/step | × unet | GiB |"
        + (" of peak |" if record["peak_multiply_adds"] else ""),
        "|---|--:|" + "---|" * mixed + "--:|" * (7 if record["peak_multiply_adds"] else 6),
    ]
    for row in record["rows"]:
        start = f"| `{row['model']}` | {row['size']} | "
        if mixed:
            start += f"{row['precision']} | "
        if "error" in row:
            lines.append(f"{start}{row['error']} |")
            continue
        beside = reference.get((row["size"], row["precision"]))
        ratio = f"{row['step_seconds'] / beside['step_seconds']:.3g}" if beside else "–"
        memory = "–" if row["peak_bytes"] is None else f"{row['peak_bytes'] / 2**30:.2f}"
        cells = [
            f"{row['parameters']:,}",
            f"{row['multiply_adds'] / 1e9:.2f}",
            f"{row['predict_seconds']:.3g}",
            f"{row['step_seconds']:.3g}",
            ratio,
            memory,
        ]
        if record["peak_multiply_adds"]:
            # A step is one forward pass and a backward pass of twice its cost.
            rate = 3 * row["multiply_adds"] / row["step_seconds"]
            cells.append(f"{rate / record['peak_multiply_adds']:.1%}")
        lines.append(start + " | ".join(cells) + " |")
    return "\n".join(lines)


def write_table() -> int:
    """Put the committed measurements into ``book/costs.md``; returns the exit status."""
    root = project_root()
    page, tables = root / "book" / "costs.md", []
    for path in sorted((root / "data" / "results").glob("bench-*.json")):
        record = json.loads(path.read_text(encoding="utf-8"))
        precisions = ", ".join(sorted({row["precision"] for row in record["rows"]}))
        tables.append(
            f"**{record['device']}**, {record['cores']} cores, {precisions}, torch "
            f"{record['versions']['torch']}, {record['when'][:10]}\n\n{table(record)}"
        )
    text = page.read_text(encoding="utf-8")
    page.write_text(between_markers(text, "\n\n".join(tables), BEGIN, END), encoding="utf-8")
    return 0


def main(argv: list[str] | None = None) -> int:
    """Measure, or write the book's table; returns the exit status."""
    forgive_streams()
    parser = argparse.ArgumentParser(prog="python -m retina_lab.bench", description=__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True)
    verbs.add_parser("table", help="write the committed measurements into the book")
    measuring = verbs.add_parser("run", help="measure")
    measuring.add_argument("--models", nargs="*", choices=list(MODELS), default=list(MODELS))
    measuring.add_argument("--sizes", nargs="*", type=int, default=list(SIZES))
    measuring.add_argument("--repeats", type=int, default=5)
    measuring.add_argument("--precisions", nargs="*", choices=PRECISIONS)
    measuring.add_argument("--device", default="auto")
    measuring.add_argument("--resume", action="store_true", help="keep rows that are there")
    measuring.add_argument("--out", help="default: data/results/bench-DEVICE.json")
    args = parser.parse_args(argv)
    return write_table() if args.verb == "table" else run(args)


if __name__ == "__main__":
    sys.exit(main())
