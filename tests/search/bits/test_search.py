import copy

import pytest
import torch
from torch import nn

from lightning_effnn.quantization import TensorQuantizer, bake_, strip_
from lightning_effnn.search.bits import BitSearch

X = torch.randn(128, 8, generator=torch.Generator().manual_seed(0))


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 3))


def searching(model=None, weights=(2, 4, 8), activations=(4, 8), cost="bits", **kw):
    model = (model or network()).eval()
    search = BitSearch(model, weights, activations, **kw)
    search.survey(lambda: model(X), cost)
    return search


def searched(search, loss, cost_weight, steps=60):
    for _ in range(steps):
        assert search.compare(loss)
        search.step(cost_weight)
    return search.settle_()


@pytest.mark.trains
def test_without_a_difference_in_the_loss_the_cheapest_bits_win():
    plan = searched(searching(steps=60), lambda: 0.5, cost_weight=1.0)
    assert set(plan.weights.values()) == {2}
    assert set(plan.activations.values()) == {4}


@pytest.mark.trains
def test_where_bits_matter_they_stay_and_elsewhere_they_fall():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 16))
    search = searching(model, activations=())
    with torch.no_grad():
        target = nn.functional.linear(X, model[0].weight)

    def loss():  # of the first layer's rounding alone
        with torch.no_grad():
            return 20 * float((model[0](X) - model[0].bias - target).square().mean())

    plan = searched(search, loss, cost_weight=3.0, steps=100)
    assert plan.weights["0.weight"] > 2
    assert plan.weights["2.weight"] == plan.weights["4.weight"] == 2


def test_what_the_model_is_does_not_change():
    model = network()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    search = searching(model)
    search.sample_()
    model(X)
    assert list(model.state_dict()) == list(before)
    searched(search, lambda: 0.5, cost_weight=1.0, steps=2)
    strip_(model)
    assert list(model.state_dict()) == list(before)
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in before.items())
    assert torch.equal(model(X), network()(X))


def test_settled_quantisers_start_where_the_options_were():
    model = network()
    search = searching(model)
    search.ahead_()
    ahead = model(X)
    search.settle_()
    assert torch.equal(model(X), ahead)
    assert all(isinstance(q, TensorQuantizer) and q.source == "learned" for q in search.attachment.weights.values())
    assert search.choices == {}
    bake_(model)
    assert torch.unique(model[2].weight).numel() <= 4


def test_32_bits_are_no_quantiser():
    model = network()
    search = searching(model, weights=(32, 8), activations=(32,))
    plan = search.settle_()  # of equals, the first
    assert set(plan.weights.values()) == {32}
    assert search.attachment is None
    assert torch.equal(model(X), network()(X))


def test_a_loss_that_is_not_finite_teaches_nothing():
    search = searching()
    before = copy.deepcopy(search.sensitivity.state_dict())
    assert not search.compare(lambda: float("nan"))
    assert all(torch.equal(value, before[name]) for name, value in search.sensitivity.state_dict().items())


@pytest.mark.parametrize("settled", [False, True])
def test_a_search_goes_on_from_its_state_bit_for_bit(settled):
    def loss(model):
        return lambda: float(model(X).square().mean())

    first_model, second_model = network(), network()
    first = searching(first_model)
    for _ in range(5):
        first.compare(loss(first_model))
        first.step(0.5)
    if settled:
        first.settle_()
    second = BitSearch(second_model.eval(), (2, 4, 8), (4, 8))
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    for search, model in ((first, first_model), (second, second_model)):
        if not settled:
            for _ in range(5):
                search.compare(loss(model))
                search.step(0.5)
            search.ahead_()
    assert torch.equal(first_model(X), second_model(X))
    assert first.figures() == second.figures()
    assert first.settle_() == second.settle_()


def test_the_state_is_loadable_without_unpickling(tmp_path):
    search = searching(cost="energy")
    torch.save(search.state_dict(), tmp_path / "state.pt")
    again = BitSearch(network(), (2, 4, 8), (4, 8))
    again.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert again.figures() == search.figures()


