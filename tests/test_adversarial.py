"""The adversarial losses by hand, and the game that ``fit`` plays with them."""

import math

import pandas as pd
import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F
from safetensors.torch import load_file

from retina_lab.adversarial import (
    PAPERS,
    AdversarialTraining,
    Adversary,
    adversarial_loss,
    as_adversary,
    gradient_penalty,
    share_called_real,
)
from retina_lab.models import DropBlock2d, build_model
from retina_lab.train import TrainingError, fit, load_run

QUICK = {"crop": 32, "batch_size": 2, "progress": False, "threshold": False, "device": "cpu"}
PIXEL = Adversary("pixel", width=4)


@pytest.mark.parametrize(
    ("kind", "verdicts", "real", "expected"),
    [
        ("bce", [[0.0, 0.0]], True, math.log(2)),
        ("bce", [[0.0, 0.0]], False, math.log(2)),
        ("bce", [[math.log(3)]], True, math.log(4 / 3)),  # probability 3/4
        ("bce", [[math.log(3)]], False, math.log(4)),
        ("least squares", [[1.0, 0.5]], True, 0.125),
        ("least squares", [[1.0, 0.5]], False, 0.625),
        # two outputs weigh the same, however many places they have
        ("least squares", [[1.0, 1.0, 1.0, 1.0], [0.0]], True, 0.5),
    ],
)
def test_adversarial_losses(kind, verdicts, real, expected):
    tensors = tuple(torch.tensor(v)[None, None, None] for v in verdicts)
    assert adversarial_loss(tensors, real, kind).item() == pytest.approx(expected)


@pytest.mark.parametrize(("kind", "expected"), [("bce", 0.75), ("least squares", 0.25)])
def test_share_called_real(kind, expected):
    verdicts = (torch.tensor([-1.0, 0.2, 0.4, 0.6])[None, None, None],)
    assert share_called_real(verdicts, kind) == expected


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"discriminator": "patch"}, "unknown discriminator 'patch'"),
        ({"loss": "wasserstein"}, "adversarial loss"),
        ({"generator_steps": 0}, "generator_steps"),
        ({"width": 0}, "width"),
        ({"weight": -1}, "weight"),
        ({"weight": math.nan}, "weight"),
        ({"lr": 0}, "lr"),
    ],
)
def test_absurd_rules_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        Adversary(**{"discriminator": "pixel", **settings})


def test_the_papers_rules():
    assert as_adversary("image") == Adversary("image", weight=0.1, loss="bce", generator_steps=2)
    assert PAPERS["multi-scale-cam"].loss == "least squares"
    with pytest.raises(ValueError, match="unknown discriminator 'none'"):
        as_adversary("none")


def test_a_weightless_adversary_changes_nothing(made_samples):
    """Bit for bit the same network as without one: the rest of the loop is the same."""
    settings = {"epochs": 3, "seed": 4, **QUICK}
    alone = fit("tiny-unet", made_samples, **settings)
    watched = fit("tiny-unet", made_samples, adversary=Adversary("pixel", 0.0, width=4), **settings)
    one, other = alone.model.state_dict(), watched.model.state_dict()
    assert all(torch.equal(one[key], other[key]) for key in one)
    against = fit("tiny-unet", made_samples, adversary=PIXEL, **settings)
    assert not torch.equal(against.model.head.weight, alone.model.head.weight)


def test_the_discriminator_learns_to_tell_them_apart(made_samples):
    rules = Adversary("pixel", weight=0.0, generator_steps=1, lr=1e-2, width=8)
    history = fit("tiny-unet", made_samples, epochs=40, adversary=rules, **QUICK).history
    end = history.tail(5).mean()
    assert end.discriminator < 0.5 * history.discriminator.iloc[0]
    assert end.real_called_real > 0.9 > 0.2 > end.fake_called_real


def test_the_generator_learns_to_fool(made_samples):
    """Against the same weak opponent, fakes pass more often when fooling it counts."""
    rules = {"generator_steps": 1, "lr": 1e-4, "width": 4}
    shares = [
        fit(
            "tiny-unet", made_samples, epochs=30, lr=1e-2,
            adversary=Adversary("pixel", weight, **rules), **QUICK,
        ).history.adversarial.tail(5).mean()
        for weight in (0.0, 10.0)
    ]  # fmt: skip
    assert shares[1] < shares[0]


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_who_moves_when(made_samples, steps, monkeypatch):
    moves = []
    follow = AdversarialTraining.follow

    def watched(self, loss, name):
        moves.append(name[0])
        judge = self.networks["adversary"]
        before = [p.clone() for p in judge.parameters()]
        follow(self, loss, name)
        moved = any(not torch.equal(p, q) for p, q in zip(before, judge.parameters(), strict=True))
        assert moved == (name == "adversary")
        assert all(p.grad is None for p in judge.parameters())

    monkeypatch.setattr(AdversarialTraining, "follow", watched)
    rules = Adversary("pixel", generator_steps=steps, width=2)
    fit("tiny-unet", made_samples[:2], epochs=6, adversary=rules, **QUICK)
    assert "".join(moves) == {1: "an" * 6, 2: "nan" * 3, 3: "nnan" * 2}[steps]


