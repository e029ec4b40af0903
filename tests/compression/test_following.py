"""Whoever moves weights, however: no step is lost, and nothing that others write is undone."""

import copy

import pytest
import torch
from torch import nn

from lightning_effnn.compression import Projector

LR = 0.05


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(12, 24), nn.Tanh(), nn.Linear(24, 6))


def batch():
    return torch.randn(8, 12, generator=torch.Generator().manual_seed(1))


def loss_of(model):
    return model(batch()).square().mean()


def compressed(fraction=0.5, **kw):
    """Half of the weights cut, half of the rest rounded."""
    model = net()
    projector = Projector(model, **kw)
    projector.prune(0.5)
    projector.settle()
    projector.quantize(fraction)
    return model, projector


def latents(projector):
    return [layer.latent.clone() for layer in projector.layers]


def assert_projected(projector):
    for layer in projector.layers:
        assert torch.equal(layer.site.parameter, layer.projection())


def raw(model, optimizer):
    optimizer.zero_grad()
    loss_of(model).backward()
    optimizer.step()


def with_closure(model, optimizer):
    def closure():
        optimizer.zero_grad()
        loss = loss_of(model)
        loss.backward()
        return loss

    optimizer.step(closure)


def with_a_scaler(model, optimizer):
    scaler = torch.amp.GradScaler("cpu", init_scale=256.0)
    optimizer.zero_grad()
    scaler.scale(loss_of(model)).backward()
    scaler.step(optimizer)
    scaler.update()


def by_hand(model, optimizer):
    """No optimiser that torch knows of."""
    optimizer.zero_grad()
    loss_of(model).backward()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter -= LR * parameter.grad


def by_hand_on_data(model, optimizer):
    optimizer.zero_grad()
    loss_of(model).backward()
    for parameter in model.parameters():
        parameter.data.sub_(LR * parameter.grad)


@pytest.mark.parametrize("method", ["dns", "magnitude"])
@pytest.mark.parametrize("way", [raw, with_closure, with_a_scaler], ids=lambda way: way.__name__)
def test_a_step_moves_latent_weights_by_the_gradient_of_the_projection(way, method):
    model, projector = compressed(method=method)
    optimizer = torch.optim.SGD(model.parameters(), LR)
    for _ in range(3):
        expected = copy.deepcopy(model)
        loss_of(expected).backward()
        before = latents(projector)
        with projector.follow():
            way(model, optimizer)
        for old, layer in zip(before, projector.layers, strict=True):
            moved = old - LR * expected.get_parameter(layer.site.name).grad
            moved = moved if method == "dns" else moved * layer.mask
            assert torch.allclose(layer.latent, moved, atol=1e-7)
        assert_projected(projector)
    assert projector.steps == 3


@pytest.mark.parametrize("way", [by_hand, by_hand_on_data], ids=lambda way: way.__name__)
def test_small_steps_of_nobody_s_optimizer_add_up(way):
    model, projector = compressed(fraction=1.0)
    expected = latents(projector)
    for _ in range(20):
        before = [layer.site.parameter.detach().clone() for layer in projector.layers]
        way(model, torch.optim.SGD(model.parameters(), LR))
        for total, old, layer in zip(expected, before, projector.layers, strict=True):
            total += layer.site.parameter.detach() - old
        projector.sync()
        assert_projected(projector)
    moves = [(mine - start).abs().mean() for mine, start in zip(latents(projector), expected, strict=True)]
    levels = [layer.latent.abs().mean() for layer in projector.layers]
    assert all(move < 0.02 * level for move, level in zip(moves, levels, strict=True))


def step_alone(optimizer):
    def step(_):
        optimizer.step()
        optimizer.zero_grad()

    return step


def test_optimizers_that_step_in_the_backward_pass_lose_no_step():
    model, projector = compressed()
    expected = copy.deepcopy(model)
    loss_of(expected).backward()
    before = latents(projector)
    with projector.follow():
        for parameter in model.parameters():
            parameter.register_post_accumulate_grad_hook(step_alone(torch.optim.SGD([parameter], LR)))
        loss_of(model).backward()
    for old, layer in zip(before, projector.layers, strict=True):
        assert torch.allclose(layer.latent, old - LR * expected.get_parameter(layer.site.name).grad)
    assert_projected(projector)


