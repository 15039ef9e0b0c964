import json
import multiprocessing
from pathlib import Path

import pytest
import torch
import torch.nn as nn

from retina_lab import bench
from retina_lab.models import count_parameters


def test_it_measures_writes_and_goes_on(tmp_path, capsys):
    out = tmp_path / "bench.json"
    argv = ["run", "--models", "tiny-unet", "--repeats", "1", "--device", "cpu", "--out", str(out)]
    assert bench.main([*argv, "--sizes", "32"]) == 0
    first = json.loads(out.read_text())["rows"]
    assert bench.main([*argv, "--sizes", "32", "64", "--resume"]) == 0
    small, large = json.loads(out.read_text())["rows"]
    assert [small] == first
    assert "| `tiny-unet` | 64 | 7,629 |" in capsys.readouterr().out
    assert large["multiply_adds"] == 4 * small["multiply_adds"]
    assert small["parameters"] == large["parameters"] == 7629
    old = json.loads(out.read_text()) | {"device": "another card"}
    out.write_text(json.dumps(old))
    assert bench.main([*argv, "--sizes", "96", "--resume"]) == 1  # not under another's name
    assert "another card" in capsys.readouterr().err
    assert json.loads(out.read_text()) == old
    assert large["peak_bytes"] is None or large["peak_bytes"] > 0


def test_multiply_adds_of_one_convolution():
    row = bench.measure(lambda: nn.Conv2d(3, 1, 3, padding=1), 16, bench.pick_device("cpu"), 1)
    assert row["multiply_adds"] == 3 * 9 * 16 * 16


def test_a_child_that_runs_out_of_memory_leaves_a_row(monkeypatch):
    answer = multiprocessing.SimpleQueue()

    def greedy(*_):
        raise RuntimeError("not enough memory: you tried to allocate 1 TiB\nlong trace")

    monkeypatch.setattr(bench, "measure", greedy)
    bench.measure_by_name("tiny-unet", 32, "cpu", 1, "float32", answer)
    assert answer.get() == {"error": "not enough memory: you tried to allocate 1 TiB"}


def test_every_network_can_be_counted_without_computing():
    for name, build in bench.contestants(["tiny-unet", "small-du-net", "small-du-net-9"]).items():
        logits = build().to("meta").eval()(torch.zeros(1, 3, 64, 64, device="meta"))
        assert logits.shape == (1, 1, 64, 64), name


def row(model, size, step, multiply_adds=10**9, **more):
    return {
        "model": model, "size": size, "precision": "float32", "parameters": 1000,
        "multiply_adds": multiply_adds, "predict_seconds": 0.25, "step_seconds": step,
        "peak_bytes": 2**30, **more,
    }  # fmt: skip


def test_the_table_shows_ratios_to_the_full_unet_at_the_same_size():
    rows = [
        row("unet", 256, 2.0),
        row("rsan", 256, 5.0),
        row("rsan", 512, 5.0),
        {"model": "unet", "size": 512, "precision": "float32", "error": "out of memory"},
    ]
    lines = bench.table({"rows": rows, "peak_multiply_adds": None}).splitlines()
    assert lines[2] == "| `unet` | 256 | 1,000 | 1.00 | 0.25 | 2 | 1 | 1.00 |"
    assert lines[3].endswith("| 5 | 2.5 | 1.00 |")
    assert lines[4].endswith("| 5 | – | 1.00 |")
    assert lines[5] == "| `unet` | 512 | out of memory |"


def test_several_precisions_have_a_column():
    rows = [row("unet", 256, 2.0), row("unet", 256, 1.0, precision="bfloat16")]
    lines = bench.table({"rows": rows, "peak_multiply_adds": None}).splitlines()
    assert lines[0].startswith("| network | side | precision | parameters |")
    assert lines[2].startswith("| `unet` | 256 | float32 | 1,000 |")
    assert lines[3].startswith("| `unet` | 256 | bfloat16 | 1,000 |")
    assert {line.count("|") for line in lines} == {lines[0].count("|")}


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux")
def test_peak_memory_forgets_and_counts():
    device = torch.device("cpu")
    ballast = torch.ones(50_000_000)  # 200 MB
    del ballast
    before = bench.peak_memory(device, reset=True)
    held = torch.ones(25_000_000)  # 100 MB
    assert 90e6 < bench.peak_memory(device) - before < 150e6
    assert held.sum() == 25_000_000


def test_share_of_the_peak_counts_three_passes():
    rows = [row("unet", 256, 2.0, multiply_adds=10**12)]
    table = bench.table({"rows": rows, "peak_multiply_adds": 6e12})
    assert table.splitlines()[-1].endswith("| 25.0% |")


def test_the_book_shows_the_committed_measurements(tmp_path, monkeypatch):
    (tmp_path / "book").mkdir()
    (tmp_path / "data" / "results").mkdir(parents=True)
    page = tmp_path / "book" / "costs.md"
    page.write_text(f"# Costs\n\n{bench.BEGIN}\n{bench.END}\n")
    record = {
        "when": "2026-01-02T03:04:05", "device": "made up", "cores": 2, "versions": {"torch": "9"},
        "peak_multiply_adds": None, "rows": [row("unet", 256, 2.0)],
    }  # fmt: skip
    (tmp_path / "data" / "results" / "bench-cpu.json").write_text(json.dumps(record))
    monkeypatch.setattr(bench, "project_root", lambda: tmp_path)
    assert bench.main(["table"]) == 0
    assert "**made up**, 2 cores, float32, torch 9, 2026-01-02" in page.read_text()
    assert "| `unet` | 256 |" in page.read_text()


def test_monai_stands_beside_the_full_unet_only():
    assert list(bench.contestants(["unet", "small-unet"])) == ["unet", "unet (MONAI)", "small-unet"]
    ours, theirs = (count_parameters(build()) for build in bench.contestants(["unet"]).values())
    assert abs(ours - theirs) / ours < 0.01
