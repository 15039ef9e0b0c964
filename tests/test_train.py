import json
import math
import signal
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn as nn
from filelock import FileLock
from safetensors.torch import load_file

from retina_lab.augment import Augmentation
from retina_lab.datasets.layouts import Entry, FundusDataset
from retina_lab.datasets.sample import FundusSample
from retina_lab.loop import (
    StopAfterStep,
    TrainingError,
    choose_precision,
    launched_processes,
    parse_budget,
    step_seed,
)
from retina_lab.models import build_model
from retina_lab.train import CropSampler, fit, hold_out, load_run, seen_by, validation_dice
from tests.conftest import made_sample

QUICK = {"crop": 32, "batch_size": 2, "progress": False, "threshold": False, "device": "cpu"}


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("60s", 60), ("5m", 300), ("1.5h", 5400), ("90", 90), (90, 90), (" 2 M ", 120), (".5m", 30)],
)
def test_budgets(text, seconds):
    assert parse_budget(text) == seconds


@pytest.mark.parametrize(
    "text", ["", "soon", "5 parsecs", "-5m", "0s", 0, math.inf, math.nan, "5mm"]
)
def test_unreadable_budgets(text):
    with pytest.raises(ValueError, match="budget"):
        parse_budget(text)


def dataset(*subjects):
    entries = [
        Entry(f"{subject}_{i}", subject, lambda i=i: made_sample(i))
        for i, subject in enumerate(subjects)
    ]
    return FundusDataset("made", entries)


@pytest.mark.parametrize(
    ("subjects", "count", "kept"),
    [
        ("abcdef", 2, ["b_1", "e_4"]),
        ("abcdef", 0, None),
        ("aabbccdd", 2, ["c_4", "c_5"]),
        ("aabbccdd", 3, ["b_2", "b_3", "d_6", "d_7"]),
    ],
)
def test_hold_out_keeps_persons_together(subjects, count, kept):
    train, val = hold_out(dataset(*subjects), count)
    assert (val and val.names) == kept
    if val:
        assert not set(train.subjects) & set(val.subjects)
        assert sorted(train.names + val.names) == sorted(dataset(*subjects).names)


@pytest.mark.parametrize(("count", "message"), [(6, "leave none"), (-1, "negative")])
def test_hold_out_refuses(count, message):
    with pytest.raises(ValueError, match=message):
        hold_out(dataset(*"abcdef"), count)


# --- the sampler -----------------------------------------------------------------------------


def sampler(samples, **keywords):
    settings = {
        "crop": 32,
        "batch_size": 2,
        "augmentation": Augmentation.light(),
        "normalisation": "local",
        "seed": 0,
    }
    return CropSampler(samples, **{**settings, **keywords})


def test_a_batch_is_a_function_of_seed_and_step(made_samples):
    first, second = sampler(made_samples), sampler(made_samples)
    first.batch(0), first.batch(1)
    assert torch.equal(first.batch(5)["image"], second.batch(5)["image"])
    assert not torch.equal(first.batch(5)["image"], first.batch(6)["image"])
    other = sampler(made_samples, seed=1)
    assert not torch.equal(first.batch(5)["image"], other.batch(5)["image"])


def test_an_epoch_shows_every_image_once(made_samples):
    source = sampler(made_samples)
    for epoch in range(3):
        shown = [i for step in range(2) for i in source._order(2 * epoch + step)]
        assert sorted(shown) == [0, 1, 2, 3]


@pytest.mark.parametrize("policy", ["none", "light", "standard", "strong"])
@pytest.mark.parametrize("crop", [16, 48, 100, None])
def test_batches_of_every_policy_and_size(made_samples, policy, crop):
    source = sampler(made_samples, crop=crop, augmentation=getattr(Augmentation, policy)())
    batch = source.batch(3)
    side = {None: (48, 56)}.get(crop, (crop, crop))
    assert batch["image"].shape == (2, 3, *side)
    for name in ("vessels", "fov"):
        assert batch[name].shape == (2, 1, *side)
        assert set(batch[name].unique().tolist()) <= {0.0, 1.0}
    assert torch.isfinite(batch["image"]).all()
    assert (batch["image"] * (1 - batch["fov"])).abs().max() == 0


