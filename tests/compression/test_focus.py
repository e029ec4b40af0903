"""What is chosen, that it is the best of what there is, and where there is nothing to choose."""

import copy
import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from torch import nn

from lightning_effnn.compression.focus import focus, focus_model_, focus_table
from lightning_effnn.formats import PowerOfTwo, RecentralizedPowerOfTwo, declared_formats
from lightning_effnn.hardware.trace import trace


def pruned(*shape, cut=1.0, scale=0.1, seed=0):
    x = scale * torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    return torch.where(x.abs() > cut * scale, x, 0.0)


def mse(a, b):
    return float((a.double() - b.double()).square().sum() / (a != 0).sum())


@given(
    bits=st.integers(3, 7),
    cut=st.floats(0, 2.5),
    scale=st.sampled_from([1e-6, 0.03, 1.0, 1e4]),
    assignment=st.sampled_from(["hard", "sampled"]),
    alpha=st.sampled_from(["fit", "one"]),
    separation=st.sampled_from([0.0, 2.0, math.inf]),
)
@settings(max_examples=80)
def test_the_result_is_levels_of_its_format_and_zeros_stay(bits, cut, scale, assignment, alpha, separation):
    weight = pruned(20, 30, cut=cut, scale=scale)
    found = focus(weight, bits, separation, assignment, alpha=alpha)
    assert torch.equal(found.format.decode(found.codes), found.weight)
    assert bool((found.weight[weight == 0] == 0).all())
    assert found.mse == pytest.approx(mse(weight, found.weight))
    assert isinstance(found.format, RecentralizedPowerOfTwo) == (found.separation >= separation)
    assert found.format.bits == bits
    if alpha == "one" and isinstance(found.format, RecentralizedPowerOfTwo):
        assert found.format.scale == 1
    if assignment == "hard":
        nearest = found.mse_focused if isinstance(found.format, RecentralizedPowerOfTwo) else found.mse_shift
        assert found.mse == pytest.approx(nearest, rel=1e-3)
        assert torch.equal(found.weight, found.format.quantize(weight))


@pytest.mark.parametrize("bits", [3, 4, 5])
def test_the_chosen_parameters_have_the_least_error_of_those_around(bits):
    weight = pruned(200, 50)
    found = focus(weight, bits, alpha="one")
    fmt = found.format
    for negative, positive, step in [(a, b, c) for a in (0.5, 1, 2) for b in (0.5, 1, 2) for c in (-1, 0, 1)]:
        other = RecentralizedPowerOfTwo(
            bits, fmt.mean_negative * negative, fmt.mean_positive * positive, fmt.sigma, fmt.max_exponent + step
        )
        assert mse(weight, other.quantize(weight)) >= found.mse * (1 - 1e-6)
    shift = focus(weight, bits, math.inf).format
    for step in (-1, 1):
        other = PowerOfTwo(bits, shift.max_exponent + step)
        assert mse(weight, other.quantize(weight)) >= mse(weight, shift.quantize(weight)) * (1 - 1e-6)


@pytest.mark.parametrize("bits", [3, 4, 5])
def test_the_fitted_scale_is_better_than_one_and_that_of_least_squares(bits):
    misses = []
    for seed in range(15):
        weight = pruned(200, 50, seed=seed)
        fitted, one = focus(weight, bits), focus(weight, bits, alpha="one")
        assert fitted.mse < 0.9 * one.mse
        levels = fitted.weight
        misses.append(abs(float((weight * levels).sum() / levels.square().sum()) - 1))
        for factor in (0.8, 0.9, 1.1, 1.2):
            other = replace(fitted.format, scale=fitted.format.scale * factor)
            assert mse(weight, other.quantize(weight)) > 0.95 * fitted.mse
    assert sorted(misses)[7] < 1e-3  # twice as much where the best of a few scales is taken as it is


@pytest.mark.parametrize("bits", [3, 4, 5])
@pytest.mark.parametrize("seed", range(5))
def test_recentralising_beats_plain_shifts_where_the_test_fires(bits, seed):
    found = focus(pruned(100, 50, seed=seed), bits, alpha="one")
    assert found.separation >= 2
    assert found.mse < (0.95 if bits == 3 else 0.5) * found.mse_shift


