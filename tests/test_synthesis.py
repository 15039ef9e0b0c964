"""Training and using the synthesis models, on small made-up eyes."""

import json
import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn as nn
from PIL import Image
from safetensors.torch import load_file

from retina_lab import cli, sampling, synthesis
from retina_lab.datasets import open_dataset, open_split
from retina_lab.loop import TrainingError
from retina_lab.pairs import LESIONS, PairSampler, as_vessels, field_box, make_pairs, square
from retina_lab.sampling import (
    between_codes,
    draw_trees,
    encode_trees,
    lesions_from_map,
    made_lesions,
    make_samples,
    paint,
    place_lesion,
    principal_directions,
    random_codes,
    random_noise,
    write_samples,
)
from retina_lab.synthesis import (
    GENERATORS,
    SETTLING,
    SYNTHESIS,
    Recipe,
    SynthesisTraining,
    find_recipe,
    fit_synthesis,
    layout_loss,
    load_synthesis,
)
from tests.conftest import made_sample

QUICK = {"width": 4, "batch_size": 2, "progress": False, "device": "cpu"}


def graded(count=4):
    """Made-up eyes with a grade and a lesion."""
    samples = []
    for i in range(count):
        sample = made_sample(i)
        lesions = np.zeros(sample.size, np.uint8)
        lesions[20:26, 24:30] = 1 + i % 4
        samples.append(replace(sample, lesions=lesions, grade=i % 2))
    return samples


@pytest.fixture(scope="module")
def pairs():
    return make_pairs(graded(), 32)


# --- pairs -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rows", "columns", "box"),
    [
        (slice(2, 8), slice(3, 9), (2, 3, 6)),
        (slice(2, 6), slice(0, 10), (-1, 0, 10)),  # wider than high: reaches above the image
        (slice(0, 10), slice(4, 6), (0, 0, 10)),
    ],
)
def test_field_box(rows, columns, box):
    fov = np.zeros((10, 10), bool)
    fov[rows, columns] = True
    assert field_box(fov) == box


def test_square_averages_and_fills_with_black():
    planes = np.arange(4, dtype=np.float32).reshape(2, 2, 1)
    assert square(planes, (0, 0, 2), 1).flatten().tolist() == [1.5]
    assert square(planes, (-1, 0, 2), 2).flatten().tolist() == [0, 0, 0, 1]


def test_pairs_have_everything_in_range(pairs):
    assert pairs.image.shape == (4, 3, 32, 32)
    assert pairs.tree.shape == pairs.fov.shape == (4, 1, 32, 32)
    assert pairs.lesions.shape == (4, 4, 32, 32)
    for planes in (pairs.image, pairs.tree, pairs.fov, pairs.lesions):
        assert planes.min() >= 0
        assert planes.max() <= 1
    assert pairs.grade_names == ("0", "1")
    assert (pairs.image * (1 - pairs.fov)).abs().max() == 0
    assert (pairs.lesions.amax((2, 3)).argmax(1) == torch.arange(4)).all()


def test_a_photograph_without_a_tree_is_named():
    sample = replace(made_sample(0), vessels=None)
    with pytest.raises(TrainingError, match="made_0 has no vessel tree"):
        make_pairs([sample], 32)
    given = make_pairs([sample], 32, {"made_0": made_sample(0).vessels}, "a network")
    assert given.tree_source == "a network"
    torch.testing.assert_close(given.tree, make_pairs([made_sample(0)], 32).tree)
    with pytest.raises(TrainingError, match="no photographs"):
        make_pairs([], 32)


def test_batches_show_every_pair_once_and_keep_planes_together(pairs):
    sampler = PairSampler(pairs, 3, seed=1)
    assert sampler.steps_per_epoch == 2
    shown = [i for step in range(2) for i in sampler.indices(step)]
    assert sorted(set(shown)) == [0, 1, 2, 3]
    plain = PairSampler(pairs, 4, seed=1, vary=False)
    batch = plain.batch(0)
    for row, i in enumerate(plain.indices(0)):
        same = torch.equal(batch["tree"][row], pairs.tree[i])
        mirrored = torch.equal(batch["tree"][row], pairs.tree[i].flip(-1))
        assert same or mirrored
        image = pairs.image[i] if same else pairs.image[i].flip(-1)
        assert torch.equal(batch["image"][row], image)
        assert batch["grade"][row].argmax() == int(pairs.grades[i])
    one, two = sampler.batch(5), sampler.batch(5)
    assert all(torch.equal(one[name], two[name]) for name in one)