def test_crops_stay_aligned(made_samples):
    """Vessels are darker than their surroundings wherever they are cut."""
    batch = sampler(made_samples, crop=40).batch(0)
    green, vessels = batch["image"][:, 1:2], batch["vessels"].bool()
    background = (batch["fov"] > 0) & ~vessels
    assert green[vessels].mean() < green[background].mean() - 1


def test_unlabelled_and_empty_are_named(made_samples):
    unlabelled = replace(made_samples[0], vessels=None)
    with pytest.raises(TrainingError, match="made_0 has no vessel labels"):
        sampler([unlabelled])
    blind = replace(made_samples[1], fov=np.zeros_like(made_samples[1].fov))
    with pytest.raises(TrainingError, match="made_1: the field of view is empty"):
        sampler([blind])
    with pytest.raises(TrainingError, match="no training images"):
        sampler([])


# --- fit -------------------------------------------------------------------------------------


def test_it_learns(made_samples):
    run = fit(
        "tiny-unet", made_samples, [made_sample(9)], epochs=120, lr=1e-2, **{**QUICK, "crop": 48}
    )
    assert run.history["loss"].iloc[-1] < 0.5 * run.history["loss"].iloc[0]
    assert run.history["val_dice"].max() > 0.8
    dice = validation_dice(run.model, [made_sample(9)], "local")
    assert dice == pytest.approx(run.history["val_dice"].iloc[-1], abs=1e-3) == run.val_dice
    assert not run.model.training


class Fixed(nn.Module):
    """Says the same of every image: logits by column."""

    def __init__(self, logits):
        super().__init__()
        self.logits = nn.Parameter(torch.tensor(logits))

    def forward(self, image):
        return self.logits.expand(len(image), 1, *image.shape[2:])


def test_validation_is_at_the_best_threshold():
    """Vessel in the columns of p = .3 and .2: at ½ there would be none."""
    image, inside = np.zeros((4, 4, 3), np.uint8), np.ones((4, 4), bool)
    vessels = np.repeat([[False, False, True, True]], 4, axis=0)
    one = FundusSample("one", image, inside, vessels=vessels)
    logits = torch.logit(torch.tensor([0.1, 0.25, 0.3, 0.2])).tolist()
    assert validation_dice(Fixed(logits), [one], "none") == pytest.approx(2 * 2 / (3 + 2))
    assert math.isnan(validation_dice(Fixed(logits), [], "none"))
    blank = replace(one, vessels=~inside)
    assert math.isnan(validation_dice(Fixed(logits), [blank], "none"))


@pytest.mark.parametrize(("schedule", "kept"), [("linear", 4), ("cycles", 1)])
def test_which_weights_are_kept(made_samples, tmp_path, monkeypatch, schedule, kept):
    """Best at its first check: with a rate that falls to zero that is chance, with cycles not."""
    seen, scores = [], iter([0.9, 0.5, 0.6, 0.7])

    def judged(model, *_):
        seen.append({k: v.clone() for k, v in model.state_dict().items()})
        return next(scores)

    monkeypatch.setattr("retina_lab.train.validation_dice", judged)
    run = fit("tiny-unet", made_samples[:4], [made_sample(9)], epochs=4, checks=4,
              schedule=schedule, out=tmp_path, **QUICK)  # fmt: skip
    assert len(seen) == 4
    for name, values in run.model.state_dict().items():
        assert torch.equal(values, seen[kept - 1][name]), name
    assert (tmp_path / "last.safetensors").exists() == (schedule == "cycles")
    assert run.val_dice == [0.9, 0.5, 0.6, 0.7][kept - 1]


class Clock(nn.Module):
    """Shows its BatchNorm the number of the step, so that the running mean tells an age."""

    def __init__(self):
        super().__init__()
        self.steps = 0
        self.norm = nn.BatchNorm2d(1)
        self.head = nn.Conv2d(1, 1, 1)

    def forward(self, image):
        self.steps += self.training
        return self.head(self.norm(torch.full_like(image[:, :1], float(self.steps))))