CHANGED = {
    "a list in place of a tensor": (
        ("errors", "weights/0.weight"),
        [0.1, 0.0, 0.0],
        r"errors\.weights/0\.weight is the list",
    ),
    "a tensor of another length": (
        ("controller", "logits.0"),
        torch.zeros(2),
        r"shape \(2,\): a tensor of the shape \(3,\)",
    ),
    "whole numbers": (("sensitivity", "mean"), torch.tensor(1), r"sensitivity\.mean is a int64 tensor"),
    "a text": (("elements", "weights/0.weight"), "many", r"elements\.weights/0\.weight is the str 'many': a number"),
    "another choice": (
        ("cost", "terms"),
        [("a", ["b"], torch.ones(3), "weights")],
        r"terms\.0\.choices is the str 'b'",
    ),
    "no cost": (("cost", "terms"), [], "at least one is needed"),
    "an average of another length": (
        ("optimizer", "state"),
        {0: {"step": torch.tensor(1.0), "exp_avg": torch.zeros(3), "exp_avg_sq": torch.zeros(1)}},
        r"optimizer\.state\.0\.exp_avg_sq",
    ),
    "a quantiser's scale": (("quantizers", "weights.0/weight.options.0.scale"), 1.0, "quantizers"),
    "no optimiser": (("optimizer",), None, "optimizer is the NoneType None: a mapping is needed"),
}


@pytest.mark.parametrize(("path", "value", "words"), CHANGED.values(), ids=CHANGED)
def test_a_state_that_was_changed_is_refused_and_nothing_of_it_taken(path, value, words):
    state = copy.deepcopy(searching().state_dict())
    inner = state
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    again = BitSearch(network(), (2, 4, 8), (4, 8), seed=5)
    before = copy.deepcopy(again.state_dict())
    with pytest.raises(ValueError, match=words):
        again.load_state_dict(state)
    after = again.state_dict()
    assert torch.equal(before["controller"]["_extra_state"], after["controller"]["_extra_state"])
    assert before["cost"] is after["cost"] is None


def test_a_state_of_other_options_is_refused_by_name():
    state = searching(weights=(2, 8)).state_dict()
    with pytest.raises(ValueError, match=r"controller\.logits\.0 .* \(2,\): a tensor of the shape \(3,\)"):
        BitSearch(network(), (2, 4, 8), (4, 8)).load_state_dict(state)


def test_figures_weigh_by_elements():
    search = searching(weights=(2, 8), activations=(8,))
    with torch.no_grad():
        next(iter(search.controller.logits))[1] = (
            5.0  # 8 bits for the first weight, of 8 x 16; 2 for 16 x 16 and 16 x 3
        )
    figures = search.figures()
    assert figures["bits_w"] == pytest.approx((8 * 128 + 2 * 304) / 432)
    assert figures["bits_a"] == 8
    assert 0 < figures["entropy"] < 1


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"weights": (4,), "activations": (8,)}, ValueError, "nothing to choose"),
        ({"weights": (), "activations": ()}, ValueError, "nothing to choose"),
        ({"weights": (4, 4)}, ValueError, "each number of bits once"),
        ({"weights": (0, 4)}, ValueError, "got 0"),
        ({"weights": (4, 17)}, ValueError, "got 17"),
        ({"weights": ("int4", 8)}, TypeError, "int4"),
        ({"activations": "48"}, TypeError, "'48'"),
        ({"weights": 4}, TypeError, "use a list"),
    ],
)
def test_what_is_no_list_of_bits_is_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        BitSearch(network(), **arguments)


def test_models_that_cannot_be_quantised_are_refused():
    with pytest.raises(ValueError, match="no weight"):
        BitSearch(nn.ReLU())
    with pytest.raises(ValueError, match="lazy"):
        BitSearch(nn.LazyLinear(3))
