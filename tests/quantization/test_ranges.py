"""Which inputs the scales of activations learn from, and which are let through as they are."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lightning_effnn.quantization import (
    TensorQuantizer,
    activation_sites,
    attach_,
    exact_activations,
    settled_ranges,
    weight_sites,
)


def network():
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))


def attached(model, bits=8):
    return attach_(
        model,
        {site.name: TensorQuantizer(4, scale="dynamic", signed=True) for site in weight_sites(model)},
        {site.name: TensorQuantizer(bits) for site in activation_sites(model)},
    )


def test_ranges_are_observed_in_train_mode_and_while_calibrating():
    model, x = network().eval(), torch.randn(64, 6)
    attachment = attached(model)
    first = attachment.activations["0"]
    model(x)
    assert not first.initialised
    with attachment.calibrating():
        model(x)
    assert first.initialised
    scale = first.scale.clone()
    model(10 * x)
    assert torch.equal(first.scale, scale)
    model.train()
    model(10 * x)
    assert first.scale > scale


def test_settled_ranges_learn_nothing_in_train_mode():
    model, x = network(), torch.randn(64, 6)
    attachment = attached(model)
    first = attachment.activations["0"]
    model(x)
    scale = first.scale.clone()
    with settled_ranges(model):
        model(10 * x)
        assert torch.equal(first.scale, scale)
        with attachment.calibrating():
            model(10 * x)
        assert first.scale > scale
        scale = first.scale.clone()
        model(20 * x)
        assert torch.equal(first.scale, scale)
    model(20 * x)
    assert first.scale > scale


def test_exact_activations_are_let_through_and_not_observed():
    model, x, seen = network(), torch.randn(64, 6), []
    attachment = attached(model, 2)
    model(x)
    rounded = model.eval()(x)
    scales = {name: quantizer.scale.clone() for name, quantizer in attachment.activations.items()}
    model.train()[0].register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    with exact_activations(model):
        with exact_activations(model):  # whose end is not that of the outer one
            pass
        model(10 * x)
        torch.testing.assert_close(
            model[0](x), F.linear(x, attachment.weights["0.weight"](model[0].weight), model[0].bias)
        )
        with pytest.raises(RuntimeError, match="shape"):
            model(x.T)
    assert seen[1] is x
    assert all(torch.equal(scales[name], quantizer.scale) for name, quantizer in attachment.activations.items())
    assert torch.equal(model.eval()(x), rounded)