# --- training --------------------------------------------------------------------------------


def expected_names(recipe):
    names = {
        "trees": ["autoencoder"],
        "fundus": ["generator"],
        "both": ["autoencoder", "generator"],
    }
    found = names[recipe.makes] + ["refiner"] * bool(recipe.refine)
    if recipe.adversary != "none":
        found = [*found, "code"]
    if recipe.adversary == "dual":
        found = [*found, "tree"]
    return found if recipe.makes == "trees" else [*found, "discriminator"]


class Judge(torch.nn.Module):
    """Stands where VGG-19 stands: five maps, and no half minute."""

    origin = "a judge for tests"

    def forward(self, image):
        return [torch.nn.functional.avg_pool2d(image, 2**k) for k in range(5)]


def fitted(name, pairs, **settings):
    recipe = find_recipe(name)
    judge = Judge() if recipe.style else None
    return fit_synthesis(name, pairs, judge=judge, **{"epochs": 2, **QUICK, **settings})


@pytest.mark.parametrize("name", SYNTHESIS)
def test_every_model_trains_and_comes_back(name, pairs, tmp_path):
    run = fitted(name, pairs, out=tmp_path / "run")
    recipe = run.recipe
    assert run.settings["model"] == name
    assert list(run.networks) == expected_names(recipe)
    assert run.history["step"].tolist() == [2, 4]
    filled = run.history.drop(columns=["epoch"]).notna().all()
    assert filled.all(), run.history.columns[~filled]
    assert np.isfinite(run.history.to_numpy(float)).all()
    again = load_synthesis(tmp_path / "run")
    for key, network in run.networks.items():
        one, other = network.state_dict(), again.networks[key].state_dict()
        assert all(torch.equal(one[k], other[k]) for k in one)
    assert np.array_equal(again.fov, run.fov)
    if recipe.makes != "trees":
        trees = None if recipe.makes == "both" else pairs
        made = make_samples(again, 2, seed=1, trees=trees)
        assert [s.image.shape for s in made] == [(32, 32, 3)] * 2


def test_interrupted_equals_uninterrupted(pairs, tmp_path):
    settings = {"epochs": 4, "seed": 3}
    whole = fitted("mi-gan", pairs, out=tmp_path / "whole", **settings)
    rows = []

    def stop(network, row):
        rows.append(row)
        if len(rows) == 2:
            raise KeyboardInterrupt

    assert fitted("mi-gan", pairs, out=tmp_path / "part", callback=stop, **settings).interrupted
    rest = fitted("mi-gan", pairs, out=tmp_path / "part", **settings)
    one, other = (load_file(tmp_path / f"{n}/weights.safetensors") for n in ("whole", "part"))
    assert all(torch.equal(one[key], other[key]) for key in one)
    same = [name for name in whole.history if name != "seconds"]
    pd.testing.assert_frame_equal(whole.history[same], rest.history[same], check_exact=True)


@pytest.mark.parametrize("reconstruction", ["l1", "bce"])
def test_an_autoencoder_learns_its_trees(pairs, reconstruction):
    recipe = replace(find_recipe("aae"), reconstruction=reconstruction, latent=8)
    run = fit_synthesis(recipe, pairs, epochs=60, lr=2e-3, vary=False, **{**QUICK, "width": 16})
    history = run.history["reconstruction"]
    assert history.tail(5).mean() < 0.6 * history.iloc[0]


def test_a_painter_learns_its_photographs(pairs):
    run = fitted("pix2pix", pairs, epochs=80, lr=2e-3, vary=False, width=16)
    assert run.history["distance"].tail(5).mean() < 0.5 * run.history["distance"].iloc[0]
    painted = paint(run, pairs.tree).astype(float) / 255
    real = pairs.image.permute(0, 2, 3, 1).numpy()
    assert np.abs(painted - real).mean() < np.abs(real - real.mean((1, 2), keepdims=True)).mean()


