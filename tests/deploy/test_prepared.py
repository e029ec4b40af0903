"""A prepared model: what it rounds, what it takes over, how it trains."""

import copy

import pytest
import torch
from deployed import X, apart, exported, settled, weights_in
from onnx import numpy_helper
from torch import nn
from torch.nn import functional as F

from lightning_effnn import deploy
from lightning_effnn.deploy.runtime import Session, integer_share
from lightning_effnn.modules import ResNetCIFAR
from lightning_effnn.quantization import bake_, quantize_


def conv_bn(channels=4):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, channels, 3), nn.BatchNorm2d(channels), nn.ReLU(), nn.Flatten(), nn.Linear(400, 5))
    return settled(net)


def test_values_are_rounded_around_additions_and_pooling_and_once_for_all_readers():
    prepared = exported("Residual").prepared
    assert set(prepared.activations) == {"x", "relu", "relu_1", "conv2d_2", "relu_2", "adaptive_avg_pool2d_default"}
    signs = {name: bool(quantizer.is_signed) for name, quantizer in prepared.activations.items()}
    assert signs == {"x": True, "relu": False, "relu_1": False, "conv2d_2": True, "relu_2": False,
                     "adaptive_avg_pool2d_default": False}  # fmt: skip


def test_sums_of_a_transformer_stay_in_floats():
    assert not any("add" in name for name in exported("Attention").prepared.integer)


def test_the_model_stays_as_it_was():
    model = conv_bn().train()
    before, state = copy.deepcopy(model.state_dict()), model.training
    prepared = deploy.prepare(model, X)
    with torch.no_grad():
        for parameter in prepared.parameters():
            parameter.add_(1)
    assert model.training is state
    assert all(torch.equal(x, before[name]) for name, x in model.state_dict().items())


def test_it_trains_with_learned_scales_and_leaves_as_it_was_trained(tmp_path):
    model, target = conv_bn(), torch.randn(40, 5)
    prepared = deploy.prepare(model, X, "W4A4", scale="learned").train()
    prepared(X)
    assert len(prepared.scales) == len(prepared.activations) + len(prepared.layers)
    optimizer = torch.optim.Adam(prepared.parameters(), lr=3e-3)
    losses = []
    for _ in range(20):
        optimizer.zero_grad()
        losses.append(F.mse_loss(prepared(X), target))
        losses[-1].backward()
        assert all(p.grad is not None for p in prepared.parameters())
        optimizer.step()
    assert losses[-1] < 0.7 * losses[0]
    deploy.to_onnx(prepared, X, tmp_path / "net.onnx")
    with torch.no_grad():
        assert apart(Session(tmp_path / "net.onnx").run(X)[0], prepared.eval()(X)) < 0.01


def test_a_limit_below_what_a_learned_scale_reaches_still_holds(tmp_path):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU6(), nn.Flatten(), nn.Linear(400, 5))
    with torch.no_grad():
        net[0].weight.mul_(20)
    prepared = deploy.prepare(net, X, scale="learned").train()
    prepared(X)
    with torch.no_grad():
        prepared.activations["relu6" if "relu6" in prepared.activations else "hardtanh"].scale.fill_(0.05)  # to 12.75
    deploy.to_onnx(prepared, X, tmp_path / "net.onnx")
    with torch.no_grad():
        assert apart(Session(tmp_path / "net.onnx").run(X)[0], prepared.eval()(X)) < 1e-3


def test_levels_and_scales_of_an_attached_model_are_taken_over(tmp_path):
    model = conv_bn()
    attachment = quantize_(model, "W4A8", scale="learned")
    model(X)
    model[0].weight.data.mul_(1.3)  # trained since the scale was found
    prepared = deploy.prepare(model, X)
    assert prepared.layers["conv2d"].weight.bits == attachment.weights["0.weight"].bits
    deploy.to_onnx(deploy.calibrate_(prepared, [X]), X, tmp_path / "net.onnx")
    step = attachment.weights["0.weight"].step().detach()
    expected = torch.round(attachment.weights["0.weight"](model[0].weight).detach() / step)
    expected *= model[1].weight.detach().sign().view(-1, 1, 1, 1)
    stored = torch.tensor(numpy_helper.to_array(weights_in(tmp_path / "net.onnx")["0.weight"]).astype("float32"))
    assert torch.equal(stored, expected.clamp(-128, 127))


