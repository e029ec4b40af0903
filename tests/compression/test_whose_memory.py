"""In a step the parameter has the memory of its latent values: whoever else looks at its own one is not left behind."""

import pytest
import torch
from torch import nn

from lightning_effnn.compression import Projector

LR = 0.1


def compressed(sparsity=0.5, **kw):
    torch.manual_seed(0)
    model = nn.Linear(30, 20, bias=False)
    projector = Projector(model, **kw)
    projector.prune(sparsity)
    projector.settle()
    projector.quantize(1.0)
    return model, projector, projector.layers[0]


def stepped(model, projector, optimizer=None):
    """The latent values that a step should give, after it."""
    optimizer = optimizer or torch.optim.SGD(model.parameters(), LR)
    before = projector.layers[0].latent.clone()
    with projector.follow():
        model.zero_grad()
        model(torch.linspace(-1, 1, 30)).square().sum().backward()
        optimizer.step()
    return before - LR * model.weight.grad


def assert_is(layer, latent):
    assert torch.allclose(layer.latent, latent, atol=1e-7)
    assert torch.equal(layer.site.parameter, layer.projection())


def test_the_parameter_has_its_own_memory_again_after_a_step():
    model, projector, layer = compressed()
    own, seen = model.weight.data_ptr(), []
    optimizer = torch.optim.SGD(model.parameters(), LR)
    optimizer.register_step_post_hook(lambda *_: seen.append(model.weight.data_ptr()))
    assert_is(layer, stepped(model, projector, optimizer))
    assert model.weight.data_ptr() == own != layer.latent.data_ptr()
    assert seen == [layer.latent.data_ptr()]


@pytest.mark.parametrize("keep", [lambda w: w.detach().view(-1), lambda w: w.detach().numpy().reshape(-1)])
def test_a_view_that_somebody_keeps_goes_on_being_one(keep):
    model, projector, layer = compressed()
    view = keep(model.weight)
    assert_is(layer, stepped(model, projector))
    assert torch.equal(torch.as_tensor(view), model.weight.detach().view(-1))


def test_what_is_written_through_a_view_in_a_step_is_kept():
    model, projector, layer = compressed()
    view, optimizer = model.weight.detach().view(-1), torch.optim.SGD(model.parameters(), LR)
    optimizer.register_step_post_hook(lambda *_: view.add_(1.0))
    assert_is(layer, stepped(model, projector, optimizer) + 1.0)


def test_a_view_taken_in_a_step_is_of_the_parameter():
    model, projector, layer = compressed()
    views, optimizer = [], torch.optim.SGD(model.parameters(), LR)
    optimizer.register_step_post_hook(lambda *_: views.append(model.weight.detach()))
    for _ in range(2):
        assert_is(layer, stepped(model, projector, optimizer))
        assert all(torch.equal(view, model.weight) for view in views)


class OutOfPlace(torch.optim.Optimizer):
    """Gives its parameters other memory."""

    def __init__(self, parameters):
        super().__init__(parameters, {"lr": LR})

    def step(self):
        for p in self.param_groups[0]["params"]:
            p.data = p.data - LR * p.grad


def test_an_optimizer_may_give_a_parameter_other_memory():
    model, projector, layer = compressed()
    for _ in range(2):
        assert_is(layer, stepped(model, projector, OutOfPlace(model.parameters())))


def test_parameters_in_one_piece_of_memory_stay_there():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8, bias=False), nn.Linear(8, 6, bias=False))
    flat = torch.cat([p.detach().flatten() for p in model.parameters()])
    for number, layer in enumerate(model):
        layer.weight.data = flat[48 * number : 48 * (number + 1)].view_as(layer.weight)
    projector = Projector(model)
    projector.prune(0.5)
    before = [layer.latent.clone() for layer in projector.layers]
    with projector.follow():
        model(torch.ones(1, 6)).sum().backward()
        torch.optim.SGD(model.parameters(), LR).step()
    for old, layer in zip(before, projector.layers, strict=True):
        assert torch.allclose(layer.latent, old - LR * layer.site.parameter.grad)
    assert torch.equal(flat, torch.cat([p.detach().flatten() for p in model.parameters()]))


@pytest.mark.parametrize("sparsity", [0.2, 0.6, 0.9])
@pytest.mark.parametrize("method", ["dns", "magnitude"])
def test_what_others_wrote_is_projected_altogether(sparsity, method):
    """Few weights that are kept are rounded one by one, where the others are known to be zero."""
    model, projector, layer = compressed(sparsity, method=method)
    stepped(model, projector)
    with torch.no_grad():
        model.weight.add_(0.3)
    stepped(model, projector)
    assert torch.equal(model.weight, layer.projection())
    assert ((model.weight == 0) | layer.mask).all()


def test_memory_that_other_processes_see_is_kept():
    model, projector, layer = compressed()
    model.share_memory()
    kept, optimizer = [], torch.optim.SGD(model.parameters(), LR)
    optimizer.register_step_post_hook(lambda *_: kept.append(model.weight.detach()))
    place = model.weight.data_ptr()
    stepped(model, projector, optimizer)
    assert model.weight.is_shared()
    assert model.weight.data_ptr() == place
    assert torch.equal(model.weight, layer.projection())


def test_two_parameters_in_one_piece_of_memory_are_refused_and_one_in_two_modules_is_not():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].weight = nn.Parameter(model[0].weight.data)
    with pytest.raises(ValueError, match=r"0.weight and 1.weight are two parameters in one piece of memory"):
        Projector(model)
    model[1].weight = model[0].weight
    assert len(Projector(model).layers) == 1
    Projector(nn.LSTM(4, 4))


def test_a_state_loaded_after_a_step_that_failed():
    model, projector, layer = compressed()
    state, optimizer = projector.state_dict(), torch.optim.SGD(model.parameters(), LR)
    hook = optimizer.register_step_post_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        stepped(model, projector, optimizer)
    hook.remove()
    projector.load_state_dict(state)
    assert_is(layer, state["layers"]["weight"]["latent"])
    assert_is(layer, stepped(model, projector, optimizer))


def test_a_kept_graph_is_not_differentiated_with_weights_that_moved():
    model, projector, _ = compressed()
    x = torch.linspace(-1, 1, 30, requires_grad=True)
    loss = model(x).square().sum()
    with projector.follow():
        loss.backward(retain_graph=True)
        torch.optim.SGD(model.parameters(), LR).step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()