def test_norms_are_settled_with_the_last_weights(pairs):
    """Their statistics are plain means over batches, not running averages over a training."""
    encoder = fitted("pix2pix", pairs).networks["generator"].encoder
    sampler = PairSampler(pairs, QUICK["batch_size"], seed=0)
    convolution, norm = encoder[1][0], encoder[1][1]
    with torch.no_grad():
        maps = [convolution(encoder[0](sampler.batch(i)["tree"])) for i in range(SETTLING)]
    expected = torch.stack([m.mean((0, 2, 3)) for m in maps]).mean(0)
    torch.testing.assert_close(norm.running_mean, expected, atol=1e-3, rtol=1e-2)
    assert norm.momentum is not None
    assert norm.num_batches_tracked == SETTLING


def test_the_layout_loss_asks_for_squares_and_not_for_places():
    blurred = torch.zeros(1, 1, 32, 32)
    blurred[..., 4:6, :] = 0.5  # in squares of 2×2: half everywhere in the third row
    crisp, elsewhere = torch.zeros(2, 1, 1, 32, 32)
    crisp[..., 4, :], elsewhere[..., 6, :] = 1, 1  # one line in that row of squares; one below
    moved = crisp.roll(1, dims=-2)  # within the squares
    least = layout_loss(blurred, blurred)
    assert layout_loss(crisp, blurred) == layout_loss(moved, blurred) == least
    assert least.item() == pytest.approx(math.log(2) / 16, abs=2e-4)  # a sixteenth is uncertain
    assert layout_loss(elsewhere, blurred) > 2 * least


def test_a_refiner_draws_over_what_the_decoder_draws(pairs, aae):
    run = fitted("refined-aae", pairs, epochs=1)
    codes = random_codes(run, 3, seed=1)
    blurred, crisp = (draw_trees(run, codes, blurred=b) for b in (True, False))
    with torch.inference_mode():
        torch.testing.assert_close(crisp, run.networks["refiner"](blurred, codes).sigmoid())
    assert torch.equal(draw_trees(aae, codes, blurred=True), draw_trees(aae, codes))


def test_the_refiner_and_its_judge_leave_the_decoder_alone(pairs):
    """The tree's judge looks at the refined tree only, and no slope runs on into the decoder."""
    one, other = (
        fit_synthesis(
            replace(find_recipe("refined-aae"), refine=weight, latent=8), pairs, epochs=1, **QUICK
        )
        for weight in (1.0, 50.0)
    )
    for part, same in {"autoencoder": True, "refiner": False}.items():
        a, b = (list(run.networks[part].parameters()) for run in (one, other))
        assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True)) is same


TREES_MOVE = ("autoencoder",)
MOVES = {
    "vae": [TREES_MOVE],
    "aae": [("code",), TREES_MOVE],
    "dual-aae": [("code",), ("tree",), TREES_MOVE],
    "refined-aae": [("code",), ("tree",), ("autoencoder", "refiner")],
    "pix2pix": [("discriminator",), ("generator",)],
    "end-to-end": [("code",), ("discriminator",), ("autoencoder", "generator")],
}


@pytest.mark.parametrize("name", [*MOVES, "mi-gan"])
def test_who_moves_when(name, pairs, monkeypatch):
    moves, follow = [], SynthesisTraining.follow

    def watched(self, loss, *names):
        before = {n: [p.clone() for p in net.parameters()] for n, net in self.networks.items()}
        follow(self, loss, *names)
        moved = {
            n
            for n, network in self.networks.items()
            if any(
                not torch.equal(p, q) for p, q in zip(before[n], network.parameters(), strict=True)
            )
        }
        assert moved == set(names)
        judges = [network for n, network in self.networks.items() if n not in GENERATORS]
        assert all(p.grad is None for judge in judges for p in judge.parameters())
        moves.append(names)

    monkeypatch.setattr(SynthesisTraining, "follow", watched)
    run = fitted(name, pairs, epochs=2)  # two steps an epoch
    if name == "mi-gan":  # its judge learns at every other step
        assert moves == [("generator",), ("discriminator",), ("generator",)] * 2
    else:
        assert moves == 4 * MOVES[name]
    for judge in (network for n, network in run.networks.items() if n not in GENERATORS):
        norms = [m for m in judge.modules() if isinstance(m, nn.BatchNorm2d)]
        turns = 2 if name == "mi-gan" else 4
        slopes = 1 if run.recipe.penalty else 0  # of the first step, by a pass of its own
        assert {int(norm.num_batches_tracked) for norm in norms} <= {2 * turns + slopes}


