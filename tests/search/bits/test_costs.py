import pytest
import torch
from torch import nn

from lightning_effnn import hardware
from lightning_effnn.quantization import QuantizationPlan, quantize_
from lightning_effnn.search.bits import BitSearch, bit_cost
from lightning_effnn.search.bits.costs import Survey

X = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.second = nn.Conv2d(8, 8, 3, padding=1)
        self.linear = nn.Linear(8, 5)

    def forward(self, x):
        x = self.norm(self.first(x)).relu()
        x = (x + self.second(x)).relu()
        return self.linear(x.mean((2, 3)))


def surveyed(cost, accelerator="eyeriss_like", weights=(4, 8, 2), activations=(4, 8, 32), model=None):
    model = (model or Residual()).eval()
    search = BitSearch(model, weights, activations)
    search.survey(lambda: model(X), cost, accelerator)
    return search


def gates(search, w, a):
    return search.controller.gates_of({name: w if name.startswith("weights") else a for name in search.options})


@pytest.mark.parametrize("accelerator", ["eyeriss_like", "tpu_like"])
@pytest.mark.parametrize(("w", "a"), [(8, 8), (4, 8), (2, 4)])
def test_energy_is_that_of_the_quantised_model(accelerator, w, a):
    search = surveyed("energy", accelerator)
    model = Residual().eval()
    attachment = quantize_(model, QuantizationPlan.uniform(model, w, a, first_last=None))
    with attachment.calibrating():
        model(X)
    real = hardware.estimate(hardware.trace(model, X), accelerator).energy_uJ
    rounded_to_zero = {"tpu_like": 0.001, "eyeriss_like": 0.03 if w > 2 else 0.3}  # fewer bits, more zeros elsewhere
    found = float(search.cost.absolute(gates(search, w, a))[""]) / 1e6
    assert found == pytest.approx(real, rel=rounded_to_zero[accelerator])


def test_energy_is_relative_to_fp32():
    search = surveyed("energy")
    real = hardware.estimate(hardware.trace(Residual().eval(), X), "eyeriss_like").energy_uJ
    assert search.cost.references[""] / 1e6 == pytest.approx(real, rel=0.1)
    assert 0 < float(search.cost.relative(gates(search, 2, 4))) < float(search.cost.relative(gates(search, 8, 8))) < 1


def test_bits_are_those_of_the_plan():
    search = surveyed("bits")
    plan = QuantizationPlan.uniform(search.model, 4, 8, first_last=None)
    model = Residual()
    average = plan.average_bits(model, X)
    sizes = search.cost.absolute(gates(search, 4, 8))
    elements = sum(p.numel() for name, p in model.named_parameters() if p.dim() > 1)
    assert sizes["weights"] == average.weights * elements
    assert sizes["weights"] / search.cost.references["weights"] == 4 / 32
    assert sizes["activations"] / search.cost.references["activations"] == 8 / 32


def test_bit_operations_are_multiplications_times_both_widths():
    search = surveyed("bops")
    macs = hardware.trace(Residual().eval(), X).macs
    assert search.cost.absolute(gates(search, 4, 8))[""] == macs * 4 * 8
    assert search.cost.references[""] == macs * 32 * 32


def test_weights_alone_leave_activations_in_fp32():
    search = surveyed("bops", activations=())
    macs = hardware.trace(Residual().eval(), X).macs
    assert search.cost.absolute(gates(search, 4, 0))[""] == macs * 4 * 32


def test_what_runs_is_left_as_it_was():
    model = Residual().eval()
    search = BitSearch(model, (2, 8), (8,))
    search.sample_()
    active = {name: choice.active for name, choice in search.choices.items()}
    search.survey(lambda: model(X))
    assert {name: choice.active for name, choice in search.choices.items()} == active
    assert all(choice.trial.value is None for choice in search.choices.values())
    assert all(option.ready() for choice in search.choices.values() for option in choice.options)


class Restless(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear, self.other, self.calls = nn.Linear(4, 4), nn.Linear(4, 4), 0

    def forward(self, x):
        self.calls += 1
        return self.linear(x) if self.calls % 2 else self.other(self.linear(x))


@pytest.mark.parametrize("cost", ["energy", "bops"])
def test_a_model_that_does_something_else_each_time_is_refused_and_can_do_what_the_message_says(cost):
    model = Restless()
    search = BitSearch(model, (2, 8), (8,))
    with pytest.raises(ValueError, match="Restless ran other operations .* use cost='bits'"):
        search.survey(lambda: model(torch.ones(2, 4)), cost)
    search.survey(lambda: model(torch.ones(2, 4)), "bits")
    assert search.cost.references == {"weights": 32 * 2 * 16, "activations": 32 * 2 * 8}


@pytest.mark.parametrize("cost", ["energy", "bops"])
def test_two_views_of_a_batch_cost_twice_what_one_does(cost):
    views = X, X.flip(-1)

    def found(run, example):
        model = Residual().eval()
        search = BitSearch(model, (4, 8), (4, 8))
        search.survey(lambda: run(model), cost, example=example)
        return torch.tensor([*search.cost.absolute(gates(search, 8, 4)).values(), *search.cost.references.values()])

    both = found(lambda model: [model(view) for view in views], views)
    each = [found(lambda model: model(view), view) for view in views]  # noqa: B023 (called at once)
    torch.testing.assert_close(both, sum(each), rtol=0.01, atol=0.0)  # scales are those of the first view


class Asking(nn.Module):
    """A layer takes samples, and questions that are the same for each of them."""

    def __init__(self):
        super().__init__()
        self.layer, self.questions = nn.Linear(6, 6), nn.Parameter(torch.randn(3, 6))

    def forward(self, x):
        return self.layer(x) @ self.layer(self.questions).T


def test_a_layer_of_both_samples_and_constants_has_the_same_operations_each_time():
    model = Asking().eval()
    search = BitSearch(model, (4, 8), (4, 8))
    search.survey(lambda: model(torch.ones(2, 6)), "bops")
    samples, questions = 6 * 6 * 8 * 4, 6 * 3 * 32 * 32  # what is asked of all samples is worked out beforehand
    assert search.cost.absolute(gates(search, 8, 4))[""] == samples + questions


@pytest.mark.parametrize(
    ("cost", "accelerator", "message"),
    [("joules", "tpu_like", "cost is 'joules'"), ("energy", "shumailov2021", "whole modules"), ("energy", "x", "x")],
)
def test_what_is_no_cost_is_refused(cost, accelerator, message):
    model = Residual().eval()
    search = BitSearch(model, (2, 8), (8,))
    survey = Survey(model, search.choices, lambda: model(X))
    with pytest.raises(ValueError, match=message):
        bit_cost(survey, cost, accelerator)