def test_baked_weights_keep_their_bits():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 4)).eval()
    quantize_(net, "W4A8")
    bake_(net)
    prepared = deploy.prepare(net, torch.randn(4, 8))
    assert [layer.weight.bits for layer in prepared.layers.values()] == [8, 4, 8]


def test_a_bias_far_above_its_weights_does_not_overflow(tmp_path):
    net = conv_bn()
    with torch.no_grad():
        net[1].weight[1] = 1e-9
        net[1].bias[1] = 3.0
    prepared = deploy.calibrate_(deploy.prepare(net, X), [X])
    deploy.to_onnx(prepared, X, tmp_path / "net.onnx")
    with torch.no_grad():
        expected = prepared.eval()(X)
        assert apart(expected, net(X)) < 0.05
    assert apart(Session(tmp_path / "net.onnx").run(X)[0], expected) < 0.01


def test_a_state_is_loaded_into_a_model_prepared_anew():
    prepared = exported("Mobile").prepared.eval()
    again = deploy.prepare(exported("Mobile").model, X).eval()
    again.load_state_dict(prepared.state_dict())
    with torch.no_grad():
        assert torch.equal(again(X), prepared(X))


@pytest.mark.parametrize("shares", ["weight", "module"])
def test_a_layer_used_twice_with_a_norm_behind_one_use_only(tmp_path, shares):
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 3, 3, padding=1, bias=False), nn.BatchNorm2d(3)
            self.other = nn.Conv2d(3, 3, 3, padding=1, bias=False)
            self.other.weight = self.conv.weight

        def forward(self, x):
            second = self.other if shares == "weight" else self.conv
            return second(F.relu(self.norm(self.conv(x)))).mean((2, 3))

    torch.manual_seed(0)
    net = settled(Twice())
    prepared = deploy.calibrate_(deploy.prepare(net, X), [X])
    with torch.no_grad():
        assert apart(prepared.eval()(X), net(X)) < 0.1
    deploy.to_onnx(prepared, X, tmp_path / "net.onnx")
    with torch.no_grad():
        assert apart(Session(tmp_path / "net.onnx").run(X)[0], prepared(X)) < 0.01


@pytest.mark.parametrize("name", ["Residual", "Mobile", "Joined"])
def test_in_eval_mode_an_input_has_the_same_output_in_any_batch(name):
    prepared = exported(name).prepared.eval()
    together = prepared(X)
    assert torch.equal(torch.cat([prepared(x) for x in X.split(7)]), together)
    assert not together.requires_grad


def test_training_and_evaluation_compute_the_same_up_to_levels():
    prepared = exported("Mobile").prepared.eval()
    assert apart(prepared(X), prepared.network(X).detach()) < 0.01


def test_an_input_that_needs_a_gradient_gets_one():
    x = X[:2].clone().requires_grad_()
    exported("Mobile").prepared.eval()(x).square().sum().backward()
    assert x.grad.abs().sum() > 0


@pytest.mark.slow
def test_a_deep_network_leaves_as_it_is(tmp_path):
    torch.manual_seed(0)
    net, x = ResNetCIFAR(depth=20).train(), torch.randn(32, 3, 32, 32)
    with torch.no_grad():
        net(x)  # statistics of batch norms
    prepared = deploy.calibrate_(deploy.prepare(net, x), [x]).eval()
    deploy.to_onnx(prepared, x, tmp_path / "net.onnx")
    (found,) = Session(tmp_path / "net.onnx").run(x)
    assert apart(found, prepared(x)) < 0.01
    assert torch.equal(found.argmax(1), prepared(x).argmax(1))


def test_a_layer_of_zeros_gives_its_bias(tmp_path):
    net = conv_bn()
    nn.init.zeros_(net[0].weight)
    prepared = deploy.calibrate_(deploy.prepare(net, X), [X]).eval()
    report = deploy.to_onnx(prepared, X, tmp_path / "net.onnx")
    assert report.integer_macs == integer_share(tmp_path / "net.onnx", X[:1]) == 1
    with torch.no_grad():
        assert apart(prepared(X), net(X)) < 0.02
    assert apart(Session(tmp_path / "net.onnx").run(X)[0], prepared(X)) < 0.01