@pytest.mark.parametrize(("epochs", "age"), [(50, (8, 11)), (300, (24, 34))])
def test_running_averages_reach_back_over_a_tenth_of_the_steps(made_samples, epochs, age):
    clock = fit(Clock(), made_samples[:2], epochs=epochs, augmentation="none", **QUICK).model
    assert clock.steps == epochs
    assert age[0] < clock.steps - clock.norm.running_mean.item() < age[1]


def test_what_lies_in_the_folder(made_samples, tmp_path):
    run = fit("tiny-unet", made_samples[:3], made_samples[3:], epochs=2, out=tmp_path / "run",
              **{**QUICK, "threshold": True})  # fmt: skip
    record = json.loads((tmp_path / "run/run.json").read_text())
    assert record["settings"]["model"] == "tiny-unet"
    assert record["settings"]["train"] == ["made_0", "made_1", "made_2"]
    assert record["threshold"] == {
        "value": run.threshold,
        "from": "3 training and 1 validation images",
    }
    assert 0 < run.threshold <= 1
    assert {"torch", "python", "retina_lab"} <= set(record["versions"])
    assert set(record["seconds"]) == {"train", "threshold"}
    history = pd.read_csv(tmp_path / "run/history.csv")
    assert history["epoch"].tolist() == [1, 2]
    again = load_run(tmp_path / "run")
    x = torch.randn(1, 3, 20, 20)
    assert torch.equal(again.model(x), run.model(x))
    assert again.threshold == run.threshold


@pytest.mark.parametrize("stop_at", [1, 2])
@pytest.mark.parametrize("schedule", ["linear", "cycles"])
def test_interrupted_equals_uninterrupted(made_samples, tmp_path, stop_at, schedule):
    """Bit for bit: weights, history and the optimiser's memory."""
    settings = {"epochs": 4, "seed": 3, "augmentation": "strong", "schedule": schedule, **QUICK}
    whole = fit("tiny-unet", made_samples[:3], made_samples[3:], out=tmp_path / "whole", **settings)

    calls = []

    def stop(model, row):
        calls.append(row)
        if len(calls) == stop_at:
            raise KeyboardInterrupt

    part = fit(
        "tiny-unet", made_samples[:3], made_samples[3:], out=tmp_path / "part", callback=stop,
        **settings,
    )  # fmt: skip
    assert part.interrupted
    assert len(part.history) == stop_at < 4
    rest = fit("tiny-unet", made_samples[:3], made_samples[3:], out=tmp_path / "part", **settings)
    assert not rest.interrupted
    for name in ("weights", "last") if schedule == "cycles" else ("weights",):
        one = load_file(tmp_path / f"whole/{name}.safetensors")
        other = load_file(tmp_path / f"part/{name}.safetensors")
        assert all(torch.equal(one[key], other[key]) for key in one)
    same = ["epoch", "step", "loss", "lr", "val_dice"]
    pd.testing.assert_frame_equal(whole.history[same], rest.history[same], check_exact=True)


def test_ctrl_c_stops_between_two_steps(made_samples, tmp_path):
    """The signal itself: it comes in the middle of a step, and the step is finished first."""
    settings = {"epochs": 6, "seed": 3, **QUICK}
    whole = fit("tiny-unet", made_samples, out=tmp_path / "whole", **settings)

    torch.manual_seed(step_seed(3, 0))
    network = build_model("tiny-unet")
    calls = []

    def interrupt(module, inputs):
        calls.append(1)
        if len(calls) == 5:
            signal.raise_signal(signal.SIGINT)

    handle = network.register_forward_pre_hook(interrupt)
    handler = signal.getsignal(signal.SIGINT)
    part = fit(network, made_samples, out=tmp_path / "part", **settings)
    handle.remove()
    assert part.interrupted
    assert signal.getsignal(signal.SIGINT) is handler
    saved = torch.load(tmp_path / "part/checkpoint.pt", weights_only=True)
    assert saved["step"] == 5
    torch.manual_seed(step_seed(3, 0))
    rest = fit(build_model("tiny-unet"), made_samples, out=tmp_path / "part", **settings)
    assert not rest.interrupted
    x = torch.randn(1, 3, 16, 16)
    assert torch.equal(rest.model(x), whole.model(x))


