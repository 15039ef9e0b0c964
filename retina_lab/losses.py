"""Losses for thin, rare structures: cross-entropy, focal, Dice and soft-clDice.

Every loss takes logits (N, 1, H, W), a target of the same shape in {0, 1} and optionally a
field of view (N, 1, H, W) in {0, 1}; pixels outside the field count for nothing. It is
computed for each image and then averaged over the batch, so that a batch that is split over
several processes has the same loss, and the same gradient, as the whole batch in one.

An image whose field of view is empty (a crop from the black border) contributes zero loss
and zero gradient.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F

Loss = Callable[..., torch.Tensor]
Outputs = torch.Tensor | tuple[torch.Tensor, ...]


def _check(logits: torch.Tensor, target: torch.Tensor, fov: torch.Tensor | None) -> torch.Tensor:
    """The field of view as floats of the logits' shape, after checking all shapes."""
    if logits.ndim != 4 or logits.shape != target.shape:
        raise ValueError(
            "logits and target must both be (N, 1, H, W), "
            f"not {tuple(logits.shape)} and {tuple(target.shape)}"
        )
    if fov is None:
        return torch.ones_like(target)
    if fov.shape != target.shape:
        raise ValueError(f"the fov is {tuple(fov.shape)} but the target {tuple(target.shape)}")
    return fov.to(target.dtype)