class Sharpness(torch.optim.Optimizer):
    """Two steps: up to where the loss is larger, and from there back and down. Raw or with a closure."""

    def __init__(self, parameters, radius=0.05):
        super().__init__(parameters, {"radius": radius, "lr": LR})
        self.base = torch.optim.SGD(self.param_groups, LR)

    @torch.no_grad()
    def up(self):
        for p in (p for group in self.param_groups for p in group["params"]):
            self.state[p]["moved"] = p.grad * self.param_groups[0]["radius"]
            p.add_(self.state[p]["moved"])
        self.zero_grad()

    @torch.no_grad()
    def down(self):
        for p in (p for group in self.param_groups for p in group["params"]):
            p.sub_(self.state[p]["moved"])
        self.base.step()
        self.zero_grad()

    def step(self, closure=None):
        with torch.enable_grad():
            closure()
        self.up()
        with torch.enable_grad():
            closure()
        self.down()


@pytest.mark.parametrize("in_one_call", [False, True])
def test_both_steps_of_sharpness_aware_minimisation_come_right(in_one_call):
    model, projector = compressed()
    before, optimizer = latents(projector), Sharpness(model.parameters())
    up = copy.deepcopy(model)
    loss_of(up).backward()
    if in_one_call:  # what is moved up are the latent weights; the loss is of their projection
        above = Projector(copy.deepcopy(model))
        above.load_state_dict(projector.state_dict())
        for layer in above.layers:
            layer.latent += 0.05 * up.get_parameter(layer.site.name).grad
        above.project()
        grads = {}
        other = nn.Sequential(nn.Linear(12, 24), nn.Tanh(), nn.Linear(24, 6))
        other.load_state_dict(up.state_dict())
        with torch.no_grad():
            for name, parameter in other.named_parameters():
                parameter += 0.05 * up.get_parameter(name).grad
            for layer in above.layers:
                other.get_parameter(layer.site.name).copy_(layer.site.parameter)
    else:
        other = copy.deepcopy(up)
        with torch.no_grad():
            for name, parameter in other.named_parameters():
                parameter += 0.05 * up.get_parameter(name).grad
        other.zero_grad()
    loss_of(other).backward()
    grads = {name: parameter.grad for name, parameter in other.named_parameters()}

    def closure():
        optimizer.zero_grad()
        loss_of(model).backward()

    with projector.follow():
        if in_one_call:
            optimizer.step(closure)
        else:
            closure()
            optimizer.up()
            loss_of(model).backward()
            optimizer.down()
    for old, layer in zip(before, projector.layers, strict=True):
        assert torch.allclose(layer.latent, old - LR * grads[layer.site.name], atol=1e-6)
    assert_projected(projector)


class Lookahead:
    """Wraps an optimiser, without being one for torch; every second step it goes half of the way back."""

    def __init__(self, base):
        self.base, self.param_groups, self.count = base, base.param_groups, 0
        self.slow = [p.detach().clone() for group in self.param_groups for p in group["params"]]

    def step(self):
        self.base.step()
        self.count += 1
        if self.count % 2 == 0:
            for slow, p in zip(self.slow, (p for g in self.param_groups for p in g["params"]), strict=True):
                slow.add_(p.data - slow, alpha=0.5)
                p.data.copy_(slow)


def test_a_lookahead_s_way_back_is_kept():
    model, projector = compressed()
    optimizer = Lookahead(torch.optim.SGD(model.parameters(), LR))
    with projector.follow():
        for _ in range(4):
            for parameter in model.parameters():
                parameter.grad = None
            loss_of(model).backward()
            optimizer.step()
            standing = [layer.site.parameter.detach().clone() for layer in projector.layers]
            hidden = [layer.latent - layer.projection() for layer in projector.layers]
            projector.sync()
            projector.sync()  # of the weights that the inner optimiser has moved, too
            for layer, there, apart in zip(projector.layers, standing, hidden, strict=True):
                assert ((layer.latent - there).abs() <= apart.abs() + 1e-7).all()
            assert_projected(projector)