def test_seed_decides(made_samples):
    one, two = (fit("tiny-unet", made_samples, epochs=1, seed=5, **QUICK) for _ in range(2))
    other = fit("tiny-unet", made_samples, epochs=1, seed=6, **QUICK)
    x = torch.randn(1, 3, 16, 16)
    assert torch.equal(one.model(x), two.model(x))
    assert not torch.equal(one.model(x), other.model(x))


def test_a_finished_run_is_returned_and_not_repeated(made_samples, tmp_path):
    fit("tiny-unet", made_samples, epochs=1, out=tmp_path, **QUICK)
    before = (tmp_path / "weights.safetensors").stat().st_mtime_ns
    run = fit("tiny-unet", made_samples, epochs=1, out=tmp_path, **QUICK)
    assert len(run.history) == 1
    assert (tmp_path / "weights.safetensors").stat().st_mtime_ns == before


def test_a_threshold_is_chosen_afterwards_too(made_samples, tmp_path):
    settings = {**QUICK, "epochs": 1, "out": tmp_path}
    assert fit("tiny-unet", made_samples, **settings).threshold_from == "default"
    settings["threshold"] = True
    chosen = fit("tiny-unet", made_samples, **settings)
    assert chosen.threshold_from == f"{len(made_samples)} training images"
    assert load_run(tmp_path).threshold == chosen.threshold


def test_a_run_on_other_labels_is_another_run(made_samples, tmp_path):
    fit("tiny-unet", made_samples, epochs=1, out=tmp_path, **QUICK)
    corrected = [replace(sample, vessels=~sample.vessels) for sample in made_samples]
    with pytest.raises(TrainingError, match="photographs or labels have changed"):
        fit("tiny-unet", corrected, epochs=1, out=tmp_path, **QUICK)
    record = json.loads((tmp_path / "run.json").read_text())
    del record["settings"]["pixels"]  # as in runs from before
    (tmp_path / "run.json").write_text(json.dumps(record))
    assert not fit("tiny-unet", corrected, epochs=1, out=tmp_path, **QUICK).interrupted


def test_photographs_are_known_again_by_their_pixels(made_samples):
    train, val = made_samples[:2], [replace(made_samples[2], dataset="elsewhere")]
    run = fit("tiny-unet", train, val, epochs=1, **QUICK)
    copies = [replace(made_samples[i], name=f"copy_{i}", dataset="mine") for i in range(4)]
    assert seen_by(run, copies) == ["copy_0", "copy_1", "copy_2"]
    other = replace(copies[3], name=train[0].name, dataset=train[0].dataset)
    assert seen_by(run, [other]) == []  # another photograph of the same name


def test_integers_of_numpy_are_taken(made_samples, tmp_path):
    numbers = {name: np.int64(value) for name, value in (("seed", 2), ("epochs", 1), ("checks", 3))}
    fit("tiny-unet", made_samples, out=tmp_path, **numbers, **QUICK)
    assert load_run(tmp_path).settings["seed"] == 2
    with pytest.raises(ValueError, match=r"epochs must be a whole number, not 1\.5"):
        fit("tiny-unet", made_samples, epochs=1.5, **QUICK)


def test_an_unlabelled_validation_image_is_named_before_anything_is_trained(made_samples):
    val = [replace(made_samples[0], name="bare", vessels=None)]
    with pytest.raises(TrainingError, match="bare has no vessel labels to validate with"):
        fit("tiny-unet", made_samples[1:], val, budget="1h", **QUICK)


def test_another_run_in_the_folder_is_left_alone(made_samples, tmp_path):
    fit("tiny-unet", made_samples, epochs=1, out=tmp_path, **QUICK)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    with pytest.raises(TrainingError, match="seed: 0 there, 1 now"):
        fit("tiny-unet", made_samples, epochs=1, seed=1, out=tmp_path, **QUICK)
    assert before == {p.name: p.read_bytes() for p in tmp_path.iterdir()}


def test_a_broken_checkpoint_is_named(made_samples, tmp_path):
    (tmp_path / "checkpoint.pt").write_bytes(b"not a checkpoint")
    with pytest.raises(TrainingError, match=r"checkpoint\.pt cannot be read"):
        fit("tiny-unet", made_samples, epochs=1, out=tmp_path, **QUICK)


