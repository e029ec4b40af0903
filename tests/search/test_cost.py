import itertools

import pytest
import torch

from lightning_effnn.search import CostModel, CostTerm

A, B = torch.tensor([[1.0, 2.0], [3.0, 8.0]]), torch.tensor([0.5, 4.0])
TERMS = [
    CostTerm("layer", ("width", "bits"), A),
    CostTerm("rest", ("bits",), B),
    CostTerm("fixed", (), torch.tensor(2.0)),
]


def test_the_expectation_is_the_mean_over_all_networks():
    model = CostModel(TERMS, "pJ")
    p = {"width": torch.tensor([0.3, 0.7]), "bits": torch.tensor([0.9, 0.1])}
    mean = sum(
        float(p["width"][i] * p["bits"][j]) * float(A[i, j] + B[j] + 2)
        for i, j in itertools.product(range(2), range(2))
    )
    assert model.absolute(p)[""] == pytest.approx(mean)
    assert float(model.relative(p)) == pytest.approx(mean / (8 + 4 + 2))


def test_its_gradient_is_the_difference_of_the_costs_of_options():
    logits = torch.zeros(2, requires_grad=True)
    p = {"width": torch.tensor([0.0, 1.0]), "bits": torch.softmax(logits, 0)}
    CostModel(TERMS, "pJ").relative(p).backward()
    expected = 0.25 * ((8 + 4) - (3 + 0.5)) / 14
    assert logits.grad.tolist() == pytest.approx([-expected, expected])


def test_groups_count_alike_whatever_their_size():
    terms = [CostTerm("w", ("bits",), B * 1e-6, "weights"), CostTerm("a", ("bits",), B * 1e6, "activations")]
    model = CostModel(terms, "bit")
    assert float(model.relative({"bits": torch.tensor([1.0, 0.0])})) == pytest.approx(0.125)
    assert float(model.relative({"bits": torch.tensor([0.0, 1.0])})) == pytest.approx(1)


@pytest.mark.parametrize(
    ("terms", "named"),
    [
        ([], "references"),
        ([CostTerm("t", ("a",), A)], "t has 2 axes for 1"),
        ([CostTerm("t", ("a", "b"), -A)], "t holds"),
        ([CostTerm("t", ("a", "b"), A / 0 * 0)], "t holds"),
        ([CostTerm("t", ("a", "b"), A * 0)], "above 0"),
    ],
)
def test_tables_that_are_no_costs_are_refused(terms, named):
    with pytest.raises(ValueError, match=named):
        CostModel(terms, "pJ")
