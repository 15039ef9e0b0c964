"""Segmentation against an adversary: MI-GAN and V-GAN, M-CAM-GAN.

A second network, the discriminator, is shown photographs with vessel maps, some drawn by the
observer and some by the segmentation network, and learns to tell which is which. The
segmentation network, now called the generator, is trained on two sums at once: how far its map
is from the labels, as always, and how well the discriminator sees through it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from retina_lab.loop import step_seed
from retina_lab.losses import deeply_supervised
from retina_lab.models.discriminators import DISCRIMINATORS, build_discriminator
from retina_lab.train import Training

ADVERSARIAL_LOSSES = ("bce", "least squares")


@dataclass(frozen=True)
class Adversary:
    """A discriminator, and the rules of the game against it.

    Attributes:
        discriminator: ``"pixel"``, ``"patch-1"``, ``"patch-2"``, ``"image"`` (V-GAN, MI-GAN) or
            ``"multi-scale-cam"`` (M-CAM-GAN).
        weight: of the adversarial term beside the segmentation loss. The papers multiply the
            segmentation loss by λ instead; ``weight`` is 1 / λ, and MI-GAN's λ is 10.
        loss: ``"bce"`` (Goodfellow et al. 2014; MI-GAN equations 4 and 6) or
            ``"least squares"`` (Mao et al. 2017; M-CAM-GAN equation 1).
        generator_steps: steps of the generator to each of the discriminator; MI-GAN makes two.
        lr: where the discriminator's learning rate begins; it falls as the generator's does.
        width: channels of the discriminator's first layer.

    Raises:
        ValueError: if a setting makes no sense; the message names it.
    """

    discriminator: str
    weight: float = 0.1
    loss: str = "bce"
    generator_steps: int = 2
    lr: float = 2e-4
    width: int = 32

    def __post_init__(self):
        if self.discriminator not in DISCRIMINATORS:
            raise ValueError(
                f"unknown discriminator {self.discriminator!r}; "
                f"there are: {', '.join(DISCRIMINATORS)}"
            )
        if self.loss not in ADVERSARIAL_LOSSES:
            raise ValueError(
                f"the adversarial loss is one of {ADVERSARIAL_LOSSES}, not {self.loss!r}"
            )
        if self.generator_steps < 1 or self.width < 1:
            raise ValueError("generator_steps and width must be at least 1")
        if not (0 <= self.weight < float("inf") and 0 < self.lr < float("inf")):
            raise ValueError("weight must not be negative, lr must be positive, both finite")

    def build(self) -> nn.Module:
        """The discriminator with fresh weights from torch's current seed."""
        return build_discriminator(self.discriminator, self.width)


# M-CAM-GAN gives no weight between its losses, no turns and no rate: those are ours.
PAPERS = {
    **{name: Adversary(name) for name in ("pixel", "patch-1", "patch-2", "image")},
    "multi-scale-cam": Adversary("multi-scale-cam", 1.0, "least squares", generator_steps=1),
}


def as_adversary(adversary: str | Adversary) -> Adversary:
    """An adversary, or the one that the papers have by that name.

    Raises:
        ValueError: if no discriminator is called so.
    """
    if isinstance(adversary, Adversary):
        return adversary
    return PAPERS.get(adversary) or Adversary(adversary)


def adversarial_loss(
    verdicts: tuple[torch.Tensor, ...], real: bool, kind: str = "bce"
) -> torch.Tensor:
    r"""How far a discriminator's verdicts are from calling everything real, or everything fake.

    With :math:`x` a verdict before the sigmoid and :math:`t` 1 for real, 0 for fake:
    ``"bce"`` is :math:`-\log σ(x)` or :math:`-\log(1 - σ(x))`; ``"least squares"`` is
    :math:`(x - t)²`, whose gradient does not fade where the discriminator is sure.

    Args:
        verdicts: the discriminator's outputs, (N, 1, h, w) each. Each is averaged over its
            places, and then over the outputs, so that no scale outweighs another.
        real: what they should have said.
        kind: one of ``ADVERSARIAL_LOSSES``.

    Returns:
        A scalar ≥ 0.
    """
    terms = []
    for verdict in verdicts:
        # half precision would leave eight bits of a mean over many places
        verdict = verdict.to(torch.promote_types(verdict.dtype, torch.float32))
        target = torch.full_like(verdict, float(real))
        if kind == "bce":
            terms.append(F.binary_cross_entropy_with_logits(verdict, target))
        else:
            terms.append(F.mse_loss(verdict, target))
    return torch.stack(terms).mean()