def test_the_penalty_is_added_at_every_eighth_step_for_all_eight(pairs, monkeypatch):
    followed, follow = [], SynthesisTraining.follow

    def watched(self, loss, *names):
        if names == ("tree",):
            followed.append(loss.item())
        follow(self, loss, *names)

    monkeypatch.setattr(SynthesisTraining, "follow", watched)
    monkeypatch.setattr(synthesis, "gradient_penalty", lambda *_: torch.tensor(0.5))
    recipe = replace(find_recipe("refined-aae"), penalty=3.0, latent=8)
    run = fit_synthesis(recipe, pairs, epochs=9, **QUICK | {"batch_size": len(pairs)})
    added = np.array(followed) - run.history["tree_loss"].to_numpy()
    assert added == pytest.approx([8 * 3 * 0.5, *[0] * 7, 8 * 3 * 0.5], abs=1e-5)


def test_the_penalty_reaches_the_judge_of_trees(pairs):
    """Both judges see the same two trees in the first step; only the penalty can part them."""
    judges = [
        fit_synthesis(
            replace(find_recipe("refined-aae"), penalty=weight, latent=8),
            pairs.select(range(2)), epochs=1, **QUICK,
        ).networks["tree"].state_dict()
        for weight in (0.0, 100.0)
    ]  # fmt: skip
    assert not torch.equal(*(weights["trunk.0.weight"] for weights in judges))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"epochs": None}, "either epochs or a budget"),
        ({"epochs": 0}, "epochs must be at least 1"),
        ({"width": 0}, "width"),
        ({"batch_size": 0}, "batch_size"),
        ({"lr": 0}, "lr"),
        ({"seed": -1}, "seed"),
    ],
)
def test_absurd_settings_are_named(settings, message, pairs):
    with pytest.raises(ValueError, match=message):
        fitted("aae", pairs, **settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"makes": "eyes"}, "makes"),
        ({"adversary": "two"}, "adversary"),
        ({"loss": "hinge"}, "loss"),
        ({"reconstruction": "l2"}, "reconstruction"),
        ({"conditions": ("age",)}, "unknown conditions"),
        ({"latent": 0}, "latent"),
        ({"gamma": 0}, "gamma"),
        ({"adversary": "dual", "refine": -1.0}, "refine"),
        ({"adversary": "code", "refine": 1.0}, "refine is not negative, and needs"),
        ({"makes": "fundus", "refine": 1.0}, "refine"),
        ({"penalty": 1.0}, "penalty is not negative, and is of what judges a refiner"),
    ],
)
def test_absurd_recipes_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        Recipe(**{"makes": "trees", "source": "here", **settings})


def test_missing_conditions_and_names_are_named(pairs):
    with pytest.raises(TrainingError, match="told of the grade, which made does not have"):
        fitted("pix2pix-grade", make_pairs([made_sample(i) for i in range(2)], 32))
    with pytest.raises(ValueError, match="unknown synthesis model 'gan'"):
        find_recipe("gan")
    with pytest.raises(ValueError, match="needs judge"):
        fit_synthesis("mi-gan-style", pairs, epochs=1, **QUICK)


# --- making ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def aae(pairs):
    return fitted("aae", pairs, epochs=1)


@pytest.fixture(scope="module")
def told(pairs):
    return fitted("pix2pix-grade", pairs, epochs=1)


def test_codes_hang_on_the_seed_alone(aae):
    few, many = random_codes(aae, 2, seed=4), random_codes(aae, 5, seed=4)
    assert torch.equal(few, many[:2])
    assert not torch.equal(few, random_codes(aae, 2, seed=5))
    assert draw_trees(aae, few).shape == (2, 1, 32, 32)
    assert encode_trees(aae, draw_trees(aae, few)).shape == few.shape
    with pytest.raises(ValueError, match=r"codes must be \(N, 128\)"):
        draw_trees(aae, torch.zeros(2, 3))