class Inside(torch.optim.SGD):
    """Lookahead of an optimiser that torch hooks as well: a step inside a step."""

    def __init__(self, parameters):
        super().__init__(parameters, LR)
        self.inner = torch.optim.SGD(self.param_groups, LR)
        self.slow = [p.detach().clone() for group in self.param_groups for p in group["params"]]

    def step(self, closure=None):
        loss = self.inner.step(closure)
        for slow, p in zip(self.slow, (p for g in self.param_groups for p in g["params"]), strict=True):
            slow.lerp_(p.detach(), 0.5)
            p.data.copy_(slow)
        return loss


@pytest.mark.parametrize("way", [raw, with_closure], ids=lambda way: way.__name__)
def test_a_step_inside_a_step_moves_latent_weights_too(way):
    model, projector = compressed()
    before = latents(projector)
    optimizer = Inside(model.parameters())
    optimizer.slow = [  # it has begun before the compression
        dict(zip((layer.site.parameter for layer in projector.layers), before, strict=True)).get(p, slow).clone()
        for p, slow in zip(model.parameters(), optimizer.slow, strict=True)
    ]
    expected = copy.deepcopy(model)
    loss_of(expected).backward()
    with projector.follow():
        way(model, optimizer)
    assert projector.steps == 1
    for old, layer in zip(before, projector.layers, strict=True):
        moved = old - LR / 2 * expected.get_parameter(layer.site.name).grad
        assert torch.allclose(layer.latent, moved, atol=1e-7)
    assert_projected(projector)


class ScheduleFree(torch.optim.Optimizer):
    """Steps at a mean of two sequences and is evaluated at another: ``eval`` and ``train`` exchange the weights."""

    def __init__(self, parameters):
        super().__init__(parameters, {"lr": LR})
        self.training = True

    def _move(self, weight):
        with torch.no_grad():
            for p in (p for group in self.param_groups for p in group["params"] if p in self.state):
                p.lerp_(self.state[p]["z"], weight)

    def eval(self):
        if self.training:
            self._move(1 - 1 / 0.9)
        self.training = False

    def train(self):
        if not self.training:
            self._move(0.1)
        self.training = True

    @torch.no_grad()
    def step(self, closure=None):
        for p in (p for group in self.param_groups for p in group["params"]):
            z = self.state[p].setdefault("z", p.clone())
            p.lerp_(z, 0.2)
            p.sub_(p.grad, alpha=0.5 * LR)
            z.sub_(p.grad, alpha=LR)


def test_a_schedule_free_optimizer_exchanges_latent_weights():
    model, projector = compressed()
    optimizer = ScheduleFree(model.parameters())
    with projector.follow([optimizer]):
        for _ in range(4):
            raw(model, optimizer)
        before = latents(projector)
        optimizer.eval()
        at_eval = latents(projector)
        assert_projected(projector)
        optimizer.train()
    for start, there, back in zip(before, at_eval, latents(projector), strict=True):
        assert not torch.allclose(start, there, atol=1e-5)
        assert torch.allclose(start, back, atol=1e-7)
    assert "eval" not in vars(optimizer)


@pytest.mark.parametrize("on_data", [False, True])
def test_a_momentum_encoder_follows_although_it_is_rounded(on_data):
    torch.manual_seed(0)
    online, target = nn.Linear(40, 40), nn.Linear(40, 40).requires_grad_(False)
    projector = Projector(target)
    projector.prune(0.3)
    projector.quantize(1.0)
    start = (online.weight - target.weight).norm()
    for _ in range(200):
        with torch.no_grad():
            if on_data:
                target.weight.data.mul_(0.95).add_(online.weight.data, alpha=0.05)
            else:
                target.weight.lerp_(online.weight, 0.05)
        projector.sync()
    kept = projector.layers[0].mask
    assert (projector.layers[0].latent - online.weight)[kept].norm() < 0.2 * start
    assert_projected(projector)


