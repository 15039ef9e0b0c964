"""Content, style and smoothness by hand."""

import pytest
import torch

from retina_lab.models.vgg import load_vgg19
from retina_lab.style import content_loss, gram, style_loss, total_variation, transfer_loss


def test_gram_by_hand():
    features = torch.tensor([[[[1.0, 2.0]], [[3.0, 0.0]]]])  # 1×2×1×2
    expected = torch.tensor([[[1 + 4, 3.0], [3.0, 9.0]]]) / 4
    torch.testing.assert_close(gram(features), expected)


def test_style_does_not_see_where_things_are():
    features = [torch.randn(2, 3, 4, 5) for _ in range(5)]
    order = torch.randperm(20)
    moved = [f.flatten(2)[:, :, order].reshape(f.shape) for f in features]
    assert style_loss(features, moved).item() == pytest.approx(0, abs=1e-10)
    assert content_loss(features, moved) > 0.1


def test_style_weighs_the_five_blocks():
    zeros = [torch.zeros(1, 1, 1, 1) for _ in range(5)]
    for block in range(5):
        one = [z.clone() for z in zeros]
        one[block] += 2  # a Gram matrix of 4
        assert style_loss(one, zeros).item() == pytest.approx(0.2 * 16)


def test_content_is_block_four():
    a, b = ([torch.full((1, 2, 3, 3), v) for _ in range(5)] for v in (1.0, 1.0))
    b[3] = b[3] + 2
    assert content_loss(a, b).item() == 4
    b[0] = b[0] + 100
    assert content_loss(a, b).item() == 4


@pytest.mark.parametrize(
    ("rows", "expected"),
    [([[3.0, 3.0], [3.0, 3.0]], 0), ([[0.0, 1.0], [0.0, 1.0]], 1), ([[0.0, 2.0], [1.0, 0.0]], 5.0)],
)
def test_total_variation_by_hand(rows, expected):
    assert total_variation(torch.tensor(rows)[None, None]).item() == expected


def test_transfer_sums_its_weighted_terms_and_pulls_the_painting():
    judge = load_vgg19("stand-in")
    real, style = torch.rand(1, 3, 32, 32) * 2 - 1, torch.rand(1, 3, 32, 32) * 0.2
    painted = torch.zeros(1, 3, 32, 32, requires_grad=True)
    terms = transfer_loss(judge, painted, real, style)
    parts = terms["content"] + terms["style"] + terms["smoothness"]
    torch.testing.assert_close(terms["total"], parts)
    terms["total"].backward()
    assert painted.grad.abs().sum() > 0
    same = transfer_loss(judge, real, real, real)
    assert same["content"] == 0
    assert same["style"] == 0