def test_the_threshold_decides():
    dense, sparse = pruned(100, 50, cut=0.0), pruned(100, 50)
    assert focus(dense).format.name == "pow2_5"
    assert focus(dense).reason.endswith("< 2")
    assert focus(sparse).format.name == "focus5"
    apart = focus(sparse).separation
    assert focus(sparse, separation=apart).format.name == "focus5"
    assert focus(sparse, separation=math.nextafter(apart, 9)).format.name == "pow2_5"


class TestSampled:
    weight = pruned(300, 50, cut=0.6)

    def test_the_same_seed_gives_the_same_weights(self):
        first, again, other = (focus(self.weight, assignment="sampled", seed=seed) for seed in (3, 3, 4))
        assert torch.equal(first.weight, again.weight)
        assert not torch.equal(first.weight, other.weight)
        torch.rand(5)
        before = torch.get_rng_state()
        focus(self.weight, assignment="sampled")
        assert torch.equal(before, torch.get_rng_state())

    def test_a_generator_goes_on(self):
        generator = torch.Generator().manual_seed(3)
        first = focus(self.weight, assignment="sampled", seed=generator)
        second = focus(self.weight, assignment="sampled", seed=generator)
        assert torch.equal(first.weight, focus(self.weight, assignment="sampled", seed=3).weight)
        assert not torch.equal(first.weight, second.weight)

    def test_weights_are_drawn_to_the_components_by_their_posterior(self, monkeypatch):
        generator = torch.Generator().manual_seed(0)
        noise = 0.5 * torch.randn(2, 20_000, generator=generator)
        weight = torch.cat([-0.7 + noise[0], 0.7 + noise[1]])
        drawn = []
        monkeypatch.setattr(
            RecentralizedPowerOfTwo, "quantize_assigned", lambda self, x, component: drawn.append(component) or x
        )
        found = focus(weight, assignment="sampled", separation=0.0, seed=5, alpha="one")
        posterior = found.mixture.posterior(weight)
        for low, high in [(0.05, 0.3), (0.3, 0.5), (0.5, 0.7), (0.7, 0.95)]:
            within = (posterior > low) & (posterior < high)
            assert float(drawn[-1][within].double().mean()) == pytest.approx(float(posterior[within].mean()), abs=0.05)

    def test_the_nearest_level_has_the_least_error(self):
        sampled, hard = focus(self.weight, assignment="sampled", alpha="one"), focus(self.weight, alpha="one")
        assert hard.mse <= sampled.mse


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ([0.0, 0.0], "all weights are zero"),
        ([], "all weights are zero"),
        ([0.5, 0.7, 0.0], "one sign only"),
        ([-0.5] * 4, "one sign only"),
        ([0.3], "one sign only"),
        ([-1.0, -1.0, 1e-12, 1e-12, 1e-12], "the lobes' sizes differ too much"),
    ],
)
@pytest.mark.parametrize("assignment", ["hard", "sampled"])
def test_weights_without_two_lobes_get_plain_shifts(values, reason, assignment):
    weight = torch.tensor(values)
    found = focus(weight, assignment=assignment, separation=0.0)
    assert found.reason == reason
    assert isinstance(found.format, PowerOfTwo)
    assert found.mse_focused is None
    assert torch.equal(found.weight == 0, weight == 0) or reason.startswith("the lobes")
    assert torch.equal(found.format.decode(found.codes), found.weight)