def test_weights_that_are_loaded_are_the_latent_weights():
    model, other = net(), nn.Sequential(nn.Linear(12, 24), nn.Tanh(), nn.Linear(24, 6))
    projector = Projector(model)
    model.load_state_dict(other.state_dict())
    optimizer = torch.optim.SGD(model.parameters(), 0.0)
    with projector.follow():
        raw(model, optimizer)
    for layer in projector.layers:
        assert torch.equal(layer.latent, other.get_parameter(layer.site.name))
    model, projector = compressed()
    hidden = [(layer.latent - layer.site.parameter).abs() for layer in projector.layers]
    model.load_state_dict(other.state_dict())
    projector.sync()
    for layer, most in zip(projector.layers, hidden, strict=True):
        assert ((layer.latent - other.get_parameter(layer.site.name)).abs() <= most + 1e-6).all()


@pytest.mark.parametrize("on_data", [False, True])
def test_one_value_in_its_last_place_is_noticed(on_data):
    model, projector = compressed()
    weight = model[2].weight
    place = int(weight.abs().argmax())
    before = projector.layers[1].latent.flatten()[place].item()
    with torch.no_grad():
        target = weight.data if on_data else weight
        target.view(-1)[place] = torch.nextafter(target.view(-1)[place], torch.tensor(torch.inf))
    assert not projector.layers[1].check()[0]
    projector.restore()
    assert weight.flatten()[place].item() != before


def test_an_average_that_is_swapped_in_and_out_changes_nothing():
    model, projector = compressed()
    before, own = latents(projector), copy.deepcopy(model.state_dict())
    state = projector.state_dict()
    model.load_state_dict({name: value * 0.9 for name, value in own.items()})
    assert not torch.equal(projector.state_dict()["layers"]["0.weight"]["latent"], before[0])
    model.load_state_dict(own)
    projector.sync()
    assert all(torch.equal(a, b) for a, b in zip(before, latents(projector), strict=True))
    assert torch.equal(state["layers"]["0.weight"]["latent"], before[0])


def test_two_optimizers_move_their_own_weights_only():
    model, projector = compressed()
    first = torch.optim.SGD(model[0].parameters(), LR)
    seen = {}
    first.register_step_pre_hook(lambda *_: seen.update({n: p.clone() for n, p in model.named_parameters()}))
    with projector.follow():
        loss_of(model).backward()
        first.step()
    assert torch.allclose(seen["0.weight"], projector.layers[0].latent + LR * model[0].weight.grad)
    assert torch.equal(seen["2.weight"], projector.layers[1].projection())


def test_what_others_have_written_is_in_the_state():
    model, projector = compressed()
    with torch.no_grad():
        model[0].weight.add_(1.0)
    state = projector.state_dict()
    assert torch.allclose(state["layers"]["0.weight"]["latent"], model[0].weight)


def test_an_exception_in_a_step_leaves_the_next_one_whole():
    model, projector = compressed()
    optimizer = torch.optim.SGD(model.parameters(), LR)
    hook = optimizer.register_step_post_hook(lambda *_: 1 / 0)
    with projector.follow():
        with pytest.raises(ZeroDivisionError):
            raw(model, optimizer)
        hook.remove()
        projector.capture()
        raw(model, optimizer)
    assert_projected(projector)


def test_a_diverged_weight_is_left_for_all_to_see_and_named_at_the_next_step():
    model, projector = compressed(fraction=1.0)
    projector.prune(0.5)
    optimizer = torch.optim.SGD(model.parameters(), LR)
    with projector.follow():
        loss_of(model).backward()
        model[2].weight.grad[0, 0] = torch.nan
        optimizer.step()
        assert model[2].weight.isnan().sum() == 1
        with pytest.raises(ValueError, match=r"NaN or infinity in 2\.weight after 1 optimiser steps"):
            optimizer.step()
    for act in (lambda: projector.prune(0.6), lambda: projector.quantize(1.0), projector.finish):
        with pytest.raises(ValueError, match=r"2\.weight"):
            act()


def test_weights_in_any_order_of_memory_are_followed():
    torch.manual_seed(0)
    model = nn.Conv2d(16, 300, 3).to(memory_format=torch.channels_last)
    projector = Projector(model)
    projector.prune(0.5)
    projector.settle()
    optimizer = torch.optim.SGD(model.parameters(), LR)
    with projector.follow():
        model(torch.randn(1, 16, 4, 4)).sum().backward()
        optimizer.step()
    assert_projected(projector)
    assert model.weight.is_contiguous(memory_format=torch.channels_last)
    assert projector.sparsity == pytest.approx(0.5, abs=0.05)
