"""Synthesis: vessel trees from noise, photographs from vessel trees.

Three trainings on the loop that segmentation uses (:mod:`retina_lab.loop`):

* :class:`TreeTraining`: variational and adversarial autoencoders of vessel trees;
* :class:`FundusTraining`: pix2pix and MI-GAN, from tree to photograph;
* :class:`EndToEndTraining`: both at once, with the summed loss.

Synthetic images, not for clinical use.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.nn as nn
import torch.nn.functional as F
from safetensors.torch import load_file

from retina_lab.adversarial import (
    adversarial_loss,
    gradient_penalty,
    only_judging,
    share_called_real,
)
from retina_lab.loop import (
    RECORD,
    RULES,
    Loop,
    StopAfterStep,
    TrainingError,
    claim,
    digest,
    parse_budget,
    start_fabric,
    step_seed,
    weights_of,
    write_run,
)
from retina_lab.models import count_parameters
from retina_lab.models.autoencoder import CodeDiscriminator, TreeAutoencoder, kl_divergence
from retina_lab.models.fundus import (
    FundusGenerator,
    PairDiscriminator,
    TreeDiscriminator,
    TreeRefiner,
)
from retina_lab.pairs import LESIONS, PairSampler, TreePairs

GENERATORS = ("autoencoder", "refiner", "generator", "fov")
"""What of a run's weights makes something; the rest are discriminators."""
SETTLING = 32
"""Batches from which the statistics of BatchNorm are measured after a training."""
BANNER = "Synthetic images, not for clinical use."


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What is trained, by which rules.

    The defaults are those of the DR-synthesis report, but for ``code_hidden``.

    Attributes:
        makes: ``"trees"``, ``"fundus"`` or ``"both"`` (end-to-end).
        source: paper.
        adversary: of trees: ``"none"`` (VAE), ``"code"`` (AAE) or ``"dual"`` (and one on the
            decoder's output).
        loss: of the adversaries, ``"bce"`` or ``"least squares"``.
        reconstruction: of trees: ``"l1"`` or ``"bce"``.
        gamma: weight of the reconstruction beside the adversaries (the report's γ = 100).
        latent: length of the code.
        code_hidden: layers of the code's discriminator; () is the report's.
        refine: weight of what binds a :class:`~retina_lab.models.fundus.TreeRefiner` to the
            decoder's blurred tree; above 0, it draws the tree that the second adversary judges.
        penalty: weight of that adversary's gradient penalty R1.
        weight: λ, of the L1 distance between painted and real photograph.
        style: MI-GAN's style transfer loss in the place of L1.
        noise: numbers that the painter is given beside the tree (MI-GAN: 400).
        noise_training: their standard deviation in training (MI-GAN: .001).
        generator_steps: steps of the generator to each of the discriminator.
        conditions: what the painter is told beside the tree: ``"grade"``, ``"lesions"``.
    """

    makes: str
    source: str
    adversary: str = "none"
    loss: str = "bce"
    reconstruction: str = "l1"
    gamma: float = 100.0
    latent: int = 128
    code_hidden: tuple[int, ...] = (256, 256)
    refine: float = 0.0
    penalty: float = 0.0
    weight: float = 100.0
    style: bool = False
    noise: int = 0
    noise_training: float = 0.001
    generator_steps: int = 1
    conditions: tuple[str, ...] = ()

    def __post_init__(self):
        for name, allowed in {
            "makes": ("trees", "fundus", "both"),
            "adversary": ("none", "code", "dual"),
            "loss": ("bce", "least squares"),
            "reconstruction": ("l1", "bce"),
        }.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} is one of {allowed}, not {getattr(self, name)!r}")
        unknown = set(self.conditions) - {"grade", "lesions"}
        if unknown:
            raise ValueError(f"unknown conditions {sorted(unknown)}; there are grade and lesions")
        if self.latent < 1 or self.generator_steps < 1 or self.noise < 0:
            raise ValueError("latent and generator_steps must be at least 1, noise at least 0")
        if not (self.gamma > 0 and self.weight > 0 and self.noise_training >= 0):
            raise ValueError("gamma and weight must be positive, noise_training not negative")
        if self.refine < 0 or (self.refine and (self.makes, self.adversary) != ("trees", "dual")):
            raise ValueError("refine is not negative, and needs trees and a dual adversary")
        if self.penalty < 0 or (self.penalty and not self.refine):
            raise ValueError("penalty is not negative, and is of what judges a refiner")
        if self.makes == "fundus" and self.adversary != "none":
            raise ValueError("an adversary is of trees; a painter always has its own")
        extras = self.noise or self.conditions or self.style
        if self.makes == "both" and (self.adversary == "none" or extras):
            raise ValueError(
                "end-to-end needs an adversary of the code, and takes no noise, condition or style"
            )


AAE, PIX2PIX = "Makhzani et al. 2016; Costa et al. 2018; DR-synthesis report", "Isola et al. 2017"
SYNTHESIS: dict[str, Recipe] = {
    "vae": Recipe(
        makes="trees", source="Kingma and Welling 2014; DR-synthesis report", reconstruction="bce"
    ),
    "aae": Recipe(makes="trees", source=AAE, adversary="code"),
    "aae-ls": Recipe(makes="trees", source=AAE, adversary="code", loss="least squares"),
    "dual-aae": Recipe(makes="trees", source=AAE, adversary="dual"),
    "refined-aae": Recipe(
        makes="trees", source=f"{AAE}; refined after Denton et al. 2015 and Isola et al. 2017",
        adversary="dual", reconstruction="bce", refine=100.0, penalty=0.01,
    ),
    "pix2pix": Recipe(makes="fundus", source=f"{PIX2PIX}; DR-synthesis report"),
    "pix2pix-grade": Recipe(
        makes="fundus",
        source=f"{PIX2PIX}; asked for in the outlook of the DR-synthesis report",
        conditions=("grade", "lesions"),
    ),
    "mi-gan": Recipe(
        makes="fundus", source="Iqbal and Ali 2018", weight=10.0, noise=400, generator_steps=2
    ),
    "mi-gan-style": Recipe(
        makes="fundus", source="Iqbal and Ali 2018, style transfer", noise=400, generator_steps=2,
        style=True,
    ),
    "end-to-end": Recipe(makes="both", source="Costa et al. 2018; DR-synthesis report",
                         adversary="code"),
}  # fmt: skip


def find_recipe(name: str) -> Recipe:
    """The recipe of a name in ``SYNTHESIS``.

    Raises:
        ValueError: if the name is unknown; the message lists the names.
    """
    if name not in SYNTHESIS:
        raise ValueError(f"unknown synthesis model {name!r}; there are: {', '.join(SYNTHESIS)}")
    return SYNTHESIS[name]


# --- the networks of a recipe ----------------------------------------------------------------


def condition_channels(recipe: Recipe, grades: Sequence[str]) -> int:
    """Maps that the painter is given: the tree, one a grade, one a kind of lesion."""
    return (
        1
        + ("grade" in recipe.conditions) * len(grades)
        + ("lesions" in recipe.conditions) * len(LESIONS)
    )


def build_networks(
    recipe: Recipe, size: int, width: int, grades: Sequence[str] = ()
) -> dict[str, nn.Module]:
    """The networks that a recipe trains, with fresh weights; generators first.

    Args:
        recipe: what is trained.
        size: side of the pictures in pixels, a power of two from 16.
        width: channels after the first halving; 64 in the papers.
        grades: names of the grades, where the recipe is told of them.
    """
    networks: dict[str, nn.Module] = {}
    levels = int(math.log2(size))
    if recipe.makes != "fundus":
        networks["autoencoder"] = TreeAutoencoder(size, recipe.latent, width)
    if recipe.refine:
        widths = [width * min(2**level, 8) for level in range(levels - 2)]
        networks["refiner"] = TreeRefiner(size, recipe.latent, widths)
    if recipe.makes != "trees":
        # MI-GAN stops at 8×8 pixels, where the noise comes in; pix2pix goes down to one pixel
        depth = levels - 3 if recipe.noise else min(levels, 8)
        networks["generator"] = FundusGenerator(
            size,
            [width * min(2**level, 8) for level in range(max(2, depth))],
            condition_channels(recipe, grades),
            noise=recipe.noise,
            noise_channels=4 * width,
            dropout=0.0 if recipe.noise else 0.5,
        )
    if recipe.adversary != "none":
        networks["code"] = CodeDiscriminator(recipe.latent, recipe.code_hidden)
    halvings = max(2, levels - 4)  # 16×16 verdicts
    if recipe.refine:  # 4×4 verdicts, which see nearly everything: it is to ask for whole trees
        networks["tree"] = TreeDiscriminator(width, levels - 2)
    elif recipe.adversary == "dual":
        networks["tree"] = PairDiscriminator(0, width, halvings, picture_channels=1)
    if recipe.makes != "trees":
        # MI-GAN: 64 to 512 channels in the generator, 32 to 512 in its judge
        judged = max(1, width // 2) if recipe.noise else width
        networks["discriminator"] = PairDiscriminator(
            condition_channels(recipe, grades), judged, halvings
        )
    return networks


def conditions_of(recipe: Recipe, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """What the painter is given, as maps: the tree, the grade everywhere, the lesions.

    Args:
        recipe: says what it is told.
        batch: ``tree`` (N, 1, S, S), and ``grade`` (N, G) and ``lesions`` (N, 4, S, S) if needed.

    Returns:
        (N, channels, S, S) in [0, 1].
    """
    tree = batch["tree"]
    maps = [tree]
    if "grade" in recipe.conditions:
        maps.append(batch["grade"][:, :, None, None].expand(-1, -1, *tree.shape[2:]))
    if "lesions" in recipe.conditions:
        maps.append(batch["lesions"])
    return torch.cat(maps, dim=1)


def as_painting(image: torch.Tensor) -> torch.Tensor:
    """[0, 1] → [-1, 1], the range of tanh."""
    return 2 * image - 1


# --- the trainings ---------------------------------------------------------------------------


class SynthesisTraining(Loop):
    """What the three trainings share: batches of pairs, and turns with a discriminator.

    Args:
        recipe: the rules.
        sampler: makes the batches.
        **others: see :class:`retina_lab.loop.Loop`.
    """

    def __init__(self, *args, recipe: Recipe, sampler: PairSampler, **others):
        self.recipe, self.sampler = recipe, sampler
        super().__init__(*args, steps_per_epoch=sampler.steps_per_epoch, **others)

    def next_batch(self) -> dict[str, torch.Tensor]:
        """This process's share of the batch of this step."""
        batch = self.sampler.batch(self.step, self.fabric.device)
        mine = slice(self.rank, None, self.fabric.world_size)
        return {name: values[mine] for name, values in batch.items()}

    def play(
        self, name: str, real: tuple, fake: tuple, learns: bool = True, penalty: float = 0.0
    ) -> dict[str, Any]:
        """One round against a discriminator: it learns if it is its turn, then it judges.

        Args:
            name: of the discriminator.
            real: its inputs, for something real.
            fake: its inputs, for something made; the gradient of the verdict reaches them.
            learns: whether it is its turn.
            penalty: weight of its gradient penalty, reckoned at every eighth step for all eight.

        Returns:
            ``fooled``, the generator's adversarial loss, a scalar with gradient, and what there
            is to report.
        """
        judge, kind = self.networks[name], self.recipe.loss
        report: dict[str, Any] = {}
        if learns:
            says_real = _verdicts(judge(*real))
            says_fake = _verdicts(judge(*(x.detach() for x in fake)))
            loss = adversarial_loss(says_real, True, kind) + adversarial_loss(
                says_fake, False, kind
            )
            steep = 0.0
            if penalty and self.step % 8 == 0:  # lazily: Karras et al. 2020, arXiv:1912.04958
                *others, picture = real
                with torch.autocast(picture.device.type, enabled=False):  # slopes of slopes
                    steep = gradient_penalty(
                        lambda seen: _verdicts(judge.module(*others, seen)), picture.float()
                    )
            self.follow(loss + 8 * penalty * steep, name)
            report = {
                f"{name}_loss": loss.item(),
                f"{name}_real": share_called_real(says_real, kind),
                f"{name}_fake": share_called_real(says_fake, kind),
            }
        with only_judging(judge), self.fabric.autocast():
            verdicts = _verdicts(judge.module(*fake))
        return {"fooled": adversarial_loss(verdicts, True, kind), **report}

    def make(self, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, ...]:
        """Everything that the generators make of a batch."""
        raise NotImplementedError

    def settle(self) -> None:
        """Measure the statistics of the generators' BatchNorms again, with the last weights.

        The running averages mix those of weights that are no longer there, and in an adversarial
        training weights never come to rest: a network that drew well batch by batch may draw
        noise by them. So some batches are shown once more, and the plain mean is kept (Wu and
        Johnson 2021, arXiv:2105.07576, "PreciseBN").
        """
        torch.manual_seed(step_seed(self.sampler.seed, 7))
        generators = [self.networks[name].module for name in self.networks if name in GENERATORS]
        normed = [m for g in generators for m in g.modules() if isinstance(m, nn.BatchNorm2d)]
        usual = [norm.momentum for norm in normed]
        for norm in normed:
            norm.reset_running_stats()
            norm.momentum = None  # the plain mean
        for generator in generators:
            generator.train()
        with torch.no_grad(), self.fabric.autocast():
            for step in range(SETTLING):
                self.make(self.sampler.batch(step, self.fabric.device))
        for norm, momentum in zip(normed, usual, strict=True):
            norm.momentum = momentum

    @staticmethod
    def columns_of(*names: str) -> list[str]:
        """The columns of the history that rounds against these discriminators fill."""
        return [f"{name}_{what}" for name in names for what in ("loss", "real", "fake")]


def _verdicts(output: torch.Tensor | tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    return output if isinstance(output, tuple) else (output,)


class TreeTraining(SynthesisTraining):
    """Autoencoders of vessel trees: VAE, AAE, dual and refined AAE."""

    def __init__(self, fabric, networks, optimizers, **others):
        columns = ["reconstruction", "kl"]
        if others["recipe"].adversary != "none":
            columns.append("adversarial")
        if others["recipe"].refine:
            columns.append("layout")
        judges = [name for name in networks if name not in GENERATORS]
        super().__init__(
            fabric, networks, optimizers, columns=[*columns, *self.columns_of(*judges)], **others
        )

    def make(self, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, ...]:
        """Redrawn trees, and refined ones."""
        drawn = self.networks["autoencoder"].module(batch["tree"])[0].sigmoid()
        if not self.recipe.refine:
            return (drawn,)
        asked = torch.randn(len(drawn), self.recipe.latent, device=drawn.device)
        return drawn, self.networks["refiner"].module(blurred_trees(self, asked), asked)

    def learn(self) -> dict[str, float]:
        """Encode, decode, compare; the code is to look like N(0, I), the tree like a tree."""
        tree = self.next_batch()["tree"]
        loss, report, _ = tree_losses(self, tree)
        self.follow(loss, *(name for name in self.networks if name in GENERATORS))
        return {"loss": loss.item(), **report}


def tree_losses(
    training: SynthesisTraining, tree: torch.Tensor
) -> tuple[torch.Tensor, dict[str, float], torch.Tensor]:
    """The loss of an autoencoder of trees (DR-synthesis report, equations 1 and 2).

    Args:
        training: has the networks and the recipe.
        tree: (N, 1, S, S) in [0, 1].

    Returns:
        The loss, what there is to report, and the reconstructed tree (N, 1, S, S) in [0, 1].
    """
    recipe = training.recipe
    logits, code, mean, log_variance = training.networks["autoencoder"](tree)
    drawn = logits.sigmoid()
    if recipe.reconstruction == "l1":
        reconstruction = (drawn - tree).abs().mean()
    else:
        reconstruction = F.binary_cross_entropy_with_logits(logits, tree)
    kl = kl_divergence(mean, log_variance)
    if recipe.adversary == "none":
        # the sum over the pixels and the divergence are both in nats (Kingma and Welling 2014,
        # equation 10); divided by the pixels, so that a step does not depend on the size
        loss = reconstruction + kl / tree[0].numel()
        return loss, {"reconstruction": reconstruction.item(), "kl": kl.item()}, drawn
    rounds = [training.play("code", (torch.randn_like(code),), (code,))]
    if recipe.adversary == "dual":
        nothing = tree[:, :0]  # the tree's discriminator is given no condition
        shown = drawn
        if recipe.refine:
            # Of codes from N(0, I), as when it will be used; they need not be the trees' own.
            asked = torch.randn_like(code)
            blurred = blurred_trees(training, asked)
            shown = training.networks["refiner"](blurred, asked).sigmoid()
            layout = layout_loss(shown, blurred)
        rounds.append(
            training.play("tree", (nothing, tree), (nothing, shown), penalty=recipe.penalty)
        )
    fooled = torch.stack([r.pop("fooled") for r in rounds]).sum()
    report = {
        "reconstruction": reconstruction.item(),
        "kl": kl.item(),
        "adversarial": fooled.item(),
    }
    for r in rounds:
        report |= r
    loss = recipe.gamma * reconstruction + fooled
    if recipe.refine:
        loss, report["layout"] = loss + recipe.refine * layout, layout.item()
    return loss, report, drawn


def blurred_trees(training: SynthesisTraining, codes: torch.Tensor) -> torch.Tensor:
    """What the decoder draws of codes, (N, latent) → (N, 1, S, S) in [0, 1]; it learns nothing."""
    with torch.no_grad(), training.fabric.autocast():
        return training.networks["autoencoder"].module.decoder(codes).sigmoid().float()


def layout_loss(refined: torch.Tensor, blurred: torch.Tensor) -> torch.Tensor:
    """Does a crisp tree have its vessels where the blurred one says, give or take a square?

    Cross-entropy between the means of both over squares of a sixteenth of the side: within such a
    square the refiner may draw a vessel where it likes, and its judge asks for one that goes on.

    Args:
        refined: (N, 1, S, S) in [0, 1].
        blurred: (N, 1, S, S) in [0, 1].

    Returns:
        A scalar; least where the means agree.
    """
    square = max(1, blurred.shape[-1] // 16)
    means = [F.avg_pool2d(tree.float(), square) for tree in (refined, blurred)]
    with torch.autocast(refined.device.type, enabled=False):  # refuses this one in half precision
        return F.binary_cross_entropy(means[0].clamp(1e-4, 1 - 1e-4), means[1])


class FundusTraining(SynthesisTraining):
    """From tree to photograph: pix2pix, MI-GAN, and MI-GAN with style transfer.

    Args:
        judge: VGG-19, for the style transfer loss.
        styles: photographs whose style is wanted, (M, 3, S, S) in [0, 1].
        **others: see :class:`SynthesisTraining`.
    """

    def __init__(self, fabric, networks, optimizers, *, judge=None, styles=None, **others):
        columns = ["distance", "adversarial"]
        if others["recipe"].style:
            columns += ["content", "style", "smoothness"]
            judge = judge.to(fabric.device)
        self.judge, self.styles = judge, styles
        super().__init__(
            fabric, networks, optimizers,
            columns=[*columns, *self.columns_of("discriminator")], **others,
        )  # fmt: skip

    def noise_for(self, batch: dict[str, torch.Tensor]) -> torch.Tensor | None:
        """As loud as in training; None for a painter that takes none."""
        if not self.recipe.noise:
            return None
        tree = batch["tree"]
        return self.recipe.noise_training * torch.randn(
            len(tree), self.recipe.noise, device=tree.device
        )

    def make(self, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, ...]:
        """Paintings."""
        condition = conditions_of(self.recipe, batch)
        return (self.networks["generator"].module(condition, self.noise_for(batch)),)

    def learn(self) -> dict[str, float]:
        """Paint, let it be judged, compare with the photograph."""
        batch = self.next_batch()
        real, condition = as_painting(batch["image"]), conditions_of(self.recipe, batch)
        painted = self.networks["generator"](condition, self.noise_for(batch))
        turn = self.step % self.recipe.generator_steps == self.recipe.generator_steps - 1
        report = self.play("discriminator", (condition, real), (condition, painted), turn)
        fooled, distance = report.pop("fooled"), (painted - real).abs().mean()
        if self.recipe.style:
            from retina_lab.style import transfer_loss

            chosen = torch.randint(len(self.styles), (len(real),))
            style = as_painting(self.styles[chosen].to(real.device))
            terms = transfer_loss(self.judge, painted, real, style)
            loss = fooled + terms.pop("total")
            report |= {name: term.item() for name, term in terms.items()}
        else:
            loss = fooled + self.recipe.weight * distance
        self.follow(loss, "generator")
        return {
            "loss": loss.item(),
            "distance": distance.item(),
            "adversarial": fooled.item(),
            **report,
        }


class EndToEndTraining(SynthesisTraining):
    """Autoencoder and painter together: the painter paints what the decoder draws."""

    def __init__(self, fabric, networks, optimizers, **others):
        columns = ["distance", "reconstruction", "kl", "adversarial"]
        super().__init__(
            fabric, networks, optimizers,
            columns=[*columns, *self.columns_of("code", "discriminator")], **others,
        )  # fmt: skip

    def make(self, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, ...]:
        """Redrawn trees, and what is painted of them."""
        drawn = self.networks["autoencoder"].module(batch["tree"])[0].sigmoid()
        return drawn, self.networks["generator"].module(drawn)

    def learn(self) -> dict[str, float]:
        """One step by the sum of both losses (DR-synthesis report, equation 4)."""
        batch = self.next_batch()
        tree, real = batch["tree"], as_painting(batch["image"])
        trees_loss, report, drawn = tree_losses(self, tree)
        painted = self.networks["generator"](drawn)
        report |= self.play("discriminator", (tree, real), (drawn, painted))
        fooled, distance = report.pop("fooled"), (painted - real).abs().mean()
        loss = trees_loss + fooled + self.recipe.weight * distance
        self.follow(loss, "autoencoder", "generator")
        report["adversarial"] += fooled.item()
        return {"loss": loss.item(), "distance": distance.item(), **report}


# --- a finished training ---------------------------------------------------------------------


@dataclass
class SynthesisRun:
    """A finished (or interrupted) training of a synthesis model.

    Attributes:
        networks: by name, in eval mode, on the CPU; see :func:`build_networks`.
        recipe: the rules it was trained by.
        settings: everything that was asked, as written to ``run.json``.
        fov: (S, S) ``bool``, the field of view of most of its training photographs.
        history: one row an epoch.
        seconds: wall time by stage.
        interrupted: true if it was stopped before its end.
        out: its folder, or None.
    """

    networks: dict[str, nn.Module]
    recipe: Recipe
    settings: dict[str, Any]
    fov: np.ndarray
    history: pd.DataFrame
    seconds: dict[str, float] = field(default_factory=dict)
    interrupted: bool = False
    out: Path | None = None

    @property
    def size(self) -> int:
        """Side of what it makes, in pixels."""
        return self.settings["size"]

    @property
    def grades(self) -> tuple[str, ...]:
        """Names of the grades it knows; empty if it is not told of them."""
        return tuple(self.settings["grades"])


def check_settings(
    *,
    epochs: int | None,
    budget: str | float | None,
    seed: int,
    width: int,
    batch_size: int,
    lr: float,
    checks: int = 10,
) -> float | None:
    """Refuse what makes no sense; of the arguments of :func:`fit_synthesis`, before data are read.

    Returns:
        The budget in seconds, None if epochs are counted.

    Raises:
        ValueError: naming the setting.
    """
    if (epochs is None) == (budget is None):
        raise ValueError("give either epochs or a budget, not both and not neither")
    if epochs is not None and epochs < 1:
        raise ValueError(f"epochs must be at least 1, not {epochs}")
    for setting, value in {"batch_size": batch_size, "width": width, "checks": checks}.items():
        if value < 1:
            raise ValueError(f"{setting} must be at least 1, not {value}")
    if lr <= 0 or seed < 0:
        raise ValueError("lr must be positive and the seed not negative")
    return None if budget is None else parse_budget(budget)


def fit_synthesis(
    model: str | Recipe,
    pairs: TreePairs,
    *,
    epochs: int | None = None,
    budget: str | float | None = None,
    seed: int = 0,
    out: str | os.PathLike | None = None,
    width: int = 64,
    batch_size: int = 4,
    lr: float = 2e-4,
    vary: bool = True,
    checks: int = 10,
    device: str = "auto",
    devices: int = 1,
    precision: str = "auto",
    judge: nn.Module | None = None,
    styles: torch.Tensor | None = None,
    name: str | None = None,
    progress: bool = True,
    callback: Callable[[nn.Module, dict[str, float]], None] | None = None,
) -> SynthesisRun:
    """Train a synthesis model for a number of epochs or for a time budget.

    Adam with β₁ = .5 for every network, and a learning rate that falls linearly to zero. The last
    weights are kept: no single number says which of two generators is the better one
    (:mod:`retina_lab.judge` has several). The generators' BatchNorms are measured once more at the
    end (:meth:`SynthesisTraining.settle`).

    Args:
        model: a name in ``SYNTHESIS``, or a recipe.
        pairs: what to learn from.
        epochs: number of epochs; or
        budget: time such as ``"60s"``, ``"5m"`` or seconds. Exactly one of the two.
        seed: of weights, order, mirroring and noise; ≥ 0.
        out: folder for ``run.json``, ``weights.safetensors``, ``history.csv`` and
            ``checkpoint.pt``; a stopped run of the same settings in it is continued.
        width: channels after the first halving; 64 in the papers.
        batch_size: pairs a step, over all processes together.
        lr: learning rate at the start.
        vary: turn and enlarge the pairs a little, beside mirroring.
        checks: how often the state is saved and the callback called.
        device: ``"auto"``, ``"cpu"``, ``"cuda"`` or ``"mps"``.
        devices: number of processes, one device each.
        precision: ``"auto"`` or one of fabric's.
        judge: VGG-19 for the style transfer loss, see :func:`retina_lab.models.vgg.load_vgg19`.
        styles: (M, 3, S, S) in [0, 1], photographs whose style is wanted; those of the pairs if
            none are given.
        name: what a recipe that is given as such is called; the name it has in ``SYNTHESIS``
            otherwise.
        progress: show a bar.
        callback: called as ``callback(generator, row)`` at each check, the network in eval mode.

    Returns:
        A :class:`SynthesisRun`.

    Raises:
        ValueError: if a setting makes no sense; the message names it.
        TrainingError: if the loss is not finite, a condition is missing from the pairs, or
            ``out`` holds a different run.
    """
    recipe = find_recipe(model) if isinstance(model, str) else model
    limit = check_settings(
        epochs=epochs, budget=budget, seed=seed, width=width, batch_size=batch_size, lr=lr,
        checks=checks,
    )  # fmt: skip
    for condition, there in {"grade": pairs.grades, "lesions": pairs.lesions}.items():
        if condition in recipe.conditions and there is None:
            raise TrainingError(
                f"{name or (model if isinstance(model, str) else 'this recipe')} is told of the "
                f"{condition}, which {pairs.dataset} does not have"
            )
    if recipe.style and judge is None:
        raise ValueError("the style transfer loss needs judge=load_vgg19(…)")
    fabric, precision = start_fabric(device, devices, precision)
    begin = time.perf_counter()
    if batch_size % fabric.world_size:
        raise ValueError(
            f"batch_size {batch_size} does not divide among {fabric.world_size} processes"
        )
    grades = pairs.grade_names if "grade" in recipe.conditions else ()
    torch.manual_seed(step_seed(seed, 0))
    networks = build_networks(recipe, pairs.size, width, grades)
    settings = {
        "model": name or (model if isinstance(model, str) else recipe.makes),
        "recipe": {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(recipe).items()},
        "parameters": {key: count_parameters(network) for key, network in networks.items()},
        "size": pairs.size,
        "width": width,
        "grades": list(grades),
        "dataset": pairs.dataset,
        "tree_source": pairs.tree_source,
        "train": list(pairs.names),
        "trees": digest(t.numpy() for t in (pairs.image, pairs.tree)),
        "styles": None if styles is None else digest([styles.numpy()]),
        "epochs": epochs,
        "budget_seconds": limit,
        "seed": seed,
        "batch_size": batch_size,
        "lr": lr,
        "vary": vary,
        "checks": checks,
        "precision": precision,
        "gradient_clip": None,
        "judge": getattr(judge, "origin", None) if recipe.style else None,
        "rules": RULES,
    }
    out = Path(out) if out is not None else None
    with ExitStack() as held:
        if out is not None and claim(out, settings, held):
            return load_synthesis(out)
        optimizers = {
            name: torch.optim.Adam(network.parameters(), lr=lr, betas=(0.5, 0.999))
            for name, network in networks.items()
        }
        options = {
            "recipe": recipe, "sampler": PairSampler(pairs, batch_size, seed, vary),
            "settings": settings, "score": "none", "out": out, "begin": begin, "callback": callback,
        }  # fmt: skip
        kind = {"trees": TreeTraining, "fundus": FundusTraining, "both": EndToEndTraining}[
            recipe.makes
        ]
        if recipe.makes == "fundus":
            options |= {"judge": judge, "styles": pairs.image if styles is None else styles}
        training = kind(fabric, networks, optimizers, **options)
        stop = StopAfterStep()
        training.finish(stop, progress)
        if not training.step and not stop.granted:
            raise TrainingError("the budget was over before the first step; give more time")
        before = time.perf_counter()
        training.settle()
        run = SynthesisRun(
            networks={
                part: network.module.cpu().to(memory_format=torch.contiguous_format).eval()
                for part, network in training.networks.items()
            },
            recipe=recipe,
            settings=settings,
            fov=pairs.fov.mean(dim=(0, 1)).numpy() >= 0.5,
            history=training.history().drop(columns="none"),
            seconds={"train": training.seconds, "settle": time.perf_counter() - before},
            interrupted=stop.granted,
            out=out,
        )
        if out is not None and fabric.global_rank == 0:
            save_synthesis(run, out)
        return run


def save_synthesis(run: SynthesisRun, out: str | os.PathLike) -> None:
    """Write ``run.json``, ``weights.safetensors`` and ``history.csv`` into a folder."""
    weights = {
        f"{name}.{key}": values
        for name, network in run.networks.items()
        for key, values in weights_of(network).items()
    }
    weights["fov"] = torch.from_numpy(run.fov)
    write_run(Path(out), {"weights": weights}, run, banner=BANNER)


def recipe_of(settings: dict[str, Any]) -> Recipe:
    """The recipe as it was written to ``run.json``."""
    return Recipe(
        **{k: tuple(v) if isinstance(v, list) else v for k, v in settings["recipe"].items()}
    )


def load_synthesis(folder: str | os.PathLike) -> SynthesisRun:
    """Read a run that :func:`fit_synthesis` has written.

    Raises:
        TrainingError: if a file is missing or unreadable, or the weights do not fit.
    """
    folder = Path(folder)
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        settings = record["settings"]
        weights = load_file(folder / "weights.safetensors")
        history = pd.read_csv(folder / "history.csv")
        run = synthesis_from(settings, weights, {})
    except FileNotFoundError as error:
        raise TrainingError(
            f"{folder} is not a finished run: {Path(error.filename).name} is missing. "
            "Train one with: retina-lab train-synthesis --model aae --out FOLDER …"
        ) from error
    except Exception as error:
        raise TrainingError(f"the run in {folder} cannot be read: {error}") from error
    run.seconds, run.interrupted = record["seconds"], record["interrupted"]
    run.history, run.out = history, folder
    return run


def synthesis_from(
    settings: dict[str, Any], weights: dict[str, torch.Tensor], seconds: dict[str, float]
) -> SynthesisRun:
    """A run from its settings and weights alone; its history is empty."""
    return SynthesisRun(
        networks=networks_from(settings, weights),
        recipe=recipe_of(settings),
        settings=settings,
        fov=weights["fov"].numpy(),
        history=pd.DataFrame(),
        seconds=seconds,
    )


def networks_from(
    settings: dict[str, Any], weights: dict[str, torch.Tensor]
) -> dict[str, nn.Module]:
    """The networks of a run's settings with its weights, in eval mode.

    Args:
        settings: as in ``run.json``.
        weights: by ``NETWORK.KEY``; networks of which there are none are left out, so that a
            generator can be shipped without its discriminator.
    """
    networks = build_networks(
        recipe_of(settings), settings["size"], settings["width"], settings["grades"]
    )
    present = {name for name in networks if any(key.startswith(f"{name}.") for key in weights)}
    if not present:
        raise ValueError(f"no weights of {', '.join(networks)}")
    for name in present:
        start = len(name) + 1
        networks[name].load_state_dict(
            {k[start:]: v for k, v in weights.items() if k.startswith(f"{name}.")}
        )
    return {name: network.eval() for name, network in networks.items() if name in present}