def test_two_constants_are_hit():
    found = focus(torch.tensor([-0.3, 0.3, 0.3, 0.0]))
    assert isinstance(found.format, RecentralizedPowerOfTwo)
    assert found.weight.tolist() == pytest.approx([-0.3, 0.3, 0.3, 0.0], rel=1e-5)


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False, width=32), min_size=1, max_size=30))
@settings(max_examples=150)
def test_any_finite_weight_is_taken(values):
    found = focus(torch.tensor(values), separation=0.0)
    assert torch.equal(found.format.decode(found.codes), found.weight)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_the_dtype_is_kept(dtype):
    weight = pruned(50, 50).to(dtype)
    found = focus(weight)
    assert found.weight.dtype == dtype
    assert torch.equal(found.format.decode(found.codes).to(dtype), found.weight)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"bits": 2}, r"bits must be an integer in \[3, 7\], got 2"),
        ({"bits": 5.0}, r"bits must be an integer"),
        ({"separation": -1}, "separation must be a number of at least 0, got -1"),
        ({"separation": math.nan}, "separation must be a number of at least 0, got nan"),
        ({"assignment": "soft"}, "assignment must be 'hard' or 'sampled', got 'soft'"),
        ({"alpha": 1.0}, "alpha must be 'fit' or 'one', got 1.0"),
    ],
)
def test_wrong_arguments_are_named(arguments, message):
    for call in (lambda: focus(torch.ones(2), **arguments), lambda: focus_model_(nn.Linear(2, 2), **arguments)):
        with pytest.raises(ValueError, match=message):
            call()


def test_weights_that_are_no_finite_numbers_are_refused():
    with pytest.raises(ValueError, match="weight must be finite"):
        focus(torch.tensor([1.0, torch.nan]))
    with pytest.raises(TypeError, match="weight must be a floating-point tensor, got torch.int64"):
        focus(torch.tensor([1]))


class TestModel:
    def model(self):
        model = nn.Sequential(nn.Conv2d(1, 8, 3), nn.Flatten(), nn.Linear(8 * 36, 10), nn.Linear(10, 10))
        with torch.no_grad():
            model[0].weight.copy_(pruned(8, 1, 3, 3))
            model[2].weight.copy_(pruned(10, 288, cut=1.5))
            model[3].weight.zero_()
        return model

    def test_weights_are_written_in_place_and_formats_declared(self):
        model = self.model()
        before, own = copy.deepcopy(model), [p.data_ptr() for p in model.parameters()]
        layers = focus_model_(model)
        assert [layer.name for layer in layers] == ["0.weight", "2.weight", "3.weight"]
        assert [layer.focused for layer in layers] == [True, True, False]
        assert own == [p.data_ptr() for p in model.parameters()]
        assert all(p.requires_grad for p in model.parameters())
        assert declared_formats(model) == {layer.name: layer.format for layer in layers}
        for layer in layers:
            old, new = before.get_parameter(layer.name), model.get_parameter(layer.name)
            assert torch.equal(new, focus(old).weight)
            assert (layer.elements, layer.nonzero) == (old.numel(), int((old != 0).sum()))
        assert torch.equal(model[0].bias, before[0].bias)

    def test_a_trace_prices_the_new_formats(self):
        model = self.model()
        focus_model_(model)
        products = [o for o in trace(model, torch.randn(2, 1, 8, 8)).operations if o.macs]
        assert [o.w_format.name for o in products] == ["focus5", "focus5", "pow2_5"]

    def test_sampling_is_reproducible(self):
        first, again, other = self.model(), self.model(), self.model()
        for model, seed in ((first, 1), (again, 1), (other, 2)):
            with torch.no_grad():
                model[2].weight.copy_(pruned(10, 288, cut=0.5))
            focus_model_(model, assignment="sampled", separation=0.0, seed=seed)
        assert torch.equal(first[2].weight, again[2].weight)
        assert not torch.equal(first[2].weight, other[2].weight)

    def test_only_chosen_weights_are_touched(self):
        model, before = self.model(), self.model()
        assert [layer.name for layer in focus_model_(model, exclude=["Conv2d"])] == ["2.weight", "3.weight"]
        assert torch.equal(model[0].weight, before[0].weight)

    def test_nothing_is_changed_when_a_weight_is_not_finite(self):
        model = self.model()
        with torch.no_grad():
            model[2].weight[0, 0] = torch.nan
        before = copy.deepcopy(model)
        with pytest.raises(ValueError, match="NaN or infinity in 2.weight"):
            focus_model_(model)
        assert torch.equal(model[0].weight, before[0].weight)
        assert declared_formats(model) == {}

    def test_the_table_says_what_was_chosen_and_why(self):
        layers = focus_model_(self.model())
        console = Console(width=160, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
        console.print(focus_table(layers))
        text = console.export_text()
        for layer in layers:
            assert layer.name in text
            assert layer.reason in text