class Explosive(nn.Module):
    """A network whose logits turn NaN at its third call."""

    def __init__(self):
        super().__init__()
        self.convolution = nn.Conv2d(3, 1, 1)
        self.calls = 0

    def forward(self, x):
        self.calls += self.training
        return self.convolution(x) * (math.nan if self.calls >= 3 else 1)


def test_a_loss_that_is_not_a_number_stops_with_an_explanation(made_samples, tmp_path):
    with pytest.raises(TrainingError, match=r"step 2 is not finite.*learning rate"):
        fit(Explosive(), made_samples, epochs=5, out=tmp_path, **QUICK)
    saved = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert all(torch.isfinite(tensor).all() for tensor in saved["networks"]["network"].values())
    assert saved["step"] == 2


class Steep(nn.Module):
    """A network with finite logits and a gradient that is no number."""

    def __init__(self):
        super().__init__()
        self.convolution = nn.Conv2d(3, 1, 1)

    def forward(self, x):
        return self.convolution(x) + (0 * self.convolution.weight).abs().sqrt().sum()


def test_a_gradient_that_is_not_a_number_stops_before_the_weights_move(made_samples, tmp_path):
    with pytest.raises(TrainingError, match=r"the gradient of step 0 is not finite"):
        fit(network := Steep(), made_samples, epochs=1, out=tmp_path, **QUICK)
    assert all(torch.isfinite(p).all() for p in network.parameters())