def test_the_generators_turn_leaves_no_trace_in_the_discriminator(made_samples):
    """Its BatchNorms count the batches of its own turns, one real and one fake, and no others."""
    run = fit("tiny-unet", made_samples[:2], epochs=4, adversary="image", **{**QUICK, "crop": 64})
    norms = [m for m in run.adversary.modules() if isinstance(m, nn.BatchNorm2d)]
    turns = run.history["discriminator"].notna().sum()
    assert 0 < turns < 4
    assert {int(norm.num_batches_tracked) for norm in norms} == {2 * turns}
    assert all(norm.track_running_stats for norm in norms)
    assert all(p.requires_grad for p in run.adversary.parameters())


def test_a_verdict_in_half_precision_is_averaged_in_single():
    verdict = torch.full((1, 1, 64, 64), 0.3).bfloat16()
    loss = adversarial_loss((verdict,), True)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(F.softplus(-verdict[0, 0, 0, 0].float()).item(), rel=1e-6)


@pytest.mark.parametrize("stop_at", [1, 3])
def test_interrupted_equals_uninterrupted(made_samples, tmp_path, stop_at):
    settings = {
        "epochs": 5, "seed": 3, "adversary": Adversary("patch-2", generator_steps=3, width=2),
        **QUICK,
    }  # fmt: skip
    train, val = made_samples[:3], made_samples[3:]
    whole = fit("tiny-unet", train, val, out=tmp_path / "whole", **settings)
    rows = []

    def stop(model, row):
        rows.append(row)
        if len(rows) == stop_at:
            raise KeyboardInterrupt

    assert fit(
        "tiny-unet", train, val, out=tmp_path / "part", callback=stop, **settings
    ).interrupted
    rest = fit("tiny-unet", train, val, out=tmp_path / "part", **settings)
    for name in ("weights", "adversary"):
        one = load_file(tmp_path / f"whole/{name}.safetensors")
        other = load_file(tmp_path / f"part/{name}.safetensors")
        assert all(torch.equal(one[key], other[key]) for key in one)
    same = [name for name in whole.history if name != "seconds"]
    pd.testing.assert_frame_equal(whole.history[same], rest.history[same], check_exact=True)


def test_a_run_comes_back_with_its_adversary(made_samples, tmp_path):
    run = fit("tiny-unet", made_samples, epochs=1, adversary=PIXEL, out=tmp_path, **QUICK)
    again = load_run(tmp_path)
    x = torch.randn(1, 3, 16, 16), torch.rand(1, 1, 16, 16)
    assert torch.equal(again.adversary(*x)[0], run.adversary(*x)[0])
    with pytest.raises(TrainingError, match=r"adversary: .* there, None now"):
        fit("tiny-unet", made_samples, epochs=1, out=tmp_path, **QUICK)


def test_networks_with_two_outputs_and_with_dropblock(made_samples):
    for name in ("w-net", "small-rsan"):
        run = fit(name, made_samples[:2], epochs=2, adversary=PIXEL, **QUICK)
        assert run.history[["loss", "adversarial", "discriminator"]].notna().to_numpy().any(0).all()
    assert any(isinstance(m, DropBlock2d) for m in run.model.modules())


def test_a_broken_discriminator_is_named(made_samples, monkeypatch):
    def broken(verdicts, real, kind):
        return adversarial_loss(verdicts, real, kind) * (math.nan if not real else 1)

    monkeypatch.setattr("retina_lab.adversarial.adversarial_loss", broken)
    with pytest.raises(TrainingError, match="loss of the adversary of step 1 is not finite"):
        fit("tiny-unet", made_samples, epochs=2, adversary=PIXEL, **QUICK)


def test_it_trains_in_bf16(made_samples):
    run = fit(
        build_model("tiny-unet"), made_samples, epochs=2, adversary=PIXEL, precision="bf16-mixed",
        **QUICK,
    )  # fmt: skip
    assert run.history[["loss", "adversarial"]].map(math.isfinite).all(axis=None)


@pytest.mark.parametrize(
    ("slopes", "expected"),
    [
        ([[3.0, 4.0]], 12.5),  # half of 3² + 4², wherever the pictures are
        ([[0.0, 0.0]], 0.0),
        ([[3.0, 4.0], [0.0, 1.0]], 17.0),  # two verdicts a picture: their sum rises by (3, 5)
    ],
)
def test_the_gradient_penalty_by_hand(slopes, expected):
    weights = torch.tensor(slopes, requires_grad=True)
    pictures = torch.randn(5, 2, 1, 1)
    penalty = gradient_penalty(lambda seen: (seen.flatten(1) @ weights.T,), pictures)
    assert penalty.item() == pytest.approx(expected)
    penalty.backward()
    torch.testing.assert_close(weights.grad, weights.detach().sum(0).expand_as(weights))
    assert not pictures.requires_grad