@pytest.mark.parametrize(
    ("share", "spherical", "expected"),
    [
        (0.0, False, [3, 4]),
        (0.5, False, [-0.5, 3.5]),
        (1.0, True, [-4, 3]),
        (0.5, True, [-0.5 * math.sqrt(2), 3.5 * math.sqrt(2)]),  # a length of 5, as the ends have
    ],
)
def test_codes_on_the_way(share, spherical, expected):
    one, other = torch.tensor([[3.0, 4], [-4, 3]])
    assert between_codes(one, other, share, spherical).tolist() == pytest.approx(expected)


@pytest.mark.parametrize("factor", [1.0, 2.0, -1.0])
def test_where_there_is_no_arc_there_is_a_line(factor):
    code = torch.tensor([1.0, -2, 2])
    found = between_codes(code, factor * code, 0.25, spherical=True)
    torch.testing.assert_close(found, (0.75 + 0.25 * factor) * code)


def test_the_arc_keeps_the_length_and_turns_evenly():
    one, other = torch.nn.functional.normalize(torch.randn(2, 6, dtype=torch.float64))
    way = torch.stack([between_codes(one, other, i / 4, spherical=True) for i in range(5)])
    torch.testing.assert_close(way.norm(dim=1), torch.ones(5, dtype=torch.float64))
    turns = (way[1:] * way[:-1]).sum(dim=1)
    torch.testing.assert_close(turns, turns[:1].expand(4))


def test_principal_directions_by_hand():
    codes = torch.tensor([[1.0, 5], [1, -3], [3, 1], [-1, 1]])  # spread 4√2/√3 and 2√2/√3
    mean, directions, deviations = principal_directions(codes, 2)
    assert mean.tolist() == [1, 1]
    assert directions.tolist() == [pytest.approx([0, 1]), pytest.approx([1, 0])]
    assert deviations.tolist() == pytest.approx([math.sqrt(32 / 3), math.sqrt(8 / 3)])
    with pytest.raises(ValueError, match="4 codes have 1 to 2 directions, not 3"):
        principal_directions(codes, 3)


def test_principal_directions_are_those_of_the_covariance():
    torch.manual_seed(0)
    codes = torch.randn(40, 5, dtype=torch.float64) @ torch.randn(5, 5, dtype=torch.float64)
    _, directions, deviations = principal_directions(codes, 3)
    values = torch.linalg.eigvalsh(torch.cov(codes.T)).flip(0)[:3]
    torch.testing.assert_close(deviations.square(), values)
    torch.testing.assert_close(torch.cov(codes.T) @ directions.T, directions.T * values)
    assert (directions.gather(1, directions.abs().argmax(1, keepdim=True)) > 0).all()


def test_who_cannot_do_what(aae, told, pairs):
    with pytest.raises(ValueError, match="makes trees only"):
        paint(aae, pairs.tree)
    with pytest.raises(ValueError, match="makes no trees"):
        draw_trees(told, torch.zeros(1, 128))
    with pytest.raises(ValueError, match="has no encoder"):
        encode_trees(told, pairs.tree)
    with pytest.raises(ValueError, match="unknown grade None; there are: 0, 1"):
        paint(told, pairs.tree)
    with pytest.raises(ValueError, match="64×64 pixels and pix2pix-grade paints 32×32"):
        make_samples(told, 1, trees=make_pairs(graded(), 64))


def test_trees_of_a_smaller_maker_are_enlarged(aae, monkeypatch):
    large = fitted("pix2pix", make_pairs(graded(), 64), epochs=1)
    bar = torch.zeros(1, 1, 32, 32)
    bar[..., 8:11, :] = 1  # twice as high: 16 to 22, and a quarter on either side
    monkeypatch.setattr(sampling, "draw_trees", lambda run, codes: bar)
    (made,) = make_samples(large, 1, trees=aae)
    expected = np.zeros((64, 64), bool)
    expected[15:23] = True
    assert np.array_equal(made.vessels, expected & large.fov)