class Averaging(Explosive):
    """The same with BatchNorm, whose averages are spoiled before the loss is known."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm2d(1)

    def forward(self, x):
        return self.norm(super().forward(x))


def test_a_checkpoint_is_not_replaced_by_spoiled_averages(made_samples, tmp_path):
    with pytest.raises(TrainingError, match=r"step 2 is not finite"):
        fit(Averaging(), made_samples, epochs=5, out=tmp_path, **QUICK)
    saved = torch.load(tmp_path / "checkpoint.pt", weights_only=True)["networks"]["network"]
    assert all(torch.isfinite(tensor).all() for tensor in saved.values())


def test_half_a_step_is_not_saved(made_samples, tmp_path, monkeypatch):
    settings = {"epochs": 3, "seed": 3, "progress": False, **QUICK}
    whole = fit("tiny-unet", made_samples, out=tmp_path / "whole", **settings)
    take, calls = torch.optim.AdamW.step, []

    def interrupted(self, *args, **kwargs):
        take(self, *args, **kwargs)
        calls.append(0)
        if len(calls) == 4:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(torch.optim.AdamW, "step", interrupted)
        assert fit("tiny-unet", made_samples, out=tmp_path / "part", **settings).interrupted
    assert torch.load(tmp_path / "part/checkpoint.pt", weights_only=True)["step"] < 3
    rest = fit("tiny-unet", made_samples, out=tmp_path / "part", **settings)
    x = torch.randn(1, 3, 16, 16)
    assert torch.equal(rest.model(x), whole.model(x))


def test_a_budget_goes_on_where_it_was(made_samples, tmp_path):
    def stop(model, row):
        signal.raise_signal(signal.SIGINT)

    settings = {"budget": "3s", "checks": 2, "out": tmp_path, **QUICK}
    part = fit("tiny-unet", made_samples, callback=stop, **settings)
    assert part.interrupted
    assert part.history["seconds"].iloc[-1] < 3
    rest = fit("tiny-unet", made_samples, **settings)
    assert rest.history["seconds"].is_monotonic_increasing
    assert rest.history["lr"].is_monotonic_decreasing
    assert 3 <= rest.history["seconds"].iloc[-1] < 4
    assert rest.history.iloc[: len(part.history)].equals(part.history)


def test_a_budget_ends_and_the_rate_falls_to_its_end(made_samples):
    run = fit("tiny-unet", made_samples, budget="2s", **QUICK)
    assert run.history["lr"].is_monotonic_decreasing
    assert run.history["lr"].iloc[-1] < 0.2 * 2e-3
    assert run.settings["budget_seconds"] == 2


def test_a_cycle_ends_with_its_check(made_samples):
    """Eight steps, two cycles: a quarter of the way at the end of an epoch, then three quarters."""
    run = fit(
        "tiny-unet", made_samples[:4], epochs=4, schedule="cycles", checks=2, lr=1e-3, **QUICK
    )
    quarter, rest = (1 + math.sqrt(0.5)) / 2, (1 - math.sqrt(0.5)) / 2
    assert run.history["lr"].tolist() == pytest.approx([1e-3 * quarter, 1e-3 * rest] * 2)


def test_a_cycle_does_not_wait_for_the_end_of_an_epoch(made_samples):
    """Four steps an epoch: a cycle of four ends with it, two of two end in its middle too."""
    run = fit(
        "tiny-unet", made_samples[:4], epochs=3, schedule="cycles", checks=3, lr=1e-3,
        **{**QUICK, "batch_size": 1},
    )  # fmt: skip
    whole = run.history["lr"].tolist()
    cut = fit(
        "tiny-unet", made_samples[:4], epochs=3, schedule="cycles", checks=6, lr=1e-3,
        **{**QUICK, "batch_size": 1},
    )  # fmt: skip
    low = (1 + math.cos(math.pi * 3 / 4)) / 2, (1 + math.cos(math.pi / 2)) / 2
    assert whole == pytest.approx([1e-3 * low[0]] * 3)
    assert cut.history["lr"].tolist() == pytest.approx([1e-3 * low[1]] * 6)
    assert cut.history["epoch"].tolist() == [0.5, 1, 1.5, 2, 2.5, 3]


def test_a_run_from_before_a_setting_was_there_is_known(made_samples, tmp_path):
    run = fit("tiny-unet", made_samples, epochs=1, out=tmp_path, **QUICK)
    record = json.loads((tmp_path / "run.json").read_text())
    del record["settings"]["schedule"]
    (tmp_path / "run.json").write_text(json.dumps(record))
    again = fit("tiny-unet", made_samples, epochs=1, out=tmp_path, **QUICK)
    assert again.history["loss"].tolist() == pytest.approx(run.history["loss"].tolist())
    with pytest.raises(TrainingError, match="schedule: None there, 'cycles' now"):
        fit("tiny-unet", made_samples, epochs=1, schedule="cycles", out=tmp_path, **QUICK)


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, (2, 1)),
        ({"TORCHELASTIC_RUN_ID": "x", "LOCAL_WORLD_SIZE": "4", "WORLD_SIZE": "8"}, (4, 2)),
        ({"SLURM_NTASKS": "6", "SLURM_NNODES": "3", "SLURM_JOB_NAME": "train"}, (2, 3)),
        ({"SLURM_NTASKS": "6", "SLURM_NNODES": "3", "SLURM_JOB_NAME": "bash"}, (2, 1)),
        ({"SLURM_NTASKS": "1", "SLURM_JOB_NAME": "train"}, None),
    ],
)
def test_the_launcher_says_how_many(monkeypatch, variables, expected):
    for name in ("TORCHELASTIC_RUN_ID", "SLURM_NTASKS", "SLURM_NNODES", "SLURM_JOB_NAME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    if expected is None:
        with pytest.raises(ValueError, match="SLURM has started 1 processes a node, not 2"):
            launched_processes(2)
    else:
        assert launched_processes(2) == expected


def test_one_folder_is_trained_by_one_process(made_samples, tmp_path):
    with (
        FileLock(tmp_path / ".lock"),
        pytest.raises(TrainingError, match="is being trained by another process"),
    ):
        fit("tiny-unet", made_samples, epochs=1, out=tmp_path, **QUICK)
    run = fit("tiny-unet", made_samples, epochs=1, out=tmp_path, **QUICK)
    with FileLock(tmp_path / ".lock"):  # a finished run may be read by many
        again = fit("tiny-unet", made_samples, epochs=1, out=tmp_path, **QUICK)
    x = torch.randn(1, 3, 20, 20)
    assert torch.equal(again.model(x), run.model(x))
    assert again.history["seconds"].tolist() == pytest.approx(run.history["seconds"].tolist())


def test_a_second_sigterm_does_not_cut_a_step():
    with StopAfterStep() as stop:
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)
        assert stop.asked
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


@pytest.mark.slow
def test_torchrun_trains_one_network_in_two_processes(folder, tmp_path):
    arguments = [
        *("train", "--dataset", str(folder), "--model", "tiny-unet", "--crop", "32", "--val", "1"),
        *("--device", "cpu", "--epochs", "2", "--out", str(tmp_path / "run")),
    ]
    subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2",
         "--master-port", "29511", "-m", "retina_lab.cli", *arguments],
        check=True, timeout=240, capture_output=True,
    )  # fmt: skip
    run = load_run(tmp_path / "run")
    assert not run.interrupted
    assert run.history["epoch"].iloc[-1] == 2
    assert run.threshold_from.startswith("4 training")


def test_several_datasets_are_all_recorded(made_samples):
    foreign = [replace(s, name=f"far {s.name}", dataset="abroad") for s in made_samples[:2]]
    run = fit("tiny-unet", [*made_samples[:2], *foreign, made_samples[2]], epochs=1, **QUICK)
    assert run.settings["dataset"] == f"{made_samples[0].dataset} + abroad"


def test_the_first_dataset_is_at_home(made_samples):
    """Photographs from elsewhere are learned from; scale and threshold are not theirs."""
    ours = list(made_samples[:2])
    theirs = [
        FundusSample(
            f"far {s.name}", *(np.kron(p, np.ones((2, 2, 1)[: p.ndim], p.dtype)) for p in
            (s.image, s.fov)), vessels=np.kron(s.vessels, np.ones((2, 2), bool)), dataset="abroad",
        )
        for s in made_samples[:3]
    ]  # fmt: skip
    quick = {**QUICK, "threshold": True}
    alone, with_them = (
        fit("tiny-unet", photographs, [made_samples[3]], epochs=1, **quick)
        for photographs in (ours, [*ours, *theirs])
    )
    assert with_them.settings["fov_width"] == alone.settings["fov_width"]
    assert with_them.threshold_from == alone.threshold_from == "2 training and 1 validation images"


@pytest.mark.parametrize(("train", "val"), [((0, 1, 0), ()), ((0, 1), (1,))])
def test_one_image_is_not_used_twice(made_samples, train, val):
    with pytest.raises(
        ValueError, match=f"two images are called '{made_samples[max(val, default=0)].name}'"
    ):
        fit(
            "tiny-unet", [made_samples[i] for i in train], [made_samples[i] for i in val],
            epochs=1, **QUICK,
        )  # fmt: skip


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"epochs": 1, "schedule": "spiral"}, "schedule must be one of linear, cycles"),
        ({}, "either epochs or a budget"),
        ({"epochs": 1, "budget": "1s"}, "either epochs or a budget"),
        ({"epochs": 0}, "epochs"),
        ({"epochs": 1, "batch_size": 0}, "batch_size"),
        ({"epochs": 1, "lr": -1}, "lr"),
        ({"epochs": 1, "seed": -1}, "seed"),
        ({"epochs": 1, "loss": "mse"}, "mse"),
        ({"epochs": 1, "augmentation": "wild"}, "wild"),
        ({"epochs": 1, "checks": 0}, "checks"),
    ],
)
def test_absurd_settings_are_named(made_samples, keywords, message):
    with pytest.raises(ValueError, match=message):
        fit("tiny-unet", made_samples, **{**QUICK, **keywords})


def test_load_run_names_what_is_missing(made_samples, tmp_path):
    with pytest.raises(TrainingError, match=r"run\.json is missing"):
        load_run(tmp_path)
    fit("tiny-unet", made_samples, epochs=1, out=tmp_path, **QUICK)
    (tmp_path / "weights.safetensors").write_bytes(b"\0" * 20)
    with pytest.raises(TrainingError, match="cannot be read"):
        load_run(tmp_path)


def test_a_network_without_a_name_needs_its_architecture(made_samples, tmp_path):
    model = nn.Conv2d(3, 1, 3, padding=1)
    fit(model, made_samples, epochs=1, out=tmp_path, **QUICK)
    with pytest.raises(TrainingError, match="pass it"):
        load_run(tmp_path)
    again = load_run(tmp_path, nn.Conv2d(3, 1, 3, padding=1))
    assert torch.equal(again.model.weight, model.weight)


def test_bf16_only_where_the_processor_has_it(monkeypatch):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    assert choose_precision("cpu") == "32-true"
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True)
    assert choose_precision("cpu") == "bf16-mixed"
    assert choose_precision("mps") == "32-true"


def test_a_card_that_emulates_bf16_trains_in_fp16(monkeypatch):
    for native, expected in ((True, "bf16-mixed"), (False, "16-mixed")):
        monkeypatch.setattr(
            torch.cuda,
            "is_bf16_supported",
            lambda including_emulation=True, native=native: including_emulation or native,
        )
        assert choose_precision("cuda") == expected


def test_it_trains_in_bf16(made_samples):
    run = fit("tiny-unet", made_samples, epochs=2, precision="bf16-mixed", **QUICK)
    assert np.isfinite(run.history["loss"]).all()
    assert next(run.model.parameters()).dtype == torch.float32


# --- two processes ---------------------------------------------------------------------------

TWO = """
import sys, torch
sys.path[:0] = {path!r}
from lightning_fabric import Fabric
from tests.conftest import made_sample
from retina_lab.augment import Augmentation
from retina_lab.losses import build_loss
from retina_lab.models import build_model
from retina_lab.train import CropSampler, fit