def _precise(values: torch.Tensor) -> torch.Tensor:
    """At least single precision: half a million pixels summed in bfloat16's 8 bits go astray."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def _mean_in_fov(values: torch.Tensor, fov: torch.Tensor) -> torch.Tensor:
    """Mean over the field of each image, then over the batch."""
    inside = fov.sum((1, 2, 3)).clamp(min=1)
    return ((values * fov).sum((1, 2, 3)) / inside).mean()


def bce_loss(
    logits: torch.Tensor, target: torch.Tensor, fov: torch.Tensor | None = None
) -> torch.Tensor:
    r"""Binary cross-entropy, −log of the probability given to each pixel's true label.

    With :math:`p = σ(x) = 1/(1 + e^{-x})` and label :math:`y`,

    .. math:: L = -y \log σ(x) - (1 - y) \log(1 - σ(x)) = \max(x, 0) - xy + \log(1 + e^{-|x|}),

    where the last form never takes the logarithm of zero. Its gradient is the plainest there
    is: :math:`∂L/∂x = σ(x) - y`.

    Args:
        logits: (N, 1, H, W), any real number.
        target: (N, 1, H, W) in {0, 1}.
        fov: (N, 1, H, W) in {0, 1}, or None for every pixel.

    Returns:
        A scalar ≥ 0.

    Raises:
        ValueError: if shapes differ.
    """
    fov = _check(logits, target, fov)
    values = F.binary_cross_entropy_with_logits(logits, target.to(logits.dtype), reduction="none")
    return _mean_in_fov(values, fov)


def focal_loss(
    logits: torch.Tensor,
    target: torch.Tensor,
    fov: torch.Tensor | None = None,
    alpha: float = 0.75,
    gamma: float = 2.0,
) -> torch.Tensor:
    r"""Cross-entropy that turns away from pixels which are already right (Lin et al. 2017).

    With :math:`p_t` the probability given to the true label, as in M-CAM-GAN equation 3,

    .. math:: L = -α_t (1 - p_t)^γ \log p_t, \qquad α_t = α\ (y = 1),\ 1 - α\ (y = 0).

    A pixel at :math:`p_t = .9` weighs a hundred times less than in cross-entropy when
    :math:`γ = 2`. :math:`γ = 0` and :math:`α = ½` is half the cross-entropy.

    Args:
        logits: (N, 1, H, W).
        target: (N, 1, H, W) in {0, 1}.
        fov: (N, 1, H, W) in {0, 1}, or None.
        alpha: weight of the vessel pixels in [0, 1].
        gamma: ≥ 0, how far easy pixels are turned down.

    Returns:
        A scalar ≥ 0.

    Raises:
        ValueError: if shapes differ, or alpha or gamma is out of range.
    """
    if not 0 <= alpha <= 1 or gamma < 0:
        raise ValueError(
            f"focal loss needs 0 ≤ alpha ≤ 1 and gamma ≥ 0, not alpha={alpha}, gamma={gamma}"
        )
    fov = _check(logits, target, fov)
    target = target.to(logits.dtype)
    minus_log_pt = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    # 1 − p_t = σ(−x) for y = 1 and σ(x) for y = 0.
    one_minus_pt = torch.sigmoid(logits * (1 - 2 * target))
    # 0^γ has an infinite slope for γ < 1, which times 0 would be NaN
    one_minus_pt = one_minus_pt.clamp(min=torch.finfo(one_minus_pt.dtype).tiny)
    alpha_t = alpha * target + (1 - alpha) * (1 - target)
    return _mean_in_fov(alpha_t * one_minus_pt**gamma * minus_log_pt, fov)


def dice_loss(
    logits: torch.Tensor,
    target: torch.Tensor,
    fov: torch.Tensor | None = None,
    smooth: float = 1.0,
) -> torch.Tensor:
    r"""One minus the overlap of prediction and label (Milletari et al. 2016, with plain sums).

    Counting with probabilities instead of decisions turns Dice
    :math:`2\,TP / (2\,TP + FP + FN)` into something with a gradient. As
    :math:`TP = \sum p y`, and :math:`2\,TP + FP + FN` counts every predicted and every true
    pixel once,

    .. math:: L = 1 - \frac{2 \sum_i p_i y_i + s}{\sum_i p_i + \sum_i y_i + s}.

    The background enters only where vessels are claimed falsely, hence the balance: doubling
    an empty border changes nothing. The derivative by one probability is
    :math:`-(2 y_i D - N) / D²` with :math:`N, D` numerator and denominator: the same for all
    vessel pixels, however sure the network is, which is why Dice is often paired with
    cross-entropy.

    Args:
        logits: (N, 1, H, W).
        target: (N, 1, H, W) in {0, 1}.
        fov: (N, 1, H, W) in {0, 1}, or None.
        smooth: s > 0 in pixels; it makes an empty prediction of an empty image perfect.

    Returns:
        A scalar in [0, 1).

    Raises:
        ValueError: if shapes differ or ``smooth`` is not positive.
    """
    if smooth <= 0:
        raise ValueError(f"smooth must be positive, not {smooth}")
    fov = _check(logits, target, fov)
    probability = torch.sigmoid(_precise(logits)) * fov
    target = _precise(target) * fov
    overlap = (probability * target).sum((1, 2, 3))
    total = probability.sum((1, 2, 3)) + target.sum((1, 2, 3))
    return (1 - (2 * overlap + smooth) / (total + smooth)).mean()


def _erode(x: torch.Tensor) -> torch.Tensor:
    """Minimum over the cross-shaped neighbourhood of every pixel."""
    vertical = -F.max_pool2d(-x, (3, 1), stride=1, padding=(1, 0))
    horizontal = -F.max_pool2d(-x, (1, 3), stride=1, padding=(0, 1))
    return torch.minimum(vertical, horizontal)


def _open(x: torch.Tensor) -> torch.Tensor:
    """Erosion, then maximum over the 3×3 neighbourhood."""
    return F.max_pool2d(_erode(x), 3, stride=1, padding=1)


def soft_skeleton(probability: torch.Tensor, iterations: int = 5) -> torch.Tensor:
    """The centre lines of a soft map, by repeated soft erosion (Shit et al. 2021, alg. 1).

    What an opening removes is too thin to hold the structuring element: it is skeleton.
    Erode, and ask again, until the widest vessel is gone.

    Args:
        probability: (N, 1, H, W) in [0, 1].
        iterations: erosions; at least half of the widest vessel's width in pixels.

    Returns:
        (N, 1, H, W) in [0, 1].
    """
    skeleton = F.relu(probability - _open(probability))
    for _ in range(iterations):
        probability = _erode(probability)
        delta = F.relu(probability - _open(probability))
        skeleton = skeleton + F.relu(delta - skeleton * delta)
    return skeleton


def soft_cldice_loss(
    logits: torch.Tensor,
    target: torch.Tensor,
    fov: torch.Tensor | None = None,
    iterations: int = 5,
    smooth: float = 1.0,
) -> torch.Tensor:
    r"""One minus centre-line Dice of soft maps (Shit et al. 2021, arXiv:2003.07311).

    With :math:`S_P, S_L` the soft skeletons of prediction :math:`P` and label :math:`L`,
    topology precision :math:`T_p = |S_P ∘ L| / |S_P|` asks how much of the predicted centre
    line lies on a vessel, topology sensitivity :math:`T_s = |S_L ∘ P| / |S_L|` how much of
    the true centre line was found; the loss is :math:`1 - 2 T_p T_s / (T_p + T_s)`. A thin
    vessel weighs as much as a thick one, and a gap costs its length.

    Args:
        logits: (N, 1, H, W).
        target: (N, 1, H, W) in {0, 1}.
        fov: (N, 1, H, W) in {0, 1}, or None.
        iterations: erosions of the soft skeleton, at least half the widest vessel's width.
        smooth: s > 0 in pixels, added above and below in both ratios.

    Returns:
        A scalar in [0, 1].

    Raises:
        ValueError: if shapes differ, ``iterations`` is below 1 or ``smooth`` not positive.
    """
    if iterations < 1 or smooth <= 0:
        raise ValueError(
            "soft-clDice needs iterations ≥ 1 and smooth > 0, "
            f"not iterations={iterations}, smooth={smooth}"
        )
    fov = _check(logits, target, fov)
    probability = torch.sigmoid(_precise(logits)) * fov
    target = _precise(target) * fov
    predicted_line = soft_skeleton(probability, iterations)
    true_line = soft_skeleton(target, iterations)

    def ratio(line: torch.Tensor, vessels: torch.Tensor) -> torch.Tensor:
        on_vessel = (line * vessels).sum((1, 2, 3))
        return (on_vessel + smooth) / (line.sum((1, 2, 3)) + smooth)

    precision = ratio(predicted_line, target)
    sensitivity = ratio(true_line, probability)
    return (1 - 2 * precision * sensitivity / (precision + sensitivity)).mean()


LOSSES: dict[str, Loss] = {
    "bce": bce_loss,
    "focal": focal_loss,
    "dice": dice_loss,
    "cldice": soft_cldice_loss,
}


def build_loss(recipe: str) -> Loss:
    """A loss from a recipe such as ``"bce + dice"`` or ``"dice + 0.5 cldice"``.

    Args:
        recipe: names in ``LOSSES`` joined by ``+``, each with an optional weight before it.

    Returns:
        A function of (logits, target, fov) that returns the weighted sum.

    Raises:
        ValueError: if a name is unknown or a weight is not a positive number.
    """
    terms: list[tuple[float, Loss]] = []
    for term in recipe.split("+"):
        *weight, name = term.split() or [""]
        if name not in LOSSES or len(weight) > 1:
            raise ValueError(
                f"cannot read the loss {recipe!r}: {term.strip()!r} is not "
                f"'[weight] name' with a name among {', '.join(LOSSES)}"
            )
        try:
            factor = float(weight[0]) if weight else 1.0
        except ValueError:
            factor = 0.0
        if not 0 < factor < float("inf"):
            raise ValueError(f"the weight in {term.strip()!r} must be a positive number")
        terms.append((factor, LOSSES[name]))

    def loss(
        logits: torch.Tensor, target: torch.Tensor, fov: torch.Tensor | None = None
    ) -> torch.Tensor:
        return sum(factor * term(logits, target, fov) for factor, term in terms)

    return loss


def deeply_supervised(
    loss: Loss, outputs: Outputs, target: torch.Tensor, fov: torch.Tensor | None = None
) -> torch.Tensor:
    """The loss of a network's logits; of all of them, summed, if it returns several.

    The W-Net returns the logits of both of its halves in training, and each is held against
    the labels (Galdran et al. 2022).

    Args:
        loss: a loss of (logits, target, fov).
        outputs: logits (N, 1, H, W), or a tuple of them.
        target: (N, 1, H, W) in {0, 1}.
        fov: (N, 1, H, W) in {0, 1}, or None.
    """
    if isinstance(outputs, torch.Tensor):
        return loss(outputs, target, fov)
    return torch.stack([loss(logits, target, fov) for logits in outputs]).sum()