@pytest.mark.parametrize(
    ("row", "threshold", "expected"),
    [
        ([0.3, 0.3, 0.6, 0.3, 0.2, 0.3], 0.5, [1, 1, 1, 1, 0, 0]),  # faint beside sure, and cut off
        ([0.3, 0.4, 0.4, 0.3, 0.3, 0.4], 0.5, [0, 0, 0, 0, 0, 0]),  # a haze has nothing sure
        ([0.5, 0.25, 0.24, 0.0, 0.0, 1.0], 0.5, [1, 1, 0, 0, 0, 1]),
        ([0.3, 0.3, 0.6, 0.3, 0.2, 0.3], 0.3, [1, 1, 1, 1, 1, 1]),
        ([1 + 1e-6, -1e-6, 0, 0, 0, 0], 1.0, [1, 0, 0, 0, 0, 0]),
    ],
)
def test_faint_pixels_that_are_tied_to_sure_ones_are_vessel(row, threshold, expected):
    planes = np.zeros((2, 3, 6), np.float32)
    planes[1, 1] = row
    found = as_vessels(planes, threshold)
    assert found.dtype == bool
    assert found[1, 1].tolist() == [bool(x) for x in expected]
    assert found.sum() == sum(expected)  # and nothing anywhere else
    assert np.array_equal(as_vessels(planes[1], threshold), found[1])


def test_grades_and_lesions_change_the_painting(told, pairs):
    tree = pairs.tree[:1]
    healthy, ill = (paint(told, tree, grade=g) for g in told.grades)
    assert not np.array_equal(healthy, ill)
    spot = lesions_from_map(place_lesion(np.zeros((32, 32), np.uint8), "exudate", 16, 16, 4), 32)
    assert not np.array_equal(healthy, paint(told, tree, grade="0", lesions=spot))


def test_a_painter_refuses_what_it_cannot_hear(told, pairs):
    deaf = fit_synthesis("pix2pix", pairs, epochs=1, **QUICK)
    for given in (
        {"grade": "0"},
        {"lesions": torch.zeros(4, 4, 32, 32)},
        {"noise": torch.ones(4, 9)},
    ):
        with pytest.raises(ValueError, match="has not been told of"):
            paint(deaf, pairs.tree, **given)
    assert np.array_equal(paint(told, pairs.tree, grade=1), paint(told, pairs.tree, grade="1"))
    with pytest.raises(ValueError, match="4 trees need as many grades, not 1"):
        paint(told, pairs.tree, grade=["1"])


def test_other_trees_are_another_run(pairs, tmp_path):
    fit_synthesis("aae", pairs, epochs=1, out=tmp_path, **QUICK)
    with pytest.raises(TrainingError, match="photographs or trees have changed"):
        fit_synthesis("aae", replace(pairs, tree=1 - pairs.tree), epochs=1, out=tmp_path, **QUICK)


def test_a_tree_of_another_size_is_named():
    samples = graded(2)
    trees = {sample.name: np.zeros((99, 99), bool) for sample in samples}
    with pytest.raises(TrainingError, match=rf"{samples[0].name} is .* shape \(99, 99\)"):
        make_pairs(samples, 32, trees, "another program")


def test_noise_of_mi_gan(pairs):
    run = fitted("mi-gan", pairs, epochs=1)
    noise = random_noise(run, 2, seed=1)
    assert noise.shape == (2, 400)
    assert noise.std().item() == pytest.approx(1, abs=0.1)
    assert torch.equal(noise[:1], random_noise(run, 1, seed=1))
    a, b = (paint(run, pairs.tree[:1], noise=row[None]) for row in noise)
    assert not np.array_equal(a, b)


def test_place_lesion_by_hand():
    empty = np.zeros((5, 5), np.uint8)
    placed = place_lesion(empty, 3, 2, 2, 1)
    assert placed.tolist() == [
        [0, 0, 0, 0, 0],
        [0, 0, 3, 0, 0],
        [0, 3, 3, 3, 0],
        [0, 0, 3, 0, 0],
        [0, 0, 0, 0, 0],
    ]
    assert not empty.any()
    assert place_lesion(placed, "microaneurysm", 0, 0, 0.5)[0, 0] == 1


@pytest.mark.parametrize(
    ("lesion", "message"),
    [
        (("drusen", 1, 1, 1), "unknown lesion 'drusen'"),
        ((5, 1, 1, 1), "kinds are 1 to 4"),
        ((1, 1, 1, 0), "radii positive"),
        ((1, 9, 1, 1), "outside the 5×5 map"),
    ],
)
def test_misplaced_lesions_are_named(lesion, message):
    with pytest.raises(ValueError, match=message):
        place_lesion(np.zeros((5, 5), np.uint8), *lesion)


