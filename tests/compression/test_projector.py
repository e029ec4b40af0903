import copy

import pytest
import torch
from torch import nn

from lightning_effnn.compression.projector import Projector
from lightning_effnn.formats import PowerOfTwo, RecentralizedPowerOfTwo, declared_formats


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.LSTM(64, 16, batch_first=True))


def step(model, projector, optimizer):
    out = model(torch.ones(2, 5, 32))[0].square().sum()
    optimizer.zero_grad()
    out.backward()
    projector.restore()
    optimizer.step()
    projector.capture()


def test_between_steps_the_model_is_the_projection():
    model = net()
    projector = Projector(model)
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    projector.prune(0.8)
    projector.quantize(1.0)
    for _ in range(3):
        step(model, projector, optimizer)
        for layer in projector.layers:
            weight = layer.site.parameter
            assert torch.equal(weight, layer.projection())
            assert (weight[~layer.mask] == 0).all()
            assert len(weight.unique()) <= 19
    assert projector.sparsity >= 0.799


def test_the_optimizer_moves_latent_weights_by_the_gradient_of_the_projection():
    model = net()
    projector = Projector(model)
    projector.prune(0.5)
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    before = [layer.latent.clone() for layer in projector.layers]
    step(model, projector, optimizer)
    for old, layer in zip(before, projector.layers, strict=True):
        assert torch.allclose(layer.latent, old - 0.01 * layer.site.parameter.grad)
        assert (layer.site.parameter.grad[~layer.mask] != 0).any()  # cut weights can grow back


def test_with_magnitude_what_is_cut_stays_cut():
    model = net()
    projector = Projector(model, method="magnitude")
    projector.prune(0.5)
    masks = [layer.mask.clone() for layer in projector.layers]
    optimizer = torch.optim.Adam(model.parameters(), 0.1)
    for _ in range(3):
        step(model, projector, optimizer)
    projector.prune(0.6)
    for before, layer in zip(masks, projector.layers, strict=True):
        assert not (layer.mask & ~before).any()
        assert (layer.latent[~before] == 0).all()


def test_surgery_goes_on_at_each_step_until_masks_settle():
    model = net()
    projector = Projector(model, method="dns")
    projector.prune(0.8)
    optimizer = torch.optim.SGD(model.parameters(), 1.0)
    before = [layer.mask.clone() for layer in projector.layers]
    step(model, projector, optimizer)
    grown = [layer.mask & ~mask for layer, mask in zip(projector.layers, before, strict=True)]
    assert any(g.any() for g in grown)
    projector.settle()
    settled = [layer.mask.clone() for layer in projector.layers]
    step(model, projector, optimizer)
    assert all(torch.equal(layer.mask, mask) for layer, mask in zip(projector.layers, settled, strict=True))


def test_the_model_keeps_its_structure_and_gains_no_parameters():
    model = net()
    names = list(model.state_dict())
    parameters = [id(p) for p in model.parameters()]
    projector = Projector(model)
    projector.prune(0.5)
    projector.quantize(0.5)
    assert list(model.state_dict()) == names
    assert [id(p) for p in model.parameters()] == parameters
    copy.deepcopy(model)


def test_a_fraction_rounds_the_largest_weights_only():
    model = nn.Linear(100, 100)
    projector = Projector(model)
    dense = model.weight.detach().clone()
    projector.quantize(0.25)
    moved = model.weight != dense
    assert 0.15 < moved.float().mean() <= 0.251
    assert dense[moved].abs().min() >= dense.abs().quantile(0.74)
    assert projector.layers[0].declared() is None


def test_two_lobes_are_recentralised_and_one_is_not():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(100, 100), nn.Linear(100, 100))
    with torch.no_grad():
        sign = torch.randn(100, 100).sign()
        model[0].weight.copy_(sign * (0.5 + 0.03 * torch.randn(100, 100)))
        model[1].weight.copy_(torch.randn(100, 100) * 0.1)
    projector = Projector(model)
    projector.quantize(1.0)
    first, second = (layer.format for layer in projector.layers)
    assert isinstance(first, RecentralizedPowerOfTwo)
    assert isinstance(second, PowerOfTwo)
    assert projector.focused_layers == 1


def test_finish_declares_formats_that_hold_the_weights_exactly():
    model = net()
    projector = Projector(model)
    projector.prune(0.7)
    projector.quantize(1.0)
    projector.finish()
    declared = declared_formats(model)
    assert set(declared) == {layer.site.name for layer in projector.layers}
    for name, number_format in declared.items():
        weight = model.get_parameter(name)
        assert torch.equal(number_format.decode(number_format.encode(weight)).to(weight.dtype), weight)


def test_finish_takes_weights_that_somebody_else_has_written():
    model = net()
    projector = Projector(model)
    projector.prune(0.7)
    projector.quantize(1.0)
    with torch.no_grad():  # an average over the fit
        model[0].weight.mul_(0.9).add_(0.001)
    projector.finish()
    assert torch.equal(model[0].weight, projector.layers[0].projection())
    assert len(model[0].weight.unique()) <= 19


@pytest.mark.parametrize("when", ["pruning", "quantising", "after"])
def test_a_state_restores_everything(when):
    def prepared():
        model = net()
        projector = Projector(model)
        projector.prune(0.5)
        if when != "pruning":
            projector.quantize(0.5 if when == "quantising" else 1.0)
        return model, projector, torch.optim.SGD(model.parameters(), 0.01)

    model, projector, optimizer = prepared()
    step(model, projector, optimizer)
    state = projector.state_dict()
    weights = copy.deepcopy(model.state_dict())
    again = net()
    again.load_state_dict(weights)
    other = Projector(again)
    other.load_state_dict(state)
    for m, p in ((model, projector), (again, other)):
        step(m, p, torch.optim.SGD(m.parameters(), 0.01))
    for a, b in zip(model.parameters(), again.parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_state_of_another_model_names_what_differs():
    state = Projector(net()).state_dict()
    with pytest.raises(ValueError, match="of other weights: .*weight"):
        Projector(nn.Linear(3, 3)).load_state_dict(state)


def test_cut_weights_are_plain_zeros():
    model = nn.Linear(50, 50)
    projector = Projector(model)
    projector.prune(0.9)
    zeros = model.weight[model.weight == 0]
    assert not torch.signbit(zeros).any()
