"""Declarations travel with the module, and a trace reads them."""

import copy
import io
import pickle

import pytest
import torch
from torch import nn

from lightning_effnn.formats import (
    FP32,
    FixedPoint,
    PowerOfTwo,
    RecentralizedPowerOfTwo,
    declare_format,
    declared_formats,
    forget_formats,
)
from lightning_effnn.hardware.trace import Tracer, trace

FOCUS5, POW2 = RecentralizedPowerOfTwo(5), PowerOfTwo(5)


@torch.no_grad()
def round_(module, name, number_format):
    """Round a parameter to a format, and declare it."""
    parameter = getattr(module, name)
    parameter.copy_(number_format.quantize(parameter))
    declare_format(module, name, number_format)


def two_layers():
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))
    round_(model[0], "weight", FOCUS5)
    round_(model[2], "weight", POW2)
    return model


@pytest.mark.parametrize(
    "copied",
    [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m)), copy.copy],
    ids=["deepcopy", "pickle", "copy"],
)
def test_a_copy_of_the_module_keeps_its_declarations(copied):
    assert declared_formats(copied(two_layers())) == {"0.weight": FOCUS5, "2.weight": POW2}


def test_a_saved_module_keeps_them_and_a_state_dict_never_has_them():
    model, file = two_layers(), io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    assert declared_formats(torch.load(file, weights_only=False)) == declared_formats(model)
    assert list(model.state_dict()) == ["0.weight", "0.bias", "2.weight", "2.bias"]


def test_copies_are_independent():
    model = nn.Linear(2, 2)
    nn.init.zeros_(model.weight)
    nn.init.zeros_(model.bias)
    declare_format(model, "weight", POW2)
    shallow = copy.copy(model)
    declare_format(shallow, "weight", FOCUS5)
    declare_format(shallow, "bias", FixedPoint(8))
    assert declared_formats(model) == {"weight": POW2}
    assert declared_formats(shallow) == {"weight": FOCUS5, "bias": FixedPoint(8)}


def test_forgetting_leaves_no_attribute_behind():
    model = two_layers()
    forget_formats(model)
    assert declared_formats(model) == {}
    assert set(vars(model[0])) == set(vars(nn.Linear(1, 1)))
    forget_formats(model)


def test_a_parameter_that_is_gone_is_not_listed():
    layer = nn.Linear(2, 2)
    declare_format(layer, "bias", POW2)
    layer.bias = None
    assert declared_formats(layer) == {}


def test_only_parameters_of_the_module_itself_can_be_declared():
    model = two_layers()
    with pytest.raises(ValueError, match=r"name must be a parameter of Sequential \(none\), got '0.weight'"):
        declare_format(model, "0.weight", POW2)
    with pytest.raises(ValueError, match=r"parameter of Linear \(weight, bias\), got 'wieght'"):
        declare_format(model[0], "wieght", POW2)
    with pytest.raises(TypeError, match="number_format must be a NumberFormat, got 'int8'"):
        declare_format(model[0], "weight", "int8")