def gradient_penalty(
    judge: Callable[[torch.Tensor], tuple[torch.Tensor, ...]], real: torch.Tensor
) -> torch.Tensor:
    r"""How steep the verdicts are at real pictures (R1: Mescheder et al. 2018, equation 9).

    .. math:: \frac12\, E_x \bigl\lVert \nabla_x D(x) \bigr\rVert^2, \quad x \text{ real}.

    A judge that is right about every real picture must become flat there, and an adversarial
    training that has arrived stays.

    Args:
        judge: from pictures to maps of logits.
        real: (N, C, H, W).

    Returns:
        A scalar ≥ 0 with a gradient for the judge's weights.
    """
    real = real.detach().requires_grad_()
    says = sum(verdicts.sum() for verdicts in judge(real))
    (slope,) = torch.autograd.grad(says, real, create_graph=True)
    return 0.5 * slope.square().sum(dim=(1, 2, 3)).mean()


def share_called_real(verdicts: tuple[torch.Tensor, ...], kind: str = "bce") -> float:
    """Share of a discriminator's verdicts that say "real", in [0, 1], averaged over its outputs."""
    border = 0.0 if kind == "bce" else 0.5
    return float(torch.stack([(v > border).float().mean() for v in verdicts]).mean())


@contextmanager
def only_judging(network: nn.Module) -> Iterator[None]:
    """The generator's turn: the gradient passes through a discriminator and leaves no trace in it.

    Its weights get no gradient, and BatchNorm, which normalises by the batch, does not count this
    batch into its running averages: they would hold more fakes than photographs.
    """
    norms = [module for module in network.modules() if isinstance(module, _BatchNorm)]
    network.requires_grad_(False)
    for norm in norms:
        norm.track_running_stats = False
    try:
        yield
    finally:
        network.requires_grad_(True)
        for norm in norms:
            norm.track_running_stats = True


class AdversarialTraining(Training):
    """Generator and discriminator in turn. Made by ``fit(…, adversary=…)``.

    The generator keeps ``fit``'s AdamW; V-GAN's code has Adam with β₁ = .5 for both.

    Args:
        adversary: the discriminator and the rules.
        **others: see :class:`retina_lab.train.Training`.
    """

    def __init__(self, fabric, networks, optimizers, adversary: Adversary, **others):
        self.rules = adversary
        torch.manual_seed(step_seed(others["settings"]["seed"], 4))
        judge = adversary.build()
        super().__init__(
            fabric,
            {**networks, "adversary": judge},
            # β₁ = .5 as in V-GAN and nearly every GAN since Radford et al. 2016
            {
                **optimizers,
                "adversary": torch.optim.Adam(judge.parameters(), adversary.lr, (0.5, 0.999)),
            },
            columns=("adversarial", "discriminator", "real_called_real", "fake_called_real"),
            **others,
        )

    def learn(self) -> dict[str, float]:
        """One step of the generator; before it, when it is due, one of the discriminator."""
        image, vessels, fov = self.next_batch()
        generator, judge = self.networks["network"], self.networks["adversary"]
        outputs = generator(image)
        logits = outputs if isinstance(outputs, torch.Tensor) else outputs[0]
        drawn = logits.sigmoid() * fov  # N×1×h×w
        report = {}

        if self.step % self.rules.generator_steps == self.rules.generator_steps - 1:
            real = judge(image, vessels * fov)
            fake = judge(image, drawn.detach())  # the generator is not to learn from this
            loss = adversarial_loss(real, True, self.rules.loss)
            loss = loss + adversarial_loss(fake, False, self.rules.loss)
            self.follow(loss, "adversary")
            report = {
                "discriminator": loss.item(),
                "real_called_real": share_called_real(real, self.rules.loss),
                "fake_called_real": share_called_real(fake, self.rules.loss),
            }

        with only_judging(judge), self.fabric.autocast():
            verdicts = judge.module(image, drawn)
        fooled = adversarial_loss(verdicts, True, self.rules.loss)
        loss = deeply_supervised(self.criterion, outputs, vessels, fov)
        self.follow(loss + self.rules.weight * fooled, "network")
        return {"loss": loss.item(), "adversarial": fooled.item(), **report}

    def result(self, interrupted: bool):
        """The run, with the discriminator beside it."""
        run = super().result(interrupted)
        judge = self.networks["adversary"].module.cpu().to(memory_format=torch.contiguous_format)
        run.adversary = judge.eval()
        return run