def test_lesions_of_phantoms_by_grade(told):
    maps = made_lesions(told, ["0", "4", "glaucoma"])
    amount = maps.sum((1, 2, 3))
    assert maps.shape == (3, len(LESIONS), 32, 32)
    assert amount[0] == amount[2] == 0 < amount[1]


def test_a_written_folder_is_a_dataset(told, pairs, tmp_path):
    samples = make_samples(told, 3, seed=2, trees=pairs)
    out = write_samples(samples, tmp_path / "made", {"seed": 2})
    record = json.loads((out / "manifest.json").read_text())
    assert record["banner"] == "Synthetic images, not for clinical use."
    assert [entry["grade"] for entry in record["samples"]] == ["0", "1", "0"]
    read = open_dataset(out)
    for sample, found in zip(samples, read, strict=True):
        assert found.name == sample.name
        assert np.array_equal(found.image, sample.image)
        assert np.array_equal(found.vessels, sample.vessels)
        assert np.array_equal(found.fov, sample.fov)
        lesions = np.asarray(Image.open(out / "lesions" / f"{sample.name}.png"))
        assert np.array_equal(lesions, sample.lesions)
    with pytest.raises(ValueError, match="not empty"):
        write_samples(samples, out)


def test_the_command_line(tmp_path, capsys, monkeypatch):
    common = ["--dataset", "phantom", "--epochs", "1", "--size", "32", "--width", "4",
              "--batch-size", "16", "--device", "cpu"]  # fmt: skip
    for model in ("aae", "pix2pix"):
        out = str(tmp_path / model)
        assert cli.main(["train-synthesis", "--model", model, "--out", out, *common]) == 0
    # Without a split test images stay unseen.
    learned = set(load_synthesis(tmp_path / "pix2pix").settings["train"])
    assert learned == set(open_split("phantom", "official").train.names)
    made = tmp_path / "made"
    arguments = ["--number", "2", "--seed", "1", "--out", str(made)]
    painter, trees = str(tmp_path / "pix2pix"), str(tmp_path / "aae")
    assert cli.main(["synthesize", "--model", painter, "--trees", trees, *arguments]) == 0
    assert "not for clinical use" in capsys.readouterr().out
    assert sorted(p.name for p in (made / "images").iterdir()) == [
        "synthetic_0000.png", "synthetic_0001.png",
    ]  # fmt: skip
    assert cli.main(["synthesize", "--model", "nothing", *arguments]) == 1
    assert "neither a run's folder nor a shipped model" in capsys.readouterr().err
    given = ["--trees", trees, "--split", "official", "--out", str(tmp_path / "x")]
    assert cli.main(["synthesize", "--model", painter, *given]) == 1
    assert "draws the trees itself" in capsys.readouterr().err
    monkeypatch.setattr(cli, "_pairs", lambda *_: pytest.fail("photographs are read"))
    argv = ["train-synthesis", "--model", "aae", "--dataset", "phantom", "--budget", "1hour"]
    assert cli.main([*argv, "--out", str(tmp_path / "x")]) == 1
    assert "cannot read the budget '1hour'" in capsys.readouterr().err


def test_styles_are_taken_from_training_photographs(tmp_path, monkeypatch):
    asked = {}

    def fit(*_, **given):
        asked.update(given)
        raise ValueError("enough is known")

    monkeypatch.setattr("retina_lab.models.vgg.load_vgg19", lambda *_: Judge())
    monkeypatch.setattr("retina_lab.synthesis.fit_synthesis", fit)
    argv = ["train-synthesis", "--model", "mi-gan-style", "--dataset", "phantom", "--styles",
            "phantom", "--epochs", "1", "--size", "32", "--out", str(tmp_path)]  # fmt: skip
    assert cli.main(argv) == 1
    assert len(asked["styles"]) == len(open_split("phantom").train)


def test_a_loss_that_is_not_a_number_is_named(pairs):
    broken = replace(pairs, image=torch.full_like(pairs.image, math.nan))
    with pytest.raises(TrainingError, match="loss of the discriminator of step 0 is not finite"):
        fitted("pix2pix", broken)
