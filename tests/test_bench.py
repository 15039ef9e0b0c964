import json

from retina_lab import bench
from retina_lab.models import count_parameters


def test_it_measures_and_writes(tmp_path, capsys):
    out = tmp_path / "bench.json"
    argv = ["--models", "tiny-unet", "--sizes", "32", "64", "--repeats", "1", "--device", "cpu"]
    assert bench.main([*argv, "--out", str(out)]) == 0
    small, large = json.loads(out.read_text())["rows"]
    assert large["multiply_adds"] == 4 * small["multiply_adds"]
    assert small["parameters"] == large["parameters"] == 7629
    assert "tiny-unet" in capsys.readouterr().out


def test_multiply_adds_of_one_convolution():
    import torch.nn as nn

    row = bench.measure(lambda: nn.Conv2d(3, 1, 3, padding=1), 16, bench.pick_device("cpu"), 1)
    assert row["multiply_adds"] == 3 * 9 * 16 * 16


def test_monai_stands_beside_the_full_unet_only():
    assert list(bench.contestants(["unet", "small-unet"])) == ["unet", "unet (MONAI)", "small-unet"]
    ours, theirs = (count_parameters(build()) for build in bench.contestants(["unet"]).values())
    assert abs(ours - theirs) / ours < 0.01