class TestWrittenSince:
    """A declaration holds while the values are levels, however they were written."""

    @pytest.mark.parametrize(
        "write",
        [
            lambda p: p.data.add_(1e-3),  # leaves the tensor's version
            lambda p: torch.optim.SGD([p], 0.1).step(),
            lambda p: setattr(p, "data", torch.randn_like(p)),
        ],
    )
    def test_what_trains_on_is_float32_again(self, write):
        model = two_layers()
        model[0].weight.grad = torch.ones_like(model[0].weight)
        write(model[0].weight)
        assert declared_formats(model) == {"2.weight": POW2}
        result = trace(model, torch.randn(3, 4))
        assert [o.w_format for o in result.operations if o.macs] == [FP32, POW2]
        assert weight_formats(result) == {"0.weight": FP32, "2.weight": POW2}

    def test_one_value_is_enough_and_levels_that_come_back_count_again(self):
        layer = nn.Linear(600, 1000)  # more than one block of values
        round_(layer, "weight", POW2)
        before = layer.weight.detach().clone()
        assert declared_formats(layer) == {"weight": POW2}
        with torch.no_grad():
            layer.weight[-1, -1] += 1e-4
        assert declared_formats(layer) == {}
        layer.load_state_dict({"weight": before}, strict=False)
        assert declared_formats(layer) == {"weight": POW2}
        with torch.no_grad():
            layer.weight[0, 0] = torch.nan
        assert declared_formats(layer) == {}

    def test_levels_with_a_scale_a_channel(self):
        layer, scales = nn.Linear(50, 3), torch.tensor([[0.1], [0.02], [0.003]])
        with torch.no_grad():
            layer.weight.copy_(scales * torch.randint(-7, 8, (3, 50)))
        declare_format(layer, "weight", FixedPoint(4, scale=0.04), scales)
        assert list(declared_formats(copy.deepcopy(layer))) == ["weight"]
        assert list(declared_formats(copy.deepcopy(layer).half())) == ["weight"]
        with torch.no_grad():
            layer.weight[2, 7] += 0.001
        assert declared_formats(layer) == {}

    def test_a_model_without_values_keeps_what_was_declared(self):
        assert declared_formats(two_layers().to("meta")) == {"0.weight": FOCUS5, "2.weight": POW2}


def weight_formats(result):
    return {p.name: p.format for p in result.parameters if p.name.rpartition(".")[2].find("bias") < 0}


class TestTrace:
    def test_operations_and_stored_weights_have_the_declared_formats(self):
        model = two_layers()
        result = trace(model, torch.randn(3, 4))
        products = [o for o in result.operations if o.macs]
        assert [o.w_format for o in products] == [FOCUS5, POW2]
        assert [o.i_format for o in products] == [FP32, FP32]
        assert weight_formats(result) == {"0.weight": FOCUS5, "2.weight": POW2}
        forget_formats(model)
        assert {o.w_format for o in trace(model, torch.randn(3, 4)).operations if o.macs} == {FP32}

    @pytest.mark.parametrize("training", [False, True])
    @pytest.mark.parametrize("same", [True, False])
    def test_packed_weights_of_attention(self, training, same):
        model = nn.MultiheadAttention(8, 2, batch_first=True)
        round_(model, "in_proj_weight", FOCUS5)
        round_(model.out_proj, "weight", POW2)
        x = torch.randn(2, 5, 8)
        inputs = (x, x, x) if same else (x, torch.randn(2, 3, 8), torch.randn(2, 3, 8))
        result = trace(model, *inputs, training=training, loss=lambda out: out[0].sum())
        assert weight_formats(result) == {"in_proj_weight": FOCUS5, "out_proj.weight": POW2}
        assert {FOCUS5, POW2} <= {o.w_format for o in result.operations if o.macs and o.phase == "forward"}

    @pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
    def test_recurrent_weights(self, kind):
        model = kind(4, 8, num_layers=2)
        names = [n for n, _ in model.named_parameters() if n.startswith("weight")]
        for place, name in enumerate(names):
            round_(model, name, FOCUS5 if place % 2 else POW2)
        result = trace(model, torch.randn(5, 3, 4))
        expected = {name: FOCUS5 if place % 2 else POW2 for place, name in enumerate(names)}
        assert weight_formats(result) == expected
        assert {o.w_format for o in result.operations if o.macs} == {FOCUS5, POW2}

    def test_autocast_hands_the_format_on(self):
        model = two_layers()
        with torch.autocast("cpu", torch.bfloat16):
            result = trace(model, torch.randn(3, 4))
        assert [o.w_format for o in result.operations if o.macs] == [FOCUS5, POW2]

    def test_a_natural_batch_in_training_has_them_too(self):
        model = two_layers()
        x = torch.randn(3, 4)
        with Tracer(model, example=x) as tracer:
            model(x).sum().backward()
        forward = [o for o in tracer.trace.operations if o.macs and o.phase == "forward"]
        assert [o.w_format for o in forward] == [FOCUS5, POW2]