if __name__ == "__main__":
    devices = int(sys.argv[1])
    samples = [made_sample(seed) for seed in range(4)]
    fabric = Fabric(accelerator="cpu", devices=devices)
    fabric.launch()
    torch.manual_seed(0)
    # Batch statistics differ between half a batch and a whole one, so they are frozen here.
    model = fabric.setup(build_model("tiny-unet").eval())
    source = CropSampler(samples, 32, 4, Augmentation.standard(), "local", 0)
    batch = source.batch(7)
    mine = slice(fabric.global_rank, None, fabric.world_size)
    loss = build_loss("bce + dice + cldice + focal")
    fabric.backward(loss(model(batch["image"][mine]), batch["vessels"][mine], batch["fov"][mine]))
    if fabric.global_rank == 0:
        torch.save({{k: p.grad for k, p in model.module.named_parameters()}}, sys.argv[2])
"""


@pytest.mark.slow
def test_two_processes_give_the_gradient_of_the_joint_batch(tmp_path):
    script = tmp_path / "two.py"
    script.write_text(TWO.format(path=sys.path))
    for devices in (1, 2):
        subprocess.run(
            [sys.executable, str(script), str(devices), str(tmp_path / f"{devices}.pt")],
            check=True, timeout=240, capture_output=True,
        )  # fmt: skip
    one, two = (torch.load(tmp_path / f"{n}.pt", weights_only=True) for n in (1, 2))
    assert one.keys() == two.keys()
    for name in one:
        assert torch.allclose(one[name], two[name], atol=1e-6, rtol=1e-4), name
    assert max(gradient.abs().max() for gradient in one.values()) > 1e-3


@pytest.mark.slow
def test_fit_runs_in_two_processes(tmp_path):
    script = tmp_path / "fit_two.py"
    script.write_text(
        f"import sys\nsys.path[:0] = {sys.path!r}\n"
        "from tests.conftest import made_sample\nfrom retina_lab.train import fit\n"
        "if __name__ == '__main__':\n"
        "    fit('tiny-unet', [made_sample(i) for i in range(4)], [made_sample(5)], budget='4s',\n"
        "        crop=32, devices=2, device='cpu', progress=False, out=sys.argv[1])\n"
    )
    subprocess.run(
        [sys.executable, str(script), str(tmp_path / "run")],
        check=True, timeout=240, capture_output=True,
    )  # fmt: skip
    run = load_run(tmp_path / "run")
    assert len(run.history) > 1
    assert 0 < run.threshold <= 1


def test_build_model_and_fit_start_from_the_same_weights(made_samples):
    """A module handed over is trained as it is, not rebuilt."""
    torch.manual_seed(0)
    model = build_model("tiny-unet")
    before = model.head.weight.detach().clone()
    run = fit(model, made_samples, epochs=1, lr=1e-8, weight_decay=0, **QUICK)
    assert torch.allclose(run.model.head.weight, before, atol=1e-6)
